"""Codes, images and paths in every form that a caller may hold them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from foundation.arguments import as_codes, as_images, as_path, as_paths, refuse_unknown, require_type, shown
from foundation.errors import ConfigError, DataError

GRIDS = np.arange(12).reshape(2, 2, 3)
KINDS = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64")


@pytest.mark.parametrize("kind", KINDS)
def test_codes_of_every_integer_type_are_the_same_codes(kind: str) -> None:
    expected = torch.from_numpy(GRIDS)
    several = (GRIDS.astype(kind), GRIDS.astype(np.dtype(kind).newbyteorder(">")), torch.from_numpy(GRIDS.astype(kind)))
    for given in (*several, GRIDS.astype(kind)[:, ::-1][:, ::-1], GRIDS.tolist()):
        codes = as_codes(given)
        assert codes.dtype == torch.int64 and torch.equal(codes, expected)


@pytest.mark.parametrize(
    "given",
    [
        GRIDS > 3,
        GRIDS.astype(float),
        torch.ones(2, dtype=torch.complex64),
        torch.zeros(2, dtype=torch.int64, device="meta"),
        torch.eye(2, dtype=torch.int64).to_sparse(),
        [[1, 2], [3]],
        ["1"],
        [],
        np.array([object()]),
        3,
        "3",
        None,
        iter((1, 2)),
        range(3),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_codes_is_refused(given: object) -> None:
    with pytest.raises(DataError, match=r"grids: are not codes(.|\n)*whole numbers"):
        as_codes(given, "grids")


@pytest.mark.parametrize("kind", ["float16", "float32", "float64", "bfloat16"])
def test_images_of_every_floating_point_type_are_float32(kind: str) -> None:
    pixels = torch.linspace(-1, 1, 24).view(1, 3, 2, 4)
    given = pixels.to(getattr(torch, kind))
    for each in (given, given.float().numpy() if kind == "bfloat16" else given.numpy()):
        images = as_images(each, 3)
        assert images.dtype == torch.float32 and torch.equal(images, torch.as_tensor(each).float())
    assert as_images(pixels, 3) is pixels, "nothing is copied"
    assert as_images(pixels, 3, dtype=torch.float64).dtype == torch.float64


@pytest.mark.parametrize(
    ("given", "way_out"),
    [
        (torch.zeros(3, 8, 8), r"images\[None\]"),
        (torch.zeros(2, 8, 8, 3), r"permute\(0, 3, 1, 2\)"),
        (torch.zeros(2, 1, 8, 8), "tokenizer.preprocess"),
        (torch.zeros(0, 3, 8, 8), "tokenizer.preprocess"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "to_unit_range"),
        (np.zeros((2, 8, 8, 3), np.uint8), "to_unit_range"),
        (object(), "Pillow"),
    ],
)
def test_a_refusal_of_images_says_how_to_convert_them(given: object, way_out: str) -> None:
    with pytest.raises(DataError, match=way_out):
        as_images(given, 3)


def test_gradients_pass_through_images() -> None:
    pixels = torch.zeros(1, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    as_images(pixels, 3).sum().backward()
    assert pixels.grad is not None and bool((pixels.grad == 1).all())


def test_a_tensor_on_another_device_is_named_and_an_array_is_moved() -> None:
    meta = torch.device("meta")
    with pytest.raises(DataError, match=r'another device(.|\n)*cpu(.|\n)*codes.to\("meta"\)'):
        as_codes(torch.zeros(2, dtype=torch.int64), device=meta)
    assert as_codes(np.zeros(2, int), device=meta).device == meta


@pytest.mark.parametrize("given", ["", "a\0b", b"bytes", 3, None, ["a"], torch.zeros(2), np.array("a")], ids=shown)
def test_what_is_no_path_is_refused(given: object) -> None:
    with pytest.raises(ConfigError, match="folder: is not a path"):
        as_path(given, "folder")
    with pytest.raises(ConfigError, match=r"files(\[1\])?: is not a"):
        as_paths(given if isinstance(given, str) else ["sound", given], "files")


def test_paths_are_texts_and_paths() -> None:
    assert as_paths(["a/b", Path("c")], "files") == [Path("a/b"), Path("c")]


def test_types_arguments_and_messages() -> None:
    assert require_type("n", 3, int) == 3
    with pytest.raises(ConfigError, match=r"n: has the wrong type(.|\n)*str: 'x'(.|\n)*int or float"):
        require_type("n", "x", (int, float))
    with pytest.raises(ConfigError, match=r"labels: is not an argument of f(.|\n)*use targets"):
        refuse_unknown("f", {"labels": torch.zeros(3)}, {"labels": "use targets"})
    refuse_unknown("f", {}, {})
    assert shown(torch.zeros(2, 3)) == "(2, 3) torch.float32" and len(shown("x" * 999)) == 200
