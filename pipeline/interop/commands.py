"""``tessera import`` and ``tessera export-diffusers``, quick to load: what they do is imported when they run."""

from __future__ import annotations

import json
from pathlib import Path


def import_checkpoint(
    files: list[str] | str,
    out: str,
    format: str | None = None,
    peer_config: str | None = None,
    averaged: bool = True,
    image_size: int | None = None,
    tokenizer: str | None = None,
    class_names: str | None = None,
) -> None:
    """A published checkpoint as a folder of ours: tessera import [FORMAT] FILE [FILE2] -o FOLDER.

    FORMAT is llamagen_vq, llamagen_gpt, taming, sd_kl, diffusers_vq, openai_dvae, open_magvit2 or rqvae; left out, it
    is recognised by the names of the tensors. The file is a torch checkpoint, which is read without running anything in
    it, or safetensors. A prior together with its tokenizer becomes a folder that tessera sample opens.

    Args:
        files: the file, or two where encoder and decoder are apart; '[a.pkl,b.pkl]' after --files
        out: folder to make
        format: the format's name, if it is not to be recognised
        peer_config: (also --config) the system's own configuration, JSON or YAML, for what shapes cannot tell
        averaged: take averaged weights where the system itself evaluates with them
        image_size: side of the tokenizer's images in pixels; default the system's
        tokenizer: of a llamagen_gpt prior: the imported tokenizer whose codes it draws, or a run folder
        class_names: of a prior: a text file with a class name a line; default their numbers
    """
    from pipeline.interop.importer import import_published
    from pipeline.interop.tokenizer_plan import Options, read_arguments

    paths = [Path(each) for each in ([files] if isinstance(files, str) else files)]
    arguments = read_arguments(None if peer_config is None else Path(peer_config))
    own, names = (None if each is None else Path(each) for each in (tokenizer, class_names))
    options = Options(arguments=arguments, averaged=averaged, image_size=image_size, tokenizer=own, class_names=names)
    done = import_published(paths, Path(out), format, options)
    print(f"{done.format} {done.makes} in {out}")
    for line in (*done.notes, *done.account.lines()):
        print(f"  {line}")


def export_diffusers(tokenizer: str, out: str) -> None:
    """Write a tokenizer in the layout of diffusers' VQModel or AutoencoderKL.

    Args:
        tokenizer: a run folder, or a tokenizer folder
        out: folder to make
    """
    from pipeline.interop.diffusers import export_to_diffusers
    from stage1_tokenizer.tokenizer import TokenizerModel

    root = Path(tokenizer)
    model = TokenizerModel.load(root / "tokenizer" if (root / "tokenizer").is_dir() else root)
    print(f"{export_to_diffusers(model, Path(out))} in {out}")


def join_files(arguments: list[str]) -> list[str]:
    """``import [FORMAT] FILE [FILE2] -o FOLDER`` as the parser knows it: files in one list, the format by name."""
    if not arguments or arguments[0] not in ("import", "export-diffusers"):
        return arguments
    named: list[str] = []
    positional: list[str] = []
    rest = [_NAMES.get(each, each) for each in arguments[1:]]
    while rest:
        if not rest[0].startswith("-"):
            positional.append(rest.pop(0))
        else:
            rest[0] = rest[0].replace("--config=", "--peer_config=", 1)
            taken = 1 if "=" in rest[0] or rest[0] in ("-h", "--help") else 2
            named, rest = named + rest[:taken], rest[taken:]
    if arguments[0] == "export-diffusers":
        return [arguments[0], *positional, *_out_first(named)]
    is_format = bool(positional) and not Path(positional[0]).is_file() and "." not in positional[0]
    formats = [f"--format={positional.pop(0)}"] if is_format and len(positional) > 1 else []
    files = [json.dumps(positional)] if positional else []
    return ["import", *files, *_out_first(named), *formats]


_NAMES = {"-o": "--out", "--config": "--peer_config"}
"""what a user writes -> the parser's name; it keeps --config for itself"""


def _out_first(named: list[str]) -> list[str]:
    """The parser takes the folder by its place: put the value of ``--out`` first."""
    for i, each in enumerate(named):
        if each == "--out" and i + 1 < len(named):
            return [named[i + 1], *named[:i], *named[i + 2 :]]
        if each.startswith("--out="):
            return [each.removeprefix("--out="), *named[:i], *named[i + 1 :]]
    return named
