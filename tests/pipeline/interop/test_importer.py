"""What the importer accepts, what it refuses and how it says so; nothing is written unless all is well."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from support.live_sizes import PUBLISHED as PUBLISHED_SIZES
from support.live_sizes import write_manifest
from support.parity_fixtures import NO_PACKAGE, PARITY

from foundation.unpickling.values import LazyTensor
from pipeline.interop.checkpoint import Checkpoint
from pipeline.interop.importer import find_importer
from pipeline.interop.plan import account_for
from pipeline.interop.published import PUBLISHED
from pipeline.interop.tokenizer_plan import Options, read_arguments
from stage1_tokenizer.canary import load_canary
from stage1_tokenizer.tokenizer import TokenizerModel
from stage2_prior.config import SIZES

Tessera = Callable[..., tuple[int, str]]
TAMING = "taming/vqgan_f16_tiny"
CASES = {
    "llamagen_vq": "vq8_tiny",
    "taming": "vqgan_f16_tiny",
    "sd_kl": "kl_f8_tiny",
    "diffusers_vq": "vq_f4_tiny",
    "openai_dvae": "dvae_tiny",
    "open_magvit2": "lfq_f8_ema_tiny",
    "rqvae": "rq_shared_tiny",
}
MANIFESTS = sorted(PARITY.glob("*/full_manifest_*.json"))


def changed(parity: Path, case: str, where: Path, change: Callable[[dict], None]) -> Path:
    """A fixture's weights after a change, as a file."""
    state = load_file(parity / case / "state.safetensors")
    change(state)
    save_file(state, where / "changed.safetensors")
    return where / "changed.safetensors"


def shapes_of(paths: list[Path]) -> Checkpoint:
    """A checkpoint of which only names and shapes are known."""

    def unreadable() -> torch.Tensor:
        raise AssertionError("values were asked for")

    tensors = {}
    for path in paths:
        part = f"{path.stem.removeprefix('full_manifest_')}." if path.parent.name == "openai_dvae" else ""
        for key, about in json.loads(path.read_text()).items():
            dtype = getattr(torch, about["dtype"])
            tensors[part + key] = LazyTensor(tuple(about["shape"]), dtype, unreadable)
    return Checkpoint(tensors, {}, tuple(paths))


def manifest_groups() -> list[list[Path]]:
    """Manifests, the dVAE's two together."""
    dvae = [each for each in MANIFESTS if each.parent.name == "openai_dvae"]
    return [[each] for each in MANIFESTS if each not in dvae] + ([dvae] if dvae else [])


@pytest.mark.parametrize("name", PUBLISHED_SIZES)
def test_every_key_of_the_sizes_in_packages_is_accounted_for(name: str, tmp_path: Path) -> None:
    require_account([write_manifest(tmp_path, name)])


@pytest.mark.skipif(not MANIFESTS, reason=NO_PACKAGE)
@pytest.mark.parametrize("paths", manifest_groups(), ids=lambda paths: paths[0].stem.removeprefix("full_manifest_"))
def test_every_key_of_the_published_sizes_is_accounted_for(paths: list[Path]) -> None:
    require_account(paths)


def require_account(paths: list[Path]) -> None:
    checkpoint = shapes_of(paths)
    importer = find_importer(checkpoint, None)
    assert importer.format == paths[0].parent.name
    plan = importer.plan(checkpoint, Options())  # no configuration: the table of published models must know them
    account = account_for(plan, importer.format)
    told = [*account.used, *(key for keys in account.ignored.values() for key in keys)]
    assert sorted(told) == sorted(checkpoint.tensors)
    if importer.format == "llamagen_vq":
        assert plan.model.config.quantizer.normalize and plan.model.preprocess.height == 256
    if importer.format == "sd_kl":
        assert plan.model.config.quantizer.scaling_factor == 0.18215
    if importer.format == "llamagen_gpt":
        size, side = ("gpt-l", 24) if "L_384" in paths[0].stem else ("gpt-b", 16)
        assert plan.model.config.shape == SIZES[size].shape and plan.model.n_classes == 1000
        assert plan.model.spec.levels[0].shape == (side, side) and plan.index.sampling.guidance_scale == 2.0
    for name in (next(iter(account.used)), account.used[-1]):
        fewer = {key: value for key, value in checkpoint.tensors.items() if key != name}
        with pytest.raises(ValueError, match=name.replace(".", r"\.")):
            short = dataclasses.replace(checkpoint, tensors=fewer)
            account_for(importer.plan(short, Options()), importer.format)


