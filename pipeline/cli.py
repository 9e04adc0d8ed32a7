"""The command line, ``tessera COMMAND RUN ... -o OUT``: dispatch, errors, exit codes."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys

from foundation.errors import ConfigError, Interrupted, TesseraError, way_out

COMMANDS: dict[str, dict[str, tuple[str, str]]] = {
    "Train": {
        "run": ("runs:run", "images in, new images out: both stages, samples, a report"),
        "train-tokenizer": ("runs:train_tokenizer", "stage 1 alone"),
        "encode": ("codes:encode", "images to codes, by any number of processes"),
        "train-prior": ("runs:train_prior", "stage 2 alone"),
        "estimate": ("runs:estimate", "what a recipe costs, before it runs"),
        "recipes": ("runs:recipes", "list the built-in recipes"),
        "fields": ("fields:show_fields", "list the fields of a recipe"),
    },
    "Generate": {
        "sample": ("generate:sample", "new images"),
        "edit complete": ("edit:complete", "keep the upper part of images, sample the rest"),
        "edit inpaint": ("edit:inpaint", "sample what a mask marks"),
        "edit vary": ("edit:vary", "sample a random share of the codes again"),
        "edit change-class": ("edit:change_class", "give images another class"),
        "interpolate": ("generate:interpolate", "images between two seeds or two images"),
        "tune-guidance": ("generate:tune_guidance", "search for the best guidance scale"),
        "decode": ("codes:decode", "codes to images"),
        "serve": ("serve:serve", "a page to play with a generator, and its API"),
    },
    "Inspect": {
        "reconstruct": ("inspect:reconstruct", "images beside their reconstructions"),
        "evaluate": ("inspect:evaluate", "PSNR, SSIM, LPIPS, rFID, KID; bits of the prior"),
        "score": ("inspect:score", "rank images by likelihood"),
        "report": ("report:report", "write the report of a run again"),
        "show": ("report:show", "what a run is, how far, and how good"),
        "compare": ("report:compare", "runs side by side on a page"),
        "doctor": ("inspect:doctor", "check the installation"),
    },
    "Convert": {
        "import": ("convert:import_checkpoint", "a published checkpoint to a model folder"),
        "export": ("convert:export", "encoder and decoder as graphs, .pt2 and .onnx"),
        "push": ("report:push", "a run to the hub as a model, with its card and a Space"),
        "export-diffusers": ("convert:export_diffusers", "a tokenizer in the layout of diffusers"),
    },
}
_EDIT = "complete, inpaint, vary or change the class of images"
_STOPPED = "stopped; run the same command again to continue"
_KEEP_NOTHING = ("serve", "estimate")


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit status: 0 done, 2 refused with a reason, 128 + n stopped by signal n."""
    arguments = sys.argv[1:] if arguments is None else arguments
    _print_any_name()
    try:
        status = _dispatch(arguments)
        sys.stdout.flush()
        return status
    except TesseraError as error:
        print(f"error: {_message(error, arguments)}", file=sys.stderr)
        return 2
    except PermissionError as error:
        fix = way_out(error, "check its permissions")
        print(f"error: {error.filename}: cannot be used: {error.strerror}; fix: {fix}", file=sys.stderr)
        return 2
    except (Interrupted, KeyboardInterrupt) as stop:
        print("stopped" if arguments[:1] and arguments[0] in _KEEP_NOTHING else _STOPPED, file=sys.stderr)
        return 128 + getattr(stop, "signal_number", signal.SIGINT)
    except BrokenPipeError:
        return _nobody_reads()
    except OSError as error:
        if os.name == "nt" and error.errno == errno.EINVAL and error.filename is None:  # a broken pipe on Windows
            return _nobody_reads()
        if error.errno not in (errno.ENOSPC, errno.EIO) or error.filename is not None:
            raise
        print(f"error: the output cannot be written: {error.strerror}", file=sys.stderr)
        _discard_output()
        return 2


def _print_any_name() -> None:
    """Names that the terminal's encoding lacks, as cp1252 of Windows does most, are printed with escapes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _discard_output() -> None:
    """Python's own flush at the end would fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _nobody_reads() -> int:
    """As in ``... | head``."""
    _discard_output()
    return 128 + getattr(signal, "SIGPIPE", 13)


def _dispatch(arguments: list[str]) -> int:
    from cyclopts import App, CycloptsError, Group, Parameter

    from pipeline.commands.help import Columns
    from pipeline.commands.options import read_option

    if not {"--help", "-h", "--version"} & {*arguments}:
        from foundation.hardware import keep_freed_memory
        from foundation.threads import prepare_openmp

        keep_freed_memory()
        prepare_openmp()
    app = App(
        name="tessera",
        help="Images into a generator of new ones: a discrete tokenizer, then a prior over its codes.",
        version=_version,
        default_parameter=Parameter(consume_multiple=1, negative=(), converter=read_option),
        help_format="plaintext",
        help_formatter=Columns(),
        version_flags="--version",
        result_action="return_value",
        suppress_keyboard_interrupt=False,
    )
    for heading, commands in COMMANDS.items():
        group = Group.create_ordered(heading)
        for i, (name, (function, summary)) in enumerate(commands.items()):
            *above, own_name = name.split()
            if above and "edit" not in app:
                app.command(App(name="edit", help=_EDIT, group=group, sort_key=i))
            shown = {} if arguments[: len(name.split())] == name.split() else {"help": summary}  # else the docstring
            parent = app["edit"] if above else app
            parent.command(f"pipeline.commands.{function}", name=own_name, group=group, sort_key=i, **shown)
    try:
        status = app(arguments, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        from pipeline.commands.mistakes import mistake

        raise ConfigError(mistake(error, COMMANDS)) from None
    return status if isinstance(status, int) else 0


def _message(error: TesseraError, arguments: list[str]) -> str:
    from pipeline.commands.mistakes import as_typed

    return as_typed(error, arguments, COMMANDS)


def _version() -> str:
    from importlib import metadata

    return f"tessera-images {metadata.version('tessera-images')}"


if __name__ == "__main__":
    sys.exit(main())
