from dataclasses import dataclass, field
from typing import ClassVar, Literal

import pytest

from foundation.config import Choice, canonical_json, differences, digest, from_dict, to_dict
from foundation.config_fields import override
from foundation.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Round(Choice):
    type_name: ClassVar[str] = "round"
    radius: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Square(Choice):
    type_name: ClassVar[str] = "square"
    side: int = 2


@dataclass(frozen=True, kw_only=True)
class Thing:
    name: str
    shape: Round | Square = field(default_factory=Round)
    sizes: tuple[int, ...] = (1, 2)
    colour: Literal["red", "green"] = "red"
    limit: int | None = None
    rate: float = 0.1


def test_round_trip_keeps_alternatives_and_tuples() -> None:
    thing = Thing(name="a", shape=Square(side=3), sizes=(4,), limit=7)
    assert from_dict(Thing, to_dict(thing)) == thing


def test_numbers_that_yaml_reads_as_text_are_floats() -> None:
    assert from_dict(Thing, {"name": "a", "rate": "1e-3"}).rate == 0.001


@pytest.mark.parametrize(
    ("values", "fragments"),
    [
        ({"name": "a", "colr": "red"}, ["colr", "unknown key", "'colour'?"]),
        ({"name": "a", "shape": {"type": "squar"}}, ["shape.type", "'squar'", "'square'?"]),
        ({"name": "a", "shape": {"type": "square", "sid": 1}}, ["shape.sid", "'side'?"]),
        ({"name": "a", "shape": {"side": 1}}, ["shape.type", "round", "square"]),
        ({"name": "a", "sizes": [1, "x"]}, ["sizes[1]", "'x'", "whole number"]),
        ({"name": "a", "sizes": 3}, ["sizes", "list"]),
        ({"name": "a", "colour": "rde"}, ["colour", "'rde'", "'red'?"]),
        ({"name": "a", "rate": "fast"}, ["rate", "'fast'", "finite number"]),
        ({"name": "a", "rate": float("nan")}, ["rate", "nan"]),
        ({"name": "a", "limit": 1.5}, ["limit", "1.5"]),
        ({"name": "a", "limit": True}, ["limit", "True"]),
        ({"name": [3]}, ["name", "3", "text"]),
        ({}, ["name", "missing"]),
    ],
)
def test_a_wrong_value_is_refused_by_name(values: dict, fragments: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        from_dict(Thing, values, "thing")
    for fragment in ["thing.", *fragments]:
        assert fragment in str(caught.value)


def test_equal_values_have_equal_digests_whatever_the_order() -> None:
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": (1, 2), "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})
    assert canonical_json({"b": 1, "a": None}) == '{"a":null,"b":1}'


def test_differences_name_every_leaf() -> None:
    rows = differences(Thing(name="a", sizes=(1, 2)), Thing(name="b", sizes=(1, 3)))
    assert rows == [("name", "a", "b"), ("sizes[1]", 2, 3)]


def test_override_makes_the_mappings_on_the_way() -> None:
    values: dict = {"a": {"x": 1}}
    override(values, "a.b.c", 2)
    assert values == {"a": {"x": 1, "b": {"c": 2}}}
    override(values, "a.type", "round")
    assert values == {"a": {"type": "round"}}, "fields of the other alternative are gone"


def test_overrides_leave_the_caller_s_values_alone() -> None:
    model = {"quantizer": {"type": "fsq", "levels": [4]}}
    values: dict = {}
    override(values, "tokenizer.model", model)
    override(values, "tokenizer.model.quantizer", {"type": "vq"})
    assert values == {"tokenizer": {"model": {"quantizer": {"type": "vq"}}}}
    assert model == {"quantizer": {"type": "fsq", "levels": [4]}}
