"""What a run looks like, for oneself and for others: ``report``, ``show``, ``compare``, ``push``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from pipeline.commands.options import Device, RunName, out_option, read_path
from pipeline.runs.folder import RunFolder

Runs = Annotated[list[str], Parameter(converter=read_path, help="run folders, two or more")]


def report(run: RunName, /) -> None:
    """Write report.html of a run again; of one that is not finished, what there is so far."""
    from pipeline.report.report import write_progress, write_report

    folder = RunFolder(Path(run))
    if folder.prior.is_dir():
        write_report(folder)
    else:
        write_progress(folder)
    print(folder.report)


def show(run: RunName, /, *, json: bool = False) -> None:
    """Print what a run is, how far, and how good.

    Args:
        json: everything, for programs
    """
    from foundation.storage.serialization import json_text
    from pipeline.report.figures import fact_rows, quality_rows
    from pipeline.report.summary import RunSummary

    summary = RunSummary(RunFolder(Path(run)))
    if json:
        print(json_text(summary.as_json(), indent=1).decode())
        return
    print(f"{summary.recipe.name}: {summary.state}")
    quality = quality_rows(summary, likelihood=summary.evaluations.get("prior-validation", {}))
    rows = [*fact_rows(summary), *((name, f"{value}  {normal}".rstrip()) for name, value, normal in quality)]
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"  {name:{width}}  {value}")
    for warning in summary.warnings[-5:]:
        print(f"  warning: {warning}")
    print(f"  report: {summary.folder.report}")


def compare(
    runs: Runs,
    /,
    *,
    out: Annotated[str, out_option("the page; default compare.html")] = "compare.html",
    device: Device = "auto",
) -> None:
    """Put runs side by side on a page: what differs in their recipes, figures, curves, samples of equal seeds."""
    from foundation.hardware import usable_device
    from pipeline.report.compare import write_comparison

    page = Path(out)
    write_comparison([Path(each) for each in runs], page, usable_device(device))
    print(page)


def push(
    run: RunName,
    repository: Annotated[str, Parameter(help="OWNER/NAME on the hub; made if there is none")],
    /,
    *,
    license: str | None = None,
    private: bool = False,
    space: str | None = None,
    out: Annotated[
        str | None, out_option("write what would be uploaded to this new folder, and upload nothing")
    ] = None,
) -> None:
    """Upload a run as a model: both networks, and a card with samples, figures and the recipe.

    Args:
        license: of the model, as the hub names it: apache-2.0, cc-by-4.0, ...; default none stated
        private: make a private repository
        space: also make a Space OWNER/NAME that serves the page of tessera serve
    """
    import tempfile

    from pipeline.report.model_card import push_run, write_model, write_space

    folder = RunFolder(Path(run))
    if out is not None:
        write_model(folder, repository, Path(out), license=license)
        print(out)
        if space is not None:
            write_space(repository, Path(f"{out}-space"))
            print(f"{out}-space")
        return
    with tempfile.TemporaryDirectory() as temporary:
        how = {"license": license, "private": private, "space": space}
        for address in push_run(folder, repository, out=Path(temporary) / "model", **how):  # type: ignore[arg-type]
            print(address)
