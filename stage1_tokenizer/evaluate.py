"""Reconstruction quality and code usage over a set of images: PSNR, SSIM, L1, LPIPS, distances between sets.

In training the images are shared out over processes; see ``foundation.training.shares``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from foundation.codes.usage import CodeUsage, UsageCounter, summarize
from foundation.config import require
from foundation.errors import DataError
from foundation.images.buckets import batches_of_one_shape
from foundation.images.config import Preprocess
from foundation.images.image_set import ImageSet
from foundation.images.preprocess import image_grid, to_unit_range
from foundation.images.preview import visible
from foundation.training.shares import Share, chosen_examples, read_ahead
from stage1_tokenizer.image_metrics import channel_psnr, premultiplied, psnr, ssim
from stage1_tokenizer.tokenizer import TokenizerModel

PairScore = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
_COLOURS = 128
"""images whose mean colours are taken"""
_SMALL = 48
"""pixels: smaller pictures are enlarged"""


class SetDistance(Protocol):
    """A distance between the distributions of images and of reconstructions, from features of each.

    Attributes:
        names: of its figures.
        n_features: F, numbers for each image.
    """

    names: tuple[str, ...]
    n_features: int

    def features(self, images_BCYX: torch.Tensor) -> torch.Tensor:
        """Images in [-1, 1] => (B, F) float32."""
        ...

    def figures(self, images_NF: np.ndarray, reconstructions_NF: np.ndarray) -> dict[str, float]:
        """One figure for each of ``names``, from the features of all images and of their reconstructions."""
        ...


@dataclass(frozen=True)
class TokenizerScores:
    """Averages over a whole set.

    Attributes:
        n_images: images scored.
        means: ``psnr`` (dB), ``ssim`` (at most 1), ``l1`` (of values in [-1, 1]) and, where it was asked for,
            ``lpips``: means over images. Over all channels; in mode RGBA colours are multiplied by opacity, and there
            are ``psnr_colour`` and ``psnr_alpha``; of more than 3 channels there is ``psnr_0`` and so on for each.
            ``lpips`` is of the channels that are shown.
        usages: which codes occurred, how often: one for each codebook. Empty for a continuous tokenizer.
        n_unreadable: images that could not be read and are left out.
        distances: between the set and its reconstructions, where they were asked for.
    """

    n_images: int
    means: dict[str, float]
    usages: tuple[CodeUsage, ...]
    n_unreadable: int = 0
    distances: Mapping[str, float] = field(default_factory=dict)

    def metrics(self) -> dict[str, float]:
        """Numbers for the log."""
        rest = {name: value for name, value in self.means.items() if name != "psnr"} | dict(self.distances)
        if self.n_unreadable:
            rest["unreadable_images"] = float(self.n_unreadable)
        if not self.usages:
            return {"psnr": self.means["psnr"], **rest}
        total = summarize(self.usages)
        several = self.usages if len(self.usages) > 1 else ()
        single = {
            name: value
            for i, each in enumerate(several)
            for name, value in (
                (f"code_usage_{i}", each.share_used),
                (f"code_perplexity_{i}", each.perplexity),
                (f"code_usage_possible_{i}", _possible((each,))),
            )
        }
        return {
            "psnr": self.means["psnr"],
            "code_usage": total.share_used,
            "code_perplexity": total.perplexity,
            **rest,
            "code_usage_possible": _possible(self.usages),
            **single,
        }


@dataclass(frozen=True)
class BatchScores:
    """What scoring some images gives, on the CPU.

    Attributes:
        values_SB: (scores, B) float64, in the order of ``score_names``, with ``lpips`` last where there is one.
        codes_BT: (B, T) int64; None of a continuous tokenizer.
        features_BF: (B, 2 F) float32, of each image and then of its reconstruction; None without an extractor.
    """

    values_SB: np.ndarray
    codes_BT: np.ndarray | None
    features_BF: np.ndarray | None


class BatchScorer:
    """Scores batches of images: what one process computes, whatever adds it up.

    Args:
        model: in evaluation mode, on its device.
        lpips: see ``score_tokenizer``.
        features: images in [-1, 1] as they are shown => (B, F) float32; None for none.
        require_finite: refuse reconstructions that are not.
    """

    def __init__(
        self,
        model: TokenizerModel,
        lpips: PairScore | None = None,
        features: Callable[[torch.Tensor], torch.Tensor] | None = None,
        *,
        require_finite: bool = False,
    ) -> None:
        self._model, self._lpips, self._features, self._require_finite = model, lpips, features, require_finite
        self._device = next(model.parameters()).device

    @torch.no_grad()
    def score(self, pixels_BYXC: np.ndarray) -> BatchScores:
        """Scores of images of one shape, uint8 or uint16 pixels; reconstructions are clamped to [-1, 1].

        Raises:
            DataError: reconstructions that are not finite, where they must be.
        """
        preprocess = self._model.preprocess
        batch_BCYX = to_unit_range(pixels_BYXC).to(self._device)
        codes = self._model.encode(batch_BCYX)
        decoded = self._model.decode(codes).clamp(-1, 1)
        if self._require_finite:
            fix = "the weights are damaged or training diverged: take an earlier checkpoint"
            finite, field = bool(torch.isfinite(decoded).all()), "the tokenizer's reconstructions"
            DataError.unless(finite, "are not finite", field=field, found="NaN or infinity", fix=fix)
        scores = scores_of(batch_BCYX, decoded, preprocess, self._lpips)
        names = [*score_names(preprocess), *(["lpips"] if self._lpips is not None else [])]
        features_BF = None
        if self._features is not None:
            both = [self._features(visible(each, preprocess)).cpu().numpy() for each in (batch_BCYX, decoded)]
            features_BF = np.concatenate(both, 1)
        return BatchScores(
            torch.stack([scores[name].float() for name in names]).cpu().double().numpy(),
            codes.flatten(1).cpu().numpy() if self._model.is_discrete else None,
            features_BF,
        )


class ScoreTally:
    """Scores of single images by their place in the order, and code counts.

    Args:
        model: whose images they are.
        n_images: places.
        has_lpips: whether the last score is LPIPS.
    """

    def __init__(self, model: TokenizerModel, n_images: int, *, has_lpips: bool) -> None:
        self._names = [*score_names(model.preprocess), *(["lpips"] if has_lpips else [])]
        self._values_SN, self._kept_N = np.zeros((len(self._names), n_images)), np.zeros(n_images)
        self._counter = UsageCounter(model.layout) if model.is_discrete else None

    def add(self, scores: BatchScores, places_B: np.ndarray) -> None:
        """Take the scores of some images, whose places in the order are given."""
        self._values_SN[:, places_B] = scores.values_SB
        self._kept_N[places_B] = 1
        if self._counter is not None and scores.codes_BT is not None:
            self._counter.add(scores.codes_BT)

    def scores(self, share: Share | None = None, distances: Mapping[str, float] | None = None) -> TokenizerScores:
        """The scores of all images, of all processes.

        Raises:
            DataError: no image could be read.
        """
        share = share or Share()
        kept_N = share.joined(self._kept_N).astype(bool)
        values_SN = share.joined(self._values_SN)[:, kept_N]
        n_images = int(kept_N.sum())
        DataError.unless(n_images > 0, "no image could be read", field="images", found=f"0 of {len(kept_N):,}")
        return TokenizerScores(
            n_images,
            dict(zip(self._names, (values_SN.sum(1) / n_images).tolist(), strict=True)),
            () if self._counter is None else tuple(self._counter.usages(share)),
            n_unreadable=len(kept_N) - n_images,
            distances=distances or {},
        )


@dataclass(frozen=True)
class ScoringOrder:
    """Images in the order in which they are scored: a fixed random one, since sets are often sorted by class.

    Attributes:
        order_N: their indices.
        chunks: of the order, each of images of one shape.
    """

    order_N: np.ndarray
    chunks: list[slice]

    @classmethod
    def of(cls, images: ImageSet, batch_size: int, limit: int | None = None) -> ScoringOrder:
        """The order of a set; see ``score_tokenizer``.

        Raises:
            ConfigError: a batch size below 1.
        """
        require(batch_size > 0, "batch_size", batch_size, "a positive number of images")
        chosen = chosen_examples(len(images), limit)
        order = chosen[np.random.default_rng(0).permutation(len(chosen))]
        batches = list(batches_of_one_shape(images.buckets, order, batch_size))
        ends = np.cumsum([len(each) for each in batches]).tolist()
        chunks = [slice(end - len(each), end) for each, end in zip(batches, ends, strict=True)]
        return cls(np.concatenate(batches), chunks)


def score_tokenizer(
    model: TokenizerModel,
    images: ImageSet,
    *,
    batch_size: int = 64,
    limit: int | None = None,
    share: Share | None = None,
    lpips: PairScore | None = None,
    distance: SetDistance | None = None,
) -> TokenizerScores:
    """Encode and decode images of the set, unaugmented, with dropout off. Images that cannot be read are left out.

    The next images are read while some are scored. Memory grows by a number for each image and score, and by the
    features of each image where there is a ``distance``.

    Args:
        model: discrete, or continuous (then without code usage); equal on every process.
        images: the set.
        batch_size: images at a time, whatever the number of processes.
        limit: most images to score, see ``chosen_examples``; None scores all.
        share: of several processes, each of which calls this and gets the scores of all; None scores all here.
        lpips: ``lpips(images_BCYX, reconstructions_BCYX) -> (B,)``, on the model's device.
        distance: between the distributions of images and reconstructions; computed by process 0.

    Raises:
        ConfigError: a batch size below 1.
        DataError: no image could be read.
    """
    share, order = share or Share(), ScoringOrder.of(images, batch_size, limit)
    scorer = BatchScorer(model, lpips, None if distance is None else distance.features)
    tally = ScoreTally(model, len(order.order_N), has_lpips=lpips is not None)
    chunks, places, features = order.chunks[share.rank :: share.world], list[np.ndarray](), list[np.ndarray]()
    was_training = model.training
    model.eval()
    try:
        with tqdm(total=len(chunks), desc="scoring the tokenizer", unit="batch", delay=2, leave=False) as progress:
            for chunk, (pixels_KYXC, kept_B) in read_ahead(lambda chunk: images.readable(order.order_N[chunk]), chunks):
                if kept_B.any():
                    scores = scorer.score(pixels_KYXC)
                    places.append(np.arange(chunk.start, chunk.stop)[kept_B])
                    tally.add(scores, places[-1])
                    if scores.features_BF is not None:
                        features.append(scores.features_BF)
                progress.update()
    finally:
        model.train(was_training)
    return tally.scores(share, None if distance is None else _distances(distance, places, features, share))


def _distances(
    distance: SetDistance, places: list[np.ndarray], features: list[np.ndarray], share: Share
) -> dict[str, float]:
    """Figures of all processes' features in the order of the images, computed by process 0."""
    width = 2 * distance.n_features
    places_N = np.concatenate([*places, np.empty(0, np.int64)])
    features_NF = np.concatenate([*features, np.empty((0, width), np.float32)])
    order = np.argsort(np.concatenate(share.rows_of_all(places_N[:, None]))[:, 0])
    all_NF = np.concatenate(share.rows_of_all(features_NF))[order]
    figures = dict.fromkeys(distance.names, 0.0)
    if share.rank == 0:
        figures = distance.figures(*np.split(all_NF, 2, axis=1))
    return {name: share.decided(figures[name]) for name in distance.names}


