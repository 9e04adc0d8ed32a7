"""A tokenizer's loss: pixel, perceptual and adversarial terms, and those that a recipe lists."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F

from foundation.config import require
from foundation.errors import ConfigError
from foundation.images.preview import visible
from foundation.training.learner import Learner
from foundation.training.parallel import average_gradients
from foundation.training.precision import settled
from stage1_tokenizer.config import TokenizerTraining
from stage1_tokenizer.losses.adversary import Adversary
from stage1_tokenizer.losses.lpips import LPIPS, MIN_SIDE
from stage1_tokenizer.terms.base import Metrics, Seen, Term, TermContext
from stage1_tokenizer.tokenizer import TokenizerModel

if TYPE_CHECKING:
    from accelerate import Accelerator

PIXEL_LOSSES = {"l1": F.l1_loss, "l2": F.mse_loss}


class Objective:
    """The loss of a tokenizer's training step (Esser et al. 2021, arXiv:2012.09841, section 3.1, and further terms).

    Build it before reading data: it raises what is missing. The process's random numbers are left as they were.

    Args:
        training: weights and kinds of the terms.
        model: the tokenizer that is trained.
        accelerator: devices and processes.
        seed: of the first weights of the discriminator and of what terms train.

    Attributes:
        lpips: the perceptual distance, None when its weight is 0.
        adversary: the discriminator in training, None when its weight is 0.
        terms: of ``training.terms``, by the name under which they are logged.
        learner: what the terms train, None where they train nothing.

    Raises:
        ConfigError: weights or packages that a term needs are not found, or a term that cannot work here.
    """

    def __init__(
        self, training: TokenizerTraining, model: TokenizerModel, accelerator: Accelerator, *, seed: int
    ) -> None:
        self.training, self._preprocess = training, model.preprocess
        self.lpips: LPIPS | None = None
        self.adversary: Adversary | None = None
        preprocess = self._preprocess
        if training.perceptual.weight > 0:
            perceptual = training.perceptual
            side = min(preprocess.height, preprocess.width)
            expected = f"0 for images with sides below {MIN_SIDE} pixels; these have {side}"
            require(side >= MIN_SIDE, "perceptual.weight", perceptual.weight, expected)
            precision = settled(perceptual.precision, accelerator.device)
            self.lpips = LPIPS(perceptual.vgg_weights, precision=precision).to(accelerator.device)
        if training.adversarial.weight > 0:
            self.adversary = Adversary(
                training.adversarial,
                image_shape_CYX=(preprocess.n_channels, preprocess.height, preprocess.width),
                n_steps=training.fit.steps,
                precision=training.precision,
                accelerator=accelerator,
                seed=seed,
            )
        self.terms = _build_terms(TermContext(model, training, accelerator, seed))
        self.learner = _learner(self.terms, training, accelerator)
        self._left_out: set[str] = set()

    def __call__(self, seen: Seen, last_layer: torch.Tensor) -> tuple[torch.Tensor, Metrics]:
        """The weighted sum of the terms, a float32 scalar, and each term for the log.

        Args:
            seen: the batch.
            last_layer: the decoder's last kernel, for the adaptive weight.
        """
        loss, metrics = self.reconstruction_loss(seen)
        if self.adversary is not None:
            term, more = self.adversary.generator_term(seen.reconstructions_BCYX, loss, last_layer, seen.step)
            loss, metrics = loss + term, {**metrics, **more}
        if self.has_other_terms:
            term, more = self.other_terms(seen)
            loss, metrics = loss + term, {**metrics, **more}
        return loss, metrics

    def reconstruction_loss(self, seen: Seen) -> tuple[torch.Tensor, Metrics]:
        """Pixel and perceptual terms: a mean over images, a float32 scalar; and each term for the log."""
        training = self.training
        pixel = PIXEL_LOSSES[training.pixel_loss](seen.reconstructions_BCYX, seen.images_BCYX)
        loss = training.pixel_weight * pixel
        metrics: Metrics = {"loss_pixel": pixel.detach()}
        if self.lpips is not None:
            pair = (visible(each, self._preprocess) for each in (seen.images_BCYX, seen.reconstructions_BCYX))
            perceptual = self.lpips(*pair).mean()
            metrics["loss_perceptual"] = perceptual.detach()
            loss = loss + training.perceptual.weight * perceptual
        for name, term in self.terms.items():
            if term.judges_reconstructions:
                loss = loss + _weighted(name, term, seen, metrics)
        return loss, metrics

    @property
    def has_other_terms(self) -> bool:
        """Whether ``other_terms`` has any."""
        return any(True for _ in self._others())

    def other_terms(self, seen: Seen) -> tuple[torch.Tensor, Metrics]:
        """The listed terms that are not of reconstructions alone, weighted and added up; and each for the log."""
        loss, metrics = torch.zeros((), device=seen.images_BCYX.device), Metrics()
        for name, term in self._others():
            loss = loss + _weighted(name, term, seen, metrics)
        return loss, metrics

    def _others(self) -> Iterator[tuple[str, Term]]:
        for name, term in self.terms.items():
            if not term.judges_reconstructions and name not in self._left_out:
                yield name, term

    def freeze_coding(self) -> None:
        """Leave out the terms that act on encoder and codebook alone, which are trained no more."""
        self._left_out = {name for name, term in self.terms.items() if term.judges_coding}

    def adversary_at(self, step: int) -> Adversary | None:
        """The adversary if it takes part in optimizer step ``step``, from 0."""
        return self.adversary if self.adversary is not None and self.adversary.has_started(step) else None

    def train_terms(self, step: int, offered: torch.Tensor) -> Metrics:
        """One step of what the terms train, after the backward pass and if the tokenizer's was taken.

        Returns:
            Metrics; none where no term that trains something took part in the step.
        """
        if self.learner is None or all(each.grad is None for each in self.learner.model.parameters()):
            return {}
        average_gradients(self.learner.model.parameters())
        update = self.learner.take_step(torch.zeros((), device=offered.device), step, offered)
        return {f"terms_{name}": update.metrics[name] for name in ("gradient_norm", "skipped_steps")}

    def train_adversary(
        self,
        images_BCYX: torch.Tensor,
        reconstructions_BCYX: torch.Tensor,
        step: int,
        offered: torch.Tensor | None = None,
    ) -> Metrics:
        """One step of the discriminator, where there is one and the tokenizer's was taken; returns its metrics."""
        if self.adversary is None:
            return {}
        size = self.training.micro_batch_size
        return self.adversary.train_step(images_BCYX, reconstructions_BCYX.detach(), step, size, offered)

    def settle(self, metrics: Mapping[str, float]) -> None:
        """Count the steps whose outcome waited on the device; see ``StepGuard``."""
        for name, learner in self.learners().items():
            n_skipped = metrics.get(f"{name}_skipped_steps")
            if n_skipped is not None:
                learner.settle(n_skipped)

    def networks(self) -> dict[str, nn.Module]:
        """The networks beside the tokenizer, by name."""
        found: dict[str, nn.Module] = {} if self.lpips is None else {"LPIPS": self.lpips}
        if self.adversary is not None:
            found["discriminator"] = self.adversary.learner.model
        for name, term in self.terms.items():
            found |= {f"{name}: {each}": network for each, network in term.frozen.items()}
            found |= {} if term.trained is None else {name: term.trained}
        return found

    def learners(self) -> dict[str, Learner]:
        """Of the discriminator and of what the terms train, where there are any."""
        found = {} if self.adversary is None else {"discriminator": self.adversary.learner}
        return found if self.learner is None else {**found, "terms": self.learner}

    def state_dict(self) -> dict[str, Any]:
        """Everything that training needs to continue; empty where nothing beside the tokenizer is trained."""
        state: dict[str, Any] = {} if self.adversary is None else {"adversary": self.adversary.state_dict()}
        return state if self.learner is None else {**state, "terms": self.learner.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore ``state_dict``."""
        if self.adversary is not None:
            self.adversary.load_state_dict(state["adversary"])
        if self.learner is not None:
            self.learner.load_state_dict(state["terms"])


def _weighted(name: str, term: Term, seen: Seen, metrics: Metrics) -> torch.Tensor:
    """The term times its weight; it and what it logs are added to the metrics under its name."""
    value, more = term(seen)
    metrics |= {f"loss_{name}": value.detach(), **{f"{name}_{each}": scalar for each, scalar in more.items()}}
    return term.config.weight * value


def _build_terms(context: TermContext) -> dict[str, Term]:
    """The terms by type; a second one of a type is called ``type_2``."""
    found: dict[str, Term] = {}
    for i, config in enumerate(context.training.terms):
        name = _free(config.type_name, found)
        try:
            found[name] = config.build(context)
        except ConfigError as error:
            raise ConfigError(f"training.terms[{i}].{error}") from error
    return found


def _free(name: str, taken: Iterable[str]) -> str:
    names = set(taken)
    return next(each for each in (name, *(f"{name}_{i}" for i in range(2, 100))) if each not in names)


def _learner(terms: Mapping[str, Term], training: TokenizerTraining, accelerator: Accelerator) -> Learner | None:
    """Of what the terms train, by AdamW with the tokenizer's learning rate; None for nothing."""
    trained = {name: each.trained for name, each in terms.items() if each.trained is not None}
    if not trained:
        return None
    return Learner(
        nn.ModuleDict(trained),
        training.optim.without_muon,
        training.fit.steps,
        average_decay=0.0,
        precision="float32",
        accelerator=accelerator,
    )
