"""Images of random latents from N(0, 1): what a variational autoencoder samples without a prior.

Source: Kingma and Welling 2013, arXiv:1312.6114, section 2.
"""

from __future__ import annotations

import torch

from foundation.errors import ConfigError
from foundation.randomness import derive_seed
from pipeline.generation.outputs import decode_batch
from stage1_tokenizer.tokenizer import TokenizerModel


@torch.no_grad()
def normal_images(tokenizer: TokenizerModel, num_images: int, seed: int) -> torch.Tensor:
    """Decode latents from the normal distribution.

    Args:
        tokenizer: continuous.
        num_images: B, 1 or more.
        seed: image i depends on it and i alone.

    Returns:
        (B, C, Y, X) float32 in [-1, 1], on the tokenizer's device.

    Raises:
        ConfigError: a discrete tokenizer, whose codes have no such distribution.
    """
    what, fix = "has codes, and no latents", "sample from its prior"
    quantizer = tokenizer.config.quantizer.type_name
    ConfigError.unless(not tokenizer.is_discrete, what, field="tokenizer", found=quantizer, fix=fix)
    level, device = tokenizer.levels[0], next(tokenizer.parameters()).device
    generators = [torch.Generator().manual_seed(derive_seed("normal latent", seed, i)) for i in range(num_images)]
    latents = torch.stack([torch.randn(level.depth, level.height, level.width, generator=each) for each in generators])
    batch = decode_batch(tokenizer.preprocess.height * tokenizer.preprocess.width)
    return torch.cat([tokenizer.decode(part.to(device)).clamp_(-1, 1) for part in latents.split(batch)])
