"""An export into a store equals a local one to the byte, whatever fails on the way, and the manifest comes last."""

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import fsspec
import pytest
import torch
from support.crash_points import DONE, without_waiting
from support.object_store import ObjectStore, hurry
from support.streamed_sets import write_archives
from support.tiny_export import CONFIG, content, make_images, make_tokenizer, sources_of

from foundation.codes.fetched import fetch_dataset, local_codes
from foundation.codes.manifest import MANIFEST
from foundation.codes.sources import open_codes
from foundation.errors import ContractError, DataError, Interrupted, StorageError
from foundation.images.source_config import ArchiveData
from foundation.images.sources import ImageSource, open_sources
from foundation.storage import durable
from foundation.storage.places import Place, RemotePlace
from pipeline.encoding.export import Export, is_encoded, retry_failed
from pipeline.encoding.status import export_status
from pipeline.work_sharing import Part


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hurry(monkeypatch)
    monkeypatch.setenv("TESSERA_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Images, one of them unreadable, and a tokenizer."""
    folder = tmp_path_factory.mktemp("inputs")
    images = make_images(folder / "images", 5)
    (images / "ant" / "002.png").write_bytes(b"no picture")
    return images, make_tokenizer(folder / "tokenizer")


@pytest.fixture(scope="module")
def local(inputs: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """SHA-256 of the files of the export on a disk."""
    codes = tmp_path_factory.mktemp("local") / "codes"
    assert opened(inputs, codes).take_part(quiet=True)
    return content(codes)


def opened(inputs: tuple[Path, Path], folder: Path | Place, sources: dict[str, ImageSource] | None = None) -> Export:
    images, tokenizer = inputs
    return Export(tokenizer, sources or sources_of(images), folder, CONFIG, torch.device("cpu"))


def test_an_export_through_faults_equals_the_local_one_and_so_do_its_copies(
    object_store: ObjectStore, inputs: tuple[Path, Path], local: dict[str, str], tmp_path: Path
) -> None:
    object_store.share = 0.2
    place = RemotePlace(f"{object_store.address}/codes", tmp_path / "codes")
    assert opened(inputs, place).take_part(quiet=True) and is_encoded(place)
    assert object_store.hashes("codes") == local == content(tmp_path / "codes")
    assert sum(object_store.counts[each] for each in ("lost", "misreported", "500", "cut", "silent")) > 5
    assert not list(tmp_path.rglob("*.leases/*.json")) and "secret" not in str(object_store.files())


def test_the_plan_comes_first_and_the_manifest_last(
    object_store: ObjectStore, inputs: tuple[Path, Path], tmp_path: Path
) -> None:
    place = RemotePlace(f"{object_store.address}/codes", tmp_path / "codes")
    assert opened(inputs, place).take_part(quiet=True)
    puts = [path.partition("/codes/")[2] for method, path in object_store.requests if method == "PUT"][1:]
    assert puts[0].startswith("plan-") and puts[1] == "plan.json" and puts[-1] == MANIFEST
    parts = [i for i, name in enumerate(puts) if name.startswith("data/")]
    assert parts == list(range(2, 2 + len(parts))), "then the parts, then tokenizer and card"
    assert len(puts) == len(set(puts)), "nothing twice"


def test_an_outage_at_any_request_leaves_what_another_machine_goes_on_with(
    object_store: ObjectStore, inputs: tuple[Path, Path], local: dict[str, str], tmp_path: Path
) -> None:
    """From the k-th request on everything fails, for k in steps; the next attempt begins with nothing on its disk."""
    stopped, attempts = 0, 0
    while True:
        attempts += 1
        place = RemotePlace(f"{object_store.address}/codes", tmp_path / f"machine-{attempts}")
        n_before = len(object_store.requests)
        object_store.fail_from(n_before + 13 * attempts)
        try:
            assert opened(inputs, place).take_part(quiet=True)
            break
        except DataError as error:
            assert "secret" not in str(error)
            stopped += 1
        object_store.fail_from(None)
        there = object_store.hashes("codes")
        assert there.items() <= local.items(), "what is there is whole"
        assert MANIFEST not in there or there == local, "and the manifest says that all is"
    object_store.fail_from(None)
    assert object_store.hashes("codes") == local and stopped >= 3


def test_machines_with_a_part_each_make_one_dataset_and_do_nothing_twice(
    object_store: ObjectStore, inputs: tuple[Path, Path], local: dict[str, str], tmp_path: Path
) -> None:
    """The first is told to stop in the middle; the second does its own part first, then what the first has left."""
    address, done = f"{object_store.address}/codes", []
    first = opened(inputs, RemotePlace(address, tmp_path / "one"))
    publish = first.publish

    def stopping(planned, shard) -> None:
        publish(planned, shard)
        done.append(planned.name)
        if len(done) == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    first.publish = stopping  # type: ignore[method-assign]
    with pytest.raises(Interrupted):
        first.take_part(Part(0, 2), wait=False, quiet=True)
    assert done == ["train-00000", "train-00002"]
    status = export_status(RemotePlace(address, tmp_path / "status"))
    assert (status.planned, status.files_written, status.finished) == (20, 2, False) and status.failed == 1
    assert not list((tmp_path / "status").rglob("part-*")), "a look at the progress copies no codes"
    second = opened(inputs, RemotePlace(address, tmp_path / "two"))
    assert second.take_part(Part(1, 2), wait=False, quiet=True)
    assert object_store.hashes("codes") == local == content(tmp_path / "two")
    puts = [path for method, path in object_store.requests if method == "PUT" and "/data/" in path]
    assert len(puts) == len(set(puts)) == len(second.shards)


def test_codes_of_this_disk_are_sent_and_not_made_again(
    object_store: ObjectStore,
    inputs: tuple[Path, Path],
    local: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert opened(inputs, tmp_path / "codes").take_part(quiet=True)
    export = opened(inputs, RemotePlace(f"{object_store.address}/codes", tmp_path / "codes"))
    monkeypatch.setattr(export.encoder, "encode", lambda *_: pytest.fail("encoded again"))
    assert export.take_part(quiet=True)
    assert object_store.hashes("codes") == local == content(tmp_path / "codes")


def test_other_images_other_files_and_other_content_are_refused(
    object_store: ObjectStore, inputs: tuple[Path, Path], tmp_path: Path
) -> None:
    place = RemotePlace(f"{object_store.address}/codes", tmp_path / "codes")
    export = opened(inputs, place)
    other = (make_images(tmp_path / "other", 4, seed=1), inputs[1])
    with pytest.raises(ContractError, match="plans other images"):
        opened(other, RemotePlace(place.address, tmp_path / "else"))
    planned = export.shards[0]
    shard = export.encoder.encode(planned)
    RemotePlace(place.address).publish_file(planned.file, lambda path: durable.write_bytes(path, b"another's"))
    with pytest.raises(StorageError, match="exists already with other content"):
        export.publish(planned, shard)
    RemotePlace(place.address).publish_file(
        "data/train/part-00099.parquet", lambda path: durable.write_bytes(path, b"x")
    )
    with pytest.raises(ContractError, match="shard of other images"):
        opened(inputs, RemotePlace(place.address, tmp_path / "again"))


def test_failed_images_are_encoded_again_in_the_store(
    object_store: ObjectStore, inputs: tuple[Path, Path], tmp_path: Path
) -> None:
    images = Path(shutil.copytree(inputs[0], tmp_path / "images"))
    mine = (images, inputs[1])
    place = RemotePlace(f"{object_store.address}/codes", tmp_path / "codes")
    assert opened(mine, place).take_part(quiet=True)
    shutil.copy(images / "ant" / "001.png", images / "ant" / "002.png")
    assert opened(mine, tmp_path / "whole").take_part(quiet=True)
    elsewhere = RemotePlace(place.address, tmp_path / "elsewhere")
    object_store.share = 0.1
    assert retry_failed(opened(mine, elsewhere))
    expected = content(tmp_path / "whole")
    assert object_store.hashes("codes") == expected == content(tmp_path / "elsewhere")
    fetch_dataset(place)
    assert content(tmp_path / "codes") == expected, "copies follow"


def test_codes_at_an_address_are_read_by_way_of_verified_copies(
    object_store: ObjectStore, inputs: tuple[Path, Path], tmp_path: Path
) -> None:
    address = f"{object_store.address}/codes"
    with pytest.raises(DataError, match="holds no codes"):
        local_codes(address)
    place = RemotePlace(address, tmp_path / "codes")
    export = opened(inputs, place)
    with pytest.raises(DataError, match="not complete"):
        local_codes(address)
    assert export.take_part(quiet=True)
    object_store.share = 0.2
    copy = local_codes(address)
    assert content(copy) == content(tmp_path / "codes")
    gets = object_store.counts["GET"]
    object_store.share = 0.0
    assert local_codes(address) == copy and object_store.counts["GET"] < gets + 10, "nothing is copied twice"
    rows, there = (open_codes(each) for each in (copy, tmp_path / "codes"))
    assert [each.identity for each in rows] == [each.identity for each in there]
    one = local_codes(f"{address}/data/train/part-00000.parquet")
    assert one.read_bytes() == (tmp_path / "codes" / "data" / "train" / "part-00000.parquet").read_bytes()
    table = local_codes(f"{address}/data")
    assert [each.split for each in open_codes(table)] == ["train", "validation"]
    damaged = (tmp_path / "codes" / "data" / "train" / "part-00000.parquet").read_bytes()[:-1] + b"?"
    place.replace("data/train/part-00000.parquet", damaged)
    with pytest.raises(DataError, match="differs from what the manifest lists"):
        fetch_dataset(RemotePlace(address, tmp_path / "fresh"))
    assert not (tmp_path / "fresh" / MANIFEST).exists()


def test_any_file_system_of_fsspec_will_do(inputs: tuple[Path, Path], local: dict[str, str], tmp_path: Path) -> None:
    system = fsspec.filesystem("memory")
    if system.exists("/export"):
        system.rm("/export", recursive=True)
    assert opened(inputs, RemotePlace("memory://export/codes", tmp_path / "codes")).take_part(quiet=True)
    assert content(local_codes("memory://export/codes")) == local == content(tmp_path / "codes")


def test_images_of_a_store_give_the_codes_of_images_of_a_disk(
    object_store: ObjectStore, inputs: tuple[Path, Path], tmp_path: Path
) -> None:
    tars = tmp_path / "tars"
    write_archives(tars, n=24, shards=2)
    for path in tars.iterdir():
        fsspec.filesystem("s3").put_file(str(path), f"{object_store.address}/tars/{path.name}")

    def sources(path: str) -> dict[str, ImageSource]:
        return {"train": open_sources(ArchiveData(path=path, label_field="cls"))[0]}

    assert opened(inputs, tmp_path / "codes", sources(str(tars))).take_part(quiet=True)
    object_store.share = 0.15
    place = RemotePlace(f"{object_store.address}/codes", tmp_path / "copies")
    assert opened(inputs, place, sources(f"{object_store.address}/tars")).take_part(quiet=True)
    assert object_store.hashes("codes") == content(tmp_path / "codes")


@pytest.mark.slow
def test_exporters_that_are_killed_at_random_lose_nothing(
    object_store: ObjectStore, inputs: tuple[Path, Path], local: dict[str, str], tmp_path: Path
) -> None:
    rng, kills, n_kills = random.Random(0), 0, 20
    object_store.share = 0.1

    def work(folder: Path) -> None:
        place = RemotePlace(f"{object_store.address}/codes", folder)
        assert opened(inputs, place).take_part(quiet=True)

    begin: Callable[[], int] = lambda: without_waiting(partial(work, tmp_path / f"machine-{kills}"))  # noqa: E731
    while kills < n_kills:
        victim = begin()
        time.sleep(rng.uniform(0.5, 4.0))
        if os.waitpid(victim, os.WNOHANG) == (0, 0):
            os.kill(victim, signal.SIGKILL)
            os.waitpid(victim, 0)
        kills += 1
        there = object_store.hashes("codes")
        assert there.items() <= local.items() and (MANIFEST not in there or there == local)
    assert os.waitstatus_to_exitcode(os.waitpid(begin(), 0)[1]) == DONE
    assert object_store.hashes("codes") == local
