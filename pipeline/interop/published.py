"""Published models that shapes alone would leave unclear, by the shapes that they have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stage2_prior.config import SIZES


@dataclass(frozen=True)
class Published:
    """A file, or files of equal shapes.

    Attributes:
        format: of the files.
        files: their names.
        shapes: what the tensors' shapes say.
        says: what they do not say, by the system's argument names.
    """

    format: str
    files: tuple[str, ...]
    shapes: Mapping[str, Any]
    says: Mapping[str, Any] = field(default_factory=dict)


def _cnn(base: int, multipliers: tuple[int, ...], latent: int, codebook: tuple[int, int] | None) -> dict[str, Any]:
    return {"base_width": base, "width_multipliers": multipliers, "n_res_blocks": 2, "latent_channels": latent,
            "codebook": codebook}  # fmt: skip


def _gpt(size: str, scale: float, *names: str, **says: Any) -> Published:
    """LlamaGen's class-conditional GPT of a named size, with the guidance of the paper's Table 6."""
    n_layers, n_heads, d_model = SIZES[size].shape
    files = tuple(f"c2i_{name}.pt" for name in names)
    shapes = {"n_layers": n_layers, "d_model": d_model, "n_codes": 16384, "n_classes": 1000}
    return Published("llamagen_gpt", files, shapes, {"n_head": n_heads, "cfg_scale": scale, **says})


_F8, _F16 = (1, 2, 2, 4), (1, 1, 2, 2, 4)
PUBLISHED = (
    Published("llamagen_vq", ("vq_ds16_c2i.pt", "vq_ds16_t2i.pt"), _cnn(128, _F16, 256, (16384, 8)),
              {"codebook_l2_norm": True, "resolution": 256}),
    Published("llamagen_vq", ("vq_ds8_c2i.pt",), _cnn(128, _F8, 256, (16384, 8)),
              {"codebook_l2_norm": True, "resolution": 256}),
    Published("taming", ("vqgan_imagenet_f16_1024", "faceshq and other priors' first stages"),
              _cnn(128, _F16, 256, (1024, 256)), {"resolution": 256}),
    Published("taming", ("vqgan_imagenet_f16_16384",), _cnn(128, _F16, 256, (16384, 256)), {"resolution": 256}),
    Published("taming", ("vqgan_gumbel_f8",), _cnn(128, (1, 1, 2, 4), 256, (8192, 256)), {"resolution": 256}),
    Published("sd_kl", ("kl-f8", "vae-ft-ema", "vae-ft-mse", "sd-vae-ft-ema", "sd-vae-ft-mse"),
              _cnn(128, (1, 2, 4, 4), 4, None),
              {"scaling_factor": 0.18215, "norm_num_groups": 32, "resolution": 256}),
    _gpt("gpt-b", 2.0, "B_256", "B_384"),
    _gpt("gpt-l", 2.0, "L_256", "L_384"),
    _gpt("gpt-xl", 1.75, "XL_384", block_size=576),
    _gpt("gpt-xxl", 1.75, "XXL_384", block_size=576),
    _gpt("gpt-3b", 1.65, "3B_384", block_size=576),
)  # fmt: skip


def find_published(format_name: str, shapes: Mapping[str, Any]) -> Published | None:
    """The published model of these shapes."""
    fits = (each for each in PUBLISHED if each.format == format_name)
    return next((each for each in fits if all(shapes.get(name) == value for name, value in each.shapes.items())), None)
