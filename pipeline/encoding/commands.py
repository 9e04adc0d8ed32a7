"""What ``tessera encode`` does, behind its quick front."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foundation.codes.dataset import read_manifest
from pipeline.commands import prepared_run
from pipeline.encoding.card import push_token_dataset
from pipeline.encoding.export import by_code, share, totals
from pipeline.encoding.status import export_status
from pipeline.runs.encode import ExportJob
from pipeline.work_sharing import Part


def encode_codes(
    recipe: str,
    run_dir: str | None,
    overrides: Mapping[str, Any] | None,
    *,
    shard: str | None,
    retry: bool,
    max_bad: str | None,
    push_to_hub: str | None,
) -> None:
    """Take part in an export; see ``pipeline.encoding.cli.encode``.

    Raises:
        ConfigError: a shard or share that is none.
        DataError: too many images failed.
    """
    part = Part() if shard is None else Part.parse(shard)
    run = prepared_run(recipe, run_dir, overrides)
    allowed = run.recipe.data.max_failed_share if max_bad is None else share(max_bad)
    run.join()
    finished = run.encode(ExportJob(part=part, wait=shard is None, retry=retry, max_bad=allowed))
    if not run.accelerator.is_main_process:
        return
    folder = run.folder.codes
    if not finished:
        print(f"this part is done; others are still encoding: {folder}")
        print(export_status(folder).text(), flush=True)
        return
    print(f"codes: {folder} ({summary(folder)})", flush=True)
    if push_to_hub is not None:
        print(f"on the hub: {push_token_dataset(folder, push_to_hub)}")


def print_status(recipe: str, run_dir: str | None, overrides: Mapping[str, Any] | None) -> None:
    """Print how far an export is.

    Raises:
        DataError: none has begun.
    """
    print(export_status(prepared_run(recipe, run_dir, overrides).folder.codes).text())


def summary(folder: Path) -> str:
    """What became of the images of a finished dataset, in one line."""
    manifest = read_manifest(folder)
    counts = totals(manifest)
    failures = [each for entry in manifest["splits"].values() for each in entry["failures"]]
    failed = f" ({by_code(failures)})" if failures else ""
    return f"{counts['planned']:,} images planned, {counts['written']:,} written, {counts['failed']:,} failed{failed}"
