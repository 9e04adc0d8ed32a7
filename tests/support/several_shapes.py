"""Images of several shapes: portraits and landscapes, their specification, and a generator of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from support.tiny_run import TINY

from foundation.codes.spec import CodeLevel, CodeSpec
from foundation.config import from_dict
from foundation.images.config import Preprocess
from pipeline.generation.generator import ImageGenerator
from stage1_tokenizer.config import TokenizerConfig
from stage1_tokenizer.tokenizer import TokenizerModel
from stage2_prior.config import PriorConfig
from stage2_prior.prior import PriorModel

SHAPES = ((8, 12), (12, 8), (4, 24))
"""of grey images, (height, width) in pixels; grids of 4 x 6, 6 x 4 and 2 x 12 codes"""
PREPROCESS = Preprocess(height=8, width=12, mode="L", shapes=SHAPES[1:])


def spec(n_classes: int = 3, depth: int = 1) -> CodeSpec:
    """Codes of ``SHAPES`` with a stride of 2."""
    level = CodeLevel(height=4, width=6, codebook_size=29, depth=depth)
    names = tuple(f"class {i}" for i in range(n_classes))
    return CodeSpec(levels=(level,), stride=2, preprocess=PREPROCESS, fingerprint="f" * 64, class_names=names)


def model(spec: CodeSpec, **changes: object) -> PriorModel:
    """A small prior with large random weights, of its grid embedding too."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {"d_model": 32, "n_layers": 2, "n_heads": 4, "rope_base": 100.0, **changes}
    prior = PriorModel(PriorConfig(**settings), spec).eval()
    for parameter in prior.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.2)
    return prior


def examples(prior: PriorModel, n: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes, labels, and grids of which each occurs."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(prior.spec.codebook_size, (n, prior.n_codes), generator=generator)
    labels = torch.randint(prior.n_classes + 1, (n,), generator=generator)
    return tokens, labels, torch.arange(n) % prior.n_grids


def generator() -> ImageGenerator:
    """An untrained generator of ``SHAPES``, classes a, b and c, whose codes are far from equally likely."""
    torch.manual_seed(0)
    tokenizer = TokenizerModel(from_dict(TokenizerConfig, TINY["tokenizer.model"]), PREPROCESS)
    with torch.no_grad():
        tokenizer.bottleneck.to_code.weight.mul_(40)
    prior = PriorModel(PriorConfig(d_model=32, n_layers=2, n_heads=2), tokenizer.spec.with_classes(("a", "b", "c")))
    for table in (prior.head, prior.grid_embedding):
        torch.nn.init.normal_(table.weight, std=0.4)
    made = ImageGenerator(tokenizer, prior, label_dropout=0.1, grid_counts=(2, 1, 1))
    made.set_progress_bar_config(disable=True)
    return made


def make_pictures(folder: Path, n: int = 6, *, seed: int = 0) -> Path:
    """``n`` landscapes and as many portraits in each of two classes: larger than the shapes, in mixed order."""
    rng = np.random.default_rng(seed)
    for name in ("ant", "bee"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(2 * n):
            sides = (5, 8) if i % 2 else (8, 5)
            coarse = rng.integers(0, 256, (*sides, 3), np.uint8).repeat(6, 0).repeat(6, 1)
            Image.fromarray(coarse).save(folder / name / f"{i:03d}.png")
    return folder
