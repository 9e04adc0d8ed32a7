"""Text files are UTF-8 with plain newlines on every system; Windows alone would take cp1252 and "\\r\\n"."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.tiny_run import ROOT

PRODUCT = ("foundation", "stage1_tokenizer", "stage2_prior", "pipeline")


def sources(*folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from sorted((ROOT / folder).rglob("*.py"))


def of_the_system(tree: ast.AST, *, writes: bool) -> list[int]:
    """Lines that read or write text in the system's own way; with ``writes`` also every write_text."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        encoded = any(each.arg in ("encoding", None) for each in node.keywords)
        text = name in ("read_text", "write_text") or (name in ("open", "fdopen") and _is_text(node, name))
        if (text and not encoded) or (name == "write_text" and writes):
            found.append(node.lineno)
    return found


def _is_text(call: ast.Call, name: str) -> bool:
    """Whether a call of open or fdopen opens text; ``x.open`` of images, archives and descriptors has no such mode."""
    of_object = isinstance(call.func, ast.Attribute) and name == "open"
    given = [*call.args[0 if of_object else 1 :][:1], *(each.value for each in call.keywords if each.arg == "mode")]
    modes = [each.value for each in given if isinstance(each, ast.Constant) and isinstance(each.value, str)]
    if not modes or len(modes) < len(given):
        return not of_object and not given
    return set(modes[0]) <= set("rwxabt+") and "b" not in modes[0]


@pytest.mark.parametrize("folder", [*PRODUCT, "scripts"])
def test_every_text_names_its_encoding_and_the_package_writes_bytes(folder: str) -> None:
    lines = {
        f"{path.relative_to(ROOT).as_posix()}:{line}"
        for path in sources(folder)
        for line in of_the_system(ast.parse(path.read_bytes()), writes=folder != "scripts")
    }
    assert not lines


def test_the_rule_sees_what_it_forbids() -> None:
    forbidden = ("open(p)", "open(p, 'w')", "p.read_text()", "p.write_text('a')", "os.fdopen(p)", "p.open('r')")
    allowed = ("open(p, 'rb')", "open(p, encoding='utf-8')", "Image.open(p)", "p.read_text(encoding='utf-8')")
    for code in forbidden:
        assert of_the_system(ast.parse(code), writes=False), code
    for code in allowed:
        assert not of_the_system(ast.parse(code), writes=False), code
    assert of_the_system(ast.parse("p.write_text('a', encoding='utf-8')"), writes=True)
