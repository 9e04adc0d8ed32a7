"""JSON, tensors, nested states and model folders on disk: safetensors and JSON; no pickle is written or read.

A model folder has the layout of transformers, ``config.json`` and ``model.safetensors``: for use, not for resuming.
Names in its weight file start with ``model.``, under which the transformers shells hold the plain module, so that both
open it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from foundation.errors import CheckpointError, way_out
from foundation.storage import durable

PREFIX = "model."
WEIGHTS = "model.safetensors"
REPAIR = (
    "in a run folder: move this part away and run tessera run again, which makes it again; elsewhere: copy it again"
)
_TENSOR = "__tensor__"
_METADATA = "__metadata__"
_BLOCK_BYTES = 8 << 20
"""hashed and written at once"""
_DTYPES = {
    **{torch.bool: "BOOL", torch.uint8: "U8", torch.int8: "I8", torch.float8_e5m2: "F8_E5M2"},
    **{torch.float8_e4m3fn: "F8_E4M3", torch.int16: "I16", torch.uint16: "U16", torch.float16: "F16"},
    **{torch.bfloat16: "BF16", torch.int32: "I32", torch.uint32: "U32", torch.float32: "F32"},
    **{torch.complex64: "C64", torch.float64: "F64", torch.int64: "I64", torch.uint64: "U64"},
}
"""names of the types in safetensors; a file holds the tensors of the last one first"""


def json_text(values: Any, *, indent: int | None = None) -> bytes:
    """JSON with sorted keys: the same bytes for the same values. NaN, which JSON cannot hold, is a ``ValueError``."""
    return json.dumps(values, indent=indent, sort_keys=True, allow_nan=False).encode()


def read_json(path: Path, keys: tuple[str, ...], *, fix: str) -> dict[str, Any]:
    """The object in ``path``, which must have ``keys``.

    Raises:
        CheckpointError: the file is missing, not JSON, not an object, or lacks a key; it ends with ``fix``.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot be read: {error}", field=str(path), fix=way_out(error, fix)) from error
    return parse_json(content, keys, str(path), fix=fix)


def parse_json(content: bytes, keys: tuple[str, ...], field: str, *, fix: str) -> dict[str, Any]:
    """The object that a file has as JSON; see ``read_json``. ``field`` names the file."""
    try:
        values = json.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot be read: {error}", field=field, fix=fix) from error
    missing = [key for key in keys if not isinstance(values, dict) or key not in values]
    found = "no " + ", ".join(missing)
    CheckpointError.unless(not missing, "is damaged or of another format", field=field, found=found, fix=fix)
    return dict(values)


def split_state(state: Any, prefix: str = "") -> tuple[Any, dict[str, torch.Tensor]]:
    """Separate a nested state into a JSON tree and a flat dictionary of tensors.

    Mappings keep their key types (``int`` keys are marked), sequences become lists. Tensors of the host that are
    contiguous are not copied.

    Raises:
        CheckpointError: two tensors would get one name.
    """
    tensors: dict[str, torch.Tensor] = {}
    return _split(state, prefix, tensors), tensors


