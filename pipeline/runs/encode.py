"""Encoding stage of a run: one process's part in the export of its codes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from foundation.codes.fetched import codes_place, fetch_run_codes
from foundation.codes.manifest import read_manifest
from foundation.errors import ConfigError, ContractError, DataError
from foundation.hardware import usable_device
from foundation.paths import is_remote, require_no_secret
from foundation.storage import durable
from foundation.storage.serialization import json_text
from pipeline.encoding.accounts import require_enough
from pipeline.encoding.card import refresh_header
from pipeline.encoding.export import Export, is_encoded, retry_failed
from pipeline.encoding.streamed_export import encode_on
from pipeline.engines.stream import Engine
from pipeline.runs.folder import RunFolder
from pipeline.runs.found_images import found_in
from pipeline.runs.images import listing_of_plan, open_run_sources
from pipeline.runs.recipe import Recipe
from pipeline.work_sharing import Part

Say = Callable[[Mapping[str, Any], str], None]


@dataclass(frozen=True, kw_only=True)
class ExportJob:
    """Settings of one process.

    Attributes:
        part: share of the files to begin with.
        wait: stay until the dataset is finished.
        retry: encode failed images again.
        max_bad: share of images that may fail, 0 to 1.
        quiet: no progress bar.
        engine: encodes the batches; None encodes in this process.
    """

    part: Part = field(default_factory=Part)
    wait: bool = True
    retry: bool = False
    max_bad: float
    quiet: bool = False
    engine: Engine | None = None


def open_export(run: str | Path, device: str = "auto") -> Export:
    """Open the export of a run folder with a frozen tokenizer.

    Args:
        run: the run folder.
        device: of the tokenizer: auto, cpu, cuda, cuda:1 ...

    Raises:
        CheckpointError, DataError, ContractError, StorageError: see ``export_of`` and ``RunFolder.load_recipe``.
    """
    folder = RunFolder(Path(run))
    return export_of(folder, folder.load_recipe(), torch.device(usable_device(device, "device")))


def export_of(
    folder: RunFolder, recipe: Recipe, device: torch.device, say: Say = lambda found, changes: None
) -> Export:
    """Open the export of a run's images with its tokenizer.

    Args:
        folder, recipe: of the run.
        device: of the tokenizer.
        say: receives the inventory of a source that is opened for the first time, and what has changed since.

    Raises:
        DataError: no tokenizer yet, or no images.
        ContractError: the recipe has another preprocess than the tokenizer; see also ``Export``.
        StorageError: see ``Export``.
    """
    there, fix = folder.tokenizer.exists(), "run tessera train-tokenizer, which also takes over a given one"
    DataError.unless(there, "there is no tokenizer yet", field=str(folder.tokenizer), fix=fix)
    opened = open_run_sources(folder, recipe)
    export = Export(folder.tokenizer, opened.to_encode(), codes_place(folder.root), recipe.encode, device)
    held = {} if opened.listing else found_in(opened.given, None, recipe.data)
    say(held, opened.changes.sentence())
    if not folder.listing.is_file():
        listing_of_plan(export.plan, held).save(folder.listing)
    found, expected = recipe.data.preprocess, export.tokenizer.preprocess
    if found != expected:
        raise ContractError("differs from the tokenizer's", field="data.preprocess", found=found, expected=expected)
    return export


def keep_codes_at(folder: RunFolder, address: str, field: str) -> None:
    """Note in a run folder that its codes are at an address, which its export and later stages find there.

    Args:
        folder: of the run.
        address: ``s3://bucket/folder`` or another of fsspec.
        field: the option that names it.

    Raises:
        ConfigError: no address, one with a secret, or another than before.
        StorageError: the disk refused.
    """
    ConfigError.unless(is_remote(address), "is no address", field=field, found=address, expected="s3://bucket/folder")
    require_no_secret(address, field)
    path = folder.codes_address
    if not path.is_file():
        durable.replace_file(path, json_text({"address": address.rstrip("/")}))
    there = codes_place(folder.root).shown
    fix = f"leave {field} out, or give another run folder"
    ConfigError.unless(
        there == address.rstrip("/"),
        "is not where the run's codes are",
        field=field,
        found=address,
        expected=there,
        fix=fix,
    )


def encode_run(
    folder: RunFolder,
    recipe: Recipe,
    device: torch.device,
    job: ExportJob,
    say: Say = lambda found, changes: None,
) -> bool:
    """Take part in a run's export.

    Returns:
        Whether the dataset is finished; otherwise other processes still encode.

    Raises:
        DataError: the dataset is finished with more failures than ``job.max_bad``; see also ``export_of``.
        Interrupted: on SIGTERM or SIGINT.
        ContractError, StorageError: see ``export_of``.
        RemoteError: the store of the codes refused.
    """
    if job.retry or not is_encoded(codes_place(folder.root)):
        export = export_of(folder, recipe, device, say)
        if job.engine is not None:
            encode_on(job.engine, export, quiet=job.quiet)
        if job.retry:
            finished = retry_failed(export, job.part, wait=job.wait)
        else:
            finished = export.take_part(job.part, wait=job.wait, quiet=job.quiet or job.engine is not None)
        if not finished:
            return False
    fetch_run_codes(folder.root)
    refresh_header(folder.codes)  # of a dataset that an earlier version finished
    require_enough(read_manifest(folder.codes), job.max_bad)
    return True