def score_names(preprocess: Preprocess) -> list[str]:
    """Names of ``scores_of`` without ``lpips``."""
    names = ["psnr", "ssim", "l1"]
    if preprocess.mode == "RGBA":
        return [*names, "psnr_colour", "psnr_alpha"]
    many = range(preprocess.n_channels if preprocess.n_channels > 3 else 0)
    return [*names, *(f"psnr_{i}" for i in many)]


def scores_of(
    images_BCYX: torch.Tensor, decoded_BCYX: torch.Tensor, preprocess: Preprocess, lpips: PairScore | None = None
) -> dict[str, torch.Tensor]:
    """Scores of each image, (B,): see ``TokenizerScores.means``. Both arguments are in [-1, 1]."""
    pair = images_BCYX, decoded_BCYX
    if preprocess.mode == "RGBA":
        images_BCYX, decoded_BCYX = premultiplied(images_BCYX), premultiplied(decoded_BCYX)
    l1_B = (images_BCYX - decoded_BCYX).abs().flatten(1).mean(1)
    scores = {"psnr": psnr(images_BCYX, decoded_BCYX), "ssim": ssim(images_BCYX, decoded_BCYX), "l1": l1_B}
    if preprocess.mode == "RGBA":
        scores["psnr_colour"] = psnr(images_BCYX[:, :3], decoded_BCYX[:, :3])
        scores["psnr_alpha"] = psnr(images_BCYX[:, 3:], decoded_BCYX[:, 3:])
    elif preprocess.n_channels > 3:
        each_BC = channel_psnr(images_BCYX, decoded_BCYX)
        scores |= {f"psnr_{i}": each_BC[:, i] for i in range(preprocess.n_channels)}
    if lpips is not None:
        scores["lpips"] = lpips(*(visible(each, preprocess) for each in pair))
    return scores


