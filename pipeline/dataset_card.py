"""README.md of a token dataset: what the codes are, what became of the images, and how other tools open them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from foundation.codes.spec import CodeLevel, CodeSpec
from foundation.images.views import VIEWS

PICTURE = "card.png"
_MOST_CLASSES = 100  # rows of the table of classes


def dataset_card(spec: CodeSpec, manifest: Mapping[str, Any], *, near_ties: float | None = None) -> str:
    """The card, with the header that ``datasets.load_dataset`` reads.

    Args:
        spec: what the codes are.
        manifest: the dataset's manifest, for the counts.
        near_ties: share of codes that rounding could change; None where it was not measured.
    """
    files = [{"split": name, "path": f"data/{name}/*.parquet"} for name in manifest["splits"]]
    header = {"configs": [{"config_name": "default", "data_files": files}], "tags": ["image-tokens", "tessera"]}
    labels = "`label` is the image's class." if spec.class_names else "There are no labels."
    preprocess = spec.preprocess
    picture = f"\n![Images, and below each what its codes decode to]({PICTURE})\n" if near_ties is not None else ""
    return f"""---
{yaml.safe_dump(header, sort_keys=False)}---
# Image tokens
{picture}
{_what_a_row_is(spec)}
`image_id` names the source image. `view` says which of its views the row is: {_views(manifest)}.
Rows are file by file and, within a file, view by view in the order of the images.
{labels}

| split | images planned | written | failed | rows |
|---|---|---|---|---|
{_counts(manifest)}
{_failed(manifest)}
Images were {preprocess.height} x {preprocess.width} pixels ({preprocess.mode}), so {spec.stride} x {spec.stride} pixels
became one {_place(spec)}. The tokenizer that made the codes, and decodes them, is in `tokenizer/`; its fingerprint is
`{spec.fingerprint[:16]}...`. `manifest.json` holds the whole specification and the SHA-256 of every file.
{_firmness(near_ties)}
## Loading

{_loading(spec)}{_classes(spec, manifest)}"""


def _loading(spec: CodeSpec) -> str:
    split = "train"
    return f"""```python
from datasets import load_dataset
import numpy as np

rows = load_dataset("path/of/this/folder", split="{split}")
codes = np.array(rows[0]["codes"]){"" if len(spec.levels) > 1 else f".reshape({_sides(spec.levels[0], ', ')})"}
```

```python
import pyarrow.parquet as pq

table = pq.read_table("path/of/this/folder/data/{split}", page_checksum_verification=True)
```

```python
import polars

frame = polars.read_parquet("path/of/this/folder/data/{split}/*.parquet")
```

```python
import duckdb

views = duckdb.sql("SELECT view, count(*) FROM 'path/of/this/folder/data/{split}/*.parquet' GROUP BY view").fetchall()
```

```python
from stage1_tokenizer import TokenizerModel
import torch

tokenizer = TokenizerModel.load("path/of/this/folder/tokenizer")
images = tokenizer.decode(torch.tensor(codes)[None])  # (1, channels, height, width) in [-1, 1]
```

All of it as image files: `tessera decode path/of/this/folder -o images`
"""


def _counts(manifest: Mapping[str, Any]) -> str:
    lines = []
    for name, entry in manifest["splits"].items():
        failed = len(entry["failures"])
        planned = entry.get("planned", entry["rows"] + failed)
        lines.append(f"| {name} | {planned:,} | {planned - failed:,} | {failed:,} | {entry['rows']:,} |")
    return "\n".join(lines)


def _failed(manifest: Mapping[str, Any]) -> str:
    counts: dict[str, int] = {}
    for entry in manifest["splits"].values():
        for each in entry["failures"]:
            counts[each["code"]] = counts.get(each["code"], 0) + 1
    if not counts:
        return ""
    shown = ", ".join(f"{n:,} {code}" for code, n in sorted(counts.items()))
    return f"\nFailed images by code: {shown}. `manifest.json` names each with its reason.\n"


def _views(manifest: Mapping[str, Any]) -> str:
    n_views = max([entry.get("views", 1) for entry in manifest["splits"].values()], default=1)
    return ", ".join(f"{number} {view.name}" for number, view in enumerate(VIEWS[:n_views]))


def _firmness(near_ties: float | None) -> str:
    if near_ties is None:
        return ""
    return f"""
{near_ties:.4%} of the codes of a sample were near ties: a change of the encoder's output by one part in 100,000 makes
them other codes, and so may a machine that rounds differently.
"""


def _classes(spec: CodeSpec, manifest: Mapping[str, Any]) -> str:
    """Rows of each class in each split, for up to 100 classes."""
    splits = {name: entry["labels"] for name, entry in manifest["splits"].items() if entry.get("labels")}
    if not spec.class_names or not splits:
        return ""
    lines = ["", "## Classes", "", f"| label | class | {' | '.join(splits)} |", "|---|---|" + "---|" * len(splits)]
    for label, name in list(enumerate(spec.class_names))[:_MOST_CLASSES]:
        rows = " | ".join(f"{counts[label]:,}" for counts in splits.values())
        lines.append(f"| {label} | {_in_a_cell(name)} | {rows} |")
    more = len(spec.class_names) - _MOST_CLASSES
    if more > 0:
        lines += ["", f"And {more:,} more classes; `manifest.json` has the rows of each."]
    return "\n".join(lines) + "\n"


def _in_a_cell(name: str) -> str:
    return " ".join(name.replace("|", "\\|").split())


def _sides(level: CodeLevel, separator: str) -> str:
    return separator.join(str(side) for side in level.shape)


def _what_a_row_is(spec: CodeSpec) -> str:
    """How ``codes`` is laid out, one level or several, one code at each place or several."""
    if len(spec.levels) == 1:
        return f"Each row is one view of one image as a grid of {_grid(spec.levels[0])}, flattened into `codes`."
    grids = "\n".join(f"{i}. {_grid(level)}: {level.n_codes} numbers" for i, level in enumerate(spec.levels, start=1))
    return f"""Each row is one view of one image as {len(spec.levels)} grids of codes, flattened one after the other
into `codes`, coarse to fine:

{grids}
"""


def _grid(level: CodeLevel) -> str:
    order = "row by row"
    if level.depth > 1:
        order += f" with the {level.depth} codes of a place side by side, coarse to fine"
    return f"**{_sides(level, ' x ')}** codes, each one of **{level.codebook_size:,}**, {order}"


def _place(spec: CodeSpec) -> str:
    """What a square of pixels became."""
    depth = spec.levels[-1].depth
    what = "code" if depth == 1 else f"place of {depth} codes"
    return what if len(spec.levels) == 1 else f"{what} of the finest grid"
