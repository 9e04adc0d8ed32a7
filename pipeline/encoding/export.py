"""An export that any number of processes take part in.

Each process opens the same export: the same images, tokenizer and settings give the same plan, and the first one writes
it down. Then each encodes files that nobody else is encoding, and whoever finds all of them written finishes the
dataset. A process may die or join at any time; a file that is written is never encoded again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from tqdm import tqdm

from foundation.codes.dataset import MANIFEST, read_manifest, write_shard
from foundation.codes.manifest import derive_manifest, publish_manifest
from foundation.codes.spec import CodeSpec
from foundation.errors import ContractError, Interrupted, StorageError
from foundation.images.sources import ImageSource
from foundation.storage import durable
from foundation.storage.durable import is_temporary
from foundation.training.stop_signal import StopSignal
from pipeline.encoding.batch_shape import fastest_batch_size
from pipeline.encoding.card import publish_card
from pipeline.encoding.plan import REMEDY, ExportPlan, PlannedShard, make_plan, require_same_plan
from pipeline.encoding.shard_encoder import ShardEncoder
from pipeline.encoding.verify import require_planned
from pipeline.leases import Leases
from pipeline.recipe import EncodeConfig
from pipeline.work_sharing import Part, SharedWork
from stage1_tokenizer.canary import check_canary
from stage1_tokenizer.tokenizer import TokenizerModel

PLAN = "plan.json"
LEASES = ".leases"


class Export:
    """One process's view of an export.

    Args:
        tokenizer_folder: the frozen tokenizer; a copy goes into the dataset, which then decodes by itself.
        sources: the images of each split; those of ``train`` are encoded in all views.
        folder: the dataset.
        config: batch and file sizes, views.
        device: where to encode.

    Attributes:
        plan: what is encoded.
        encoder: encodes the files of the plan.

    Raises:
        ContractError: the tokenizer is not what it was when it was frozen; or the folder's plan is another one, or it
            holds files that are not part of it.
        StorageError: the disk refused, or is too full.
    """

    def __init__(
        self,
        tokenizer_folder: Path,
        sources: Mapping[str, ImageSource],
        folder: Path,
        config: EncodeConfig,
        device: torch.device,
    ) -> None:
        self.folder, self.tokenizer_folder, self.sources = folder, tokenizer_folder, dict(sources)
        self.tokenizer = TokenizerModel.load(tokenizer_folder).to(device)
        check_canary(self.tokenizer, tokenizer_folder)
        classes = next(iter(self.sources.values())).class_names
        self.spec: CodeSpec = self.tokenizer.spec.with_classes(classes)
        self.plan = self._join(config, device)
        self.leases = Leases(folder / LEASES)
        self.encoder = ShardEncoder(self.tokenizer, self.sources, self.plan)
        _require_no_others(folder, self.plan)
        self._require_space()

    @property
    def shards(self) -> tuple[PlannedShard, ...]:
        """The files to write."""
        return self.plan.shards

    def is_written(self, planned: PlannedShard) -> bool:
        """Whether a file is there; it is then whole."""
        return planned.path(self.folder).exists()

    def write(self, planned: PlannedShard, done: Callable[[int], None] = lambda n: None) -> None:
        """Encode and publish one file, which another process may be doing too: the first one wins.

        Args:
            planned: which.
            done: told how many more images are done; what it raises ends the work.

        Raises:
            StorageError: the disk refused, or the file is there with other content.
        """
        path = planned.path(self.folder)
        durable.sweep(path.parent)
        write_shard(path, self.encoder.encode(planned, done), self.spec)

    def take_part(self, part: Part = Part(), *, wait: bool = True, quiet: bool = False) -> bool:  # noqa: B008
        """Encode what nobody else is encoding, then finish the dataset if everything is written.

        Args:
            part: which files to begin with.
            wait: stay until everything is written and the dataset is finished, and take over what others give up; else
                leave when all that is left is in others' hands.
            quiet: without a progress bar.

        Returns:
            Whether the dataset is finished.

        Raises:
            Interrupted: SIGTERM or SIGINT came; what was written stays.
            StorageError, DataError, ContractError: as ``write`` and ``finish``.
        """
        total = self.plan.n_images
        with StopSignal() as stop, tqdm(total=total, desc="encoding", unit="img", delay=2, disable=quiet) as bar:

            def done(n: int) -> None:
                bar.update(n)
                if stop.number:
                    raise Interrupted(stop.number)

            work = SharedWork(
                self.shards, self.leases, self.is_written,
                do=lambda planned: self.write(planned, done), seen=lambda planned: done(planned.n_images),
                idle=lambda: done(0),
            )  # fmt: skip
            if work.take_part(part, wait=wait):
                return False
            finishing = SharedWork(
                [_Finish()], self.leases, is_done=lambda _: is_encoded(self.folder),
                do=lambda _: self._finish_or_fail(), idle=lambda: done(0),
            )  # fmt: skip
            return not finishing.take_part(Part(), wait=wait)

    def finish(self) -> bool:
        """Verify that every file holds what was planned, and write the card, the tokenizer and, last, the manifest.

        Returns:
            False if files are missing.

        Raises:
            DataError, ContractError: a file is damaged, or holds something else than was planned.
            StorageError: the disk refused.
        """
        if not all(self.is_written(planned) for planned in self.shards):
            return False
        _require_no_others(self.folder, self.plan)
        self._copy_tokenizer()
        planned = {each.path(self.folder): each for each in self.shards}
        while True:  # once, unless a retry replaces a file meanwhile
            stamps = [_stamp(path) for path in planned]
            manifest = derive_manifest(
                self.folder, self.spec, lambda path, shard: require_planned(path, shard, planned[path], self.plan)
            )
            publish_card(self.folder, self.tokenizer, self.sources, self.plan, manifest)
            publish_manifest(self.folder, manifest)
            if stamps == [_stamp(path) for path in planned]:
                break
        self.leases.clear()
        return True

    def close(self) -> None:
        """End the threads that read images."""
        self.encoder.close()

    def _join(self, config: EncodeConfig, device: torch.device) -> ExportPlan:
        """The plan that is there, which must be this export's; or this export's, written down."""
        path = self.folder / PLAN
        size = config.batch_size
        if not path.exists():
            durable.sweep(self.folder)
            measured = size or fastest_batch_size(self.tokenizer)
            plan = make_plan(self.spec, self.sources, config, batch_size=measured, device=device.type)
            try:
                durable.publish_file(path, lambda target: durable.write_bytes(target, plan.to_json()))
            except StorageError:
                if not path.exists():
                    raise  # else: another process was first, maybe with another measurement
        there = ExportPlan.from_json(path)
        size = size or there.batch_size
        wanted = make_plan(self.spec, self.sources, config, batch_size=size, device=device.type)
        require_same_plan(there, wanted, path)
        return there

    def _finish_or_fail(self) -> None:
        if not self.finish():
            raise StorageError("files of the dataset went away while it was finished", field=str(self.folder),
                               fix="run tessera encode again")  # fmt: skip

    def _copy_tokenizer(self) -> None:
        target = self.folder / "tokenizer"
        if target.exists():
            return
        try:
            durable.publish_folder(target, lambda temporary: durable.copy_files(self.tokenizer_folder, temporary))
        except StorageError:
            if not target.exists():
                raise  # else: another process was first, with the same

    def _require_space(self) -> None:
        missing = [each for each in self.shards if not self.is_written(each)]
        rows = sum(each.n_images * len(each.views) for each in missing)
        n_bytes = rows * self.spec.n_codes * 4 + folder_bytes(self.tokenizer_folder)
        durable.require_free_space(self.folder, n_bytes, "the token dataset")


class _Finish:
    name = "finish"


def is_encoded(folder: Path) -> bool:
    """Whether the token dataset is complete: every file that its manifest names is there."""
    if not (folder / MANIFEST).exists() or not (folder / "README.md").exists():
        return False
    splits = read_manifest(folder)["splits"].values()
    return all((folder / each["file"]).exists() for entry in splits for each in entry["files"])


def folder_bytes(folder: Path) -> int:
    """Bytes of the files below a folder."""
    return sum(each.stat().st_size for each in folder.rglob("*") if each.is_file())


def _stamp(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_ino, found.st_mtime_ns


def _require_no_others(folder: Path, plan: ExportPlan) -> None:
    """Refuse files that are not part of the plan: they would become rows that nobody asked for."""
    planned = {each.path(folder) for each in plan.shards}
    there = {path for path in (folder / "data").glob("*/*.parquet") if not is_temporary(path)}
    others = sorted(there - planned)
    if others:
        raise ContractError(
            "is a shard of other images than are there now",
            field=str(others[0]),
            found=f"{len(others)} such",
            fix=REMEDY,
        )
