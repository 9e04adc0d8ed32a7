"""Likelihood of a prior on a split of a token dataset, beside count models."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from foundation.codes.dataset import TokenDataset
from foundation.codes.manifest import read_manifest
from foundation.codes.spec import CodeSpec, require_same_codes
from foundation.config import digest
from foundation.errors import CheckpointError
from foundation.images.buckets import grouped
from foundation.storage import durable
from foundation.storage.serialization import REPAIR, read_json
from foundation.training.shares import Share
from pipeline.engines.stream import Engine, LocalEngine, Movable, Step, Stream
from pipeline.runs.folder import RunFolder
from stage2_prior.count_models import NeighbourModel, UnigramModel, mean_bits
from stage2_prior.evaluate import PriorTally, ScoredRows, nats_of
from stage2_prior.prior import PriorModel
from stage2_prior.scores import PriorScores

_CLASSES_SHOWN = 3
_SHADES, _WIDEST_MAP = ".:-=+*#%@", 32


@dataclass(frozen=True)
class PriorEvaluation:
    """Result of ``evaluate_prior``.

    Attributes:
        split: split of the token dataset.
        scores: scores of the prior.
        unigram_bits: bits per code of the unigram model of the training codes; of latents as of ``PriorScores``.
        neighbour_bits: bits per code of the neighbour model of the training codes; None of latents.
        n_counted: rows that the neighbour model counted.
        random_bits: of a prior of order any, bits per code with a random order for each image; None of the others.
    """

    split: str
    scores: PriorScores
    unigram_bits: float
    neighbour_bits: float | None
    n_counted: int
    random_bits: float | None = None

    def metrics(self) -> dict[str, float]:
        """Log values."""
        return {
            "n_images": float(self.scores.n_images),
            **self.scores.metrics(),
            **({"bits_per_value": self.scores.bits_per_value} if self.scores.spec.knows_images else {}),
            "count_unigram_bits_per_code": self.unigram_bits,
            **({} if self.neighbour_bits is None else {"count_neighbour_bits_per_code": self.neighbour_bits}),
            **({} if self.random_bits is None else {"random_order_bits_per_code": self.random_bits}),
        }

    @property
    def notes(self) -> list[str]:
        """Conditions for comparing these figures with others, a sentence each."""
        if self.scores.spec.latents:
            return [
                "densities of latents, in bits per value: they depend on the latents' scale, may be negative, and "
                "compare priors of one tokenizer alone"
            ]
        notes = [
            "likelihoods of codes, without the tokenizer's loss: they compare priors of one tokenizer, and bits per "
            "pixel dimension are no likelihood of pixels",
            f"the count models were fitted on the training codes, the neighbour model on {self.n_counted:,} rows",
        ]
        if self.scores.is_estimate:
            notes.append("a masked prior: the mean over random orders, estimated with one mask for each image")
        if self.split == "train":
            notes.append("the prior and the count models have seen these codes: figures of memory, not prediction")
        return notes

    def as_json(self) -> dict[str, Any]:
        """All figures as plain values, also by position (slot, then rows of the grid) and by class."""
        return {
            "split": self.split,
            "metrics": self.metrics(),
            "bits_by_place": [
                {"level": slot.level, "depth": slot.depth, "bits": bits_HW.tolist()}
                for slot, bits_HW in self.scores.bits_by_place()
            ],
            "bits_by_class": [
                {"class": each.name, "images": each.n_images, "bits_per_code": each.bits_per_code}
                for each in self.scores.classes
            ],
            "notes": self.notes,
        }

    def table(self) -> str:
        """Format figures and notes as text."""
        scores, n_codes, knows_images = self.scores, self.scores.spec.n_codes, self.scores.spec.knows_images
        lines = [
            f"Likelihood of the codes of {scores.n_images:,} images ({self.split}), {n_codes:,} codes each",
            f"{'':<26}{'bits per code':>14}{'per image':>13}{'  per pixel dimension' if knows_images else ''}",
        ]
        shares = scores.bits_per_value / scores.bits_per_code if scores.bits_per_code else 0.0
        for label, bits in self._rows():
            per_value = f"{bits * shares:>21.4f}" if knows_images else ""
            lines.append(f"{label:<26}{bits:>14.4f}{bits * n_codes:>13,.1f}{per_value}")
        found = [*lines, *self._by_slot(), *self._by_class(), *self._by_place()]
        return "\n".join([*found, "Notes", *(f"- {note}" for note in self.notes)])

    def _rows(self) -> list[tuple[str, float]]:
        """Bits per code of the prior and of what it is compared with."""
        rows = [("prior", self.scores.bits_per_code)]
        if self.random_bits is not None:
            rows.append(("prior, in random orders", self.random_bits))
        if self.neighbour_bits is None:
            return [*rows, ("a Gaussian each channel", self.unigram_bits)]
        counted = [("neighbours, counted", self.neighbour_bits), ("frequencies, counted", self.unigram_bits)]
        return [*rows, *counted, ("uniform", self.scores.uniform_bits)]

    def _by_slot(self) -> list[str]:
        if grids := self.scores.grids:
            sides = {grid: " x ".join(map(str, self.scores.spec.grids[grid])) for grid in grids}
            rows = ((sides[grid], each.nats_T.mean() / math.log(2)) for grid, each in grids.items())
            return [f"{f'  grids of {name} codes':<26}{bits:>14.4f}" for name, bits in rows]
        if len(self.scores.spec.slots) == 1 or self.scores.spec.latents:
            return []
        return [
            f"{f'  grid {slot.level + 1}, depth {slot.depth + 1}':<26}{float(bits_HW.mean()):>14.4f}"
            for slot, bits_HW in self.scores.bits_by_place()
        ]

    def _by_place(self) -> list[str]:
        """Draw the bits at each place of each slot's grid: a character of ``_SHADES`` for a code, darker for more."""
        lines = []
        for slot, bits_HW in self.scores.bits_by_place():
            low, high = float(bits_HW.min()), float(bits_HW.max())
            if max(bits_HW.shape) > _WIDEST_MAP or high == low:
                continue
            name = f", grid {slot.level + 1}, depth {slot.depth + 1}" if len(self.scores.spec.slots) > 1 else ""
            lines.append(f"  bits by place{name}, from {low:.2f} ('{_SHADES[0]}') to {high:.2f} ('{_SHADES[-1]}')")
            levels_HW = ((bits_HW - low) / (high - low) * len(_SHADES)).astype(int).clip(max=len(_SHADES) - 1)
            lines += ["    " + "".join(_SHADES[level] * 2 for level in row) for row in levels_HW]
        return lines

    def _by_class(self) -> list[str]:
        """Format the classes of most and least bits."""
        ordered = sorted(self.scores.classes, key=lambda each: -each.bits_per_code)
        if len(ordered) < 2:
            return []
        most, least = ordered[:_CLASSES_SHOWN], ordered[-_CLASSES_SHOWN:][::-1]
        return [
            f"{label:<26}{', '.join(f'{each.name} ({each.bits_per_code:.3f})' for each in classes)}"
            for label, classes in (("  hardest classes", most), ("  easiest classes", least))
        ]


