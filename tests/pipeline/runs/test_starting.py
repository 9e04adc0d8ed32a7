"""Runs that start from the weights of a model: tokenizers, with parts frozen, and priors."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.tiny_run import TINY

from foundation.codes.dataset import TokenDataset
from foundation.errors import CheckpointError, ConfigError, ContractError
from foundation.storage.durable import file_sha256
from pipeline import ImageGenerator
from pipeline.commands.start import start_run
from stage1_tokenizer.hub import Tokenizer
from stage1_tokenizer.parts import part_of
from stage1_tokenizer.tokenizer import TokenizerModel
from stage1_tokenizer.train import TokenizerTask
from stage2_prior.lora import load_adapter
from stage2_prior.prior import PriorModel

NO_MODEL = {name: value for name, value in TINY.items() if not name.endswith(".model")}
VQ = {
    "tokenizer.model": {
        **TINY["tokenizer.model"],
        "quantizer": {"type": "vq", "codebook_size": 24, "width": 4, "revive_below": 0.1, "revive_every": 2},
    }
}


def run(out: Path, stage: str, **overrides: object) -> None:
    job = start_run("digits", str(out), overrides=overrides)
    try:
        getattr(job, stage)()
    finally:
        job.run.release()


def changed_parts(one: TokenizerModel, other: TokenizerModel) -> set[str]:
    before, after = one.state_dict(), other.state_dict()
    return {part_of(name) for name in before if not torch.equal(before[name], after[name])}


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a codebook learned by averages, which frozen ones must not move."""
    folder = tmp_path_factory.mktemp("learned") / "run"
    run(folder, "train_tokenizer", **{**TINY, **VQ})
    return folder


def test_a_decoder_is_refit_and_codes_and_prior_stay_valid(finished_run: Path, tmp_path: Path) -> None:
    start = {"tokenizer.start_from": str(finished_run), "tokenizer.freeze": ["encoder", "codebook"]}
    run(tmp_path / "refit", "train_tokenizer", **{**NO_MODEL, **start})
    before = TokenizerModel.load(finished_run / "tokenizer")
    after = TokenizerModel.load(tmp_path / "refit" / "tokenizer")
    assert changed_parts(before, after) == {"decoder"}
    assert after.spec == before.spec and after.fingerprint != before.fingerprint
    generator = ImageGenerator(after, PriorModel.load(finished_run / "prior"))
    codes = TokenDataset(finished_run / "codes", "validation").grids[:4].astype(np.int64)
    assert not torch.equal(generator.decode(torch.from_numpy(codes)), before.decode(torch.from_numpy(codes)))
    shell = Tokenizer.from_pretrained(tmp_path / "refit" / "tokenizer")
    assert shell.spec == before.spec
    with torch.no_grad():
        next(shell.model.encoder.parameters()).mul_(2)
    assert shell.spec.fingerprint == shell.model.fingerprint, "an encoder that was trained since makes other codes"


@pytest.mark.parametrize(
    ("frozen", "changed"),
    [
        ([], {"encoder", "codebook", "decoder"}),
        (["encoder", "codebook"], {"decoder"}),
        (["codebook"], {"encoder", "decoder"}),
        (["decoder"], {"encoder", "codebook"}),
        (["encoder"], {"codebook", "decoder"}),
    ],
)
def test_a_learned_codebook_starts_where_it_was_and_stays_if_frozen(
    learned: Path, tmp_path: Path, frozen: list[str], changed: set[str]
) -> None:
    start = {"tokenizer.start_from": str(learned), "tokenizer.freeze": frozen}
    run(tmp_path / "next", "train_tokenizer", **{**NO_MODEL, **start, "tokenizer.training.optim.learning_rate": 1e-5})
    before = TokenizerModel.load(learned / "tokenizer")
    after = TokenizerModel.load(tmp_path / "next" / "tokenizer")
    assert changed_parts(before, after) == changed
    images = torch.rand(4, 1, 8, 8) * 2 - 1
    with torch.no_grad():
        change = before(images).images_BCYX - after(images).images_BCYX
    assert float(change.abs().max()) < 0.2, "no new beginning"


