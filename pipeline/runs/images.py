"""Images of a run: the listing that it began with, and the same images as they are now."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from foundation.config import digest
from foundation.errors import CheckpointError, DataError, TesseraError
from foundation.images.buckets import buckets_of
from foundation.images.config import DataConfig
from foundation.images.depth import require_white
from foundation.images.failures import Failure
from foundation.images.folder import FolderFiles, is_a_path
from foundation.images.image_set import ImageSet, image_set, split_sources
from foundation.images.listing import Changes, ListedImages, ListedSource, Listing, changes
from foundation.images.scan import scan
from foundation.images.source_config import FolderData
from foundation.images.sources import ImageSource, open_sources
from foundation.paths import expand
from foundation.storage import durable
from pipeline.encoding.plan import PLAN, ExportPlan
from pipeline.runs.failed_images import FailuresBySplit, failed_images
from pipeline.runs.folder import RunFolder
from pipeline.runs.found_images import fingerprints, found_in, mean_image_psnr
from pipeline.runs.recipe import Recipe

Split = Literal["validation", "train"]
_GONE = "belongs to the run and is no longer there"
_RESIZED = "has another size in bytes than when it was listed"


@dataclass(frozen=True)
class RunSources:
    """Where a run's images are now.

    Attributes:
        given: the sources of the recipe; ``validation`` is None where a share of ``train`` is held out.
        listing: of the run, None before it began.
        splits: ``train`` and ``validation`` of the listing, or of the recipe before there is one.
        changes: what differs from the listing.
    """

    given: Mapping[str, ImageSource | None]
    listing: Listing | None
    splits: dict[str, ImageSource]
    changes: Changes

    def to_encode(self) -> dict[str, ImageSource]:
        """The splits, without held-out copies of training images."""
        return {name: s.without_copies() if isinstance(s, ListedSource) else s for name, s in self.splits.items()}

    @property
    def known_failures(self) -> Mapping[str, Mapping[str, Failure]]:
        """Images of each split that were unusable when the run began, by id."""
        return {} if self.listing is None else {name: each.failures for name, each in self.listing.splits.items()}


def run_listing(folder: RunFolder) -> Listing | None:
    """The images that a run began with; None if no stage has used any.

    A run without the file, made by an earlier version or with a given tokenizer, has them in the plan of its codes.

    Raises:
        CheckpointError: a trained tokenizer without either.
        DataError: a damaged file.
    """
    if (folder.codes / PLAN).is_file() and not folder.listing.is_file():
        return listing_of_plan(ExportPlan.from_json(folder.codes / PLAN), {})
    if not _has_begun(folder):
        return None
    if folder.listing.is_file():
        return Listing.load(folder.listing)
    if folder.load_recipe().tokenizer.pretrained is not None:
        return None
    what = "the run does not know which images it was trained on"
    fix = "restore this file; a run of an earlier version can sample and edit, and its images need a new run"
    raise CheckpointError(what, field=str(folder.listing), fix=fix)


def _has_begun(folder: RunFolder) -> bool:
    """Whether some result depends on the listing."""
    checkpoints = folder.checkpoints("tokenizer")
    return (
        folder.tokenizer.exists()
        or (folder.codes / PLAN).exists()
        or (checkpoints.is_dir() and any(checkpoints.glob("step-*")))
    )


def listing_of_plan(plan: ExportPlan, found: Mapping[str, Any]) -> Listing:
    """The listing that a plan of an export amounts to; sizes and hashes are not known."""
    splits = {
        name: ListedImages.named(
            list(each.image_ids),
            None if each.labels is None else np.array(each.labels, np.int64),
            None if each.grids is None else np.array(each.grids, np.uint8),
        )
        for name, each in plan.splits.items()
    }
    return Listing(splits, plan.spec.class_names, found)


def open_run_sources(folder: RunFolder, recipe: Recipe) -> RunSources:
    """Open the images of a run, or of its recipe before the run began.

    A tokenizer that another run trained brings that run's listing: an image that it was trained on is not held out.

    Raises:
        DataError: nothing to read.
        CheckpointError: see ``run_listing``.
    """
    listing = run_listing(folder)
    data = recipe.data
    train, validation = open_sources(
        data.source, data.max_megapixels * 10**6, data.remote_cache_gib, arrays=not data.preprocess.is_plain
    )
    given = {"train": train, "validation": validation}
    if listing is None:
        known = Listing.load(folder.tokenizer_listing).known() if folder.tokenizer_listing.is_file() else None
        return RunSources(given, None, split_sources(train, validation, recipe.data, known), Changes([], [], []))
    there = [each for each in (train, validation) if each is not None]
    now = {name for each in there for name in each.ids}
    if not any(name in now for each in listing.splits.values() for name in each.ids):
        what, fix = "holds none of the run's images", "correct the path, or use these images in a new run"
        found = f"{len(now):,} other images, e.g. {there[0].ids[0]}"
        raise DataError(what, field="data.source", found=found, expected=f"the images in {folder.listing}", fix=fix)
    since = changes(listing, given)
    before = listing.inventory.get("fingerprints")
    rewritten = before is not None and before != fingerprints(there)
    since = dataclasses.replace(since, rewritten=rewritten and not since)
    return RunSources(given, listing, listed_sources(listing, given), since)


def listed_sources(listing: Listing, given: Mapping[str, ImageSource | None]) -> dict[str, ImageSource]:
    """The splits of a listing, read from the sources that are there now."""
    return {
        name: ListedSource(each, listing.class_names, [source])
        for name, each in listing.splits.items()
        if (source := given[name] or given["train"]) is not None
    }


def known_sources(listing: Listing, data: DataConfig) -> dict[str, ImageSource]:
    """The splits of a listing that was just compared with what is there: a folder is not listed again."""
    source, max_pixels, arrays = data.source, data.max_megapixels * 10**6, not data.preprocess.is_plain
    if not isinstance(source, FolderData) or not all(map(is_a_path, itertools.chain(*listing.ids()))):
        given = open_sources(source, max_pixels, data.remote_cache_gib, arrays=arrays)
        return listed_sources(listing, dict(zip(("train", "validation"), given, strict=True)))
    paths = {"train": source.path, "validation": source.validation_path or source.path}
    how: dict[str, Any] = {"follow_links": source.follow_links, "max_pixels": max_pixels, "arrays": arrays}
    there: dict[str, ImageSource] = {
        name: FolderFiles(Path(expand(paths[name], "data.source")), each.ids, each.labels, listing.class_names, **how)
        for name, each in listing.splits.items()
    }
    return listed_sources(listing, there)


def differences_since(folder: RunFolder, recipe: Recipe) -> str:
    """What differs between a run's images and those that are there now, as a sentence; "" if nothing does."""
    if recipe.codes is not None:
        return ""
    try:
        found = open_run_sources(folder, recipe).changes
    except TesseraError as error:
        return f"the run's images cannot be compared with what is there now: {' '.join(str(error).split())}"
    return found.sentence()


