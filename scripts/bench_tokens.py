"""Reading a token dataset in random order, beside how the field stores tokens; and the memory that it takes.

python scripts/bench_tokens.py [--quick] [--folder FOLDER] [--json FILE]

Speed: batches of 256 rows in the order of a training, tokens and labels as int64 tensors, all files in the system's
cache, every form and reference in turn in one process. References: a ``.npy`` file of int64 codes and one of the label
for each image, and ``datasets`` on the same parquet files. The floor: a ``numpy`` map of the packed files, whose pages
are in memory, without label dropout. Memory: the peak resident set of a fresh process above that
before it opens the dataset, for the same number of batches from few and from many rows; the reference is the form in
memory. Order: the indices of batches of 256, beside ``numpy``'s permutation of the whole epoch.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from bench_report import Row, bench_parser, compare, in_fresh_process, peak_memory_mib, report, time_in_turn

from foundation.codes.dataset import TokenDataset
from foundation.codes.manifest import write_manifest
from foundation.codes.shards import Shard, shard_path, write_shard
from foundation.codes.spec import CodeLevel, CodeSpec
from foundation.hardware import TokenAccess
from foundation.images.config import Preprocess
from foundation.randomness import DataOrder
from stage2_prior.data import CodeExamples

BATCH = 256
NPY, DATASETS, HELD, FLOOR = "one .npy per image", "datasets, random access", "the form in memory", "map"


@dataclass(frozen=True)
class Sizes:
    """What is measured.

    Attributes:
        side: of the grid of codes.
        shards, rows: parquet files of the speed comparison, and rows in each.
        files: images that the reference stores one by one.
        few, many: parquet files of the memory comparison.
        small_rows: rows in each of those.
        batches: read in each timed run of a form in memory or packed; a slower one reads fewer.
        epoch: examples in the comparison of orders.
    """

    side: int = 16
    shards: int = 24
    rows: int = 8192
    files: int = 20_000
    few: int = 2
    many: int = 50
    small_rows: int = 100_000
    batches: int = 100
    epoch: int = 20_000_000


QUICK = Sizes(side=8, shards=3, rows=4096, files=2000, few=1, many=8, small_rows=20_000, batches=20, epoch=1_000_000)


def write_dataset(folder: Path, side: int, shards: int, rows: int, *, linked: bool = False) -> Path:
    """Random codes of 16,384; ``linked``: every shard is the first under another name."""
    spec = CodeSpec(
        levels=(CodeLevel(height=side, width=side, codebook_size=16_384),),
        stride=16,
        preprocess=Preprocess(height=16 * side, width=16 * side),
        fingerprint="bench",
        class_names=("a", "b"),
    )
    for index in range(shards):
        path = shard_path(folder, "train", index)
        if linked and index:
            os.link(shard_path(folder, "train", 0), path)
            continue
        rng = np.random.default_rng(index)
        codes, labels = rng.integers(0, 16_384, (rows, side * side)), rng.integers(0, 2, rows)
        ids = [f"n01440764/{index}-{i}.JPEG" for i in range(rows)]
        write_shard(path, Shard(codes, ids, np.zeros(rows, np.uint8), labels), spec)
    write_manifest(folder, spec)
    return folder


def form_reader(folder: Path, n_batches: int, access: TokenAccess) -> Callable[[], object]:
    """Batches of a training; each run continues where the last one stopped."""
    dataset = TokenDataset(folder, "train", access)
    examples = CodeExamples(dataset, 2)
    order, done = DataOrder(len(examples), seed=0), [0]

    def run() -> None:
        for _ in range(n_batches):
            examples.batch(*order.at(np.arange(done[0], done[0] + BATCH)))
            done[0] += BATCH

    return run


def npy_reader(folder: Path, dataset: Path, n_images: int) -> Callable[[], object]:
    """One file for the codes of each image and one for its label, as LlamaGen's export writes them."""
    import torch

    folder.mkdir()
    held = TokenDataset(dataset)
    for i in range(n_images):
        np.save(folder / f"{i}.npy", held.codes_NT[i : i + 1].astype(np.int64))
        np.save(folder / f"label-{i}.npy", np.asarray(held.labels_N)[i : i + 1])
    order, done = DataOrder(n_images, seed=0), [0]

    def run() -> None:
        indices, _ = order.at(np.arange(done[0], done[0] + BATCH))
        done[0] += BATCH
        for name in ("", "label-"):
            torch.from_numpy(np.stack([np.load(folder / f"{name}{i}.npy") for i in indices]))

    return run


def map_reader(dataset: Path, n_batches: int) -> Callable[[], object]:
    """The packed copy through ``numpy.memmap``."""
    import torch

    (codes,) = dataset.glob(".packed/train/*/codes")
    spec = TokenDataset(dataset).spec
    codes_NT = np.memmap(codes, np.uint16, "r").reshape(-1, spec.n_codes)
    labels_N = np.memmap(codes.with_name("labels"), np.int64, "r")
    order, done = DataOrder(len(codes_NT), seed=0), [0]

    def run() -> None:
        for _ in range(n_batches):
            indices, _ = order.at(np.arange(done[0], done[0] + BATCH))
            torch.from_numpy(codes_NT[indices].astype(np.int64)), torch.from_numpy(np.asarray(labels_N[indices]))
            done[0] += BATCH

    return run


