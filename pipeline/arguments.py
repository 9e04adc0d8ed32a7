"""What a command line may say in more than one way, brought to the one that its parser knows."""

from __future__ import annotations

import json
from typing import Any

from foundation.errors import ConfigError

RECIPE_COMMANDS = ("run", "train-tokenizer", "encode", "train-prior", "estimate")


def join_overrides(arguments: list[str]) -> list[str]:
    """Gather ``--dotted.field value`` and ``--dotted.field=value`` of the recipe in the one option ``--overrides``."""
    if not arguments or arguments[0] not in RECIPE_COMMANDS:
        return arguments
    own: list[str] = []
    overrides: dict[str, Any] = {}
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        name, equals, value = argument.removeprefix("--").partition("=")
        if argument == "--print_recipe" and (not rest or rest[0] not in ("true", "false")):
            own += [argument, "true"]
        elif argument.startswith("--") and ("." in name or name in ("seed", "name", "description")):
            if not equals and not rest:
                raise ConfigError("has no value", field=argument, fix=f"write {argument} VALUE")
            overrides[name] = _parsed(argument, value if equals else rest.pop(0))
        else:
            own.append(argument)
    return [*own, f"--overrides={json.dumps(overrides)}"] if overrides else own


def join_images(arguments: list[str]) -> list[str]:
    """``reconstruct RUN a.png b.png ...`` as the shell expands it: the images become one list."""
    if not arguments or arguments[0] != "reconstruct":
        return arguments
    positional: list[str] = []
    named: list[str] = []
    rest = arguments[1:]
    while rest:
        if rest[0].startswith("-"):
            if rest[0] == "--keep_size" and (len(rest) < 2 or rest[1] not in ("true", "false")):
                rest[0] = "--keep_size=true"
            taken = 1 if "=" in rest[0] or rest[0] in ("-h", "--help") else 2
            named, rest = named + rest[:taken], rest[taken:]
        else:
            positional.append(rest.pop(0))
    images = positional[1:] if len(positional) < 3 else [json.dumps(positional[1:])]
    return ["reconstruct", *positional[:1], *images, *named]


def _parsed(argument: str, text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        reason = str(error).replace("\n", " ")
        raise ConfigError(f"is not a YAML value: {reason}", field=argument, found=text,
                          fix="quote it twice, e.g. \"'@name'\"") from error  # fmt: skip
