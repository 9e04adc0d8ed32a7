"""Import: open, recognise, plan, account for every name, read the values, publish; or refuse and write nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from foundation.errors import ConfigError, StorageError
from foundation.storage import durable
from pipeline.importing.checkpoint import open_checkpoint
from pipeline.importing.plan import Account, account_for, load_values
from pipeline.importing.registry import PRIOR_OPTIONS, Importer, find_importer
from pipeline.importing.tokenizer_plan import Options

ORIGIN = "origin.json"


@dataclass(frozen=True)
class Imported:
    """What an import did.

    Attributes:
        format: of the checkpoint.
        makes: tokenizer, prior or generator.
        notes: what was found or assumed.
        account: where every name went.
    """

    format: str
    makes: str
    notes: tuple[str, ...]
    account: Account


def import_published(files: Sequence[Path], folder: Path, format_name: str | None, options: Options) -> Imported:
    """Turn published files into one of our model folders.

    Args:
        files: one file, or the two of a system that publishes two.
        folder: must not exist.
        format_name: one of ``registry.formats()``; None recognises it by the tensors' names.
        options: what else the command line says.

    Raises:
        CheckpointError: a file that is damaged, of no known format, or whose tensors do not fit.
        ConfigError: an unknown format, or an argument that is missing or does not fit the tensors.
        StorageError: the folder exists, or cannot be written.
    """
    if folder.exists():
        raise StorageError("exists already and is never overwritten", field=str(folder), fix="choose another folder")
    checkpoint = open_checkpoint(files)
    importer = find_importer(checkpoint, format_name)
    _require_meaning(importer, options)
    plan = importer.plan(checkpoint, options)
    account = account_for(plan, importer.format)
    model = load_values(plan)
    origin = {
        "format": importer.format,
        "files": [{"name": path.name, "sha256": durable.file_sha256(path)} for path in files],
        "notes": list(plan.notes),
        "left_out": {reason: len(keys) for reason, keys in account.ignored.items()},
    }

    def fill(temporary: Path) -> None:
        plan.save(model, temporary)
        (temporary / ORIGIN).write_text(json.dumps(origin, indent=1))

    durable.publish_folder(folder, fill)
    return Imported(importer.format, importer.makes, tuple(plan.notes), account)


def _require_meaning(importer: Importer, options: Options) -> None:
    for name in PRIOR_OPTIONS:
        given = getattr(options, name)
        if given is not None and name not in importer.takes:
            raise ConfigError(f"means nothing for a {importer.makes} of the format {importer.format}",
                              field=f"--{name}", found=str(given), fix="leave it out")  # fmt: skip
