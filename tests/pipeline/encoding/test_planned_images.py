"""Planned images in a file: equal to what was planned, read in parts, complete or refused; earlier versions."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.tiny_export import CONFIG, content, open_tiny, tiny_export

from foundation.codes.shards import read_footer, shard_paths
from foundation.codes.spec import CodeLevel, CodeSpec
from foundation.config import to_dict
from foundation.errors import ContractError, DataError
from foundation.images.config import Preprocess
from pipeline.encoding import planned_images
from pipeline.encoding.plan import EncodeConfig, ExportPlan, make_plan, require_same_plan
from pipeline.encoding.planned_images import Column, first_duplicate, rows_together, write_images

Inputs = tuple[Path, Path]
SPEC = CodeSpec(
    levels=(CodeLevel(height=4, width=4, codebook_size=48),),
    stride=4,
    preprocess=Preprocess(height=16, width=16),
    fingerprint="x",
    class_names=("a", "b"),
)


class Names:
    """A source of ids and labels alone."""

    class_names = ("a", "b")

    def __init__(self, n: int, prefix: str = "é", *, labelled: bool = True) -> None:
        self.ids = [f"{prefix}/{i:05d}" for i in range(n)]
        self.labels = np.arange(n) % 2 if labelled else None


def plan_of(n: int = 50_000, n_validation: int = 7, labelled: bool = True, **changes: Any) -> ExportPlan:
    config = EncodeConfig(images_per_shard=1000, flip=True, **changes)
    sources: Any = {"train": Names(n, labelled=labelled), "validation": Names(n_validation, "v", labelled=labelled)}
    return make_plan(SPEC, sources, config, batch_size=3, device="cpu")


def saved(plan: ExportPlan, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "plan.json").write_bytes(plan.save_images(folder))
    return folder / "plan.json"


def as_before(plan: ExportPlan) -> dict[str, Any]:
    """What versions before wrote, and hashed, as ``what``."""
    splits = [
        {
            "name": name,
            "image_ids": list(each.image_ids),
            "labels": each.labels and list(each.labels),
            "views": list(each.views),
        }
        for name, each in plan.splits.items()
    ]
    settings = {"images_per_shard": plan.images_per_shard, "corner_scale": plan.corner_scale}
    return {"contract": plan.spec.contract, "spec": to_dict(plan.spec), **settings, "splits": splits}


def sha256(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def save_as_before(plan: ExportPlan, path: Path) -> None:
    old = {"format": 1, "what": as_before(plan), "how": {"batch_size": plan.batch_size, "device": plan.device}}
    path.write_text(json.dumps({**old, "sha256": sha256(old)}, sort_keys=True), encoding="utf-8")


@pytest.mark.parametrize(("n", "n_validation", "labelled"), [(70_000, 7, True), (8192, 0, False), (1, 1, True)])
def test_a_plan_comes_back_equal_from_its_file(tmp_path: Path, n: int, n_validation: int, labelled: bool) -> None:
    plan = plan_of(n, n_validation, labelled)
    there = ExportPlan.from_json(saved(plan, tmp_path))
    assert there.splits == plan.splits and there.shards == plan.shards and there.n_images == n + n_validation
    assert there.identity == plan.identity == dataclasses.replace(there, saved_identity="").identity
    require_same_plan(there, plan, tmp_path)


def test_the_identity_is_the_one_of_earlier_versions() -> None:
    for plan in (plan_of(), plan_of(3, 0, labelled=False)):
        assert plan.identity == sha256(as_before(plan))


def test_a_plan_of_an_earlier_version_is_the_same_plan(tmp_path: Path) -> None:
    plan = plan_of(3000)
    save_as_before(plan, tmp_path / "plan.json")
    there = ExportPlan.from_json(tmp_path / "plan.json")
    assert there.splits == plan.splits and there.identity == plan.identity
    require_same_plan(there, plan, tmp_path)
    with pytest.raises(ContractError, match=r"images of train: the plan has 3,000, 1 of them only .* é/02999"):
        require_same_plan(there, plan_of(2999), tmp_path)


def test_an_export_begun_by_an_earlier_version_goes_on(inputs: Inputs, clean: Path, tmp_path: Path) -> None:
    codes = tmp_path / "codes"
    plan = open_tiny(*inputs, codes).plan
    save_as_before(plan, codes / "plan.json")
    for images in codes.glob("plan-*.parquet"):
        images.unlink()
    assert tiny_export(*inputs, codes)
    planned = ("plan.json", *(each.name for each in clean.glob("plan-*")))
    assert content(codes).items() - content(clean).items() == {("plan.json", content(codes)["plan.json"])}
    assert content(clean).keys() - content(codes).keys() == set(planned[1:])


def test_files_of_the_dataset_name_the_identity_of_the_plan(clean: Path) -> None:
    plan = ExportPlan.from_json(clean / "plan.json")
    assert {read_footer(path)["plan"] for path in shard_paths(clean, "train")} == {sha256(as_before(plan))}


def test_a_process_reads_the_rows_of_its_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = ExportPlan.from_json(saved(plan_of(), tmp_path))
    read: list[int] = []
    real = pq.ParquetFile.read_row_group
    monkeypatch.setattr(pq.ParquetFile, "read_row_group", lambda file, i, *a: (read.append(i), real(file, i, *a))[1])
    planned = plan.shards[20]
    split = plan.splits["train"]
    ids = [split.image_ids[n] for n in range(planned.start, planned.stop)]
    assert ids == [f"é/{i:05d}" for i in range(20_000, 21_000)] == split.image_ids[20_000:21_000]
    assert split.labels is not None and split.labels[planned.start] == 0 and read == [2], "of 8 files together"


def test_rows_that_are_stored_together_hold_whole_files() -> None:
    assert [rows_together(n) for n in (1, 4, 1000, 8192, 10_000, 10**9)] == [8192, 8192, 8000, 8192, 10_000, 1 << 20]


def test_a_split_in_more_rows_than_a_group_holds_is_read_across(tmp_path: Path) -> None:
    plan = plan_of(20)
    write_images(tmp_path / "images", plan.splits, 6, plan.identity)
    there = planned_images.open_images(tmp_path / "images", planned_images.described(plan.splits))
    column = there["train"].image_ids
    assert column[4:15] == plan.splits["train"].image_ids[4:15] and column[-1] == "é/00019" and len(list(column)) == 20
    assert column[::7] == ["é/00000", "é/00007", "é/00014"] and there == plan.splits
    assert np.array_equal(np.array(there["train"].labels), np.arange(20) % 2)
    with pytest.raises(IndexError):
        column[20]


def test_damaged_missing_and_foreign_files_of_images_are_refused(tmp_path: Path) -> None:
    path = saved(plan_of(20_000), tmp_path / "a")
    images = next(path.parent.glob("plan-*"))
    whole = images.read_bytes()
    other = next(saved(plan_of(20_001), tmp_path / "b").parent.glob("plan-*")).read_bytes()
    renamed = next(saved(_of_other_names(), tmp_path / "c").parent.glob("plan-*"))
    for damaged in (whole[:-9], b"", other, renamed.read_bytes()):
        images.write_bytes(damaged)
        with pytest.raises(DataError, match="plan is damaged"):
            ExportPlan.from_json(path)
    images.unlink()
    with pytest.raises(DataError, match="plan is damaged"):
        ExportPlan.from_json(path)
    images.write_bytes(whole)
    flipped = bytearray(whole)
    flipped[len(whole) // 3] ^= 1
    images.write_bytes(flipped)
    with pytest.raises(DataError, match="cannot be read"):
        list(ExportPlan.from_json(path).splits["train"].image_ids)


def _of_other_names() -> ExportPlan:
    sources: Any = {"train": Names(20_000, "ö"), "validation": Names(7, "v")}
    return make_plan(SPEC, sources, EncodeConfig(images_per_shard=1000, flip=True), batch_size=3, device="cpu")


def test_what_another_plan_left_without_its_json_is_no_obstacle(inputs: Inputs, tmp_path: Path) -> None:
    codes = tmp_path / "codes"
    saved(plan_of(20), codes)
    (codes / "plan.json").unlink()
    assert tiny_export(*inputs, codes, CONFIG) and len(list(codes.glob("plan-*"))) == 2


def test_the_first_id_that_comes_twice_is_found() -> None:
    ids = [f"{i}" for i in range(1000)]
    assert first_duplicate(Column.of(ids, pa.string())) is None
    assert first_duplicate(Column.of([*ids, "7", "3", "7"], pa.string())) == "7"


def test_other_orders_and_labels_are_named(tmp_path: Path) -> None:
    plan, sources = plan_of(20), {"train": Names(20), "validation": Names(7, "v")}
    sources["train"].ids[3:5] = reversed(sources["train"].ids[3:5])
    config, how = EncodeConfig(images_per_shard=1000, flip=True), {"batch_size": 3, "device": "cpu"}
    with pytest.raises(ContractError, match="images of train: the plan has 20, this run 20"):
        require_same_plan(plan, make_plan(SPEC, sources, config, **how), tmp_path)  # type: ignore[arg-type]
    with pytest.raises(ContractError, match=r"label of é/00000 \(train\): the plan has 0, this run None"):
        require_same_plan(plan, plan_of(20, labelled=False), tmp_path)
