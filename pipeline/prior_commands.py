"""What the commands of ``cli.py`` that ask a prior about given images do."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from foundation.errors import ConfigError, DataError
from foundation.storage import durable
from pipeline.generation.likelihood import ScoredImage, score_files
from pipeline.runs.models import open_generator


def score_to_list(
    run: str | None, images: Sequence[str] | str, *, class_label: int | str | None, out: str | None, device: str
) -> None:
    """Print image files from the least to the most likely, and write the list to ``out``, a CSV or JSON file.

    Raises:
        DataError: no such file or class, or no image that can be used.
        ConfigError: no ``run``, or ``out`` ends in neither ``.csv`` nor ``.json``.
        CheckpointError: the run is not finished, or damaged.
    """
    from pipeline.image_files import files_below

    if run is None:
        raise ConfigError(
            "is missing", field="--run_dir", expected="the run whose prior judges", fix="add --run_dir RUN"
        )
    if out is not None and Path(out).suffix.lower() not in (".csv", ".json"):
        raise ConfigError("is not a name for a list", field="--out", found=repr(out),
                          expected="a file name that ends in .csv or .json")  # fmt: skip
    paths = files_below([images] if isinstance(images, str) else list(images))
    generator = open_generator(run, device)
    (label,) = generator.label_ids(None if class_label is None else str(class_label))
    generator.require_labels([label])
    scored, failed = score_files(generator.tokenizer, generator.prior, paths, label)
    for line in failed:
        print(f"unusable: {line}")
    if not scored:
        raise DataError("none of the images can be used", field="images", found=f"{len(failed)} unusable")
    print(f"{'bits':>10}  {'per code':>8}  image, the least likely first")
    for each in scored:
        print(f"{each.bits:10.1f}  {each.bits_per_code:8.3f}  {each.image_id}")
    print(f"mean {sum(each.bits for each in scored) / len(scored):.1f} bits over {len(scored)} images")
    if out is not None:
        durable.replace_file(Path(out), _list(scored, failed, Path(out).suffix.lower()).encode())
        print(f"also in {out}")


def _list(scored: list[ScoredImage], failed: list[str], suffix: str) -> str:
    rows = [asdict(each) for each in scored]
    if suffix == ".json":
        return json.dumps({"images": rows, "unusable": failed}, indent=1)
    text = io.StringIO()
    writer = csv.DictWriter(text, ["image_id", "bits", "bits_per_code"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
