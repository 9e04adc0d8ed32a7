"""Write docs/RELIABILITY.md from the results of the tests: each promise, its test, the last figures, the known gaps.

    python -m pytest tests/reliability -o junit_family=xunit1 --junitxml=reliability.xml
    python scripts/reliability_report.py reliability.xml

A promise whose test failed, or did not run, is shown as such; the exit status is then 1.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROMISES = {
    "checkpoints all or nothing": "A process that is killed, or meets a full, broken or lying disk, at any durable "
    "operation of a save or a rotation leaves every checkpoint whole or not there, and always two sound ones.",
    "models all or nothing": "The same for a tokenizer being published.",
    "packed copies all or nothing": "The same for the packed copy of a token dataset.",
    "files all or nothing": "A recipe, index or report is replaced in one step or left as it was.",
    "the log of metrics": "A crash costs the log at most the line that was being written.",
    "a disk that is really full": "On a full disk, a save is refused with a fix, and nothing is lost.",
    "exports all or nothing": "A fault at any durable operation of an export tears, loses and doubles nothing; taken "
    "up again it ends as the same files to the bit.",
    "racing exporters": "The same for exporters that race for the same files and are killed at random.",
    "any number of exporters": "Any number of processes, in any order, joining and leaving, write the same dataset.",
    "damaged shards": "A damaged file of a token dataset is refused; it never gives wrong codes.",
    "damaged checkpoints": "A damaged checkpoint is skipped by name, with a reason, for the newest sound one.",
    "damaged models": "A damaged model folder is refused, or what was damaged decides nothing.",
    "hostile images": "Whatever is in a folder of images, each file is read, or listed with a code and a reason.",
    "the contract": "Parts whose codes mean different things are refused, and the field is named.",
    "the canary": "A tokenizer that computes other codes than when it was frozen is refused.",
    "no code runs": "No file that is loaded runs code, whatever it contains; seen by an audit hook.",
    "mutated headers of weights": "Damaged headers of weight files neither hang a loader nor exhaust memory.",
    "a step that is not finite": "NaN or infinity anywhere, on one process of several too, changes nothing in that "
    "step on any process, and is never saved.",
    "stop signals": "SIGTERM and SIGINT save within one step on every process; an export stops within a batch.",
    "sweeping": "What dead processes left half-written is removed; what live ones write is not.",
    "free space": "Free space is checked before it is needed.",
    "the order of samples": "The order of samples does not depend on how many processes there are, nor on changes.",
    "codes of any size": "Codes are stored in a type that holds them, or refused; they never wrap.",
    "states restored whole": "A state that lacks a tensor is refused, not completed.",
    "the tests are tested": "A fault planted on purpose is found by its test.",
}
ELSEWHERE = (
    "tests/pipeline/test_cli.py::test_a_killed_run_ends_like_one_that_was_not",
    "tests/pipeline/test_cli.py::test_a_stop_signal_saves_at_the_step_boundary",
    "tests/pipeline/test_cli.py::test_a_full_disk_stops_with_a_reason_and_the_run_continues_after",
    "tests/reliability/test_random_kills.py::test_five_random_kills_change_nothing",
    "tests/foundation/training/test_fit.py::test_a_stopped_run_ends_with_the_same_weights_and_log",
    "tests/foundation/training/test_saving.py::test_a_checkpoint_holds_the_state_of_its_step_while_training_goes_on",
    "tests/foundation/training/test_saving.py::test_a_stop_signal_waits_until_the_checkpoint_is_on_disk",
    "tests/foundation/training/test_saving.py::test_an_error_of_the_thread_stops_the_training_at_a_line_of_the_log",
    "tests/foundation/training/test_saving.py::test_two_processes_save_beside_training_fail_alike_and_go_on",
    "tests/stage2_prior/test_train_processes.py::test_the_number_of_processes_may_change_in_the_middle_of_an_epoch",
    "tests/foundation/training/test_learner.py::test_learning_rates_and_gradients_do_not_depend_on_the_number_of_processes",
    "tests/stage1_tokenizer/quantizers/test_vq.py::test_two_processes_with_other_data_hold_the_same_codebook",
    "tests/foundation/unpickling/test_unpickler.py::test_attacks_execute_nothing",
    "tests/pipeline/runs/test_stages.py::test_another_recipe_is_refused_naming_the_fields",
    "tests/foundation/storage/remote/test_mirror.py::test_a_store_that_dies_after_any_request_leaves_a_complete_mirror",
    "tests/foundation/storage/remote/test_mirror.py::test_of_two_owners_the_older_one_ends_and_names_the_other",
    "tests/pipeline/runs/test_mirror.py::test_a_run_whose_machines_are_killed_and_emptied_ends_as_one_that_was_left_alone",
    "tests/pipeline/runs/test_mirror.py::test_twenty_random_kills_over_both_stages_change_nothing",
    "tests/pipeline/runs/test_restore.py::test_a_damaged_object_is_noticed_and_named_and_nothing_is_restored",
    "tests/pipeline/runs/test_restore.py::test_older_never_comes_over_newer",
)
"""Tests in other folders; each name says what is promised."""
CHECKPOINTS = """\
A save copies the state into the host's memory, and training goes on while a thread of process 0 writes the copy.

