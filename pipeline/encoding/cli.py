"""``tessera encode`` and ``tessera decode`` as the command line knows them; what they do is imported when they run."""

from __future__ import annotations

from typing import Any

_FLAGS = {"encode": ("--status", "--retry_failed"), "decode": ()}
_SHORT = {"-o": "--out"}


def encode(
    recipe: str,
    run_dir: str | None = None,
    shard: str | None = None,
    status: bool = False,
    retry_failed: bool = False,
    max_bad: str | None = None,
    push_to_hub: str | None = None,
    overrides: dict[str, Any] | None = None,
) -> None:
    """Export the codes of all images with the run's frozen tokenizer.

    Any number of processes may do this for one run at the same time, on any number of hosts that share its folder:
    start it several times, or with accelerate launch. What is written is never encoded again.

    Args:
        recipe: a YAML file, a built-in recipe's name, or a run folder
        run_dir: where the results go; default runs/<name of the recipe>
        shard: i/N, i from 0 to N - 1: begin with this part, help with the rest, and do not wait for others
        status: only say how far the export is
        retry_failed: try the images again that failed
        max_bad: share of images that may fail, e.g. 1%; default data.max_failed_share
        push_to_hub: then upload the dataset to this repository of the hub, OWNER/NAME
        overrides: fields of the recipe as JSON; easier one by one, as --NAME VALUE
    """
    from pipeline.encoding.commands import encode_codes, print_status

    if status:
        print_status(recipe, run_dir, overrides)
        return
    encode_codes(recipe, run_dir, overrides, shard=shard, retry=retry_failed, max_bad=max_bad, push_to_hub=push_to_hub)


def decode(
    codes: str,
    out: str = "decoded",
    tokenizer: str | None = None,
    split: str | None = None,
    shard: str | None = None,
    batch_size: int = 32,
    device: str = "cpu",
) -> None:
    """Codes back into images, all of a token dataset or of a file of your own; continues where it stopped.

    Any number of processes may do this at the same time into one folder.

    Args:
        codes: a token dataset, a run folder, a .npy array (images, ...) of whole numbers, or a .parquet file with a
            column codes
        out: folder for the images, also -o
        tokenizer: a run or tokenizer folder; default the one in the dataset
        split: of a dataset; default every one
        shard: i/N, i from 0 to N - 1: begin with this part, help with the rest, and do not wait for others
        batch_size: images decoded at once
        device: cpu, cuda, cuda:1, ...
    """
    from pipeline.encoding.decode import decode_to_folder

    decode_to_folder(codes, out, tokenizer=tokenizer, split=split, shard=shard, batch_size=batch_size, device=device)


def join_dashes(arguments: list[str]) -> list[str]:
    """``--retry-failed``, ``--max-bad 1%`` and ``-o FOLDER`` in the form that the parser knows."""
    if not arguments or arguments[0] not in _FLAGS:
        return arguments
    joined: list[str] = []
    for position, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name.startswith("--") and "." not in name:
            name = "--" + name[2:].replace("-", "_")
        name = _SHORT.get(name, name)
        following = arguments[position + 1] if position + 1 < len(arguments) else ""
        bare = name in _FLAGS[arguments[0]] and not equals and following not in ("true", "false")
        joined.append(f"{name}=true" if bare else name + equals + value)
    return joined