def test_the_table_of_published_models_names_each_shape_once() -> None:
    known = [(each.format, json.dumps(each.shapes)) for each in PUBLISHED]
    assert len(set(known)) == len(known)


@pytest.mark.parametrize("name", CASES)
def test_formats_are_recognised_and_a_wrong_name_is_refused_with_the_right_one(
    name: str, parity: Path, tmp_path: Path, tessera: Tessera
) -> None:
    weights = parity / name / CASES[name] / "state.safetensors"
    for wrong in CASES:
        if wrong != name:
            status, said = tessera("import", weights, "--format", wrong, "-o", tmp_path / "out")
            assert status == 2 and f"is not of the format {wrong}" in said and f"the nearest is {name}" in said, said
    status, said = tessera("import", weights, "--format", "opn_magvit", "-o", tmp_path / "out")
    assert status == 2 and "did you mean 'open_magvit2'" in said
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", CASES)
def test_a_missing_and_an_extra_tensor_are_named(name: str, parity: Path, tmp_path: Path, tessera: Tessera) -> None:
    case = f"{name}/{CASES[name]}"
    config = ("--config", parity / case / "config.json")
    missing = {"open_magvit2": "model_ema.decoderconv_outbias", "openai_dvae": "decoder.blocks.output.conv.b"}.get(
        name, "decoder.conv_out.bias"
    )
    for kind, change, key in (
        ("missing", lambda state: state.pop(missing), missing),
        ("left over", lambda state: state.update({"decoder.stray": torch.zeros(3)}), "decoder.stray"),
        ("of another shape", lambda state: state.update({missing: torch.zeros(7)}), missing),
    ):
        path = changed(parity, case, tmp_path, change)
        for named in ((), ("--format", name)):
            status, said = tessera("import", path, *named, "-o", tmp_path / "out", *config)
            assert status == 2 and f"{kind}: {key}" in said.replace("makes", ""), said
            assert not (tmp_path / "out").exists()


def test_a_weight_in_whose_place_its_average_is_used_must_be_there(
    parity: Path, tmp_path: Path, tessera: Tessera
) -> None:
    key = "decoder.conv_out.bias"
    path = changed(parity, "open_magvit2/lfq_f8_ema_tiny", tmp_path, lambda state: state.pop(key))
    status, said = tessera("import", path, "-o", tmp_path / "out")
    assert status == 2 and f"missing: {key}" in said, said


