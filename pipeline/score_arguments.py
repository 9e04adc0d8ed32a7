"""The images of ``tessera score`` as the shell expands them."""

from __future__ import annotations

from pipeline.arguments import join_images


def join_scored(arguments: list[str]) -> list[str]:
    """``score a.png b.png ...``: the images become one list, as those of ``reconstruct``, which follow a run."""
    if arguments[:1] != ["score"]:
        return arguments
    return ["score", *join_images(["reconstruct", "RUN", *arguments[1:]])[2:]]
