"""The command line, ``tessera COMMAND RUN ... -o OUT``: dispatch, errors, exit codes."""

from __future__ import annotations

import os
import sys

from foundation.errors import Interrupted, TesseraError
from foundation.hardware import keep_freed_memory

COMMANDS: dict[str, dict[str, tuple[str, str]]] = {
    "Train": {
        "run": ("runs:run", "images in, new images out: both stages, samples, a report"),
        "train-tokenizer": ("runs:train_tokenizer", "stage 1 alone"),
        "encode": ("codes:encode", "images to codes, by any number of processes"),
        "train-prior": ("runs:train_prior", "stage 2 alone"),
        "estimate": ("runs:estimate", "what a recipe costs, before it runs"),
        "report": ("runs:report", "write the report of a run again"),
        "recipes": ("runs:recipes", "list the built-in recipes"),
        "fields": ("fields:show_fields", "list the fields of a recipe"),
    },
    "Generate": {
        "sample": ("generate:sample", "new images"),
        "edit complete": ("edit:complete", "keep the upper part of images, draw the rest"),
        "edit inpaint": ("edit:inpaint", "draw what a mask marks"),
        "edit vary": ("edit:vary", "draw a random share of the codes again"),
        "edit change-class": ("edit:change_class", "give images another class"),
        "interpolate": ("generate:interpolate", "images between two seeds or two images"),
        "tune-guidance": ("generate:tune_guidance", "search the best guidance scale"),
        "decode": ("codes:decode", "codes to images"),
    },
    "Inspect": {
        "reconstruct": ("inspect:reconstruct", "images beside their reconstructions"),
        "evaluate": ("inspect:evaluate", "PSNR, SSIM, LPIPS, rFID, KID; bits of the prior"),
        "score": ("inspect:score", "rank images by likelihood"),
        "doctor": ("inspect:doctor", "check the installation"),
    },
    "Convert": {
        "import": ("convert:import_checkpoint", "a published checkpoint to a model folder"),
        "export": ("convert:export", "encoder and decoder as graphs, .pt2 and .onnx"),
        "export-diffusers": ("convert:export_diffusers", "a tokenizer in the layout of diffusers"),
    },
}
_STOPPED = "stopped; run the same command again to continue"


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit status: 0 done, 2 refused with a reason, 128 + n stopped by signal n."""
    arguments = sys.argv[1:] if arguments is None else arguments
    keep_freed_memory()
    try:
        status = _dispatch(arguments)
        sys.stdout.flush()
        return status
    except TesseraError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Interrupted as stop:
        print(_STOPPED, file=sys.stderr)
        return 128 + stop.signal_number
    except KeyboardInterrupt:
        print(_STOPPED, file=sys.stderr)
        return 130
    except BrokenPipeError:  # as in ... | head: nobody reads on, and Python's own flush at the end would fail again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13


def _version() -> str:
    from importlib import metadata

    return f"tessera-images {metadata.version('tessera-images')}"


def _dispatch(arguments: list[str]) -> int:
    from cyclopts import App, CycloptsError, Group, Parameter

    from pipeline.commands.help import Columns

    app = App(
        name="tessera",
        help="Images into a generator of new ones: a discrete tokenizer, then a prior over its codes.",
        version=_version,
        default_parameter=Parameter(consume_multiple=True, negative=()),
        help_format="plaintext",
        help_formatter=Columns(),
        version_flags="--version",
        result_action="return_value",
        suppress_keyboard_interrupt=False,
    )
    for heading, commands in COMMANDS.items():
        group = Group.create_ordered(heading)
        for i, (name, (function, summary)) in enumerate(commands.items()):
            first, _, second = name.partition(" ")
            if second and first not in app:
                app.command(
                    App(
                        name=first,
                        help="complete, inpaint, vary or change the class of images",
                        group=group,
                        sort_key=i,
                    )
                )
            parent = app[first] if second else app
            shown = {} if arguments[: len(name.split())] == name.split() else {"help": summary}  # else the docstring
            place, own_name = f"pipeline.commands.{function}", second or first
            parent.command(place, name=own_name, group=group, sort_key=i, **shown)
    try:
        status = app(arguments, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return status if isinstance(status, int) else 0


if __name__ == "__main__":
    sys.exit(main())
