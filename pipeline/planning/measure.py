"""Speed of a recipe's parts on this machine: a few steps of each, with random weights, on noise.

Training steps are timed as they run; where a whole batch would take too long, two smaller ones are timed and the time
is extended in proportion. Speeds are means, not best cases: what else the machine does counts.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from foundation.codes.spec import CodeSpec
from foundation.images.config import Preprocess
from foundation.images.sources import ImageSource
from foundation.randomness import derive_seed, permutation
from foundation.training.arithmetic import arithmetic
from pipeline.planning.memory import code_vectors_like
from pipeline.runs.recipe import Recipe
from stage1_tokenizer.image_metrics import psnr, ssim
from stage1_tokenizer.objective import Objective
from stage1_tokenizer.tokenizer import TokenizerModel
from stage1_tokenizer.train import TokenizerTask
from stage2_prior.decoding.decode import iterate_codes, stream_uniforms
from stage2_prior.prior import PriorModel
from stage2_prior.train import PriorTask

if TYPE_CHECKING:
    from accelerate import Accelerator

_FLOPS = {"cpu": 4e10}
_FLOPS_OF_GPU = 2e13
"""of a timed step: about half a second"""
_TIMED_STEPS, _ENOUGH = 3, 1.5
"""repetitions, and seconds after which one alone is enough"""
_SCORED, _SAMPLED = 32, 8
"""images that are scored and sampled to find the time of one"""
_PLACES, _NEIGHBOURS = 32, 32
"""of a source that are read, and images in each"""


@dataclass(frozen=True)
class TokenizerSpeed:
    """Seconds of the parts of stage 1.

    Attributes:
        step: an optimizer step at the recipe's batch size; where the decoder is trained alone in the end, the mean of
            both kinds of steps.
        step_before: the same before the adversary starts.
        encode: one view of one image, in float32.
        decode: one image.
        score: one image of an evaluation in training.
    """

    step: float
    step_before: float
    encode: float
    decode: float
    score: float

    def training(self, n_steps: int, adversary_starts: int) -> float:
        """Seconds of ``n_steps`` optimizer steps, the adversary from step ``adversary_starts`` on."""
        before = min(n_steps, adversary_starts)
        return before * self.step_before + (n_steps - before) * self.step


@dataclass(frozen=True)
class PriorSpeed:
    """Seconds of the parts of stage 2.

    Attributes:
        step: an optimizer step at the recipe's batch size.
        score: the codes of one image in an evaluation.
        sample: the codes of one image of a batch, with guidance.
    """

    step: float
    score: float
    sample: float


def measure_tokenizer(recipe: Recipe, accelerator: Accelerator) -> TokenizerSpeed:
    """Time stage 1 of a recipe; frozen networks have random weights, so nothing is downloaded."""
    stage, preprocess = recipe.tokenizer, recipe.data.preprocess
    training = replace(stage.training.without_files(), freeze_coding_after=None)
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(recipe.seed, "measure"))
        model = TokenizerModel(stage.model, preprocess)
        objective = Objective(training, model, accelerator, seed=recipe.seed)
        task = TokenizerTask(model, training, objective, None, accelerator, seed=recipe.seed)
        n_examples = max(1, training.fit.batch_size // accelerator.num_processes)
        most = _most_examples(lambda: model.to(accelerator.device)(_noise(preprocess, 1, accelerator)), accelerator)

        def step(n: int, step: int) -> None:
            task.train_step({"images": _noise(preprocess, n, accelerator), "positions": torch.arange(n)}, step)

        last, starts = training.fit.steps - 1, training.adversarial.start_step
        turns = itertools.cycle(range(max(0, last - _TIMED_STEPS + 1), last + 1))  # terms may take turns
        if model.is_discrete:
            step(min(n_examples, most), 0)  # places the codebook
        seconds = _step_seconds(lambda n: step(n, next(turns)), n_examples, most, accelerator)
        several = training.adversarial.weight > 0 and starts > 0
        early = itertools.cycle(range(min(_TIMED_STEPS, starts)))
        before = _step_seconds(lambda n: step(n, next(early)), n_examples, most, accelerator) if several else 0.0
        share = stage.training.coding_steps / training.fit.steps
        if share < 1:
            task.freeze_coding(from_average=True)
            alone = _step_seconds(lambda n: step(n, next(turns)), n_examples, most, accelerator)
            seconds = share * seconds + (1 - share) * alone
        before = before if several else seconds
        images = _noise(preprocess, min(_SCORED, most), accelerator)
        with arithmetic(accelerator.device), torch.no_grad():
            exported = task.exported()
            codes = exported.encode(images)
            encode = _mean(lambda: exported.encode(images), accelerator) / len(images)
            decode = _mean(lambda: exported.decode(codes), accelerator) / len(images)
            compare = _mean(lambda: (psnr(images, images), ssim(images, images)), accelerator) / len(images)
    return TokenizerSpeed(seconds, before, encode, decode, encode + decode + compare)


def measure_prior(recipe: Recipe, spec: CodeSpec, accelerator: Accelerator) -> PriorSpeed:
    """Time stage 2 of a recipe on codes of ``spec``."""
    training = recipe.prior.training
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(recipe.seed, "measure"))
        model = PriorModel(recipe.prior.model, spec)
        how: dict[str, Any] = {"seed": recipe.seed, "code_vectors_VC": code_vectors_like(recipe, spec)}
        task = PriorTask(model, replace(training, compile=False), None, accelerator, **how)
        n_examples = max(1, training.fit.batch_size // accelerator.num_processes)

        def examples(n: int) -> dict[str, torch.Tensor]:
            tokens = torch.zeros(n, model.n_codes, dtype=torch.int64, device=accelerator.device)
            labels = torch.full((n,), model.null_class, device=accelerator.device)
            return {"tokens": tokens, "labels": labels, "positions": torch.arange(n)}

        one = examples(1)
        most = _most_examples(lambda: model(one["tokens"], one["labels"]), accelerator)
        seconds = _step_seconds(
            lambda n: task.train_step(examples(n), training.fit.steps - 1), n_examples, most, accelerator
        )
        some = examples(min(_SCORED, most))
        prior = task.exported()
        with torch.no_grad():
            score = _mean(lambda: prior.nll(some["tokens"], some["labels"]), accelerator) / len(some["tokens"])
        sample = _sample_seconds(prior, recipe, accelerator)
    return PriorSpeed(seconds, score, sample)


def _sample_seconds(prior: PriorModel, recipe: Recipe, accelerator: Accelerator) -> float:
    """Seconds to sample the codes of one image of a batch; code by code, long sequences are timed over an eighth."""
    n = _SAMPLED
    label = 0 if prior.n_classes else prior.null_class
    labels = torch.full((n,), label, dtype=torch.int64, device=accelerator.device)
    sampling, uniforms = recipe.samples.sampling, stream_uniforms(range(n), prior.n_codes)
    steps = iterate_codes(prior, labels, uniforms, sampling, max_rows=n, seeds=range(n))
    first, done = next(steps), 0  # packs weights
    left = prior.n_codes - first.codes_BK.shape[1]
    most = left if prior.is_masked or sampling.passes else max(1, min(left, max(32, prior.n_codes // 8)))
    _wait(accelerator)
    began = time.perf_counter()
    for step in steps:
        done += step.codes_BK.shape[1]
        if done >= most:
            break
    _wait(accelerator)
    return (time.perf_counter() - began) * prior.n_codes / max(1, done) / n


def measure_reading(source: ImageSource, preprocess: Preprocess, n_readers: int) -> float:
    """Seconds to read and preprocess one image with ``n_readers`` threads; 0 for a source without readable images.

    Neighbours are read together, as a run reads them, in several places in random order; the first place warms up.
    """
    n_images = len(source.ids)
    starts = np.unique(np.linspace(0, max(0, n_images - _NEIGHBOURS), min(_PLACES, n_images)).astype(int))
    starts = starts[permutation(len(starts), "reading")]

    def read(index: int) -> int:
        try:
            preprocess(source.read(index))
        except Exception:  # on hostile bytes a decoder raises any class; the scan will list it
            return 0
        return 1

    with ThreadPoolExecutor(n_readers) as pool:

        def place(start: int) -> int:
            return sum(pool.map(read, range(start, min(start + _NEIGHBOURS, n_images))))

        for start in starts[:1]:
            place(int(start))
        began, taken, n_read = time.perf_counter(), 0.0, 0
        for start in starts[1:] if len(starts) > 1 else starts:  # the first one's files are in memory now
            n_read += place(int(start))
            taken = time.perf_counter() - began
            if taken > _ENOUGH:
                break
        return taken / n_read if n_read else 0.0


def flops(work: Callable[[], object]) -> float:
    """FLOPs of products and convolutions, forward only."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        work()
    return float(counter.get_total_flops())


