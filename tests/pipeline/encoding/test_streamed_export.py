"""An export through an engine equals the local one, byte by byte."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.ray_nodes import ray_nodes
from support.tiny_export import content, make_inputs, open_tiny, tiny_export

from pipeline.encoding.streamed_export import encode_on
from pipeline.engines.stream import Engine, LocalEngine

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


@pytest.fixture(scope="module")
def local(inputs: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Hashes of the files of a local export."""
    codes = tmp_path_factory.mktemp("local") / "codes"
    assert tiny_export(*inputs, codes)
    return content(codes)


def export_on(engine: Engine, inputs: tuple[Path, Path], codes: Path) -> dict[str, str]:
    export = open_tiny(*inputs, codes)
    encode_on(engine, export, quiet=True)
    assert export.take_part(quiet=True)
    return content(codes)


def test_streamed_through_this_process_it_is_the_same(
    inputs: tuple[Path, Path], local: dict[str, str], tmp_path: Path
) -> None:
    assert export_on(LocalEngine(), inputs, tmp_path / "codes") == local


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow), 5])
def test_on_a_ray_cluster_it_is_the_same(
    nodes: Any, workers: int, inputs: tuple[Path, Path], local: dict[str, str], tmp_path: Path
) -> None:
    assert export_on(RayEngine(workers), inputs, tmp_path / "codes") == local
