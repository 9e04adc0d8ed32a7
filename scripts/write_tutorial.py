"""Makes docs/tutorial.ipynb of docs/TUTORIAL.md: the same text, its commands and its Python as cells.

    python scripts/write_tutorial.py               # new cells where the text has changed; results stay if no code has
    python scripts/write_tutorial.py --run FOLDER  # runs them in a new folder, keeps results and times
    python scripts/write_tutorial.py --check       # says whether the notebook has the cells of the text

Commands run in the folder, with the ``tessera`` of this Python. Blocks without a language are shown and not run.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

DOCS = Path(__file__).resolve().parents[1] / "docs"
TEXT, NOTEBOOK = DOCS / "TUTORIAL.md", DOCS / "tutorial.ipynb"
TIMES = "## What each step took"
_MOST_LINES = 24
"""that are kept of the beginning and of the end of what a cell prints"""
_BLOCK = re.compile(r"```(bash|python)\n(.*?)```\n", re.DOTALL)


def notebook_of(text: str) -> NotebookNode:
    """The cells of a text, without results; the table of times is left out."""
    parts = _BLOCK.split(text.split(TIMES)[0])
    cells = []
    for i in range(0, len(parts), 3):
        if parts[i].strip():
            cells.append(nbformat.v4.new_markdown_cell(parts[i].strip()))
        if i + 1 < len(parts):
            magic = "%%bash\n" if parts[i + 1] == "bash" else ""
            cells.append(nbformat.v4.new_code_cell(magic + parts[i + 2].rstrip()))
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})


def run(notebook: NotebookNode, folder: Path) -> list[tuple[str, float]]:
    """Execute the cells in a folder; returns each heading with the seconds of the cells below it.

    Raises:
        CellExecutionError: a cell failed.
    """
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    client = NotebookClient(
        notebook, timeout=None, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    steps: dict[str, float] = {}
    heading = ""
    with client.setup_kernel():
        for number, cell in enumerate(notebook.cells):
            headings = re.findall(r"^## (.*)", cell.source, re.MULTILINE) if cell.cell_type == "markdown" else []
            heading = headings[-1] if headings else heading
            if cell.cell_type == "code":
                begun = time.monotonic()
                client.execute_cell(cell, number)
                steps[heading] = steps.get(heading, 0.0) + time.monotonic() - begun
                print(f"{heading}: {steps[heading]:.1f} s", flush=True)
    return list(steps.items())


def keep_results(before: NotebookNode, notebook: NotebookNode) -> None:
    """Give the cells of a notebook the results of an earlier one, where all code is the same."""
    old, new = ([each for each in found.cells if each.cell_type == "code"] for found in (before, notebook))
    if [each.source for each in old] == [each.source for each in new]:
        for kept, cell in zip(old, new, strict=True):
            cell.outputs, cell.execution_count = kept.outputs, kept.execution_count


def tidied(notebook: NotebookNode) -> NotebookNode:
    """Without what a progress line has overwritten, long outputs, and the times of the kernel."""
    notebook.metadata.pop("language_info", None)
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = _joined(cell.outputs)
        for output in cell.get("outputs", []):
            if output.output_type == "stream":
                output.text = _lines(output.text)
    return notebook


def _joined(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """All that was printed as one output, in the order in which it came, and all else after it."""
    streams = [each for each in outputs if each.output_type == "stream"]
    others = [each for each in outputs if each.output_type != "stream"]
    if not streams:
        return others
    text = "".join(each.text for each in streams).replace(f"{DOCS.parent}{os.sep}", "")
    return [nbformat.v4.new_output("stream", name="stdout", text=text), *others]


def _lines(text: str) -> str:
    """The first and last lines of what a terminal would show in the end."""
    shown = [line.rstrip("\r").split("\r")[-1].rstrip() for line in text.rstrip("\r\n").split("\n")]
    shown = [line for line in shown if line]
    if len(shown) > 2 * _MOST_LINES:
        shown = [*shown[:_MOST_LINES], f"... ({len(shown) - 2 * _MOST_LINES} more lines)", *shown[-_MOST_LINES:]]
    return "\n".join(shown) + "\n"


def times_table(steps: list[tuple[str, float]]) -> str:
    """The steps that took time, with a sentence about the machine."""
    rows = []
    for name, taken in steps:
        minutes, seconds = divmod(round(taken), 60)
        rows.append(f"| {name} | {f'{minutes} min ' if minutes else ''}{seconds} s |")
    machine = f"On {os.cpu_count()} cores ({processor()}), by `python scripts/write_tutorial.py --run FOLDER`:"
    return "\n".join([TIMES, "", machine, "", "| step | time |", "|---|---|", *rows]) + "\n"


def processor() -> str:
    """Its name, or its architecture where the system keeps no name."""
    cores = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", cores.read_text(encoding="utf-8")) if cores.exists() else []
    return names[0].strip() if names else platform.machine()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, metavar="FOLDER", help="a new folder, in which the cells are executed")
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    options = parser.parse_args()
    text = TEXT.read_text(encoding="utf-8")
    made = notebook_of(text)
    sources = [cell.source for cell in made.cells]
    same = NOTEBOOK.exists() and [cell.source for cell in nbformat.read(NOTEBOOK, 4).cells] == sources
    if options.check:
        if not same:
            print(f"{NOTEBOOK} has other cells than {TEXT}: python scripts/write_tutorial.py", file=sys.stderr)
        return int(not same)
    if options.run is None and NOTEBOOK.exists():
        keep_results(nbformat.read(NOTEBOOK, 4), made)
    if options.run is not None:
        options.run.mkdir(parents=True)
        (options.run / "scripts").symlink_to(DOCS.parent / "scripts")  # as in a clone
        steps = run(made, options.run)
        TEXT.write_text(text.split(TIMES)[0] + times_table(steps), encoding="utf-8")
    if options.run is not None or not same:
        nbformat.write(tidied(made), NOTEBOOK)
    return 0


if __name__ == "__main__":
    sys.exit(main())
