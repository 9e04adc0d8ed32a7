"""Published models by their tensor shapes, with arguments that shapes do not determine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stage2_prior.config import SIZES

_Sizes = tuple[int, ...]


@dataclass(frozen=True)
class Published:
    """Published files of equal shapes.

    Attributes:
        format: format of the files.
        files: their names.
        shapes: sizes that the tensors determine.
        arguments: other arguments, by the system's names.
    """

    format: str
    files: tuple[str, ...]
    shapes: Mapping[str, Any]
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def notes(self) -> tuple[str, ...]:
        """Names of the files, for the summary of an import."""
        return (f"has the shapes of {', '.join(self.files)}",) if self.files else ()


def _cnn(
    format_name: str, files: tuple[str, ...], widths: _Sizes, codebook: _Sizes | None, latent: int = 256, **more: Any
) -> Published:
    """A tokenizer of 128 channels, two blocks a level and 256 x 256 images."""
    shapes = {"base_width": 128, "width_multipliers": widths, "n_res_blocks": 2, "latent_channels": latent}
    return Published(format_name, files, {**shapes, "codebook": codebook}, {"resolution": 256, **more})


def _gpt(size: str, scale: float, *names: str, **arguments: Any) -> Published:
    """LlamaGen's class-conditional GPT of a named size, with the guidance of the paper's Table 6."""
    n_layers, n_heads, d_model = SIZES[size].shape
    files = tuple(f"c2i_{name}.pt" for name in names)
    shapes = {"n_layers": n_layers, "d_model": d_model, "n_codes": 16384, "n_classes": 1000}
    return Published("llamagen_gpt", files, shapes, {"n_head": n_heads, "cfg_scale": scale, **arguments})


_F8, _F16 = (1, 2, 2, 4), (1, 1, 2, 2, 4)
_KL_FILES = ("kl-f8", "vae-ft-ema", "vae-ft-mse", "sd-vae-ft-ema", "sd-vae-ft-mse")
PUBLISHED = (
    _cnn("llamagen_vq", ("vq_ds16_c2i.pt", "vq_ds16_t2i.pt"), _F16, (16384, 8), codebook_l2_norm=True),
    _cnn("llamagen_vq", ("vq_ds8_c2i.pt",), _F8, (16384, 8), codebook_l2_norm=True),
    _cnn("taming", ("vqgan_imagenet_f16_1024", "faceshq and other priors' first stages"), _F16, (1024, 256)),
    _cnn("taming", ("vqgan_imagenet_f16_16384",), _F16, (16384, 256)),
    _cnn("taming", ("vqgan_gumbel_f8",), (1, 1, 2, 4), (8192, 256)),
    _cnn("sd_kl", _KL_FILES, (1, 2, 4, 4), None, 4, scaling_factor=0.18215, norm_num_groups=32),
    _gpt("gpt-b", 2.0, "B_256", "B_384"),
    _gpt("gpt-l", 2.0, "L_256", "L_384"),
    _gpt("gpt-xl", 1.75, "XL_384", block_size=576),
    _gpt("gpt-xxl", 1.75, "XXL_384", block_size=576),
    _gpt("gpt-3b", 1.65, "3B_384", block_size=576),
)


def find_published(format_name: str, shapes: Mapping[str, Any]) -> Published:
    """Find the published model of these shapes; without one, the result names no files and no arguments."""
    fits = (each for each in PUBLISHED if each.format == format_name)
    known = (each for each in fits if all(shapes.get(name) == value for name, value in each.shapes.items()))
    return next(known, Published(format_name, (), shapes))
