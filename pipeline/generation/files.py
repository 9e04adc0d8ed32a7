"""Files of a generator: its folder or model repository, and the ``model_index.json`` there."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foundation.arguments import as_path, require_type
from foundation.config import from_dict, to_dict
from foundation.errors import CheckpointError, ConfigError, hub_refusals, one_line
from foundation.storage import durable
from foundation.storage.serialization import read_json
from stage2_prior.decoding.sampling import SamplingConfig

INDEX = "model_index.json"
_CONTENT = [INDEX, "tokenizer/*", "prior/*"]
_FIX = "run tessera run again: it writes the file again"


@dataclass(frozen=True)
class GeneratorIndex:
    """Content of ``model_index.json``.

    Attributes:
        sampling: the generator's defaults.
        label_dropout: share of examples that the prior was trained on without their class; None where that was not
            recorded.
        tuned_from: the recipe's sampling settings that ``tessera tune-guidance`` replaced; None if it did not.
        has_tokenizer: whether there is one; a prior on codes of unknown origin has none.
        grid_counts: training images of each shape, where there are several; empty else.
    """

    sampling: SamplingConfig
    label_dropout: float | None = None
    tuned_from: SamplingConfig | None = None
    has_tokenizer: bool = True
    grid_counts: tuple[int, ...] = ()

    def text(self) -> str:
        """The file's content."""
        values: dict[str, Any] = {
            "_class_name": "ImageGenerator",
            "tokenizer": ["stage1_tokenizer", "Tokenizer"] if self.has_tokenizer else None,
            "prior": ["stage2_prior", "Prior"],
            "label_dropout": self.label_dropout,
            "sampling": to_dict(self.sampling),
        }
        if self.grid_counts:
            values["grid_counts"] = list(self.grid_counts)
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
        values.get("tokenizer", True) is not None,
        _counts_of(values.get("grid_counts", []), root),
    )


def _counts_of(values: Any, root: Path) -> tuple[int, ...]:
    """Numbers of images as the index has them.

    Raises:
        CheckpointError: something else.
    """
    known = isinstance(values, list) and all(type(each) is int and each >= 0 for each in values)
    field = f"{root / INDEX}: grid_counts"
    CheckpointError.unless(known and (not values or sum(values) > 0), "is damaged", field=field, found=values, fix=_FIX)
    return tuple(values)


def write_recipe_index(
    root: Path,
    sampling: SamplingConfig,
    label_dropout: float,
    *,
    has_tokenizer: bool = True,
    grid_counts: tuple[int, ...] = (),
) -> None:
    """Write the index of a run's folder from its recipe; settings tuned on top of the same recipe's stay."""
    index = GeneratorIndex(sampling, label_dropout, has_tokenizer=has_tokenizer, grid_counts=grid_counts)
    if (root / INDEX).exists():
        try:
            old = read_index(root)
        except (CheckpointError, ValueError):  # damaged: written again
            old = index
        if old.tuned_from == sampling:
            index = GeneratorIndex(old.sampling, label_dropout, sampling, has_tokenizer, grid_counts)
        if (root / INDEX).read_bytes() == index.text().encode():
            return
    durable.replace_file(root / INDEX, index.text().encode())


def local_folder(folder: str | Path, revision: str | None = None) -> Path:
    """A run folder, or the local copy of a model repository on the hub; only a generator's files are downloaded.

    Args:
        folder: the run folder, or the repository's name, ``owner/name``.
        revision: branch, tag or commit of the repository; None takes the default branch.

    Raises:
        CheckpointError: no such run, an unfinished one, or one of a continuous tokenizer.
        ConfigError: a revision of a folder.
    """
    root = as_path(folder, "folder")
    require_type("revision", revision, (str, type(None)))
    if root.is_dir() and revision is not None:
        raise ConfigError("is for models on the hub", field="revision", found=revision, fix="leave it out for a folder")
    if (root / INDEX).is_file():
        return root
    if root.is_dir():
        fix = "wait for it if it runs now; else run tessera run again, which continues where it stopped"
        raise CheckpointError("the run is not finished: it has no model_index.json", field=str(folder), fix=fix)
    if root.is_absolute() or str(folder).startswith(".") or str(folder).count("/") != 1 or root.parent.is_dir():
        raise CheckpointError("no such folder", field=str(folder), fix="give a run folder, e.g. runs/digits")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(folder), revision=revision, allow_patterns=_CONTENT))
    except Exception as error:  # the client also raises the errors of its transport
        what, fix = f"is neither a folder nor a model on the hub: {one_line(error)}", "check the path, or the network"
        raise CheckpointError(what, field=str(folder), fix=fix) from error


def upload_folder(folder: Path, repo_id: str, *, private: bool | None, token: str | None, message: str) -> str:
    """Upload a generator's folder to a model repository on the hub, which is made if there is none.

    Returns:
        The commit's address.

    Raises:
        StorageError: the hub refused, or cannot be reached.
    """
    from huggingface_hub import HfApi

    with hub_refusals(repo_id):
        api = HfApi(token=token)
        api.create_repo(repo_id, private=private, exist_ok=True)
        patterns = [*_CONTENT, "README.md", "*.png"]
        commit = api.upload_folder(repo_id=repo_id, folder_path=folder, allow_patterns=patterns, commit_message=message)
        return str(commit)


def upload_space(folder: Path, repo_id: str, *, private: bool | None, message: str) -> str:
    """Upload a folder to a Space on the hub that runs Gradio, which is made if there is none.

    Returns:
        The commit's address.

    Raises:
        StorageError: the hub refused, or cannot be reached.
    """
    from huggingface_hub import HfApi

    with hub_refusals(repo_id):
        api = HfApi()
        api.create_repo(repo_id, repo_type="space", space_sdk="gradio", private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=repo_id, repo_type="space", folder_path=folder, commit_message=message))
