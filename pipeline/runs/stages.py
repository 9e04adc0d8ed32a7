"""Stages of a run: tokenizer, codes, prior, samples. A stage whose result exists is skipped."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from foundation.codes.dataset import TokenDataset
from foundation.codes.fetched import fetch_run_codes
from foundation.codes.manifest import read_manifest
from foundation.codes.spec import CodeSpec, require_same_codes
from foundation.config import digest, require, to_dict
from foundation.images.image_set import ImageSet, first_readable
from foundation.images.inventory import inventory_text
from foundation.images.listing import Changes, Listing
from foundation.images.preview import find_stretch
from foundation.randomness import ORDER_VERSION, derive_seed
from foundation.training.clock import ModelWork
from foundation.training.fit import fit
from foundation.training.heartbeat import doing, wait_for_everyone
from foundation.training.log import MetricsLog
from foundation.training.parallel import build_accelerator, sharding_asked
from foundation.training.trackers import RunTracker, require_tracker
from pipeline.encoding.accounts import totals
from pipeline.generation.files import write_recipe_index
from pipeline.runs import extend
from pipeline.runs.advice import advice, advice_text
from pipeline.runs.encode import ExportJob, encode_run
from pipeline.runs.failed_images import FailedImages, failed_images
from pipeline.runs.folder import Extend, RunFolder
from pipeline.runs.images import (
    adopt_listing,
    differences_since,
    identities,
    known_sources,
    list_images,
    require_own_images,
    training_images,
)
from pipeline.runs.precision import adopt_precision, settle_precision
from pipeline.runs.recipe import Recipe, adopt_tokenizer, determining
from pipeline.runs.samples import sampled_picture, write_samples
from pipeline.runs.starting import Start, bind_codes, find_start, keep_note, start_of_prior, start_tokenizer
from stage1_tokenizer.canary import N_IMAGES, save_canary
from stage1_tokenizer.objective import Objective
from stage1_tokenizer.tokenizer import TokenizerModel
from stage1_tokenizer.train import TokenizerTask, require_enough_data
from stage2_prior.data import CodeExamples
from stage2_prior.evaluate import PreviewSamples
from stage2_prior.lora import ADAPTER, add_adapters, merged, save_adapter
from stage2_prior.prior import PriorModel
from stage2_prior.regularizer import require_one_slot
from stage2_prior.train import PriorTask, require_orders

if TYPE_CHECKING:
    from collections.abc import Mapping

    from accelerate import Accelerator
    from PIL import Image

    from foundation.images.sources import ImageSource
    from foundation.training.task import Examples
    from stage1_tokenizer.evaluate import SetDistance

    OpenRFID = Callable[[Recipe, int, torch.device], tuple[SetDistance | None, str]]
    """a recipe, how many images are evaluated, the device => the distance, and what to say about it"""

WorkOf = Callable[[Recipe, Literal["tokenizer", "prior"], torch.device, CodeSpec | None], ModelWork | None]


@dataclass
class Run:
    """Execution of a recipe in its folder."""

    recipe: Recipe
    folder: RunFolder
    open_rfid: OpenRFID | None = None
    """opens the rFID of evaluations in training; None measures none"""
    reading_seconds: float = 0.0
    """that listing the images took"""
    work_of: WorkOf = lambda recipe, stage, device, spec: None
    """what a training step of a stage computes, for the share of the device's peak; None where that is not known"""
    evaluated: Callable[[RunFolder], None] = lambda folder: None
    """called after each evaluation in training, on one process"""
    words: Callable[[str], dict[str, str]] = lambda stage: {}
    """more for the progress bar of a stage"""
    _compared: bool = False

    def start(self, lock_seconds: float = 0.0) -> None:
        """Claim the folder for this recipe and lock it until this process ends.

        Args:
            lock_seconds: that another process's lock is waited for.

        Raises:
            CheckpointError: the folder belongs to another recipe, or another process holds the lock.
            ConfigError: a batch size is no multiple of the number of processes, or a tracker cannot work here.
        """
        for stage in ("tokenizer", "prior"):
            size, n = getattr(self.recipe, stage).training.fit.batch_size, self.accelerator.num_processes
            require(size % n == 0, f"{stage}.training.fit.batch_size", size, f"a multiple of {n} processes")
        slots = self.recipe.tokenizer.model.n_slots
        require_orders(self.recipe.prior.model, self.recipe.prior.training)
        require_one_slot(self.recipe.prior.training, slots)
        for stage in ("tokenizer", "prior"):
            if not extend.is_final(self.folder, stage):
                find_start(self.folder, stage, getattr(self.recipe, stage).start_from)
        require_own_images(self.folder, self.recipe)
        sharding_asked(self.accelerator)  # refuses impossible sharding before any work
        if self.recipe.machine.track is not None:
            require_tracker(self.recipe.machine.track)
        if self.accelerator.is_main_process:
            self._held = self.folder.lock(lock_seconds)
            self.folder.sweep()
        self._claim(extend.begin)

    def join(self) -> None:
        """Claim the folder for this recipe without a lock, to take part in its export.

        Raises:
            CheckpointError: the folder belongs to another recipe.
        """
        self._claim()

    def claim_again(self) -> None:
        """Write a recipe into the folder that has changed in a part that has not begun."""
        if self.accelerator.is_main_process:
            self.folder.claim(self.recipe)
        wait_for_everyone(self.accelerator)

    def _claim(self, begin: Extend | None = None) -> None:
        """Resolve the recipe's precision, or take what the run has chosen, and write the recipe into the folder."""
        accelerator = self.accelerator
        if accelerator.is_main_process:
            if self.folder.recipe.exists():
                self.recipe = adopt_precision(self.recipe, self.folder.load_recipe())
            self.recipe, choices = settle_precision(self.recipe, accelerator.device)
            for sentence in choices:
                accelerator.print(f"precision of {sentence}", flush=True)
            self.folder.claim(self.recipe, begin)
        wait_for_everyone(accelerator)
        self.recipe = adopt_precision(self.recipe, self.folder.load_recipe())

    def release(self) -> None:
        """Release the lock of the folder."""
        self._held.release()

    @cached_property
    def images(self) -> dict[str, ImageSet]:
        """Training and validation images. The first process lists them; the others read its list."""
        began = time.perf_counter()
        sources: Mapping[str, ImageSource] = {}
        since: Changes | None = None
        if self.accelerator.is_main_process:
            doing(self.accelerator, "listing the images")
            opened, listing = list_images(self.folder, self.recipe)
            sources, since = opened.splits, opened.changes
            self._say_found(listing.inventory, opened.changes.sentence())
        wait_for_everyone(self.accelerator)
        if not sources:
            sources = known_sources(Listing.load(self.folder.listing), self.recipe.data)
        images = training_images(self.recipe, sources, failed_images(self.folder), since)
        self.reading_seconds = time.perf_counter() - began
        return images

    @cached_property
    def failed(self) -> FailedImages:
        """The list of the run's unusable images."""
        return FailedImages(self.folder, self.images, self.accelerator)

    def compare(self) -> None:
        """Say once in what the images that are there now differ from the run's."""
        if not self._compared and self.accelerator.is_main_process:
            self._say_found({}, differences_since(self.folder, self.recipe))

    def _say_found(self, found: Mapping[str, Any], differences: str) -> None:
        """Print the table of what the data source holds, and what differs from the run's images."""
        self._compared = True
        if found:
            self.accelerator.print(f"images:\n{inventory_text(found)}{advice_text(advice(self.recipe, found))}")
        if differences:
            self.accelerator.print(f"images: {differences}")

    @cached_property
    def accelerator(self) -> Accelerator:
        """Devices and processes; each stage's learner sets its own precision."""
        accelerator = build_accelerator(self.recipe.machine.device)
        steps = accelerator.gradient_accumulation_steps
        require(steps == 1, "ACCELERATE_GRADIENT_ACCUMULATION_STEPS", steps, "1", "unset it: the recipe decides")
        return accelerator

    def train_tokenizer(self) -> None:
        """Train stage 1 and save the averaged weights in ``tokenizer/``."""
        if extend.is_final(self.folder, "tokenizer"):
            self.compare()
            return
        recipe, stage = self.recipe, self.recipe.tokenizer
        accelerator = self.accelerator
        if stage.pretrained is not None:
            if accelerator.is_main_process:
                adopt_listing(Path(stage.pretrained), self.folder)
                adopt_tokenizer(Path(stage.pretrained), self.folder.tokenizer, stage.model, recipe.data.preprocess)
            wait_for_everyone(accelerator)
            return
        torch.manual_seed(derive_seed(recipe.seed, "tokenizer weights"))
        model = TokenizerModel(stage.model, recipe.data.preprocess)
        start = find_start(self.folder, "tokenizer", stage.start_from)
        start = None if start is None else start_tokenizer(model, start)
        objective = Objective(stage.training, model, accelerator, seed=recipe.seed)
        images = self.images
        if start is None:
            require_enough_data(model, len(images["train"]))
        if not model.preprocess.is_plain:
            model.stretch = find_stretch(self._canary_images(), model.preprocess)
        how: dict[str, Any] = {"seed": recipe.seed, "frozen": stage.freeze, "is_new": start is None}
        how["distance"] = self._rfid(len(images["validation"]))
        task = TokenizerTask(model, stage.training, objective, images["validation"], accelerator, **how)
        identity = {"data": digest(determining(recipe.data)), **identities(Listing.load(self.folder.listing))}
        how = {"seed": recipe.seed, "health": task.health, "at_rest": self.failed.publish}
        how["workers"] = recipe.machine.workers
        self._fit("tokenizer", task, images["train"], identity, start, **how)
        n_samples = stage.training.fit.steps * stage.training.fit.batch_size
        accelerator.print(f"images: {self.failed.account(n_samples)}")
        tokenizer = task.exported()
        if start is not None:
            bind_codes(tokenizer, stage, start, self._canary_images())
        self._publish("tokenizer", lambda temporary: self._save_tokenizer(tokenizer, temporary))

    def _rfid(self, n_images: int) -> SetDistance | None:
        """RFID of evaluations in training, where it can be measured; says so if it cannot."""
        if self.open_rfid is None:
            return None
        n_images = self.recipe.tokenizer.training.fit.n_evaluated(n_images)
        distance, note = self.open_rfid(self.recipe, n_images, self.accelerator.device)
        if note:
            self.accelerator.print(note, flush=True)
        return distance

    def _fit(
        self,
        stage: Literal["tokenizer", "prior"],
        task: TokenizerTask | PriorTask,
        examples: Examples,
        identity: dict[str, str],
        start: Start | None,
        **settings: Any,
    ) -> None:
        """Train one stage, or continue from its last checkpoint."""
        if start is not None:
            identity = {**identity, **start.identity}
            if self.accelerator.is_main_process:
                keep_note(self.folder, stage, start)
        recipe, log = getattr(self.recipe, stage), self.folder.metrics
        layout = task.model.spec if isinstance(task, PriorTask) else None
        config, order = recipe.training.fit, getattr(examples, "order_settings", ())

        def identify(n_steps: int) -> dict[str, str]:
            of_stage = determining(recipe)
            of_stage["training"]["fit"]["steps"] = n_steps
            of_stage.pop("start_from", None)  # which weights they are counts, not where
            seed = {"seed": digest([self.recipe.seed, ORDER_VERSION, *order])}
            window = {"the order of images (data.shuffle_window)": digest(order)} if order else {}
            return {**seed, **window, stage: digest(of_stage), **identity}

        fit(
            task,
            examples,
            config,
            self.accelerator,
            checkpoints=self.folder.checkpoints(stage),
            log=MetricsLog(log, stage, enabled=self.accelerator.is_main_process, tracker=self._tracker(stage)),
            previews=self.folder.previews(stage),
            evaluated=lambda: self.evaluated(self.folder),
            words=lambda: self.words(stage),
            identity=identify,
            optims=task.rates,
            work=self.work_of(self.recipe, stage, self.accelerator.device, layout),
            **settings,
        )

    def _tracker(self, stage: str) -> RunTracker | None:
        name = self.recipe.machine.track
        if name is None or not self.accelerator.is_main_process:
            return None
        return RunTracker(name, self.folder.tracking, self.folder.root.resolve().name, stage, to_dict(self.recipe))

    def _publish(self, stage: str, save: Callable[[Path], None]) -> None:
        """Save a trained model and free its memory."""
        if self.accelerator.is_main_process:
            doing(self.accelerator, f"saving the {stage}")
            extend.publish(self.folder, stage, save, self.accelerator.print)
        wait_for_everyone(self.accelerator)
        self.accelerator.free_memory()

    def _save_tokenizer(self, tokenizer: TokenizerModel, temporary: Path) -> None:
        tokenizer.save(temporary)
        save_canary(tokenizer, self._canary_images(), temporary)

    def _canary_images(self) -> np.ndarray:
        validation = self.images["validation"]
        return first_readable(validation, N_IMAGES)

    def encode(self, job: ExportJob | None = None) -> bool:
        """Take part in the export of the codes of all images.

        Args:
            job: settings of this run; None encodes everything and waits for other processes.

        Returns:
            Whether the token dataset is finished.

        Raises:
            DataError: too many images failed.
        """
        recipe, accelerator = self.recipe, self.accelerator
        job = job or ExportJob(max_bad=recipe.data.max_failed_share)
        part = job.part.within(accelerator.process_index, accelerator.num_processes)
        doing(accelerator, "encoding")
        job = dataclasses.replace(job, part=part, quiet=not accelerator.is_local_main_process)
        finished = encode_run(self.folder, recipe, accelerator.device, job, say=self._say_found)
        wait_for_everyone(accelerator)
        return finished

    def train_prior(self) -> None:
        """Train stage 2 on the codes and save the averaged weights in ``prior/``."""
        self.compare()
        if self.accelerator.is_main_process:
            fetch_run_codes(self.folder.root)
        wait_for_everyone(self.accelerator)
        if not extend.is_final(self.folder, "prior"):
            self._train_prior()
        if self.accelerator.is_main_process:
            dropout = self.recipe.prior.training.label_dropout
            sampling = self.recipe.samples.sampling
            counts = tuple(read_manifest(self.folder.codes)["splits"]["train"].get("grids", ()))
            how: dict[str, Any] = {"has_tokenizer": self._has_tokenizer, "grid_counts": counts}
            write_recipe_index(self.folder.root, sampling, dropout, **how)
        wait_for_everyone(self.accelerator)

    @property
    def _has_tokenizer(self) -> bool:
        """Whether codes can be decoded to images; they cannot where they are given without their tokenizer."""
        return True

    def _train_prior(self) -> None:
        recipe, stage = self.recipe, self.recipe.prior
        accelerator = self.accelerator
        access = recipe.machine.tokens
        codes = {split: TokenDataset(self.folder.codes, split, access) for split in ("train", "validation")}
        tokenizer = TokenizerModel.load(self.folder.tokenizer) if self._has_tokenizer else None
        if tokenizer is not None:
            owner, other = "the run's tokenizer", "the token dataset"
            require_same_codes(tokenizer.spec, codes["train"].spec, owner=owner, other=other)
            tokenizer.to(accelerator.device)

        def show(codes_BT: torch.Tensor) -> Image.Image:
            return sampled_picture(codes_BT, model.spec, tokenizer)

        torch.manual_seed(derive_seed(recipe.seed, "prior weights"))
        model = PriorModel(stage.model, codes["train"].spec)
        start = find_start(self.folder, "prior", stage.start_from)
        if start is None:
            model.prepare(codes["train"].codes_NT)
        else:
            start = start_of_prior(model, start, accelerator.print)
            if stage.lora is not None:
                add_adapters(model, stage.lora, new_classes=start.new_classes)
        seed = derive_seed(recipe.seed, "prior")
        samples = PreviewSamples(recipe.samples.sampling, show)
        known: dict[str, Any] = {"seed": seed, "samples": samples, "is_new": start is None}
        regularizer = stage.training.regularizer
        if tokenizer is not None and regularizer is not None and regularizer.aligns:
            known["code_vectors_VC"] = tokenizer.code_vectors()
        task = PriorTask(model, stage.training, codes["validation"], accelerator, **known)
        if accelerator.num_processes > 1:
            how = "sharded (FSDP2)" if task.learner.is_sharded else "replicated (DDP)"
            accelerator.print(f"prior: {accelerator.num_processes} processes, weights {how}")
        dropout, views = stage.training.label_dropout, stage.training.views
        examples = CodeExamples(codes["train"], model.n_classes, label_dropout=dropout, views=views, seed=recipe.seed)
        manifest = read_manifest(self.folder.codes)
        counts = totals(manifest)
        if counts["failed"]:
            written = f"{counts['written']:,} of {counts['planned']:,} images"
            accelerator.print(f"codes: {written}, {counts['failed']:,} failed")
        identity = {"the token dataset": digest(manifest)}
        self._fit("prior", task, examples, identity, start, seed=seed)
        averaged = task.averaged()

        def save(temporary: Path) -> None:
            merged(averaged).save(temporary)
            if stage.lora is not None:
                save_adapter(averaged, temporary / ADAPTER)

        self._publish("prior", save)

    def sample(self) -> None:
        """Sample the run's grid, see ``samples.write_samples``."""
        if self.accelerator.is_main_process and not self.folder.has_samples():
            write_samples(self.folder, self.recipe, self.accelerator.device, has_tokenizer=self._has_tokenizer)
