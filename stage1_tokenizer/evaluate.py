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
PairWatcher = Callable[[torch.Tensor, torch.Tensor], None]
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


@torch.no_grad()
def score_tokenizer(
    model: TokenizerModel,
    images: ImageSet,
    *,
    batch_size: int = 64,
    limit: int | None = None,
    share: Share | None = None,
    lpips: PairScore | None = None,
    distance: SetDistance | None = None,
    watch: PairWatcher | None = None,
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
        watch: called with each batch of images and reconstructions that this process scores, both in [-1, 1]; batches
            come in a fixed random order, since sets are often sorted by class.

    Raises:
        ConfigError: a batch size below 1.
        DataError: no image could be read.
    """
    require(batch_size > 0, "batch_size", batch_size, "a positive number of images")
    device, share = next(model.parameters()).device, share or Share()
    chosen = chosen_examples(len(images), limit)
    order = chosen[np.random.default_rng(0).permutation(len(chosen))]  # ``watch`` sees a sample of the whole set
    batches = list(batches_of_one_shape(images.buckets, order, batch_size))
    order, ends = np.concatenate(batches), np.cumsum([len(each) for each in batches]).tolist()
    tally = _Tally(model, len(order), lpips, distance)
    chunks = [slice(end - len(each), end) for each, end in zip(batches, ends, strict=True)][share.rank :: share.world]

    def read(chunk: slice) -> tuple[torch.Tensor, np.ndarray]:
        pixels_KYXC, kept_B = images.readable(order[chunk])
        return to_unit_range(pixels_KYXC), kept_B

    was_training = model.training
    model.eval()
    try:
        with tqdm(total=len(chunks), desc="scoring the tokenizer", unit="batch", delay=2, leave=False) as progress:
            for chunk, (images_KCYX, kept_B) in read_ahead(read, chunks):
                if kept_B.any():
                    batch, decoded = tally.add(images_KCYX.to(device), np.arange(chunk.start, chunk.stop)[kept_B])
                    if watch is not None:
                        watch(batch, decoded)
                progress.update()
    finally:
        model.train(was_training)
    return tally.scores(share)


class _Tally:
    """Scores of single images by their place in the order, and code counts."""

    def __init__(
        self, model: TokenizerModel, n_images: int, lpips: PairScore | None, distance: SetDistance | None
    ) -> None:
        self._model, self._lpips, self._distance = model, lpips, distance
        self._names = [*score_names(model.preprocess), *(["lpips"] if lpips is not None else [])]
        self._values_SN, self._kept_N = np.zeros((len(self._names), n_images)), np.zeros(n_images)
        self._counter = UsageCounter(model.layout) if model.is_discrete else None
        self._places: list[np.ndarray] = []
        self._features: list[np.ndarray] = []

    def add(self, batch_BCYX: torch.Tensor, places_B: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Score some images, whose places in the order are given; returns them with their reconstructions."""
        codes = self._model.encode(batch_BCYX)
        decoded = self._model.decode(codes).clamp(-1, 1)
        scores = scores_of(batch_BCYX, decoded, self._model.preprocess, self._lpips)
        scores_SB = torch.stack([scores[name].float() for name in self._names])
        self._values_SN[:, places_B] = scores_SB.cpu().double().numpy()
        self._kept_N[places_B] = 1
        if self._counter is not None:
            self._counter.add(codes.flatten(1).cpu().numpy())
        if self._distance is not None:
            seen = [visible(each, self._model.preprocess) for each in (batch_BCYX, decoded)]
            both = [self._distance.features(each).cpu().numpy() for each in seen]
            self._places.append(places_B)
            self._features.append(np.concatenate(both, 1))
        return batch_BCYX, decoded

    def scores(self, share: Share) -> TokenizerScores:
        """The scores of all processes."""
        kept_N = share.joined(self._kept_N).astype(bool)
        values_SN = share.joined(self._values_SN)[:, kept_N]
        n_images = int(kept_N.sum())
        DataError.unless(n_images > 0, "no image could be read", field="images", found=f"0 of {len(kept_N):,}")
        return TokenizerScores(
            n_images,
            dict(zip(self._names, (values_SN.sum(1) / n_images).tolist(), strict=True)),
            () if self._counter is None else tuple(self._counter.usages(share)),
            n_unreadable=len(kept_N) - n_images,
            distances={} if self._distance is None else self._distances(self._distance, share),
        )

    def _distances(self, distance: SetDistance, share: Share) -> dict[str, float]:
        """Figures of all processes' features in the order of the images, computed by process 0."""
        width = 2 * distance.n_features
        places_N = np.concatenate([*self._places, np.empty(0, np.int64)])
        features_NF = np.concatenate([*self._features, np.empty((0, width), np.float32)])
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
