"""What a tokenizer scores on a whole set of images, in one pass over them."""

from __future__ import annotations

import torch

from foundation.errors import DataError
from foundation.images.image_set import ImageSet
from pipeline.evaluation.extractors import FeatureExtractor
from pipeline.evaluation.frechet import FeatureMoments, frechet_distance
from pipeline.evaluation.kid import SUBSET_SIZE, KernelDistanceStream
from pipeline.evaluation.tokenizer_scores import SetDistances, TokenizerEvaluation
from stage1_tokenizer.evaluate import PairScore, score_tokenizer
from stage1_tokenizer.tokenizer import TokenizerModel

_SUBSETS_WANTED = 5


@torch.no_grad()
def evaluate_tokenizer(
    model: TokenizerModel,
    images: ImageSet,
    *,
    extractor: FeatureExtractor | None = None,
    lpips: PairScore | None = None,
    batch_size: int = 64,
) -> TokenizerEvaluation:
    """Encode and decode every image of the set, unaugmented, with dropout off.

    Memory does not grow with the number of images. Reconstructions are clamped to [-1, 1]; PSNR, SSIM, LPIPS and L1
    see them as floats, the extractor as 8-bit images.

    Args:
        model: discrete, or continuous (then without code usage).
        images: the set; at least 2 images when there is an extractor.
        extractor: for rFID and rKID, on the model's device; None leaves both out.
        lpips: ``lpips(images_BCYX, reconstructions_BCYX) -> (B,)``, RGB, on the model's device; None leaves it out.
            Its ``description``, where it has one, is put under the table.
        batch_size: images at a time.

    Raises:
        ConfigError: a batch size below 1.
        DataError: too few images, or a reconstruction that is not finite.
    """
    needed = 1 if extractor is None else 2
    if len(images) < needed:
        raise DataError("too few images to evaluate", field="images", found=len(images), expected=f"{needed} or more")
    features = None if extractor is None else _FeatureTally(extractor, len(images))

    def watch(batch_BCYX: torch.Tensor, decoded_BCYX: torch.Tensor) -> None:
        _require_finite(decoded_BCYX)
        if features is not None:
            features.update(batch_BCYX, decoded_BCYX)

    scores = score_tokenizer(model, images, batch_size=batch_size, lpips=lpips, watch=watch)
    return TokenizerEvaluation(
        image_size=(images.preprocess.height, images.preprocess.width),
        scores=scores,
        distances=None if features is None else features.distances(),
        lpips_description=getattr(lpips, "description", None),
    )


class _FeatureTally:
    def __init__(self, extractor: FeatureExtractor, n_images: int) -> None:
        self._extractor, n_features = extractor, extractor.n_features
        self._originals, self._decoded = FeatureMoments(n_features), FeatureMoments(n_features)
        subset_size = min(SUBSET_SIZE, max(2, n_images // _SUBSETS_WANTED))  # several, or there is no standard error
        self._kernel = KernelDistanceStream(n_features, subset_size=subset_size, paired=True)

    def update(self, batch_BCYX: torch.Tensor, decoded_BCYX: torch.Tensor) -> None:
        originals = self._extractor(batch_BCYX).cpu().numpy()
        decoded = self._extractor(decoded_BCYX).cpu().numpy()
        self._originals.update(originals)
        self._decoded.update(decoded)
        self._kernel.update(originals, decoded)

    def distances(self) -> SetDistances:
        extractor = self._extractor
        return SetDistances(
            extractor=extractor.name,
            n_features=extractor.n_features,
            resize=extractor.resize,
            caveat=extractor.caveat,
            frechet=frechet_distance(self._originals, self._decoded),
            kernel=self._kernel.result(),
        )


def _require_finite(decoded_BCYX: torch.Tensor) -> None:
    if not torch.isfinite(decoded_BCYX).all():
        raise DataError("the tokenizer's reconstructions are not finite", field="reconstructions",
                        found="NaN or infinity", expected="numbers",
                        fix="the weights are damaged or training diverged: take an earlier checkpoint")  # fmt: skip
