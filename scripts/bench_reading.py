"""Speed of reading training images: crops of photographs through the training path, beside bare decoding.

python scripts/bench_reading.py [--quick] [--pictures FOLDER] [--workers N] [--json FILE]

The images are JPEGs of 500 x 375 pixels, quality 90: parts of the two photographs that come with scikit-learn, or the
files of FOLDER resized. Training crops them at random (random_resized), resizes to 256 x 256 and mirrors half of them.

Images/s: ours are batches as a training gets them, from the recipe's worker processes; the reference are as many
processes that only decode, crop and resize with Pillow and send nothing. Waiting: share of its time that a consumer
waits that needs 200 ms for a batch and no core, of a size that takes half of the speed just measured; the reference is
the same with a reading thread and no workers. Serial part: time on a core of the consuming process for each image, with
its copy into pinned memory, or into other memory here, where there is no GPU; the reference is how it was done before:
mirrored by ``np.where`` and made float32 by NumPy in one thread. The last rows are what one process could feed
with 16 and 64 cores: what they decode, or what the serial part lets through if that is less.
"""

from __future__ import annotations

import itertools
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from bench_report import Row, bench_parser, compare, report
from PIL import Image

from foundation.hardware import keep_freed_memory, usable_cores
from foundation.images.augment import crop_box, view_draws
from foundation.images.config import Augment, Preprocess
from foundation.images.image_set import ImageSet
from foundation.images.preprocess import to_unit_range
from foundation.images.sources import FolderSource
from foundation.training.loading import BatchShare, read_batches

SIZE, SIDE = (500, 375), 256
AUGMENT, PREPROCESS = Augment(crop="random_resized", flip=True), Preprocess(height=SIDE, width=SIDE)
STEP_SECONDS = 0.2


@dataclass(frozen=True)
class Sizes:
    """How much is read.

    Attributes:
        images: files.
        batch_size: of the speed.
        seconds: of each timing.
        steps: of the consumer.
        repeats: rounds.
    """

    images: int
    batch_size: int
    seconds: float
    steps: int
    repeats: int


FULL, QUICK = Sizes(512, 64, 10.0, 50, 5), Sizes(48, 16, 1.0, 8, 1)


def write_photographs(folder: Path, n: int, pictures: Path | None) -> None:
    """``n`` JPEG files, each another part of a photograph, or a file of ``pictures`` in their order."""
    rng = np.random.default_rng(0)
    if pictures is not None:
        files = itertools.cycle(
            sorted(each for each in pictures.rglob("*") if each.suffix.lower() in (".jpg", ".jpeg", ".png"))
        )
        whole = (Image.open(each).convert("RGB") for each in files)
    else:
        from sklearn.datasets import load_sample_images

        whole = itertools.cycle([Image.fromarray(each) for each in load_sample_images().images])
    for i, image in zip(range(n), whole, strict=False):
        wide = image.width * rng.uniform(0.6, 1)
        high = min(image.height, wide * SIZE[1] / SIZE[0])
        left, top = rng.uniform(0, image.width - wide), rng.uniform(0, image.height - high)
        part = image.resize(SIZE, Image.Resampling.BICUBIC, box=(left, top, left + wide, top + high))
        part.save(folder / f"{i:05d}.jpg", quality=90)


def decode(path: Path, draws_N: np.ndarray) -> np.ndarray:
    """One crop by Pillow alone."""
    with Image.open(path) as image:
        image.load()
        box = crop_box(AUGMENT, draws_N[1:], image.size, SIDE, SIDE)
        return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=box))


def count_decoded(paths: list[Path], part: int, begin: Any, seconds: float, counts: Any) -> None:
    """Decode until the time is over, from another image on in each process, and tell how many."""
    draws_BN = view_draws(AUGMENT, np.arange(len(paths)), np.zeros(len(paths), int), part)
    decode(paths[0], draws_BN[0])
    begin.wait()
    end, n = time.perf_counter() + seconds, 0
    while time.perf_counter() < end:
        i = (n + 101 * part) % len(paths)
        decode(paths[i], draws_BN[i])
        n += 1
    counts.put(n / (time.perf_counter() - end + seconds))


def bare_speed(paths: list[Path], workers: int, seconds: float) -> float:
    """Images/s of processes that only decode, crop and resize."""
    context = multiprocessing.get_context("fork")
    begin, counts = context.Barrier(workers), context.Queue()
    processes = [
        context.Process(target=count_decoded, args=(paths, part, begin, seconds, counts)) for part in range(workers)
    ]
    for each in processes:
        each.start()
    total = sum(counts.get() for _ in processes)
    for each in processes:
        each.join()
    return float(total)


@dataclass(frozen=True)
class Read:
    """What reading took.

    Attributes:
        speed: images/s.
        serial: seconds on a core of this process for each image.
    """

    speed: float
    serial: float


