"""What a Ray cluster of two nodes with a CPU each makes equals what this process makes, byte by byte."""

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.ray_nodes import NODE, ray_nodes
from support.tiny_export import content, make_inputs, open_tiny, tiny_export

from foundation.errors import StorageError
from foundation.images.sources import FolderSource
from foundation.storage import durable
from pipeline.encoding.decode import decode_to_folder
from pipeline.encoding.streamed_decode import decode_on
from pipeline.encoding.streamed_export import encode_on
from pipeline.evaluation.config import Judges, SampleOptions
from pipeline.evaluation.run import evaluate_run
from pipeline.generation.bulk import Batch, generate_to_folder
from pipeline.generation.likelihood import score_files
from pipeline.runs.models import open_generator

pytest.importorskip("ray", reason="needs ray")
from pipeline.engines.ray_data import RayEngine


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    with ray_nodes() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    images, tokenizer = make_inputs(tmp_path_factory.mktemp("inputs"))
    corrupt = images / "ant" / "003.png"
    corrupt.write_bytes(corrupt.read_bytes()[:60])
    return images, tokenizer


slow = pytest.mark.slow
WORKER = {key: value for key, value in NODE.items() if key != "include_dashboard"}


@pytest.mark.parametrize("workers", [pytest.param(1, marks=slow), pytest.param(2, marks=slow), 5])
def test_an_export_is_the_same_with_few_workers_and_with_more_than_cores(
    nodes: Any, workers: int, inputs: tuple[Path, Path], tmp_path: Path
) -> None:
    assert tiny_export(*inputs, tmp_path / "local")
    export = open_tiny(*inputs, tmp_path / "codes")
    encode_on(RayEngine(workers), export, quiet=True)
    assert export.finish()
    assert content(tmp_path / "codes") == content(tmp_path / "local")
    failed = [each for entry in _splits(tmp_path / "codes") for each in entry["failures"]]
    assert [each["image_id"] for each in failed] == ["ant/003.png"] * 2


@slow
def test_a_node_killed_and_one_added_in_an_export_change_nothing(nodes: Any, tmp_path: Path) -> None:
    inputs = make_inputs(tmp_path, n=120)
    assert tiny_export(*inputs, tmp_path / "local")
    third = nodes.add_node(**WORKER)

    class Disturbed(RayEngine):
        def results(self, stream: Any, batches: Any) -> Iterator[tuple[int, Any]]:
            for n, each in enumerate(super().results(stream, batches)):
                if n == 20:
                    nodes.remove_node(third, allow_graceful=False)
                if n == 60:
                    nodes.add_node(**WORKER)
                yield each

    export = open_tiny(*inputs, tmp_path / "codes")
    encode_on(Disturbed(3), export, quiet=True)
    assert export.finish()
    assert content(tmp_path / "codes") == content(tmp_path / "local")


@slow
def test_a_full_disk_ends_an_export_that_then_goes_on(
    nodes: Any, inputs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tiny_export(*inputs, tmp_path / "local")
    export = open_tiny(*inputs, tmp_path / "codes")
    real, written = durable._write, list[Path]()

    def write(path: Path, content: Any) -> None:
        if "data" in path.parts:
            written.append(path)
        if len(written) == 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(durable, "_write", write)
        with pytest.raises(StorageError, match="the disk is full"):
            encode_on(RayEngine(2), export, quiet=True)
    assert len(list((tmp_path / "codes").rglob("part-*.parquet"))) == 3
    encode_on(RayEngine(2), export, quiet=True)
    assert export.finish()
    assert content(tmp_path / "codes") == content(tmp_path / "local")


def _splits(codes: Path) -> list[Any]:
    return list(json.loads((codes / "manifest.json").read_text(encoding="utf-8"))["splits"].values())


@slow
@pytest.mark.parametrize("workers", [1, 2, 5])
def test_decoded_images_are_the_same(nodes: Any, workers: int, finished_run: Path, tmp_path: Path) -> None:
    decode_to_folder(str(finished_run), str(tmp_path / "local"), split="validation")
    how: dict[str, Any] = {"before": lambda decoding: decode_on(RayEngine(workers), decoding)}
    decode_to_folder(str(finished_run), str(tmp_path / "ray"), split="validation", **how)
    assert content(tmp_path / "ray") == content(tmp_path / "local")


@pytest.mark.parametrize(
    ("count", "form", "workers"),
    [(150, "png", 2), pytest.param(2000, "png", 1, marks=slow), pytest.param(2000, "parquet", 5, marks=slow)],
)
def test_samples_are_the_same(
    nodes: Any, count: int, form: Any, workers: int, finished_run: Path, tmp_path: Path
) -> None:
    generator = open_generator(str(finished_run), "cpu")
    batch = Batch(count=count, labels=tuple(range(10)), format=form, batch_size=32, images_per_file=64)
    generate_to_folder(generator, tmp_path / "local", batch)
    done = generate_to_folder(generator, tmp_path / "ray", batch, engine=RayEngine(workers))
    assert (done.n_new, done.n_missing) == (count, 0)
    assert content(tmp_path / "ray") == content(tmp_path / "local")


@slow
def test_figures_of_an_evaluation_are_equal(nodes: Any, run_copy: Path, tmp_path: Path) -> None:
    how: dict[str, Any] = {"part": "all", "judges": Judges(), "split": "validation", "device": "cpu"}
    how["samples"] = SampleOptions(samples=150)
    here = evaluate_run(str(run_copy), **how)
    assert evaluate_run(str(run_copy), engine=RayEngine(2), **how) == here


@slow
def test_bits_of_image_files_are_equal(nodes: Any, finished_run: Path, inputs: tuple[Path, Path]) -> None:
    generator = open_generator(str(finished_run), "cpu")
    paths = [inputs[0] / name for name in FolderSource(str(inputs[0])).ids]
    here = score_files(generator, paths, None, batch_size=4)
    assert score_files(generator, paths, None, batch_size=4, engine=RayEngine(2)) == here
    assert len(here[0]) == len(paths) - 1 and "003.png" in here[1][0]
