"""An exported graph does what the model does, for any number of images, without our code."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from foundation.config import from_dict
from foundation.errors import ContractError
from foundation.images.config import Preprocess
from pipeline.cli import main
from pipeline.interop import graphs
from pipeline.interop.graphs import export_tokenizer
from stage1_tokenizer.config import TokenizerConfig
from stage1_tokenizer.tokenizer import TokenizerModel

BASE = {"base_width": 8, "width_multipliers": [1, 2], "n_res_blocks": 1, "latent_channels": 8, "norm_groups": 4}
QUANTIZERS = {
    "vq": {"type": "vq", "codebook_size": 40_000, "width": 8},  # 40 vectors: more than one block of a search
    "fsq": {"type": "fsq", "levels": [4, 4, 3]},
    "lfq": {"type": "lfq", "width": 8},
    "residual": {"type": "residual", "codebook": {"codebook_size": 32, "width": 8}, "depth": 3},
    "ibq": {"type": "ibq", "codebook_size": 64},
    "gumbel": {"type": "gumbel", "codebook_size": 64},
    "kl": {"type": "kl"},
}
slow = pytest.mark.slow


def tokenizer_of(quantizer: str, **changes: object) -> TokenizerModel:
    config = from_dict(TokenizerConfig, {**BASE, "quantizer": QUANTIZERS[quantizer], **changes})
    return TokenizerModel(config, Preprocess(height=8, width=12, mode="RGB")).eval()


def some_images(n: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, 3, 8, 12, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[TokenizerModel, Path, list[graphs.Exported]]:
    """A tokenizer whose codebook takes more than one block of a search, and its graphs."""
    tokenizer, folder = tokenizer_of("vq"), tmp_path_factory.mktemp("export") / "out"
    return tokenizer, folder, export_tokenizer(tokenizer, some_images(4), folder)


def test_graphs_agree_with_the_model_at_every_batch_size(
    searched: tuple[TokenizerModel, Path, list[graphs.Exported]],
) -> None:
    agree(*searched)


@slow
@pytest.mark.parametrize(
    ("quantizer", "changes"),
    [
        ("fsq", {"attention_levels": [1]}),
        ("lfq", {}),
        ("residual", {}),
        ("ibq", {}),
        ("gumbel", {}),
        ("kl", {}),
        ("vq", {"coarse_halvings": 1}),
    ],
)
def test_graphs_of_every_quantizer_agree(quantizer: str, changes: dict, tmp_path: Path) -> None:
    tokenizer = tokenizer_of(quantizer, **changes)
    agree(tokenizer, tmp_path / "out", export_tokenizer(tokenizer, some_images(4), tmp_path / "out"))


def agree(tokenizer: TokenizerModel, folder: Path, done: list[graphs.Exported]) -> None:
    assert {each.file for each in done} >= {"encoder.pt2", "decoder.pt2"}
    assert all(each.difference is not None and each.difference <= 1e-3 for each in done if each.file.endswith(".pt2"))
    encoder, decoder = (torch.export.load(folder / f"{name}.pt2").module() for name in ("encoder", "decoder"))
    for n in (1, 3, 9):
        images = some_images(n, seed=n)
        codes = tokenizer.encode(images)
        if tokenizer.is_discrete:
            assert torch.equal(encoder(images), codes)
        assert torch.allclose(decoder(codes), tokenizer.decode(codes), atol=1e-5)
    about = json.loads((folder / "export.json").read_text())
    assert about["fingerprint"] == tokenizer.fingerprint and len(about["graphs"]) == len(done)


def test_graphs_are_used_without_our_code(
    searched: tuple[TokenizerModel, Path, list[graphs.Exported]], tmp_path: Path
) -> None:
    tokenizer, folder, _ = searched
    images = some_images(3)
    torch.save(images, tmp_path / "images.pt")
    code = (
        "import sys, torch;"
        f"load = lambda name: torch.export.load('{folder}/' + name + '.pt2').module();"
        f"codes = load('encoder')(torch.load('{tmp_path}/images.pt'));"
        f"torch.save((codes, load('decoder')(codes).detach()), '{tmp_path}/out.pt');"
        "print([name for name in sys.modules if name.split('.')[0] in ('foundation', 'stage1_tokenizer', 'pipeline')])"
    )
    line = [sys.executable, "-c", code]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    codes, decoded = torch.load(tmp_path / "out.pt")
    assert torch.equal(codes, tokenizer.encode(images))
    assert torch.allclose(decoded, tokenizer.decode(codes), atol=1e-5)


def test_a_graph_that_differs_is_refused_and_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tokenizer_of("fsq")
    real = graphs.Encoder.forward
    monkeypatch.setattr(graphs.Encoder, "forward", lambda self, images: (real(self, images) + 1) % 48)
    with pytest.raises(ContractError, match=r"encoder\.pt2"):
        export_tokenizer(tokenizer, some_images(2), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_the_command_checks_on_the_images_beside_the_tokenizer(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "graphs"
    assert main(["export", str(finished_run), "-o", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "encoder.pt2" in printed and "checked on 16 images" in printed
    assert main(["export", str(finished_run), "-o", str(out)]) == 2
    assert "never overwritten" in capsys.readouterr().err


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="needs onnx, onnxscript and onnxruntime",
)
def test_onnx_graphs_agree_too(searched: tuple[TokenizerModel, Path, list[graphs.Exported]]) -> None:
    done = {each.file: each for each in searched[2]}
    assert done["encoder.onnx"].difference == 0 and done["encoder.onnx"].checked == "onnxruntime"
    assert done["decoder.onnx"].difference is not None and done["decoder.onnx"].difference < 1e-4
