"""README.md of a token dataset: what the codes are, and how other tools open them."""

from __future__ import annotations

from typing import Any

import yaml

from foundation.codes import CodeSpec


def dataset_card(spec: CodeSpec, manifest: dict[str, Any]) -> str:
    """The card, with the header that ``datasets.load_dataset`` reads.

    Args:
        spec: what the codes are.
        manifest: the dataset's manifest, for the counts.
    """
    files = [{"split": name, "path": f"data/{name}/*.parquet"} for name in manifest["splits"]]
    header = {"configs": [{"config_name": "default", "data_files": files}], "tags": ["image-tokens", "tessera"]}
    level = spec.levels[0]
    shape = " x ".join(str(side) for side in level.shape)
    counts = "\n".join(
        f"| {name} | {entry['rows']:,} | {len(entry['failures'])} |" for name, entry in manifest["splits"].items()
    )
    labels = f"`label` is one of: {', '.join(spec.class_names)}." if spec.class_names else "There are no labels."
    preprocess = spec.preprocess
    return f"""---
{yaml.safe_dump(header, sort_keys=False)}---
# Image tokens

Each row is one view of one image as a grid of **{shape}** codes, each one of **{level.codebook_size:,}**, flattened row
by row into `codes`. `image_id` names the source image; `view` is 0 for the image itself and 1 for its mirror image.
{labels}

| split | rows | unusable images |
|---|---|---|
{counts}

Images were {preprocess.height} x {preprocess.width} pixels ({preprocess.mode}), so {spec.stride} x {spec.stride} pixels
became one code. The tokenizer that made the codes, and decodes them, is in `tokenizer/`; its fingerprint is
`{spec.fingerprint[:16]}...`. `manifest.json` holds the whole specification and the SHA-256 of every file.

```python
from datasets import load_dataset
import numpy as np

rows = load_dataset("path/of/this/folder", split="train")
grid = np.array(rows[0]["codes"]).reshape({", ".join(str(side) for side in level.shape)})
```

```python
from stage1_tokenizer import TokenizerModel
import torch

tokenizer = TokenizerModel.load("path/of/this/folder/tokenizer")
images = tokenizer.decode(torch.tensor(grid)[None])  # (1, channels, height, width) in [-1, 1]
```
"""
