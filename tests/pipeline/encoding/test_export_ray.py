"""The recipe of docs/RAY.md runs as it is written, on a Ray of a few lines where there is none."""

import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from foundation.codes.dataset import TokenDataset
from pipeline.encoding.export import is_encoded

RECIPE = Path(__file__).parents[3] / "docs" / "RAY.md"


class Rows:
    """Of ``ray.data.Dataset``, what the recipe uses: blocks of one row go to a pool of workers in turn."""

    def __init__(self, batches: list[dict[str, Any]]) -> None:
        self.batches = batches

    def map_batches(
        self, worker: type, *, fn_constructor_args: tuple, batch_size: int, concurrency: int, num_gpus: int
    ) -> "Rows":
        assert batch_size == 1 and num_gpus == 0
        workers = [worker(*fn_constructor_args) for _ in range(concurrency)]
        return Rows([workers[i % concurrency](batch) for i, batch in enumerate(self.batches)])

    def materialize(self) -> "Rows":
        return self


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    module: Any = ModuleType("ray")

    def numbers(n: int, *, override_num_blocks: int) -> Rows:
        assert override_num_blocks == n
        return Rows([{"id": np.array([i])} for i in reversed(range(n))])

    module.data = SimpleNamespace(range=numbers)
    monkeypatch.setitem(sys.modules, "ray", module)
    yield module


def test_the_recipe_makes_the_dataset_that_a_run_makes(run_copy: Path, tmp_path: Path, ray: ModuleType) -> None:
    first, second = re.findall(r"```python\n(.*?)```", RECIPE.read_text(), re.DOTALL)
    compile(second, "RAY.md", "exec")
    before = Path(shutil.copytree(run_copy / "codes", tmp_path / "before"))
    shutil.rmtree(run_copy / "codes")
    code = first.replace('"runs/imagenet", "cuda", 8', f'"{run_copy}", "cpu", 2')
    assert code != first
    found: dict[str, Any] = {}
    exec(code, found)
    assert found["finished"] and is_encoded(run_copy / "codes")
    assert [batch["file"] for batch in found["written"].batches] == [["validation-00000"], ["train-00000"]]
    for name in ("manifest.json", "data/train/part-00000.parquet", "README.md"):
        assert (run_copy / "codes" / name).read_bytes() == (before / name).read_bytes()
    assert len(TokenDataset(run_copy / "codes")) == sum(batch["images"][0] for batch in found["written"].batches[1:])
