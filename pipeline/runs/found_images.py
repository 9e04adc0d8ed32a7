"""What a run found in its data source: the inventory of its images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from foundation.codes.manifest import MANIFEST, read_manifest
from foundation.images.buckets import batches_of_one_shape
from foundation.images.config import DataConfig, Preprocess
from foundation.images.failures import Failure
from foundation.images.image_set import ImageSet
from foundation.images.inventory import PassedOver, Shapes, inventory
from foundation.images.listing import ListedImages, Listing
from foundation.images.scan import sample_of
from foundation.images.sources import ImageSource, SubsetSource
from pipeline.runs.failed_images import failed_images
from pipeline.runs.folder import RunFolder


def found_in(
    given: Mapping[str, ImageSource | None],
    listed: Mapping[str, ListedImages] | None,
    data: DataConfig,
    shapes: Shapes | None = None,
) -> dict[str, Any]:
    """The inventory of a run's sources.

    Args:
        given: the sources.
        listed: the splits of the run's listing; None before there is one.
        data: how images are read.
        shapes: of the images that a scan has read.
    """
    sources = [each for each in given.values() if each is not None]
    labels = [each.labels for each in sources if each.labels is not None]
    passed_over = [row for each in sources if hasattr(each, "passed_over") for row in each.passed_over.rows()]
    splits = {"planned": {"used": sum(len(each.ids) for each in sources), "failed": 0}}
    alike: dict[str, Any] = {}
    if listed is not None:
        copies = list(listed["validation"].failures.values())
        counts = {name: len(each.without_copies().ids) for name, each in listed.items()}
        splits = {name: {"used": n, "failed": 0} for name, n in counts.items()}
        if copies:
            what = "held out, with a training image's pixels"
            passed_over.append(PassedOver("copies", what, len(copies), copies[0].image_id))
        known = listed["train"].contents[listed["train"].contents > 0]
        alike = {"copies": len(known) - len(np.unique(known))}
    notes = list(dict.fromkeys(note for each in sources for note in getattr(each, "notes", ())))
    all_labels = np.concatenate(labels) if labels else None
    size = data.preprocess.height, data.preprocess.width
    found = None if shapes is None else shapes.summary(*size)
    held = inventory(splits, all_labels, sources[0].class_names, passed_over, notes, found)
    return {**held, **alike, "fingerprints": fingerprints(sources)}


def inventory_of(folder: RunFolder) -> dict[str, Any]:
    """The inventory of a run's images with the unusable ones that were met so far; empty without a listing."""
    if not folder.listing.is_file():
        return {}
    listing, failed = Listing.load(folder.listing), failed_images(folder)
    if (folder.codes / MANIFEST).is_file():  # the export meets every image
        for name, entry in read_manifest(folder.codes)["splits"].items():
            failed[name].update({each["image_id"]: Failure(**each) for each in entry["failures"]})
    found = dict(listing.inventory)
    planned = {name: len(each.without_copies().ids) for name, each in listing.splits.items()}
    if set(found.get("splits", ())) == set(planned):
        met = {name: sum(each.code != "duplicate" for each in failed[name].values()) for name in planned}
        found["splits"] = {name: {"used": n - met[name], "failed": met[name]} for name, n in planned.items()}
    return found


def mean_image_psnr(source: ImageSource, preprocess: Preprocess) -> float | None:
    """PSNR in dB of the mean of a sample of images in place of each of them, at most 99; None if none can be read.

    Of several shapes, each image has the mean of its own.
    """
    images = ImageSet(SubsetSource(source, np.array(sample_of(len(source.ids)))), preprocess, cache_mib=0)
    errors: list[np.ndarray] = []
    for rows in batches_of_one_shape(images.buckets, np.arange(len(images)), len(images)):
        pixels_KYXC, _ = images.readable(rows)
        if len(pixels_KYXC):
            values = pixels_KYXC.astype(np.float32)
            errors.append(np.square(values - values.mean(0)))
    if not errors:
        return None
    error = float(np.concatenate([each.reshape(len(each), -1) for each in errors]).mean())
    return min(99.0, 10 * math.log10(255**2 / error)) if error else 99.0


def fingerprints(sources: Sequence[ImageSource]) -> list[str]:
    """Fingerprints of the files that hold the images, of sources that have some."""
    return [source.fingerprint for source in sources if hasattr(source, "fingerprint")]