def _split(state: Any, prefix: str, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(state, torch.Tensor):
        if prefix in tensors:
            raise CheckpointError("two parts of the state have one name", field=prefix, fix="rename one of them")
        tensors[prefix] = state.detach().cpu().contiguous()
        return {_TENSOR: prefix}
    if isinstance(state, dict):
        names = {key: f"#{key}" if isinstance(key, int) else str(key) for key in state}
        return {
            name: _split(state[key], f"{prefix}/{name}" if prefix else name, tensors) for key, name in names.items()
        }
    if isinstance(state, (list, tuple)):
        return [_split(value, f"{prefix}/{i}", tensors) for i, value in enumerate(state)]
    return state


def join_state(tree: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """The inverse of ``split_state`` (sequences come back as lists)."""
    if isinstance(tree, dict):
        if set(tree) == {_TENSOR}:
            return tensors[tree[_TENSOR]]
        return {int(k[1:]) if k.startswith("#") else k: join_state(v, tensors) for k, v in tree.items()}
    if isinstance(tree, list):
        return [join_state(value, tensors) for value in tree]
    return tree


def save_state(folder: Path, state: dict[str, Any]) -> dict[str, str]:
    """Write ``state.json`` and ``state.safetensors`` into an existing folder; the caller verifies the second.

    Returns:
        SHA-256 (hex) of each file's intended content, by name.

    Raises:
        StorageError: the disk refused.
    """
    tree, tensors = split_state(state)
    text = json_text(tree)
    durable.write_bytes(folder / "state.json", text)
    hashed = durable.write_blocks(folder / "state.safetensors", tensor_blocks(tensors))
    return {"state.json": hashlib.sha256(text).hexdigest(), "state.safetensors": hashed}


def load_state(folder: Path) -> dict[str, Any]:
    """Read what ``save_state`` wrote, into memory: no file stays mapped, which Windows would neither rename nor remove.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    tensors = {name: mapped.clone() for name, mapped in load_tensors(folder / "state.safetensors").items()}
    try:
        return dict(join_state(json.loads((folder / "state.json").read_bytes()), tensors))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"cannot be read: {error}", field=str(folder), fix=way_out(error, REPAIR)) from error


def write_tensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors to a (temporary) path as safetensors, and read the file back.

    Raises:
        StorageError: the disk refused, or gave back something else.
    """
    hashed = durable.write_blocks(path, tensor_blocks(tensors, metadata))
    if durable.file_sha256(path) != hashed:
        raise durable.lost(path)


def tensor_blocks(
    tensors: Mapping[str, torch.Tensor], metadata: dict[str, str] | None = None
) -> Iterator[bytes | memoryview]:
    """The bytes of a safetensors file, those of ``safetensors.torch.save``, without a copy of contiguous host tensors.

    The library's own writer gives no hash, which would cost another pass over the file. Format:
    https://github.com/huggingface/safetensors#format

    Raises:
        CheckpointError: a type of numbers that the format lacks.
    """
    for name, each in tensors.items():
        fix = "convert it to float32 before it is saved"
        CheckpointError.unless(each.dtype in _DTYPES, "cannot be saved", field=name, found=str(each.dtype), fix=fix)
    order = list(_DTYPES)
    names = sorted(sorted(tensors), key=lambda name: order.index(tensors[name].dtype), reverse=True)
    header: dict[str, Any] = {_METADATA: metadata} if metadata else {}
    end = 0
    for name in names:
        each = tensors[name]
        start, end = end, end + each.numel() * each.element_size()
        header[name] = {"dtype": _DTYPES[each.dtype], "shape": list(each.shape), "data_offsets": [start, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in names:
        content = tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
        for start in range(0, len(content), _BLOCK_BYTES):
            yield content[start : start + _BLOCK_BYTES]


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file.

    Raises:
        CheckpointError: the file is missing or not in that format.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot be read: {error}", field=str(path), fix=way_out(error, REPAIR)) from error


def load_weights(module: torch.nn.Module, tensors: dict[str, torch.Tensor], source: str) -> None:
    """Load a state dict strictly: every key present, no key left over, every shape equal.

    Raises:
        CheckpointError: naming the keys.
    """
    own = module.state_dict()
    missing, extra = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    shapes = [k for k in own.keys() & tensors.keys() if own[k].shape != tensors[k].shape]
    if missing or extra or shapes:
        raise CheckpointError(
            "the weights do not fit the configuration",
            field=source,
            found=f"missing {missing[:5]}, left over {extra[:5]}, other shapes {shapes[:5]}",
            fix=f"the folder mixes two models or was edited; {REPAIR}",
        )
    module.load_state_dict(tensors)


def tensors_sha256(tensors: dict[str, torch.Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes, in name order."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return total.hexdigest()


def save_model_folder(
    folder: Path, module: nn.Module, model_type: str, architecture: str, settings: dict[str, Any]
) -> None:
    """Write ``config.json`` and the weights into an existing, empty folder.

    Raises:
        StorageError: the disk refused, or gave back something else.
    """
    hashed = {"weights_sha256": tensors_sha256(module.state_dict())}
    config = {"model_type": model_type, "architectures": [architecture], **settings, **hashed}
    durable.write_bytes(folder / "config.json", json_text(config, indent=1))
    tensors = {PREFIX + name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}
    write_tensors(folder / WEIGHTS, tensors, {"format": "pt"})


def load_model_folder(
    folder: Path, model_type: str, keys: tuple[str, ...]
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The settings, among them ``keys``, and the weights (without prefix) of a model folder.

    Raises:
        CheckpointError: no such folder, a damaged file, another type of model, or weights that were changed.
    """
    path = folder / "config.json"
    if not path.is_file():
        found = "no such folder" if not folder.is_dir() else "a folder without config.json"
        raise CheckpointError("is not a model folder", field=str(folder), found=found, fix="check the path")
    settings = read_json(path, ("model_type",), fix=REPAIR)
    if settings["model_type"] != model_type:
        raise CheckpointError(
            "is another type of model", field=str(folder), found=settings["model_type"], expected=model_type
        )
    settings = read_json(path, (*keys, "weights_sha256"), fix=REPAIR)
    tensors = {name.removeprefix(PREFIX): value for name, value in load_tensors(folder / WEIGHTS).items()}
    if tensors_sha256(tensors) != settings["weights_sha256"]:
        raise CheckpointError("the weights were changed or damaged after saving", field=str(folder), fix=REPAIR)
    return settings, tensors
