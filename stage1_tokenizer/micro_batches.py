"""A tokenizer's training step in passes of some of its images, with the gradient of the whole batch.

Adding up the gradients of parts would be wrong: entropies, moments of codes and the adaptive weight are no means over
images. The parts go through encoder and decoder one by one; between them all meet in the bottleneck, whose tensors are
small. The encoder's pass is then computed again with gradients (gradient caching: Gao et al. 2021, arXiv:2101.06983,
section 3.2). So is the decoder's where the adaptive weight of the whole batch must be known first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from foundation.config import require
from foundation.randomness import derive_seed
from foundation.training.learner import Learner, micro_batches
from foundation.training.parallel import average_gradients
from stage1_tokenizer.bottleneck import Coded
from stage1_tokenizer.objective import Objective
from stage1_tokenizer.terms.base import Metrics, Seen
from stage1_tokenizer.tokenizer import TokenizerModel


@dataclass(frozen=True)
class Pass:
    """What the forward and backward passes of a step leave beside gradients.

    Attributes:
        loss: the whole loss, a detached scalar.
        metrics: its terms and other scalars to log, detached.
        reconstructions_BCYX: of all images, float32, detached.
    """

    loss: torch.Tensor
    metrics: Metrics
    reconstructions_BCYX: torch.Tensor


@dataclass(frozen=True)
class _Judged:
    """What the losses say of some images' reconstructions.

    Attributes:
        images_BCYX: the reconstructions, detached.
        to_reconstruction: gradient of the reconstruction loss over the whole batch.
        to_adversarial: of the adversary's loss before its factor; None without it.
        to_others: of the listed terms that are not of reconstructions alone; None where they have none.
        terms: detached scalars that add up to the whole batch's; ``reconstruction`` is the loss.
    """

    images_BCYX: torch.Tensor
    to_reconstruction: torch.Tensor
    to_adversarial: torch.Tensor | None
    to_others: torch.Tensor | None
    terms: dict[str, torch.Tensor]

    def gradient(self, factor: torch.Tensor | float) -> torch.Tensor:
        """Of the whole loss, with the adversary's factor."""
        whole = self.to_reconstruction
        if self.to_adversarial is not None:
            whole = whole + factor * self.to_adversarial
        return whole if self.to_others is None else whole + self.to_others


