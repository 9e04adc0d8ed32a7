import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from support.token_folders import token_spec, write_tokens

from foundation.codes.manifest import MANIFEST, derive_manifest, open_split, read_manifest, write_manifest
from foundation.codes.shards import read_shard, replace_shard, shard_path
from foundation.errors import ContractError, DataError
from foundation.images.failures import Failure


def test_it_counts_what_the_shards_hold_and_derives_the_same_again(tmp_path: Path) -> None:
    folder = write_tokens(tmp_path, (3, 4))
    entry = read_manifest(folder)["splits"]["train"]
    assert [entry[name] for name in ("rows", "planned", "written", "views")] == [14, 7, 7, 2]
    assert sum(entry["labels"]) == 14 and [each["rows"] for each in entry["files"]] == [6, 8]
    assert derive_manifest(folder, token_spec()) == read_manifest(folder)


def test_every_planned_image_is_written_or_failed(tmp_path: Path) -> None:
    folder, spec = write_tokens(tmp_path, (3,)), token_spec()
    path = shard_path(folder, "train", 0)
    good = dataclasses.replace(read_shard(path, spec), failures=(Failure("x.png", "is bad"),), planned=4)
    replace_shard(path, good, spec)
    entry = write_manifest(folder, spec)["splits"]["train"]
    assert (entry["planned"], entry["written"], [each["image_id"] for each in entry["failures"]]) == (4, 3, ["x.png"])
    twice = (Failure(good.image_ids[0], "is bad"),)
    for wrong in ({"planned": 5}, {"failures": twice}, {"labels": np.full(6, 2)}):
        replace_shard(path, dataclasses.replace(good, **wrong), spec)
        with pytest.raises(DataError, match="damaged"):
            derive_manifest(folder, spec)


def test_a_folder_without_one_is_not_complete_and_an_edited_one_is_refused(tmp_path: Path) -> None:
    folder = write_tokens(tmp_path, (3,))
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["spec"]["stride"] = 8
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ContractError, match="edited"):
        read_manifest(folder)
    (folder / MANIFEST).unlink()
    with pytest.raises(DataError, match="not complete"):
        read_manifest(folder)


def test_the_identity_of_a_split_changes_with_its_rows_and_reading_sees_other_bytes(tmp_path: Path) -> None:
    one, other = (open_split(write_tokens(tmp_path / str(seed), (3, 2), seed=seed), "train") for seed in (0, 1))
    assert one.identity != other.identity and one.rows == other.rows == 10 and one.labelled
    replace_shard(one.shards[0].path, read_shard(other.shards[0].path, other.spec), one.spec)
    with pytest.raises(DataError, match=r"does not hold the rows(.|\n)*up to 6 of 6 rows differ"):
        list(one.read())
    with pytest.raises(DataError, match="no such split"):
        open_split(one.folder, "test")