def evaluate_prior(
    prior: PriorModel,
    codes: TokenDataset,
    train: TokenDataset,
    split: str,
    *,
    batch_size: int = 256,
    engine: Engine | None = None,
) -> PriorEvaluation:
    """Score a prior and two count models of the training codes on every row of a split.

    Args:
        prior: on any device.
        codes: rows to score.
        train: training split.
        split: name of ``codes``.
        batch_size: images in a batch.
        engine: scores the batches; None scores them in this process.

    Raises:
        ContractError: the prior was trained on other codes.
    """
    for dataset in (codes, train):
        require_same_codes(prior.spec, dataset.spec, owner="the prior", other="the token dataset")
    engine = engine or LocalEngine()
    scores, random_bits = _scores(prior, codes, batch_size, engine), None
    if prior.config.order == "any":
        random_bits = _scores(prior, codes, batch_size, engine, "random").bits_per_code
    if prior.spec.latents:
        return PriorEvaluation(split, scores, scores.unigram_bits, None, 0, random_bits)
    counted = [_count(*rows, scores) for rows in _of_one_shape(codes, train)]
    shares = np.array([each.n_images for each in counted]) / len(codes)
    return PriorEvaluation(
        split=split,
        scores=scores,
        unigram_bits=float(shares @ [each.unigram_bits for each in counted]),
        neighbour_bits=float(shares @ [each.neighbour_bits for each in counted]),
        n_counted=sum(each.n_counted for each in counted),
        random_bits=random_bits,
    )


