"""README.md of a token dataset: what the codes are, and how other tools open them."""

from __future__ import annotations

from typing import Any

import yaml

from foundation.codes import CodeLevel, CodeSpec


def dataset_card(spec: CodeSpec, manifest: dict[str, Any]) -> str:
    """The card, with the header that ``datasets.load_dataset`` reads.

    Args:
        spec: what the codes are.
        manifest: the dataset's manifest, for the counts.
    """
    files = [{"split": name, "path": f"data/{name}/*.parquet"} for name in manifest["splits"]]
    header = {"configs": [{"config_name": "default", "data_files": files}], "tags": ["image-tokens", "tessera"]}
    counts = "\n".join(
        f"| {name} | {entry['rows']:,} | {len(entry['failures'])} |" for name, entry in manifest["splits"].items()
    )
    labels = f"`label` is one of: {', '.join(spec.class_names)}." if spec.class_names else "There are no labels."
    preprocess = spec.preprocess
    return f"""---
{yaml.safe_dump(header, sort_keys=False)}---
# Image tokens

{_what_a_row_is(spec)}
`image_id` names the source image; `view` is 0 for the image itself and 1 for its mirror image.
{labels}

| split | rows | unusable images |
|---|---|---|
{counts}

Images were {preprocess.height} x {preprocess.width} pixels ({preprocess.mode}), so {spec.stride} x {spec.stride} pixels
became one {_place(spec)}. The tokenizer that made the codes, and decodes them, is in `tokenizer/`; its fingerprint is
`{spec.fingerprint[:16]}...`. `manifest.json` holds the whole specification and the SHA-256 of every file.

```python
from datasets import load_dataset
import numpy as np

rows = load_dataset("path/of/this/folder", split="train")
codes = np.array(rows[0]["codes"]){"" if len(spec.levels) > 1 else f".reshape({_sides(spec.levels[0], ', ')})"}
```

```python
from stage1_tokenizer import TokenizerModel
import torch

tokenizer = TokenizerModel.load("path/of/this/folder/tokenizer")
images = tokenizer.decode(torch.tensor(codes)[None])  # (1, channels, height, width) in [-1, 1]
```
"""


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