def training_speed(images: ImageSet, batch_size: int, workers: int, seconds: float) -> Read:
    """Batches as they come, in the middle of reading: as many are in flight at the end as at the beginning."""
    batches = read_batches(images, BatchShare(batch_size), seed=0, start=0, end=10**6, workers=workers)
    for _ in range(2 * workers):
        next(batches)
    began, on_core, n = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - began < seconds:
        next(batches)
        n += batch_size
    taken, serial = time.perf_counter() - began, time.process_time() - on_core
    batches.close()
    return Read(n / taken, serial / n)


def waiting_share(images: ImageSet, batch_size: int, workers: int, steps: int) -> float:
    """BatchShare of its time that a consumer waits, after the first batches."""
    batches = read_batches(images, BatchShare(batch_size), seed=0, start=0, end=10**6, workers=workers)
    for _ in range(2):
        next(batches)
        time.sleep(STEP_SECONDS)
    began, waited = time.perf_counter(), 0.0
    for _ in range(steps):
        asked = time.perf_counter()
        next(batches)
        waited += time.perf_counter() - asked
        time.sleep(STEP_SECONDS)
    taken = time.perf_counter() - began
    batches.close()
    return waited / taken


def serial_before(batch_size: int) -> float:
    """Seconds for each image of what one thread did with a decoded batch, before pixels went to the device."""
    pixels = [np.full((SIDE, SIDE, 3), i, np.uint8) for i in range(batch_size)]
    mirrored = (np.arange(batch_size) % 2 == 0)[:, None, None, None]
    seconds = []
    for _ in range(3):
        began = time.process_time()
        pixels_BYXC = np.stack(pixels)
        to_unit_range(np.where(mirrored, pixels_BYXC[:, :, ::-1], pixels_BYXC))
        seconds.append(time.process_time() - began)
    return min(seconds) / batch_size


def rows(folder: Path, sizes: Sizes, workers: int) -> list[Row]:
    """All rows; every measurement in each round, in turn."""
    images = ImageSet(FolderSource(str(folder)), PREPROCESS, augment=AUGMENT)
    paths, found = sorted(folder.iterdir()), dict[str, list[float]]()
    cases: dict[str, Callable[[], float]] = {
        "bare": lambda: bare_speed(paths, workers, sizes.seconds),
        "one core": lambda: bare_speed(paths, 1, sizes.seconds / 2),
        "before": lambda: serial_before(sizes.batch_size),
        "waiting": lambda: waiting_share(images, consumed, workers, sizes.steps),
        "waiting in a thread": lambda: waiting_share(images, consumed, 0, sizes.steps),
    }
    for _ in range(sizes.repeats):
        ours = training_speed(images, sizes.batch_size, workers, sizes.seconds)
        consumed = max(1, int(0.5 * ours.speed * STEP_SECONDS))
        for name, value in (("ours", ours.speed), ("serial", ours.serial), *((k, case()) for k, case in cases.items())):
            found.setdefault(name, []).append(value)
    middle = {name: statistics.median(values) for name, values in found.items()}
    spread = {
        name: (max(values) - min(values)) / middle[name] if middle[name] else 0.0 for name, values in found.items()
    }
    config = {"workers": workers, "batch_size": sizes.batch_size, "images": sizes.images, "rounds": sizes.repeats}
    speed = {**config, "spread_ours": spread["ours"], "spread_reference": spread["bare"]}
    name, before = "random resized crops, 256 px", "np.where and float32 in one thread"
    waiting = {**config, "batch_size": consumed, "step_seconds": STEP_SECONDS}
    ours, theirs = (100 * middle[each] for each in ("waiting", "waiting in a thread"))
    serial = {**config, "spread_ours": spread["serial"], "spread_reference": spread["before"]}
    us, us_before = 1e6 * middle["serial"], 1e6 * middle["before"]
    result = [
        compare(name, "images/s", middle["ours"], middle["bare"], "bare decoding", more_is_better=True, config=speed),
        compare("waiting, steps of 200 ms", "% of the time", ours, theirs, "a reading thread", floor=0, config=waiting),
        compare("serial part", "us/image", us, us_before, before, config=serial),
    ]
    for cores in (16, 64):
        fed, fed_before = (min(cores * middle["one core"], 1 / middle[each]) for each in ("serial", "before"))
        what = f"one process could feed, {cores} cores"
        result.append(compare(what, "images/s", fed, fed_before, before, more_is_better=True, config=config))
    return result


def main() -> None:
    parser = bench_parser(__doc__ or "")
    parser.add_argument(
        "--pictures", type=Path, help="folder of image files to resize; default: scikit-learn's photographs"
    )
    parser.add_argument("--workers", type=int, default=usable_cores(), help="processes that decode; default: all cores")
    options = parser.parse_args()
    keep_freed_memory()  # as the commands do
    sizes = QUICK if options.quick else FULL
    with tempfile.TemporaryDirectory() as name:
        write_photographs(Path(name), sizes.images, options.pictures)
        report(rows(Path(name), sizes, options.workers), options.json)


if __name__ == "__main__":
    main()
