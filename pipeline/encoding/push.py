"""A finished token dataset to the Hugging Face hub, where ``datasets`` and this package open it by its name."""

from __future__ import annotations

from pathlib import Path

from foundation.codes.dataset import MANIFEST, read_manifest
from foundation.codes.manifest import open_split
from foundation.errors import StorageError

CONTENT = ["README.md", "card.png", "plan.json", "data/**", "tokenizer/**"]


def push_token_dataset(folder: Path, name: str, *, private: bool = True, token: str | None = None) -> str:
    """Upload a finished token dataset; the manifest, which says that it is complete, goes last.

    Args:
        folder: the dataset; every file is checked against the manifest first.
        name: of the repository, ``owner/name``; it is made if there is none.
        private: whether a repository that is made is private.
        token: of the hub; None takes the one that ``hf auth login`` stored.

    Returns:
        The repository's address.

    Raises:
        DataError: the dataset is not finished, or a file was changed.
        StorageError: the hub refused.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    for split in read_manifest(folder)["splits"]:
        for shard in open_split(folder, split).shards:
            shard.require_unchanged()
    api = HfApi(token=token)
    try:
        address = api.create_repo(name, repo_type="dataset", private=private, exist_ok=True)
        for message, patterns in (
            ("Codes, tokenizer and card", CONTENT),
            ("Manifest: the dataset is whole", [MANIFEST]),
        ):
            api.upload_folder(
                repo_id=name, repo_type="dataset", folder_path=folder, allow_patterns=patterns, commit_message=message
            )
    except (HfHubHTTPError, OSError, ValueError) as error:  # the last: a name that cannot be one
        raise StorageError(
            f"the hub refused: {error}", field=name, fix="check the name and the login (hf auth login), then try again"
        ) from error
    return str(address)
