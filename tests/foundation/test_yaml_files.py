"""No key of a YAML file counts in silence for another."""

import pytest
import yaml

from foundation.yaml_files import read_yaml


def test_values_are_the_parser_s_own() -> None:
    text = "a: 1\nb: {c: [1, 2.5, yes], d: null}\nbase: &base {x: 1, y: 2}\nnew: {<<: *base, x: 3}\n"
    assert read_yaml(text) == yaml.safe_load(text)
    assert read_yaml(text)["new"] == {"x": 3, "y": 2}


@pytest.mark.parametrize(
    ("text", "lines"),
    [("a: 1\nb: 2\na: 1\n", "'a' stands in line 1 and again in line 3"),
     ("top:\n  x: 1\n  'x': {y: 2}\n", "'x' stands in line 2 and again in line 3"),
     ("[{k: 1, k: 2}]", "'k' stands in line 1 and again in line 1")],
)  # fmt: skip
def test_a_key_that_stands_twice_is_refused(text: str, lines: str) -> None:
    with pytest.raises(yaml.YAMLError, match=lines):
        read_yaml(text)


def test_objects_are_not_made() -> None:
    with pytest.raises(yaml.YAMLError, match="could not determine a constructor"):
        read_yaml("!!python/object/apply:os.system ['true']")
