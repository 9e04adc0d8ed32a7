"""Dataset card: README.md of a token dataset, its picture and share of near ties; upload to the Hugging Face hub."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

from foundation.codes.manifest import MANIFEST, open_split, read_manifest
from foundation.codes.shards import read_shard
from foundation.codes.spec import CodeLevel, CodeSpec
from foundation.config import digest
from foundation.errors import hub_refusals
from foundation.images.buckets import grouped
from foundation.images.config import Preprocess
from foundation.images.preprocess import image_grid, to_unit_range
from foundation.images.sources import ImageSource
from foundation.images.views import VIEWS
from foundation.storage import durable
from foundation.storage.places import Place
from foundation.training.arithmetic import arithmetic
from pipeline.encoding.encoder import near_tie_share
from pipeline.encoding.plan import ExportPlan
from pipeline.encoding.planned_images import PlannedSplit
from stage1_tokenizer.tokenizer import TokenizerModel

PICTURE = "card.png"
N_SHOWN, N_TIED = 8, 64
_SMALLEST = 64  # smallest side of an image in the picture, pixels
CONTENT = ["README.md", "card.png", "plan.json", "plan-*.parquet", "data/**", "tokenizer/**"]
_MOST_CLASSES = 100  # rows in the table of classes


def dataset_card(
    spec: CodeSpec, manifest: Mapping[str, Any], *, near_ties: float | None = None, decodes: bool = True
) -> str:
    """Write the card, with the header that ``datasets.load_dataset`` reads.

    Args:
        spec: specification of the codes.
        manifest: the dataset's manifest.
        near_ties: share of codes that rounding could change; None if not measured.
        decodes: whether the tokenizer is in the dataset.
    """
    labels = "`label` is the image's class." if spec.class_names else "There are no labels."
    picture = f"\n![Images, and below each what its codes decode to]({PICTURE})\n" if near_ties is not None else ""
    return f"""{_header(manifest)}# Image tokens
{picture}
{_row_layout(spec)}
`image_id` names the source image. `view` says which of its views the row is: {_views(manifest)}.
Rows are file by file and, within a file, view by view in the order of the images.
{labels}

| split | images planned | written | failed | rows |
|---|---|---|---|---|
{_counts(manifest)}
{_failed(manifest)}
{_origin(spec, decodes)} `manifest.json` holds the whole specification and the SHA-256 of every file.
{_near_ties(near_ties)}
## Loading

{_loading(spec, decodes)}{_classes(spec, manifest)}"""


def _origin(spec: CodeSpec, decodes: bool) -> str:
    """Where the codes come from: images of a size, a tokenizer, or unknown."""
    if not spec.fingerprint:
        return "The tokenizer that made the codes is not known, so they cannot be decoded to images."
    preprocess = spec.preprocess
    sizes = " or ".join(f"{height} x {width}" for height, width in preprocess.all_shapes)
    place = ", and decodes them, is in `tokenizer/`;" if decodes else " is not in this folder;"
    return f"""Images were {sizes} pixels ({_channels(preprocess)}), so \
{spec.stride} x {spec.stride} pixels
became one {_unit(spec)}. The tokenizer that made the codes{place} its fingerprint is
`{spec.fingerprint[:16]}...`."""


def _channels(preprocess: Preprocess) -> str:
    mode = f"{preprocess.n_channels} channels" if preprocess.mode == "channels" else preprocess.mode
    return mode if preprocess.bits == 8 else f"{mode}, {preprocess.bits} bits"


def _header(manifest: Mapping[str, Any]) -> str:
    """Front matter of the card.

    ``datasets`` names its cached copy by the folder's name and this text: the hash of the manifest keeps two datasets
    apart whose folders have one name. The files are listed, so that it reads no others.
    """
    files = [
        {"split": name, "path": [each["file"] for each in entry.get("files", ()) if each["rows"]]}
        for name, entry in manifest["splits"].items()
        if entry["rows"]
    ]
    about = f"codes with the manifest {digest(manifest)}"
    config = {"config_name": "default", "description": about, "data_files": files}
    header = {"configs": [config], "tags": ["image-tokens", "tessera"]}
    return f"---\n{yaml.safe_dump(header, sort_keys=False, width=200)}---\n"


def refresh_header(folder: Path) -> None:
    """Bring the front matter of a complete dataset's card up to its manifest; the text below it stays as it is.

    Raises:
        DataError: the dataset is not complete.
        StorageError: the disk refused.
    """
    path, header = folder / "README.md", _header(read_manifest(folder))
    found = path.read_text(encoding="utf-8") if path.is_file() else ""
    if found.startswith(header):
        return
    parts = found.split("---\n", 2)
    body = parts[2] if len(parts) == 3 and not parts[0] else found
    durable.replace_file(path, f"{header}{body}".encode())


def _loading(spec: CodeSpec, decodes: bool) -> str:
    return f"""```python
from datasets import load_dataset
import numpy as np

rows = load_dataset("path/of/this/folder", split="train")
codes = np.array(rows[0]["codes"]){_reshaped(spec)}
```