def require_own_images(folder: RunFolder, recipe: Recipe) -> None:
    """Require that a run which has begun, and is given its images at another place, finds most of them there.

    Raises:
        DataError: most are other images, or there are none.
    """
    listing = run_listing(folder)
    if listing is None or recipe.codes is not None or not folder.is_moved(recipe, "data.source"):
        return
    n_images = sum(len(each.ids) for each in listing.splits.values())
    n_gone = len(open_run_sources(folder, recipe).changes.gone)
    found, expected = f"{n_images - n_gone:,} of {n_images:,}", f"the images in {folder.listing}"
    fix = "correct the path, or give another --out for a new run"
    few = "holds few of the run's images"
    DataError.unless(2 * n_gone <= n_images, few, field="data.source", found=found, expected=expected, fix=fix)


def list_images(folder: RunFolder, recipe: Recipe) -> tuple[RunSources, Listing]:
    """The listing of a run that continues, or of one that begins now, which is written then; for one process.

    No image is decoded but those that ``scan`` looks at.

    Raises:
        DataError: nothing to read, or nothing to hold out; too many of the run's images are gone.
        CheckpointError: see ``run_listing``.
    """
    opened = open_run_sources(folder, recipe)
    if opened.listing is not None:
        return opened, opened.listing
    data = recipe.data
    scans = {name: scan(source, data.identity, f"{name} images") for name, source in opened.splits.items()}
    shapes = scans["train"].shapes + scans["validation"].shapes
    require_white([shapes.brightest], data.preprocess.white_level)
    splits = {
        name: ListedImages.of(source, scans[name].contents, buckets_of(source, data.preprocess.all_shapes))
        for name, source in opened.splits.items()
    }
    trained = {**trained_on(folder, None), **contents_by_id(splits["train"])}
    splits["validation"] = without_trained(splits["validation"], trained)
    found = found_in(opened.given, splits, data, shapes)
    found["mean_psnr"] = mean_image_psnr(opened.splits["train"], data.preprocess)
    listing = Listing(splits, opened.splits["train"].class_names, found)
    listing.save(folder.listing)
    return dataclasses.replace(opened, listing=listing, splits=listed_sources(listing, opened.given)), listing


