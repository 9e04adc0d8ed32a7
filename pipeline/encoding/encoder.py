"""Encoding of the images of one parquet file with the frozen tokenizer, in the plan's precision.

Every image keeps its position in its batch, and all batches have one size, measured once on this machine and then
fixed: codes depend neither on failures of other images, nor on the process, nor on retries. Where images have several
shapes, a batch holds the next images of one shape in the file; rows keep the order of the plan.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future

import numpy as np
import torch

from foundation.codes.shards import Shard
from foundation.hardware import send
from foundation.images.buckets import batches_of_one_shape
from foundation.images.config import Preprocess
from foundation.images.failures import Failure, failure_of
from foundation.images.preprocess import to_unit_range
from foundation.images.sources import ImageSource
from foundation.images.views import view_pixels
from foundation.threads import image_threads
from foundation.training.arithmetic import Arithmetic, arithmetic
from pipeline.encoding.plan import ExportPlan, PlannedShard
from stage1_tokenizer.tokenizer import TokenizerModel

LARGEST = 512
ENOUGH = 0.97
"""share of the best speed that a smaller batch must reach"""
_SHORTEST = 0.2  # seconds of one measurement
_AHEAD = 2  # batches read while one is encoded
Decoded = np.ndarray | Failure | None
"""(views, Y, X, C) pixels, a failure, or None for an image that is not wanted"""
Reading = deque[tuple[list[int], list["Future[Decoded]"]]]
"""image numbers of batches that are being read, and their images"""


class ShardEncoder:
    """Encodes the files of a plan.

    Args:
        tokenizer: frozen, on its device.
        sources: images of each split.
        plan: views, batch size and precision.
        following: the file that is likely to be encoded after one; its first images are read while the last ones of
            that are encoded. None for none.
    """

    def __init__(
        self,
        tokenizer: TokenizerModel,
        sources: Mapping[str, ImageSource],
        plan: ExportPlan,
        following: Callable[[PlannedShard], PlannedShard | None] = lambda planned: None,
    ) -> None:
        self.tokenizer, self.sources, self.plan, self.following = tokenizer, sources, plan, following
        self._encoder = BatchEncoder(tokenizer, plan.batch_size, plan.precision)
        self._ahead: tuple[str, Reading] = ("", deque())

    def encode(self, planned: PlannedShard, done: Callable[[int], None] = lambda n: None) -> Shard:
        """Encode all images of a file; ``done`` receives the number of images just encoded."""
        codes_VNT, failures = self.encode_some(planned, range(planned.start, planned.stop), done)
        return self.shard(planned, codes_VNT, failures)

    def encode_some(
        self, planned: PlannedShard, wanted: Collection[int], done: Callable[[int], None] = lambda n: None
    ) -> tuple[np.ndarray, dict[int, Failure]]:
        """Encode some images of a file, each at its position in its batch.

        Args:
            planned: the file.
            wanted: image numbers in the split.
            done: receives the number of images just encoded.

        Returns:
            (views, images of the file, T) int64 codes, 0 for images without codes; and image number => failure.
        """
        codes_VNT = np.zeros((len(planned.views), planned.n_images, self.plan.spec.n_codes), np.int64)
        failures: dict[int, Failure] = {}
        with contextlib.closing(self._batches(planned, wanted)) as batches:
            for numbers, decoded in batches:
                good = [i for i, each in enumerate(decoded) if isinstance(each, np.ndarray)]
                failed = {n: each for n, each in zip(numbers, decoded, strict=True) if isinstance(each, Failure)}
                failures.update(failed)
                columns = [numbers[i] - planned.start for i in good]
                codes_VNT[:, columns] = self._encoder.encode(decoded, self.preprocess(planned, numbers[0]))
                done(sum(each is not None for each in decoded))
        return codes_VNT, failures

    def shard(self, planned: PlannedShard, codes_VNT: np.ndarray, failures: Mapping[int, Failure]) -> Shard:
        """Assemble the content of a file from codes and failures."""
        split = self.plan.splits[planned.split]
        good = [n for n in range(planned.start, planned.stop) if n not in failures]
        labels = None if split.labels is None else np.array([split.labels[n] for n in good], np.int64)
        columns = [n - planned.start for n in good]
        return Shard(
            codes_BT=codes_VNT[:, columns].reshape(-1, self.plan.spec.n_codes),
            image_ids=[split.image_ids[n] for n in good] * len(planned.views),
            views=np.repeat(np.array(planned.views, np.uint8), len(good)),
            labels=None if labels is None else np.tile(labels, len(planned.views)),
            failures=[failures[n] for n in sorted(failures)],
            planned=planned.n_images,
            plan=self.plan.identity,
            grids=None if split.grids is None else np.tile([split.grids[n] for n in good], len(planned.views)),
        )

    def preprocess(self, planned: PlannedShard, number: int) -> Preprocess:
        """How an image becomes pixels, in its shape."""
        grids = self.plan.splits[planned.split].grids
        return self.tokenizer.preprocess if grids is None else self.tokenizer.preprocess.of_shape(grids[number])

    def _batches(
        self, planned: PlannedShard, wanted: Collection[int]
    ) -> Generator[tuple[list[int], list[Decoded]], None, None]:
        """Yield image numbers and images of each batch with a wanted image; read the next batches meanwhile."""
        waiting = self._read_ahead(planned, wanted)
        follower: Iterator[list[int]] = iter(())
        try:
            for numbers in list(self.numbers(planned, wanted))[len(waiting) :]:
                waiting.append(self._start(planned, numbers, wanted))
                if len(waiting) > _AHEAD:
                    yield _results(*waiting.popleft())
            following = self.following(planned) if len(wanted) == planned.n_images else None
            if following is not None:
                all_of_it = range(following.start, following.stop)
                follower, self._ahead = self.numbers(following, all_of_it), (following.name, deque())
            while waiting:
                if following is not None and (after := next(follower, [])):
                    self._ahead[1].append(self._start(following, after, all_of_it))
                yield _results(*waiting.popleft())
        finally:  # also where the caller stops early
            _cancel(waiting)

    def numbers(self, planned: PlannedShard, wanted: Collection[int]) -> Iterator[list[int]]:
        """Image numbers of each batch of a file with a wanted image: shape by shape, in the order of the plan."""
        grids = self.plan.splits[planned.split].grids
        of_file = None if grids is None else np.array(grids[planned.start : planned.stop])
        for places in batches_of_one_shape(of_file, np.arange(planned.n_images), self.plan.batch_size):
            numbers = (places + planned.start).tolist()
            if any(n in wanted for n in numbers):
                yield numbers

    def _start(
        self, planned: PlannedShard, numbers: list[int], wanted: Collection[int]
    ) -> tuple[list[int], list[Future[Decoded]]]:
        return numbers, [image_threads().submit(self._read, planned, n, n in wanted) for n in numbers]

    def _read_ahead(self, planned: PlannedShard, wanted: Collection[int]) -> Reading:
        """The batches of a file that are being read already; those of another file are given up."""
        (name, reading), self._ahead = self._ahead, ("", deque())
        if name == planned.name and len(wanted) == planned.n_images:
            return reading
        _cancel(reading)
        return deque()

    def close(self) -> None:
        """Give up what is being read ahead."""
        _cancel(self._ahead[1])
        self._ahead = ("", deque())

    def _read(self, planned: PlannedShard, number: int, wanted: bool) -> Decoded:
        if not wanted:
            return None
        source, preprocess = self.sources[planned.split], self.preprocess(planned, number)
        return read_views(source, number, source.ids[number], preprocess, planned.views, self.plan.corner_scale)


def read_views(
    source: ImageSource, index: int, name: str, preprocess: Preprocess, views: tuple[int, ...], corner_scale: float
) -> Decoded:
    """Pixels of an image in each view, or the failure that lists it.

    Args:
        source, index: where the image is read from.
        name: its id.
        preprocess: of its shape.
        views: indices into ``foundation.images.views.VIEWS``.
        corner_scale: see ``EncodeConfig``.
    """
    try:
        return view_pixels(preprocess, source.read(index), views, corner_scale)
    except Exception as error:  # decoders raise any exception on hostile bytes; the failure lists it
        return failure_of(name, error)


class BatchEncoder:
    """Encodes batches of one size.

    Args:
        tokenizer: frozen, on its device.
        batch_size: images in each batch; missing ones are black.
        precision: arithmetic of the encoder.
    """

    def __init__(self, tokenizer: TokenizerModel, batch_size: int, precision: Arithmetic) -> None:
        self.tokenizer, self._batch_size, self._precision = tokenizer, batch_size, precision
        self._device = next(tokenizer.parameters()).device

    def encode(self, decoded: Sequence[Decoded], preprocess: Preprocess) -> np.ndarray:
        """Codes of the images that could be read, (views, images with pixels, T) int64.

        Args:
            decoded: at most ``batch_size`` images, each at its position in its batch.
            preprocess: of their shape.
        """
        good = [i for i, each in enumerate(decoded) if isinstance(each, np.ndarray)]
        if not good:
            return np.zeros((1, 0, self.tokenizer.spec.n_codes), np.int64)
        n_views = len(decoded[good[0]])  # type: ignore[arg-type]
        return np.stack([self._codes(decoded, row, preprocess)[good] for row in range(n_views)])

    def _codes(self, decoded: Sequence[Decoded], row: int, preprocess: Preprocess) -> np.ndarray:
        """Encode one view of a batch, (B, T) codes; missing images are black."""
        shape = (self._batch_size, preprocess.height, preprocess.width, preprocess.n_channels)
        pixels_BYXC = np.zeros(shape, preprocess.pixel_type)
        for i, each in enumerate(decoded):
            if isinstance(each, np.ndarray):
                pixels_BYXC[i] = each[row]
        with arithmetic(self._device, self._precision):
            on_cpu = self._device.type == "cpu"
            pixels = pixels_BYXC if on_cpu else send(torch.from_numpy(pixels_BYXC), self._device)
            codes_BT = self.tokenizer.tokens(to_unit_range(pixels))
        return codes_BT[: len(decoded)].cpu().numpy()


def _cancel(reading: Reading) -> None:
    for future in (each for _, futures in reading for each in futures):
        future.cancel()


def _results(numbers: list[int], futures: list[Future[Decoded]]) -> tuple[list[int], list[Decoded]]:
    return numbers, [each.result() for each in futures]


@torch.no_grad()
def near_tie_share(tokenizer: TokenizerModel, images_BCYX: torch.Tensor, margin: float = 1e-5) -> float:
    """Share of codes that change if the encoder's output changes by ``margin`` times its root mean square.

    Signs are random with a fixed seed. The share bounds how many codes differ between machines with other rounding;
    of latents it is 0.

    Args:
        tokenizer: frozen, on its device.
        images_BCYX: in [-1, 1], on the same device.
        margin: relative change.
    """
    if not tokenizer.is_discrete:
        return 0.0
    with arithmetic(images_BCYX.device):
        features = tokenizer.features(images_BCYX)
        codes = tokenizer.bottleneck.encode(features)
        signs = torch.randint(0, 2, features.shape, generator=torch.Generator().manual_seed(0)).mul_(2).sub_(1)
        change = signs.to(features) * (margin * features.square().mean().sqrt())
        return float((tokenizer.bottleneck.encode(features + change) != codes).cpu().double().mean())


def fastest_batch_size(tokenizer: TokenizerModel, seconds: float = 10.0, precision: Arithmetic = "float32") -> int:
    """Measure batch sizes 1, 2, 4, ... and return the smallest one of about the best speed.

    Args:
        tokenizer: on the device of the export.
        seconds: approximate limit of the measurement.
        precision: of the export.
    """
    speeds: dict[int, float] = {}
    began, size = time.perf_counter(), 1
    while size <= LARGEST:
        try:
            with arithmetic(next(tokenizer.parameters()).device, precision):
                speeds[size] = _images_per_second(tokenizer, size)
        except RuntimeError as error:  # torch.OutOfMemoryError of a GPU, or a plain one of MPS
            if not isinstance(error, torch.OutOfMemoryError) and "out of memory" not in str(error):
                raise
            break
        twice_as_long = 4 * size / speeds[size]  # two runs of the next size
        if max(speeds, key=speeds.__getitem__) < size // 2 or time.perf_counter() - began + twice_as_long > seconds:
            break
        size *= 2
    best = max(speeds.values(), default=0.0)
    return next((size for size, speed in speeds.items() if speed >= ENOUGH * best), 1)


def _images_per_second(tokenizer: TokenizerModel, size: int) -> float:
    device = next(tokenizer.parameters()).device
    preprocess = tokenizer.preprocess
    shape = (size, preprocess.n_channels, preprocess.height, preprocess.width)
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0)).mul_(2).sub_(1).to(device)
    tokenizer.encode(images).cpu()  # the first run of a shape also selects algorithms
    runs, began = 0, time.perf_counter()
    while runs == 0 or time.perf_counter() - began < _SHORTEST:
        tokenizer.encode(images).cpu()
        runs += 1
    return runs * size / (time.perf_counter() - began)
