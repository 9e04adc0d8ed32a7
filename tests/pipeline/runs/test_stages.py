"""A whole run, tiny, given again: what continues, what is refused, and what a crash leaves."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image
from support.tiny_run import TINY

from foundation.codes.dataset import TokenDataset
from foundation.config_fields import replaced
from foundation.errors import CheckpointError, ConfigError, ContractError, DataError, TrainingError
from foundation.storage.durable import file_sha256
from foundation.training.log import read_metrics
from pipeline import ImageGenerator
from pipeline.commands.start import start_run
from pipeline.runs.recipe import load_recipe
from pipeline.runs.recipe_files import built_in_recipes
from stage2_prior.prior import PriorModel


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


def test_the_resolved_recipe_reproduces_itself(finished_run: Path) -> None:
    text = yaml.safe_load((finished_run / "recipe.yaml").read_text())
    assert text["versions"]["torch"]
    stages = ("tokenizer.training", "tokenizer.training.perceptual", "prior.training")
    precisions = {f"{stage}.precision": "float32" for stage in stages}
    assert load_recipe(str(finished_run / "recipe.yaml")) == replaced(load_recipe("digits", TINY), precisions)


def test_a_run_with_every_option_of_its_trainings_ends_with_a_plain_prior(finished_run: Path, tmp_path: Path) -> None:
    optim = {"matrices": "muon", "matrix_learning_rate": 3e-3}
    prior = {"optim": optim, "residual_init": "zero", "label_smoothing": 0.1, "regularizer": {"noise": 0.5}}
    changes = {f"prior.training.{name}": value for name, value in prior.items()}
    again(tmp_path / "run", **{"tokenizer.training.optim": optim, **changes})
    assert (tmp_path / "run" / "samples" / "grid.png").is_file()
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl", "prior", "train")
    assert {"alignment_current", "alignment_target", "context_noise"} <= rows[-1].keys()
    shapes = [
        {name: tensor.shape for name, tensor in PriorModel.load(folder / "prior").state_dict().items()}
        for folder in (finished_run, tmp_path / "run")
    ]
    assert shapes[0] == shapes[1]


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
        ["samples"],
        ["model_index.json", "samples"],
        ["prior", "model_index.json", "samples"],
        ["codes/manifest.json"],
        ["codes/README.md", "prior", "samples"],
        ["codes/data/validation"],
        ["codes"],
        ["tokenizer", "codes"],
        ["checkpoints"],
        ["checkpoints", "prior"],
        ["report.html"],
    ],
)
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
    for fragment in ("prior.training.label_dropout", "0.1", "0.3", "seed", "--out"):
        assert fragment in str(caught.value)


def test_orders_that_the_prior_cannot_learn_are_refused_before_the_tokenizer_trains(tmp_path: Path) -> None:
    prior = {"model.order": "any", "training.random_order": {"until_step": 1, "zero_step": 2}}
    with pytest.raises(ConfigError, match=r"null where prior\.model\.order is any"):
        start_run("cifar10", str(tmp_path / "run"), {f"prior.{name}": value for name, value in prior.items()})
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
    from foundation.codes.shards import read_shard, shard_path, write_shard

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
    with pytest.raises(DataError, match=r"too many images cannot be used(.|\n)*rgb-\d\d.png: has another size"):
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
    right = start_run("digits", str(tmp_path), overrides=TINY)
    right.train_tokenizer()
    right.run.release()


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
    with pytest.raises(TrainingError, match="no checkpoint is sound") as caught:
        job.all()
    assert not (tmp_path / "tokenizer").exists()
    before = sorted(tmp_path.rglob("*"))
    advice = re.search(r"tessera run (\S+) -o (\S+) --(\S+) (\S+)$", str(caught.value))
    assert advice is not None and advice[1] == str(tmp_path), "the advice is a command"
    start_run(advice[1], advice[2], overrides={advice[3]: float(advice[4])}).train_tokenizer()
    assert Path(advice[2], "tokenizer").is_dir() and sorted(tmp_path.rglob("*")) == before


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
    line = [*launch, "run", "digits", "--out", str(tmp_path), "--machine.device", "cpu", *overrides]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(line, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("done in") == 1
    alone = read_metrics(finished_run / "metrics.jsonl", "tokenizer", "train")
    together = read_metrics(tmp_path / "metrics.jsonl", "tokenizer", "train")
    for one, two in zip(alone, together, strict=True):
        assert two["step"] == one["step"] and two["loss"] == pytest.approx(one["loss"], rel=1e-4)
    ImageGenerator.from_pretrained(tmp_path)(3, seed=0)


def test_every_built_in_recipe_is_valid() -> None:
    assert "digits" in built_in_recipes()
    for name in built_in_recipes():
        recipe = load_recipe(name)
        assert recipe.name == name and recipe.description


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"digit(.|\n)*'digits'\?"):
        load_recipe("digit")


def test_each_evaluation_of_a_run_has_a_picture(finished_run: Path) -> None:
    for stage, size in (("tokenizer", (8, 2)), ("prior", (8, 1))):
        steps = [row["step"] for row in read_metrics(finished_run / "metrics.jsonl", stage, "held_out")]
        found = sorted((finished_run / "previews" / stage).iterdir())
        assert [each.name for each in found] == [f"step-{step:08d}.png" for step in steps]
        columns, rows = size
        picture = Image.open(found[-1])
        assert picture.width / columns == pytest.approx(picture.height / rows, rel=0.1), "pictures of equal sides"
        assert len(set(picture.tobytes())) > 2