```python
import pyarrow.parquet as pq

table = pq.read_table("path/of/this/folder/data/train", page_checksum_verification=True)
```

```python
import polars

frame = polars.read_parquet("path/of/this/folder/data/train/*.parquet")
```

```python
import duckdb

views = duckdb.sql("SELECT view, count(*) FROM 'path/of/this/folder/data/train/*.parquet' GROUP BY view").fetchall()
```
{_DECODING if decodes else ""}"""


def _reshaped(spec: CodeSpec) -> str:
    """How a row of the example becomes what the tokenizer decodes."""
    if spec.n_grids > 1:
        sides = ", ".join(f"({_sides(spec.of_grid(i).levels[0], ', ')})" for i in range(spec.n_grids))
        return f'.reshape([{sides}][rows[0]["grid"]])'
    return "" if len(spec.levels) > 1 else f".reshape({_sides(spec.levels[0], ', ')})"


_DECODING = """
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
    counts = Counter(each["code"] for entry in manifest["splits"].values() for each in entry["failures"])
    if not counts:
        return ""
    shown = ", ".join(f"{n:,} {code}" for code, n in sorted(counts.items()))
    return f"\nFailed images by code: {shown}. `manifest.json` names each with its reason.\n"


def _views(manifest: Mapping[str, Any]) -> str:
    n_views = max([entry.get("views", 1) for entry in manifest["splits"].values()], default=1)
    return ", ".join(f"{number} {view.name}" for number, view in enumerate(VIEWS[:n_views]))


def _near_ties(near_ties: float | None) -> str:
    if near_ties is None:
        return ""
    return f"""
{near_ties:.4%} of the codes of a sample were near ties: a change of the encoder's output by one part in 100,000 makes
them other codes, and so may a machine that rounds differently.
"""


def _classes(spec: CodeSpec, manifest: Mapping[str, Any]) -> str:
    """Table of rows per class and split, for up to 100 classes."""
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


def _row_layout(spec: CodeSpec) -> str:
    """Layout of ``codes``: levels, and depth of each position."""
    if spec.n_grids > 1:
        grids = "\n".join(f"- `grid` {i}: {_grid(spec.of_grid(i).levels[0])}" for i in range(spec.n_grids))
        return f"""Each row is one view of one image. Images have {spec.n_grids} shapes, of one number of codes; `grid`
says which grid is flattened into `codes`:

{grids}
"""
    if len(spec.levels) == 1:
        return f"Each row is one view of one image as a grid of {_grid(spec.levels[0])}, flattened into `codes`."
    grids = "\n".join(f"{i}. {_grid(level)}: {level.n_codes} numbers" for i, level in enumerate(spec.levels, start=1))
    return f"""Each row is one view of one image as {len(spec.levels)} grids of codes, flattened one after the other
into `codes`, coarse to fine:

{grids}
"""


def _grid(level: CodeLevel) -> str:
    deep = f" with the {level.depth} codes of a place side by side, coarse to fine" if level.depth > 1 else ""
    sizes = level.sizes if isinstance(level.codebook_size, tuple) else level.sizes[:1]
    each = ", ".join(f"{size:,}" for size in sizes)
    return f"**{_sides(level, ' x ')}** codes, each one of **{each}**, row by row{deep}"


def _unit(spec: CodeSpec) -> str:
    """Name the code or codes of a square of pixels."""
    depth = spec.levels[-1].depth
    what = "code" if depth == 1 else f"place of {depth} codes"
    return what if len(spec.levels) == 1 else f"{what} of the finest grid"


