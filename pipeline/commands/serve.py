"""A page to play with a generator: ``serve``."""

from __future__ import annotations

from typing import Annotated

from foundation.errors import ConfigError
from pipeline.app.limits import Limits
from pipeline.commands.options import Device, GeneratorName, SpeedGroup, group
from pipeline.generation.options import Speed

LOOPBACK = "127.0.0.1"


def serve(
    run: GeneratorName,
    /,
    *,
    host: str = LOOPBACK,
    port: int | None = None,
    open_browser: bool = False,
    device: Device = "auto",
    limits: Annotated[Limits, group("Limits of a request")] = Limits(),
    speed: SpeedGroup = Speed(),
) -> None:
    """Serve a page that draws, paints over and completes pictures, and shows their codes; and the same as an API.

    Args:
        host: address to listen at; 0.0.0.0 lets other machines in, without any password
        port: default 7860, or the next free one
        open_browser: open the page
    """
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        fix = "pip install 'tessera-images[app]'"
        raise ConfigError("needs Gradio, which is not installed", field="serve", fix=fix) from error
    from pipeline.app.page import GeneratorPage
    from pipeline.app.studio import Studio
    from pipeline.runs.models import open_generator

    studio = Studio(open_generator(run, device, speed), run, limits)
    page = GeneratorPage(studio, about_run(run))
    page.serve(host=host, port=port, open_browser=open_browser)


def about_run(run: str) -> str:
    """What made the images, of a run folder; empty of a repository."""
    from pathlib import Path

    from pipeline.report.summary import RunSummary
    from pipeline.runs.folder import RunFolder

    folder = RunFolder(Path(run))
    return RunSummary(folder).sentence() if folder.recipe.is_file() else ""
