"""Fixtures for all tests: seeds, a finished run, folders of images."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from support.live_parity import write_live_models
from support.parity_fixtures import PARITY
from support.photographs import write_photographs
from support.skips import WINDOWS, needs_unix, skips_by_reason
from support.tiny_run import TINY

if TYPE_CHECKING:
    from support.object_store import ObjectStore

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "TESSERA_CACHE" not in os.environ:
    os.environ["TESSERA_CACHE"] = tempfile.mkdtemp(prefix="tessera-cache-")
    atexit.register(shutil.rmtree, os.environ["TESSERA_CACHE"], ignore_errors=True)
os.environ.setdefault("TESSERA_PRECISION", "float32")  # no test depends on the processor


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """On Windows, skip the files whose tests need what it does not have."""
    if os.name == "nt":
        for item in items:
            if needs_unix(item.path.read_text(encoding="utf-8")):
                item.add_marker(pytest.mark.skip(reason=WINDOWS))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """End a run with its skips, counted by reason."""
    terminalreporter.section("skipped")
    for line in skips_by_reason(terminalreporter.stats.get("skipped", [])):
        terminalreporter.write_line(line)


@pytest.fixture(autouse=True, scope="session")
def _forkable() -> None:
    """A first backward pass before anything else.

    After torch.compile or torch.export, the first one starts threads that a forked process cannot use: tests with two
    processes would pass or fail by the order of files.
    """
    import torch

    torch.ones(1, requires_grad=True).sum().backward()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """The same random numbers whenever a test runs."""
    import torch

    torch.manual_seed(0)


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of parquet files with real colour images of two classes, in splits train and validation."""
    folder = tmp_path_factory.mktemp("photographs") / "crops"
    write_photographs(folder)
    return folder


@pytest.fixture(scope="session")
def live(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small models of published systems, computed by installed packages, in folders like the recorded fixtures."""
    root = tmp_path_factory.mktemp("live")
    write_live_models(root)
    return root


@pytest.fixture(scope="session")
def parity(request: pytest.FixtureRequest) -> Path:
    """The recorded fixtures beside the repository; where they are absent, live models."""
    return PARITY if PARITY.is_dir() else request.getfixturevalue("live")


@pytest.fixture(scope="session", params=[*(["recorded"] if PARITY.is_dir() else []), "live"])
def parities(request: pytest.FixtureRequest) -> Path:
    """Both in turn: what the systems' own code computed, and what installed packages compute."""
    return request.getfixturevalue("live") if request.param == "live" else PARITY


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the digits recipe, tiny; read only."""
    from pipeline.commands.start import start_run

    folder = tmp_path_factory.mktemp("finished") / "digits"
    job = start_run("digits", str(folder), overrides=TINY)
    job.all()
    return folder


@pytest.fixture
def run_copy(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished run that a test may damage."""
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


@pytest.fixture
def mixed_folder(tmp_path: Path) -> Path:
    """Images of every mode and size, rotated ones, a corrupt one and an empty one; no classes."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    rng = np.random.default_rng(0)

    def pixels(height: int, width: int, channels: int) -> np.ndarray:
        coarse = rng.integers(0, 256, (4, 4, channels), np.uint8)
        return coarse.repeat(-(-height // 4), 0).repeat(-(-width // 4), 1)[:height, :width]

    for i in range(24):
        Image.fromarray(pixels(40 + i, 52 - i, 3)).save(folder / f"rgb-{i:02d}.png")
    Image.fromarray(pixels(33, 47, 1)[..., 0]).save(folder / "grey.png")
    Image.fromarray(pixels(64, 31, 3)).convert("P").save(folder / "palette.gif")
    Image.fromarray(pixels(50, 50, 4)).save(folder / "alpha.png")
    Image.fromarray(pixels(50, 40, 4), "CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(rng.integers(0, 65536, (48, 48), np.uint16)).save(folder / "sixteen.png")
    rotated = Image.fromarray(pixels(30, 60, 3))
    exif = Image.Exif()
    exif[0x0112] = 6
    rotated.save(folder / "rotated.jpg", exif=exif)
    whole = (folder / "rgb-00.png").read_bytes()
    (folder / "corrupt.png").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "notes.txt").write_text("not an image")
    return folder


@pytest.fixture(scope="session")
def s3_server() -> Iterator[ObjectStore]:
    """An S3 server that runs here; tests take a bucket of it, ``object_store``."""
    from support.object_store import running_server

    with running_server() as store:
        yield store


@pytest.fixture
def object_store(s3_server: ObjectStore) -> Iterator[ObjectStore]:
    """A new bucket of an S3 server that fails as it is told to."""
    from support.object_store import bucket_of

    with bucket_of(s3_server) as store:
        yield store
