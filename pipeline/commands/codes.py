"""Images to codes and back: ``encode`` and ``decode``."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from foundation.errors import ConfigError
from pipeline.commands.fields import read_fields
from pipeline.commands.options import Device, EngineGroup, Fields, RecipeName, RunOut, out_option, read_path
from pipeline.engines.config import EngineConfig

Start = Annotated[
    str | None,
    Parameter(help="i/N, i from 0 to N - 1: begin with this part, then help with the rest; do not wait for the others"),
]


def encode(
    recipe: RecipeName,
    /,
    *fields: Fields,
    out: RunOut = None,
    to: str | None = None,
    part: Start = None,
    status: bool = False,
    retry_failed: bool = False,
    max_bad: str | None = None,
    push_to_hub: str | None = None,
    engine: EngineGroup = EngineConfig(),
) -> None:
    """Encode all images of the recipe with the run's frozen tokenizer.

    Any number of processes, on any number of hosts that share the run folder, may do this at the same time: start it
    several times, or with accelerate launch. No image is encoded twice. Machines without a common disk give --to and a
    --part each.

    Args:
        to: address of a folder for the codes, e.g. s3://bucket/codes; the run keeps copies, and the address
        status: only print the progress
        retry_failed: encode the failed images again
        max_bad: share of images that may fail, e.g. 1%; default data.max_failed_share
        push_to_hub: then upload the dataset to this repository of the hub, OWNER/NAME
    """
    overrides = read_fields(fields, encode)

    from foundation.codes.fetched import codes_place
    from foundation.training.heartbeat import wait_for_everyone
    from pipeline.commands.start import prepared_run, resolve
    from pipeline.encoding.accounts import share
    from pipeline.encoding.card import push_token_dataset
    from pipeline.encoding.status import export_status
    from pipeline.engines.open import open_engine
    from pipeline.runs.encode import ExportJob, keep_codes_at
    from pipeline.work_sharing import Part

    if status:
        asked = {"--to": to, "--part": part, "--retry-failed": retry_failed or None, "--max-bad": max_bad}
        for name, value in {**asked, "--push-to-hub": push_to_hub}.items():
            fix = "leave one of them out: --status only prints"
            ConfigError.unless(value is None, "has no effect with --status", field=name, found=value, fix=fix)
        print(export_status(codes_place(resolve(recipe, out, overrides)[1].root)).text())
        return
    run = prepared_run(recipe, out, overrides)
    mine = Part() if part is None else Part.parse(part, "--part")
    allowed = run.recipe.data.max_failed_share if max_bad is None else share(max_bad)
    run.join()
    if to is not None and run.accelerator.is_main_process:
        keep_codes_at(run.folder, to, "--to")
    wait_for_everyone(run.accelerator)
    with open_engine(engine, part) as found:
        job = ExportJob(part=mine, wait=part is None, retry=retry_failed, max_bad=allowed, engine=found)
        finished = run.encode(job)
    if not run.accelerator.is_main_process:
        return
    place = codes_place(run.folder.root)
    if not finished:
        print(f"this part is done; others are still encoding: {place.shown}")
        print(export_status(place).text(), flush=True)
        return
    print(f"codes: {place.shown} ({_summary(run.folder.codes)})", flush=True)
    if push_to_hub is not None:
        print(f"on the hub: {push_token_dataset(run.folder.codes, push_to_hub)}")


def _summary(folder: Path) -> str:
    """What became of the images of a finished dataset, in one line."""
    from foundation.codes.manifest import read_manifest
    from pipeline.encoding.accounts import by_code, totals

    manifest = read_manifest(folder)
    counts = totals(manifest)
    failures = [each for entry in manifest["splits"].values() for each in entry["failures"]]
    failed = f" ({by_code(failures)})" if failures else ""
    return f"{counts['planned']:,} images planned, {counts['written']:,} written, {counts['failed']:,} failed{failed}"


def decode(
    codes: Annotated[
        str,
        Parameter(
            converter=read_path,
            help="a token dataset, a run, a folder saved by datasets, .parquet (column codes), .npy or .npz; or an "
            "address of one",
        ),
    ],
    /,
    *,
    out: Annotated[str, out_option("folder or address for the images")] = "decoded",
    tokenizer: Annotated[str | None, Parameter(converter=read_path)] = None,
    split: str | None = None,
    part: Start = None,
    batch_size: int = 32,
    device: Device = "auto",
    engine: EngineGroup = EngineConfig(),
) -> None:
    """Decode a token dataset, or codes of your own, to images. Continues where it stopped.

    Any number of processes may decode into one folder at the same time.

    Args:
        tokenizer: a run or tokenizer folder; default the one inside the codes
        split: one split of the codes, e.g. validation; default all
        batch_size: images in a batch
    """
    from pipeline.encoding.decode import decode_to_folder
    from pipeline.encoding.streamed_decode import decode_on
    from pipeline.engines.open import open_engine

    how: dict[str, Any] = {"split": split, "part": part, "batch_size": batch_size, "device": device}
    with open_engine(engine, part) as found:
        if found is not None:
            how["before"] = functools.partial(decode_on, found)
        decode_to_folder(codes, out, tokenizer=tokenizer, **how)
