"""Structure of an image folder: subfolders that are classes, and those that look like something else.

Splits, wrappers, cameras, dates and numbered shards are refused as classes, with the ways out.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath

from foundation.errors import DataError

_SPLIT = re.compile(
    r"(train|val|valid|test|dev|eval|holdout)(ing|idation)?([-_ ]?(set|data|split|images))?[-_ ]?\d*", re.I
)
_TRAIN = re.compile(r"train", re.I)
_KINDS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("folders of a camera", re.compile(r"\d{3}[A-Z0-9_]{5}|DCIM|Camera|Screenshots|WhatsApp.*", re.I)),
    ("dates", re.compile(r"(19|20)\d\d([-_. ]?(0[1-9]|1[0-2])([-_. ]?[0-3]\d)?)?")),
    ("numbered shards", re.compile(r"(part|shard|chunk|batch|split)[-_ ]?\d+|0\d{4,}", re.I)),
)


def classes_of(ids: Sequence[str], folder: str, field: str, *, trusted: bool) -> tuple[list[str] | None, list[str]]:
    """The class of each image by its subfolder.

    Args:
        ids: paths of the images below the folder.
        folder: the folder, as the user gave it.
        field: the recipe's field that names it.
        trusted: take the subfolders as classes whatever they are called.

    Returns:
        The classes, None without subfolders; and sentences about what was seen.

    Raises:
        DataError: loose images beside subfolders, or subfolders that look like something else than classes.
    """
    tops = [sys.intern(name.split("/", 1)[0]) if "/" in name else None for name in ids]
    if not any(tops):
        return None, []
    source = field.rpartition(".")[0]
    if not all(tops):
        stray = [name for name, top in zip(ids, tops, strict=True) if top is None]
        raise DataError(
            "mixes class subfolders with loose images",
            field=field,
            found=f"{len(stray)} loose, e.g. {stray[0]}",
            expected="either subfolders only (their names become classes) or images only (no classes)",
            fix=f"move the loose images; or use no classes ({_option(source, 'subfolders ignored')}); or name the "
            f"classes in a CSV file ({_option(source, 'labels FILE')})",
        )
    classes = [str(top) for top in tops]
    names = sorted(set(classes))
    if not trusted:
        _require_classes(names, ids, folder, field)
    return classes, _notes(names, ids)


def _option(source: str, text: str) -> str:
    return f"--{source}.{text}"


def _require_classes(names: list[str], ids: Sequence[str], folder: str, field: str) -> None:
    """Refuse subfolders that look like something else than classes."""
    source = field.rpartition(".")[0]
    trust = f"or take them as classes all the same ({_option(source, 'trust_classes true')})"
    ignore = f"or use the images without classes ({_option(source, 'subfolders ignored')})"
    if len(names) == 1:
        wrapper, below = _wrapper(ids)
        inner = (
            _splits_fix(below, f"{folder}/{wrapper}", field) if _is_split(below) else f"--{field} {folder}/{wrapper}"
        )
        raise DataError(
            "holds a single subfolder, which would be the only class",
            field=field,
            found=f"{folder}: {names[0]}",
            expected="one subfolder for each class, or images",
            fix=f"give the folder below ({inner}); {ignore}; {trust}",
        )
    if _is_split(names):
        raise DataError(
            "holds splits, not classes",
            field=field,
            found=f"{folder}: {', '.join(names)}",
            expected="one subfolder for each class, or images",
            fix=f"give the splits ({_splits_fix(names, folder, field)}); {ignore}; {trust}",
        )
    for kind, pattern in _KINDS:
        if all(pattern.fullmatch(name) for name in names):
            raise DataError(
                f"holds {kind}, not classes",
                field=field,
                found=f"{folder}: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}",
                expected="one subfolder for each class, or images",
                fix=f"{ignore.removeprefix('or ')}; {trust}",
            )


def _is_split(names: Sequence[str]) -> bool:
    """Whether folders are parts of a data set: all are named like one, or a few are and one is for training."""
    splits = [name for name in names if _SPLIT.fullmatch(name)]
    has_train = any(_TRAIN.match(name) for name in splits)
    return bool(splits) and (len(splits) == len(names) or (has_train and 2 * len(splits) >= len(names)))


def _splits_fix(names: Sequence[str], folder: str, field: str) -> str:
    """Options that name the training and the validation part."""
    source = field.rpartition(".")[0]
    train = next((name for name in names if _TRAIN.match(name)), names[0])
    rest = [name for name in names if name != train and _SPLIT.fullmatch(name)]
    validation = next((name for name in rest if name.lower().startswith("val")), rest[0] if rest else None)
    text = f"--{field} {folder}/{train}"
    return text if validation is None else f"{text} {_option(source, f'validation_path {folder}/{validation}')}"


def _wrapper(ids: Sequence[str]) -> tuple[str, list[str]]:
    """The folders that all images share, and the subfolders below them."""
    parts = [PurePosixPath(name).parts[:-1] for name in ids]
    depth = 0
    while all(len(each) > depth for each in parts) and len({each[depth] for each in parts}) == 1:
        depth += 1
    return "/".join(parts[0][:depth]), sorted({each[depth] for each in parts if len(each) > depth})


def _notes(names: list[str], ids: Sequence[str]) -> list[str]:
    """What a person may want to know of the subfolders that are taken as classes."""
    notes = _named(names, lambda name: bool(_SPLIT.fullmatch(name)), "a class is named like a split: {}")
    inner = sorted({name.split("/")[1] for name in ids if name.count("/") > 1})
    if inner:
        what = "subfolders of classes are not distinguished"
        notes.append(f"{what}: {', '.join(inner[:5])}{', ...' if len(inner) > 5 else ''}")
    return notes + _named(_alike(names), bool, "classes that differ in case or spaces only: {}")


def _named(names: list[str], picked: Callable[[str], bool], text: str) -> list[str]:
    found = [name for name in names if picked(name)]
    return [text.format(", ".join(found[:5]))] if found else []


def _alike(names: list[str]) -> list[str]:
    folded = [" ".join(name.casefold().replace("_", " ").split()) for name in names]
    return [name for name, each in zip(names, folded, strict=True) if folded.count(each) > 1]
