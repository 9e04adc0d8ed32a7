"""Speed of an export: images into a token dataset, beside how the field does it and beside the bare network.

python scripts/bench_encode.py [--quick] [--threads N] [--images N] [--device DEVICE] [--json FILE]

All three encode the same image files with the same tokenizer, each in two views (the image and its mirror image), in
turn in one process. Ours: the files of an export, written and verified; opening and finishing it, which do not grow
with the images, are not counted but given in the row. Reference: one image at a time, both views in one batch, and two
``.npy`` files an image, one of codes and one of the label, as LlamaGen's export writes them. Floor: the encoder and the
quantizer alone, on pixels that are in memory, in batches of the size that the export measured as the fastest.

The last row is the size: bytes on disk for an image of 256 codes of 1,024, all columns and the footer counted.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from bench_report import Row, bench_parser, compare, report, time_in_turn
from PIL import Image

from foundation.codes.shards import Shard, write_shard
from foundation.codes.spec import CodeLevel, CodeSpec
from foundation.images.config import Preprocess
from foundation.images.preprocess import to_unit_range
from foundation.images.sources import FolderSource
from foundation.images.views import FLIP, view_pixels
from pipeline.encoding.encoder import fastest_batch_size
from pipeline.encoding.export import Export
from pipeline.encoding.plan import EncodeConfig
from stage1_tokenizer.config import TokenizerConfig
from stage1_tokenizer.networks.config import VQGANNetworks
from stage1_tokenizer.quantizers.config import VQConfig
from stage1_tokenizer.tokenizer import TokenizerModel

FIELD = "batch 1 + flip, two .npy an image"


@dataclass(frozen=True)
class Workload:
    """What is encoded.

    Attributes:
        name: shown in the table.
        config: the network.
        side: of the square images the tokenizer takes, pixels.
        images: how many.
        repeats: timed rounds.
    """

    name: str
    config: TokenizerConfig
    side: int
    images: int
    repeats: int


FULL = Workload(
    "256 px, VQ 1,024",
    TokenizerConfig(
        networks=VQGANNetworks(base_width=32, width_multipliers=(1, 1, 2, 2, 4), n_res_blocks=1),
        latent_channels=128,
        quantizer=VQConfig(codebook_size=1024, width=8),
    ),
    side=256,
    images=128,
    repeats=3,
)
QUICK = Workload(
    "quick: 32 px, VQ 1,024",
    TokenizerConfig(
        networks=VQGANNetworks(base_width=16, width_multipliers=(1, 2), n_res_blocks=1, norm_groups=8),
        latent_channels=32,
        quantizer=VQConfig(codebook_size=1024, width=8),
    ),
    side=32,
    images=48,
    repeats=1,
)


def write_images(folder: Path, n: int, side: int) -> FolderSource:
    """JPEG files a quarter larger than what is encoded, in two classes."""
    rng = np.random.default_rng(0)
    size = side * 5 // 4
    for i in range(n):
        place = folder / f"class-{i % 2}"
        place.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8))
        coarse.resize((size * 4 // 3, size), Image.Resampling.BICUBIC).save(place / f"{i:05d}.jpg", quality=90)
    return FolderSource(str(folder))


def field_export(tokenizer: TokenizerModel, source: FolderSource, folder: Path, device: torch.device) -> None:
    """One image at a time, two files each."""
    folder.mkdir()
    assert source.labels is not None
    for i in range(len(source.ids)):
        pixels = view_pixels(tokenizer.preprocess, source.read(i), FLIP)
        codes = tokenizer.encode(to_unit_range(pixels).to(device))
        np.save(folder / f"{i}.npy", codes.flatten(1).cpu().numpy()[None])
        np.save(folder / f"label-{i}.npy", source.labels[i : i + 1])


def bare(tokenizer: TokenizerModel, n_views: int, batch_size: int, device: torch.device) -> Callable[[], None]:
    """The network alone, without reading."""
    side = tokenizer.preprocess.height
    images = (torch.rand(batch_size, 3, side, side) * 2 - 1).to(device)

    def run() -> None:
        for _ in range(-(-n_views // batch_size)):
            tokenizer.encode(images).cpu()

    return run


def speed(workload: Workload, folder: Path, device: torch.device) -> Row:
    """Views per second of ours, of the field's way, and of the bare network."""
    torch.manual_seed(0)
    tokenizer = TokenizerModel(workload.config, Preprocess(height=workload.side, width=workload.side)).eval()
    (folder / "tokenizer").mkdir()
    tokenizer.save(folder / "tokenizer")
    tokenizer.to(device)
    source = write_images(folder / "images", workload.images, workload.side)
    batch_size = fastest_batch_size(tokenizer)
    images = workload.images // batch_size * batch_size or workload.images  # no batch of ours is half empty
    source = _first(source, images)
    config = EncodeConfig(batch_size=batch_size, flip=True)
    turns = iter(range(1_000_000))
    opened: dict[str, list[float]] = {"opening": [], "finishing": [], "writing": []}

    def ours() -> None:
        times = [time.perf_counter()]
        export = Export(folder / "tokenizer", {"train": source}, folder / f"ours-{next(turns)}", config, device)
        times.append(time.perf_counter())
        for planned in export.shards:
            export.write(planned)
        times.append(time.perf_counter())
        assert export.finish()
        times.append(time.perf_counter())
        for name, seconds in zip(("opening", "writing", "finishing"), np.diff(times), strict=True):
            opened[name].append(float(seconds))

    cases = {
        "ours": ours,
        "field": lambda: field_export(tokenizer, source, folder / f"field-{next(turns)}", device),
        "bare": bare(tokenizer, 2 * images, batch_size, device),
    }
    timings = time_in_turn(cases, repeats=workload.repeats, warm_up=1, device=device.type)
    n_bare = -(-2 * images // batch_size) * batch_size
    writing = sorted(opened["writing"][1:])
    ours_per_second, floor = 2 * images / float(np.median(writing)), n_bare / timings["bare"].median
    return compare(
        f"export, {workload.name}",
        "views/s",
        ours_per_second,
        2 * images / timings["field"].median,
        FIELD,
        more_is_better=True,
        floor=floor,
        config={
            "images": images,
            "views": 2,
            "batch_size": batch_size,
            "threads": torch.get_num_threads(),
            "device": device.type,
            "share_of_floor": ours_per_second / floor,
            "opening_seconds": float(np.median(opened["opening"])),
            "finishing_seconds": float(np.median(opened["finishing"])),
            "spread_ours": (writing[-1] - writing[0]) / float(np.median(writing)),
            "spread_reference": timings["field"].spread,
            "spread_floor": timings["bare"].spread,
        },
    )


def _first(source: FolderSource, n: int) -> FolderSource:
    source.ids = source.ids[:n]
    source.labels = None if source.labels is None else source.labels[:n]
    return source


def size(folder: Path, n: int) -> Row:
    """Bytes an image of 256 codes, each of 1,024 as likely as the others: at least 320."""
    spec = CodeSpec(
        levels=(CodeLevel(height=16, width=16, codebook_size=1024),),
        stride=16,
        preprocess=Preprocess(),
        fingerprint="bench",
        class_names=tuple(map(str, range(1000))),
    )
    rng = np.random.default_rng(0)
    codes, labels = rng.integers(0, 1024, (n, 256)), np.sort(rng.integers(0, 1000, n))
    ids = [f"n{label:08d}/n{label:08d}_{i}.JPEG" for i, label in enumerate(labels)]
    path, reference = folder / "size.parquet", folder / "size.npy"
    write_shard(path, Shard(codes, ids, np.zeros(n, np.uint8), labels), spec)
    np.save(reference, codes[:1])
    theirs = reference.stat().st_size
    np.save(reference, labels[:1])
    theirs += reference.stat().st_size
    return compare(
        "256 codes of 1,024 on disk",
        "bytes/image",
        path.stat().st_size / n,
        theirs,
        "two .npy an image",
        floor=320,
        config={"images": n, "column_ids": "ImageNet's file names"},
    )


def main() -> None:
    parser = bench_parser(__doc__ or "")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch on a CPU")
    parser.add_argument("--images", type=int, help="how many to encode; default 128")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ...")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    workload = QUICK if options.quick else FULL
    workload = dataclasses.replace(workload, images=options.images or workload.images)
    with tempfile.TemporaryDirectory() as name:
        rows = [speed(workload, Path(name), torch.device(options.device))]
        rows.append(size(Path(name), 1000 if options.quick else 8192))
    report(rows, options.json)
    for key, value in rows[0].config.items():
        print(f"  {key}: {value:.3g}" if isinstance(value, float) else f"  {key}: {value}")


if __name__ == "__main__":
    main()
