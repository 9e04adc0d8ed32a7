"""Training task of a tokenizer, for ``foundation.training.fit``."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from foundation.errors import ConfigError
from foundation.images.image_set import ImageSet
from foundation.images.preprocess import to_unit_range
from foundation.randomness import derive_seed
from foundation.training.learner import Learner, compiles
from foundation.training.lengths import Rates
from foundation.training.optim import known_skipped, undone_unless
from foundation.training.shares import Share
from stage1_tokenizer.config import TokenizerTraining
from stage1_tokenizer.evaluate import SetDistance, mean_colour_psnr, reconstruction_picture, score_tokenizer
from stage1_tokenizer.health import codebook_health, gan_health, latent_health
from stage1_tokenizer.micro_batches import MicroBatches, Pass, last_kernel, to_log
from stage1_tokenizer.networks.recompute import compile_blocks, recompute_blocks
from stage1_tokenizer.objective import Objective
from stage1_tokenizer.parts import CODING, freeze, tag_kernels
from stage1_tokenizer.quantizers.base import Quantizer
from stage1_tokenizer.terms.base import Metrics, Seen
from stage1_tokenizer.tokenizer import TokenizerModel

if TYPE_CHECKING:
    from accelerate import Accelerator
    from PIL import Image


_WORST_PSNR = 3.0  # dB


class TokenizerTask:
    """A tokenizer in training, with the average of its weights.

    Args:
        model: freshly built.
        training: how to train.
        objective: what to minimise.
        validation: images for ``evaluate``; None where nothing is evaluated.
        accelerator: devices and processes.
        seed: of the codebooks' initialisation and revival.
        frozen: parts that are not trained; see ``parts``.
        is_new: whether the model has random weights, so that the first batch places the codebooks.
        distance: between the distributions of images and reconstructions, for ``evaluate``; None leaves it out.

    Raises:
        ConfigError: micro-batches, checkpointing or compilation of networks that cannot have it.
    """

    def __init__(
        self,
        model: TokenizerModel,
        training: TokenizerTraining,
        objective: Objective,
        validation: ImageSet | None,
        accelerator: Accelerator,
        *,
        seed: int,
        frozen: Collection[str] = (),
        is_new: bool = True,
        distance: SetDistance | None = None,
    ) -> None:
        self.model, self.training, self.objective = model, training, objective
        self.validation, self.distance, self.seed = validation, distance, seed
        self._plain_psnr: float | None = None
        self.frozen, self.is_new = frozenset(frozen), is_new
        freeze(model, self.frozen)
        tag_kernels(model.encoder, model.decoder)
        if training.checkpoint_blocks:
            recompute_blocks(model)
        if training.compile and compiles(accelerator, "tokenizer"):
            compile_blocks(model)
        self.learner = Learner(
            model,
            training.optim,
            training.fit.steps,
            average_decay=training.average_decay,
            precision=training.precision,
            accelerator=accelerator,
        )
        self.micro_batches = MicroBatches(model, objective, self.learner, training.micro_batch_size)

    @property
    def rates(self) -> tuple[Rates, ...]:
        """Learning rates of the tokenizer's optimizer, and of its adversary's if it has one."""
        training, rival = self.objective.training, self.objective.training.adversarial
        share = training.freeze_coding_after
        coding = [] if share is None else [Rates(training.optim, share=share)]
        return (Rates(training.optim), *coding, *([Rates(rival.optim, rival.start_step)] if rival.weight > 0 else []))

    def train_step(self, batch: dict[str, torch.Tensor], step: int) -> Metrics:
        """One step of the tokenizer, and of its adversary.

        The batch's ``images`` are (B, Y, X, C) uint8 or uint16, or (B, C, Y, X) floats in [-1, 1].
        """
        images = batch["images"]
        if not images.is_floating_point():
            images = to_unit_range(images)
        freezes = self.training.freeze_coding_after is not None and step >= self.training.coding_steps
        if freezes and not self.frozen >= CODING:
            self.freeze_coding(from_average=step == self.training.coding_steps)
        self.learner.wrapped.train()
        _set_training(self.model, self.frozen)
        for quantizer in self.model.quantizers:
            quantizer.schedule(step)
        size = self.training.micro_batch_size
        if step == 0 and self.is_new:
            with self.learner.autocast():
                self.model.initialize(images, self._generator("initialize", step), size)
        in_parts = size is not None and size < len(images)
        passed = self.micro_batches.backward(images, step) if in_parts else self._backward(images, step)
        update = self.learner.take_step(passed.loss, step)
        self._move_on(step, update.taken)
        metrics = {**passed.metrics, **self.objective.train_terms(step, update.taken)}
        if not known_skipped(update.taken):
            metrics |= self.objective.train_adversary(images, passed.reconstructions_BCYX, step, update.taken)
        return {**update.metrics, **metrics}

    def freeze_coding(self, *, from_average: bool) -> None:
        """Train the decoder alone from now on.

        Args:
            from_average: give the model the averaged weights first, whose codes are those that users get; else it has
                them, from a checkpoint of later.
        """
        if from_average:
            self.model.load_state_dict(self.exported().state_dict())
        self.frozen |= CODING
        freeze(self.model, self.frozen)
        self.objective.freeze_coding()
        self.learner.rewrap()

    def _backward(self, images_BCYX: torch.Tensor, step: int) -> Pass:
        """Add the gradient of the loss, in one pass of the whole batch."""
        with self.learner.autocast():
            output = self.learner.wrapped(images_BCYX)
        seen = Seen(
            images_BCYX, output.images_BCYX, output.latents_BCHW, output.inputs_BCHW, output.codes, step, self._decode
        )
        loss, metrics = self.objective(seen, last_kernel(self.model))
        loss = loss + sum(output.losses.values())
        loss.backward()
        return Pass(loss.detach(), {**metrics, **to_log(output)}, output.images_BCYX.detach())

    def _decode(self, inputs_BCHW: torch.Tensor) -> torch.Tensor:
        """The decoder's images of what terms make of its inputs."""
        with self.learner.autocast():
            images_BCYX: torch.Tensor = self.model.decoder(inputs_BCHW).float()
        return images_BCYX

    def _move_on(self, step: int, taken: torch.Tensor) -> None:
        """Update codebooks and averages after a step that was taken; drop what is left of others."""
        for i, quantizer in enumerate(self.model.quantizers):
            if known_skipped(taken) or "codebook" in self.frozen:
                quantizer.forget()
                continue
            moves = type(quantizer).update is not Quantizer.update
            with undone_unless(taken, [*quantizer.parameters(), *quantizer.buffers()] if moves else []):
                quantizer.update(step, self._generator(f"update {i}" if i else "update", step))
        self.learner.follow(taken, step)

    def settle(self, metrics: Mapping[str, float]) -> None:
        """Count the steps whose outcome waited on the device; see ``StepGuard``."""
        self.learner.settle(metrics["skipped_steps"])
        self.objective.settle(metrics)

    def evaluate(self) -> dict[str, float]:
        """Reconstruction and code usage of the averaged weights over the validation set, or ``evaluate_images`` of it.

        LPIPS is measured by the objective's network, in its precision, unless its weights are random.
        """
        assert self.validation is not None, "built without images to evaluate on"
        lpips = self.objective.lpips
        return score_tokenizer(
            self.exported(),
            self.validation,
            limit=self.training.fit.evaluate_images,
            share=Share.of_processes(self.learner.accelerator.device),
            lpips=None if lpips is None or lpips.is_random else lpips,
            distance=self.distance,
        ).metrics()

    def preview(self, n_images: int) -> Image.Image | None:
        """Validation images above their reconstructions, on the main process."""
        assert self.validation is not None, "built without images to evaluate on"
        if not self.learner.accelerator.is_main_process:
            return None
        return reconstruction_picture(self.exported(), self.validation, n_images)

    def headline(self, metrics: Mapping[str, float]) -> dict[str, str]:
        """PSNR, beside that of images of one colour each, the mean of their own."""
        assert self.validation is not None, "built without images to evaluate on"
        if self._plain_psnr is None:
            self._plain_psnr = mean_colour_psnr(self.validation)
        return {"PSNR": f"{metrics['psnr']:.2f} dB (mean colour {self._plain_psnr:.1f})"}

    def is_sound(self, metrics: Mapping[str, float]) -> bool:
        """Whether reconstructions are better than noise: a grey image alone has a PSNR of 6 dB or more."""
        return metrics["psnr"] > _WORST_PSNR

    def exported(self) -> TokenizerModel:
        """The model with averaged weights."""
        model = self.learner.average.model
        assert isinstance(model, TokenizerModel)
        return model

    def health(self, rows: Sequence[Mapping[str, Any]]) -> list[str]:
        """Alarms of the training so far, in plain words.

        Args:
            rows: this stage's metrics in order, each with ``kind`` and ``step``.
        """
        training = [row for row in rows if row["kind"] == "train"]
        if self.model.is_discrete:
            evaluations = [row for row in rows if row["kind"] == "held_out"]
            suggestions = " or ".join(self.model.config.quantizer.suggestions())
            of_codes = codebook_health(evaluations, suggestions, self.model.layout.slot_names)
        else:
            of_codes = latent_health(training, self.model.quantizers[0].width)
        return of_codes + gan_health(training)

    def state_dict(self) -> dict[str, Any]:
        """Everything that training needs to continue."""
        return {**self.learner.state_dict(), "objective": self.objective.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore ``state_dict``."""
        self.learner.load_state_dict(state)
        self.objective.load_state_dict(state["objective"])

    def _generator(self, purpose: str, step: int) -> torch.Generator:
        return torch.Generator().manual_seed(derive_seed(self.seed, "codebook", purpose, step))


def _set_training(model: TokenizerModel, frozen: Collection[str]) -> None:
    """Training mode for all parts but the frozen ones, which compute as in evaluation: no dropout, no relaxed codes.

    A frozen codebook does so only beside a frozen encoder, which needs no gradient through it.
    """
    model.train("encoder" not in frozen)
    model.decoder.train("decoder" not in frozen)
    for quantizer in model.quantizers:
        quantizer.train(not set(frozen) >= CODING)


def require_enough_data(model: TokenizerModel, n_images: int) -> None:
    """Refuse a learned codebook with more codes than all training images have vectors to place them on.

    Raises:
        ConfigError: naming both numbers.
    """
    if not model.is_discrete:
        return
    for quantizer, level in zip(model.quantizers, model.levels, strict=True):
        vectors = n_images * level.height * level.width * quantizer.vectors_per_position
        if quantizer.learns_codebook and quantizer.codebook_size > vectors:
            raise ConfigError(
                "is larger than the data supports",
                field=f"tokenizer.model.quantizer.{model.config.quantizer.size_field}",
                found=f"{quantizer.codebook_size:,} codes",
                expected=f"at most {vectors:,}: {n_images:,} training images with {level.height} x {level.width} codes",
                fix="use fewer codes, more images, a smaller stride, or fsq, whose codes are not learned",
            )
