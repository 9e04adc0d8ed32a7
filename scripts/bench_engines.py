"""The engines of ``tessera encode`` side by side: this process alone, and a Ray cluster of this machine.

    python scripts/bench_engines.py [--images 20000] [--side 32] [--workers N] [--quick] [--json FILE]

Makes small JPEG pictures, hard links to a few hundred different ones, and a small frozen tokenizer. Each engine encodes
them in a process of its own, with loading and verifying; peaks of resident memory are taken every 0.1 s, by kind of
process: the command, Ray's read and network actors, its raylet, and the rest of Ray. Then it counts what grows with the
number of images: the plan, the listing and the manifest, at two sizes, extended in proportion to 10 and 100 million.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from foundation.codes.manifest import MANIFEST
from foundation.images.config import Preprocess
from foundation.images.listing import ListedImages, Listing
from pipeline.encoding.plan import EncodeConfig, make_plan
from stage1_tokenizer.canary import save_canary
from stage1_tokenizer.config import TokenizerConfig
from stage1_tokenizer.networks.config import VQGANNetworks
from stage1_tokenizer.quantizers.config import FSQConfig
from stage1_tokenizer.tokenizer import TokenizerModel

ROOT = Path(__file__).parents[1]
_PICTURES, _BATCH, _SHARD = 300, 64, 2048
_LARGER = (10_000_000, 100_000_000)
_KINDS = {"ReadActor": "read actor", "ComputeActor": "network actor", "raylet/raylet": "raylet", "ray": "rest of Ray"}
_EXPORT = """
import sys, torch
from pathlib import Path
from foundation.images.sources import FolderSource
from foundation.threads import prepare_openmp
from pipeline.encoding.export import Export
from pipeline.encoding.plan import EncodeConfig
from pipeline.encoding.streamed_export import encode_on
from pipeline.engines.config import EngineConfig
from pipeline.engines.open import open_engine
home, engine, workers, batch, shard = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), *map(int, sys.argv[4:])
config = EncodeConfig(batch_size=batch, images_per_shard=shard)
source = {"train": FolderSource(str(home / "images"))}
export = Export(home / "tokenizer", source, home / engine, config, torch.device("cpu"))
chosen = EngineConfig(engine=engine, workers=workers or None) if engine == "ray" else EngineConfig()
with open_engine(chosen) as found:
    if found is not None:
        encode_on(found, export, quiet=True)
    assert export.take_part(quiet=True)
