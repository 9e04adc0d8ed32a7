"""What paths mean: home folders, files that name paths, names on the hub."""

from __future__ import annotations

from pathlib import Path

import pytest

from foundation.errors import ConfigError
from foundation.paths import (
    PathMark,
    absolute,
    beside,
    cache_root,
    expand,
    is_remote,
    is_there,
    relative_to,
    require_no_secret,
    without_secrets,
)

PATH, NAME, WORD = PathMark(), PathMark(or_name=True), PathMark(words=("random",))


def test_the_home_folder_and_a_user_that_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expand("~/x", "field") == str(tmp_path / "x") and expand("a~b", "field") == "a~b"
    with pytest.raises(ConfigError, match=r"field: names no home folder(.|\n)*~nosuchuser"):
        expand("~nosuchuser/x", "field")


def test_a_path_in_a_file_is_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recipes" / "images").mkdir(parents=True)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    folder = Path("recipes")
    assert beside("images", folder, PATH, "f") == beside("images", folder, NAME, "f")
    assert beside("images", folder, PATH, "f") == str(tmp_path / "recipes" / "images")
    assert beside("../recipes/images", folder, NAME, "f") == str(tmp_path / "recipes" / "images")
    assert beside("ima*", folder, PATH, "f") == str(tmp_path / "recipes" / "ima*")
    assert beside("none", folder, PATH, "f") == str(tmp_path / "recipes" / "none")
    assert beside("./none", folder, NAME, "f") == str(tmp_path / "recipes" / "none")
    assert beside("owner/name", folder, NAME, "f") == "owner/name"
    assert beside("random", folder, WORD, "f") == "random" and beside("", folder, WORD, "f") == ""
    assert beside("/a/b", folder, PATH, "f") == "/a/b"
    with pytest.raises(ConfigError, match=r"f: is not there(.|\n)*write \.\./here"):
        beside("here", folder, PATH, "f")


def test_paths_from_the_root_and_seen_from_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    assert absolute("images", PATH) == absolute("./images/", NAME) == str(tmp_path / "images")
    assert (absolute("owner/name", NAME), absolute("random", WORD), absolute("", PATH)) == ("owner/name", "random", "")
    assert relative_to(str(tmp_path / "images"), tmp_path / "runs" / "a") == "../../images"
    assert relative_to("owner/name", tmp_path) is None
    assert is_there(str(tmp_path / "im*")) and not is_there(str(tmp_path / "x*"))


@pytest.mark.parametrize("address", ["s3://b/a-{0..9}.tar", "https://h/x?download=true", "memory://b/*.tar"])
def test_an_address_is_no_path_and_stays_as_it_is(address: str, tmp_path: Path) -> None:
    assert is_remote(address) and not is_remote("./s3/x") and not is_remote("C:\\x")
    for mark in (PathMark(), PathMark(or_name=True)):
        assert beside(address, tmp_path, mark, "field") == address == absolute(address, mark)
    require_no_secret(address, "field")


def test_secrets_are_taken_out_of_texts() -> None:
    text = "cannot read https://me:pw@host/a.tar?sig=1 and s3://b/a"
    assert without_secrets(text) == "cannot read https://host/a.tar and s3://b/a"


def test_the_cache_is_where_the_variable_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TESSERA_CACHE", str(tmp_path))
    assert cache_root() == tmp_path
    monkeypatch.delenv("TESSERA_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_root() == tmp_path / "tessera"
