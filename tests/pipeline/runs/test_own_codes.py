"""Priors on codes of one's own: filtered, joined, of another tokenizer; sampled, and decoded where a tokenizer is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, concatenate_datasets, load_dataset
from support.parity_fixtures import Tessera
from support.tiny_run import TINY

from foundation.codes.dataset import TokenDataset
from foundation.errors import ConfigError, ContractError
from foundation.training.log import read_metrics
from pipeline import ImageGenerator
from pipeline.cli import main
from pipeline.commands.start import start_run
from pipeline.planning import fits
from pipeline.runs.folder import RunFolder

Load = Callable[[str], Dataset]
SMALL = {name: value for name, value in TINY.items() if not name.startswith("tokenizer")}
OPTIONS = ["--samples.images-per-class", "2", "--samples.unconditional-images", "4"]
for section in ("prior.model", "prior.training.fit"):
    OPTIONS += [each for k, v in TINY[section].items() for each in (f"--{section}.{k.replace('_', '-')}", str(v))]


@pytest.fixture
def tessera(capsys: pytest.CaptureFixture[str]) -> Tessera:
    """Run the command line: its exit status, and what it printed."""

    def run(*arguments: object) -> tuple[int, str]:
        capsys.readouterr()
        status = main([str(each) for each in arguments])
        said = capsys.readouterr()
        return status, said.out + said.err

    return run


@pytest.fixture
def load(finished_run: Path, tmp_path: Path) -> Load:
    """Open a split of the finished run's codes as anyone would."""
    return lambda split: load_dataset(str(finished_run / "codes"), split=split, cache_dir=str(tmp_path / "cache"))


def train(tessera: Tessera, *arguments: object) -> str:
    status, said = tessera("train-prior", "digits", *arguments, *OPTIONS)
    assert status == 0, said
    return said


def test_a_prior_on_filtered_codes_draws_pictures_of_the_classes_that_are_left(
    load: Load, finished_run: Path, tmp_path: Path, tessera: Tessera
) -> None:
    load("train").filter(lambda row: row["label"] in (3, 7)).shuffle(seed=1).save_to_disk(tmp_path / "two")
    run, images = tmp_path / "run", tmp_path / "images"
    said = train(tessera, "--codes", tmp_path / "two", "--tokenizer", finished_run, "-o", run)
    assert "8 of 10 classes have no training rows" in said
    whole, parts = (
        TokenDataset(finished_run / "codes"),
        [TokenDataset(run / "codes", each) for each in ("train", "validation")],
    )
    of_image = dict(zip(whole.image_ids, whole.codes_NT.tolist(), strict=True))
    ids = [set(each.image_ids) for each in parts]
    assert not ids[0] & ids[1] and len(ids[0] | ids[1]) == np.isin(whole.labels_N, (3, 7)).sum()
    for part in parts:
        assert all(of_image[name] == codes for name, codes in zip(part.image_ids, part.codes_NT.tolist(), strict=True))
        assert part.spec.class_names == ("3", "7") and part.spec.fingerprint == whole.spec.fingerprint
    generator = ImageGenerator.from_pretrained(run)
    assert generator("7", seed=0).images[0].size == (8, 8)
    assert (run / "samples" / "grid.png").is_file() and "Reconstructions" in (run / "report.html").read_text()
    assert tessera("sample", run, "--class-labels", "7", "-o", images)[0] == 0 and len(list(images.glob("*.png"))) == 2
    status, said = tessera("decode", run, "-o", tmp_path / "decoded", "--split", "validation")
    assert status == 0 and f"{len(parts[1]):,} of {len(parts[1]):,} images" in said


def test_a_prior_on_an_array_of_another_tokenizer_draws_codes(tmp_path: Path, tessera: Tessera) -> None:
    codes = np.random.default_rng(0).integers(0, 30, (60, 4, 6))
    np.save(tmp_path / "theirs.npy", np.asfortranarray(codes.astype(">u2")))
    run, out = tmp_path / "run", tmp_path / "out"
    said = train(tessera, "--codes", tmp_path / "theirs.npy", "-o", run)
    assert "30 codes, the largest code plus one" in said and "no tokenizer is known" in said
    rows = np.concatenate([TokenDataset(run / "codes", each).grids for each in ("train", "validation")])
    assert sorted(rows.tolist()) == sorted(codes.tolist())
    status, said = tessera("sample", run, "-o", out)
    assert status != 0 and "without their tokenizer" in said and "--output-type latent" in said
    assert tessera("sample", run, "--output-type", "latent", "--num-images-per-label", 5, "-o", out)[0] == 0
    drawn = np.load(out / "codes.npz")["codes"]
    assert drawn.shape == (5, 4, 6) and drawn.min() >= 0 and drawn.max() < 30
    status, said = tessera("sample", run, "--output-type", "latent", "--count", 5, "-o", out)
    assert status != 0 and "--output-type: cannot be used with --count" in said
    generator = ImageGenerator.from_pretrained(run)
    generator.save_pretrained(tmp_path / "copy")
    copy = ImageGenerator.from_pretrained(tmp_path / "copy")
    assert copy(seed=1, output_type="latent").codes.equal(generator(seed=1, output_type="latent").codes)
    status, said = tessera("evaluate", run)
    assert status == 0 and "bits per code" in said and "per pixel" not in said.split("Notes")[0]
    report = (run / "report.html").read_text()
    assert "their tokenizer is not known" in report and "Reconstructions" not in report and "theirs.npy" in report
    status, said = tessera("decode", run, "-o", tmp_path / "decoded")
    assert status != 0 and "--tokenizer" in said
    for command in (["edit", "vary", run, out / "x.png"], ["score", run, out]):
        assert tessera(*command)[0] != 0


