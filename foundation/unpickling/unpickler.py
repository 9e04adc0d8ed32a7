"""A pickle reader that runs nothing.

It carries out the opcodes of the pickle format (Python's ``pickletools`` describes them) on its own stack. Containers,
texts and numbers are built; known calls are answered by ``torch_files.Rebuilder``; ``Name`` and ``PickledObject``
records stand for everything else. No module is imported, nothing that a pickle names is called, and attributes are read
and set on the records alone.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Iterator
from typing import IO, Any

from foundation.errors import CheckpointError
from foundation.unpickling.values import Name, PickledObject

MAX_OPCODES = 1_000_000
"""a checkpoint of a thousand tensors has some fifty thousand"""
MAX_MARKS = 1_000
"""open containers at a time"""
_ATOMS = (str, bytes, int, float, bool, type(None), Name)
_REFUSED = {
    **dict.fromkeys(("EXT1", "EXT2", "EXT4"), "extension codes, which stand for unknown classes"),
    **dict.fromkeys(("NEXT_BUFFER", "READONLY_BUFFER"), "buffers outside the file"),
    "PERSID": "references outside the file as text",
}
_MARK = object()


class Machine:
    """Reads one pickle, or several in a row that share their limits.

    Args:
        persistent: what a persistent id stands for, normally a storage.
        rebuild: answers a call of a name with its arguments, or says ``NotImplemented``.
        max_opcodes: of all pickles together; it also bounds the memo and everything that is built.
    """

    def __init__(
        self,
        persistent: Callable[[Any], Any],
        rebuild: Callable[[Name, tuple[Any, ...]], Any],
        max_opcodes: int = MAX_OPCODES,
    ) -> None:
        self._persistent, self._rebuild, self._max_opcodes = persistent, rebuild, max_opcodes
        self._opcodes = self._marks = 0
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def load(self, stream: IO[bytes]) -> Any:
        """The object that the pickle at the stream's position describes; the stream then stands behind it.

        Raises:
            CheckpointError: not a pickle, a damaged one, one that asks for too much or for what is refused here.
        """
        self._stack, self._memo, self._marks = [], {}, 0
        try:
            for opcode, argument, _ in self._instructions(stream):
                if opcode.name == "STOP":
                    return self._pop()
                self._step(opcode.name, argument)
        except (ValueError, IndexError, KeyError, OverflowError, UnicodeError, TypeError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"is not a sound pickle: {str(error)[:200]}") from error
        raise CheckpointError("is a pickle without an end", fix="it was cut off: download the file again")

    def _instructions(self, stream: IO[bytes]) -> Iterator[tuple[Any, Any, Any]]:
        for instruction in pickletools.genops(stream):
            self._opcodes += 1
            if self._opcodes > self._max_opcodes:
                expected = f"at most {self._max_opcodes:,}"
                raise CheckpointError("is a pickle with too many instructions", expected=expected)
            yield instruction

    def _step(self, name: str, argument: Any) -> None:
        if name in _REFUSED:
            raise CheckpointError(f"is a pickle that uses {_REFUSED[name]}", found=name)
        if name in _PUSHED:
            self._stack.append(argument)
        elif name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name]())
        elif name in _CONTAINERS:
            self._stack.append(_CONTAINERS[name](self._to_mark()))
        elif name in _TUPLES:
            self._stack.append(tuple([self._pop() for _ in range(_TUPLES[name])][::-1]))
        else:
            _ACTIONS[name](self, argument)

    def _pop(self) -> Any:
        value = self._stack.pop()
        if value is _MARK:
            raise ValueError("a mark where a value should be")
        return value

    def _drop(self) -> None:
        self._marks -= self._stack.pop() is _MARK

    def _to_mark(self) -> list[Any]:
        at = len(self._stack) - 1
        while self._stack[at] is not _MARK:
            at -= 1
            if at < 0:
                raise ValueError("no mark")
        values = self._stack[at + 1 :]
        del self._stack[at:]
        self._marks -= 1
        return values

    def _mark(self, _: Any) -> None:
        self._marks += 1
        if self._marks > MAX_MARKS:
            raise CheckpointError("is a pickle that is nested too deeply", expected=f"at most {MAX_MARKS} levels")
        self._stack.append(_MARK)

    def _put(self, index: int | None) -> None:
        value = self._pop()
        self._stack.append(value)
        index = len(self._memo) if index is None else index
        if not 0 <= index <= self._max_opcodes:
            raise CheckpointError("is a pickle with an absurd memo", found=index)
        self._memo[index] = value

    def _get(self, index: int) -> None:
        self._stack.append(self._memo[index])

    def _reduce(self, _: Any) -> None:
        arguments, maker = self._pop(), self._pop()
        self._stack.append(self._called(maker, arguments))

    def _new_with_names(self, _: Any) -> None:
        named, arguments, maker = self._pop(), self._pop(), self._pop()
        made = self._called(maker, arguments) if not named else PickledObject(maker, (arguments, named))
        self._stack.append(made)

    def _called(self, maker: Any, arguments: Any) -> Any:
        if not isinstance(arguments, tuple):
            raise ValueError("arguments that are no tuple")
        answer = self._rebuild(maker, arguments) if isinstance(maker, Name) else NotImplemented
        return PickledObject(maker, arguments) if answer is NotImplemented else answer

    def _build(self, _: Any) -> None:
        state, target = self._pop(), self._stack[-1]
        if isinstance(target, PickledObject):
            target.state = state
        elif not isinstance(target, dict):  # a dictionary's own attributes, such as _metadata, are left out
            raise ValueError(f"a state for a {type(target).__name__}")

    def _append(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, (list, PickledObject)):
            raise ValueError(f"items for a {type(target).__name__}")
        (target.items if isinstance(target, PickledObject) else target).extend(values)

    def _set(self, values: list[Any]) -> None:
        target = self._stack[-1]
        pairs = _pairs(values)
        if isinstance(target, PickledObject):
            target.pairs.extend(pairs)
        elif isinstance(target, dict):
            target.update((sound_key(key), value) for key, value in pairs)
        else:
            raise ValueError(f"entries for a {type(target).__name__}")

    def _add(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, set):
            raise ValueError(f"members for a {type(target).__name__}")
        target.update(sound_key(each) for each in values)

    def _stack_global(self, _: Any) -> None:
        name, module = self._pop(), self._pop()
        self._stack.append(_named(module, name))

    def _global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._stack.append(_named(module, name))

    def _instance(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._stack.append(self._called(_named(module, name), tuple(self._to_mark())))

    def _object(self, _: Any) -> None:
        maker, *arguments = self._to_mark()
        self._stack.append(self._called(maker, tuple(arguments)))


def _named(module: Any, name: Any) -> Name:
    if not isinstance(module, str) or not isinstance(name, str):
        raise ValueError("a global whose name is no text")
    return Name(f"{module}.{name}")


def sound_key(value: Any) -> Any:
    """A dictionary's key: an atom, or a tuple of atoms, so that hashing and comparing it calls nothing and ends."""
    flat = isinstance(value, tuple) and len(value) <= 16 and all(isinstance(each, _ATOMS) for each in value)
    if flat or isinstance(value, (*_ATOMS, PickledObject)):
        return value
    raise ValueError(f"a {type(value).__name__} as a key")


