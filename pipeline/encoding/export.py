"""Export of a token dataset by any number of processes.

Equal images, tokenizer and settings give an equal plan; the first process writes it. Each process encodes files that no
other process holds; a process that finds all files written finishes the dataset. Processes may die or join at any time,
and no file is encoded twice. A retry replaces a file in one step if one of its failed images can now be encoded; every
image keeps its position in its batch, so the new file equals the file of a first export.

The dataset is a folder, or a place in an object store of which a local folder keeps copies. There files come as they
are encoded and the manifest last; machines see each other only by finished files.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from foundation.codes.manifest import MANIFEST, derive_manifest, publish_manifest, read_manifest
from foundation.codes.shards import Shard, publish_shard, read_footer, read_shard, shard_bytes
from foundation.codes.spec import CodeSpec
from foundation.errors import ContractError, Interrupted, StorageError
from foundation.images.sources import ImageSource
from foundation.storage import durable
from foundation.storage.places import LocalPlace, Place, as_place, fetch_copies
from foundation.training.stop_signal import StopSignal
from pipeline.encoding.accounts import require_planned
from pipeline.encoding.card import publish_card
from pipeline.encoding.encoder import ShardEncoder, fastest_batch_size
from pipeline.encoding.plan import (
    PLAN,
    REENCODE_FIX,
    EncodeConfig,
    ExportPlan,
    PlannedShard,
    make_plan,
    require_same_plan,
)
from pipeline.work_sharing import Part, SharedWork, leases_of, write_plan
from stage1_tokenizer.canary import load_checked, require_few_changes

LEASES = ".leases"


class Export:
    """An export as one process sees it.

    Args:
        tokenizer_folder: the frozen tokenizer; the dataset gets a copy.
        sources: images of each split; ``train`` is encoded in all views.
        folder: the dataset: a folder, or a place in a store with local copies.
        config: batch and file sizes, views.
        device: device of the tokenizer.

    Raises:
        ContractError: the tokenizer's codes have changed, or the folder holds another plan or files outside its plan.
        StorageError: the disk refused, or is too full.
        RemoteError: the store refused.
    """

    def __init__(
        self,
        tokenizer_folder: Path,
        sources: Mapping[str, ImageSource],
        folder: Path | Place,
        config: EncodeConfig,
        device: torch.device,
    ) -> None:
        self.place = as_place(folder)
        self.folder, self.tokenizer_folder, self.sources = self.place.folder, tokenizer_folder, dict(sources)
        self.tokenizer = load_checked(tokenizer_folder, device)
        device = next(self.tokenizer.parameters()).device  # the CPU, where the given one makes other codes
        self._judge(config)
        classes = next(iter(self.sources.values())).class_names
        self.spec: CodeSpec = self.tokenizer.spec.with_classes(classes)
        self.plan = self._join(config, device)
        self.leases = leases_of(self.place, LEASES)
        self.encoder = ShardEncoder(self.tokenizer, self.sources, self.plan, self._following)
        _require_no_others(self.place, self.plan)
        self._require_space()

    @property
    def shards(self) -> tuple[PlannedShard, ...]:
        """Files of the dataset."""
        return self.plan.shards

    def is_written(self, planned: PlannedShard) -> bool:
        """Whether a file exists; files are published whole."""
        return self.place.exists(planned.file)

    def write(self, planned: PlannedShard, done: Callable[[int], None] = lambda n: None) -> None:
        """Encode and publish one file. Another process may do so too: the first one wins.

        Args:
            planned: the file.
            done: called with the number of images just encoded; its exceptions end the work.

        Raises:
            StorageError: the disk refused, or the file exists with other content.
        """
        if not self._send(planned):
            self.publish(planned, self.encoder.encode(planned, done))

    def publish(self, planned: PlannedShard, shard: Shard) -> None:
        """Publish what was encoded for a file, here or on another machine. The first writer wins.

        Args:
            planned: the file.
            shard: its rows, as ``ShardEncoder.shard`` puts them together.

        Raises:
            StorageError: the disk refused, or the file exists with other content.
            RemoteError: the store refused.
        """
        self.place.sweep(f"data/{planned.split}")
        publish_shard(self.place, planned.file, shard, self.spec)

    def _send(self, planned: PlannedShard) -> bool:
        """Put a file of an earlier export into this folder where the store lacks it; whether there was one."""
        path = planned.path(self.folder)
        if isinstance(self.place, LocalPlace) or not path.exists():
            return False
        require_planned(path, read_shard(path, self.spec), planned, self.plan)
        return self.place.send(planned.file)

    def take_part(self, part: Part = Part(), *, wait: bool = True, quiet: bool = False) -> bool:  # noqa: B008
        """Encode files that no other process encodes, then finish the dataset if all are written.

        Args:
            part: share of the files to begin with.
            wait: stay until the dataset is finished, and take over files of dead processes; otherwise return when other
                processes hold all files left.
            quiet: no progress bar.

        Returns:
            Whether the dataset is finished.

        Raises:
            Interrupted: on SIGTERM or SIGINT; written files stay.
            StorageError, DataError, ContractError: see ``write`` and ``finish``.
        """
        total = self.plan.n_images
        with StopSignal() as stop, tqdm(total=total, desc="encoding", unit="img", delay=2, disable=quiet) as bar:

            def done(n: int) -> None:
                bar.update(n)
                if stop.number:
                    raise Interrupted(stop.number)

            idle = functools.partial(done, 0)
            work = SharedWork(
                self.shards,
                self.leases,
                self.is_written,
                do=lambda planned: self.write(planned, done),
                seen=lambda planned: done(planned.n_images),
                idle=idle,
            )
            with contextlib.closing(self.encoder):
                left = work.take_part(part, wait=wait)
            if left:
                return False
            finishing = SharedWork([_Finish()], self.leases, self._is_finished, self._finish_or_fail, idle=idle)
            return not finishing.take_part(Part(), wait=wait)

    def _following(self, planned: PlannedShard) -> PlannedShard | None:
        """The next file of the plan that is not written: the one that this process is likely to encode next."""
        later = self.shards[self.shards.index(planned) + 1 :]
        return next((each for each in later if not self.is_written(each)), None)

    def _judge(self, config: EncodeConfig) -> None:
        """Say how many codes a lower precision changes; refuse too many."""
        if config.precision == "float32":
            return
        folder, limit = self.tokenizer_folder, config.max_code_changes
        share, n_images = require_few_changes(self.tokenizer, folder, config.precision, limit)
        changes = f"{share:.2%} of the codes of {n_images} stored images differ from float32's"
        print(f"encoding in {config.precision}: {changes}, at most {limit:.2%} may", file=sys.stderr)

    def _lower_precision(self) -> dict[str, str]:
        """For the manifest, which says nothing of float32."""
        return {} if self.plan.precision == "float32" else {"precision": self.plan.precision}

    def finish(self) -> bool:
        """Verify every file against the plan, then write the tokenizer, the card and, last, the manifest.

        Returns:
            False if files are missing.

        Raises:
            DataError, ContractError: a file is damaged or differs from the plan.
            StorageError: the disk refused.
        """
        if not all(self.is_written(planned) for planned in self.shards):
            return False
        _require_no_others(self.place, self.plan)
        self._copy_tokenizer()
        planned = {each.path(self.folder): each for each in self.shards}
        while True:  # repeats only if a retry replaces a file meanwhile
            stamps = self.place.stamps("data")
            fetch_copies(self.place, (each.file for each in self.shards))
            manifest = derive_manifest(
                self.folder, self.spec, lambda path, shard: require_planned(path, shard, planned[path], self.plan)
            )
            publish_card(self.place, self.tokenizer, self.sources, self.plan, manifest)
            publish_manifest(self.place, {**manifest, **self._lower_precision()})
            if stamps == self.place.stamps("data"):
                break
        if self.leases is not None:
            self.leases.clear()
        return True

    def _join(self, config: EncodeConfig, device: torch.device) -> ExportPlan:
        """Read the folder's plan and compare it with this export's, or write this export's plan."""
        path, size = self.folder / PLAN, config.batch_size

        def plan_for(batch_size: int) -> ExportPlan:
            return make_plan(self.spec, self.sources, config, batch_size=batch_size, device=device.type)

        def require_ours(there: ExportPlan) -> None:
            require_same_plan(there, plan_for(size or there.batch_size), path)

        def first() -> bytes:
            if path.exists():  # of codes in this folder, which the store is to have
                there = ExportPlan.from_json(path)
                require_ours(there)
                return there.save_images(self.place)
            fastest = size or fastest_batch_size(self.tokenizer, precision=config.precision)
            return plan_for(fastest).save_images(self.place)

        write_plan(self.place, PLAN, first)
        there = ExportPlan.of_place(self.place)  # maybe of another process with another batch size
        require_ours(there)
        return there

    def _is_finished(self, work: _Finish) -> bool:
        return is_encoded(self.place)

    def _finish_or_fail(self, work: _Finish) -> None:
        if not self.finish():
            fix = "run tessera encode again"
            raise StorageError("files disappeared while the dataset was finished", field=self.place.shown, fix=fix)

    def _copy_tokenizer(self) -> None:
        name, last, source = "tokenizer", "config.json", self.tokenizer_folder
        if self.place.has_folder(name, last) and (self.folder / name).exists():
            return
        try:
            self.place.publish_folder(name, lambda temporary: durable.copy_files(source, temporary), last)
        except StorageError:
            if not self.place.has_folder(name, last):
                raise  # otherwise another process was first, with the same files

    def _require_space(self) -> None:
        missing = [each for each in self.shards if not self.is_written(each)]
        rows = sum(each.n_images * len(each.views) for each in missing)
        n_bytes = rows * self.spec.n_codes * 4 + folder_bytes(self.tokenizer_folder)
        self.place.require_free_space(n_bytes, "the token dataset")


