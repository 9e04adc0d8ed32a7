"""Reconstruction metrics of a tokenizer on a set of images, in one pass, with notes on comparability."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from foundation.codes.usage import CodeUsage, summarize
from foundation.errors import DataError
from foundation.images.failures import Failure
from foundation.images.image_set import ImageSet
from pipeline.engines.stream import Engine, LocalEngine, Movable, Step, Stream, in_order
from pipeline.evaluation.distances import (
    SUBSET_SIZE,
    FeatureMoments,
    KernelDistance,
    KernelDistanceStream,
    gaussian_frechet_distance,
)
from pipeline.evaluation.extractors import FeatureExtractor
from pipeline.evaluation.reading import ReadImages, note_failures, open_reader, seen_in_words
from stage1_tokenizer.evaluate import BatchScorer, BatchScores, PairScore, ScoreTally, ScoringOrder, TokenizerScores
from stage1_tokenizer.tokenizer import TokenizerModel

_PUBLISHED_N_IMAGES = 50_000
_SUBSETS_WANTED = 5
_ROWS = (
    ("psnr", "PSNR", "{:.2f} dB", "higher is better"),
    ("ssim", "SSIM", "{:.4f}", "higher is better, 1 is perfect; 11 x 11 Gaussian window"),
    ("lpips", "LPIPS", "{:.4f}", "lower is better"),
    ("l1", "L1", "{:.4f}", "lower is better; of values in [-1, 1]"),
)


@dataclass(frozen=True)
class SetDistances:
    """Distances between the distributions of images and of reconstructions.

    Attributes:
        extractor: of the features.
        frechet: rFID with Inception, 0 or more.
        kernel: rKID with Inception.
    """

    extractor: FeatureExtractor
    frechet: float
    kernel: KernelDistance


@dataclass(frozen=True)
class TokenizerEvaluation:
    """Result of ``evaluate_tokenizer``.

    Attributes:
        image_size: (Y, X) in pixels.
        scores: means over images, and code usage.
        distances: rFID and rKID; None without an extractor.
        lpips_description: variant of LPIPS, as text.
        seen: what LPIPS and the extractor see of images of other channels than RGB and grey; None for these.
    """

    image_size: tuple[int, int]
    scores: TokenizerScores
    distances: SetDistances | None
    lpips_description: str | None = None
    seen: str | None = None

    def metrics(self) -> dict[str, float]:
        """Log values; names of distances end with the extractor, e.g. ``rfid_inception``."""
        numbers = {"n_images": float(self.scores.n_images), **self.scores.metrics()}
        if self.distances is not None:
            name, kernel = self.distances.extractor.name, self.distances.kernel
            numbers |= {f"rfid_{name}": self.distances.frechet, f"rkid_{name}": kernel.value}
            if kernel.n_subsets > 1:
                numbers[f"rkid_{name}_standard_error"] = kernel.standard_error
        return numbers

    @property
    def notes(self) -> list[str]:
        """Conditions for comparing these figures with others, a sentence each."""
        known = "compares with figures of the same images"
        other = f"published figures use other images, mostly {_PUBLISHED_N_IMAGES:,}"
        n_images = self.scores.n_images
        notes = [f"of {n_images:,} images: {known if n_images == _PUBLISHED_N_IMAGES else other}"]
        if self.lpips_description is not None:
            notes.append(f"LPIPS: {self.lpips_description}")
        if self.seen is not None and (self.distances is not None or self.lpips_description is not None):
            notes.append(f"LPIPS, rFID, rKID: NOT COMPARABLE with published figures: of {self.seen}")
        if self.distances is None:
            return notes
        each = self.distances.extractor
        notes.append(f"rFID, rKID: extractor {each.name}, {each.n_features} features, resize: {each.resize}")
        if each.caveat is not None:
            notes.append(f"rFID, rKID: NOT COMPARABLE with published figures: {each.caveat}")
        if n_images <= each.n_features:
            notes.append(f"rFID: too few images for {each.n_features} features, biased upwards; read rKID")
        elif n_images < 10_000:
            notes.append("rFID: depends on the number of images, strongly below 10,000; rKID does not")
        notes.append("rKID: excludes pairs of an image and its reconstruction, so perfect reconstructions score 0")
        return notes

    def table(self) -> str:
        """Format metrics and notes as text."""
        means = self.scores.means
        rows = [
            (label, form.format(means[key]), remark) for key, label, form, remark in _ROWS if key in means
        ] + _channel_rows(means)
        if self.distances is not None:
            rows += _distance_rows(self.distances)
        if self.scores.usages:
            rows += _usage_rows(self.scores.usages)
        lines = [f"{label:<12}{value:>14}   {remark}".rstrip() for label, value, remark in rows]
        height, width = self.image_size
        title = f"Reconstruction of {self.scores.n_images:,} images of {height} x {width} pixels"
        return "\n".join([title, *lines, "Notes", *(f"- {note}" for note in self.notes)])


def _channel_rows(means: dict[str, float]) -> list[tuple[str, str, str]]:
    """PSNR of parts of images: colours and opacity, or each of more than three channels."""
    rows = [("psnr_colour", "PSNR colour", "of colours multiplied by opacity"), ("psnr_alpha", "PSNR alpha", "opacity")]
    numbers = sorted(int(name[5:]) for name in means if name.startswith("psnr_") and name[5:].isdigit())
    rows += [(f"psnr_{i}", f"PSNR {i}", f"channel {i}") for i in numbers]
    return [(label, f"{means[key]:.2f} dB", remark) for key, label, remark in rows if key in means]


def _distance_rows(distances: SetDistances) -> list[tuple[str, str, str]]:
    extractor, kernel = distances.extractor, distances.kernel
    label = extractor.name if extractor.caveat is None else f"{extractor.name}, not comparable"
    error = "" if math.isnan(kernel.standard_error) else f" +- {kernel.standard_error:.2g} (standard error)"
    subsets = f"{kernel.n_subsets} subset{'s' * (kernel.n_subsets > 1)} of {kernel.subset_size:,}"
    return [
        ("rFID", f"{distances.frechet:.4g}", f"lower is better; {label}"),
        ("rKID", f"{kernel.value:.4g}", f"{error.strip()}, {subsets}; {label}".lstrip(", ")),
    ]


def _usage_rows(usages: tuple[CodeUsage, ...]) -> list[tuple[str, str, str]]:
    total, sizes = summarize(usages), [each.codebook_size for each in usages]
    rows = [
        ("code usage", f"{total.share_used:.1%}", f"of {' + '.join(f'{size:,}' for size in sizes)} codes"),
        ("perplexity", f"{total.perplexity:,.1f}", f"of at most {max(sizes):,}"),
    ]
    for i, each in enumerate(usages, start=1):
        if len(usages) > 1:
            rows.append((f"codebook {i}", f"{each.share_used:.1%}", f"perplexity {each.perplexity:,.1f}"))
    return rows


def evaluate_tokenizer(
    model: TokenizerModel,
    images: ImageSet,
    *,
    extractor: FeatureExtractor | None = None,
    lpips: PairScore | None = None,
    batch_size: int = 64,
    engine: Engine | None = None,
) -> TokenizerEvaluation:
    """Encode and decode every image of the set without augmentation and dropout; constant memory.

    Reconstructions are clamped to [-1, 1]. PSNR, SSIM, LPIPS and L1 use floats, the extractor 8-bit images.

    Args:
        model: discrete, or continuous (no code usage).
        images: at least 2 images with an extractor.
        extractor: for rFID and rKID, on the model's device; None leaves both out.
        lpips: ``lpips(images_BCYX, reconstructions_BCYX) -> (B,)``, RGB, on the model's device; None leaves it out.
            The table quotes its ``description``, if any.
        batch_size: images in a batch.
        engine: scores the batches; None scores them in this process.

    Raises:
        ConfigError: a batch size below 1.
        DataError: too few images, or a reconstruction that is not finite.
    """
    needed = 1 if extractor is None else 2
    if len(images) < needed:
        raise DataError("too few images to evaluate", field="images", found=len(images), expected=f"{needed} or more")
    features = None if extractor is None else _FeatureTally(extractor, len(images))
    order = ScoringOrder.of(images, batch_size)
    tally = ScoreTally(model, len(images), has_lpips=lpips is not None)
    stream = Stream(
        "scoring the tokenizer",
        functools.partial(_open_scorer, Movable(model), Movable(lpips), Movable(extractor)),
        read=open_reader,
        device=next(model.parameters()).device.type,
    )
    batches = ((number, images.some(order.order_N[chunk])) for number, chunk in enumerate(order.chunks))
    results = in_order((engine or LocalEngine()).results(stream, batches), range(len(order.chunks)))
    was_training = model.training
    model.eval()
    try:
        for number, (scores, kept_B, failures) in tqdm(
            results, total=len(order.chunks), desc=stream.what, unit="batch", delay=2, leave=False
        ):
            chunk = order.chunks[number]
            note_failures(failures, images, order.order_N[chunk])
            if scores is not None:
                tally.add(scores, np.arange(chunk.start, chunk.stop)[kept_B])
                if features is not None:
                    features.update(*np.split(scores.features_BF, 2, axis=1))
    finally:
        model.train(was_training)
    preprocess = images.preprocess
    return TokenizerEvaluation(
        image_size=(preprocess.height, preprocess.width),
        scores=tally.scores(),
        distances=None if features is None else features.distances(),
        lpips_description=getattr(lpips, "description", None),
        seen=seen_in_words(preprocess),
    )


def _open_scorer(
    model: Movable[TokenizerModel], lpips: Movable[PairScore | None], extractor: Movable[FeatureExtractor | None]
) -> Step:
    """What a reader returns => scores of the readable images, or None without any; and the rest as it is."""
    scorer = BatchScorer(model.content, lpips.content, extractor.content, require_finite=True)

    def score(read: ReadImages) -> tuple[BatchScores | None, np.ndarray, list[Failure]]:
        return scorer.score(read.pixels_KYXC) if read.kept_B.any() else None, read.kept_B, read.failures

    return score


class _FeatureTally:
    def __init__(self, extractor: FeatureExtractor, n_images: int) -> None:
        self._extractor, n_features = extractor, extractor.n_features
        self._originals, self._decoded = FeatureMoments(n_features), FeatureMoments(n_features)
        subset_size = min(SUBSET_SIZE, max(2, n_images // _SUBSETS_WANTED))  # a standard error needs several
        self._kernel = KernelDistanceStream(n_features, subset_size=subset_size, paired=True)

    def update(self, originals: np.ndarray, decoded: np.ndarray) -> None:
        self._originals.update(originals)
        self._decoded.update(decoded)
        self._kernel.update(originals, decoded)

    def distances(self) -> SetDistances:
        one, other = self._originals, self._decoded  # of few images the notes say what ``frechet_distance`` warns of
        frechet = gaussian_frechet_distance(one.mean_F, one.covariance, other.mean_F, other.covariance)
        return SetDistances(self._extractor, frechet, self._kernel.result())
