"""Another try at the images that failed; nothing else is encoded again.

A file of which some image can now be encoded is replaced in one step. Since every image keeps its place in its batch,
the new file is the one that a first export would have written.
"""

from __future__ import annotations

import numpy as np

from foundation.codes.dataset import MANIFEST
from foundation.codes.shards import read_footer, read_shard, replace_shard
from foundation.storage import durable
from pipeline.encoding.export import Export
from pipeline.encoding.plan import PlannedShard
from pipeline.work_sharing import Part


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