def _scores(
    prior: PriorModel, codes: TokenDataset, batch_size: int, engine: Engine, order: str | None = None
) -> PriorScores:
    rows = ScoredRows.of(codes, prior.spec, batch_size)
    tally, chunks = PriorTally(rows, prior), Share().chunks(len(rows.rows_N), batch_size)
    device = prior.head.weight.device.type
    scorer = functools.partial(_open_scorer, Movable(prior.eval()), order)
    stream = Stream("scoring the prior", scorer, device=device)
    results = engine.results(stream, ((number, rows.batch(chunk)) for number, chunk in enumerate(chunks)))
    for number, nats_BT in tqdm(results, total=len(chunks), desc=stream.what, unit="batch", delay=2, leave=False):
        tally.add(chunks[number], rows.batch(chunks[number]).codes_BT, nats_BT)
    return tally.scores()


def _open_scorer(prior: Movable[PriorModel], order: str | None) -> Step:
    """A ``CodeBatch`` => (B, T) nats."""
    return functools.partial(nats_of, prior.content, order=order)


class _Counted(NamedTuple):
    """What count models of images of one shape need for the rows to score, bits per code."""

    n_images: int
    unigram_bits: float
    neighbour_bits: float
    n_counted: int


def _of_one_shape(codes: TokenDataset, train: TokenDataset) -> Iterator[tuple[np.ndarray, np.ndarray, CodeSpec]]:
    """Rows to score and rows to count, with their specification, for each shape of the images to score."""
    if codes.grids_N is None or train.grids_N is None:
        yield codes.codes_NT, train.codes_NT, codes.spec
        return
    counted = dict(grouped(np.asarray(train.grids_N)))
    for grid, rows in grouped(np.asarray(codes.grids_N)):
        yield codes.codes_NT[rows], train.codes_NT[counted.get(grid, rows[:0])], codes.spec.of_grid(grid)


def _count(codes_NT: np.ndarray, train_NT: np.ndarray, spec: CodeSpec, scores: PriorScores) -> _Counted:
    if not len(train_NT):  # a shape that no training image has
        return _Counted(len(codes_NT), scores.uniform_bits, scores.uniform_bits, 0)
    neighbour = NeighbourModel.fit(train_NT, spec)
    unigram_bits = mean_bits(UnigramModel.fit(train_NT, spec), codes_NT)
    return _Counted(len(codes_NT), unigram_bits, mean_bits(neighbour, codes_NT), neighbour.n_rows)


def evaluate_run_prior(folder: RunFolder, split: str, device: str, engine: Engine | None = None) -> PriorEvaluation:
    """Evaluate a run's prior on the run's codes and write ``evaluation/prior-SPLIT.json``.

    Raises:
        CheckpointError: the run has no prior yet, or a damaged one.
        DataError: no such split.
    """
    if not folder.prior.is_dir():
        raise CheckpointError("the run has no prior yet", field=str(folder.prior), fix="run tessera train-prior first")
    access = folder.load_recipe().machine.tokens
    codes = {name: TokenDataset(folder.codes, name, access) for name in {"train", split}}
    prior = PriorModel.load(folder.prior).to(device)
    evaluation = evaluate_prior(prior, codes[split], codes["train"], split, engine=engine)
    path = _kept(folder, split)
    found = {"of": _scored_content(folder), **evaluation.as_json()}
    durable.replace_file(path, json.dumps(found, indent=1).encode())
    return evaluation


def kept_evaluation(folder: RunFolder, split: str, device: str) -> dict[str, Any]:
    """``PriorEvaluation.as_json`` of a run, read from ``evaluation/prior-SPLIT.json`` if weights and codes agree.

    Raises:
        CheckpointError, DataError: see ``evaluate_run_prior``.
    """
    try:
        kept = read_json(_kept(folder, split), ("of", "metrics", "bits_by_place", "bits_by_class"), fix="")
    except CheckpointError:
        kept = {}
    if kept.get("of") == _scored_content(folder):
        return kept
    return evaluate_run_prior(folder, split, device).as_json()


def _kept(folder: RunFolder, split: str) -> Path:
    return folder.root / "evaluation" / f"prior-{split}.json"


def _scored_content(folder: RunFolder) -> str:
    """Hash of the prior's weights and the codes."""
    config = read_json(folder.prior / "config.json", ("weights_sha256",), fix=REPAIR)
    return digest({"prior": config["weights_sha256"], "codes": read_manifest(folder.codes)})
