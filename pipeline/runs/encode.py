"""What one process is asked to do in an export, and the export of a run folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch

from foundation.codes.dataset import read_manifest
from foundation.errors import ContractError, DataError
from foundation.images.image_set import DataConfig, open_splits
from pipeline.encoding.export import Export, is_encoded, require_enough, retry_failed
from pipeline.encoding.plan import EncodeConfig
from pipeline.runs.folder import RunFolder
from pipeline.work_sharing import Part


@dataclass(frozen=True, kw_only=True)
class ExportJob:
    """What one process does.

    Attributes:
        part: the files it begins with.
        wait: stay until the dataset is finished.
        retry: encode the images that failed again.
        max_bad: share of images that may fail.
        quiet: without a progress bar.
    """

    part: Part = field(default_factory=Part)
    wait: bool = True
    retry: bool = False
    max_bad: float
    quiet: bool = False


def open_export(run: str | Path, device: str = "cpu") -> Export:
    """Take part in the export of a run folder whose tokenizer is frozen.

    Args:
        run: the run folder.
        device: where to encode.

    Raises:
        CheckpointError, DataError, ContractError, StorageError: as ``export_of`` and ``RunFolder.load_recipe``.
    """
    folder = RunFolder(Path(run))
    recipe = folder.load_recipe()
    return export_of(folder, recipe.data, recipe.encode, torch.device(device))


def export_of(folder: RunFolder, data: DataConfig, config: EncodeConfig, device: torch.device) -> Export:
    """The export of the images that ``data`` names with a run's tokenizer.

    Raises:
        DataError: there is no tokenizer yet, or nothing to read.
        ContractError: the images are to be preprocessed otherwise than the tokenizer expects; or as ``Export``.
        StorageError: as ``Export``.
    """
    if not folder.tokenizer.exists():
        raise DataError("there is no tokenizer yet", field=str(folder.tokenizer),
                        fix="run tessera train-tokenizer first")  # fmt: skip
    export = Export(folder.tokenizer, open_splits(data), folder.codes, config, device)
    if export.tokenizer.preprocess != data.preprocess:
        raise ContractError("images are not preprocessed as the tokenizer expects", field="data.preprocess",
                            found=data.preprocess, expected=export.tokenizer.preprocess)  # fmt: skip
    return export


def encode_run(folder: RunFolder, data: DataConfig, config: EncodeConfig, device: torch.device, job: ExportJob) -> bool:
    """Take part in a run's export.

    Returns:
        Whether the dataset is finished; if not, other processes are still at it.

    Raises:
        DataError: it is finished, and more images failed than ``job.max_bad`` allows; or as ``export_of``.
        Interrupted: SIGTERM or SIGINT came.
        ContractError, StorageError: as ``export_of``.
    """
    if job.retry or not is_encoded(folder.codes):
        export = export_of(folder, data, config, device)
        try:
            if job.retry:
                finished = retry_failed(export, job.part, wait=job.wait)
            else:
                finished = export.take_part(job.part, wait=job.wait, quiet=job.quiet)
        finally:
            export.close()
        if not finished:
            return False
    require_enough(read_manifest(folder.codes), job.max_bad)
    return True