class _Finish:
    name = "finish"


def is_encoded(folder: Path | Place) -> bool:
    """Whether the token dataset is complete: every file of its manifest exists.

    Raises:
        RemoteError: the store gives no access.
    """
    place = as_place(folder)
    if place.find(MANIFEST) is None or not place.exists("README.md"):
        return False
    splits, there = read_manifest(place)["splits"].values(), set(place.names("data"))
    return all(each["file"] in there for entry in splits for each in entry["files"])


def folder_bytes(folder: Path) -> int:
    """Total size of the files below a folder, in bytes."""
    return sum(each.stat().st_size for each in folder.rglob("*") if each.is_file())


def _require_no_others(place: Place, plan: ExportPlan) -> None:
    """Refuse parquet files outside the plan, which would become rows of the dataset."""
    planned = {each.file for each in plan.shards}
    there = {name for name in place.names("data") if name.endswith(".parquet") and name.count("/") == 2}
    others = sorted(there - planned)
    if others:
        found, field = f"{len(others)} files outside the plan", f"{place.shown}/{others[0]}"
        raise ContractError("is a shard of other images", field=field, found=found, fix=REENCODE_FIX)


def retry_failed(export: Export, part: Part = Part(), *, wait: bool = True) -> bool:  # noqa: B008
    """Encode failed images again, then take part in the export.

    Args:
        export: missing files are written too.
        part: this process's share of the files with failures.
        wait: see ``Export.take_part``.

    Returns:
        Whether the dataset is finished.
    """
    changed = False
    for i in range(part.index, len(export.shards), part.count):
        planned = export.shards[i]
        if export.is_written(planned) and read_footer(export.place.local(planned.file))["failures"]:
            changed |= _retry(export, planned)
    if changed:
        _forget_manifest(export)  # another process may have written one of the files before
    return export.take_part(part, wait=wait)


def _retry(export: Export, planned: PlannedShard) -> bool:
    """Encode the failed images of a file again; whether the file changed."""
    split = export.plan.splits[planned.split]
    shard = read_shard(export.place.local(planned.file), export.spec)
    number_of = {split.image_ids[n]: n for n in range(planned.start, planned.stop)}
    before = {number_of[each.image_id]: each for each in shard.failures}
    codes_VNT, failures = export.encoder.encode_some(planned, set(before))
    if failures == before:
        return False
    good = [number_of[name] - planned.start for name in shard.image_ids[: len(shard.image_ids) // len(planned.views)]]
    codes_VNT[:, good] = np.reshape(shard.codes_BT, (len(planned.views), len(good), export.spec.n_codes))
    _forget_manifest(export)
    content = shard_bytes(export.encoder.shard(planned, codes_VNT, failures), export.spec)
    export.place.replace(planned.file, content)
    return True


def _forget_manifest(export: Export) -> None:
    """Remove the manifest, which holds hashes of replaced files; ``Export.finish`` writes a new one."""
    if export.place.find(MANIFEST) is not None:
        export.place.remove(MANIFEST)