def test_codes_without_their_tokenizer_take_noise_and_refuse_an_alignment_by_name(
    tmp_path: Path, tessera: Tessera
) -> None:
    np.save(tmp_path / "theirs.npy", np.random.default_rng(0).integers(0, 30, (60, 4, 6)))
    run = tmp_path / "run"
    arguments = ["--codes", tmp_path / "theirs.npy", "-o", run, "--prior.training.regularizer.noise", 0.5, *OPTIONS]
    status, said = tessera("train-prior", "digits", *arguments)
    assert status != 0 and "prior.training.regularizer.current_weight" in said and "--tokenizer" in said
    shutil.rmtree(run)
    off = [f"--prior.training.regularizer.{name}-weight=0" for name in ("current", "target")]
    status, said = tessera("train-prior", "digits", *arguments, *off)
    assert status == 0, said
    assert read_metrics(run / "metrics.jsonl", "prior", "train")[-1]["context_noise"] >= 0


def test_a_prior_on_joined_codes_keeps_every_row_and_a_row_in_both_on_one_side(
    load: Load, finished_run: Path, tmp_path: Path, tessera: Tessera
) -> None:
    joined = concatenate_datasets([load("train").select(range(200)), load("validation").select(range(50))])
    joined = concatenate_datasets([joined, joined.select(range(20))])
    joined.to_parquet(tmp_path / "joined" / "all.parquet")
    shutil.copytree(finished_run / "codes" / "tokenizer", tmp_path / "joined" / "tokenizer")
    run = tmp_path / "run"
    train(tessera, "--codes", tmp_path / "joined", "-o", run)
    parts = [TokenDataset(run / "codes", each) for each in ("train", "validation")]
    assert sum(map(len, parts)) == 270 and not set(parts[0].image_ids) & set(parts[1].image_ids)
    assert ImageGenerator.from_pretrained(run)("3", seed=0).images[0].size == (8, 8)


def test_codes_of_a_run_alone_give_the_splits_and_the_prior_of_the_run(finished_run: Path, tmp_path: Path) -> None:
    codes = Path(shutil.copytree(finished_run / "codes", tmp_path / "alone"))
    run = tmp_path / "run"
    start_run("digits", str(run), {**SMALL, "codes.source": str(codes)}).train_prior()
    for split in ("train", "validation"):
        ours, theirs = TokenDataset(run / "codes", split), TokenDataset(codes, split)
        assert np.array_equal(ours.codes_NT, theirs.codes_NT) and list(ours.image_ids) == list(theirs.image_ids)
    name = "model.safetensors"
    assert (run / "prior" / name).read_bytes() == (finished_run / "prior" / name).read_bytes()
    shutil.rmtree(codes)  # the run has its copy
    start_run(str(run)).all()
    assert (run / "report.html").is_file()


def test_a_source_that_changed_is_compared_row_by_row(tmp_path: Path, tessera: Tessera) -> None:
    codes = np.random.default_rng(0).integers(0, 9, (40, 9))
    ids, labels = np.array([f"{i}.png" for i in range(40)]), np.arange(40) % 2
    file, run = tmp_path / "codes.npz", tmp_path / "run"

    def save(codes: np.ndarray, labels: np.ndarray, n: int = 40) -> None:
        np.savez(file, codes=codes[:n], labels=labels[:n], image_ids=ids[:n])

    save(codes, labels)
    given: dict[str, Any] = {**SMALL, "codes.source": str(file), "codes.codebook_size": 9}
    first = start_run("digits", str(run), given)
    first.train_prior()
    first.run.release()
    save(codes, labels)  # other times, equal rows
    start_run("digits", str(run), given).run.release()
    moved = file.rename(tmp_path / "moved.npz")
    start_run("digits", str(run), {**given, "codes.source": str(moved)}).run.release()
    own = RunFolder(run).load_recipe().codes
    assert own is not None and own.source == str(file)
    changed = codes.copy()
    changed[3] = (changed[3] + 1) % 9
    save(changed, np.where(np.arange(40) == 5, 1 - labels, labels), 38)
    with pytest.raises(
        ContractError, match="rows gone: 2, rows with other codes: 1, rows of another class: 1"
    ) as error:
        start_run("digits", str(run), given)
    assert "--codes" in str(error.value)
    status, said = tessera("train-prior", run)
    assert status == 0 and "goes on with its own copy" in said and "rows gone: 2" in said
    assert len(read_metrics(run / "metrics.jsonl", "prior", "held_out")) == 3, "nothing was trained again"