def training_images(
    recipe: Recipe, sources: Mapping[str, ImageSource], failed: FailuresBySplit, since: Changes | None = None
) -> dict[str, ImageSet]:
    """Training and validation images of stage 1.

    Args:
        recipe: of the run.
        sources: the splits of its listing.
        failed: images that are known to be unusable.
        since: what differs from the listing, as far as it is known.

    Raises:
        DataError: too many are unusable.
    """
    lost = {} if since is None else {name: Failure(name, _GONE, "vanished") for name in since.gone}
    lost |= {} if since is None else {name: Failure(name, _RESIZED, "changed") for name in since.resized}
    augment = {"train": recipe.tokenizer.training.augment}
    images = {}
    for name, source in sources.items():
        source = source.without_copies() if isinstance(source, ListedSource) else source
        how: dict[str, Any] = {"augment": augment.get(name), "seed": recipe.seed, "known_failures": failed.get(name)}
        images[name] = image_set(source, recipe.data, **how)
        images[name].add_failures([lost[each] for each in source.ids if each in lost] if lost else [])
    return images


def identities(listing: Listing) -> dict[str, str]:
    """What tells a run's images from others, for its checkpoints: ids, sizes, and pixels as far as they are known.

    Of images without files of their own, such as rows of a table, it is the fingerprint of the files that hold them.
    """
    names = {"train": "the training images", "validation": "the held-out images"}
    of_files = listing.inventory.get("fingerprints") or []
    found = {}
    for split, name in names.items():
        images = listing.splits[split]
        found[name] = images.identity
        if of_files and not images.contents.any() and not images.sizes.any():
            found[name] = digest([images.identity, of_files])
    return found


def contents_by_id(images: ListedImages) -> dict[int, str]:
    """Ids by the hash of the image, of images whose hash is known."""
    return {int(content): images.ids[i] for i in np.flatnonzero(images.contents) for content in [images.contents[i]]}


def without_trained(held_out: ListedImages, trained: Mapping[int, str]) -> ListedImages:
    """Held-out images, of which copies of training images are marked as failed.

    Raises:
        DataError: every one is such a copy.
    """
    pairs = zip(held_out.ids, held_out.contents.tolist(), strict=True) if trained else ()
    copies = {name: trained[content] for name, content in pairs if content in trained}
    if copies and len(copies) == len(held_out.ids):
        shown = "".join(f"\n    {name}: has the pixels of {other}" for name, other in list(copies.items())[:10])
        raise DataError(
            "every held-out image has the pixels of a training image",
            field="data.source",
            found=f"{len(copies)} copies, the first of them:{shown}",
            fix="give other images for validation, or move the copies away",
        )
    failures = {
        name: Failure(name, f"has the pixels of the training image {other}", "duplicate")
        for name, other in copies.items()
    }
    return dataclasses.replace(held_out, failures=failures) if failures else held_out


def open_run_split(folder: RunFolder, recipe: Recipe, split: Split) -> tuple[ImageSet, Changes]:
    """The images of one split of a run, for evaluation; those that are gone are left out.

    A held-out image is unusable if its pixels were trained on, as far as that is known, or if it is another one than
    when the run began.

    Returns:
        The images, and what differs from the listing.

    Raises:
        DataError: nothing to read.
        CheckpointError: see ``run_listing``.
    """
    opened = open_run_sources(folder, recipe)
    source = opened.splits[split]
    if isinstance(source, ListedSource):
        source = source.present()
    failed = {**opened.known_failures.get(split, {}), **failed_images(folder).get(split, {})}
    if split == "validation":
        source = _never_trained_on(source, folder, opened, recipe)
    return image_set(source, recipe.data, seed=recipe.seed, known_failures=failed), opened.changes


def _never_trained_on(source: ImageSource, folder: RunFolder, opened: RunSources, recipe: Recipe) -> ImageSource:
    """Held-out images without copies of what a given tokenizer was trained on."""
    if not isinstance(source, ListedSource):
        listed = ListedImages.of(source)
        source = ListedSource(listed, source.class_names, [source])
    trained = trained_on(folder, opened.listing)
    if trained and not source.listed.contents.any():
        contents = scan(source, recipe.data.identity, "validation images").contents
        if contents is not None:
            marked = without_trained(dataclasses.replace(source.listed, contents=contents), trained)
            source = source.marked(marked.failures)
    return source.without_copies()


def trained_on(folder: RunFolder, listing: Listing | None) -> dict[int, str]:
    """Hashes of images that a run's tokenizer was trained on, each with an id; see ``scan.content_of``."""
    listings = [] if listing is None else [listing]
    if folder.tokenizer_listing.is_file():
        listings.append(Listing.load(folder.tokenizer_listing))
    return {content: name for each in listings for content, name in contents_by_id(each.splits["train"]).items()}


def adopt_listing(source: Path, folder: RunFolder) -> None:
    """Keep the listing of the run whose tokenizer is used, if ``source`` is a run folder that has one."""
    for name in (RunFolder(source).listing, RunFolder(source).tokenizer_listing):
        if name.is_file():
            durable.replace_file(folder.tokenizer_listing, name.read_bytes())
            return
