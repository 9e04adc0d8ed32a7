"""Uploading, against a hub in the place of the real one."""

import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.utils import filter_repo_objects
from support.tiny_export import content

from foundation.codes.dataset import MANIFEST, TokenDataset
from foundation.errors import DataError, StorageError
from pipeline.encoding.push import push_token_dataset


class Hub:
    """Keeps repositories in a folder, by the interface of ``HfApi``."""

    def __init__(self, root: Path) -> None:
        self.root, self.commits, self.made = root, [], []

    def create_repo(self, repo_id: str, *, repo_type: str, private: bool, exist_ok: bool) -> str:
        if repo_id.startswith("other/"):
            raise OSError("403 Forbidden")
        self.made.append((repo_id, repo_type, private, exist_ok))
        return f"hub/{repo_type}s/{repo_id}"

    def upload_folder(
        self, *, repo_id: str, repo_type: str, folder_path: Path, allow_patterns: list[str], commit_message: str
    ) -> None:
        files = [path.relative_to(folder_path).as_posix() for path in Path(folder_path).rglob("*") if path.is_file()]
        chosen = list(filter_repo_objects(files, allow_patterns=allow_patterns))
        self.commits.append((commit_message, chosen))
        for name in chosen:
            target = self.root / repo_id / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(Path(folder_path) / name, target)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    made = Hub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda token: made)
    return made


def test_all_of_a_dataset_arrives_and_the_manifest_last(clean: Path, tmp_path: Path, hub: Hub) -> None:
    local = Path(shutil.copytree(clean, tmp_path / "codes"))
    (local / ".packed" / "train").mkdir(parents=True)
    (local / ".packed" / "train" / "codes").write_bytes(b"0" * 100)
    address = push_token_dataset(local, "someone/codes")
    assert address == "hub/datasets/someone/codes" and hub.made == [("someone/codes", "dataset", True, True)]
    assert content(tmp_path / "hub" / "someone" / "codes") == content(clean), "and no packed copy"
    assert [names for _, names in hub.commits][-1] == [MANIFEST] and MANIFEST not in hub.commits[0][1]
    assert len(TokenDataset(tmp_path / "hub" / "someone" / "codes")) == 40


def test_what_is_unfinished_or_damaged_stays_here(clean: Path, tmp_path: Path, hub: Hub) -> None:
    local = Path(shutil.copytree(clean, tmp_path / "codes"))
    with pytest.raises(StorageError, match=r"other/codes: the hub refused: 403"):
        push_token_dataset(local, "other/codes")
    shard = local / "data" / "train" / "part-00002.parquet"
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    with pytest.raises(DataError, match="part-00002"):
        push_token_dataset(local, "someone/codes")
    (local / MANIFEST).unlink()
    with pytest.raises(DataError, match="not complete"):
        push_token_dataset(local, "someone/codes")
    assert not hub.commits


def test_the_stub_has_the_signatures_of_the_hub() -> None:
    import inspect

    for name in ("create_repo", "upload_folder"):
        ours, theirs = (inspect.signature(getattr(cls, name)).parameters for cls in (Hub, huggingface_hub.HfApi))
        assert set(ours) <= set(theirs), name
    _: Any = huggingface_hub.HfApi(token=None)