"""


def make_images(folder: Path, n_images: int, side: int) -> None:
    """``n_images`` hard links to a few hundred different JPEG pictures of ``side`` pixels, in ten class folders."""
    originals, random = folder.with_name("originals"), np.random.default_rng(0)
    originals.mkdir()
    for i in range(_PICTURES):
        coarse = Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8))
        coarse.resize((side, side), Image.Resampling.BICUBIC).save(originals / f"{i}.jpg", quality=90)
    for name in range(10):
        (folder / f"class{name}").mkdir(parents=True)
    for i in range(n_images):
        os.link(originals / f"{i % _PICTURES}.jpg", folder / f"class{i % 10}" / f"{i:09d}.jpg")


def make_tokenizer(folder: Path, side: int) -> TokenizerModel:
    """A small frozen tokenizer, four pixels to a code."""
    torch.manual_seed(0)
    networks = VQGANNetworks(base_width=16, width_multipliers=(1, 1, 2), n_res_blocks=1, norm_groups=4)
    config = TokenizerConfig(networks=networks, latent_channels=8, quantizer=FSQConfig(levels=(8, 5, 5)))
    model = TokenizerModel(config, Preprocess(height=side, width=side)).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (8, side, side, 3), np.uint8)
    model.initialize(torch.from_numpy(pixels.transpose(0, 3, 1, 2) / 127.5 - 1).float(), torch.Generator())
    folder.mkdir()
    model.save(folder)
    save_canary(model, pixels, folder)
    return model


def kind_of(process: psutil.Process, command: int) -> str:
    """Which kind of process it is."""
    line = " ".join(process.cmdline())
    if process.pid == command:
        return "command"
    return next((kind for part, kind in _KINDS.items() if part in line), "other")


def export_seconds(home: Path, engine: str, workers: int) -> tuple[float, dict[str, float]]:
    """Seconds of one export, and the largest MiB of each kind of process."""
    numbers = [str(each) for each in (workers, _BATCH, _SHARD)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    peaks: dict[str, float] = defaultdict(float)
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", _EXPORT, str(home), engine, *numbers], env=environment)
    while process.poll() is None:
        try:
            own = psutil.Process(process.pid)
            for each in [own, *own.children(recursive=True)]:
                kind = kind_of(each, process.pid)
                peaks[kind] = max(peaks[kind], each.memory_info().rss / 2**20)
        except psutil.Error:  # it ended in the meantime
            continue
        time.sleep(0.1)
    seconds = time.perf_counter() - began
    if process.returncode:
        raise SystemExit(f"the {engine} engine ended with {process.returncode}")
    return seconds, dict(peaks)


class _Named:
    """Images that only have names and classes."""

    class_names = tuple(f"class{i}" for i in range(10))

    def __init__(self, n: int) -> None:
        self.ids = [f"class{i % 10}/{i:09d}.jpg" for i in range(n)]
        self.labels = np.arange(n) % 10


def growth(model: TokenizerModel, codes: Path, sizes: tuple[int, int], home: Path) -> dict[str, list[float]]:
    """Bytes of files and of memory at two sizes: of the plan and the listing, and of the manifest's lines."""
    found: dict[str, list[float]] = defaultdict(list)
    shard = EncodeConfig.images_per_shard
    entries = json.loads((codes / MANIFEST).read_text(encoding="utf-8"))["splits"]["train"]["files"]
    for n in sizes:
        source: Any = _Named(n)
        before = pa.total_allocated_bytes()
        plan = make_plan(
            model.spec.with_classes(source.class_names), {"train": source}, EncodeConfig(), batch_size=64, device="cpu"
        )
        found["memory of the plan"].append(pa.total_allocated_bytes() - before)
        folder = home / f"plan-{n}"
        folder.mkdir()
        plan.save_images(folder)
        found["file of the plan"].append(sum(path.stat().st_size for path in folder.iterdir()))
        listed = ListedImages.of(source)
        Listing({"train": listed, "validation": listed.some(np.arange(n) < 1)}, source.class_names).save(
            folder / "images.parquet"
        )
        found["file of the listing"].append((folder / "images.parquet").stat().st_size)
        found["manifest"].append(-(-n // shard) * len(json.dumps(entries[0], indent=1)))
    return found


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--workers", type=int, default=0, help="of Ray; 0 lets it decide")
    parser.add_argument("--quick", action="store_true", help="few images")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    n_images, sizes = (600, (20_000, 100_000)) if given.quick else (given.images, (200_000, 1_000_000))
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary)
        make_images(home / "images", n_images, given.side)
        model = make_tokenizer(home / "tokenizer", given.side)
        taken = {engine: export_seconds(home, engine, given.workers) for engine in ("local", "ray")}
        for engine, (seconds, peaks) in taken.items():
            memory = ", ".join(f"{kind} {mib:,.0f}" for kind, mib in sorted(peaks.items()))
            print(f"{engine:6} {seconds:8.1f} s {n_images / seconds:8.1f} img/s   peak MiB: {memory}")
        same = all(
            path.read_bytes() == (home / "ray" / path.relative_to(home / "local")).read_bytes()
            for path in (home / "local" / "data").rglob("*.parquet")
        )
        print(f"ray takes {taken['ray'][0] / taken['local'][0]:.2f} times as long; equal to the byte: {same}")
        counted = growth(model, home / "local", sizes, home)
    rows = [
        {
            "workload": f"encode {n_images:,} images of {given.side} pixels",
            "unit": "s",
            "ours": taken["ray"][0],
            "reference": taken["local"][0],
            "reference_name": "the local engine",
            "ratio": taken["local"][0] / taken["ray"][0],
            "floor": None,
            "config": {"workers": given.workers, "peak_mib": {name: each[1] for name, each in taken.items()}},
        }
    ]
    for name, (few, many) in counted.items():
        slope = (many - few) / (sizes[1] - sizes[0])
        larger = {n: many + slope * (n - sizes[1]) for n in _LARGER}
        shown = ", ".join(f"{n:,}: {n_bytes / 2**20:,.0f} MiB" for n, n_bytes in larger.items())
        print(f"{name:20} {slope:6.1f} bytes an image; extended: {shown}")
        rows.append({"workload": name, "unit": "bytes an image", "ours": slope, "config": {"extended": larger}})
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
