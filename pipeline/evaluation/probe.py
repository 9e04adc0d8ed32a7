"""How learnable a tokenizer's codes are: bits per image of a tiny prior after a fixed training.

Of two tokenizers of equal distortion, the one whose codes cost a prior fewer bits leaves it less to learn. The setting
is the same for every run, so that figures of tokenizers of the same images compare; the prior is not kept.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from foundation.codes.dataset import TokenDataset
from foundation.config import to_dict
from foundation.errors import CheckpointError
from foundation.randomness import DataOrder
from foundation.storage import durable
from pipeline.runs.folder import RunFolder
from stage2_prior.config import PriorConfig
from stage2_prior.evaluate import score_prior
from stage2_prior.prior import PriorModel
from stage2_prior.scores import PriorScores
from stage2_prior.train import PriorLoss

MODEL = PriorConfig(size="tiny", dropout=0.0)
STEPS, ROWS = 300, 64
RATE, BETAS, DECAY, WARM_UP = 2e-3, (0.9, 0.95), 0.05, 30
MOST_SCORED = 2_000
"""validation rows that are scored"""


@dataclass(frozen=True)
class Probed:
    """Result of ``probe_codes``.

    Attributes:
        scores: of the tiny prior on validation codes.
        n_training: rows of codes that it could see.
        seconds: that training took.
    """

    scores: PriorScores
    n_training: int
    seconds: float

    @property
    def setting(self) -> str:
        """The fixed training, in words."""
        layers, heads, width = MODEL.shape
        network = f"{layers} layers of width {width}, {heads} heads"
        return (
            f"{network}; {STEPS} steps of {ROWS} rows, AdamW, rate {RATE:g} after {WARM_UP} steps, cosine to 0, seed 0"
        )

    def table(self) -> str:
        """Format the figures as text."""
        scores = self.scores
        return "\n".join(
            [
                f"Learnability of the codes: a tiny prior on {scores.n_images:,} validation rows",
                f"{'bits per image':<26}{scores.bits_per_image:>14,.1f}",
                f"{'bits per code':<26}{scores.bits_per_code:>14.4f}",
                f"{'frequencies alone':<26}{scores.unigram_bits:>14.4f}",
                f"{'uniform':<26}{scores.uniform_bits:>14.4f}",
                f"- fixed setting: {self.setting}; {self.n_training:,} training rows, {self.seconds:.0f} s",
                "- compares tokenizers of the same images at equal distortion: keeping less lowers it too",
            ]
        )

    def as_json(self) -> dict[str, Any]:
        """For the file."""
        scores = self.scores
        return {
            "bits_per_image": scores.bits_per_image,
            "bits_per_code": scores.bits_per_code,
            "unigram_bits_per_code": scores.unigram_bits,
            "uniform_bits_per_code": scores.uniform_bits,
            "n_images": scores.n_images,
            "n_training": self.n_training,
            "setting": self.setting,
            "model": to_dict(MODEL),
            "seconds": self.seconds,
        }


def probe_codes(train: TokenDataset, validation: TokenDataset, device: str) -> Probed:
    """Train the tiny prior on codes, and score it on others. On a CPU, equal codes give equal figures.

    Args:
        train: rows that are drawn in random order, again where there are fewer than ``STEPS * ROWS``.
        validation: of the same tokenizer; a fixed choice of ``MOST_SCORED`` rows.
        device: cpu, cuda, ...
    """
    began = time.perf_counter()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        loss = PriorLoss(PriorModel(MODEL, train.spec)).to(device).train()
    optimizer = torch.optim.AdamW(loss.parameters(), lr=RATE, betas=BETAS, weight_decay=DECAY)
    order = DataOrder(len(train), seed=0)
    for step in tqdm(range(STEPS), desc="probing the codes", unit="step", delay=2, leave=False):
        for each in optimizer.param_groups:
            each["lr"] = RATE * _share_of_rate(step)
        rows, _ = order.at(np.arange(step * ROWS, (step + 1) * ROWS))
        value, _ = loss(*_batch(train, rows, loss.model.null_class, device))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    seconds = time.perf_counter() - began
    return Probed(score_prior(loss.model, validation, limit=MOST_SCORED), len(train), seconds)


def _share_of_rate(step: int) -> float:
    if step < WARM_UP:
        return (step + 1) / WARM_UP
    return 0.5 + 0.5 * math.cos(math.pi * (step - WARM_UP) / (STEPS - WARM_UP))


def _batch(codes: TokenDataset, rows: np.ndarray, null_class: int, device: str) -> tuple[Any, ...]:
    """Arguments of ``PriorLoss``: codes, classes, no orders, grids."""
    tokens_BT = np.asarray(codes.codes_NT[rows]).astype(np.int64)
    known = codes.labels_N is not None and bool(codes.spec.class_names)
    labels_B = np.asarray(codes.labels_N)[rows] if known else np.full(len(rows), null_class)
    grids_B = np.asarray(codes.grids_N)[rows] if codes.spec.n_grids > 1 else None
    arrays = (tokens_BT, labels_B, None, grids_B)
    return tuple(None if each is None else torch.from_numpy(each.astype(np.int64)).to(device) for each in arrays)


def probe_run(folder: RunFolder, device: str) -> Probed:
    """Probe a run's codes and write ``evaluation/probe.json``.

    Raises:
        CheckpointError: the run has no codes yet.
    """
    there, fix = folder.codes.is_dir(), "run tessera encode first"
    CheckpointError.unless(there, "the run has no codes yet", field=str(folder.codes), fix=fix)
    access = folder.load_recipe().machine.tokens
    train, validation = (TokenDataset(folder.codes, name, access) for name in ("train", "validation"))
    found = probe_codes(train, validation, device)
    durable.replace_file(folder.root / "evaluation" / "probe.json", json.dumps(found.as_json(), indent=1).encode())
    return found
