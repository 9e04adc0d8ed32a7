"""rFID of a tokenizer in training, where InceptionV3's weights are on this machine."""

from __future__ import annotations

import numpy as np
import torch

from foundation.errors import CheckpointError, ConfigError
from pipeline.evaluation.distances import FeatureMoments, frechet_distance
from pipeline.evaluation.extractors import FeatureExtractor, InceptionConfig, build_extractor
from pipeline.evaluation.extractors.inception import cached_weights
from pipeline.runs.recipe import Recipe
from stage1_tokenizer.evaluate import SetDistance


class ReconstructionFID:
    """The Frechet distance between features of images and of their reconstructions (Heusel et al., arXiv:1706.08500).

    Args:
        extractor: on the device of the images.
    """

    def __init__(self, extractor: FeatureExtractor) -> None:
        self._extractor, self.n_features = extractor, extractor.n_features
        self.names: tuple[str, ...] = (f"rfid_{extractor.name}",)

    def features(self, images_BCYX: torch.Tensor) -> torch.Tensor:
        """Images in [-1, 1] => (B, F) float32."""
        return self._extractor(images_BCYX)

    def figures(self, images_NF: np.ndarray, reconstructions_NF: np.ndarray) -> dict[str, float]:
        """The distance, 0 or more."""
        moments = [FeatureMoments(self.n_features), FeatureMoments(self.n_features)]
        for each, features_NF in zip(moments, (images_NF, reconstructions_NF), strict=True):
            each.update(features_NF)
        return {self.names[0]: frechet_distance(*moments)}


def open_rfid(recipe: Recipe, n_images: int, device: torch.device) -> tuple[SetDistance | None, str]:
    """The rFID of evaluations in training, if it is wanted and can be measured; nothing is downloaded.

    Args:
        recipe: says whether it is wanted.
        n_images: that an evaluation takes.
        device: of the tokenizer.

    Returns:
        the distance or None, and a sentence that says why it is left out; empty where there is nothing to say.
    """
    wanted, channels = recipe.tokenizer.training.evaluate_rfid, recipe.data.preprocess.n_channels
    if wanted == "never" or (wanted == "auto" and device.type == "cpu"):
        return None, ""
    if n_images < 2 or channels not in (1, 3):
        return None, f"evaluation without rFID, which takes 2 images or more of 1 or 3 channels: {n_images}, {channels}"
    try:
        weights = cached_weights()
        if weights is None:
            return None, "evaluation without rFID: InceptionV3's weights are not here; tessera evaluate downloads them"
        extractor = build_extractor(InceptionConfig(weights=str(weights)))
    except (CheckpointError, ConfigError) as error:
        return None, f"evaluation without rFID: {str(error).splitlines()[0]}"
    return ReconstructionFID(extractor.to(device)), ""