def _pairs(values: list[Any]) -> list[tuple[Any, Any]]:
    if len(values) % 2:
        raise ValueError("a key without a value")
    return list(zip(values[::2], values[1::2], strict=True))


_PUSHED = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": set,
}
_CONTAINERS: dict[str, Callable[[list[Any]], Any]] = {
    "LIST": list,
    "TUPLE": tuple,
    "DICT": lambda values: {sound_key(key): value for key, value in _pairs(values)},
    "FROZENSET": lambda values: frozenset(sound_key(each) for each in values),
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_ACTIONS: dict[str, Callable[[Machine, Any], None]] = {
    "PROTO": lambda machine, _: None,
    "FRAME": lambda machine, _: None,
    "MARK": Machine._mark,
    "POP": lambda machine, _: machine._drop(),
    "POP_MARK": lambda machine, _: machine._to_mark().clear(),
    "DUP": lambda machine, _: machine._stack.append(machine._stack[-1]),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), Machine._get),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), Machine._put),
    "GLOBAL": Machine._global,
    "STACK_GLOBAL": Machine._stack_global,
    "REDUCE": Machine._reduce,
    "NEWOBJ": Machine._reduce,
    "NEWOBJ_EX": Machine._new_with_names,
    "INST": Machine._instance,
    "OBJ": Machine._object,
    "BUILD": Machine._build,
    "APPEND": lambda machine, _: machine._append([machine._pop()]),
    "APPENDS": lambda machine, _: machine._append(machine._to_mark()),
    "SETITEM": lambda machine, _: machine._set([machine._pop(), machine._pop()][::-1]),
    "SETITEMS": lambda machine, _: machine._set(machine._to_mark()),
    "ADDITEMS": lambda machine, _: machine._add(machine._to_mark()),
    "BINPERSID": lambda machine, _: machine._stack.append(machine._persistent(machine._pop())),
}
