"""Whether what is written is what was planned, and whether enough of it could be encoded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from foundation.codes.shards import Shard
from foundation.config import require
from foundation.errors import ConfigError, ContractError, DataError
from pipeline.encoding.plan import REMEDY, ExportPlan, PlannedShard


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