1. The state is checked: one number that is not finite, on any process, and nothing is saved.
2. It is copied into memory that is taken once and used again, on a GPU pinned and behind the work of the stream. There
   is one copy at a time, of the size of a checkpoint; `tessera estimate` counts it on a CPU. Under FSDP process 0 also
   holds the joined weights while it copies.
3. The thread writes into a temporary folder, hashes the bytes as it writes them, flushes, reads everything back once
   and compares, renames, and only then removes older checkpoints. It runs with a lower priority on Linux.
4. What this process has verified counts as sound in a rotation while inode, size and time of its files are unchanged;
   anything else is read again. Restoring always reads and compares everything.
5. The next save, the end of a training, a stop signal and any error wait for the thread. Its own error, such as a full
   disk, stops all processes at the next line of the log or the next save, whichever comes first."""
GAPS = (
    "A disk that confirms a flush and loses the data in a power cut cannot be told from one that does not; files are "
    "read back through the system's cache, not from the medium.",
    "The packed copy of a token dataset is verified when it is made, and again when its size or time of writing "
    "changed; a bit that flips on disk later, with the time unchanged, is not seen. The shards it is made from are "
    "verified at every opening.",
    "Where a file system has no hard links, two processes that publish one name with different content in the same "
    "instant are not told apart; the same content is what they always have here.",
    "What a process of another machine left half-written stays for a day.",
    "Changes of the number of processes give the same samples and rates, and losses that differ by rounding.",
    "A canary that is checked where a generator is opened covers crops of a few images; an export checks all of it.",
    "Power cuts, network disks and several hosts were not tried: crashes are those of processes on one machine.",
)


@dataclass
class Kept:
    """What the tests of one promise found.

    Attributes:
        figures: numbers are summed over tests, texts are those of the last.
        tests: names of the functions.
        failed: names of those that failed.
    """

    figures: dict[str, int | str] = field(default_factory=dict)
    tests: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)

    def add(self, test: str, figures: dict[str, int | str]) -> None:
        """Take in what one test found."""
        self.tests.add(test)
        for name, value in figures.items():
            before = self.figures.get(name, 0)
            both = isinstance(value, int) and isinstance(before, int)
            self.figures[name] = before + value if both else value  # type: ignore[operator]


@dataclass(frozen=True)
class Results:
    """A run of the tests.

    Attributes:
        kept: by promise.
        counts: tests by outcome.
        seconds: the whole run.
        timestamp: when it began.
        awaited: reasons of the tests that are expected to fail as yet.
    """

    kept: dict[str, Kept]
    counts: dict[str, int]
    seconds: float
    timestamp: str
    awaited: set[str]


def read_results(path: Path) -> Results:
    """Read pytest's JUnit file.

    Raises:
        SystemExit: a test keeps figures of a promise that is not in ``PROMISES``.
    """
    suite = next(ElementTree.parse(path).getroot().iter("testsuite"))
    kept: dict[str, Kept] = defaultdict(Kept)
    counts: dict[str, int] = defaultdict(int)
    awaited: set[str] = set()
    for case in suite.iter("testcase"):
        outcome = next((each.tag for each in case if each.tag in ("failure", "error", "skipped")), "passed")
        reasons = {each.get("message", "") for each in case if each.get("type") == "pytest.xfail"}
        counts["expected to fail" if reasons else outcome] += 1
        awaited |= reasons
        for promise, figures in _figures(case):
            kept[promise].add(_name(case), figures)
            if outcome in ("failure", "error"):
                kept[promise].failed.add(_name(case))
    unknown = sorted(set(kept) - set(PROMISES))
    if unknown:
        raise SystemExit(f"figures of promises that nobody made: {', '.join(unknown)}")
    return Results(dict(kept), dict(counts), float(suite.get("time", 0)), suite.get("timestamp", "")[:10], awaited)


def report(results: Results) -> str:
    """The document."""
    counts = ", ".join(f"{n} {name}" for name, n in sorted(results.counts.items()))
    lines = [
        "# Reliability",
        "",
        "What Tessera promises, the test of each promise, and what the tests found when they last ran. This page is "
        "made by `scripts/reliability_report.py` from their results; do not edit it.",
        "",
        f"Last run: {results.timestamp}, {results.seconds:.0f} s, {counts}. {_versions()}",
        "",
        "```",
        "python -m pytest tests/reliability -o junit_family=xunit1 --junitxml=reliability.xml",
        "python scripts/reliability_report.py reliability.xml",
        "```",
        "",
        "`-m 'not slow'` leaves out the long counts; `make test` runs the rest.",
        "",
        "| Promise | Found | Test |",
        "|---|---|---|",
    ]
    for promise, sentence in PROMISES.items():
        lines.append(f"| {sentence} | {_found(results.kept.get(promise))} | {_tests(results.kept.get(promise))} |")
    lines += ["", "## Kept by tests elsewhere", "", "| Promise | Test |", "|---|---|"]
    lines += [f"| {_promise(test)} | `{test}` |" for test in ELSEWHERE]
    lines += ["", "## How a checkpoint is saved", "", CHECKPOINTS]
    lines += ["", "## Known gaps", "", *(f"- {gap}" for gap in (*GAPS, *_sentences(results.awaited)))]
    return "\n".join(lines) + "\n"


def broken(results: Results) -> list[str]:
    """Promises whose test failed, or of which nothing is known."""
    return [name for name in PROMISES if name not in results.kept or results.kept[name].failed]


def missing_tests() -> list[str]:
    """Tests named in ``ELSEWHERE`` that are not there."""
    wanted = [test.split("::") for test in ELSEWHERE]
    return [
        f"{file}::{name}" for file, name in wanted if f"def {name}(" not in (ROOT / file).read_text(encoding="utf-8")
    ]


def _figures(case: ElementTree.Element) -> Iterator[tuple[str, dict[str, int | str]]]:
    promise = ""
    for each in case.iter("property"):
        if each.get("name") == "promise":
            promise = each.get("value", "")
        elif each.get("name") == "figures":
            yield promise, json.loads(each.get("value", "{}"))


def _name(case: ElementTree.Element) -> str:
    return f"{case.get('file') or case.get('classname', '').split('.')[-1]}::{case.get('name', '').split('[')[0]}"


def _found(kept: Kept | None) -> str:
    if kept is None:
        return "**not run**"
    figures = ((name, f"{value:,}" if isinstance(value, int) else value) for name, value in kept.figures.items())
    text = "; ".join(f"{name}: {value}" for name, value in figures)
    return f"**FAILED**; {text}" if kept.failed else text


def _tests(kept: Kept | None) -> str:
    return "" if kept is None else "<br>".join(f"`{test}`" for test in sorted(kept.tests))


def _promise(test: str) -> str:
    """The name of a test as a sentence."""
    return f"{test.rpartition('::test_')[2].replace('_', ' ').capitalize()}."


def _sentences(reasons: set[str]) -> list[str]:
    return [f"{each[:1].upper()}{each[1:]}; its test is expected to fail." for each in sorted(reasons)]


def _versions() -> str:
    packages = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "safetensors", "pyarrow", "pillow"))
    return f"Python {platform.python_version()}, {packages}, {platform.system()}."


def main(arguments: list[str] | None = None) -> int:
    """Write the document."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("results", type=Path, help="JUnit file of tests/reliability")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "RELIABILITY.md", help="where to write it")
    options = parser.parse_args(arguments)
    results = read_results(options.results)
    options.out.write_text(report(results), encoding="utf-8")
    wrong = broken(results) + missing_tests()
    print(
        f"{options.out}: {len(PROMISES)} promises" + (f", not kept or not known: {', '.join(wrong)}" if wrong else "")
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
