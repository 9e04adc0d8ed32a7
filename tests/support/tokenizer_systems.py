"""Small tokenizers of every kind with all losses, for comparing two ways to compute one training step."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from accelerate import Accelerator

from foundation.config import from_dict
from foundation.images.config import Preprocess
from foundation.training.learner import Update
from stage1_tokenizer.config import TokenizerConfig, TokenizerTraining
from stage1_tokenizer.objective import Objective
from stage1_tokenizer.tokenizer import TokenizerModel
from stage1_tokenizer.train import TokenizerTask

PREPROCESS = Preprocess(height=16, width=16)
NETWORKS = {
    "vqgan": {"type": "vqgan", "base_width": 8, "width_multipliers": [1, 2], "n_res_blocks": 1, "norm_groups": 4},
    "magvit2": {"type": "magvit2", "base_width": 8, "width_multipliers": [1, 2], "n_res_blocks": 1, "norm_groups": 4},
    "dvae": {"type": "dvae", "base_width": 8, "width_multipliers": [1, 2], "n_res_blocks": 1, "norm_groups": 1},
    "vit": {"type": "vit", "patch_size": 2, "width": 16, "encoder_layers": 1, "decoder_layers": 2, "n_heads": 2},
}
GAN = {
    "perceptual": {"weight": 1.0, "vgg_weights": "random"},
    "adversarial": {
        "weight": 0.5,
        "start_step": 0,
        "ramp_steps": 0,
        "lecam_weight": 0.1,
        "discriminator": {"width": 8, "n_layers": 2, "spectral_norm": True},
    },
}
LITE0 = {"weights": "random", "side": 32}
TERMS = [
    {"type": "lite0", "stages": [2, 3], **LITE0},
    {"type": "alignment", "stages": [3, 4], "of": "both", "hidden": 8, "margin": 0.1, **LITE0},
    {"type": "alignment", "stages": [4], **LITE0},
    {"type": "equivariance", "weight": 2.0},
    {"type": "texture", "weight": 2.0},
    {"type": "texture", "weight": 2.0, "crop": 9},
]
VQ = {"type": "vq", "codebook_size": 32, "width": 4}
SYSTEMS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "vqgan": ({"quantizer": {**VQ, "learning": "gradient", "entropy_weight": 0.1}}, GAN),
    "lfq": ({"networks": NETWORKS["magvit2"], "quantizer": {"type": "lfq", "width": 6, "entropy_weight": 0.1}}, {}),
    "vq": ({"quantizer": VQ}, {}),
    "vit": ({"networks": NETWORKS["vit"], "quantizer": VQ}, GAN),
    "vqvae2": ({"quantizer": VQ, "coarse_halvings": 1}, {}),
    "fsq": ({"quantizer": {"type": "fsq", "levels": [5, 4, 3], "evenness": 0.5}}, {}),
    "ibq": ({"quantizer": {"type": "ibq", "codebook_size": 32, "width": 4, "entropy_weight": 0.1}}, {}),
    "bsq": ({"quantizer": {"type": "bsq", "width": 6, "entropy_weight": 0.1}}, {}),
    "residual": ({"quantizer": {"type": "residual", "depth": 3, "codebook": VQ}}, {}),
    "kl": ({"quantizer": {"type": "kl", "width": 4, "weight": 0.01}}, {}),
    "gumbel": (
        {
            "networks": NETWORKS["dvae"],
            "projection": "none",
            "latent_channels": 16,
            "quantizer": {"type": "gumbel", "codebook_size": 32, "width": 16, "logit_layer": False, "kl_weight": 0.1},
        },
        {},
    ),
    "not adaptive": (
        {"quantizer": VQ},
        {**GAN, "adversarial": {**GAN["adversarial"], "adaptive": False, "loss": "non_saturating"}},
    ),
}
"""by name: the model's settings and the training's"""
SYSTEMS |= {
    "terms": ({"quantizer": VQ}, {**GAN, "terms": TERMS}),
    "aligned": ({"quantizer": VQ}, {"terms": TERMS[:3]}),
    "plain terms": ({"quantizer": VQ, "coarse_halvings": 1}, {"terms": TERMS}),
    "fsq unit variance": ({"quantizer": {"type": "fsq", "levels": [5, 4, 3], "unit_variance": True}}, {}),
}
Step = tuple[dict[str, float], dict[str, torch.Tensor]]
"""what a step logs; gradients and buffers by name, ``model.`` or ``discriminator.`` before each"""


def task(
    name: str, dtype: torch.dtype = torch.float32, dropout: float = 0.0, frozen: Collection[str] = (), **changes: Any
) -> TokenizerTask:
    """The task with its first weights, the same each time; a residual block's second kernel is not zero."""
    torch.manual_seed(0)
    model_values, training_values = SYSTEMS[name]
    networks = dict(model_values.get("networks", NETWORKS["vqgan"]))
    if dropout:
        networks["dropout"] = dropout
    config = from_dict(TokenizerConfig, {"latent_channels": 8, **model_values, "networks": networks})
    fit, optim = {"steps": 8, "batch_size": 6}, {"learning_rate": 1e-3, "warmup_steps": 0}
    training = from_dict(TokenizerTraining, {"fit": fit, "optim": optim, **training_values, **changes})
    model = TokenizerModel(config, PREPROCESS)
    for each in model.parameters():
        if not each.any():
            torch.nn.init.normal_(each, std=0.05)
    accelerator = Accelerator(cpu=True)
    objective = Objective(training, model, accelerator, seed=0)
    built = TokenizerTask(model.to(dtype), training, objective, None, accelerator, seed=0, frozen=frozen)
    for module in objective.networks().values():
        module.to(dtype)
    return built


