"""Scalars of YAML stay text; no key counts in silence for another."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from foundation.config import from_dict
from foundation.errors import ConfigError
from foundation.yaml_text import Text, guess, read_file, read_value, write_value


@dataclass(frozen=True, kw_only=True)
class Fields:
    text: str = ""
    column: str | None = None
    steps: int = 1
    rate: float = 0.5
    flip: bool = False
    names: tuple[str, ...] = ()
    limit: int | None = None


def read(tmp_path: Path, text: str) -> Fields:
    path = tmp_path / "x.yaml"
    path.write_text(text, encoding="utf-8")
    return from_dict(Fields, read_file(path, tmp_path))


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("text: 007", {"text": "007"}),
        ("text: 2024-01-01", {"text": "2024-01-01"}),
        ("text: 12:30", {"text": "12:30"}),
        ("text: on\nnames: [yes, 010, null]", {"text": "on", "names": ("yes", "010", "null")}),
        ("text: null", {"text": "null"}),
        ("text: =", {"text": "="}),
        ("text: <<", {"text": "<<"}),
        ("column: null", {"column": None}),
        ("column: ~", {"column": None}),
        ("column: 'null'", {"column": "null"}),
        ("column: none", {"column": "none"}),
        ("limit: none", {"limit": None}),
        ("steps: 1e4", {"steps": 10_000}),
        ("steps: 010", {"steps": 10}),
        ("steps: 1_000\nrate: 1e-3", {"steps": 1000, "rate": 0.001}),
        ("flip: yes", {"flip": True}),
        ("text: x # a comment", {"text": "x"}),
        ("text: 'x #2'", {"text": "x #2"}),
        ("\ufefftext: a", {"text": "a"}),
        ("base: &b {text: on, steps: 3}\n<<: *b\nsteps: 4", {"text": "on", "steps": 4}),
    ],
)
def test_the_field_s_type_decides_what_a_scalar_means(tmp_path: Path, text: str, fields: dict[str, Any]) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text, encoding="utf-8")
    values = read_file(path, tmp_path)
    values.pop("base", None)
    assert from_dict(Fields, values) == Fields(**fields)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("flip: 'yes'", "flip(.|\n)*wrong type"),
        ("steps: '100'", "steps(.|\n)*wrong type"),
        ("text: x #2", r"text: is followed by what YAML takes for a comment(.|\n)*#2(.|\n)*\"x #2\""),
        ("text: [a]", "text(.|\n)*wrong type"),
        ("steps: 12:30", "steps(.|\n)*wrong type(.|\n)*12:30"),
    ],
)
def test_what_a_field_cannot_hold_is_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("a: 1\nb: 2\na: 1\n", "'a' stands in line 1 and again in line 3"),
        ("top:\n  x: 1\n  'x': {y: 2}\n", "'x' stands in line 2 and again in line 3"),
        ("a: [{k: 1, k: 2}]", "'k' stands in line 1 and again in line 1"),
        ("a: !!python/object/apply:os.system ['true']", "could not determine a constructor"),
        ("a: 1\nb: [1, 2\nc: 3\n", "x.yaml, line 3: is not readable as YAML"),
        ("a: b: c", "x.yaml, line 1: (.|\n)*mapping values are not allowed"),
        ("a: 1\n\tb: 2", "x.yaml, line 2: "),
        ("a: \x07", "x.yaml: is not readable as YAML"),
        ("- a", "holds no recipe"),
        ("", "holds no recipe"),
    ],
)
def test_a_file_that_is_no_sound_mapping_is_refused_with_its_line(tmp_path: Path, text: str, lines: str) -> None:
    with pytest.raises(ConfigError, match=lines):
        read(tmp_path, text)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(b"a: \xff")
    for path in (tmp_path / "x.yaml", tmp_path, tmp_path / "none.yaml"):
        with pytest.raises(ConfigError, match="is not readable as YAML"):
            read_file(path, None)


@settings(max_examples=60, deadline=None)
@example("a\x85b", "\u2028")
@given(st.text(st.characters(exclude_characters="\0")), st.none() | st.text(max_size=6))
def test_what_is_written_is_read_back(text: str, column: str | None) -> None:
    for value in (text, column):
        written = write_value({"text": text, "column": value})
        assert from_dict(Fields, read_value(written, "x")) == Fields(text=text, column=value)


def test_a_mapping_on_the_command_line_is_read_alike() -> None:
    values = Text.mapping("{text: 010, column: 'null', steps: 1e3}", "--x")
    assert from_dict(Fields, values) == Fields(text="010", column="null", steps=1000)
    for text in ("[1]", "a", "{a: 1, a: 2}", "{a: b #c}"):
        with pytest.raises(ConfigError, match="--x"):
            Text.mapping(text, "--x")


def test_a_field_without_a_type_takes_what_yaml_reads() -> None:
    assert guess(read_value("{a: [1, on, 'on'], b: {c: 2.5}}", "x")) == {"a": [1, True, "on"], "b": {"c": 2.5}}
