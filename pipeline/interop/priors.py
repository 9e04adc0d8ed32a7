"""Import plans of priors and generators, and their folders."""

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
from foundation.images.class_names import require_tidy
from pipeline.generation.files import INDEX, GeneratorIndex
from pipeline.interop.plan import Origin, Plan
from pipeline.interop.tokenizer_plan import TokenizerPlan
from pipeline.runs.recipe import adopt_tokenizer
from stage1_tokenizer.tokenizer import TokenizerModel
from stage2_prior.config import PriorConfig
from stage2_prior.prior import PriorModel


@dataclass(frozen=True, kw_only=True)
class PriorPlan(Plan):
    """Import plan of a prior.

    Attributes:
        index: default sampling.
        tokenizer: tokenizer of the prior's codes and its folder; None if unknown.
    """

    model: PriorModel
    index: GeneratorIndex
    tokenizer: tuple[TokenizerModel, Path] | None

    def save(self, model: nn.Module, folder: Path) -> None:
        """Fill an empty folder with the prior, or with a generator if the tokenizer is known."""
        assert isinstance(model, PriorModel)
        if self.tokenizer is None:
            model.save(folder)
            return
        tokenizer, source = self.tokenizer
        adopt_tokenizer(source, folder / "tokenizer", tokenizer.config, tokenizer.preprocess)
        _save_prior(model, self.index, folder)


class Pair(nn.Module):
    """Tokenizer and prior of one file."""

    def __init__(self, tokenizer: TokenizerModel, prior: PriorModel) -> None:
        super().__init__()
        self.tokenizer, self.prior = tokenizer, prior


@dataclass(frozen=True, kw_only=True)
class GeneratorPlan(Plan):
    """Import plan of a tokenizer and a prior in one file.

    Attributes:
        tokenizer: plan of the tokenizer.
        index: default sampling.
    """

    model: Pair
    tokenizer: TokenizerPlan
    index: GeneratorIndex

    def save(self, model: nn.Module, folder: Path) -> None:
        """Fill an empty folder with the generator, the prior bound to the tokenizer's fingerprint."""
        assert isinstance(model, Pair)
        (folder / "tokenizer").mkdir()
        self.tokenizer.save(model.tokenizer, folder / "tokenizer")
        fingerprint = model.tokenizer.fingerprint
        model.prior.spec = dataclasses.replace(model.prior.spec, fingerprint=fingerprint)
        _save_prior(model.prior, self.index, folder)


def build_prior(fields: Mapping[str, Any], spec: CodeSpec) -> PriorModel:
    """Build a prior on the meta device from fields of ``PriorConfig``.

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
        parts: our names in a block -> the system's; several are concatenated along their first axis.
        named: block number and the system's name in a block -> full name.
    """
    return {
        f"blocks.{i}.{own}": Origin(tuple(named(i, key) for key in keys), _concatenate)
        for i in range(n_layers)
        for own, keys in parts.items()
    }


def _concatenate(*tensors: torch.Tensor) -> torch.Tensor:
    return torch.cat(tensors)


def with_zero_rows(table_RE: torch.Tensor, n_rows: int) -> torch.Tensor:
    """First ``n_rows`` rows, padded with zeros."""
    kept = table_RE[:n_rows]
    return torch.cat([kept, kept.new_zeros(n_rows - len(kept), kept.shape[1])])


def class_names(path: Path | None, n_classes: int) -> tuple[str, ...]:
    """Read class names from a file; without a file, the numbers.

    Raises:
        ConfigError: an unreadable file, another number of names, or a name for two classes.
        DataError: white space around a name.
    """
    if path is None:
        return tuple(str(i) for i in range(n_classes))
    try:
        names = tuple(path.read_text(encoding="utf-8-sig").rstrip("\n").split("\n"))
    except (OSError, UnicodeDecodeError) as error:
        fix = "give a text file with a class name a line"
        raise ConfigError(f"cannot be read: {str(error)[:300]}", field=f"--class-names {path}", fix=fix) from error
    require_tidy(names, f"--class-names {path}", [f"line {i}" for i in range(1, len(names) + 1)])
    twice = next((name for name in names if names.count(name) > 1), None)
    if len(names) != n_classes or twice is not None:
        found = f"{len(names)} names" if twice is None else f"{twice!r} twice"
        expected = f"{n_classes} different names, a name a line"
        raise ConfigError("does not fit the classes", field=f"--class-names {path}", found=found, expected=expected)
    return names


def _save_prior(prior: PriorModel, index: GeneratorIndex, folder: Path) -> None:
    (folder / "prior").mkdir()
    prior.save(folder / "prior")
    (folder / INDEX).write_bytes(index.text().encode())
