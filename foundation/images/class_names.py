"""Class names and their numbers; classes from a CSV file."""

from __future__ import annotations

import csv
import io
import posixpath
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from foundation.errors import DataError, nearest

_PATH_COLUMNS = ("path", "file_name", "filename", "image")
_LABEL_COLUMNS = ("label", "class")
_SHOWN = 200  # characters

_FEW_IMAGES = 20
_LONG_NAME = 100
"""characters, beyond which a name is a caption"""


def in_order(names: set[str]) -> tuple[str, ...]:
    """Class names in label order: by number when all are numbers, else alphabetically."""
    numeric = all(name.isdecimal() for name in names)
    return tuple(sorted(names, key=lambda name: (int(name), name) if numeric else (0, name)))


def require_same_classes(expected: tuple[str, ...] | None, found: tuple[str, ...], field: str) -> None:
    """Refuse images whose classes are not the ``expected`` ones; None expects nothing."""
    if expected is not None and found != expected:
        raise DataError(
            "has other classes than the training images",
            field=field,
            found=", ".join(found) or "no classes",
            expected=", ".join(expected) or "no classes",
        )


def class_numbers(
    names_N: Sequence[str], class_names: tuple[str, ...] | None, field: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Number each image's class.

    Args:
        names_N: the class of each image.
        class_names: the classes of the training images; None takes the classes of ``names_N``.
        field: names the source in error messages.

    Returns:
        (N,) int64, and the class names in label order.

    Raises:
        DataError: a class that the training images lack.
    """
    classes = class_names or in_order(set(names_N))
    number = {name: i for i, name in enumerate(classes)}
    unknown = sorted(set(names_N) - number.keys())
    found, fix = ", ".join(unknown[:10]), "train on a split that has every class"
    DataError.unless(not unknown, "has classes that the training split lacks", field=field, found=found, fix=fix)
    return np.array([number[name] for name in names_N], np.int64), classes


def class_number(label: str, names: Mapping[str, int], field: str) -> int:
    """The number of the class that a text names: by name first, else by number with the mark ``#``.

    Args:
        label: a class name, in any normal form of Unicode, or ``#3`` for class 3.
        names: class name -> class number.
        field: what an error names.

    Raises:
        DataError: no such class.
    """
    if label in names:
        return names[label]
    alike = [name for name in names if _normal(name) == _normal(label)]
    if len(alike) == 1:
        return names[alike[0]]
    digits = label.removeprefix("#")
    is_number = digits.isascii() and digits.isdecimal() and len(digits) < 20
    if is_number and label.startswith("#") and int(digits) < len(names):
        return int(digits)
    found, n = repr(label)[:_SHOWN], len(names)
    expected = f"the name of a class, or a number from '#0' to '#{n - 1}'"
    raise DataError("no such class", field=field, found=found, expected=expected, fix=_advice(label, names, is_number))


def _advice(label: str, names: Mapping[str, int], is_number: bool) -> str:
    """What was probably meant by a text that names no class."""
    if is_number and not label.startswith("#"):
        equal = [repr(name) for name in names if name.isdecimal() and int(name) == int(label)]
        marked = f"#{int(label)}"
        numbered = (
            [f"{marked!r}, the class with that number"] if int(label) < len(names) and marked not in names else []
        )
        if equal or numbered:
            return f"did you mean {' or '.join([*equal[:3], *numbered])}?"
    if label.strip() in names:
        return f"did you mean {label.strip()!r}, without the white space around it?"
    return nearest(label[:_SHOWN], names)


def _normal(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def require_tidy(names: Sequence[str], field: str, where: Sequence[str] | str) -> None:
    """Refuse classes with white space around their names, which nobody sees.

    Args:
        names: the class of each image.
        field: what an error names.
        where: the place of each in words, or of all.

    Raises:
        DataError: naming the first.
    """
    for i, name in enumerate(names):
        if name != name.strip():
            place = where if isinstance(where, str) else where[i]
            what, fix = (
                "has white space around a class name",
                "write the name without it: it would make a class of its own",
            )
            raise DataError(what, field=field, found=f"{name!r}, {place}", expected=repr(name.strip()), fix=fix)


def listed_classes(path: Path, ids: Sequence[str], field: str) -> list[str]:
    """The class of each image by a CSV file.

    The file has a column ``path``, ``file_name``, ``filename`` or ``image`` and a column ``label`` or ``class``;
    commas, semicolons or tabs stand between the columns. Labels are text and stay as they are.

    Args:
        path: the file.
        ids: of the images, in order.
        field: what an error names.

    Raises:
        DataError: the file cannot be read or lacks a column; an image without a row, or a row without an image.
    """
    known, there = set(ids), {_form(each): each for each in ids}
    named = _read_classes(path, field)
    classes: dict[str, str] = {}
    for name, label in named.items():
        own = name if name in known else there.get(_form(name), name)
        if classes.setdefault(own, label) != label:
            raise DataError("names two classes for an image", field=field, found=f"{own} in {path}")
    missing = [each for each in ids if each not in classes]
    if missing:
        expected = f"a row in {path} for each image, by its path below the folder"
        found = f"{len(missing)}, e.g. {missing[0]}"
        raise DataError("names no class for some images", field=field, found=found, expected=expected)
    others = sorted(classes.keys() - known)
    if others:
        found, fix = (
            f"{len(others)}, e.g. {others[0]}",
            f"restore the files, or list only files that are there in {path}",
        )
        raise DataError("names files that are missing", field=field, found=found, fix=fix)
    return [classes[each] for each in ids]


def _form(path: str) -> str:
    """A path as another system may spell it: another normal form of Unicode, or back slashes."""
    return _normal(path.replace("\\", "/"))


def _read_classes(path: Path, field: str) -> dict[str, str]:
    """Path below the folder -> class."""
    classes: dict[str, str] = {}
    try:
        text = path.read_bytes().decode("utf-8-sig")
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=_delimiter(text), strict=True)
        path_column = _column(reader.fieldnames, _PATH_COLUMNS, path, field)
        label_column = _column(reader.fieldnames, _LABEL_COLUMNS, path, field)
        for row in reader:
            where = f"line {reader.line_num} of {path}"
            name, label = posixpath.normpath(row[path_column] or ""), row[label_column]
            if None in row:
                raise DataError("has more cells than columns", field=field, found=where, fix="quote cells with commas")
            if not label or classes.get(name, label) != label:
                what = "names two classes for an image" if label else "names no class for some images"
                raise DataError(what, field=field, found=f"{name}, {where}")
            require_tidy([label], field, where)
            classes[name] = label
    except UnicodeDecodeError as error:
        what, found = "cannot be read: it is not UTF-8 text", f"{path}, byte {error.start:,}"
        raise DataError(what, field=field, found=found, fix="save it as UTF-8") from error
    except (OSError, csv.Error) as error:
        raise DataError(f"cannot be read: {error}", field=field, found=str(path), fix="check the file") from error
    return classes


def _delimiter(text: str) -> str:
    """What stands between the columns: a comma, or a semicolon or tab where the first line then has both columns."""
    first = text.split("\n", 1)[0].rstrip("\r")

    def fits(delimiter: str) -> bool:
        columns = next(csv.reader([first], delimiter=delimiter), [])
        return any(each in _PATH_COLUMNS for each in columns) and any(each in _LABEL_COLUMNS for each in columns)

    return next((each for each in ",;\t" if fits(each)), ",")


def _column(found: Sequence[str] | None, names: tuple[str, ...], path: Path, field: str) -> str:
    """The first of the names that a column has.

    Raises:
        DataError: none has, or two columns have it.
    """
    columns = list(found or ())
    known = [name for name in names if name in columns]
    if not known:
        fix = f"rename one to {names[0]}" if columns else "write the names of the columns into its first line"
        expected = f"a column {', '.join(names[:-1])} or {names[-1]}"
        raise DataError("lacks a column", field=field, found=f"{columns} in {path}", expected=expected, fix=fix)
    if columns.count(known[0]) > 1:
        raise DataError("has two columns of one name", field=field, found=f"{known[0]} in {path}", fix="rename one")
    return known[0]


def require_plausible_classes(names_N: Sequence[str], field: str, *, trusted: bool) -> None:
    """Refuse texts that are hardly classes: JSON, captions, paths, and names that most images have to themselves.

    Args:
        names_N: the class of each image.
        field: where the classes are from, e.g. ``data.source.label_column``.
        trusted: ``trust_classes`` of the source: nothing is refused.

    Raises:
        DataError: what they look like, and the two ways out.
    """
    if trusted or not names_N:
        return
    counts = Counter(names_N)
    alone = sum(n == 1 for n in counts.values())
    for what, found in _doubts(counts, len(names_N), alone):
        source = field.rpartition(".")[0]
        shown = found if len(found) <= _LONG_NAME else f"{found[:_LONG_NAME]}..."
        raise DataError(
            f"holds {what}, which are hardly classes",
            field=field,
            found=f"{len(counts):,} different ones for {len(names_N):,} images, e.g. {shown!r}",
            expected="the same few names for many images",
            fix=f"leave {field} out; or take them as classes all the same (--{source}.trust_classes true)",
        )


def _doubts(counts: Counter[str], n_images: int, alone: int) -> Iterator[tuple[str, str]]:
    """What the names look like if not classes, and one that does."""
    mostly = len(counts) / 2
    looks = (
        ("JSON texts", lambda name: (name[:1] + name[-1:] in ("{}", "[]") and '"' in name) or name[:2] == "{}"),
        ("long texts", lambda name: len(name) > _LONG_NAME),
        ("names of files", lambda name: re.search(r"\.(jpe?g|png|webp|gif|bmp|tiff?|heic|avif)$", name.lower())),
        ("web addresses", lambda name: re.match(r"https?://", name)),
    )
    for what, looks_so in looks:
        found = [name for name in counts if looks_so(name)]
        if len(found) > mostly:
            yield what, found[0]
    if n_images > _FEW_IMAGES and alone > n_images / 2:
        yield "a name of its own for nearly each image", next(name for name, n in counts.items() if n == 1)