def images(n: int = 6, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """In [-1, 1], each of another contrast."""
    pixels = torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2 - 1
    return (pixels * torch.linspace(0.2, 1, n).view(n, 1, 1, 1)).to(dtype)


def step(trained: TokenizerTask, batch: torch.Tensor, index: int = 1) -> Step:
    """One training step; what it logs, and the gradients and buffers by name, the discriminator's too."""
    found: dict[str, torch.Tensor] = {}
    learners = {"model": trained.learner, **trained.objective.learners()}
    for prefix, learner in learners.items():
        take = learner.take_step

        def watched(loss: torch.Tensor, *how: Any, prefix: str = prefix, learner=learner, take=take) -> Update:
            for name, each in learner.model.named_parameters():
                found[f"{prefix}.{name}"] = torch.zeros_like(each) if each.grad is None else each.grad.clone()
            return take(loss, *how)

        learner.take_step = watched  # type: ignore[method-assign]
    torch.manual_seed(7)
    trained.learner.model.initialize(batch, torch.Generator().manual_seed(0), trained.training.micro_batch_size)
    torch.manual_seed(8)
    row = {name: float(value) for name, value in trained.train_step({"images": batch}, index).items()}
    for prefix, learner in learners.items():
        found |= {f"{prefix}.{name}": each.clone() for name, each in learner.model.named_buffers()}
    return row, found


def largest_differences(one: Step, other: Step) -> tuple[float, float]:
    """The largest relative difference of a logged scalar, and of a tensor by its length.

    A scalar below 1e-3 counts as 1e-3, a tensor shorter than 1e-3 of its network's longest as that.
    """
    assert one[0].keys() == other[0].keys() and one[1].keys() == other[1].keys()
    scalars = max(abs(value - other[0][name]) / max(abs(other[0][name]), 1e-3) for name, value in one[0].items())
    lengths = {name: float(each.norm()) for name, each in other[1].items()}
    longest: dict[str, float] = {}
    for name, length in lengths.items():
        network = name.split(".")[0]
        longest[network] = max(longest.get(network, 0.0), length)
    tensors = max(
        float((each - other[1][name]).norm()) / max(lengths[name], 1e-3 * longest[name.split(".")[0]])
        for name, each in one[1].items()
    )
    return scalars, tensors
