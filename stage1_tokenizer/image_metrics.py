"""Image metrics: peak signal-to-noise ratio and structural similarity, over channels of any number and bits."""

from __future__ import annotations

import torch

from foundation.arguments import shown
from foundation.errors import DataError

WINDOW = 11
SIGMA = 1.5
DATA_RANGE = 2.0
_C1 = (0.01 * DATA_RANGE) ** 2
_C2 = (0.03 * DATA_RANGE) ** 2


def psnr(images_BCYX: torch.Tensor, reconstructions_BCYX: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio of each image in dB, (B,).

    Both arguments are in [-1, 1] (reconstructions are clamped to it), so the peak-to-peak range is 2. An exact
    reconstruction counts as 100 dB.

    Raises:
        DataError: not two tensors of one shape (B, C, Y, X) with at least one pixel.
    """
    _require_comparable(images_BCYX, reconstructions_BCYX)
    error = (images_BCYX.float() - reconstructions_BCYX.float().clamp(-1, 1)).square().flatten(1).mean(1)
    return (10 * torch.log10(4.0 / error.clamp_min(4e-10))).clamp_max(100.0)


def channel_psnr(images_BCYX: torch.Tensor, reconstructions_BCYX: torch.Tensor) -> torch.Tensor:
    """``psnr`` of each channel alone, (B, C)."""
    _require_comparable(images_BCYX, reconstructions_BCYX)
    one, other = (each.flatten(0, 1)[:, None] for each in (images_BCYX, reconstructions_BCYX))
    return psnr(one, other).view(images_BCYX.shape[:2])


def premultiplied(images_BCYX: torch.Tensor) -> torch.Tensor:
    """Colours with opacity, (B, 4, Y, X) in [-1, 1], with the colours multiplied by the opacity.

    So the colour of a transparent pixel, which nobody sees, has no part in a metric.
    """
    colours, alpha = images_BCYX[:, :3].clamp(-1, 1), images_BCYX[:, 3:].clamp(-1, 1)
    return torch.cat([(colours + 1) * (alpha + 1) / 2 - 1, alpha], 1)


def ssim(images_BCYX: torch.Tensor, reconstructions_BCYX: torch.Tensor) -> torch.Tensor:
    """Structural similarity of each image, (B,) float32, 1 for equal images, about 0 for unrelated ones.

    Wang et al. 2004, "Image quality assessment: from error visibility to structural similarity", eq. 13: a Gaussian
    window of 11 x 11 pixels with sigma 1.5, K1 = 0.01, K2 = 0.03, weighted (biased) variances, averaged over the
    positions where the window lies inside the image, then over channels (each alone). On a side shorter
    than 11 pixels the window is the largest odd size that fits, with the same sigma.

    Args:
        images_BCYX: (B, C, Y, X) in [-1, 1], so of range 2. Means count from black up, not from grey: the figures
            are the same as for images in 0..255 with range 255.
        reconstructions_BCYX: the same shape; clamped to [-1, 1] first.

    Raises:
        DataError: different shapes, or not (B, C, Y, X) with at least one pixel.
    """
    _require_comparable(images_BCYX, reconstructions_BCYX)
    weights = _gaussian(min(WINDOW, *images_BCYX.shape[-2:]))
    one, other = images_BCYX.float(), reconstructions_BCYX.float().clamp(-1, 1)
    mean_one, mean_other = _smooth(one, weights), _smooth(other, weights)
    covariance = _smooth(one * other, weights) - mean_one * mean_other
    variances = _smooth(one.square() + other.square(), weights) - mean_one.square() - mean_other.square()
    light_one, light_other = mean_one + 1, mean_other + 1
    luminance = (2 * light_one * light_other + _C1) / (light_one.square() + light_other.square() + _C1)
    return (luminance * (2 * covariance + _C2) / (variances + _C2)).flatten(1).mean(1)


def _require_comparable(one: object, other: object) -> None:
    tensors = [each for each in (one, other) if isinstance(each, torch.Tensor) and not each.is_complex()]
    shapes = [tuple(each.shape) for each in tensors if not each.is_meta and each.layout == torch.strided]
    sound = len(shapes) == 2 and shapes[0] == shapes[1] and len(shapes[0]) == 4 and all(shapes[0][1:])
    found, expected = f"{shown(one)} and {shown(other)}", "two tensors of one shape (B, C, Y, X)"
    DataError.unless(sound, "shapes or types that cannot be compared", field="images", found=found, expected=expected)


def _gaussian(largest: int) -> list[float]:
    size = largest - 1 + largest % 2
    offsets = torch.arange(size, dtype=torch.float64) - size // 2
    weights = torch.exp(-offsets.square() / (2 * SIGMA**2))
    return [float(each) for each in weights / weights.sum()]


def _smooth(maps_BCYX: torch.Tensor, weights: list[float]) -> torch.Tensor:
    """Weighted means inside the window, rows then columns; (B, C, Y - size + 1, X - size + 1).

    Sums of shifted maps instead of a convolution: a GPU may run those in TF32, whose error here is larger than the
    differences between tokenizers.
    """
    for axis in (-2, -1):
        length = maps_BCYX.shape[axis] - len(weights) + 1
        total = maps_BCYX.narrow(axis, 0, length) * weights[0]
        for start, weight in enumerate(weights[1:], start=1):
            total = total.add_(maps_BCYX.narrow(axis, start, length), alpha=weight)
        maps_BCYX = total
    return maps_BCYX