def test_a_run_on_images_is_not_given_other_codes(run_copy: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "codes.npy", np.zeros((9, 4), int))
    with pytest.raises(ValueError, match=r"encoded from images(.|\n)*-o"):
        start_run("digits", str(run_copy), {**SMALL, "codes.source": str(tmp_path / "codes.npy")})


@pytest.mark.parametrize(
    ("option", "value"), [("data.preprocess.width", 16), ("tokenizer.training.fit.steps", 3), ("encode.flip", True)]
)
def test_fields_without_a_part_in_it_are_refused(option: str, value: object, tmp_path: Path) -> None:
    np.save(tmp_path / "codes.npy", np.zeros((9, 4), int))
    named = option.replace("_", "-")
    with pytest.raises(ConfigError, match=f"--{named}: has no effect: the codes are given"):
        start_run("digits", str(tmp_path / "run"), {"codes.source": str(tmp_path / "codes.npy"), option: value})


def test_options_without_codes_are_refused(tmp_path: Path, tessera: Tessera) -> None:
    for option, value in (("--tokenizer", "x"), ("--grid", "2x2"), ("--codebook-size", "9")):
        status, said = tessera("train-prior", "digits", option, value, "-o", tmp_path / "run")
        assert status != 0 and f"{option}: has no effect without --codes" in said


def test_its_own_folder_is_beside_that_of_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("codes.npy", np.arange(80).reshape(20, 4) % 5)
    job = start_run("digits", None, {**SMALL, "codes.source": "codes.npy"})
    job.run.encode()
    assert job.run.folder.root == Path("runs/digits-codes")
    about = json.loads(Path("runs/digits-codes/codes/source.json").read_text())
    assert about["source"] == "codes.npy" and len(about["sha256"]) == 64 and "grid of 2 x 2" in about["notes"][0]


def test_residual_codes_of_unequal_codebooks_train_and_draw(tmp_path: Path) -> None:
    quantizer = {"type": "residual", "depth": 2, "shared": False, "codebook": {"width": 4}, "codebook_size": [6, 9]}
    model = {**TINY["tokenizer.model"], "quantizer": quantizer}
    run = tmp_path / "images"
    job = start_run("digits", str(run), {**TINY, "tokenizer.model": model})
    job.train_tokenizer()
    job.encode()
    job.train_prior()
    assert [slot.codebook_size for slot in TokenDataset(run / "codes").spec.slots] == [6, 9]
    drawn = ImageGenerator.from_pretrained(run)("3", 6, seed=0).codes
    assert drawn.shape == (6, 4, 4, 2) and int(drawn[..., 0].max()) < 6 and int(drawn[..., 1].max()) < 9
    start_run("digits", str(tmp_path / "own"), {**SMALL, "codes.source": str(run)}).run.encode()
    assert TokenDataset(tmp_path / "own" / "codes").spec == TokenDataset(run / "codes").spec


def test_a_prior_that_exceeds_the_memory_is_refused_when_its_codes_are_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "codes.npy", np.random.default_rng(0).integers(0, 30, (60, 6, 6)))
    model = {"d_model": 64, "n_layers": 2, "n_heads": 4}
    large = {"codes.source": str(tmp_path / "codes.npy"), "prior.model": model, "prior.training.fit.batch_size": 512}
    job = start_run("digits", str(tmp_path / "run"), {**SMALL, **large})
    monkeypatch.setattr(fits, "device_memory", lambda device: 100 << 20)
    with pytest.raises(ConfigError, match=r"set prior.training.micro_batch_size to \d"):
        job.train_prior()
    job.run.release()


def test_a_prior_on_codes_takes_steps_not_a_budget(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {**SMALL, "codes.source": str(finished_run / "codes")}
    job = start_run("folder", str(tmp_path / "run"), given)
    assert job.fitted is None and job.run.recipe.budget is None
    job.run.release()
    line = ["train-prior", "digits", "--codes", str(finished_run / "codes"), "-o", str(tmp_path / "other")]
    assert main([*line, "--budget", "5m"]) == 2
    assert "--budget" in (said := capsys.readouterr().err) and "has no effect" in said
