"""Published checkpoint as named tensors, independent of file format and wrapper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from foundation.errors import CheckpointError, way_out
from foundation.unpickling.torch_files import is_pickle, read_torch_file
from foundation.unpickling.values import LazyTensor, PickledObject

_WRAPPERS = ("state_dict", "model", "module")
_MODULE_PARTS = ("_parameters", "_buffers")
_MAX_DEPTH = 50
_SAFETENSORS_DTYPES = {
    **{f"F{bits}": getattr(torch, f"float{bits}") for bits in (16, 32, 64)},
    **{f"I{bits}": getattr(torch, f"int{bits}") for bits in (8, 16, 32, 64)},
    **{"BF16": torch.bfloat16, "U8": torch.uint8, "BOOL": torch.bool},
}


@dataclass(frozen=True)
class Checkpoint:
    """Names and tensors.

    Attributes:
        tensors: by the system's names.
        beside: other content of the files, name -> reason why it is not used.
        files: the files.
    """

    tensors: Mapping[str, LazyTensor]
    beside: Mapping[str, str]
    files: tuple[Path, ...]

    @property
    def source(self) -> str:
        """The files, for messages."""
        return " + ".join(str(each) for each in self.files)

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of a required tensor.

        Raises:
            CheckpointError: the tensor is missing.
        """
        if key not in self.tensors:
            raise self.error("lacks a tensor", found=f"no {key}", fix="the file is truncated or of another format")
        return self.tensors[key].shape

    def error(self, what: str, **known: Any) -> CheckpointError:
        """An error about these files; ``known`` are found, expected and fix."""
        return CheckpointError(what, field=self.source, **known)

    def has(self, prefix: str) -> bool:
        """Whether a name starts with ``prefix``."""
        return any(key.startswith(prefix) for key in self.tensors)

    def below(self, prefix: str, reason: str) -> Checkpoint:
        """Select the tensors below ``prefix`` and strip it; the others go to ``beside`` with ``reason``."""
        inner = {key.removeprefix(prefix): value for key, value in self.tensors.items() if key.startswith(prefix)}
        others = {key: reason for key in self.tensors if not key.startswith(prefix)}
        return Checkpoint(inner, {**self.beside, **others}, self.files)


def open_checkpoint(paths: Sequence[Path]) -> Checkpoint:
    """Open one file, or two files of an encoder and a decoder.

    Raises:
        CheckpointError: a missing or damaged file, a file without tensors, or two files with the same names.
    """
    tensors: dict[str, LazyTensor] = {}
    beside: dict[str, str] = {}
    for path in paths:
        opened, others = _open_file(path)
        both = sorted(opened.keys() & tensors.keys())
        if both:
            fix = "give the file of the encoder and that of the decoder, or one file of both"
            raise CheckpointError("repeats tensors of the other file", field=str(path), found=both[0], fix=fix)
        tensors |= opened
        beside |= others
    return Checkpoint(tensors, beside, tuple(paths))


def _open_file(path: Path) -> tuple[dict[str, LazyTensor], dict[str, str]]:
    if not path.is_file():
        found = "a folder" if path.is_dir() else "no such file"
        raise CheckpointError("is not a file", field=str(path), found=found, fix="give the checkpoint file")
    with open(path, "rb") as file:
        start = file.read(9)
    beside: dict[str, str] = {}
    if len(start) == 9 and start[8:9] == b"{":
        tensors = _open_safetensors(path)
    elif is_pickle(start):
        tensors, beside = unwrap(read_torch_file(path))
    else:
        expected, fix = "safetensors, a file of torch.save, or a pickle", "unpack an archive and give the file inside"
        raise CheckpointError("is no checkpoint", field=str(path), found=repr(start), expected=expected, fix=fix)
    if not tensors:
        raise CheckpointError("holds no tensors", field=str(path), found=", ".join(list(beside)[:10]) or "nothing")
    return _named_by_part(tensors), beside


def _open_safetensors(path: Path) -> dict[str, LazyTensor]:
    from safetensors import SafetensorError, safe_open

    try:
        file = safe_open(path, "pt")  # type: ignore[no-untyped-call]
        tensors = {}
        for key in file.keys():  # noqa: SIM118  not a mapping
            part = file.get_slice(key)
            dtype = _SAFETENSORS_DTYPES.get(part.get_dtype())
            if dtype is None:
                what = "has an element type that no importer uses"
                raise CheckpointError(what, field=f"{path}: {key}", found=part.get_dtype())
            tensors[key] = LazyTensor(tuple(part.get_shape()), dtype, partial(file.get_tensor, key))
    except (OSError, SafetensorError) as error:
        fix = way_out(error, "the file is truncated or damaged: copy or download it again")
        raise CheckpointError(f"cannot be read: {error}", field=str(path), fix=fix) from error
    return tensors


def unwrap(root: Any) -> tuple[dict[str, LazyTensor], dict[str, str]]:
    """Find the state dict in the content of a file, and the names beside it.

    A state dict is the root, lies under a usual name, or belongs to a pickled module.
    """
    if isinstance(root, PickledObject):
        return _module_state(root), {}
    if not isinstance(root, dict):
        return {}, {type(root).__name__: "not a state dict"}
    for name in _WRAPPERS:
        inner = root.get(name)
        if isinstance(inner, (dict, PickledObject)):
            tensors, beside = (_module_state(inner), {}) if isinstance(inner, PickledObject) else _flat(inner)
            if tensors:
                others = {str(key): f"stands beside {name}" for key in root if key != name}
                return _without_shell(tensors), {**beside, **others}
    tensors, beside = _flat(root)
    return _without_shell(tensors), beside


def _flat(state: dict[Any, Any]) -> tuple[dict[str, LazyTensor], dict[str, str]]:
    tensors = {key: value for key, value in state.items() if isinstance(key, str) and isinstance(value, LazyTensor)}
    return tensors, {str(key): "not a tensor" for key in state if key not in tensors}


def _without_shell(tensors: dict[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Strip the prefix of data-parallel or compiled training."""
    for prefix in ("module.", "_orig_mod."):
        if all(key.startswith(prefix) for key in tensors):
            tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return tensors


def _module_state(module: PickledObject, prefix: str = "", depth: int = 0) -> dict[str, LazyTensor]:
    """Collect the state dict of a pickled module from its recorded attributes.

    Raises:
        CheckpointError: modules nested too deeply.
    """
    if depth > _MAX_DEPTH:
        raise CheckpointError("holds modules nested too deeply", expected=f"at most {_MAX_DEPTH} levels")
    state: dict[str, LazyTensor] = {}
    for part in _MODULE_PARTS:
        named = module.attributes.get(part)
        for key, value in named.items() if isinstance(named, dict) else ():
            if isinstance(value, LazyTensor):
                state[f"{prefix}{key}"] = value
    children = module.attributes.get("_modules")
    for key, child in children.items() if isinstance(children, dict) else ():
        if isinstance(child, PickledObject):
            state |= _module_state(child, f"{prefix}{key}.", depth + 1)
    return state


def _named_by_part(tensors: dict[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Prefix the equal names of the dVAE's two files; the first kernel is 1 x 1 in the decoder only."""
    first = tensors.get("blocks.input.w")
    if first is None or not all(key.startswith("blocks.") for key in tensors):
        return tensors
    part = "decoder" if first.shape[2:] == (1, 1) else "encoder"
    return {f"{part}.{key}": value for key, value in tensors.items()}
