"""A finished tokenizer as stage 1 of a recipe: imported, or of another run; nothing is trained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foundation.config import differences
from foundation.errors import ConfigError, ContractError
from foundation.images.preprocess import Preprocess
from foundation.storage import durable
from foundation.storage.serialization import read_json
from stage1_tokenizer.config import TokenizerConfig

_KEYS = ("tokenizer", "preprocess")


def with_pretrained(values: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's values; if it names a tokenizer, ``tokenizer.model`` and ``data.preprocess`` become that tokenizer's.

    What a recipe that is extended says about either is replaced: the codes depend on both. In the recipe of a run
    folder they stand already, and the named folder may be gone.

    Raises:
        ConfigError: there is no such tokenizer.
        CheckpointError: its settings are damaged.
    """
    stage = values.get("tokenizer")
    named = stage.get("pretrained") if isinstance(stage, Mapping) else None
    if named is None:
        return dict(values)
    assert isinstance(stage, Mapping)
    path = tokenizer_folder(Path(str(named))) / "config.json"
    if not path.is_file():
        if "model" in stage and "preprocess" in (values.get("data") or {}):
            return dict(values)
        raise ConfigError("is not a tokenizer folder", field="tokenizer.pretrained", found=str(named),
                          fix="give a folder that tessera import made, or a run folder")  # fmt: skip
    settings = read_json(path, _KEYS, fix="take the tokenizer anew from where it came")
    data = {**(values.get("data") or {}), "preprocess": settings["preprocess"]}
    return {**values, "data": data, "tokenizer": {**stage, "model": settings["tokenizer"]}}


def adopt_tokenizer(folder: Path, target: Path, config: TokenizerConfig, preprocess: Preprocess) -> None:
    """Copy a finished tokenizer to where a run keeps its own, after checking that it is whole and still the same.

    Args:
        folder: a tokenizer folder, or a run folder.
        target: must not exist.
        config, preprocess: what the recipe says they are.

    Raises:
        CheckpointError: missing or damaged.
        ContractError: other settings than the recipe's, or other codes than when it was frozen.
    """
    from stage1_tokenizer.canary import check_canary
    from stage1_tokenizer.tokenizer import TokenizerModel

    source = tokenizer_folder(folder)
    tokenizer = TokenizerModel.load(source)
    found = {"model": tokenizer.config, "preprocess": tokenizer.preprocess}
    rows = differences({"model": config, "preprocess": preprocess}, found)
    if rows:
        name, expected, value = rows[0]
        raise ContractError(f"the tokenizer is not what the recipe says: {name} differs", field=str(source),
                            found=value, expected=expected, fix="start the run anew in another folder")  # fmt: skip
    if tokenizer.is_discrete:
        check_canary(tokenizer, source)
    durable.publish_folder(target, lambda temporary: durable.copy_files(source, temporary))


def tokenizer_folder(folder: Path) -> Path:
    """The tokenizer in a run folder, or the folder itself."""
    return folder / "tokenizer" if (folder / "tokenizer").is_dir() else folder
