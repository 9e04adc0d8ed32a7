"""The plans of priors, and the folders that they fill: a prior alone, or a generator with its tokenizer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from foundation.codes.spec import CodeSpec
from foundation.config import from_dict
from foundation.errors import ConfigError
from pipeline.generation.files import INDEX, GeneratorIndex
from pipeline.interop.checkpoint import Checkpoint
from pipeline.interop.plan import Origin, Rule
from pipeline.interop.tokenizer_plan import TokenizerPlan
from pipeline.runs.recipe import adopt_tokenizer
from stage1_tokenizer.tokenizer import TokenizerModel
from stage2_prior.config import PriorConfig
from stage2_prior.decoding.sampling import SamplingConfig
from stage2_prior.prior import PriorModel


@dataclass(frozen=True, kw_only=True)
class PriorPlan:
    """See ``plan.Plan``; a prior whose tokenizer, if it is known, is a folder of ours.

    Attributes:
        checkpoint: the file.
        model: our prior, without values.
        origins: what its tensors are made of.
        rules: what is left out.
        notes: what was found or assumed.
        index: how images are drawn by default.
        tokenizer: the tokenizer whose codes it draws, and where it lies; None where it is not known.
    """

    checkpoint: Checkpoint
    model: PriorModel
    origins: Mapping[str, Origin]
    rules: tuple[Rule, ...]
    notes: tuple[str, ...]
    index: GeneratorIndex
    tokenizer: tuple[TokenizerModel, Path] | None

    def save(self, model: nn.Module, folder: Path) -> None:
        """Fill an empty folder with the prior or, if its tokenizer is known, with a generator."""
        assert isinstance(model, PriorModel)
        if self.tokenizer is None:
            model.save(folder)
            return
        tokenizer, source = self.tokenizer
        adopt_tokenizer(source, folder / "tokenizer", tokenizer.config, tokenizer.preprocess)
        _save_prior(model, self.index, folder)


class Pair(nn.Module):
    """A tokenizer and a prior from one file.

    Args:
        tokenizer, prior: without values.
    """

    def __init__(self, tokenizer: TokenizerModel, prior: PriorModel) -> None:
        super().__init__()
        self.tokenizer, self.prior = tokenizer, prior


@dataclass(frozen=True, kw_only=True)
class GeneratorPlan:
    """See ``plan.Plan``; a tokenizer and a prior in one file.

    Attributes:
        checkpoint: the file.
        tokenizer: the plan of its part of the file.
        model: both, without values.
        origins: what their tensors are made of, by the file's names.
        rules: what is left out.
        notes: what was found or assumed.
        index: how images are drawn by default.
    """

    checkpoint: Checkpoint
    tokenizer: TokenizerPlan
    model: Pair
    origins: Mapping[str, Origin]
    rules: tuple[Rule, ...]
    notes: tuple[str, ...]
    index: GeneratorIndex

    def save(self, model: nn.Module, folder: Path) -> None:
        """Fill an empty folder with the generator; the prior is bound to the tokenizer's weights now."""
        assert isinstance(model, Pair)
        (folder / "tokenizer").mkdir()
        self.tokenizer.save(model.tokenizer, folder / "tokenizer")
        fingerprint = model.tokenizer.fingerprint
        model.prior.spec = dataclasses.replace(model.prior.spec, fingerprint=fingerprint)
        _save_prior(model.prior, self.index, folder)


def build_prior(fields: Mapping[str, Any], spec: CodeSpec) -> PriorModel:
    """Our prior without values, from fields of ``PriorConfig``.

    Raises:
        ConfigError: a value that cannot work.
    """
    config = from_dict(PriorConfig, {"qk_norm": False, "dropout": 0.0, **fields}, "the model")
    with torch.device("meta"):
        return PriorModel(config, spec)


def block_origins(
    n_layers: int, parts: Mapping[str, tuple[str, ...]], named: Callable[[int, str], str]
) -> dict[str, Origin]:
    """Origins of the tensors of all blocks.

    Args:
        n_layers: number of blocks.
        parts: our names in a block -> theirs; several are joined along their first axis.
        named: block number and their name in a block -> their whole name.
    """
    return {
        f"blocks.{i}.{own}": Origin(tuple(named(i, key) for key in keys), joined)
        for i in range(n_layers)
        for own, keys in parts.items()
    }


def joined(*tensors: torch.Tensor) -> torch.Tensor:
    """One above the other."""
    return torch.cat(tensors)


def with_zero_rows(table_RE: torch.Tensor, n_rows: int) -> torch.Tensor:
    """The first ``n_rows`` rows; rows of zeros where there are fewer."""
    kept = table_RE[:n_rows]
    return torch.cat([kept, kept.new_zeros(n_rows - len(kept), kept.shape[1])])


def class_names(path: Path | None, n_classes: int) -> tuple[str, ...]:
    """The names in a file, or the numbers.

    Raises:
        ConfigError: a file that cannot be read, another number of names, or one name for two classes.
    """
    if path is None:
        return tuple(str(i) for i in range(n_classes))
    try:
        names = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot be read: {str(error)[:300]}", field=f"--class_names {path}",
                          fix="give a text file with a class name a line") from error  # fmt: skip
    twice = next((name for name in names if names.count(name) > 1), None)
    if len(names) != n_classes or twice is not None:
        found = f"{len(names)} names" if twice is None else f"{twice!r} twice"
        raise ConfigError("does not name the classes", field=f"--class_names {path}", found=found,
                          expected=f"{n_classes} different names, a name a line")  # fmt: skip
    return names


def drawn_plainly(label_dropout: float) -> GeneratorIndex:
    """Temperature 1, no filter, no guidance."""
    return GeneratorIndex(SamplingConfig(), label_dropout)


def _save_prior(prior: PriorModel, index: GeneratorIndex, folder: Path) -> None:
    (folder / "prior").mkdir()
    prior.save(folder / "prior")
    (folder / INDEX).write_text(index.text())
