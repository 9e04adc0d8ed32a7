"""Remedies: of the cause, and never the loss of what a person made."""

import ast
import errno
import os
import re
from pathlib import Path

import pytest
from support.tiny_run import ROOT

from foundation.errors import DataError, Interrupted, TesseraError, one_line, portable, way_out

DESTROYS = re.compile(r"\b(delete|erase|rm|remove)\b", re.IGNORECASE)


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EACCES, "readable"),
        (errno.EPERM, "readable"),
        (errno.EIO, "disk"),
        (errno.ESTALE, "disk"),
        (errno.EMFILE, "disk"),
        (errno.ENOENT, "copy it again"),
    ],
)
def test_the_remedy_is_that_of_the_cause(number: int, words: str) -> None:
    damaged = "copy it again"
    assert words in way_out(OSError(number, os.strerror(number)), damaged)
    assert words in way_out(RuntimeError(f"I/O error: {os.strerror(number)} (os error {number})"), damaged)
    for error in (ValueError("Expecting value"), OSError("Corrupt footer"), EOFError()):
        assert way_out(error, damaged) == damaged


def texts(path: Path) -> list[str]:
    """The texts of a file that a user may see: constants that are no docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    expressions = {id(each.value) for each in ast.walk(tree) if isinstance(each, ast.Expr)}
    constants = [each for each in ast.walk(tree) if isinstance(each, ast.Constant) and id(each) not in expressions]
    return [each.value for each in constants if isinstance(each.value, str)]


def test_no_text_tells_a_user_to_destroy_anything() -> None:
    packages = ("foundation", "stage1_tokenizer", "stage2_prior", "pipeline")
    files = [path for package in packages for path in sorted((ROOT / package).rglob("*.py"))]
    found = [f"{path.relative_to(ROOT)}: {text}" for path in files for text in texts(path) if DESTROYS.search(text)]
    assert len(files) > 100 and not found, "\n".join(found)


def test_errors_of_others_become_one_line() -> None:
    assert one_line(ValueError("a\n  b")) == "a b" and one_line(KeyError()) == "KeyError"


def test_an_error_names_what_it_was_given() -> None:
    error = DataError("is odd", field="x", found=3, expected="even", fix="add 1")
    assert isinstance(error, TesseraError) and error.field == "x"
    assert str(error) == "x: is odd\n  found:    3\n  expected: even\n  fix:      add 1"


def test_errors_arrive_in_another_process_as_they_are() -> None:
    stopped, refused = portable(Interrupted(15)), portable(DataError("is cut", field="a.png", fix="copy it again"))
    assert isinstance(stopped, Interrupted) and stopped.signal_number == 15
    assert isinstance(refused, DataError) and refused.field == "a.png"
    assert type(portable(OSError(lambda: None))) is RuntimeError
