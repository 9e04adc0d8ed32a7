"""A thousand hostile images: none stops anything, each is read or listed with a code and a reason."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from support.crash_points import DONE, in_child
from support.hostile_images import change, write_hostile
from support.image_sets import met
from support.peak_memory import PeakGrowth
from support.small_tokenizer import PREPROCESS

from foundation.images.failures import FAILURE_CODES
from foundation.images.image_set import ImageSet
from foundation.images.sources import FolderSource

N = 1000


def scan(folder: Path, expected: dict[str, tuple[str, set[str] | None]], report: Path) -> None:
    signal.alarm(600)  # a picture that hangs ends the child, which the test then sees
    source = FolderSource(str(folder))
    assert set(source.ids) == set(expected)
    change(folder)
    with PeakGrowth() as grown:
        images = met(ImageSet(source, PREPROCESS))
    assert grown.mib < 1024
    failed = {each.image_id: each for each in images.failures}
    assert len(images) == N and images.n_usable + len(failed) == N
    assert set(images.ids) == set(expected) and set(failed) <= set(expected)
    wrong = []
    for name, (kind, codes) in expected.items():
        found = failed[name].code if name in failed else None
        if codes is not None and found not in (codes or {None}):
            wrong.append((kind, found, failed.get(name)))
    assert not wrong, wrong[:5]
    for each in failed.values():
        assert each.code in FAILURE_CODES and len(each.reason) > 5 and "\n" not in each.reason, each
        assert "0x" not in each.reason, f"an address in memory, other every time: {each}"
    counts = Counter(each.code for each in failed.values())
    report.write_text("\n".join(f"{code} {n}" for code, n in sorted(counts.items())))


def test_a_thousand_hostile_images_are_all_accounted_for(tmp_path: Path, keep: Callable) -> None:
    """In a child, so that a decoder that crashes is seen as such."""
    expected = write_hostile(tmp_path / "images", N)
    assert len(expected) == N
    assert in_child(lambda: scan(tmp_path / "images", expected, tmp_path / "report")) == DONE
    codes = dict(line.rsplit(" ", 1) for line in (tmp_path / "report").read_text().splitlines())
    failed = sum(int(n) for n in codes.values())
    keep(
        "hostile images", images=N, crashes=0, read=N - failed, **{f"refused as {c}": int(n) for c, n in codes.items()}
    )
