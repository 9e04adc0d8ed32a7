"""A published checkpoint as names and tensors, whatever file and wrapper it comes in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from foundation.errors import CheckpointError
from foundation.unpickling.torch_files import is_pickle, read_torch_file
from foundation.unpickling.values import Inert, LazyTensor

_WRAPPERS = ("state_dict", "model", "module")
_MODULE_PARTS = ("_parameters", "_buffers")
_MAX_DEPTH = 50
_SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class Checkpoint:
    """Names and tensors.

    Attributes:
        tensors: by the names that the system gives them.
        beside: what else the files hold, name -> why it is not used.
        files: where they came from.
    """

    tensors: Mapping[str, LazyTensor]
    beside: Mapping[str, str]
    files: tuple[Path, ...]

    @property
    def source(self) -> str:
        """The files, for messages."""
        return " + ".join(str(each) for each in self.files)

    def shape(self, key: str) -> tuple[int, ...]:
        """Sides of a tensor that must be there.

        Raises:
            CheckpointError: naming the key that is missing.
        """
        if key not in self.tensors:
            raise CheckpointError("lacks a tensor", field=self.source, found=f"no {key}",
                                  fix="the file is cut short or of another format")  # fmt: skip
        return self.tensors[key].shape

    def has(self, prefix: str) -> bool:
        """Whether a name begins so."""
        return any(key.startswith(prefix) for key in self.tensors)

    def below(self, prefix: str, reason: str) -> Checkpoint:
        """What lies under ``prefix``, without it; the rest goes beside, for ``reason``."""
        inner = {key.removeprefix(prefix): value for key, value in self.tensors.items() if key.startswith(prefix)}
        others = {key: reason for key in self.tensors if not key.startswith(prefix)}
        return Checkpoint(inner, {**self.beside, **others}, self.files)


def open_checkpoint(paths: Sequence[Path]) -> Checkpoint:
    """Open one file, or the two of a system that publishes encoder and decoder apart.

    Raises:
        CheckpointError: no such file, a damaged one, one that holds no tensors, or two that hold the same names.
    """
    tensors: dict[str, LazyTensor] = {}
    beside: dict[str, str] = {}
    for path in paths:
        opened, others = _open_file(path)
        both = sorted(opened.keys() & tensors.keys())
        if both:
            raise CheckpointError("holds the same tensors as the other file", field=str(path), found=both[0],
                                  fix="name the encoder's file and the decoder's, or one file of all")  # fmt: skip
        tensors |= opened
        beside |= others
    return Checkpoint(tensors, beside, tuple(paths))


def _open_file(path: Path) -> tuple[dict[str, LazyTensor], dict[str, str]]:
    if not path.is_file():
        found = "a folder" if path.is_dir() else "no such file"
        raise CheckpointError("is not a file", field=str(path), found=found, fix="name the checkpoint file itself")
    with open(path, "rb") as file:
        start = file.read(9)
    beside: dict[str, str] = {}
    if len(start) == 9 and start[8:9] == b"{":
        tensors = _open_safetensors(path)
    elif is_pickle(start):
        tensors, beside = unwrap(read_torch_file(path))
    else:
        raise CheckpointError("is not a checkpoint", field=str(path), found=repr(start),
                              expected="safetensors, a file of torch.save, or a pickle",
                              fix="if it is an archive, unpack it and name the file inside")  # fmt: skip
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
                raise CheckpointError("has an element type that no importer uses", field=f"{path}: {key}",
                                      found=part.get_dtype())  # fmt: skip
            tensors[key] = LazyTensor(tuple(part.get_shape()), dtype, _reader(file, key))
    except (OSError, SafetensorError) as error:
        fix = "the file is cut off or damaged: take it anew from where it came"
        raise CheckpointError(f"cannot be read: {error}", field=str(path), fix=fix) from error
    return tensors


def _reader(file: Any, key: str) -> Any:
    return lambda: file.get_tensor(key)


def unwrap(root: Any) -> tuple[dict[str, LazyTensor], dict[str, str]]:
    """The state dict in what a file held, and the names beside it.

    A state dict may be the root itself, lie under one of the usual names, or be that of a whole pickled module.
    """
    if isinstance(root, Inert):
        return _module_state(root), {}
    if not isinstance(root, dict):
        return {}, {type(root).__name__: "not a state dict"}
    for name in _WRAPPERS:
        inner = root.get(name)
        if isinstance(inner, (dict, Inert)):
            tensors, beside = (_module_state(inner), {}) if isinstance(inner, Inert) else _flat(inner)
            if tensors:
                others = {str(key): f"stands beside {name}" for key in root if key != name}
                return _without_shell(tensors), {**beside, **others}
    tensors, beside = _flat(root)
    return _without_shell(tensors), beside


def _flat(state: dict[Any, Any]) -> tuple[dict[str, LazyTensor], dict[str, str]]:
    tensors = {key: value for key, value in state.items() if isinstance(key, str) and isinstance(value, LazyTensor)}
    return tensors, {str(key): "not a tensor" for key in state if key not in tensors}


def _without_shell(tensors: dict[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Without the prefix that data-parallel or compiled training puts before every name."""
    for prefix in ("module.", "_orig_mod."):
        if all(key.startswith(prefix) for key in tensors):
            tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return tensors


def _module_state(module: Inert, prefix: str = "", depth: int = 0) -> dict[str, LazyTensor]:
    """The state dict of a pickled module, from its recorded attributes.

    Raises:
        CheckpointError: modules nested without end.
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
        if isinstance(child, Inert):
            state |= _module_state(child, f"{prefix}{key}.", depth + 1)
    return state


def _named_by_part(tensors: dict[str, LazyTensor]) -> dict[str, LazyTensor]:
    """The dVAE's two files name their tensors alike; the first kernel, 7 x 7 or 1 x 1, says which of the two it is."""
    first = tensors.get("blocks.input.w")
    if first is None or not all(key.startswith("blocks.") for key in tensors):
        return tensors
    part = "decoder" if first.shape[2:] == (1, 1) else "encoder"
    return {f"{part}.{key}": value for key, value in tensors.items()}