def publish_card(
    place: Place,
    tokenizer: TokenizerModel,
    sources: Mapping[str, ImageSource],
    plan: ExportPlan,
    manifest: Mapping[str, Any],
) -> None:
    """Write ``README.md`` and its picture into a dataset with all its files, of which there are local copies.

    Raises:
        StorageError: the disk refused.
        RemoteError: the store refused.
    """
    split = next(iter(plan.splits))
    pixels_BYXC, numbers = _sample(sources[split], plan.splits[split], tokenizer, N_TIED)
    ties = None
    if numbers:
        device = next(tokenizer.parameters()).device
        batches = to_unit_range(pixels_BYXC).to(device).split(plan.batch_size)
        ties = sum(near_tie_share(tokenizer, each) * len(each) for each in batches) / len(pixels_BYXC)
        shown = np.unique(np.linspace(0, len(numbers) - 1, N_SHOWN).round().astype(int)).tolist()
        codes = _stored_codes(place.folder, plan, split, [numbers[i] for i in shown])
        shown = [i for i in shown if numbers[i] in codes]
        if shown:
            stored_BT = np.array([codes[numbers[i]] for i in shown], np.int64)
            place.replace(PICTURE, _picture(tokenizer, pixels_BYXC[shown], stored_BT))
    place.replace("README.md", dataset_card(plan.spec, manifest, near_ties=ties).encode())


def _sample(
    source: ImageSource, planned: PlannedSplit, tokenizer: TokenizerModel, most: int
) -> tuple[np.ndarray, list[int]]:
    """Read up to ``most`` evenly spread images of the first shape that has any, without unreadable images.

    Returns:
        (B, Y, X, C) pixels, and the images' numbers.
    """
    pixels, numbers, images, preprocess = [], [], np.arange(len(source.ids)), tokenizer.preprocess
    if planned.grids is not None and len(images):
        grid, images = grouped(np.array(planned.grids))[0]
        preprocess = preprocess.of_shape(grid)
    for number in images[np.unique(np.linspace(0, len(images) - 1, most).round().astype(int))].tolist():
        try:
            pixels.append(preprocess(source.read(number)))
        except Exception:  # listed among the failures
            continue
        numbers.append(number)
    return np.array(pixels, tokenizer.preprocess.pixel_type), numbers


def _stored_codes(folder: Path, plan: ExportPlan, split: str, numbers: list[int]) -> dict[int, np.ndarray]:
    """Read the (T,) codes of the first view of some images; failed images have none."""
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
    """Encode a PNG file: images in the upper row, their decoded codes in the lower row."""
    device = next(tokenizer.parameters()).device
    spec = tokenizer.layout
    shape = spec.preprocess.all_shapes.index(pixels_BYXC.shape[1:3]) if spec.n_grids > 1 else 0
    grids = spec.grid(torch.from_numpy(codes_BT), shape).to(device)
    with arithmetic(device):
        decoded_BYXC = tokenizer.preview.of_images(tokenizer.decode(grids))
    scale = max(1, _SMALLEST // max(pixels_BYXC.shape[1:3]))
    shown = np.concatenate([tokenizer.preview(pixels_BYXC), decoded_BYXC])
    grid: Image.Image = image_grid(shown, len(pixels_BYXC), scale=scale)
    content = io.BytesIO()
    grid.save(content, "PNG")
    return content.getvalue()


def push_token_dataset(folder: Path, name: str, *, private: bool = True, token: str | None = None) -> str:
    """Check every file against the manifest, then upload the dataset, the manifest last.

    Args:
        folder: the dataset.
        name: repository ``owner/name``; created if missing.
        private: visibility of a created repository.
        token: hub token; None takes the token of ``hf auth login``.

    Returns:
        The repository's address.

    Raises:
        DataError: the dataset is not finished, or a file changed.
        StorageError: the hub refused.
    """
    from huggingface_hub import HfApi

    splits = {name: entry for name, entry in read_manifest(folder)["splits"].items() if entry["rows"]}
    for opened in [open_split(folder, name) for name in splits]:
        for shard in opened.shards:
            shard.require_unchanged(opened.spec)
    refresh_header(folder)
    with hub_refusals(name):
        api = HfApi(token=token)
        address = api.create_repo(name, repo_type="dataset", private=private, exist_ok=True)
        target: dict[str, Any] = {"repo_id": name, "repo_type": "dataset", "folder_path": folder}
        api.upload_folder(**target, allow_patterns=CONTENT, commit_message="Codes, tokenizer and card")
        api.upload_folder(**target, allow_patterns=[MANIFEST], commit_message="Manifest: the dataset is whole")
        return str(address)
