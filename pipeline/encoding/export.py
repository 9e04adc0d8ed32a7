"""Export of a token dataset by any number of processes.

Equal images, tokenizer and settings give an equal plan; the first process writes it. Each process encodes files that no
other process holds; a process that finds all files written finishes the dataset. Processes may die or join at any time,
and no file is encoded twice. A retry replaces a file in one step if one of its failed images can now be encoded; every
image keeps its position in its batch, so the new file equals the file of a first export.
"""

from __future__ import annotations

import contextlib
import functools
import math
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from foundation.codes.manifest import MANIFEST, derive_manifest, publish_manifest, read_manifest
from foundation.codes.shards import Shard, read_footer, read_shard, replace_shard, write_shard
from foundation.codes.spec import CodeSpec
from foundation.config import require
from foundation.errors import ConfigError, ContractError, DataError, Interrupted, StorageError
from foundation.images.sources import ImageSource
from foundation.storage import durable
from foundation.storage.names import is_temporary
from foundation.training.stop_signal import StopSignal
from pipeline.encoding.card import publish_card
from pipeline.encoding.encoder import ShardEncoder, fastest_batch_size
from pipeline.encoding.plan import REENCODE_FIX, EncodeConfig, ExportPlan, PlannedShard, make_plan, require_same_plan
from pipeline.work_sharing import Leases, Part, SharedWork, write_plan
from stage1_tokenizer.canary import load_checked, require_few_changes

PLAN = "plan.json"
LEASES = ".leases"


class Export:
    """An export as one process sees it.

    Args:
        tokenizer_folder: the frozen tokenizer; the dataset gets a copy.
        sources: images of each split; ``train`` is encoded in all views.
        folder: the dataset.
        config: batch and file sizes, views.
        device: device of the tokenizer.

    Raises:
        ContractError: the tokenizer's codes have changed, or the folder holds another plan or files outside its plan.
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
        self.tokenizer = load_checked(tokenizer_folder, device)
        device = next(self.tokenizer.parameters()).device  # the CPU, where the given one makes other codes
        self._judge(config)
        classes = next(iter(self.sources.values())).class_names
        self.spec: CodeSpec = self.tokenizer.spec.with_classes(classes)
        self.plan = self._join(config, device)
        self.leases = Leases(folder / LEASES)
        self.encoder = ShardEncoder(self.tokenizer, self.sources, self.plan, self._following)
        _require_no_others(folder, self.plan)
        self._require_space()

    @property
    def shards(self) -> tuple[PlannedShard, ...]:
        """Files of the dataset."""
        return self.plan.shards

    def is_written(self, planned: PlannedShard) -> bool:
        """Whether a file exists; files are published whole."""
        return planned.path(self.folder).exists()

    def write(self, planned: PlannedShard, done: Callable[[int], None] = lambda n: None) -> None:
        """Encode and publish one file. Another process may do so too: the first one wins.

        Args:
            planned: the file.
            done: called with the number of images just encoded; its exceptions end the work.

        Raises:
            StorageError: the disk refused, or the file exists with other content.
        """
        self.publish(planned, self.encoder.encode(planned, done))

    def publish(self, planned: PlannedShard, shard: Shard) -> None:
        """Publish what was encoded for a file, here or on another machine. The first writer wins.

        Args:
            planned: the file.
            shard: its rows, as ``ShardEncoder.shard`` puts them together.

        Raises:
            StorageError: the disk refused, or the file exists with other content.
        """
        path = planned.path(self.folder)
        durable.sweep(path.parent)
        write_shard(path, shard, self.spec)

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
        _require_no_others(self.folder, self.plan)
        self._copy_tokenizer()
        planned = {each.path(self.folder): each for each in self.shards}
        while True:  # repeats only if a retry replaces a file meanwhile
            stamps = [_stamp(path) for path in planned]
            manifest = derive_manifest(
                self.folder, self.spec, lambda path, shard: require_planned(path, shard, planned[path], self.plan)
            )
            publish_card(self.folder, self.tokenizer, self.sources, self.plan, manifest)
            publish_manifest(self.folder, {**manifest, **self._lower_precision()})
            if stamps == [_stamp(path) for path in planned]:
                break
        self.leases.clear()
        return True

    def _join(self, config: EncodeConfig, device: torch.device) -> ExportPlan:
        """Read the folder's plan and compare it with this export's, or write this export's plan."""
        path = self.folder / PLAN
        size = config.batch_size

        def plan_for(batch_size: int) -> ExportPlan:
            return make_plan(self.spec, self.sources, config, batch_size=batch_size, device=device.type)

        def first() -> bytes:
            fastest = size or fastest_batch_size(self.tokenizer, precision=config.precision)
            return plan_for(fastest).save_images(self.folder)

        write_plan(path, first)
        there = ExportPlan.from_json(path)  # maybe of another process with another batch size
        wanted = plan_for(size or there.batch_size)
        require_same_plan(there, wanted, path)
        return there

    def _is_finished(self, work: _Finish) -> bool:
        return is_encoded(self.folder)

    def _finish_or_fail(self, work: _Finish) -> None:
        if not self.finish():
            fix = "run tessera encode again"
            raise StorageError("files disappeared while the dataset was finished", field=str(self.folder), fix=fix)

    def _copy_tokenizer(self) -> None:
        target = self.folder / "tokenizer"
        if target.exists():
            return
        try:
            durable.publish_folder(target, lambda temporary: durable.copy_files(self.tokenizer_folder, temporary))
        except StorageError:
            if not target.exists():
                raise  # otherwise another process was first, with the same files

    def _require_space(self) -> None:
        missing = [each for each in self.shards if not self.is_written(each)]
        rows = sum(each.n_images * len(each.views) for each in missing)
        n_bytes = rows * self.spec.n_codes * 4 + folder_bytes(self.tokenizer_folder)
        durable.require_free_space(self.folder, n_bytes, "the token dataset")


