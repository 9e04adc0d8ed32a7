"""Construction of a feature extractor from its configuration or its name."""

from __future__ import annotations

from typing import get_args

from foundation.config import from_dict
from foundation.errors import ConfigError, nearest
from pipeline.evaluation.extractors.base import DinoV2Config, ExtractorConfig, FeatureExtractor, InceptionConfig

_CONFIGS: dict[str, type[ExtractorConfig]] = {each.type_name: each for each in get_args(ExtractorConfig)}


def build_extractor(config: ExtractorConfig) -> FeatureExtractor:
    """Build an extractor in evaluation mode on the CPU.

    Raises:
        CheckpointError: its weights are missing or damaged.
        ConfigError: it needs a package that is not installed.
    """
    extractor: FeatureExtractor
    if isinstance(config, InceptionConfig):
        from pipeline.evaluation.extractors.inception import InceptionExtractor

        extractor = InceptionExtractor(config)
    elif isinstance(config, DinoV2Config):
        from pipeline.evaluation.extractors.dinov2 import DinoV2Extractor

        extractor = DinoV2Extractor(config)
    else:
        from pipeline.evaluation.extractors.base import SmallExtractor

        extractor = SmallExtractor(config)
    return extractor.requires_grad_(False).eval()


def named_extractor(name: str, weights: str | None) -> FeatureExtractor | None:
    """Build the extractor that ``--extractor`` names; None for ``none``.

    Raises:
        ConfigError: no such extractor, or weights for an extractor without a weight file.
        CheckpointError: its weights are missing or damaged.
    """
    choices = [*_CONFIGS, "none"]
    if name not in choices:
        raise ConfigError("is not a choice", field="--extractor", found=repr(name), fix=nearest(name, choices))
    if weights is not None and name in ("none", "small"):
        raise ConfigError(f"has no use with --extractor {name}", field="--weights", found=weights, fix="leave it out")
    if name == "none":
        return None
    return build_extractor(from_dict(_CONFIGS[name], {} if weights is None else {"weights": weights}, "--extractor"))
