"""A whole run, tiny: its folder, what other tools make of it, and running it again."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from foundation.durable import file_sha256
from foundation.errors import CheckpointError, ConfigError, ContractError, DataError, TrainingError
from foundation.log import read_metrics
from foundation.token_dataset import TokenDataset
from pipeline import ImageGenerator
from pipeline.commands import start_run
from pipeline.recipe import built_in_recipes, load_recipe
from stage1_tokenizer.tokenizer import TokenizerModel

from conftest import TINY  # isort: skip


def again(folder: Path, **overrides: object) -> None:
    job = start_run("digits", str(folder), overrides={**TINY, **overrides})
    try:
        job.all()
    finally:
        job.run.release()


def hashes(folder: Path) -> dict[str, str]:
    """Of everything that a run is for: weights, codes, samples."""
    parts = ("tokenizer", "codes", "prior", "samples")
    files = [path for part in parts for path in (folder / part).rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): file_sha256(path) for path in sorted(files)}


def test_the_folder_holds_everything_and_nothing_temporary(finished_run: Path) -> None:
    names = {path.relative_to(finished_run).as_posix() for path in finished_run.rglob("*") if path.is_file()}
    expected = {
        "recipe.yaml", "metrics.jsonl", "model_index.json", "report.html", "failed_images.jsonl",
        "tokenizer/config.json", "tokenizer/model.safetensors", "tokenizer/code_spec.json",
        "tokenizer/canary.safetensors",
        "prior/config.json", "prior/model.safetensors",
        "codes/manifest.json", "codes/README.md", "codes/tokenizer/model.safetensors",
        "codes/data/train/part-00000.parquet", "codes/data/validation/part-00000.parquet",
        "samples/grid.png", "samples/codes.npy", "samples/samples.json",
    }  # fmt: skip
    assert expected <= names
    assert not [name for name in names if ".tmp-" in name or name.endswith((".pt", ".pkl", ".bin", ".ckpt"))]


def test_the_resolved_recipe_reproduces_itself(finished_run: Path) -> None:
    text = yaml.safe_load((finished_run / "recipe.yaml").read_text())
    assert text["versions"]["torch"]
    assert load_recipe(str(finished_run / "recipe.yaml")) == load_recipe("digits", TINY)


def test_doing_it_again_redoes_nothing(run_copy: Path) -> None:
    before = hashes(run_copy)
    times = {path: path.stat().st_mtime_ns for path in run_copy.rglob("*") if path.is_file()}
    again(run_copy)
    assert hashes(run_copy) == before
    changed = {path.name for path, time in times.items() if path.stat().st_mtime_ns != time}
    assert changed <= {"report.html"}


@pytest.mark.parametrize(
    "gone",
    [
        ["samples"], ["model_index.json", "samples"], ["prior", "model_index.json", "samples"],
        ["codes/manifest.json"], ["codes/README.md", "prior", "samples"], ["codes/data/validation"], ["codes"],
        ["tokenizer", "codes"], ["checkpoints"], ["checkpoints", "prior"], ["report.html"],
    ],
)  # fmt: skip
def test_whatever_a_crash_left_out_is_made_again_the_same(run_copy: Path, gone: list[str]) -> None:
    before = hashes(run_copy)
    for name in gone:
        path = run_copy / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    again(run_copy)
    assert hashes(run_copy) == before
    assert (run_copy / "report.html").exists() and (run_copy / "model_index.json").exists()


def test_another_recipe_is_refused_naming_the_fields(run_copy: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        again(run_copy, **{"prior.training.label_dropout": 0.3, "seed": 5})
    for fragment in ("prior.training.label_dropout", "0.1", "0.3", "seed", "--run_dir"):
        assert fragment in str(caught.value)


@pytest.mark.parametrize(("recipe", "n_slots"), [("cifar10-rqvae", 4), ("cifar10-vqvae2", 2)])
def test_orders_that_the_prior_cannot_learn_are_refused_before_the_tokenizer_trains(
    recipe: str, n_slots: int, tmp_path: Path
) -> None:
    prior = {"model.target_aware": True, "training.random_order": {"until_step": 1, "zero_step": 2}}
    with pytest.raises(ConfigError, match=f"null for codes of {n_slots} slots"):
        start_run(recipe, str(tmp_path / "run"), {f"prior.{name}": value for name, value in prior.items()})
    assert not (tmp_path / "run").exists()


def test_codes_of_another_tokenizer_are_refused(run_copy: Path, tmp_path: Path) -> None:
    other = start_run("digits", str(tmp_path / "other"), overrides={**TINY, "seed": 1})
    other.train_tokenizer()
    shutil.rmtree(run_copy / "prior")
    shutil.rmtree(run_copy / "tokenizer")
    shutil.copytree(tmp_path / "other" / "tokenizer", run_copy / "tokenizer")
    with pytest.raises(ContractError, match="fingerprint"):
        again(run_copy)


def test_codes_of_other_images_are_refused(run_copy: Path) -> None:
    from foundation.token_dataset import read_shard, shard_path, write_shard

    path = shard_path(run_copy / "codes", "train", 0)
    spec = TokenDataset(run_copy / "codes").spec
    shard = read_shard(path, spec)
    path.unlink()
    write_shard(path, dataclasses.replace(shard, image_ids=["x", *shard.image_ids[1:]]), spec)
    (run_copy / "codes" / "manifest.json").unlink()
    with pytest.raises(ContractError, match=r"other images or labels(.|\n)*codes folder"):
        again(run_copy)


def test_images_that_changed_since_a_checkpoint_are_named(mixed_folder: Path, tmp_path: Path) -> None:
    overrides = {
        **TINY,
        "data.source": {"type": "folder", "path": str(mixed_folder)},
        "data.preprocess": {"height": 16, "width": 16, "mode": "RGB"},
        "data.max_failed_share": 0.2,
    }
    job = start_run("digits", str(tmp_path / "run"), overrides=overrides)
    job.train_tokenizer()
    job.run.release()
    shutil.rmtree(tmp_path / "run" / "tokenizer")
    for path in mixed_folder.glob("rgb-*.png"):
        Image.new("RGB", (40, 40), "red").save(path)
    with pytest.raises(CheckpointError, match="the training images"):
        start_run("digits", str(tmp_path / "run"), overrides=overrides).train_tokenizer()


def test_shards_that_are_not_planned_are_refused(run_copy: Path) -> None:
    data = run_copy / "codes" / "data" / "train"
    shutil.copy(data / "part-00000.parquet", data / "part-00001.parquet")
    (run_copy / "codes" / "manifest.json").unlink()
    with pytest.raises(ContractError, match="part-00001"):
        again(run_copy)


def test_what_has_not_begun_can_still_be_changed(run_copy: Path) -> None:
    """A mistake in a later part costs nothing: training that is done stays."""
    before = hashes(run_copy)
    shutil.rmtree(run_copy / "samples")
    again(run_copy, **{"samples.images_per_class": 1, "samples.sampling.temperature": 0.5})
    assert json.loads((run_copy / "model_index.json").read_text())["sampling"]["temperature"] == 0.5
    after = hashes(run_copy)
    assert {name: value for name, value in after.items() if not name.startswith("samples")} == {
        name: value for name, value in before.items() if not name.startswith("samples")
    }
    with pytest.raises(CheckpointError, match=r"samples\.images_per_class"):
        again(run_copy, **{"samples.images_per_class": 3})


def test_a_first_mistake_does_not_claim_the_folder(tmp_path: Path) -> None:
    wrong = start_run(
        "digits", str(tmp_path), overrides={**TINY, "data.source": {"type": "folder", "path": "/nowhere"}}
    )
    with pytest.raises(DataError, match="/nowhere"):
        wrong.all()
    wrong.run.release()
    again(tmp_path)


def test_cadence_and_memory_may_change(run_copy: Path) -> None:
    again(run_copy, **{"prior.training.fit.log_every": 1, "data.cache_mib": 0})


def test_a_folder_is_worked_in_by_one_process_at_a_time(run_copy: Path) -> None:
    job = start_run("digits", str(run_copy), overrides=TINY)
    line = [sys.executable, "-m", "pipeline.cli", "run", str(run_copy)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "another process" in done.stderr
    job.run.release()


def test_leftovers_of_killed_runs_are_swept(run_copy: Path) -> None:
    name = f".tmp-{'0' * 32}-x"
    places = [run_copy, run_copy / "checkpoints" / "prior", run_copy / "codes", run_copy / "codes" / "data" / "train"]
    for place in places:
        (place / name).mkdir()
        (place / name / "state.safetensors").write_bytes(b"x")
    again(run_copy)
    assert not [place for place in places if (place / name).exists()]


def test_a_run_that_diverges_stops_and_freezes_nothing(tmp_path: Path) -> None:
    job = start_run("digits", str(tmp_path), overrides={**TINY, "tokenizer.training.optim.learning_rate": 1e30})
    with pytest.raises(TrainingError, match="lower the learning rate"):
        job.all()
    assert not (tmp_path / "tokenizer").exists()


def test_damaged_weights_are_refused(run_copy: Path) -> None:
    for part in ("tokenizer", "prior"):
        path = run_copy / part / "model.safetensors"
        whole = path.read_bytes()
        path.write_bytes(whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:])
        with pytest.raises(CheckpointError, match=part):
            ImageGenerator.from_pretrained(run_copy)
        path.write_bytes(whole)
    ImageGenerator.from_pretrained(run_copy)


def test_two_processes_train_like_one(tmp_path: Path, finished_run: Path) -> None:
    overrides = [part for name, value in TINY.items() for part in (f"--{name}", json.dumps(value))]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "pipeline.cli"]
    line = [*launch, "run", "digits", "--run_dir", str(tmp_path), "--machine.device", "cpu", *overrides]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(line, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("done in") == 1
    alone = read_metrics(finished_run / "metrics.jsonl", "tokenizer", "train")
    together = read_metrics(tmp_path / "metrics.jsonl", "tokenizer", "train")
    for one, two in zip(alone, together, strict=True):
        assert two["step"] == one["step"] and two["loss"] == pytest.approx(one["loss"], rel=1e-4)
    ImageGenerator.from_pretrained(tmp_path)(3, seed=0)


def test_metrics_say_whether_a_loss_is_normal(finished_run: Path) -> None:
    first, *_, last = read_metrics(finished_run / "metrics.jsonl", "prior", "held_out")
    assert first["step"] == 0 and last["step"] == 6
    assert first["nats_per_code"] == pytest.approx(np.log(48), abs=1e-4) == first["uniform_nats_per_code"]
    assert last["bits_per_image"] == pytest.approx(16 * last["bits_per_code"])
    assert 0 < last["unigram_bits_per_code"] < np.log2(48)
    tokenizer = read_metrics(finished_run / "metrics.jsonl", "tokenizer", "held_out")[-1]
    assert {"psnr", "code_usage", "code_perplexity"} <= set(tokenizer)


def test_the_codes_decode_with_the_tokenizer_beside_them(finished_run: Path) -> None:
    import torch

    dataset = TokenDataset(finished_run / "codes", "validation")
    tokenizer = TokenizerModel.load(finished_run / "codes" / "tokenizer")
    assert dataset.spec.fingerprint == tokenizer.fingerprint
    assert dataset.spec.class_names == tuple("0123456789")
    images = tokenizer.decode(torch.from_numpy(dataset.grids[:5].astype(np.int64)))
    assert images.shape == (5, 1, 8, 8)


def test_the_sample_grid_has_a_row_per_class(finished_run: Path) -> None:
    about = json.loads((finished_run / "samples" / "samples.json").read_text())
    assert about["labels"] == [label for label in range(10) for _ in range(2)]
    assert Image.open(finished_run / "samples" / "grid.png").size == (2 * 64 + 2, 10 * 64 + 9 * 2)


def test_the_report_is_one_file_that_shows_everything(finished_run: Path) -> None:
    page = (finished_run / "report.html").read_text()
    for title in ("Samples", "Uses", "Figures", "Reconstructions", "Training", "Use of the codebook", "Data", "Recipe"):
        assert f"<h2>{title}</h2>" in page
    assert page.count("data:image/png;base64,") == 20
    assert "http" not in page.replace("https://", "http://").split("<h2>Recipe</h2>")[0]
    assert "src='/" not in page and "href=" not in page


def test_a_flat_folder_of_mixed_images_runs_unconditionally(mixed_folder: Path, tmp_path: Path) -> None:
    overrides = {
        **TINY,
        "data.source": {"type": "folder", "path": str(mixed_folder)},
        "data.preprocess": {"height": 16, "width": 24, "mode": "RGB"},
        "data.validation_share": 0.2,
        "data.max_failed_share": 0.2,
        "encode.flip": True,
        "encode.images_per_shard": 10,
        "samples.unconditional_images": 4,
    }
    job = start_run("digits", str(tmp_path / "run"), overrides=overrides)
    job.all()
    failed = [json.loads(line) for line in (tmp_path / "run" / "failed_images.jsonl").read_text().splitlines()]
    assert {each["image_id"] for each in failed} == {"corrupt.png", "empty.jpg"}
    dataset = TokenDataset(tmp_path / "run" / "codes", "train")
    held_out = TokenDataset(tmp_path / "run" / "codes", "validation")
    assert dataset.labels_N is None
    assert len(dataset) == 2 * len(set(dataset.image_ids)) and len(set(dataset.image_ids)) + len(held_out) == 30
    assert sorted(set(dataset.views_N.tolist())) == [0, 1]
    assert len(list((tmp_path / "run" / "codes" / "data" / "train").iterdir())) == 3
    page = (tmp_path / "run" / "report.html").read_text()
    assert "corrupt.png" in page and "empty.jpg" in page
    assert json.loads((tmp_path / "run" / "samples" / "samples.json").read_text())["labels"] == [None] * 4


def test_cifar10_runs(shared_data: Path, tmp_path: Path) -> None:
    overrides = {
        **{name: value for name, value in TINY.items() if not name.startswith("samples")},
        "data.source": {
            "type": "dataset", "path": str(shared_data / "cifar10"), "label_column": "label",
            "validation_split": "validation", "limit": 200,
        },
        "data.preprocess": {"height": 32, "width": 32, "mode": "RGB"},
        "samples.images_per_class": 1,
    }  # fmt: skip
    job = start_run("digits", str(tmp_path / "run"), overrides=overrides)
    job.all()
    assert TokenDataset(tmp_path / "run" / "codes").spec.class_names[0] == "airplane"


def test_every_built_in_recipe_is_valid() -> None:
    assert "digits" in built_in_recipes()
    for name in built_in_recipes():
        recipe = load_recipe(name)
        assert recipe.name == name and recipe.description


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"digit(.|\n)*'digits'\?"):
        load_recipe("digit")
