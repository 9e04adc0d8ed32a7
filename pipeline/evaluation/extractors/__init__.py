"""Feature extractors for distances between sets of images: Inception, DINOv2, lite0, and a small random network."""

from pipeline.evaluation.extractors.base import FeatureExtractor
from pipeline.evaluation.extractors.build import SmallConfig, build_extractor, choose_extractor, named_extractor
from pipeline.evaluation.extractors.dinov2 import DinoV2Config
from pipeline.evaluation.extractors.inception import InceptionConfig
from pipeline.evaluation.extractors.lite0 import Lite0Config

__all__ = [
    "DinoV2Config",
    "FeatureExtractor",
    "InceptionConfig",
    "Lite0Config",
    "SmallConfig",
    "build_extractor",
    "choose_extractor",
    "named_extractor",
]
