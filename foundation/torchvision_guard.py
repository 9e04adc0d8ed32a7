"""Recognise a torchvision that does not match torch before it breaks transformers' imports.

A CPU build of torch beside the default torchvision cannot load torchvision's operators; transformers then fails to
import its models with a message that names neither. See also ``tessera doctor``.
"""

from __future__ import annotations

import importlib
import sys

CURE = "install torch and torchvision together, from one index, in one command: pip install --upgrade torch torchvision"


def torchvision_problem() -> str | None:
    """None when torchvision is absent or loads; else one line that says what is wrong."""
    try:
        importlib.import_module("torchvision")
    except ImportError as error:
        return None if getattr(error, "name", None) == "torchvision" else f"torchvision cannot be imported: {error}"
    except (RuntimeError, OSError) as error:
        for name in [each for each in sys.modules if each.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        return f"torchvision does not match this torch: {error}"
    return None


def hide_broken_torchvision() -> None:
    """Make transformers treat a broken torchvision as absent, so that its model classes import."""
    if "torchvision" not in sys.modules and torchvision_problem() is not None:
        sys.modules["torchvision"] = None  # type: ignore[assignment]
