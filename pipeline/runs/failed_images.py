"""Unusable images of a run: found by any process, listed once in ``failed_images.jsonl``."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from foundation.config import to_dict
from foundation.images.failures import Failure
from foundation.images.image_set import ImageSet
from foundation.storage import durable
from pipeline.runs.folder import RunFolder

if TYPE_CHECKING:
    from accelerate import Accelerator

FailuresBySplit = Mapping[str, Mapping[str, Failure]]
"""split => image id => failure"""
_SHOWN = 20


def failed_images(folder: RunFolder) -> dict[str, dict[str, Failure]]:
    """The unusable images of a run that were listed so far; lines that a crash cut are left out."""
    found: dict[str, dict[str, Failure]] = {"train": {}, "validation": {}}
    text = folder.failures.read_text(encoding="utf-8", errors="replace") if folder.failures.is_file() else ""
    for line in text.splitlines():
        try:
            row = json.loads(line)
            found[row["split"]][row["image_id"]] = Failure(row["image_id"], row["reason"], row["code"])
        except (ValueError, KeyError, TypeError):
            continue
    return found


class FailedImages:
    """Keeps the list of a run's unusable images while its processes train.

    Args:
        folder: of the run.
        images: its sets, by split.
        accelerator: processes.
    """

    def __init__(self, folder: RunFolder, images: Mapping[str, ImageSet], accelerator: Accelerator) -> None:
        self._path, self._images, self._accelerator = folder.failures, images, accelerator
        self._listed = {name: set[str]() for name in images}
        self._n_said = 0

    def publish(self, say: Callable[[str], None] = print) -> None:
        """Share what the processes found, and write the list if it grew; every process calls it.

        Raises:
            DataError: too many images are unusable, on every process alike.
        """
        new = [(name, each) for name, images in self._images.items() for each in images.failures]
        new = [(name, each) for name, each in new if each.image_id not in self._listed[name]]
        if self._accelerator.num_processes > 1:
            from accelerate.utils import gather_object

            new = list({(name, each.image_id): (name, each) for name, each in gather_object(new)}.values())
        if not new and self._path.is_file():
            return
        for name, each in new:
            self._listed[name].add(each.image_id)
        if self._accelerator.is_main_process:
            for _, each in new[: max(0, _SHOWN - self._n_said)]:
                say(f"  unusable: {each.image_id}: {each.reason}")
            self._n_said += len(new)
            if self._n_said > _SHOWN >= self._n_said - len(new):
                say(f"  ... more of them in {self._path}")
        try:
            for name, images in self._images.items():
                images.add_failures([each for split, each in new if split == name])
        finally:
            if self._accelerator.is_main_process:
                durable.replace_file(self._path, self._text().encode())

    def account(self, n_samples: int) -> str:
        """Planned = used + failed, in words.

        Args:
            n_samples: training examples drawn so far; fewer than images leave some that were never read.
        """
        parts = []
        for name, images in self._images.items():
            failed = len(images.failures)
            unread = max(0, len(images) - n_samples) if name == "train" else 0
            rest = f", {unread:,} of them not yet read" if unread else ""
            parts.append(f"{name} {len(images):,} = {len(images) - failed:,} used{rest} + {failed:,} failed")
        return "; ".join(parts)

    def _text(self) -> str:
        rows = [{"split": name, **to_dict(each)} for name, images in self._images.items() for each in images.failures]
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