def _noise(preprocess: Preprocess, n: int, accelerator: Accelerator) -> torch.Tensor:
    shape = (n, preprocess.n_channels, preprocess.height, preprocess.width)
    return torch.rand(shape, device=accelerator.device) * 2 - 1


def _most_examples(forward_of_one: Callable[[], object], accelerator: Accelerator) -> int:
    """Examples of a step of about half a second; a step is three forward passes."""
    limit = _FLOPS.get(accelerator.device.type, _FLOPS_OF_GPU)
    return max(1, int(limit / (3 * max(flops(forward_of_one), 1.0))))


def _step_seconds(step: Callable[[int], object], n_examples: int, most: int, accelerator: Accelerator) -> float:
    """Seconds of a step with ``n_examples``: timed, or extended from two smaller ones of at most ``most``."""
    if n_examples <= most:
        return _mean(lambda: step(n_examples), accelerator)
    large = max(2, most)
    small = max(1, large // 3)
    some, more = (_mean(lambda n=n: step(n), accelerator) for n in (small, large))  # type: ignore[misc]
    slope = max(more - some, 0.5 * more * (large - small) / large) / (large - small)
    return more + slope * (n_examples - large)


def _mean(work: Callable[[], object], accelerator: Accelerator) -> float:
    """Mean seconds after one call that warms up."""
    work()
    _wait(accelerator)
    began, taken, n = time.perf_counter(), 0.0, 0
    several = accelerator.num_processes > 1  # which must all do the same
    while n < _TIMED_STEPS and (several or taken < _ENOUGH):
        work()
        _wait(accelerator)
        taken, n = time.perf_counter() - began, n + 1
    return taken / n


def _wait(accelerator: Accelerator) -> None:
    if accelerator.device.type != "cpu":
        torch.accelerator.synchronize(accelerator.device)
