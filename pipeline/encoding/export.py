"""An export that any number of processes take part in.

Each process opens the same export: the same images, tokenizer and settings give the same plan, and the first one writes
it down. Then each encodes files that nobody else is encoding, and whoever finds all of them written finishes the
dataset. A process may die or join at any time; a file that is written is never encoded again.

Another try at the images that failed; nothing else is encoded again.

A file of which some image can now be encoded is replaced in one step. Since every image keeps its place in its batch,
the new file is the one that a first export would have written.

Whether what is written is what was planned, and whether enough of it could be encoded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from foundation.codes.dataset import MANIFEST, read_manifest, write_shard
from foundation.codes.manifest import derive_manifest, publish_manifest
from foundation.codes.shards import Shard, read_footer, read_shard, replace_shard
from foundation.codes.spec import CodeSpec
from foundation.config import require
from foundation.errors import ConfigError, ContractError, DataError, Interrupted, StorageError
from foundation.images.sources import ImageSource
from foundation.storage import durable
from foundation.storage.durable import is_temporary
from foundation.training.stop_signal import StopSignal
from pipeline.encoding.card import publish_card
from pipeline.encoding.encoder import ShardEncoder, fastest_batch_size
from pipeline.encoding.plan import REMEDY, EncodeConfig, ExportPlan, PlannedShard, make_plan, require_same_plan
from pipeline.work_sharing import Leases, Part, SharedWork
from stage1_tokenizer.canary import check_canary
from stage1_tokenizer.tokenizer import TokenizerModel


def require_planned(path: Path, shard: Shard, planned: PlannedShard, plan: ExportPlan) -> None:
    """Refuse a file that does not hold each planned image, in each view, with its label, or lists it as failed.

    Raises:
        ContractError: it was made from other images or labels.
    """
    split = plan.splits[planned.split]
    failed = {each.image_id for each in shard.failures}
    numbers = range(planned.start, planned.stop)
    good = [n for n in numbers if split.image_ids[n] not in failed]
    strangers = failed - {split.image_ids[n] for n in numbers}
    n_views = len(planned.views)
    labels = None if split.labels is None else np.tile([split.labels[n] for n in good], n_views)
    same_labels = labels is None if shard.labels is None else np.array_equal(shard.labels, labels)  # type: ignore[arg-type]
    same = (
        list(shard.image_ids) == [split.image_ids[n] for n in good] * n_views
        and np.array_equal(shard.views, np.repeat(planned.views, len(good)))
        and same_labels
        and not strangers
    )
    if not same:
        raise ContractError(
            "the shard holds other images or labels than are there now",
            field=str(path),
            found=f"{len(shard.image_ids)} rows and {len(failed)} failed images",
            expected=f"{planned.n_images} images of the data source in {n_views} views",
            fix=REMEDY,
        )


def share(text: str | float) -> float:
    """A share as people write it: ``1%`` or ``0.01``.

    Raises:
        ConfigError: it is neither, or not from 0 to 1.
    """
    try:
        number = float(text[:-1]) / 100 if isinstance(text, str) and text.endswith("%") else float(text)
    except ValueError:
        raise ConfigError("is not a share", field="--max_bad", found=repr(text), expected="1% or 0.01") from None
    require(0 <= number <= 1, "--max_bad", text, "from 0% to 100%")
    return number


def totals(manifest: Mapping[str, Any]) -> dict[str, int]:
    """``planned``, ``written`` and ``failed`` images of all splits; planned is always the sum of the other two."""
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
    raise DataError(
        "too many images could not be encoded",
        field="--max_bad",
        found=f"{counts['failed']:,} of {counts['planned']:,} ({by_code(failures)}), the first of them:{shown}",
        expected=f"at most {max_bad:.4g} of them",
        fix="repair them and run tessera encode with --retry-failed, or allow more (--max_bad 5%)",
    )


def by_code(failures: list[dict[str, Any]]) -> str:
    """How many failed with which code, the most frequent first."""
    counts = Counter(each.get("code", "unreadable") for each in failures)
    return ", ".join(f"{n:,} {code}" for code, n in counts.most_common())


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


def retry_failed(export: Export, part: Part = Part(), *, wait: bool = True) -> bool:  # noqa: B008
    """Encode the images that failed, then finish the dataset as ``Export.take_part`` does.

    Args:
        export: of a folder in which files may be missing; they are written too.
        part: of the files with failures, which each process takes; the parts of others are left to them.
        wait: as for ``Export.take_part``.

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
    """Whether anything came of it."""
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
    """It names the bytes of files that are replaced; ``Export.finish`` makes it anew."""
    if (export.folder / MANIFEST).exists():
        durable.remove_folder(export.folder / MANIFEST)
