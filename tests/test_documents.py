"""The documents name what exists: files, modules, their members, tests, commands and options."""

import importlib
import re
import shlex
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from support.tiny_run import ROOT

from pipeline.cli import COMMANDS, main
from scripts.measure_house import product_files
from stage2_prior.decoding import sampling
from stage2_prior.decoding.filters import Filters
from stage2_prior.decoding.probs import filters_for

DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
NAMES = {name for commands in COMMANDS.values() for name in commands}
PACKAGES = "foundation|stage1_tokenizer|stage2_prior|pipeline"
OWN_FILES = {"tessera_ternary.py", "tessera_patches.py", "tessera_gradients.py", "tessera_recurrent.py"}
"""Files that a reader writes."""

each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)


@each_document
def test_files_exist(document: Path) -> None:
    files = {path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py") if ".venv" not in path.parts}
    quoted = " ".join(re.findall(r"`([^`\n]+)`", document.read_text()))
    named = set(re.findall(rf"(?:(?:{PACKAGES}|scripts|tests|docs)/)[\w/.-]+|[\w/]*\w\.py\b", quoted)) - OWN_FILES
    wrong = [
        name
        for name in named
        if not (ROOT / name.rstrip(".")).exists() and not any(file.endswith(f"/{name}") for file in files)
    ]
    assert not wrong, f"{document.name} names {wrong}"


@each_document
def test_modules_and_their_members_exist(document: Path) -> None:
    text = document.read_text()
    named = set(re.findall(rf"(?<![\w/.])(?:{PACKAGES})(?:\.\w+)+(?![\w/])", text))
    named |= {
        f"{module}.{name.split(' as ')[0].strip()}"
        for module, names in re.findall(rf"^from ((?:{PACKAGES})[\w.]*) import ([\w, ]+)", text, re.MULTILINE)
        for name in names.split(",")
    }
    wrong = [name for name in named if not exists(name)]
    assert not wrong, f"{document.name} names {wrong}"


def exists(dotted: str) -> bool:
    """A module, or something in one."""
    if (ROOT / dotted.replace(".", "/")).with_suffix(".py").exists():
        return True
    parts = dotted.split(".")
    for i in range(len(parts), 0, -1):
        if (ROOT / "/".join(parts[:i])).is_dir() or (ROOT / "/".join(parts[:i])).with_suffix(".py").exists():
            found = importlib.import_module(".".join(parts[:i]))
            for name in parts[i:]:
                if not hasattr(found, name):
                    return False
                found = getattr(found, name)
            return True
    return False


@each_document
def test_tests_exist(document: Path) -> None:
    for file, name in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", document.read_text()):
        assert f"def {name}(" in (ROOT / file).read_text(), f"{document.name} names {file}::{name}"


@each_document
def test_commands_exist(document: Path) -> None:
    groups = {name.split()[0] for name in NAMES if " " in name}
    text = document.read_text()
    for line in re.findall(r"(?m)(?:^|`)tessera ([^`\n]+)", text):
        words = shlex.split(line, comments=True)
        command = " ".join(words[: 2 if words[0] in groups and len(words) > 1 else 1])
        if command not in groups | {"COMMAND"}:
            assert command in NAMES, f"{document.name}: tessera {line}"


@each_document
def test_options_are_spelt_with_dashes(document: Path) -> None:
    commands = re.findall(r"(?m)(?:^|`)tessera [^`\n]+", document.read_text())
    wrong = [option for line in commands for option in re.findall(r"--[\w.-]+", line) if "_" in option.split(".")[0]]
    assert not wrong, f"{document.name} has {wrong}"


def test_the_tree_in_the_readme_is_that_of_the_product() -> None:
    tree = re.search(r"```\n(foundation/ .*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert tree is not None
    shown, folders = set(), []
    for line in tree[1].splitlines():
        name, *words = line.split()
        level = (len(line) - len(line.lstrip())) // 2
        folders[level:] = [name]
        assert 1 <= len(words) <= 5, f"README.md has {len(words)} words about {name}"
        assert (ROOT / "".join(folders)).exists(), f"README.md has {''.join(folders)}"
        if name.endswith(".py"):
            shown.add("".join(folders))
    there = {path.relative_to(ROOT).as_posix() for path in product_files(ROOT) if path.name != "__init__.py"}
    assert shown == there, f"missing: {sorted(there - shown)}; gone: {sorted(shown - there)}"


def test_the_filter_and_the_schedule_of_the_guide_are_those_of_the_product() -> None:
    guide = (ROOT / "CONTRIBUTING.md").read_text()
    blocks = dict(re.findall(r"```python\n(\s*def (?:min_p|cosine)\()(.*?)```", guide, re.DOTALL))
    names: dict = {**vars(sampling), "torch": torch, "np": np, "Filters": Filters}
    for first, rest in blocks.items():
        exec(textwrap.dedent(first + rest), names)
    assert names["min_p"] is not sampling.min_p and names["cosine"] is not sampling.cosine
    shares = np.arange(9) / 9
    config = sampling.SamplingConfig(min_p=0.3)
    assert np.array_equal(names["cosine"](shares, config), sampling.cosine(shares, config))
    probs = torch.rand(4, 30).softmax(1)
    ours, shown = (
        apply(probs.clone(), 0.97, filters_for(4, 30, probs.device)) for apply in (sampling.min_p, names["min_p"])
    )
    assert torch.equal(ours, shown) and bool((ours == 0).any())


def test_commands_have_the_options_that_the_documents_give_them(capsys: pytest.CaptureFixture[str]) -> None:
    given: dict[str, set[str]] = {}
    for document in DOCUMENTS:
        for line in re.findall(r"(?m)(?:^|`)tessera ([^`#\n]+)", document.read_text()):
            command = next((name for name in NAMES if f"{line} ".startswith(f"{name} ")), None)
            if command is not None:
                given.setdefault(command, set()).update(re.findall(r"(?<!\S)--?[a-z][\w-]*(?![\w.-])", line))
    assert len(given) > 10
    for command, options in given.items():
        assert main([*command.split(), "--help"]) == 0
        known = re.findall(r"(?<!\S)--?[a-z][\w-]*", capsys.readouterr().out)
        assert options - {"--help"} <= set(known), (command, options - set(known))
