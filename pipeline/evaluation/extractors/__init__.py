"""Feature extractors for distances between sets of images: Inception, DINOv2, and a small random network."""

from pipeline.evaluation.extractors.base import FeatureExtractor
from pipeline.evaluation.extractors.build import SmallConfig, build_extractor, named_extractor
from pipeline.evaluation.extractors.dinov2 import DinoV2Config
from pipeline.evaluation.extractors.inception import InceptionConfig

__all__ = ["DinoV2Config", "FeatureExtractor", "InceptionConfig", "SmallConfig", "build_extractor", "named_extractor"]
