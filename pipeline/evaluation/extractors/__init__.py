"""Feature extractors for distances between sets of images: Inception, DINOv2, and a small random network."""

from pipeline.evaluation.extractors.base import DinoV2Config, FeatureExtractor, InceptionConfig, SmallConfig
from pipeline.evaluation.extractors.build import build_extractor, named_extractor

__all__ = ["DinoV2Config", "FeatureExtractor", "InceptionConfig", "SmallConfig", "build_extractor", "named_extractor"]
