"""The command line: ``tessera COMMAND ...``. Heavy imports happen inside the commands, so that --help is quick."""

from __future__ import annotations

import sys
from importlib import metadata
from typing import Any

from foundation.errors import ConfigError, Interrupted, TesseraError
from foundation.hardware import keep_freed_memory
from pipeline.arguments import RECIPE_COMMANDS, join_images, join_overrides
from pipeline.edit_cli import edit_help
from pipeline.encoding.cli import decode, encode, join_dashes
from pipeline.generator_cli import export, join_groups, join_out, sample, tune_guidance
from pipeline.interop.commands import export_diffusers, import_checkpoint, join_files
from pipeline.score_arguments import join_scored

Overrides = dict[str, Any] | None


def run(recipe: str, run_dir: str | None = None, print_recipe: bool = False, overrides: Overrides = None) -> None:
    """Images in, new images out: train both stages, export codes, sample, report. Continues where it stopped.

    Any field of the recipe can be given, e.g. --prior.training.fit.steps 500; --help lists them all.

    Args:
        recipe: a YAML file, a built-in recipe's name (tessera recipes), or a run folder
        run_dir: where the results go; default runs/<name of the recipe>
        print_recipe: print the resolved recipe and stop
        overrides: fields of the recipe as JSON; easier one by one, as --NAME VALUE
    """
    from pipeline.commands import print_resolved, start_run

    if print_recipe:
        print_resolved(recipe, overrides)
    else:
        start_run(recipe, run_dir, overrides).all()


def train_tokenizer(recipe: str, run_dir: str | None = None, overrides: Overrides = None) -> None:
    """Stage 1 alone: train the tokenizer and freeze it in the run folder.

    Args:
        recipe: a YAML file, a built-in recipe's name, or a run folder
        run_dir: where the results go; default runs/<name of the recipe>
        overrides: fields of the recipe as JSON; easier one by one, as --NAME VALUE
    """
    from pipeline.commands import start_run

    start_run(recipe, run_dir, overrides).train_tokenizer()


def train_prior(recipe: str, run_dir: str | None = None, overrides: Overrides = None) -> None:
    """Stage 2 alone: train the prior on the run's codes.

    Args:
        recipe: a YAML file, a built-in recipe's name, or a run folder
        run_dir: where the results go; default runs/<name of the recipe>
        overrides: fields of the recipe as JSON; easier one by one, as --NAME VALUE
    """
    from pipeline.commands import start_run

    start_run(recipe, run_dir, overrides).train_prior()


def reconstruct(
    run: str,
    images: list[str] | str,
    keep_size: bool = False,
    out: str = "reconstructions",
    device: str = "cpu",
) -> None:
    """Images beside what the tokenizer makes of them, with the PSNR of each.

    Args:
        run: a run folder, or a tokenizer folder
        images: an image file, a folder of images, or several, e.g. '[a.png,photos]'
        keep_size: crop images to multiples of the stride instead of resizing them to the tokenizer's own size
        out: folder for the pictures
        device: cpu, cuda, cuda:1, ...
    """
    from pipeline.tokenizer_commands import reconstruct_to_folder

    paths = [images] if isinstance(images, str) else images
    reconstruct_to_folder(run, paths, keep_size=keep_size, out=out, device=device)


def interpolate(
    run: str,
    first: str,
    last: str,
    steps: int = 8,
    class_label: int | str | None = None,
    out: str = "interpolation.png",
    device: str = "cpu",
) -> None:
    """A strip of images on the way from one to another: given ones in latent space, or draws of the prior by seed.

    Args:
        run: a run folder; for images also a tokenizer folder
        first: the image file to start from, or a seed
        last: the image file to end at, or a seed
        steps: images in the strip, both ends included
        class_label: between seeds, the class of all draws, by name or number; default none
        out: file for the strip
        device: cpu, cuda, cuda:1, ...
    """
    if first.isdecimal() and last.isdecimal():
        from pipeline.sample_commands import interpolate_seeds_to_file

        ends = int(first), int(last)
        interpolate_seeds_to_file(run, *ends, steps=steps, class_label=class_label, out=out, device=device)
        return
    if class_label is not None:
        raise ConfigError("has no part between two images", field="--class_label", found=class_label,
                          fix="leave it out, or give two seeds")  # fmt: skip
    from pipeline.tokenizer_commands import interpolate_to_file

    interpolate_to_file(run, first, last, steps=steps, out=out, device=device)


