"""What a test run did not run: its skips, counted by reason."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

WINDOWS = "Windows has no fork, no signals that kill, no /proc and few rights for links"
_UNIX = re.compile(
    r"os\.fork|crash_points|PeakGrowth|mkfifo|SIGKILL|SIGSTOP|SIGTERM|/proc/|/dev/|symlink_to|chmod\(|bash"
)


def skips_by_reason(reports: Iterable[Any]) -> list[str]:
    """Lines for the end of a run: how many tests were skipped, in how many files, and why; the most frequent first.

    Args:
        reports: of pytest, of skipped tests or of whole files that were skipped.
    """
    tests, files, whole = Counter[str](), dict[str, set[str]](), set[str]()
    for report in reports:
        reason = _reason(report)
        file = report.nodeid.partition("::")[0]
        tests[reason] += 1
        files.setdefault(reason, set()).add(file)
        if "::" not in report.nodeid:
            whole.add(file)
    if not tests:
        return ["no test was skipped"]
    everywhere = len({file for each in files.values() for file in each})
    lines = [
        f"{_count(tests.total(), 'test')} skipped in {_count(everywhere, 'file')}; what did not run has not passed:"
    ]
    lines += [f"  {n:4d} in {_count(len(files[reason]), 'file')}: {reason}" for reason, n in tests.most_common()]
    return [*lines, f"  whole files, each counted as one: {', '.join(sorted(whole))}"] if whole else lines


def needs_unix(source: str) -> bool:
    """Whether a test file's source uses what Windows does not have: fork, signals that kill, pipes, links, /proc."""
    return _UNIX.search(source) is not None


def _reason(report: Any) -> str:
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return text.removeprefix("Skipped: ").strip()


def _count(n: int, thing: str) -> str:
    return f"{n} {thing}" if n == 1 else f"{n} {thing}s"
