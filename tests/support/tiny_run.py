"""The root of the repository, and the overrides of the smallest run."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]

TINY = {
    "tokenizer.model": {
        "networks": {
            "type": "vqgan",
            "base_width": 8,
            "width_multipliers": [1, 2],
            "n_res_blocks": 1,
            "norm_groups": 4,
        },
        "latent_channels": 8,
        "quantizer": {"type": "fsq", "levels": [4, 4, 3]},
    },
    "tokenizer.training.fit": {"steps": 6, "batch_size": 16, "evaluate_every": 3, "checkpoint_every": 2},
    "prior.model": {"d_model": 16, "n_layers": 1, "n_heads": 2, "dropout": 0.1},
    "prior.training.fit": {"steps": 6, "batch_size": 16, "evaluate_every": 3, "checkpoint_every": 2},
    "samples.images_per_class": 2,
}
"""Overrides that make any recipe with 8 x 8 images run in seconds."""
