"""A run on images in a store: the same tokenizer and codes, to the byte, as on the same files on a disk."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.faulty_server import FaultyServer, serving
from support.picture_runs import QUICK
from support.streamed_sets import files_below, write_archives, write_parquet_files
from support.tiny_export import make_tokenizer

from foundation.images.source_config import DatasetData, DataSource
from foundation.images.sources import open_sources
from foundation.images.tables.row_groups import ParquetRows
from foundation.storage import retrying
from foundation.storage.durable import file_sha256
from pipeline.commands.start import start_run
from pipeline.encoding.export import Export
from pipeline.encoding.plan import EncodeConfig

N = 60


@pytest.fixture(autouse=True)
def _fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TESSERA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(retrying.time, "sleep", lambda _: None)


def results(run: Path, source: dict[str, Any], **changes: Any) -> dict[str, str]:
    """Hashes of the tokenizer and of the codes of a run."""
    overrides = {**QUICK, "data.source": source, "data.shuffle_window": 32, "encode.batch_size": 8, **changes}
    job = start_run("digits", str(run), overrides=overrides)
    try:
        job.run.train_tokenizer()
        job.run.encode()
    finally:
        job.run.release()
    files = [path for part in ("tokenizer", "codes/data") for path in (run / part).rglob("*") if path.is_file()]
    return {path.relative_to(run).as_posix(): file_sha256(path) for path in sorted(files)}


def test_a_run_on_archives_in_a_store_equals_one_on_a_disk(tmp_path: Path) -> None:
    write_archives(tmp_path / "tars", n=N, shards=3)
    archives = {"type": "archives", "label_field": "cls"}
    local = results(tmp_path / "local", {**archives, "path": str(tmp_path / "tars")})
    served = FaultyServer(dict(files_below(tmp_path / "tars")), share=0.2, faults=("500", "cut", "refused"))
    with serving(served) as address:
        remote = results(tmp_path / "remote", {**archives, "path": f"{address}/train-{{0000..0002}}.tar"})
        assert remote == local and any(name.startswith("codes/data/train") for name in local)
        recipe = (tmp_path / "remote" / "recipe.yaml").read_text(encoding="utf-8")
        assert f"path: {address}/train-{{0000..0002}}.tar" in recipe


def exported(folder: Path, tokenizer: Path, source: DataSource) -> dict[str, str]:
    """Hashes of the codes of all images of a source."""
    sources = {"train": open_sources(source)[0]}
    config = EncodeConfig(batch_size=8, images_per_shard=16)
    assert Export(tokenizer, sources, folder, config, torch.device("cpu")).take_part(quiet=True)
    return {path.name: file_sha256(path) for path in sorted((folder / "data").rglob("*.parquet"))}


def test_streamed_tables_are_encoded_in_order_and_give_the_codes_of_tables_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("foundation.images.tables.row_groups._MEMORY_BYTES", 1)
    read: list[int] = []
    whole = ParquetRows.decode

    def counted(self: ParquetRows, group: int, column: str) -> object:
        read.append(group)
        return whole(self, group, column)

    monkeypatch.setattr(ParquetRows, "decode", counted)
    tables, tokenizer = str(write_parquet_files(tmp_path / "tables", n=N)), make_tokenizer(tmp_path / "tokenizer")
    in_memory = exported(tmp_path / "memory", tokenizer, DatasetData(path=tables, label_column="label"))
    assert not read and len(in_memory) == 4
    streamed = DatasetData(path=tables, label_column="label", streaming=True)
    assert exported(tmp_path / "streamed", tokenizer, streamed) == in_memory
    n_groups = 2 * 2  # 30 rows in each file, 16 in a row group
    assert len(read) <= 2 * n_groups + 3, "each row group is read once or twice, not for each image"
