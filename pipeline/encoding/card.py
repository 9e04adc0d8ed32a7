"""The dataset card: its text, its picture, and how firm the codes are, from images spread over the training split.

README.md of a token dataset: what the codes are, what became of the images, and how other tools open them.

A finished token dataset to the Hugging Face hub, where ``datasets`` and this package open it by its name.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

from foundation.codes.dataset import MANIFEST, read_manifest
from foundation.codes.manifest import open_split
from foundation.codes.shards import read_shard
from foundation.codes.spec import CodeLevel, CodeSpec
from foundation.errors import StorageError
from foundation.images.preprocess import image_grid, to_uint8, to_unit_range
from foundation.images.sources import ImageSource
from foundation.images.views import VIEWS
from foundation.storage import durable
from pipeline.encoding.encoder import full_precision, near_tie_share
from pipeline.encoding.plan import ExportPlan
from stage1_tokenizer.tokenizer import TokenizerModel

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


N_SHOWN, N_TIED = 8, 64
_SMALLEST = 64  # pixels of a side in the picture


def publish_card(
    folder: Path,
    tokenizer: TokenizerModel,
    sources: Mapping[str, ImageSource],
    plan: ExportPlan,
    manifest: Mapping[str, Any],
) -> None:
    """Write ``README.md`` and its picture into a dataset whose files are all there.

    Raises:
        StorageError: the disk refused.
    """
    split = next(iter(plan.splits))
    pixels_BYXC, numbers = _sample(sources[split], tokenizer, N_TIED)
    ties = None
    if numbers:
        device = next(tokenizer.parameters()).device
        batches = to_unit_range(pixels_BYXC).to(device).split(plan.batch_size)
        ties = sum(near_tie_share(tokenizer, each) * len(each) for each in batches) / len(pixels_BYXC)
        shown = np.unique(np.linspace(0, len(numbers) - 1, N_SHOWN).round().astype(int)).tolist()
        codes = _stored_codes(folder, plan, split, [numbers[i] for i in shown])
        shown = [i for i in shown if numbers[i] in codes]
        if shown:
            stored_BT = np.array([codes[numbers[i]] for i in shown], np.int64)
            durable.replace_file(folder / PICTURE, _picture(tokenizer, pixels_BYXC[shown], stored_BT))
    durable.replace_file(folder / "README.md", dataset_card(plan.spec, manifest, near_ties=ties).encode())


def _sample(source: ImageSource, tokenizer: TokenizerModel, most: int) -> tuple[np.ndarray, list[int]]:
    """Up to so many images evenly spread over a source, (B, Y, X, C) uint8, and their numbers; bad ones left out."""
    pixels, numbers = [], []
    for number in np.unique(np.linspace(0, len(source.ids) - 1, most).round().astype(int)).tolist():
        try:
            pixels.append(tokenizer.preprocess(source.read(number)))
        except Exception:  # it is among the failures, with its reason
            continue
        numbers.append(number)
    return np.array(pixels, np.uint8), numbers


def _stored_codes(folder: Path, plan: ExportPlan, split: str, numbers: list[int]) -> dict[int, np.ndarray]:
    """(T,) codes of the first view of some images, from the files; those that failed have none."""
    found: dict[int, np.ndarray] = {}
    for planned in plan.shards:
        here = [n for n in numbers if planned.split == split and planned.start <= n < planned.stop]
        if here:
            shard = read_shard(planned.path(folder), plan.spec)
            row_of = {image_id: row for row, image_id in reversed(list(enumerate(shard.image_ids)))}
            ids = {n: plan.splits[split].image_ids[n] for n in here}
            found.update({n: shard.codes_BT[row_of[name]] for n, name in ids.items() if name in row_of})
    return found


@torch.no_grad()
def _picture(tokenizer: TokenizerModel, pixels_BYXC: np.ndarray, codes_BT: np.ndarray) -> bytes:
    """A PNG file: a column for each image, above it as it is, below it as its stored codes decode."""
    device = next(tokenizer.parameters()).device
    grids = tokenizer.layout.grid(torch.from_numpy(codes_BT)).to(device)
    with full_precision(device):
        decoded_BYXC = to_uint8(tokenizer.decode(grids))
    scale = max(1, _SMALLEST // max(pixels_BYXC.shape[1:3]))
    grid: Image.Image = image_grid(np.concatenate([pixels_BYXC, decoded_BYXC]), len(pixels_BYXC), scale=scale)
    content = io.BytesIO()
    grid.save(content, "PNG")
    return content.getvalue()


CONTENT = ["README.md", "card.png", "plan.json", "data/**", "tokenizer/**"]


def push_token_dataset(folder: Path, name: str, *, private: bool = True, token: str | None = None) -> str:
    """Upload a finished token dataset; the manifest, which says that it is complete, goes last.

    Args:
        folder: the dataset; every file is checked against the manifest first.
        name: of the repository, ``owner/name``; it is made if there is none.
        private: whether a repository that is made is private.
        token: of the hub; None takes the one that ``hf auth login`` stored.

    Returns:
        The repository's address.

    Raises:
        DataError: the dataset is not finished, or a file was changed.
        StorageError: the hub refused.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    for split in read_manifest(folder)["splits"]:
        for shard in open_split(folder, split).shards:
            shard.require_unchanged()
    api = HfApi(token=token)
    try:
        address = api.create_repo(name, repo_type="dataset", private=private, exist_ok=True)
        for message, patterns in (
            ("Codes, tokenizer and card", CONTENT),
            ("Manifest: the dataset is whole", [MANIFEST]),
        ):
            api.upload_folder(
                repo_id=name, repo_type="dataset", folder_path=folder, allow_patterns=patterns, commit_message=message
            )
    except (HfHubHTTPError, OSError, ValueError) as error:  # the last: a name that cannot be one
        raise StorageError(
            f"the hub refused: {error}", field=name, fix="check the name and the login (hf auth login), then try again"
        ) from error
    return str(address)
