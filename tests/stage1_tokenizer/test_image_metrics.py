import math

import numpy as np
import pytest
import torch

from foundation.errors import DataError
from stage1_tokenizer.image_metrics import ssim


def ssim_by_definition(one: np.ndarray, other: np.ndarray, window: int) -> float:
    """Equation 13 of the paper for one channel in [-1, 1], position by position, in float64, on the scale 0 to 255."""
    one, other = 127.5 * (one + 1), 127.5 * (other + 1)
    offsets = np.arange(window) - window // 2
    weights = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    weights /= weights.sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    for y in range(one.shape[0] - window + 1):
        for x in range(one.shape[1] - window + 1):
            a, b = one[y : y + window, x : x + window], other[y : y + window, x : x + window]
            mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
            var_a, var_b = (weights * (a - mean_a) ** 2).sum(), (weights * (b - mean_b) ** 2).sum()
            covariance = (weights * (a - mean_a) * (b - mean_b)).sum()
            luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
            values.append(luminance * (2 * covariance + c2) / (var_a + var_b + c2))
    return float(np.mean(values))


@pytest.mark.parametrize(("height", "width", "window"), [(20, 17, 11), (11, 30, 11), (8, 8, 7), (9, 40, 9), (2, 5, 1)])
@pytest.mark.parametrize("channels", [1, 3])
def test_equals_the_definition(height: int, width: int, window: int, channels: int) -> None:
    images = torch.rand(2, channels, height, width) * 2 - 1
    reconstructions = (images + 0.3 * torch.randn_like(images)).clamp(-1, 1)
    found = ssim(images, reconstructions)
    pairs = zip(images.double().numpy(), reconstructions.double().numpy(), strict=True)
    expected = [
        np.mean([ssim_by_definition(a, b, window) for a, b in zip(one, other, strict=True)]) for one, other in pairs
    ]
    assert found.shape == (2,)
    assert found.tolist() == pytest.approx(expected, abs=2e-5)


def test_equal_images_score_one_and_others_less() -> None:
    images = torch.rand(3, 3, 32, 32) * 2 - 1
    assert ssim(images, images).tolist() == pytest.approx([1.0] * 3, abs=1e-6)
    assert (ssim(images, -images) < 0).all()
    assert (ssim(images, torch.rand(3, 3, 32, 32) * 2 - 1).abs() < 0.1).all()


def test_flat_images_follow_the_closed_form() -> None:
    light, dark = torch.full((1, 1, 16, 16), 0.5), torch.full((1, 1, 16, 16), -0.25)
    c1 = 0.01**2
    assert ssim(light, dark).item() == pytest.approx((2 * 0.75 * 0.375 + c1) / (0.75**2 + 0.375**2 + c1), abs=5e-5)
    assert ssim(light, -torch.ones_like(light)).item() == pytest.approx(c1 / (0.75**2 + c1), abs=5e-5)


def test_each_image_is_scored_alone_and_reconstructions_are_clamped() -> None:
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    reconstructions = torch.stack([images[0], images[1] * 3])
    scores = ssim(images, reconstructions)
    assert scores[0].item() == pytest.approx(1.0, abs=1e-6)
    assert scores[1].item() == pytest.approx(ssim(images[1:], reconstructions[1:].clamp(-1, 1)).item(), abs=1e-6)


def test_nan_stays_nan_and_shapes_must_agree() -> None:
    images = torch.zeros(1, 1, 16, 16)
    assert math.isnan(ssim(images, images + math.nan).item())
    with pytest.raises(DataError, match="shapes"):
        ssim(images, torch.zeros(1, 1, 16, 15))
    with pytest.raises(DataError, match="shapes"):
        ssim(torch.zeros(1, 1, 0, 4), torch.zeros(1, 1, 0, 4))
    assert ssim(images[:0], images[:0]).shape == (0,)
