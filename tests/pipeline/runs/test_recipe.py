"""Recipes: every built-in one trains, shrunk to seconds, on real images where they are at hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.tiny_run import TINY

from foundation.config import to_dict
from foundation.errors import CheckpointError, ConfigError, ContractError
from foundation.images.config import Preprocess
from foundation.training.log import read_metrics
from pipeline.commands.start import start_run
from pipeline.runs.folder import RunFolder
from pipeline.runs.named_models import with_named_models
from pipeline.runs.recipe import adopt_tokenizer, load_recipe
from pipeline.runs.recipe_files import built_in_recipes
from stage1_tokenizer.config import TokenizerConfig
from stage1_tokenizer.networks.config import Magvit2Networks
from stage1_tokenizer.quantizers.config import LFQConfig
from stage1_tokenizer.tokenizer import TokenizerModel

CONFIG = TokenizerConfig(
    networks=Magvit2Networks(base_width=8, width_multipliers=(1, 2), n_res_blocks=1, norm_groups=4),
    latent_channels=6,
    projection="none",
    quantizer=LFQConfig(width=6),
)
PREPROCESS = Preprocess(height=8, width=12)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A finished tokenizer."""
    path = tmp_path / "imported"
    path.mkdir()
    TokenizerModel(CONFIG, PREPROCESS).save(path)
    return path


def test_a_recipe_that_names_a_tokenizer_gets_its_settings(folder: Path, tmp_path: Path) -> None:
    values = {
        "name": "x",
        "data": {"source": "y", "preprocess": {"height": 99}},
        "tokenizer": {"pretrained": str(folder), "model": {"base_width": 99}},
    }
    found = with_named_models(values)
    assert found["tokenizer"]["model"] == to_dict(CONFIG) and found["data"]["preprocess"] == to_dict(PREPROCESS)
    assert found["data"]["source"] == "y" and found["name"] == "x"
    folder.rename(tmp_path / "moved")
    assert with_named_models(found) == found  # as the recipe of a run folder
    with pytest.raises(ConfigError, match=r"tokenizer.pretrained(.|\n)*imported"):
        with_named_models({"tokenizer": {"pretrained": str(folder)}})
    assert with_named_models({"name": "x"}) == {"name": "x"}


def test_the_tokenizer_is_copied_whole_or_refused(folder: Path, tmp_path: Path) -> None:
    adopt_tokenizer(folder, tmp_path / "run" / "tokenizer", CONFIG, PREPROCESS)
    assert TokenizerModel.load(tmp_path / "run" / "tokenizer").fingerprint == TokenizerModel.load(folder).fingerprint
    adopt_tokenizer(tmp_path / "run", tmp_path / "again", CONFIG, PREPROCESS)
    with pytest.raises(ContractError, match=r"differs from the recipe in preprocess.height"):
        adopt_tokenizer(folder, tmp_path / "other", CONFIG, Preprocess(height=16, width=12))
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(CheckpointError, match="changed or damaged"):
        adopt_tokenizer(folder, tmp_path / "other", CONFIG, PREPROCESS)
    assert not (tmp_path / "other").exists()


def test_codes_that_are_no_longer_the_same_are_refused(folder: Path, tmp_path: Path) -> None:
    from stage1_tokenizer.canary import load_canary, save_canary

    model = TokenizerModel.load(folder)
    save_canary(model, torch.randint(0, 256, (4, 8, 12, 3), dtype=torch.uint8).numpy(), folder)
    canary = load_canary(folder)
    assert canary is not None
    adopt_tokenizer(folder, tmp_path / "sound", CONFIG, PREPROCESS)
    with torch.no_grad():
        model.encoder.conv_out.bias += 1
    changed = tmp_path / "changed"
    changed.mkdir()
    model.save(changed)
    (changed / "canary.safetensors").write_bytes((folder / "canary.safetensors").read_bytes())
    with pytest.raises(ContractError, match="no longer gives the codes"):
        adopt_tokenizer(changed, tmp_path / "other", CONFIG, PREPROCESS)


NETWORKS = {
    "vqgan": {
        "patch_size": 2,
        "base_width": 8,
        "width_multipliers": [1, 2],
        "n_res_blocks": 1,
        "norm_groups": 4,
        "attention_levels": [],
    },
    "vit": {"patch_size": 4, "width": 16, "encoder_layers": 1, "decoder_layers": 1, "n_heads": 2},
}
SMALL = {
    "tokenizer.model": {"latent_channels": 8},
    "tokenizer.training": {"precision": "float32"},  # bf16 is slow where the processor only imitates it
    "tokenizer.training.fit": {"steps": 3, "batch_size": 4, "evaluate_every": 3, "checkpoint_every": 3},
    "data.preprocess": {"height": 32, "width": 32},
}
COLOUR = [name for name in built_in_recipes() if name != "digits"]


def test_the_systems_of_the_field_each_have_a_recipe() -> None:
    systems = (
        "vae",
        "beta-vae",
        "kl-gan",
        "vqvae",
        "vqvae2",
        "dvae",
        "vqgan",
        "rqvae",
        "fsq",
        "lfq",
        "bsq",
        "ibq",
        "simvq",
    )
    for prefix in ("cifar10", "pictures"):
        assert {f"{prefix}-{system}" for system in systems} <= set(built_in_recipes())