def datasets_reader(folder: Path, cache: Path) -> Callable[[], object]:
    """The same parquet files opened by ``datasets``, which maps its own copy of them."""
    import torch
    from datasets import disable_progress_bars, load_dataset

    disable_progress_bars()
    rows: Any = load_dataset(str(folder), split="train", cache_dir=str(cache)).with_format("numpy")
    order, done = DataOrder(len(rows), seed=0), [0]

    def run() -> None:
        batch = rows[order.at(np.arange(done[0], done[0] + BATCH))[0]]
        done[0] += BATCH
        for name in ("codes", "label"):
            torch.from_numpy(np.asarray(batch[name], np.int64))

    return run


def speed(folder: Path, sizes: Sizes, repeats: int) -> list[Row]:
    dataset = write_dataset(folder / "speed", sizes.side, sizes.shards, sizes.rows)
    total = sizes.shards * sizes.rows
    a_tenth = max(1, total * sizes.side**2 * 2 // 10 >> 20)
    n_batches = dict.fromkeys(("memory", "packed", "streamed, all kept", FLOOR), sizes.batches)
    access = {
        "memory": TokenAccess(form="memory"),
        "packed": TokenAccess(form="packed"),
        "streamed, all kept": TokenAccess(form="streamed"),
        "streamed, a tenth kept": TokenAccess(form="streamed", memory_limit_mib=a_tenth),
    }
    cases = {name: form_reader(dataset, n_batches.get(name, 1), each) for name, each in access.items()}
    cases |= {NPY: npy_reader(folder / "npy", dataset, min(total, sizes.files))}
    cases |= {DATASETS: datasets_reader(dataset, folder / "cache"), FLOOR: map_reader(dataset, sizes.batches)}
    for _ in range(total // BATCH // sizes.batches + 1):
        cases["streamed, all kept"]()  # decodes every row group once
    timing = time_in_turn(cases, repeats=repeats)
    rate = {name: n_batches.get(name, 1) * BATCH / each.median for name, each in timing.items()}
    config = {"rows": total, "batch": BATCH, "repeats": repeats, "kept_mib": a_tenth}
    spread = {name: each.spread for name, each in timing.items()}
    return [
        compare(
            f"{name}: {total:,} rows of {sizes.side**2} codes",
            "rows/s",
            rate[name],
            rate[reference],
            reference,
            more_is_better=True,
            floor=rate[FLOOR],
            config={**config, "spread_ours": spread[name], "spread_reference": spread[reference]},
        )
        for name in access
        for reference in (NPY, DATASETS)
    ]


def peak_of_reading(folder: Path, access: TokenAccess, n_batches: int) -> float:
    """MiB that opening a dataset and reading some batches takes at its peak, in a process that has read another."""
    form_reader(folder.with_name("warm"), 2, access)()
    return peak_memory_mib(lambda: form_reader(folder, n_batches, access)())


def memory(folder: Path, sizes: Sizes) -> list[Row]:
    write_dataset(folder / "warm", 4, 1, 512)
    rows = []
    for shards in (sizes.few, sizes.many):
        dataset = write_dataset(folder / f"memory-{shards}", 4, shards, sizes.small_rows, linked=True)
        n_rows = shards * sizes.small_rows
        packing, packed, held = (
            in_fresh_process(peak_of_reading, dataset, TokenAccess(form=form), 2 * sizes.batches)
            for form in ("packed", "packed", "memory")
        )
        for name, mib in (("packing and reading", packing), ("reading, packed", packed)):
            config = {"rows": n_rows, "codes": 16, "batches": 2 * sizes.batches, "batch": BATCH}
            rows.append(compare(f"{name}: {n_rows:,} rows of 16 codes", "MiB", mib, held, HELD, config=config))
    return rows


def order(sizes: Sizes, repeats: int) -> list[Row]:
    ours, n_batches = DataOrder(sizes.epoch, seed=0), sizes.epoch // BATCH // 100

    def computed() -> None:
        for step in range(n_batches):
            ours.at(np.arange(step * BATCH, (step + 1) * BATCH))

    def held() -> None:
        np.random.Generator(np.random.Philox(0)).permutation(sizes.epoch)

    timing = time_in_turn({"ours": computed, "reference": held}, repeats=repeats, warm_up=1)
    rates = [n_batches * BATCH / timing["ours"].median, sizes.epoch / timing["reference"].median]
    peaks = [in_fresh_process(peak_of_order, sizes.epoch, held) for held in (False, True)]
    name, reference = f"order of {sizes.epoch:,} examples", "numpy permutation"
    spreads = {f"spread_{case}": each.spread for case, each in timing.items()}
    config = {"examples": sizes.epoch, "batch": BATCH, "repeats": repeats}
    return [
        compare(name, "indices/s", *rates, reference, more_is_better=True, config={**config, **spreads}),
        compare(name, "MiB", *peaks, reference, config=config),
    ]


def peak_of_order(n_examples: int, held: bool) -> float:
    """MiB for the order of an epoch."""
    if held:
        return peak_memory_mib(lambda: np.random.Generator(np.random.Philox(0)).permutation(n_examples))
    return peak_memory_mib(lambda: DataOrder(n_examples, seed=0).at(np.arange(BATCH)))


def main() -> None:
    parser = bench_parser(__doc__.splitlines()[0])
    parser.add_argument(
        "--folder", type=Path, help="where the datasets are written; default the system's temporary one"
    )
    arguments = parser.parse_args()
    sizes, repeats = (QUICK, 3) if arguments.quick else (Sizes(), 9)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        rows = [*speed(folder, sizes, repeats), *memory(folder, sizes), *order(sizes, repeats)]
    report(rows, arguments.json)


if __name__ == "__main__":
    main()
