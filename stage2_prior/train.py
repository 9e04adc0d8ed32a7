"""Training of a prior: the objective, and the task that ``foundation.training.fit`` drives.

The loss is the mean negative log-likelihood of the codes, with an optional z-loss, label smoothing, and reAR's
regularizer (``regularizer.py``). Codes are predicted in raster order, in random orders that anneal to it (Yu et al.
2024, "Randomized autoregressive visual generation", arXiv:2411.00776, section 3.2), in random orders throughout, or
given codes of which a random share is masked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import nn

from foundation.codes.dataset import TokenDataset
from foundation.codes.spec import code_positions
from foundation.config import require
from foundation.hardware import send
from foundation.randomness import derive_seed, uniforms
from foundation.training.config import Falling
from foundation.training.learner import Learner, compiles, micro_batches
from foundation.training.lengths import Rates
from foundation.training.parallel import sharding_asked
from foundation.training.shares import Share
from stage2_prior.config import PriorConfig, PriorTraining
from stage2_prior.evaluate import PreviewSamples, sample_preview, score_prior
from stage2_prior.head_loss import Terms
from stage2_prior.lora import has_adapters, merged
from stage2_prior.orders import KNOWN, MASKED, PREDICTED, Cells, random_orders, training_masks
from stage2_prior.prior import PriorModel
from stage2_prior.regularizer import Alignment, build_alignment, context_noise, require_one_slot

if TYPE_CHECKING:
    from accelerate import Accelerator
    from PIL import Image

Metrics = dict[str, torch.Tensor | float]
Given = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]
"""contexts, classes, orders and grids of a batch"""


class Masks(NamedTuple):
    """What a masked prior sees and predicts, on its device.

    Attributes:
        hidden_BT: codes that are not seen, bool.
        predicted_n: numbers of the codes whose likelihood is the loss, among all of the batch, int64.
    """

    hidden_BT: torch.Tensor
    predicted_n: torch.Tensor

    @classmethod
    def of(cls, masks_BT: np.ndarray, device: torch.device) -> Masks:
        """From ``training_masks``: how many codes are predicted is known without waiting for a GPU."""
        hidden_BT, predicted_n = masks_BT != KNOWN, np.flatnonzero(masks_BT == PREDICTED)
        return cls(*(send(torch.from_numpy(each), device) for each in (hidden_BT, predicted_n)))


class PriorLoss(nn.Module):
    """A prior with its loss, as one module for DDP or FSDP to wrap: all parameters are used in its ``forward``.

    Args:
        model: the prior.
        z_loss: weight of the mean squared log-partition, which keeps logits from drifting; 0 for none.
        smoothing: label smoothing, see ``head_loss``; 0 for none.
        alignment: adds its loss; None for none.
    """

    def __init__(
        self, model: PriorModel, z_loss: float = 0.0, smoothing: float = 0.0, alignment: Alignment | None = None
    ) -> None:
        super().__init__()
        self.model, self.z_loss, self.smoothing, self.alignment = model, z_loss, smoothing, alignment

    def forward(
        self,
        tokens_BT: torch.Tensor,
        labels_B: torch.Tensor,
        orders_BT: torch.Tensor | None = None,
        grids_B: torch.Tensor | None = None,
        noise_BT: torch.Tensor | None = None,
        masks: Masks | None = None,
        shares_B: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss of a batch.

        Args:
            tokens_BT: codes in raster order, int64.
            labels_B: classes, int64.
            orders_BT: the orders in which they are predicted; see ``PriorModel.forward``.
            grids_B: the grid of each image, int64; None where there is one.
            noise_BT: codes that replace others in the context, as of ``context_noise``; None for none.
            masks: what a masked prior sees and predicts; of no other prior.
            shares_B: 1 / guidance scale of each image, of a prior with ``guidance_input``; see ``_guided``.

        Returns:
            the loss, a float32 scalar: the mean of nll, smoothed, + z_loss * logsumexp^2 over the batch's codes; and
            detached scalars to log: ``nll`` and ``bits_per_code``, not smoothed, and ``logsumexp`` (root mean square)
            if the z-loss is on, and the alignment's.

        Raises:
            DataError, ConfigError: see ``PriorModel.forward``.
        """
        if masks is not None:
            return self._masked(tokens_BT, labels_B, grids_B, masks, shares_B)
        context_BT = tokens_BT if noise_BT is None else torch.where(noise_BT < 0, tokens_BT, noise_BT)
        after = () if self.alignment is None else self.alignment.after
        given = context_BT, labels_B, orders_BT, grids_B
        hidden_BTE, states = self.model.hidden_states(*given, after, shares_B)
        hidden_BTE, trained_BTE = self._guided(hidden_BTE, given, shares_B)
        predicted_BT = tokens_BT if orders_BT is None else tokens_BT.gather(1, orders_BT)
        size_N = self.model.sizes(tokens_BT, orders_BT)
        predicted = self.model.in_steps(predicted_BT).flatten(0, 1)
        trained = None if trained_BTE is None else trained_BTE.flatten(0, 1)
        loss, metrics = self._likelihood(hidden_BTE.flatten(0, 1), predicted, size_N, trained)
        if self.alignment is not None:
            ordered_BT = noise_BT if noise_BT is None or orders_BT is None else noise_BT.gather(1, orders_BT)
            term, cosines = self.alignment(states, predicted_BT, ordered_BT)
            loss, metrics = loss + term, {**metrics, **cosines}
        return loss, metrics

    def _masked(
        self,
        tokens_BT: torch.Tensor,
        labels_B: torch.Tensor,
        grids_B: torch.Tensor | None,
        masks: Masks,
        shares_B: torch.Tensor | None,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """As ``forward``, over the predicted codes; scaled by their number over the expected one, so that parts of a
        batch add up to it.
        """
        context_BT, predicted_n = tokens_BT.masked_fill(masks.hidden_BT, MASKED), masks.predicted_n
        given, size_N = (context_BT, labels_B, None, grids_B), self.model.sizes(tokens_BT)
        hidden_BTE = self.model.hidden_states(*given, shares_B=shares_B)[0]
        hidden_BTE, trained_BTE = self._guided(hidden_BTE, given, shares_B)
        sizes = None if size_N is None else size_N[predicted_n]
        trained = None if trained_BTE is None else trained_BTE.flatten(0, 1)[predicted_n]
        hidden_nE, codes_n = hidden_BTE.flatten(0, 1)[predicted_n], tokens_BT.flatten()[predicted_n]
        loss, metrics = self._likelihood(hidden_nE, codes_n, sizes, trained)
        expected = 2 / math.pi * tokens_BT.numel()
        return loss * (len(predicted_n) / expected), metrics

    def _guided(
        self, hidden_BTE: torch.Tensor, given: Given, shares_B: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Hidden states whose logits are to match the data, and the part of them that is trained.

        With share b, the logits b l(class, b) + (1 - b) l(no class) are trained, the second part as it is: then
        l(class, b) are the logits of guidance with scale 1 / b. Logits are linear in hidden states. Source: Chen et al.
        2025, "Visual generation without guidance", arXiv:2501.15420, Eq. 9.
        """
        if shares_B is None:
            return hidden_BTE, None
        context_BT, labels_B, orders_BT, grids_B = given
        with torch.no_grad():
            null_B = torch.full_like(labels_B, self.model.null_class)
            null_BTE = self.model.hidden(context_BT, null_B, orders_BT, grids_B)
        share_B11 = shares_B.to(hidden_BTE.dtype).view(-1, 1, 1)
        trained_BTE = share_B11 * hidden_BTE
        return trained_BTE + (1 - share_B11) * null_BTE, trained_BTE

    def _likelihood(
        self,
        hidden_NE: torch.Tensor,
        tokens_N: torch.Tensor,
        size_N: torch.Tensor | None,
        trained_NE: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        terms = Terms(self.z_loss, self.smoothing)
        loss, nll, squared_lse = self.model.loss_of(hidden_NE, tokens_N, size_N, terms, trained_NE)
        metrics = {"nll": nll, "bits_per_code": nll / math.log(2)}
        if self.z_loss:
            metrics["logsumexp"] = squared_lse.sqrt()
        return loss, metrics


class PriorTask:
    """A prior in training, with the average of its weights.

    Args:
        model: alike on every process.
        training: how to train.
        validation: codes for ``evaluate``; None where nothing is evaluated.
        accelerator: devices and processes.
        seed: of dropout after the first forward pass of a step, and of random orders.
        samples: how ``preview`` samples and shows codes; None where it shows none.
        code_vectors_VC: the tokenizer's vector of each code, for the regularizer; None where they are not known.
        is_new: whether the model has random weights, so that ``residual_init`` acts.

    Raises:
        ConfigError: training in random order for a model that is not aware of its target, or an alignment of codes
            whose vectors are not known.
    """

    def __init__(
        self,
        model: PriorModel,
        training: PriorTraining,
        validation: TokenDataset | None,
        accelerator: Accelerator,
        *,
        seed: int = 0,
        samples: PreviewSamples | None = None,
        code_vectors_VC: torch.Tensor | None = None,
        is_new: bool = True,
    ) -> None:
        require_orders(model.config, training)
        require_one_slot(training, len(model.spec.slots))
        sharded, fix = (
            has_adapters(model) and sharding_asked(accelerator),
            "start without FSDP: adapters need little memory",
        )
        require(not sharded, "prior.lora", "adapters", "null where FSDP shards the weights", fix)
        spread, none = training.label_smoothing, model.config.extra_codes == 0
        expected, fix = "0 for a prior with extra_codes", "no image has those codes, so that nothing may teach them"
        require(none or spread == 0, "prior.training.label_smoothing", spread, expected, fix)
        for name in ("label_smoothing", "z_loss") if model.spec.latents else ():
            given = getattr(training, name)
            require(given == 0, f"prior.training.{name}", given, "0 for continuous latents, which have no codes")
        if is_new and training.residual_init == "zero":
            model.zero_residual_outputs()
        self.model, self.training, self.validation, self.seed = model, training, validation, seed
        self.accelerator, self.samples, self._cells = accelerator, samples, Cells(model.spec.of_grid(0))
        model.gradient_checkpointing = training.checkpoint_blocks
        if training.compile and compiles(accelerator, "prior"):
            model.compile_blocks()
        alignment = build_alignment(model.config, training, code_vectors_VC, seed)
        self.learner = Learner(
            model,
            training.optim,
            training.fit.steps,
            average_decay=training.average_decay,
            precision=training.precision,
            accelerator=accelerator,
            objective=PriorLoss(model, training.z_loss, training.label_smoothing, alignment),
            blocks=list(model.blocks),
        )
        average = self.learner.average.model
        if training.compile and isinstance(average, PriorModel):
            average.compile_blocks()  # a copy of compiled blocks is not compiled

    @property
    def rates(self) -> tuple[Rates | Falling, ...]:
        """Learning rates of the optimizer, and the strength of noise in contexts."""
        regularizer = self.training.regularizer
        return (Rates(self.training.optim), *([] if regularizer is None else [regularizer.strength]))

    def train_step(self, batch: dict[str, torch.Tensor], step: int) -> Metrics:
        """One optimizer step on (B, T) ``tokens`` and (B,) ``labels``, in passes of ``micro_batch_size``.

        Where there are several grids, (B,) ``grids`` says which one an image has. The loss is the mean over the global
        batch: each pass counts by its share of this process's examples, and all processes have equally many.
        """
        self.learner.wrapped.train()
        parts = self._parts(batch, step)
        metrics: Metrics = {}
        for i, part in enumerate(parts):
            if i > 0:  # fit has seeded the first
                rank = self.accelerator.process_index
                torch.manual_seed(derive_seed(self.seed, "micro step", step, rank, i))
            with self.learner.accumulating(last=i == len(parts) - 1):
                share = len(part["tokens"]) / len(batch["tokens"])
                for name, value in self._backward(part, share).items():
                    metrics[name] = metrics.get(name, 0.0) + share * value
        update = self.learner.take_step(metrics.pop("loss"), step)  # type: ignore[arg-type]
        self.learner.follow(update.taken, step)
        if self.training.regularizer is not None:
            metrics["context_noise"] = self._noise_strength(step)
        return {**update.metrics, **metrics}

    def settle(self, metrics: Mapping[str, float]) -> None:
        """Count the steps whose outcome waited on the device; see ``StepGuard``."""
        self.learner.settle(metrics["skipped_steps"])

    def _parts(self, batch: dict[str, torch.Tensor], step: int) -> list[dict[str, Any]]:
        """The examples of each forward pass: as few passes as ``micro_batch_size`` allows, of almost equal size."""
        examples: dict[str, torch.Tensor] = {
            name: batch[name] for name in ("tokens", "labels", "grids") if name in batch
        }
        order = self.model.config.order
        share = self.training.order_share(order, step)
        if share > 0:
            orders_BT = torch.from_numpy(random_orders(batch["positions"].numpy(), self._cells, share, self.seed))
            examples["orders"] = send(orders_BT, self.accelerator.device)
        if self.model.config.guidance_input:
            examples["shares"] = guidance_shares(batch["positions"].numpy(), batch["labels"], self.model, self.seed)
        strength = self._noise_strength(step)
        if strength > 0:
            sizes_T = code_positions(self.model.spec).codebook_size_T
            noise_BT = context_noise(batch["positions"].numpy(), sizes_T, strength, self.seed)
            examples["noise"] = send(noise_BT, self.accelerator.device)
        size = self.training.micro_batch_size
        columns: list[list[tuple[str, Any]]] = [
            [(name, each) for each in micro_batches(value, size)] for name, value in examples.items()
        ]
        if order == "masked":
            masks_BT = training_masks(batch["positions"].numpy(), self._cells, self.seed)
            parts = np.array_split(masks_BT, len(columns[0]))
            columns.append([("masks", Masks.of(each, self.accelerator.device)) for each in parts])
        return [dict(row) for row in zip(*columns, strict=True)]

    def _noise_strength(self, step: int) -> float:
        regularizer = self.training.regularizer
        return 0.0 if regularizer is None else regularizer.strength.value(step, self.training.fit.steps)

    def _backward(self, part: dict[str, Any], share: float) -> dict[str, torch.Tensor]:
        """Add the gradient of ``share`` times the mean loss of these examples; returns detached scalars."""
        inputs = (part.get(name) for name in ("orders", "grids", "noise", "masks", "shares"))
        with self.learner.autocast():
            loss, metrics = self.learner.wrapped(part["tokens"], part["labels"], *inputs)
        (share * loss).backward()
        return {"loss": loss.detach(), **metrics}

    def evaluate(self) -> dict[str, float]:
        """Validation likelihood of the averaged weights, in the precision of training, of ``evaluate_images`` rows."""
        assert self.validation is not None, "built without codes to evaluate on"
        return score_prior(
            self.exported(),
            self.validation,
            limit=self.training.fit.evaluate_images,
            share=Share.of_processes(self.accelerator.device),
            arithmetic=self.learner.autocast,
        ).metrics()

    def preview(self, n_images: int) -> Image.Image | None:
        """Samples of the averaged weights, on the main process; None where codes cannot be shown."""
        prior = self.exported()
        if self.samples is None or not self.accelerator.is_main_process:
            return None
        seed = derive_seed(self.seed, "preview") % 2**31
        return self.samples.show(sample_preview(prior, n_images, self.samples.sampling, seed))

    def headline(self, metrics: Mapping[str, float]) -> dict[str, str]:
        """Bits per code, beside those of the frequencies of codes and of uniform ones, as far as they are known."""
        beside = {"frequencies": metrics.get("unigram_bits_per_code")}
        if "uniform_nats_per_code" in metrics:
            beside["uniform"] = metrics["uniform_nats_per_code"] / math.log(2)
        known = ", ".join(f"{name} {bits:.2f}" for name, bits in beside.items() if bits is not None)
        return {"bits": f"{metrics['nats_per_code'] / math.log(2):.3f}" + (f" ({known})" if known else "")}

    def is_sound(self, metrics: Mapping[str, float]) -> bool:
        """Whether codes need no more than twice the bits that uniform ones would need."""
        return metrics["nats_per_code"] < 2 * math.log(max(2, self.model.vocab_size))

    def exported(self) -> PriorModel:
        """The model with averaged weights, whole; every process calls it."""
        return merged(self.averaged())

    def averaged(self) -> PriorModel:
        """``exported`` with adapters beside the weights, if there are any."""
        model = self.learner.average.exported()
        assert isinstance(model, PriorModel)
        return model

    def state_dict(self) -> dict[str, Any]:
        """Everything that training needs to continue; every process calls it."""
        return self.learner.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore ``state_dict``; every process calls it."""
        self.learner.load_state_dict(state)


def guidance_shares(positions_B: np.ndarray, labels_B: torch.Tensor, model: PriorModel, seed: int) -> torch.Tensor:
    """1 / guidance scale of each training example, (B,) float32: evenly from 0 to 1, and 1 without a class."""
    shares_B = 1 - uniforms(positions_B, np.zeros_like(positions_B), seed, "guidance")  # above 0
    evenly_B = send(torch.from_numpy(shares_B.astype(np.float32)), labels_B.device)
    return torch.where(labels_B == model.null_class, 1.0, evenly_B)


def require_orders(model: PriorConfig, training: PriorTraining) -> None:
    """Refuse settings of training that do not go with the model's order.

    Raises:
        ConfigError: naming the field to set.
    """
    order, given = model.order, training.random_order
    if given is not None:
        aware, fix = model.knows_target, "set prior.model.order to random-to-raster, or random_order to null"
        require(aware, "prior.model.target_aware", aware, "true for training in random order", fix)
        expected = f"null where prior.model.order is {order}, which has no raster order at the end"
        require(order != "any", "prior.training.random_order", given, expected)
    regularized, expected = training.regularizer, "null where prior.model.order is masked"
    fix = "a masked prior has no code before each one to align with"
    require(order != "masked" or regularized is None, "prior.training.regularizer", regularized, expected, fix)
