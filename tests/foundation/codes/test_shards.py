from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from support.token_folders import token_spec

from foundation.codes.shards import Shard, code_dtype, read_footer, read_shard, replace_shard, write_shard
from foundation.codes.spec import CodeSpec
from foundation.errors import ContractError, DataError
from foundation.images.failures import Failure


def shard(spec: CodeSpec, n: int = 5, **changes: object) -> Shard:
    codes = np.random.default_rng(0).integers(0, spec.codebook_size, (n, spec.n_codes))
    codes[0, 0] = spec.codebook_size - 1
    fields: dict = {"image_ids": [f"{i}.png" for i in range(n)], "views": np.zeros(n, np.uint8), "labels": None}
    return Shard(codes, **{**fields, **changes})


@pytest.mark.parametrize(("size", "dtype"), [(2, "uint16"), (65_536, "uint16"), (65_537, "int32"), (2**27, "int32")])
def test_codes_of_any_size_come_back_in_the_smallest_type_that_holds_them(
    size: int, dtype: str, tmp_path: Path
) -> None:
    spec = token_spec(size, labelled=False)
    written = shard(spec, failures=(Failure("x.png", "is bad"),), planned=6, plan="p")
    write_shard(tmp_path / "a.parquet", written, spec)
    found = read_shard(tmp_path / "a.parquet", spec)
    assert np.array_equal(found.codes_BT, written.codes_BT) and found.codes_BT.dtype == code_dtype(spec) == dtype
    assert found.image_ids == written.image_ids and found.failures == [Failure("x.png", "is bad")]
    assert (found.labels, found.planned, found.plan) == (None, 6, "p")


def test_the_footer_says_what_the_rows_are(tmp_path: Path) -> None:
    spec = token_spec()
    write_shard(tmp_path / "a.parquet", shard(spec, labels=np.array([0, 1, 0, 1, 1])), spec)
    footer = read_footer(tmp_path / "a.parquet")
    assert footer["rows"] == 5 and footer["labelled"] and footer["contract"] == spec.contract
    assert pq.read_schema(tmp_path / "a.parquet").names == ["codes", "label", "image_id", "view"]


def test_the_same_content_is_published_twice_other_content_only_by_replacing(tmp_path: Path) -> None:
    spec, path = token_spec(labelled=False), tmp_path / "a.parquet"
    write_shard(path, shard(spec), spec)
    write_shard(path, shard(spec), spec)
    with pytest.raises(ValueError, match="exists already with other content"):
        write_shard(path, shard(spec, 4), spec)
    replace_shard(path, shard(spec, 4), spec)
    assert len(read_shard(path, spec).image_ids) == 4


def test_missing_damaged_and_foreign_shards_are_told_apart(tmp_path: Path) -> None:
    spec, path = token_spec(labelled=False), tmp_path / "a.parquet"
    with pytest.raises(DataError, match="missing"):
        read_shard(path, spec)
    write_shard(path, shard(spec), spec)
    with pytest.raises(ContractError, match="codebook_size"):
        read_shard(path, token_spec(999, labelled=False))
    path.write_bytes(path.read_bytes()[:-9])
    for read in (lambda: read_footer(path), lambda: read_shard(path, spec)):
        with pytest.raises(DataError, match="damaged"):
            read()


def test_arrays_of_unequal_length_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="differ in length"):
        write_shard(tmp_path / "a.parquet", shard(token_spec(labelled=False), image_ids=["x"]), token_spec())
    assert not list(tmp_path.iterdir())
