"""Measure the structure of the product: files, sizes, imports, circles, formatter escapes, lines of code.

    python scripts/measure_house.py [--tree FOLDER] [--run RUN_FOLDER] [--json FILE]

With ``--run`` it also counts the product files that ``tessera sample RUN`` enters: files with a
function that runs, calls while modules are imported left out.
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import os
import subprocess
import sys
import tempfile
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

PACKAGES = ("foundation", "stage1_tokenizer", "stage2_prior", "pipeline")
SMALL_FILE, LARGE_FILE, LONG_FUNCTION = 60, 400, 60
_SILENT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def product_files(tree: Path) -> list[Path]:
    """Every Python file of the four packages."""
    return sorted(path for package in PACKAGES for path in (tree / package).rglob("*.py"))


def code_lines(text: str) -> int:
    """Lines that hold code: without docstrings (of attributes too), comments and blank lines."""
    texts = {
        line
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    held = {line for each in tokens if each.type not in _SILENT for line in range(each.start[0], each.end[0] + 1)}
    return len(held - texts)


def import_graph(tree: Path) -> dict[str, set[str]]:
    """Module -> the product modules it imports, wherever in the file; packages (``__init__``) left out."""
    names = {module_name(path, tree): path for path in product_files(tree) if path.name != "__init__.py"}
    return {name: set(_imported(path, names)) - {name} for name, path in names.items()}


def module_name(path: Path, tree: Path) -> str:
    """Dotted name of a file."""
    return ".".join(path.relative_to(tree).with_suffix("").parts)


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import one another: strongly connected components of more than one."""
    reach = {name: _reachable(graph, name) for name in graph}
    groups = {tuple(sorted(other for other in reach[name] if name in reach[other])) for name in graph}
    return [list(group) for group in sorted(groups) if len(group) > 1]


def long_functions(tree: Path) -> list[str]:
    """Functions of more than 60 lines."""
    return [
        f"{path.relative_to(tree)}:{node.lineno} {node.name}"
        for path in product_files(tree)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and (node.end_lineno or 0) - node.lineno + 1 > LONG_FUNCTION
    ]


def measure(tree: Path) -> dict[str, int]:
    """All figures of a checkout that need no run."""
    files = product_files(tree)
    modules = [path for path in files if path.name != "__init__.py"]
    lengths = {path: path.read_text(encoding="utf-8").count("\n") for path in modules}
    everywhere = [path for folder in (*PACKAGES, "scripts", "tests") for path in (tree / folder).rglob("*.py")]
    return {
        "product files": len(files),
        "files under 60 lines": sum(length < SMALL_FILE for length in lengths.values()),
        "files over 400 lines": sum(length > LARGE_FILE for length in lengths.values()),
        "most modules in one folder": max(Counter(path.parent for path in modules).values()),
        "import circles": len(circles(import_graph(tree))),
        "functions over 60 lines": len(long_functions(tree)),
        "formatter escapes": sum(path.read_text(encoding="utf-8").count("# fmt" + ": ") for path in everywhere),
        "lines of code": sum(code_lines(path.read_text(encoding="utf-8")) for path in files),
    }


def files_entered(tree: Path, run: Path) -> int:
    """Product files of which code runs while ``tessera sample RUN`` makes its images."""
    program = (
        "import json, sys, threading\n"
        "tree, entered = sys.argv[1], set()\n"
        "def at_import(frame):\n"
        "    while frame is not None and not (frame.f_code.co_name == '<module>' and frame.f_back is not None):\n"
        "        frame = frame.f_back\n"
        "    return frame is not None\n"
        "def note(frame, event, arg):\n"
        "    name = frame.f_code.co_filename\n"
        "    if event == 'call' and name.startswith(tree) and name not in entered and not at_import(frame):\n"
        "        entered.add(name)\n"
        "sys.setprofile(note); threading.setprofile(note)\n"
        "from pipeline.cli import main\n"
        "status = main(['sample', *sys.argv[2:]])\n"
        "sys.setprofile(None)\n"
        "print(json.dumps(sorted(entered))); sys.exit(status)\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        line = [sys.executable, "-c", program, f"{tree}/", str(run.resolve()), "--out", folder]
        environment = {**os.environ, "PYTHONPATH": str(tree)}
        done = subprocess.run(line, cwd=tree, check=True, capture_output=True, text=True, env=environment)
    entered = {Path(name) for name in json.loads(done.stdout.splitlines()[-1])}
    return len(entered & {path.resolve() for path in product_files(tree)})


def _imported(path: Path, names: dict[str, Path]) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for each in node.names:
                inner = f"{node.module}.{each.name}"
                yield from (name for name in (inner if inner in names else node.module,) if name in names)


def _reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    found: set[str] = set()
    waiting = [start]
    while waiting:
        for name in graph[waiting.pop()] - found:
            found.add(name)
            waiting.append(name)
    return found | {start}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", type=Path, default=Path(__file__).parents[1], help="a checkout; default this one")
    parser.add_argument("--run", type=Path, help="a finished run, to count the files that sampling from it enters")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    figures = measure(options.tree.resolve())
    if options.run is not None:
        figures["files entered by tessera sample"] = files_entered(options.tree.resolve(), options.run)
    for name, value in figures.items():
        print(f"{name:34} {value:6,}")
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
