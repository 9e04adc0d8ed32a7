"""Models of other systems and for other runtimes: ``import``, ``export``, ``export-diffusers``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from pipeline.commands.options import TokenizerName, out_option, read_path

_CHECKED = 64  # images
Folder = Annotated[str, out_option("the new folder")]


def import_checkpoint(
    files: Annotated[
        list[str],
        Parameter(converter=read_path, help="the checkpoint, or two files where encoder and decoder are apart"),
    ],
    /,
    *,
    out: Folder,
    format: str | None = None,
    config: Path | None = None,
    raw_weights: bool = False,
    image_size: int | None = None,
    tokenizer: Path | None = None,
    class_names: Path | None = None,
) -> None:
    """Import a published checkpoint: tessera import FILE -o FOLDER.

    A file is a torch checkpoint, read without running anything in it, or safetensors. A prior together with its
    tokenizer becomes a folder that tessera sample opens.

    Args:
        format: llamagen_vq, llamagen_gpt, taming, sd_kl, diffusers_vq, openai_dvae, open_magvit2 or rqvae;
            default: recognised by tensor names
        config: the system's own configuration, JSON or YAML, for what the tensors' shapes leave open
        raw_weights: take the raw weights even if the system evaluates with averaged ones
        image_size: side of the tokenizer's images in pixels; default the system's
        tokenizer: of a llamagen_gpt prior: the imported tokenizer of its codes, or a run folder
        class_names: of a prior: a text file, one class name a line; default their numbers
    """
    from pipeline.interop.importer import import_published
    from pipeline.interop.tokenizer_plan import Options, read_arguments

    options = Options(
        arguments=read_arguments(config),
        averaged=not raw_weights,
        image_size=image_size,
        tokenizer=tokenizer,
        class_names=class_names,
    )
    print("\n".join(import_published([Path(each) for each in files], Path(out), format, options)))


def export(
    run: TokenizerName,
    /,
    *,
    out: Folder,
    images: Annotated[list[str] | None, Parameter(converter=read_path)] = None,
) -> None:
    """Write encoder and decoder as graphs for torch (.pt2) and, with the onnx packages, for other runtimes (.onnx).

    Each graph runs on images and is compared with the tokenizer; the difference is printed.

    Args:
        images: image files to check the graphs with; default those stored beside the tokenizer
    """
    import numpy as np

    from foundation.images.preprocess import to_unit_range
    from pipeline.image_files import files_below, read_pixels
    from pipeline.interop.graphs import check_images, export_tokenizer
    from pipeline.runs.models import open_tokenizer
    from pipeline.runs.recipe import tokenizer_folder

    tokenizer = open_tokenizer(run, "cpu")
    if images is None:
        batch = check_images(tokenizer_folder(Path(run)), tokenizer)
    else:
        paths = files_below(images, tokenizer.preprocess)[:_CHECKED]
        found = [read_pixels(tokenizer, path, keep_size=False) for path in paths]
        batch = to_unit_range(np.concatenate(found))
    for each in export_tokenizer(tokenizer, batch, Path(out)):
        unit = "of the codes differ" if each.file.startswith("encoder") and tokenizer.is_discrete else "at most differ"
        shown = each.checked if each.difference is None else f"{each.difference:.3g} {unit} ({each.checked})"
        print(f"{each.file:14} {shown}")
    if not (Path(out) / "encoder.onnx").exists():
        print("no .onnx: pip install 'tessera-images[onnx]' for it")
    print(f"in {out}, checked on {len(batch)} images")


def export_diffusers(run: TokenizerName, /, *, out: Folder) -> None:
    """Write a tokenizer in the layout of diffusers' VQModel or AutoencoderKL."""
    from pipeline.interop.diffusers import export_to_diffusers
    from pipeline.runs.models import open_tokenizer

    print(f"{export_to_diffusers(open_tokenizer(run, 'cpu'), Path(out))} in {out}")
