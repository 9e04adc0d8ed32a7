"""Between two images, in latent space."""

from __future__ import annotations

import torch

from foundation.errors import DataError
from stage1_tokenizer.tokenizer import TokenizerModel


@torch.no_grad()
def interpolate(
    model: TokenizerModel, first_CYX: torch.Tensor, last_CYX: torch.Tensor, shares_S: torch.Tensor
) -> torch.Tensor:
    """Decode points on the line between the latents of two images.

    The line is drawn before quantization; a discrete tokenizer then quantizes each point, a continuous one (Gaussian
    latent) decodes it as it is. It is drawn between the encoder's features, of which the latents of one grid are an
    affine map, so that the latents lie on a line too; of two grids, those of the coarse one at least start on it.

    Args:
        model: in evaluation mode.
        first_CYX, last_CYX: images in [-1, 1] of equal shape.
        shares_S: how far to go, 0 for the first image's reconstruction, 1 for the last's.

    Returns:
        (S, C, Y, X) images, nominally in [-1, 1] but not clamped.

    Raises:
        DataError: images of different shapes.
    """
    if first_CYX.shape != last_CYX.shape:
        raise DataError("the two images differ in shape", field="images", found=tuple(last_CYX.shape),
                        expected=tuple(first_CYX.shape))  # fmt: skip
    first, last = model.features(torch.stack([first_CYX, last_CYX])).float()
    shares_S111 = shares_S.to(first).view(-1, 1, 1, 1)
    features = torch.lerp(first[None], last[None], shares_S111)
    coded = model.bottleneck(features.to(model.decoder.conv_out.weight.dtype))
    images: torch.Tensor = model.decoder(coded.features_BCHW).float()
    return images