@pytest.mark.parametrize("name", COLOUR)
def test_a_recipe_trains_its_tokenizer_on_real_images(name: str, photographs: Path, tmp_path: Path) -> None:
    source = {"type": "dataset", "path": str(photographs), "validation_split": "validation", "limit": 16}
    overrides = {"data.source": source}
    recipe = load_recipe(name)
    networks = NETWORKS[recipe.tokenizer.model.networks.type_name]
    for part, values in {**SMALL, "tokenizer.model.networks": networks}.items():
        overrides |= {f"{part}.{key}": value for key, value in values.items()}
    quantizer = recipe.tokenizer.model.quantizer.type_name
    if quantizer in ("vq", "ibq", "gumbel"):  # as many codes as 16 images can place
        overrides["tokenizer.model.quantizer.codebook_size"] = 64
    if quantizer == "residual":
        overrides["tokenizer.model.quantizer.codebook.codebook_size"] = 64
    training = recipe.tokenizer.training
    if training.perceptual.weight > 0:
        overrides["tokenizer.training.perceptual.vgg_weights"] = "random"
    if training.adversarial.weight > 0:
        overrides |= {
            "tokenizer.training.adversarial.start_step": 1,
            "tokenizer.training.adversarial.discriminator": {"width": 8, "n_layers": 2},
        }
    folder = RunFolder(tmp_path / "run")
    start_run(name, str(folder.root), overrides, stages=("tokenizer",)).train_tokenizer()
    last = read_metrics(folder.metrics, "tokenizer", "held_out")[-1]
    assert last["step"] == 3 and last["psnr"] > 0
    rows = read_metrics(folder.metrics, "tokenizer", "train")
    assert ("discriminator_loss" in rows[-1]) == (training.adversarial.weight > 0)
    assert all(row["loss"] is not None for row in rows)


def test_a_recipe_extends_others_the_later_over_the_earlier(tmp_path: Path) -> None:
    (tmp_path / "big.yaml").write_text("seed: 7\nprior: {model: {d_model: 512}}\n")
    (tmp_path / "mine.yaml").write_text("extends: [digits, big]\nname: mine\nprior: {model: {n_layers: 2}}\n")
    recipe, base = load_recipe(str(tmp_path / "mine.yaml")), load_recipe("digits")
    assert (recipe.name, recipe.seed, recipe.prior.model.d_model, recipe.prior.model.n_layers) == ("mine", 7, 512, 2)
    assert recipe.tokenizer == base.tokenizer and recipe.prior.model.n_heads == base.prior.model.n_heads


def test_another_type_drops_the_fields_of_the_one_it_replaces(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "extends: digits\nname: mine\ntokenizer: {model: {quantizer: {type: fsq, levels: [8, 8]}}}\n"
    )
    assert load_recipe(str(tmp_path / "mine.yaml")).tokenizer.model.quantizer.codebook_size == 64


def test_a_circle_and_an_unknown_base_are_refused(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text("extends: two\nname: one\n")
    (tmp_path / "two.yaml").write_text("extends: one\nname: two\n")
    with pytest.raises(ConfigError, match="extends itself"):
        load_recipe(str(tmp_path / "one.yaml"))
    (tmp_path / "two.yaml").write_text("extends: digit\nname: two\n")
    with pytest.raises(ConfigError, match="'digits'"):
        load_recipe(str(tmp_path / "one.yaml"))


def test_a_continuous_tokenizer_runs_to_its_report_and_generates(tmp_path: Path) -> None:
    from pipeline import ImageGenerator

    overrides = {**TINY, "tokenizer.model": {**TINY["tokenizer.model"], "quantizer": {"type": "kl", "width": 2}}}
    job = start_run("digits", str(tmp_path / "run"), overrides)
    job.all()
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Without the prior" in page and "nats per value" in page and "PSNR" in page
    generator = ImageGenerator.from_pretrained(tmp_path / "run")
    out = generator("3", 2, seed=0, output_type="pt")
    assert out.images.shape == (2, 1, 8, 8) and out.codes.shape == (2, 4, 4, 2)
    kept = generator.complete(out.images, rows=0.5, seed=1, output_type="pt")
    assert kept.images.shape == (2, 1, 8, 8)
    assert bool(torch.isfinite(generator.score(out.images)).all())


@pytest.mark.parametrize(
    "changes",
    [
        {"coarse_halvings": 1, "quantizer": {"type": "vq", "codebook_size": 32, "width": 4}},
        {"quantizer": {"type": "residual", "depth": 2, "codebook": {"codebook_size": 32, "width": 4}}},
    ],
)
def test_two_grids_and_two_depths_go_through_encode_export_prior_and_decode(changes: dict, tmp_path: Path) -> None:
    from pipeline.generation.generator import ImageGenerator

    overrides = {**TINY, "tokenizer.model": {**TINY["tokenizer.model"], **changes}}
    start_run("digits", str(tmp_path / "run"), overrides).all()
    generator = ImageGenerator.from_pretrained(tmp_path / "run")
    output = generator([3, 7], seed=0, output_type="pt")
    two_grids = "coarse_halvings" in changes
    assert output.codes.shape == ((2, 4 + 16) if two_grids else (2, 4, 4, 2))
    assert output.images.shape == (2, 1, 8, 8)
    assert generator.prior.n_codes == (20 if two_grids else 32)
    page = (tmp_path / "run" / "report.html").read_text()
    assert "validation, 4 x 4 grid" in page if two_grids else "validation, depth 2" in page