def test_a_killed_refit_ends_as_an_uninterrupted_one_also_without_its_start(
    learned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(learned / "tokenizer", tmp_path / "start")
    settings = {
        **NO_MODEL,
        "tokenizer.start_from": str(tmp_path / "start"),
        "tokenizer.freeze": ["encoder", "codebook"],
    }
    run(tmp_path / "whole", "train_tokenizer", **settings)
    step = TokenizerTask.train_step

    def killed(task: TokenizerTask, batch: dict[str, torch.Tensor], number: int) -> dict[str, Any]:
        if number == 3:
            raise KeyboardInterrupt
        return step(task, batch, number)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(TokenizerTask, "train_step", killed)
        run(tmp_path / "parts", "train_tokenizer", **settings)
    shutil.move(tmp_path / "start", tmp_path / "moved")
    job = start_run(str(tmp_path / "parts"))
    job.train_tokenizer()
    job.run.release()
    weights = Path("tokenizer") / "model.safetensors"
    assert file_sha256(tmp_path / "parts" / weights) == file_sha256(tmp_path / "whole" / weights)
    codes_of = [
        json.loads((tmp_path / each / "tokenizer" / "config.json").read_text())["codes_of"]
        for each in ("parts", "whole")
    ]
    assert codes_of[0] == codes_of[1]


def test_what_cannot_be_started_from_is_refused_by_name(learned: Path, finished_run: Path, tmp_path: Path) -> None:
    for changes, field in (
        ({"tokenizer.freeze": ["encoder"]}, "tokenizer.freeze"),
        ({"tokenizer.start_from": str(learned), "tokenizer.pretrained": str(learned)}, "tokenizer.start_from"),
        ({"tokenizer.start_from": str(tmp_path)}, "tokenizer.start_from"),
        ({"prior.start_from": str(tmp_path)}, "prior.start_from"),
        (
            {"tokenizer.start_from": str(learned), "tokenizer.freeze": ["encoder", "codebook", "decoder"]},
            "tokenizer.freeze",
        ),
        (
            {"tokenizer.start_from": str(learned), "tokenizer.model.latent_channels": 16},
            "tokenizer.model.latent_channels",
        ),
    ):
        with pytest.raises(ConfigError) as caught:
            run(tmp_path / "no", "train_tokenizer", **{**NO_MODEL, **changes})
        assert str(caught.value).startswith(field)
    rgb = {"tokenizer.start_from": str(learned), "data.preprocess.mode": "RGB"}
    with pytest.raises(ContractError, match=r"data\.preprocess\.mode"):
        run(tmp_path / "no", "train_tokenizer", **{**NO_MODEL, **rgb})


def test_a_prior_starts_from_another_and_resumes_bit_for_bit(
    run_copy: Path, finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(run_copy / "prior")
    shutil.rmtree(run_copy / "checkpoints" / "prior")
    shutil.copytree(run_copy, tmp_path / "parts")
    settings = {**NO_MODEL, **VQ, "tokenizer.model": TINY["tokenizer.model"], "prior.start_from": str(finished_run)}
    run(run_copy, "train_prior", **settings)
    assert "prior: starts from" in capsys.readouterr().out
    first, last = PriorModel.load(finished_run / "prior"), PriorModel.load(run_copy / "prior")
    assert first.config == last.config
    rows = [json.loads(line) for line in (run_copy / "metrics.jsonl").read_text().splitlines()]
    held_out = [row for row in rows if row["stage"] == "prior" and row["kind"] == "held_out"]
    assert held_out[0]["nats_per_code"] < np.log(48) - 1e-3, "it begins where the other ended"
    run(tmp_path / "parts", "train_prior", **{**settings, "prior.training.fit.checkpoint_every": 1})
    shutil.rmtree(tmp_path / "parts" / "prior")
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / "prior" / "step-00000006")
    run(tmp_path / "parts", "train_prior", **settings)
    assert file_sha256(tmp_path / "parts" / "prior" / "model.safetensors") == file_sha256(
        run_copy / "prior" / "model.safetensors"
    )
    with pytest.raises(CheckpointError, match="other weights than when this run began"):
        shutil.rmtree(tmp_path / "parts" / "prior")
        run(tmp_path / "parts", "train_prior", **{**settings, "prior.start_from": str(run_copy)})


def test_adapters_of_a_run_are_saved_merged_and_apart(run_copy: Path, finished_run: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    shutil.rmtree(run_copy / "prior")
    shutil.rmtree(run_copy / "checkpoints" / "prior")
    shutil.copytree(finished_run / "prior", tmp_path / "start")
    settings = {**NO_MODEL, "tokenizer.model": TINY["tokenizer.model"], "prior.start_from": str(tmp_path / "start")}
    run(run_copy, "train_prior", **settings, **{"prior.lora.rank": 2, "prior.training.optim.learning_rate": 0.1})
    first, last = PriorModel.load(finished_run / "prior"), PriorModel.load(run_copy / "prior")
    assert torch.equal(first.head.weight, last.head.weight)
    changed = load_adapter(first, run_copy / "prior" / "adapter").state_dict()
    before = first.state_dict()
    for name, value in last.state_dict().items():
        assert torch.allclose(changed[name], value, atol=1e-6)
        assert torch.equal(before[name], value) != name.endswith(
            ("qkv.weight", "out.weight", "up.weight", "down.weight")
        )
