"""A run as a model repository: its generator, a card with samples and figures, and a Space that serves it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import yaml

from foundation.config import to_dict
from foundation.errors import CheckpointError, ConfigError
from foundation.storage import durable
from pipeline.generation.files import upload_folder, upload_space
from pipeline.generation.generator import ImageGenerator
from pipeline.report.figures import fact_rows, quality_rows, sample_table
from pipeline.report.page import render_text
from pipeline.report.sections import require_samples
from pipeline.report.summary import RunSummary
from pipeline.runs.folder import RunFolder
from pipeline.runs.recipe import Recipe

PICTURE = "samples.png"
_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_LICENSE = re.compile(r"[a-z0-9.-]+")


def write_model(folder: RunFolder, repository: str, out: Path, *, license: str | None = None) -> None:
    """Make a folder with what a model repository gets: models, card, picture of samples.

    Args:
        folder: a finished run.
        repository: that it is for, ``owner/name``.
        out: the folder, which must not exist.
        license: its identifier on the hub, such as ``apache-2.0``; None leaves the field out.

    Raises:
        ConfigError: no name of a repository, or no identifier of a licence.
        CheckpointError: the run is not finished.
        StorageError: the folder exists, or the disk refused.
    """
    require_names(repository, license)
    require_samples(folder)
    run = RunSummary(folder)
    fix = f"run tessera run {folder.root}, which samples them"
    CheckpointError.unless(folder.has_samples(), "the run has no samples yet", field=str(folder.samples), fix=fix)
    ImageGenerator.from_pretrained(folder.root).save_pretrained(out)
    shutil.copyfile(folder.samples / "grid.png", out / PICTURE)
    durable.write_bytes(out / "README.md", model_card(run, repository, license).encode())


def model_card(run: RunSummary, repository: str, license: str | None) -> str:
    """README.md of a model repository."""
    spec, recipe = run.spec, run.recipe
    found = [each for name, each in run.evaluations.items() if name.startswith("samples-") and "figures" in each]
    given: dict[str, Any] = {
        "name": recipe.name,
        "repository": repository,
        "license": license,
        "sentence": run.sentence(),
        "picture": PICTURE,
        "classes": [] if spec is None else spec.class_names,
        "facts": fact_rows(run),
        "quality": quality_rows(run, likelihood=run.evaluations.get("prior-validation", {})),
        "samples": [sample_table(each) for each in found],
        "data": _data_words(recipe),
        "recipe": yaml.safe_dump(_without_places(to_dict(recipe)), sort_keys=False).strip(),
    }
    return render_text("model_card.md", **given)


def _without_places(value: Any) -> Any:
    """A recipe without the folders of this machine: the last name of each absolute path."""
    if isinstance(value, dict):
        return {name: _without_places(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_without_places(each) for each in value]
    is_path = isinstance(value, str) and (Path(value).is_absolute() or value.startswith("~"))
    return Path(value).name if is_path else value


def _data_words(recipe: Recipe) -> str:
    """What was trained on, without paths of the machine."""
    source = recipe.data.source
    path = str(getattr(source, "path", ""))
    return f"{source.type_name}, {Path(path).name}" if path else source.type_name


def push_run(
    folder: RunFolder, repository: str, *, license: str | None, private: bool, space: str | None, out: Path
) -> list[str]:
    """Upload a run, and a Space that serves it if one is asked for; ``out`` gets what is uploaded.

    Returns:
        addresses of the commits.

    Raises:
        ConfigError, CheckpointError: as ``write_model``.
        StorageError: the hub refused, or cannot be reached.
    """
    require_names(repository, license)
    if space is not None:
        require_names(space, None, "--space")
    write_model(folder, repository, out, license=license)
    message = f"Upload {repository}"
    done = [upload_folder(out, repository, private=private, token=None, message=message)]
    if space is not None:
        files = out.with_name(f"{out.name}-space")
        write_space(repository, files)
        done.append(upload_space(files, space, private=private, message=f"Serve {repository}"))
    return done


def write_space(repository: str, out: Path) -> None:
    """A folder with what a Space needs: ``app.py``, ``requirements.txt`` and a card."""
    from importlib import metadata

    try:
        version = metadata.version("gradio")
    except metadata.PackageNotFoundError as error:
        fix = "pip install 'tessera-images[app]'"
        raise ConfigError("needs Gradio, whose version it names", field="--space", fix=fix) from error
    given = {"repository": repository, "name": repository.split("/")[1], "gradio": version}
    out.mkdir()
    durable.write_bytes(out / "app.py", render_text("space_app.txt", **given).encode())
    durable.write_bytes(out / "README.md", render_text("space.md", **given).encode())
    durable.write_bytes(out / "requirements.txt", b"tessera-images[app]\n")


def require_names(repository: str, license: str | None, field: str = "REPOSITORY") -> None:
    """Refuse what is no name on the hub, before any work.

    Raises:
        ConfigError: naming the field.
    """
    fits = _NAME.fullmatch(repository) is not None
    ConfigError.unless(fits, "is no name of a repository", field=field, found=repository, expected="OWNER/NAME")
    fits = license is None or _LICENSE.fullmatch(license) is not None
    expected = "an identifier of the hub, such as apache-2.0, cc-by-4.0 or other"
    ConfigError.unless(fits, "is no identifier of a licence", field="--license", found=license, expected=expected)
