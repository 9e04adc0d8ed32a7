"""Time and memory from the command to the first training step, for folders of many images.

    python scripts/bench_listing.py [--files 20000 200000] [--processes 1 4] [--folder DIR] [--quick] [--json FILE]

Makes a folder of hard links to a few hundred pictures in class subfolders, trains a small tokenizer on it for a few
steps as a command of its own, and looks at the run folder until the first line of training metrics is there. Then it
kills the run after a checkpoint and starts it again. The time of more images is extended in proportion to the slope
between the smallest and the largest folder. The reference is decoding every image once with all cores, which the first
step waited for in earlier versions.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from foundation.images.preprocess import decode_image
from foundation.training.log import read_metrics

ROOT = Path(__file__).parents[1]
_PICTURES, _CLASSES = 400, 100
_LARGER = (1_280_000, 100_000_000)
_FIELDS = {
    "data.source.type": "folder",
    "data.preprocess.mode": "RGB",
    "data.preprocess.height": 32,
    "data.preprocess.width": 32,
    "data.cache_mib": 0,
    "tokenizer.model.networks": "{type: vqgan, base_width: 8, norm_groups: 4, width_multipliers: [1, 1]}",
    "tokenizer.model.quantizer": "{type: fsq, levels: [8, 5, 5]}",
    "tokenizer.training.perceptual.weight": 0,
    "tokenizer.training.adversarial.weight": 0,
    "tokenizer.training.fit.batch_size": 32,
    "tokenizer.training.fit.log_every": 1,
    "tokenizer.training.fit.evaluate_images": 64,
    "tokenizer.training.fit.evaluate_every": 100_000,
    "tokenizer.training.fit.checkpoint_every": 4,
    "tokenizer.training.fit.steps": 100_000,
}


def make_folder(folder: Path, n_files: int) -> None:
    """``n_files`` hard links to 400 different JPEG pictures of 500 x 375, in 100 class folders."""
    (folder / "originals").mkdir(parents=True)
    random = np.random.default_rng(0)
    for i in range(_PICTURES):
        coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), np.uint8))
        coarse.resize((500, 375), Image.Resampling.BICUBIC).save(folder / "originals" / f"{i}.jpg", quality=90)
    for name in range(_CLASSES):
        (folder / "images" / f"class{name:03d}").mkdir(parents=True)
    for i in range(n_files):
        place = folder / "images" / f"class{i % _CLASSES:03d}" / f"{i:09d}.jpg"
        os.link(folder / "originals" / f"{i % _PICTURES}.jpg", place)


def decoding_seconds(folder: Path, n_files: int) -> float:
    """Seconds to decode ``n_files`` of the folder's pictures with a thread for each core, from a sample."""
    files = [path.read_bytes() for path in sorted((folder / "originals").glob("*.jpg"))]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        began = time.perf_counter()
        list(pool.map(decode_image, files))
        return (time.perf_counter() - began) * n_files / len(files)


def first_step(folder: Path, run: Path, n_processes: int) -> dict[str, float]:
    """Start or continue a training, stop it after a checkpoint; seconds to its first step, and MiB of one process."""
    fields = [text for name, value in _FIELDS.items() for text in (f"--{name}", str(value))]
    command = ["-m", "pipeline.cli", "train-tokenizer", "digits", "-o", str(run)]
    launch = (
        ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", str(n_processes)] if n_processes > 1 else []
    )
    line = [sys.executable, *launch, *command, *fields, "--data.source.path", str(folder / "images")]
    steps_before = len(read_metrics(run / "metrics.jsonl", "tokenizer", "train"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    began, peak = time.perf_counter(), 0
    with open(run.with_suffix(".log"), "ab") as log:
        process = subprocess.Popen(line, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        while len(read_metrics(run / "metrics.jsonl", "tokenizer", "train")) <= steps_before:
            peak = max(peak, *_resident(process.pid))
            if process.poll() is not None:
                raise SystemExit(f"the run ended:\n{run.with_suffix('.log').read_text(encoding='utf-8')[-2000:]}")
            time.sleep(0.05)
        seconds = time.perf_counter() - began
        n_checkpoints = len(list(run.glob("checkpoints/tokenizer/step-*")))
        while len(list(run.glob("checkpoints/tokenizer/step-*"))) <= n_checkpoints and process.poll() is None:
            peak = max(peak, *_resident(process.pid))
            time.sleep(0.05)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return {"seconds": seconds, "mib": peak / 2**20}


def _resident(pid: int) -> Iterator[int]:
    """Bytes of memory of a process and each of its children."""
    yield 0
    try:
        parent = psutil.Process(pid)
        for each in [parent, *parent.children(recursive=True)]:
            yield each.memory_info().rss
    except psutil.Error:  # it ended in the meantime
        return


def rows(sizes: list[int], processes: list[int], home: Path) -> list[dict[str, Any]]:
    """A row for each folder, number of processes, and start or resume."""
    found = []
    for n_files in sizes:
        folder = home / str(n_files)
        if not folder.exists():
            make_folder(folder, n_files)
        reference = decoding_seconds(folder, n_files)
        for n_processes in processes:
            run = home / f"run-{n_files}-{n_processes}"
            for what in ("start", "resume"):
                taken = first_step(folder, run, n_processes)
                found.append(
                    {
                        "workload": f"{n_files:,} files, {n_processes} processes, {what}",
                        "unit": "s",
                        "ours": taken["seconds"],
                        "reference": reference,
                        "reference_name": "decoding every image once",
                        "ratio": reference / taken["seconds"],
                        "floor": None,
                        "config": {"files": n_files, "processes": n_processes, "what": what, "mib": taken["mib"]},
                    }
                )
                print(f"{found[-1]['workload']:40} {taken['seconds']:8.1f} s  {taken['mib']:8.0f} MiB a process")
    return found


def extended(found: list[dict[str, Any]]) -> list[str]:
    """Seconds and memory of more images, by the slope between the smallest and the largest folder."""
    lines = []
    for n_processes, what in sorted({(row["config"]["processes"], row["config"]["what"]) for row in found}):
        some = [r for r in found if (r["config"]["processes"], r["config"]["what"]) == (n_processes, what)]
        least, most = some[0], some[-1]
        more = most["config"]["files"] - least["config"]["files"]
        if not more:
            continue
        for n in _LARGER:
            seconds = most["ours"] + (most["ours"] - least["ours"]) / more * (n - most["config"]["files"])
            per_image = (most["config"]["mib"] - least["config"]["mib"]) / more
            mib = most["config"]["mib"] + per_image * (n - most["config"]["files"])
            lines.append(f"{n:,} files, {n_processes} processes, {what}: {seconds:,.0f} s, {mib:,.0f} MiB (extended)")
    return lines


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, nargs="+", default=[20_000, 200_000])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--folder", type=Path, help="where the pictures are made; they stay there")
    parser.add_argument("--quick", action="store_true", help="few files")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    sizes, processes = ([200, 400], [1]) if given.quick else (given.files, given.processes)
    with tempfile.TemporaryDirectory() as temporary:
        found = rows(sizes, processes, given.folder or Path(temporary))
    for line in extended(found):
        print(line)
    if given.json:
        given.json.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