class _Finish:
    name = "finish"


def is_encoded(folder: Path) -> bool:
    """Whether the token dataset is complete: every file of its manifest exists."""
    if not (folder / MANIFEST).exists() or not (folder / "README.md").exists():
        return False
    splits = read_manifest(folder)["splits"].values()
    return all((folder / each["file"]).exists() for entry in splits for each in entry["files"])


def folder_bytes(folder: Path) -> int:
    """Total size of the files below a folder, in bytes."""
    return sum(each.stat().st_size for each in folder.rglob("*") if each.is_file())


def _stamp(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_ino, found.st_mtime_ns


def _require_no_others(folder: Path, plan: ExportPlan) -> None:
    """Refuse parquet files outside the plan, which would become rows of the dataset."""
    planned = {each.path(folder) for each in plan.shards}
    there = {path for path in (folder / "data").glob("*/*.parquet") if not is_temporary(path)}
    others = sorted(there - planned)
    if others:
        found = f"{len(others)} files outside the plan"
        raise ContractError("is a shard of other images", field=str(others[0]), found=found, fix=REENCODE_FIX)


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
        if export.is_written(planned) and read_footer(planned.path(export.folder))["failures"]:
            changed |= _retry(export, planned)
    if changed:
        _forget_manifest(export)  # another process may have written one of the files before
    return export.take_part(part, wait=wait)


def _retry(export: Export, planned: PlannedShard) -> bool:
    """Encode the failed images of a file again; whether the file changed."""
    path, split = planned.path(export.folder), export.plan.splits[planned.split]
    shard = read_shard(path, export.spec)
    number_of = {split.image_ids[n]: n for n in range(planned.start, planned.stop)}
    before = {number_of[each.image_id]: each for each in shard.failures}
    codes_VNT, failures = export.encoder.encode_some(planned, set(before))
    if failures == before:
        return False
    good = [number_of[name] - planned.start for name in shard.image_ids[: len(shard.image_ids) // len(planned.views)]]
    codes_VNT[:, good] = np.reshape(shard.codes_BT, (len(planned.views), len(good), export.spec.n_codes))
    _forget_manifest(export)
    replace_shard(path, export.encoder.shard(planned, codes_VNT, failures), export.spec)
    return True


def _forget_manifest(export: Export) -> None:
    """Remove the manifest, which holds hashes of replaced files; ``Export.finish`` writes a new one."""
    if (export.folder / MANIFEST).exists():
        durable.remove_folder(export.folder / MANIFEST)


def require_planned(path: Path, shard: Shard, planned: PlannedShard, plan: ExportPlan) -> None:
    """Require that a file holds every planned image in every view with its label, or lists the image as failed.

    Raises:
        ContractError: the file was made from other images or labels.
    """
    split = plan.splits[planned.split]
    failed = {each.image_id for each in shard.failures}
    numbers = range(planned.start, planned.stop)
    good = [n for n in numbers if split.image_ids[n] not in failed]
    strangers = failed - {split.image_ids[n] for n in numbers}
    n_views = len(planned.views)
    labels = None if split.labels is None else np.tile([split.labels[n] for n in good], n_views)
    grids = None if split.grids is None else np.tile([split.grids[n] for n in good], n_views)
    same_grids = grids is shard.grids if grids is None else np.array_equal(shard.grids, grids)  # type: ignore[arg-type]
    same_labels = labels is None if shard.labels is None else np.array_equal(shard.labels, labels)  # type: ignore[arg-type]
    same = (
        list(shard.image_ids) == [split.image_ids[n] for n in good] * n_views
        and np.array_equal(shard.views, np.repeat(planned.views, len(good)))
        and same_labels
        and same_grids
        and not strangers
    )
    if not same:
        what = "the shard holds other images or labels than the data source"
        found, expected = (
            f"{len(shard.image_ids)} rows, {len(failed)} failures",
            f"{planned.n_images} x {n_views} views",
        )
        raise ContractError(what, field=str(path), found=found, expected=expected, fix=REENCODE_FIX)


def share(text: str | float) -> float:
    """Parse a share, ``1%`` or ``0.01``.

    Raises:
        ConfigError: another form, or outside 0 to 1.
    """
    try:
        number = float(text[:-1]) / 100 if isinstance(text, str) and text.endswith("%") else float(text)
    except ValueError:
        raise ConfigError("is not a share", field="--max-bad", found=repr(text), expected="1% or 0.01") from None
    require(0 <= number <= 1, "--max-bad", text, "from 0% to 100%")
    return number


def totals(manifest: Mapping[str, Any]) -> dict[str, int]:
    """Count ``planned``, ``written`` and ``failed`` images of all splits; planned = written + failed."""
    splits = manifest["splits"].values()
    failed = sum(len(entry["failures"]) for entry in splits)
    planned = sum(entry.get("planned", entry["rows"] + len(entry["failures"])) for entry in splits)
    return {"planned": planned, "written": planned - failed, "failed": failed}


def require_enough(manifest: Mapping[str, Any], max_bad: float) -> None:
    """Refuse a dataset of which too many images could not be encoded. It is complete all the same.

    Raises:
        DataError: how many failed, with which codes, and the first of them.
    """
    counts = totals(manifest)
    if counts["failed"] <= max_bad * counts["planned"]:
        return
    failures = [each for entry in manifest["splits"].values() for each in entry["failures"]]
    shown = "".join(f"\n    {each['image_id']}: {each['code']}: {each['reason']}" for each in failures[:10])
    found = f"{counts['failed']:,} of {counts['planned']:,} ({by_code(failures)}), the first:{shown}"
    expected = f"a share of at most {max_bad:.4g}"
    needed = math.ceil(100 * counts["failed"] / counts["planned"])
    allow = f"--max-bad {needed}% of tessera encode, --data.max_failed_share {needed / 100:.2f} of tessera run"
    fix = f"repair them and run tessera encode with --retry-failed, or allow more ({allow})"
    raise DataError("too many images failed", field="--max-bad", found=found, expected=expected, fix=fix)


def by_code(failures: list[dict[str, Any]]) -> str:
    """Count failures by code, the most frequent first, as text."""
    counts = Counter(each.get("code", "unreadable") for each in failures)
    return ", ".join(f"{n:,} {code}" for code, n in counts.most_common())