def _possible(usages: tuple[CodeUsage, ...]) -> float:
    """Share of the codebooks that as many uniformly distributed codes would use, on average."""
    sizes = np.array([usage.codebook_size for usage in usages], float)
    n_codes = np.array([usage.n_codes for usage in usages], float)
    return float((sizes * -np.expm1(n_codes * np.log1p(-1 / np.maximum(sizes, 2)))).sum() / sizes.sum())


def mean_colour_psnr(images: ImageSet) -> float:
    """PSNR in dB of images of one colour each, the mean of their own, over at most 128 of a set: what codes without
    any detail reach.

    NaN where none of them can be read.
    """
    found = [torch.empty(0)]
    for rows in batches_of_one_shape(images.buckets, chosen_examples(len(images), _COLOURS), _COLOURS):
        pixels_KYXC, _ = images.readable(rows)
        images_KCYX = to_unit_range(pixels_KYXC)
        if len(images_KCYX):
            found.append(psnr(images_KCYX, images_KCYX.mean((2, 3), keepdim=True).expand_as(images_KCYX)))
    return float(torch.cat(found).mean())


def reconstruction_picture(model: TokenizerModel, images: ImageSet, n_images: int) -> Image.Image | None:
    """The first images of the set's evaluation above their reconstructions; None if none of them can be read.

    Of several shapes, those of the first one that occurs.

    Args:
        model: in evaluation mode.
        images: the set.
        n_images: most images to show.
    """
    chosen = chosen_examples(len(images), n_images)
    pixels_KYXC, _ = images.readable(next(batches_of_one_shape(images.buckets, chosen, n_images)))
    return originals_above_reconstructions(model, pixels_KYXC) if len(pixels_KYXC) else None


@torch.no_grad()
def originals_above_reconstructions(model: TokenizerModel, pixels_BYXC: np.ndarray) -> Image.Image:
    """Arrange images in the upper row, reconstructions in the lower row."""
    images = to_unit_range(pixels_BYXC).to(next(model.parameters()).device)
    decoded = model.preview.of_images(model.decode(model.encode(images)))
    scale = max(1, _SMALL // max(pixels_BYXC.shape[1:3]))
    shown = np.concatenate([model.preview(pixels_BYXC), decoded])
    return image_grid(shown, len(pixels_BYXC), scale=scale)
