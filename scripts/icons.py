"""Copies the icons of the package crystal-small into a folder, with one folder for each class.

    pip install crystal-small
    python scripts/icons.py icons

The Crystal icons are by Everaldo Coelho, under the LGPL. Those of 32 x 32 pixels are taken, and each drawing once: the
package has a quarter of them under several names, which would put the same picture into training and validation.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import shutil
import sys
from pathlib import Path

SIZE = "32x32"


def icons() -> list[Path]:
    """The files, each drawing once."""
    found = importlib.util.find_spec("crystal_small")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("error: the icons are not installed; pip install crystal-small")
    files = sorted((Path(found.submodule_search_locations[0]) / "static" / "crystal" / SIZE).rglob("*.png"))
    by_content = {hashlib.sha256(each.read_bytes()).digest(): each for each in reversed(files)}
    return sorted(by_content.values())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="to make; what is there stays")
    out: Path = parser.parse_args().folder
    files = icons()
    for each in files:
        (out / each.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(each, out / each.parent.name / each.name)
    print(f"{len(files)} icons in {len({each.parent for each in files})} classes: {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
