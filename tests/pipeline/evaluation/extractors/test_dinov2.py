from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from foundation.errors import CheckpointError
from pipeline.evaluation.extractors import DinoV2Config, build_extractor


def test_dinov2_returns_the_class_token_of_pillow_like_resized_images(tmp_path: Path) -> None:
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14)
    network = Dinov2Model(config).eval()
    network.save_pretrained(tmp_path / "dino")
    extractor = build_extractor(DinoV2Config(weights=str(tmp_path / "dino")))
    levels_YXC = np.random.default_rng(0).integers(0, 256, (300, 320, 3), np.uint8)
    resized = np.asarray(Image.fromarray(levels_YXC).resize((224, 224), Image.Resampling.BICUBIC))
    pixels = torch.from_numpy(resized / 255.0).float().permute(2, 0, 1)[None]
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        scaled = (pixels - mean.view(3, 1, 1)) / std.view(3, 1, 1)
        expected = network(pixel_values=scaled).last_hidden_state[:, 0]
    images = torch.from_numpy(levels_YXC / 127.5 - 1).float().permute(2, 0, 1)[None]
    assert extractor(images).shape == (1, extractor.n_features) == (1, 32)
    torch.testing.assert_close(extractor(images), expected, atol=2e-2, rtol=0)
    assert "ViT-L/14" in str(extractor.caveat)


def test_missing_dinov2_weights_name_the_remedies_offline(tmp_path: Path) -> None:
    for weights in (str(tmp_path / "absent"), "facebook/dinov2-large-that-is-not-cached"):
        with pytest.raises(CheckpointError, match=r"(?s)cannot load DINOv2 weights.*extractor small"):
            build_extractor(DinoV2Config(weights=weights))