def evaluate(
    run: str,
    part: str = "all",
    extractor: str = "small",
    weights: str | None = None,
    lpips: str | None = None,
    split: str = "validation",
    json: str | None = None,
    device: str = "cpu",
) -> None:
    """Score a run: the tokenizer on its images (PSNR, SSIM, LPIPS, rFID, KID), the prior on its codes (bits).

    Args:
        run: the run folder
        part: tokenizer, prior, or all of the run that is there
        extractor: features for rFID and KID: inception, dinov2, small (needs no file, not comparable) or none
        weights: the extractor's weights, a file, folder or hub name; default its cached or downloaded ones
        lpips: VGG16's weights for LPIPS: a file, standard (cached or downloaded), or random; default no LPIPS
        split: validation or train
        json: also write all figures to this file
        device: cpu, cuda, cuda:1, ...
    """
    from pipeline.evaluation.run import Judges, evaluate_run

    judges = Judges(extractor=extractor, weights=weights, lpips=lpips)
    evaluate_run(run, part=part, judges=judges, split=split, device=device, json_file=json)


def score(
    images: list[str] | str,
    run_dir: str | None = None,
    class_label: int | str | None = None,
    out: str | None = None,
    device: str = "cpu",
) -> None:
    """List images from the least to the most likely under a run's prior: the odd ones come first.

    Args:
        images: an image file, a folder of images, or several
        run_dir: the run folder, or a model repository's name on the hub; required
        class_label: the class of all the images, by name or number; default none
        out: also write the list to this file, .csv or .json
        device: cpu, cuda, cuda:1, ...
    """
    from pipeline.prior_commands import score_to_list

    score_to_list(run_dir, images, class_label=class_label, out=out, device=device)


def estimate(recipe: str, device: str = "cpu", overrides: Overrides = None) -> None:
    """What a recipe costs before it runs: parameters, FLOPs, tokens, compression, hours on this machine.

    Args:
        recipe: a YAML file, a built-in recipe's name, or a run folder
        device: cpu, cuda, cuda:1, ...
        overrides: fields of the recipe as JSON; easier one by one, as --NAME VALUE
    """
    from pipeline.commands import print_estimate

    print_estimate(recipe, overrides, device)


def report(run: str) -> None:
    """Write report.html of a finished run anew.

    Args:
        run: the run folder
    """
    from pipeline.commands import open_run

    open_run(run).report()


def recipes() -> None:
    """List the built-in recipes."""
    from pipeline.runs.recipe import built_in_recipes, load_recipe

    for name in built_in_recipes():
        print(f"{name:20} {load_recipe(name).description}")


def doctor() -> None:
    """Check the installation and say what to do about each problem."""
    from pipeline.doctor import diagnose

    findings = diagnose()
    for finding in findings:
        print(f"{'PROBLEM' if finding.cure else 'ok':8} {finding.subject}: {finding.state}")
        if finding.cure:
            print(f"         cure: {finding.cure}")
    if any(finding.cure for finding in findings):
        raise SystemExit(1)


COMMANDS: dict[str, Any] = {
    "run": run,
    "train-tokenizer": train_tokenizer,
    "encode": encode,
    "decode": decode,
    "train-prior": train_prior,
    "sample": sample,
    "edit": edit_help(),
    "tune-guidance": tune_guidance,
    "reconstruct": reconstruct,
    "interpolate": interpolate,
    "evaluate": evaluate,
    "score": score,
    "import": import_checkpoint,
    "export": export,
    "export-diffusers": export_diffusers,
    "estimate": estimate,
    "report": report,
    "recipes": recipes,
    "doctor": doctor,
}


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit status: 0 done, 2 refused with a reason, 128 + n stopped by signal n."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments == ["--version"]:
        print(f"tessera-images {metadata.version('tessera-images')}")
        return 0
    keep_freed_memory()
    try:
        for join in (join_dashes, join_files, join_images, join_scored, join_groups, join_out, join_overrides):
            arguments = join(arguments)
        _dispatch(arguments)
    except TesseraError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Interrupted as stop:
        print("stopped; run the same command again to continue", file=sys.stderr)
        return 128 + stop.signal_number
    except KeyboardInterrupt:
        print("stopped; run the same command again to continue", file=sys.stderr)
        return 130
    return 0


def _dispatch(arguments: list[str]) -> None:
    import jsonargparse

    if len(arguments) > 1 and arguments[0] in RECIPE_COMMANDS and {"--help", "-h"} & set(arguments):
        from pipeline.recipe_help import recipe_fields

        print("\n".join(recipe_fields()), end="\n\n")
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    jsonargparse.auto_cli(
        COMMANDS,
        args=arguments,
        prog="tessera",
        description="Images into a generator of new ones: a discrete tokenizer, then a prior over its codes.",
        as_positional=True,
    )


if __name__ == "__main__":
    sys.exit(main())
