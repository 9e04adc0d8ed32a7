"""The files that make a folder a generator: where it is, and what ``model_index.json`` says."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foundation.config import from_dict, to_dict
from foundation.errors import CheckpointError
from foundation.storage import durable
from foundation.storage.serialization import read_json
from stage2_prior.decoding.sampling import SamplingConfig

INDEX = "model_index.json"
_FIX = "run tessera run again: it is made anew"


@dataclass(frozen=True)
class GeneratorIndex:
    """What ``model_index.json`` says.

    Attributes:
        sampling: the generator's defaults.
        label_dropout: share of examples that the prior was trained on without their class; None where that was not
            recorded.
        tuned_from: the recipe's sampling settings that ``tessera tune-guidance`` replaced; None if it did not.
    """

    sampling: SamplingConfig
    label_dropout: float | None = None
    tuned_from: SamplingConfig | None = None

    def text(self) -> str:
        """The file's content."""
        values: dict[str, Any] = {
            "_class_name": "ImageGenerator",
            "tokenizer": ["stage1_tokenizer", "Tokenizer"],
            "prior": ["stage2_prior", "Prior"],
            "label_dropout": self.label_dropout,
            "sampling": to_dict(self.sampling),
        }
        if self.tuned_from is not None:
            values["tuned_from"] = to_dict(self.tuned_from)
        return json.dumps(values, indent=1)


def read_index(root: Path) -> GeneratorIndex:
    """The index of a folder.

    Raises:
        CheckpointError: it is missing or damaged.
        ConfigError: a value in it that cannot work.
    """
    values = read_json(root / INDEX, ("sampling",), fix=_FIX)
    dropout, tuned_from = values.get("label_dropout"), values.get("tuned_from")
    if dropout is not None and not isinstance(dropout, (int, float)):
        raise CheckpointError("is damaged", field=f"{root / INDEX}: label_dropout", found=repr(dropout), fix=_FIX)
    return GeneratorIndex(
        from_dict(SamplingConfig, values["sampling"], "sampling"),
        dropout,
        None if tuned_from is None else from_dict(SamplingConfig, tuned_from, "tuned_from"),
    )


def write_recipe_index(root: Path, sampling: SamplingConfig, label_dropout: float) -> None:
    """Make the index of a run's folder what its recipe says; settings tuned on top of the same recipe's stay."""
    index = GeneratorIndex(sampling, label_dropout)
    if (root / INDEX).exists():
        try:
            old = read_index(root)
        except (CheckpointError, ValueError):  # damaged: it is made anew
            old = index
        if old.tuned_from == sampling:
            index = GeneratorIndex(old.sampling, label_dropout, sampling)
        if (root / INDEX).read_bytes() == index.text().encode():
            return
    durable.replace_file(root / INDEX, index.text().encode())


def local_folder(folder: str | Path) -> Path:
    """A run folder, or the local copy of a model repository on the hub.

    Raises:
        CheckpointError: no such run, or an unfinished one.
    """
    root = Path(folder)
    if (root / INDEX).is_file():
        return root
    if root.is_dir():
        raise CheckpointError("the run is not finished: it has no model_index.json", field=str(folder),
                              fix="run tessera run again; it continues where it stopped")  # fmt: skip
    if root.is_absolute() or str(folder).startswith(".") or str(folder).count("/") != 1 or root.parent.is_dir():
        raise CheckpointError("no such folder", field=str(folder), fix="give a run folder, e.g. runs/digits")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        return Path(snapshot_download(str(folder)))
    except (OSError, HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise CheckpointError(f"is neither a folder nor a model on the hub: {error}", field=str(folder)) from error