class MicroBatches:
    """Forward and backward passes of a step in parts.

    Dropout differs from that of a step in one pass; everything else differs by rounding only. All random numbers are
    functions of the seed that the process has at the start of the step, so that a resumed run draws the same.

    Args:
        model: the plain module, which is called in pieces; gradients are averaged over processes at the end.
        objective: the losses of reconstructions.
        learner: of the model.
        size: most images in a part; None where ``backward`` is not called.

    Raises:
        ConfigError: a module of the model makes images depend on each other.
    """

    def __init__(self, model: TokenizerModel, objective: Objective, learner: Learner, size: int | None) -> None:
        if size is not None:
            _require_independent_images(model, size)
        self.model, self.objective, self.learner, self.size = model, objective, learner, size

    def backward(self, images_BCYX: torch.Tensor, step: int) -> Pass:
        """Add the gradient of the loss over these (B, C, Y, X) images, averaged over processes."""
        seed, parts = torch.initial_seed(), micro_batches(images_BCYX, self.size)
        with torch.no_grad():
            features = torch.cat([self._encode(part, i, seed) for i, part in enumerate(parts)])
        features.requires_grad_(any(each.requires_grad for each in self.model.encoder.parameters()))  # not if frozen
        torch.manual_seed(seed)  # the bottleneck's noise is that of a step in one pass
        with self.learner.autocast():
            inputs, coded = self.model.bottleneck(features)
        seen = self._seen(parts, inputs, coded, step)
        loss, metrics, reconstructions = self._decode_all(seen, seed)
        ends = [(inputs, _joined([each.inputs_BCHW.grad for each in seen]))]
        ends += [(coded.latents_BCHW, _joined([each.latents_BCHW.grad for each in seen]))]
        ends += [(term, torch.ones_like(term)) for term in coded.losses.values()]
        ends = [(end, gradient) for end, gradient in ends if end.requires_grad and gradient is not None]
        if ends:
            torch.autograd.backward([end for end, _ in ends], [gradient for _, gradient in ends])
        if features.grad is not None:
            for i, (part, to_features) in enumerate(zip(parts, micro_batches(features.grad, self.size), strict=True)):
                self._encode(part, i, seed).backward(to_features)
        average_gradients(self.model.parameters())
        whole = loss + sum(term.detach() for term in coded.losses.values())
        return Pass(whole, {**metrics, **to_log(coded)}, reconstructions)

    def _encode(self, images_BCYX: torch.Tensor, index: int, seed: int) -> torch.Tensor:
        """Features of part ``index``; each call for one part drops out the same."""
        torch.manual_seed(derive_seed(seed, "encode", index))
        with self.learner.autocast():  # entered for each pass: it keeps weights that it has cast, and if for gradients
            return self.model.features(images_BCYX)

    def _seen(self, parts: Sequence[torch.Tensor], inputs: torch.Tensor, coded: Coded, step: int) -> list[Seen]:
        """What terms see of each part, but for its reconstructions; latents and inputs are leaves."""
        columns = [micro_batches(each.detach(), self.size) for each in (coded.latents_BCHW, inputs, coded.codes)]
        nothing = torch.empty(0)
        return [
            Seen(part, nothing, latents.requires_grad_(), leaf.requires_grad_(), codes, step, self._plainly)
            for part, latents, leaf, codes in zip(parts, *columns, strict=True)
        ]

    def _decode_all(self, seen: Sequence[Seen], seed: int) -> tuple[torch.Tensor, Metrics, torch.Tensor]:
        """Backward passes of all parts into decoder and leaves; the loss, its terms and all reconstructions."""
        step, n_images = seen[0].step, sum(len(each.images_BCYX) for each in seen)
        adversary = self.objective.adversary_at(step)
        adaptive = adversary is not None and adversary.config.adaptive
        factor, of_factor = (0.0, {}) if adversary is None or adaptive else adversary.factor(step, None)
        kernel, judged = last_kernel(self.model), []
        at_kernel = torch.zeros(2, *kernel.shape, dtype=kernel.dtype, device=kernel.device)
        for i, part in enumerate(seen):
            images_BCYX = self._decode(part.inputs_BCHW, i, seed)
            judged.append(self._judge(part, images_BCYX, len(part.images_BCYX) / n_images))
            if adaptive:
                at_kernel += _at_kernel(kernel, images_BCYX, judged[i])
            else:
                images_BCYX.backward(judged[i].gradient(factor))
            del images_BCYX  # with its graph, before the next part's
        if adversary is not None and adaptive:
            factor, of_factor = adversary.factor(step, at_kernel)
            for i, part in enumerate(seen):
                self._decode(part.inputs_BCHW, i, seed).backward(judged[i].gradient(factor))
        totals = {name: torch.stack([each.terms[name] for each in judged]).sum() for name in judged[0].terms}
        loss = totals.pop("reconstruction") + totals.pop("others", 0.0)
        if adversary is not None:
            loss = loss + factor * totals["loss_adversarial"]
        return loss, {**totals, **of_factor}, torch.cat([each.images_BCYX for each in judged])

    def _decode(self, inputs_BCHW: torch.Tensor, index: int, seed: int) -> torch.Tensor:
        """Reconstructions of part ``index``; each call for one part drops out the same."""
        torch.manual_seed(derive_seed(seed, "decode", index))
        return self._plainly(inputs_BCHW)

    def _plainly(self, inputs_BCHW: torch.Tensor) -> torch.Tensor:
        with self.learner.autocast():
            images_BCYX: torch.Tensor = self.model.decoder(inputs_BCHW).float()
        return images_BCYX

    def _judge(self, seen: Seen, decoded_BCYX: torch.Tensor, share: float) -> _Judged:
        """The losses of some images, times their share of the batch, and gradients at the reconstructions.

        Terms that are not of reconstructions alone go backward here, into all but the reconstructions.
        """
        adversary, leaf = self.objective.adversary_at(seen.step), decoded_BCYX.detach().requires_grad_()
        seen = replace(seen, reconstructions_BCYX=leaf)
        loss, metrics = self.objective.reconstruction_loss(seen)
        (to_reconstruction,) = torch.autograd.grad(share * loss, leaf)
        terms = {
            name: share * torch.as_tensor(each) for name, each in {**metrics, "reconstruction": loss.detach()}.items()
        }
        to_adversarial = None
        if adversary is not None:
            adversarial = adversary.generator_loss(leaf)
            (to_adversarial,) = torch.autograd.grad(share * adversarial, leaf)
            terms["loss_adversarial"] = share * adversarial.detach()
        if self.objective.has_other_terms:
            others, metrics = self.objective.other_terms(seen)
            (share * others).backward()
            terms |= {name: share * torch.as_tensor(each) for name, each in metrics.items()}
            terms["others"] = share * others.detach()
        return _Judged(leaf.detach(), to_reconstruction, to_adversarial, leaf.grad, terms)


def last_kernel(model: TokenizerModel) -> torch.Tensor:
    """The decoder's last kernel, where the adaptive weight compares gradients."""
    return model.decoder.get_parameter("conv_out.weight")


def to_log(coded: Coded) -> Metrics:
    """The bottleneck's losses, detached and named, and its other metrics."""
    return {**{f"loss_{name}": value.detach() for name, value in coded.losses.items()}, **coded.metrics}


def _joined(gradients: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
    """The gradient of the whole batch; None where no term has any."""
    there = [each for each in gradients if each is not None]
    return torch.cat(there) if there else None


def _at_kernel(kernel: torch.Tensor, images_BCYX: torch.Tensor, judged: _Judged) -> torch.Tensor:
    """(2, ...): gradients at the kernel of the two losses of these images."""
    assert judged.to_adversarial is not None
    gradients = (judged.to_reconstruction, judged.to_adversarial)
    return torch.stack([torch.autograd.grad(images_BCYX, kernel, each, retain_graph=True)[0] for each in gradients])


def _require_independent_images(model: TokenizerModel, size: int) -> None:
    """Refuse a model with statistics over the batch, which a part of it does not have."""
    for name, module in model.named_modules():
        found = f"{size}, and {name}, a {type(module).__name__}"
        expected, fix = "null where a norm's statistics are of a batch", "use GroupNorm, which sees each image alone"
        require(not isinstance(module, _BatchNorm), "tokenizer.training.micro_batch_size", found, expected, fix)
