"""The table of what a data source holds."""

from pathlib import Path

import numpy as np
from PIL import Image

from foundation.images.folder import FolderSource
from foundation.images.inventory import PassedOver, Shapes, inventory, inventory_rows


def test_every_file_is_counted_by_ending_and_reason(tmp_path: Path) -> None:
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "@eaDir").mkdir()
    for name in ("b.HEIC", "c.heic", "d", "e.txt", "f.tar", ".hidden"):
        (tmp_path / name).write_bytes(b"")
    source = FolderSource(str(tmp_path))
    rows = {each.kind: each for each in source.passed_over.rows()}
    assert {kind: each.count for kind, each in rows.items()} == {
        ".heic": 2,
        "without an ending": 1,
        ".txt": 1,
        ".tar": 1,
        "hidden files": 1,
        "system folders": 1,
    }
    assert "convert them" in rows[".heic"].reason and "rename" in rows["without an ending"].reason
    assert rows[".heic"].example in ("b.HEIC", "c.heic")


def test_the_table_accounts_for_all() -> None:
    shapes = Shapes()
    for size in ((10, 8), (64, 48), (100, 100)):
        shapes.add(Image.new("RGB", size))
    splits = {"train": {"used": 2, "failed": 1}, "validation": {"used": 1, "failed": 0}}
    passed_over = [PassedOver(".heic", "a format that is not read", 3, "x.heic")]
    labels = np.array([0, 0, 1, 1])
    rows = inventory_rows(inventory(splits, labels, ("cat", "dog"), passed_over, ["a note"], shapes.summary(16, 16)))
    assert rows[0] == ("found", "7 = 3 used + 1 failed + 3 passed over")
    assert ("classes", "2: cat 2, dog 2") in rows and ("modes", "RGB 3") in rows and ("note", "a note") in rows
    assert ("sizes", "10 x 8 to 100 x 100, median 64 x 48; 1 are smaller than 16 x 16 and are enlarged") in rows


def test_many_classes_are_shown_by_their_extremes() -> None:
    labels, names = np.repeat(np.arange(50), np.arange(1, 51)), tuple(f"c{i}" for i in range(50))
    rows = dict(inventory_rows(inventory({"train": {"used": 1, "failed": 0}}, labels, names, [], [], None)))
    assert rows["classes"] == "50: most images c49 50, c48 49, c47 48, c46 47; least c3 4, c2 3, c1 2, c0 1"
