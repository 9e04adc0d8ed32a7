"""Accounts of a token dataset: every planned image is written or listed as failed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from foundation.codes.shards import Shard
from foundation.config import require
from foundation.errors import ConfigError, ContractError, DataError
from pipeline.encoding.plan import REENCODE_FIX, ExportPlan, PlannedShard


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
