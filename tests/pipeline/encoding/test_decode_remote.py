"""Decoding from a store into a store equals decoding on a disk, whatever fails on the way."""

from pathlib import Path

import numpy as np
import pytest
from support.object_store import ObjectStore, hurry
from support.tiny_export import content, make_inputs, tiny_export

from foundation.codes.dataset import TokenDataset
from foundation.errors import ConfigError, DataError
from foundation.storage.remote.uploads import upload_bytes
from pipeline.cli import main
from pipeline.encoding import decode
from pipeline.encoding.decode import decode_to_folder


@pytest.fixture(scope="module")
def codes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A token dataset of 30 rows."""
    folder = tmp_path_factory.mktemp("made")
    assert tiny_export(*make_inputs(folder, 5), folder / "codes")
    return folder / "codes"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hurry(monkeypatch)
    monkeypatch.setattr(decode, "IMAGES_PER_FOLDER", 9)
    monkeypatch.setenv("TESSERA_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def local(codes: Path, tmp_path: Path) -> dict[str, str]:
    """SHA-256 of the images on a disk."""
    assert decode_to_folder(str(codes), str(tmp_path / "local")) == 30
    return content(tmp_path / "local")


def send(folder: Path, address: str) -> str:
    for path in (each for each in sorted(folder.rglob("*")) if each.is_file()):
        upload_bytes(path.read_bytes(), f"{address}/{path.relative_to(folder).as_posix()}")
    return address


def test_codes_of_a_store_become_images_of_a_store_through_faults(
    object_store: ObjectStore, codes: Path, local: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = send(codes, f"{object_store.address}/codes"), f"{object_store.address}/a/images"
    object_store.share = 0.15
    assert main(["decode", source, "-o", out]) == 0
    assert object_store.hashes("a/images") == local
    said = capsys.readouterr()
    assert f"30 of 30 images in {out}" in said.out and f"copying codes from {source}" in said.err


def test_what_an_outage_stops_goes_on_where_it_was(
    object_store: ObjectStore, codes: Path, local: dict[str, str]
) -> None:
    out, stopped = f"{object_store.address}/images", 0
    for attempt in range(20):
        object_store.fail_from(len(object_store.requests) + 12 * (attempt + 1))
        try:
            assert decode_to_folder(str(codes), out) == 30
            break
        except DataError:
            stopped += 1
        object_store.fail_from(None)
        assert object_store.hashes("images").items() <= local.items()
    object_store.fail_from(None)
    assert object_store.hashes("images") == local and stopped >= 3
    puts = [path for method, path in object_store.requests if method == "PUT" and "/images/train/00000/" in path]
    before = len(object_store.requests)
    assert decode_to_folder(str(codes), out) == 30
    assert "PUT" not in {method for method, _ in object_store.requests[before:]}, "what is complete is not made again"
    assert puts[-1].endswith("metadata.jsonl"), "a folder's list of its images comes last"


def test_places_of_something_else_are_refused(object_store: ObjectStore, codes: Path, local: dict[str, str]) -> None:
    out = f"{object_store.address}/images"
    upload_bytes(b"mine", f"{out}/holiday.png")
    with pytest.raises(ConfigError, match=r"holds folders of something else(.|\n)*holiday.png"):
        decode_to_folder(str(codes), out)
    source = send(codes, f"{object_store.address}/codes")
    with pytest.raises(ConfigError, match="is a place of a token dataset"):
        decode_to_folder(str(codes), source)
    assert decode_to_folder(str(codes), f"{object_store.address}/b", split="validation") == 10
    with pytest.raises(ConfigError, match="batch_size"):
        decode_to_folder(str(codes), f"{object_store.address}/b", split="validation", batch_size=5)
    with pytest.raises(ConfigError, match="holds a password") as refused:
        decode_to_folder(str(codes), "s3://me:hidden@bucket/images")
    assert "hidden" not in str(refused.value)


def test_arrays_and_tables_of_a_store_are_decoded_too(object_store: ObjectStore, codes: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "mine.npy", TokenDataset(codes).grids[:5].astype(np.int64))
    upload_bytes((tmp_path / "mine.npy").read_bytes(), f"{object_store.address}/mine.npy")
    assert decode_to_folder(str(tmp_path / "mine.npy"), str(tmp_path / "local-five"), tokenizer=str(codes)) == 5
    out = f"{object_store.address}/five"
    assert decode_to_folder(f"{object_store.address}/mine.npy", out, tokenizer=str(codes)) == 5
    assert object_store.hashes("five") == content(tmp_path / "local-five")
