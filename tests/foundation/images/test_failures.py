import errno
import os
from pathlib import Path

import pytest
from support.other_systems import windows

from foundation.errors import DataError
from foundation.images import failures
from foundation.images.failures import BadImage, named, read_plain_file


def refused(path: Path) -> str:
    with pytest.raises(BadImage) as caught:
        read_plain_file(path)
    return caught.value.code


def test_the_bytes_of_a_plain_file_are_read_and_a_link_only_if_it_is_allowed(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert read_plain_file(tmp_path / "a") == b"abc" == read_plain_file(tmp_path / "link", follow_links=True)
    assert refused(tmp_path / "link") == "not_a_file"


def test_pipes_folders_devices_and_missing_files_are_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert refused(tmp_path / "pipe") == refused(tmp_path) == refused(Path("/dev/zero")) == "not_a_file"
    assert refused(tmp_path / "none") == refused(tmp_path / "none" / "deeper") == "vanished"


def test_windows_refuses_links_and_folders_by_name(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    with windows():
        assert read_plain_file(tmp_path / "a") == b"abc" == read_plain_file(tmp_path / "link", follow_links=True)
        assert refused(tmp_path / "link") == refused(tmp_path) == "not_a_file"
        assert refused(tmp_path / "none") == "vanished"


def test_a_file_above_the_limit_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open(tmp_path / "a", "wb") as file:
        file.truncate(failures.MAX_FILE_BYTES + 1)
    assert refused(tmp_path / "a") == "too_large"


@pytest.mark.parametrize("error", [BadImage("vanished", "is gone"), OSError(errno.EIO, "broken")])
def test_a_failure_that_is_not_listed_names_the_image(error: Exception) -> None:
    with (
        pytest.raises(DataError, match=r"cats/1.png: cannot be read: .*(gone|broken)(.|\n)*readable again"),
        named("cats/1.png"),
    ):
        raise error
