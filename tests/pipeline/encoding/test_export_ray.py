"""The recipe of docs/RAY.md runs as it is written, on Ray itself, with as many workers as there are cores."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.tiny_run import ROOT

from foundation.codes.dataset import TokenDataset
from pipeline.encoding.export import is_encoded

CODE = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "RAY.md").read_text(encoding="utf-8"), re.DOTALL)


def test_the_recipe_is_python() -> None:
    assert len(CODE) == 2
    for each in CODE:
        compile(each, "RAY.md", "exec")


@pytest.mark.slow
def test_the_recipe_makes_the_dataset_that_a_run_makes(run_copy: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="needs ray")
    before = Path(shutil.copytree(run_copy / "codes", tmp_path / "before"))
    shutil.rmtree(run_copy / "codes")
    first = CODE[0].replace('"runs/imagenet", "cuda", 8', f'"{run_copy}", "cpu", {os.cpu_count()}')
    assert first != CODE[0]
    script = tmp_path / "recipe.py"
    script.write_text(f"{first}\nprint('finished', finished)\n{CODE[1]}\nprint('rows', rows.count())\n", "utf-8")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "RAY_USAGE_STATS_ENABLED": "0"}
    line = [sys.executable, str(script)]
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=500, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "finished True" in done.stdout and f"rows {len(TokenDataset(tmp_path / 'before'))}" in done.stdout
    assert is_encoded(run_copy / "codes")
    for name in ("manifest.json", "data/train/part-00000.parquet", "README.md"):
        assert (run_copy / "codes" / name).read_bytes() == (before / name).read_bytes()