def test_damage_is_refused_and_nothing_is_written(parity: Path, tmp_path: Path, tessera: Tessera) -> None:
    content = (parity / TAMING / "state.safetensors").read_bytes()
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(content[: len(content) // 2])
    status, said = tessera("import", cut, "-o", tmp_path / "out")
    assert status == 2 and "cut.safetensors" in said and "truncated" in said
    state = {"conv_in.bias": torch.full((32,), torch.nan)}
    path = changed(parity, TAMING, tmp_path, lambda own: own.update({f"encoder.{k}": v for k, v in state.items()}))
    status, said = tessera("import", path, "-o", tmp_path / "out")
    assert status == 2 and "not finite" in said and "encoder.conv_in.bias" in said
    path = changed(parity, TAMING, tmp_path, lambda own: own.pop("quantize.embedding.weight"))
    for named in ((), ("--format", "taming")):
        status, said = tessera("import", path, *named, "-o", tmp_path / "out")
        assert status == 2 and "quantize." in said and "embedding" in said, said
    assert {each.name for each in tmp_path.iterdir()} == {"cut.safetensors", "changed.safetensors"}


def test_an_existing_folder_is_never_overwritten(parity: Path, tmp_path: Path, tessera: Tessera) -> None:
    (tmp_path / "out").mkdir()
    status, said = tessera("import", parity / TAMING / "state.safetensors", "-o", tmp_path / "out")
    assert status == 2 and "never overwritten" in said and not any((tmp_path / "out").iterdir())


def test_what_shapes_cannot_tell_must_be_said(parity: Path, tmp_path: Path, tessera: Tessera) -> None:
    for case, field, other in (
        ("llamagen_vq/vq8_tiny", "codebook_l2_norm", {"ch": 32}),
        ("diffusers_vq/vq_f4_attn_tiny", "norm_num_groups", {"layers_per_block": 1}),
    ):
        weights = parity / case / "state.safetensors"
        status, said = tessera("import", weights, "-o", tmp_path / "out")
        assert status == 2 and field in said and "--config" in said
        (tmp_path / "c.json").write_text(json.dumps(other))
        status, said = tessera("import", weights, "-o", tmp_path / "out", "--config", tmp_path / "c.json")
        assert status == 2 and "c.json without it" in said and field in said


@pytest.mark.parametrize(
    ("case", "wrong", "field"),
    [
        ("taming/vqgan_f16_tiny", "ddconfig:\n  ch_mult: [1, 1, 2, 2, 4]\n", "ch_mult"),
        (
            "taming/vqgan_f16_tiny",
            "ddconfig: {resolution: 128, attn_resolutions: [16]}\nn_embed: 32\n",
            "attn_resolutions",
        ),
        ("taming/gumbel_f8_tiny", "model: {params: {n_embed: 8192}}\n", "n_embed"),
        ("llamagen_vq/vq8_tiny", "codebook_embed_dim: 16\n", "codebook_embed_dim"),
        ("diffusers_vq/vq_f4_tiny", "block_out_channels: [32, 64, 64]\n", "block_out_channels"),
        ("openai_dvae/dvae_tiny", "vocab_size: 8192\n", "vocab_size"),
        ("open_magvit2/lfq_f16_tiny", "ddconfig: {z_channels: 18}\n", "z_channels"),
        ("rqvae/rq_separate_tiny", "{n_embed: 40, shared_codebook: true}\n", "shared_codebook"),
        ("sd_kl/kl_f8_tiny", "unrelated: 3\n", "has no argument of this format"),
        ("sd_kl/kl_f8_tiny", "- a list\n", "holds no arguments"),
        ("sd_kl/kl_f8_tiny", "a: [1\n", "cannot be read"),
    ],
)
def test_a_configuration_of_another_model_is_refused(
    case: str, wrong: str, field: str, parity: Path, tmp_path: Path, tessera: Tessera
) -> None:
    (tmp_path / "config.yaml").write_text(wrong)
    arguments = (parity / case / "state.safetensors", "-o", tmp_path / "out", "--config", tmp_path / "config.yaml")
    status, said = tessera("import", *arguments)
    assert status == 2 and field in said and "config.yaml" in said, said
    assert not (tmp_path / "out").exists()


def test_a_configuration_is_read_wherever_its_arguments_stand(tmp_path: Path) -> None:
    path = tmp_path / "vqgan.yaml"
    path.write_text("model:\n  params:\n    n_embed: 5\n    ddconfig: {ch: 32}\n    lossconfig: {params: {ch: 1}}\n")
    arguments = read_arguments(path)
    assert (arguments.find("n_embed"), arguments.find("ch"), arguments.find("absent", 3)) == (5, 32, 3)


@pytest.mark.parametrize("wrapped", ["state_dict", "model", "module", None, "whole diffusion model"])
def test_published_wrappers(wrapped: str | None, parity: Path, tmp_path: Path, tessera: Tessera) -> None:
    case = "sd_kl/kl_f8_tiny" if wrapped == "whole diffusion model" else TAMING
    state = load_file(parity / case / "state.safetensors")
    content: dict = (
        {"epoch": 3, "callbacks": {Path: {"best": 1}}, "args": slice(2), wrapped: state} if wrapped else state
    )
    if wrapped == "whole diffusion model":
        inner = {f"first_stage_model.{key}": value for key, value in state.items()}
        content = {"state_dict": {**inner, "model.diffusion_model.out.0.weight": torch.zeros(3)}}
    torch.save(content, tmp_path / "last.ckpt")
    status, said = tessera("import", tmp_path / "last.ckpt", "-o", tmp_path / "out", "--image-size", 64)
    assert status == 0, said
    assert "loss" in said and ("other parts of a whole diffusion model" in said) == (case != TAMING)
    tessera("import", parity / case / "state.safetensors", "-o", tmp_path / "plain", "--image-size", 64)
    assert TokenizerModel.load(tmp_path / "out").fingerprint == TokenizerModel.load(tmp_path / "plain").fingerprint


def test_older_diffusers_names(parity: Path, tmp_path: Path, tessera: Tessera) -> None:
    case = parity / "diffusers_vq" / "vq_f4_attn_tiny"
    renames = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = load_file(case / "state.safetensors")
    for new, old in renames.items():
        state = {key.replace(f".{new}.", f".{old}."): value for key, value in state.items()}
    save_file(state, tmp_path / "old.safetensors")
    config = ("--config", case / "config.json", "--image-size", 64)
    assert tessera("import", tmp_path / "old.safetensors", "-o", tmp_path / "old", *config)[0] == 0
    assert tessera("import", case / "state.safetensors", "-o", tmp_path / "new", *config)[0] == 0
    assert TokenizerModel.load(tmp_path / "old").fingerprint == TokenizerModel.load(tmp_path / "new").fingerprint


def test_half_of_the_dvae_asks_for_the_other_file(parity: Path, tmp_path: Path, tessera: Tessera) -> None:
    folder = parity / "openai_dvae" / "dvae_tiny"
    for part, other in (("encoder", "decoder"), ("decoder", "encoder")):
        status, said = tessera("import", folder / f"{part}.pkl", "-o", tmp_path / "out")
        assert status == 2 and f"holds the {part} alone" in said and f"{other}.pkl" in said
    status, said = tessera("import", folder / "encoder.pkl", folder / "encoder.pkl", "-o", tmp_path / "out")
    assert status == 2 and "repeats tensors of the other file" in said


def test_an_imported_folder_is_like_one_of_ours(parity: Path, tmp_path: Path, tessera: Tessera) -> None:
    from stage1_tokenizer import Tokenizer

    out = tmp_path / "tokenizer"
    weights = parity / "taming" / "gumbel_f8_tiny" / "state.safetensors"
    assert tessera("import", weights, "--format", "taming", "--out", out, "--image-size", "32")[0] == 0
    dressed = Tokenizer.from_pretrained(out)
    assert dressed.spec == TokenizerModel.load(out).spec and dressed.spec.levels[0].shape == (4, 4)
    canary = load_canary(out)
    assert canary is not None and canary.codes.unique().numel() > 4
    origin = json.loads((out / "origin.json").read_text())
    assert origin["format"] == "taming" and origin["files"][0]["name"] == "state.safetensors"
    pixels = np.random.default_rng(0).integers(0, 256, (40, 57, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    status, said = tessera("reconstruct", out, tmp_path / "picture.png", "--keep-size", "--out", tmp_path / "pairs")
    assert status == 0 and "mean PSNR" in said
    status, said = tessera("import", weights, "-o", tmp_path / "odd", "--image-size", 36)
    assert status == 2 and "--image-size" in said and "a multiple of the stride, 8" in said
