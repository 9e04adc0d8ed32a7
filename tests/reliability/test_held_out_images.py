"""Whatever becomes of the image files between stages, nothing that is held out was ever trained on.

Random sequences of adding, copying, removing, renaming, replacing and encoding files again, with stages between. Each
picture has a number that stays with it; a picture that is saved again without loss keeps it.
"""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image
from support.image_sets import usable
from support.picture_runs import begin, picture

from foundation.codes.dataset import TokenDataset
from foundation.hardware import TokenAccess
from pipeline.commands.job import Job
from pipeline.runs.folder import RunFolder
from pipeline.runs.images import open_run_split

CLASSES = ("ant", "bee")


class Pictures:
    """A folder of pictures and the number of each, changed at random."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.random = folder, random.Random(seed)
        self.number: dict[str, int] = {}
        self.made = 0
        for _ in range(50):
            self.add()

    def step(self) -> None:
        """One random change."""
        change: Callable[[], None] = self.random.choice(
            [
                self.add,
                self.copy,
                self.remove,
                self.rename,
                self.swap,
                self.encode_again,
                self.replace,
                self.lose_quality,
            ]
        )
        change()

    def add(self) -> None:
        name = f"{self.random.choice(CLASSES)}/{self.random.randrange(10**6):06d}.png"
        self.write(name, self.made)
        self.made += 1

    def copy(self) -> None:
        name = self.any()
        self.write(f"{name.rpartition('/')[0]}/{self.random.randrange(10**6):06d}.bmp", self.number[name])

    def remove(self) -> None:
        if len(self.number) > 30:
            name = self.any()
            (self.folder / name).unlink()
            del self.number[name]

    def rename(self) -> None:
        name = self.any()
        suffix = Path(name).suffix
        new = f"{self.random.choice(CLASSES)}/{self.random.randrange(10**6):06d}{suffix}"
        (self.folder / name).rename(self.folder / new)
        self.number[new] = self.number.pop(name)

    def swap(self) -> None:
        """Two files change names."""
        one, other = self.any(), self.any()
        content = {name: (self.folder / name).read_bytes() for name in (one, other)}
        (self.folder / one).write_bytes(content[other])
        (self.folder / other).write_bytes(content[one])
        self.number[one], self.number[other] = self.number[other], self.number[one]

    def replace(self) -> None:
        """Another picture's content under this name."""
        self.write(self.any(), self.number[self.any()])

    def encode_again(self) -> None:
        name = self.any()
        image = Image.open(self.folder / name)
        image.load()
        image.save(self.folder / name, format="PNG", compress_level=self.random.randrange(10))

    def lose_quality(self) -> None:
        name = self.any()
        image = Image.open(self.folder / name)
        image.load()
        image.save(self.folder / name, format="JPEG", quality=40)

    def write(self, name: str, number: int) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(path)
        self.number[name] = number

    def any(self) -> str:
        return self.random.choice(sorted(self.number))


def in_turn(job: Job, *stages: Callable[[], object]) -> None:
    try:
        for each in stages:
            each()
    finally:
        job.run.release()


def require_same_rows(codes: Path, cache: Path) -> None:
    """Every reader gives the rows, labels and counts that are on disk."""
    import datasets

    manifest = json.loads((codes / "manifest.json").read_text())
    for split in ("train", "validation"):
        table = pq.read_table(codes / "data" / split)
        on_disk = {"codes": np.stack(table["codes"].to_numpy()), "label": table["label"].to_numpy()}
        ids = table["image_id"].to_pylist()
        entry = manifest["splits"][split]
        assert entry["rows"] == len(ids) and entry["labels"] == np.bincount(on_disk["label"], minlength=2).tolist()
        for form in ("memory", "packed", "streamed"):
            ours = TokenDataset(codes, split, TokenAccess(form=form))
            assert np.array_equal(ours.codes_NT[:], on_disk["codes"]) and list(ours.image_ids) == ids
            assert ours.labels_N is not None and np.array_equal(ours.labels_N[:], on_disk["label"])
        frame = pd.concat(pd.read_parquet(each) for each in sorted((codes / "data" / split).glob("*.parquet")))
        assert np.array_equal(np.stack(frame["codes"]), on_disk["codes"]) and frame["image_id"].tolist() == ids
        for streaming in (False, True):
            rows = datasets.load_dataset(str(codes), split=split, streaming=streaming, cache_dir=str(cache))
            found = list(rows)
            assert [each["image_id"] for each in found] == ids
            assert np.array_equal([each["codes"] for each in found], on_disk["codes"])
            assert [each["label"] for each in found] == on_disk["label"].tolist()


def play(home: Path, cache: Path, seed: int) -> None:
    """One sequence: a run whose stages lie between random changes, then a second run with its tokenizer."""
    pictures = Pictures(home / "images", seed)
    lenient = {"data.max_failed_share": 0.9, "seed": seed}
    job = begin(home / "run", pictures.folder, **lenient)
    in_turn(job, job.train_tokenizer)
    trained = {pictures.number[name] for name in job.run.images["train"].ids}
    folder = RunFolder(home / "run")
    evaluations = 0
    for stage in ("encode", "train_prior", "evaluate", "evaluate"):
        for _ in range(pictures.random.randrange(12)):
            pictures.step()
        if stage != "evaluate":
            job = begin(home / "run", pictures.folder, **lenient)
            in_turn(job, getattr(job, stage))
        images, _ = open_run_split(folder, folder.load_recipe(), "validation")
        held_out = {pictures.number[name] for name in usable(images)}
        assert held_out and not held_out & trained, f"after {stage}"
        evaluations += len(held_out)
    assert evaluations > 4
    require_same_rows(folder.codes, cache)
    second = begin(home / "second", pictures.folder, **lenient, **{"tokenizer.pretrained": str(home / "run")})
    in_turn(second, second.train_tokenizer, second.encode)
    images, _ = open_run_split(second.run.folder, second.run.recipe, "validation")
    pixels = {image.tobytes() for image in images.pixels(np.arange(len(images)))}
    assert pixels and not pixels & {np.asarray(picture(number)).tobytes() for number in trained}
    require_same_rows(second.run.folder.codes, cache)
    shutil.rmtree(home)


@pytest.mark.parametrize("seed", range(2))
def test_what_is_held_out_was_never_trained_on(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    play(tmp_path / "home", tmp_path_factory.getbasetemp() / "datasets", seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 140))
def test_forty_longer_sequences(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    play(tmp_path / "home", tmp_path_factory.getbasetemp() / "datasets", seed)
