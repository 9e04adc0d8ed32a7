"""On a GPU everything comes out as on a CPU, up to rounding: ``pytest -m gpu``.

Where there is none, ``test_far.py`` and ``test_far_runs.py`` run these tests on a device that exists in name only:
whatever a GPU would refuse because it lies on the CPU, or would wait for, shows there.
"""

import copy
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from support.random_prior import LEVELS, OPTIONS, decode_codes, examples, model
from support.tiny_run import TINY
from support.training_steps import (
    ARCHITECTURES,
    GAN,
    PERCEPTUAL,
    PRIORS,
    STEPS,
    TOKENIZERS,
    TRAININGS,
    device_of_training,
    images,
    loop_waits,
    prior_step,
    tokenizer,
    tokenizer_step,
    tokenizer_task,
)
from torch import nn

from foundation.codes.spec import CodeLevel
from foundation.errors import TrainingError
from foundation.training import optim
from foundation.training.checkpoints import named_tensors
from pipeline import ImageGenerator
from pipeline.cli import main
from pipeline.commands.start import start_run
from stage1_tokenizer.networks.blocks import fast_layout
from stage1_tokenizer.networks.fused_norm import norm_silu_conv
from stage2_prior.decoding.decode import engine_for, iterate_codes, stream_uniforms
from stage2_prior.decoding.engine import CompiledEngine
from stage2_prior.decoding.sampling import SamplingConfig
from stage2_prior.prior import PriorModel
from stage2_prior.train import PriorLoss

FAR = "TESSERA_TEST_FAR_DEVICE" in os.environ
if FAR:  # before autograd begins, which asks once what devices there are
    from support.far_device import far_device

pytestmark = [] if FAR else [pytest.mark.gpu]
RANDOM = ("gumbel", "kl")  # draw in training, from each device's own generator


@pytest.fixture
def crossed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """What was sent between the devices, by lines; of a GPU nothing is known."""
    if FAR:
        monkeypatch.setattr(Accelerator, "device", property(lambda self: torch.device("far:0")))
        with far_device() as counts:
            yield counts
        AcceleratorState._reset_state(reset_partial_state=True)  # its device is known no more
        return
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)  # products in float32 as a CPU makes them
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    yield Counter()


@pytest.fixture
def device(crossed: Counter[str]) -> torch.device:
    return torch.device("far:0" if FAR else "cuda")


def gradients(module: nn.Module) -> torch.Tensor:
    """All of them in one vector, on the CPU."""
    found = [each.grad for each in module.parameters() if each.grad is not None]
    return torch.cat([each.flatten().cpu() for each in found])


def assert_near(one: torch.Tensor, other: torch.Tensor, tolerance: float = 1e-3) -> None:
    """Equal up to a share of the second one's length."""
    assert float((one - other).norm()) <= tolerance * float(other.norm())


@pytest.mark.skipif(not FAR, reason="of the device that is not there")
def test_what_lies_on_two_devices_does_not_meet(device: torch.device, crossed: Counter[str]) -> None:
    here, there = torch.arange(3.0), torch.arange(3.0, device=device)
    assert there.device == device and (there + 1).tolist() == [1, 2, 3] and torch.equal(there.cpu(), here)
    for refused in (lambda: here + there, lambda: torch.stack([here, there]), lambda: here.mul_(there)):
        with pytest.raises(RuntimeError, match="same device"):
            refused()
    assert sum(crossed.values()) == 2, "tolist, cpu"


READINGS = {
    "item": lambda x: x.sum().item(),
    "bool": lambda x: bool(x.any()),
    "float": lambda x: float(x[0]),
    "int": lambda x: int(x[0]),
    "tolist": lambda x: x.tolist(),
    "cpu": lambda x: x.cpu(),
    "into a tensor of the CPU": lambda x: torch.empty(4).copy_(x),
    "equal": lambda x: torch.equal(x, x),
    "allclose": lambda x: torch.allclose(x, x),
    "nonzero": lambda x: x.nonzero(),
    "where": lambda x: torch.where(x > 1),
    "bincount": lambda x: torch.bincount(x.long()),
    "unique": lambda x: x.unique(),
    "unique_consecutive": lambda x: torch.unique_consecutive(x),
    "masked_select": lambda x: x.masked_select(x > 1),
    "a mask as index": lambda x: x[x > 1],
    "an index of the CPU": lambda x: x[torch.tensor([1, 2])],
    "repeat_interleave": lambda x: torch.repeat_interleave(x.long()),
    "multinomial": lambda x: torch.multinomial(x + 1, 1),
    "eigh": lambda x: torch.linalg.eigh(torch.outer(x, x)),
    "inv": lambda x: torch.linalg.inv(torch.outer(x, x) + torch.eye(4, device=x.device)),
    "a slice": lambda x: x[: x.long()[2]],
    "new_tensor": lambda x: x.new_tensor([1.0]),
    "to the device": lambda x: torch.ones(4).to(x.device),
    "a backward pass that reads": lambda x: _Reads.apply(x.requires_grad_()).sum().backward(),
}
UNREAD = {
    "numbers": lambda x: x.add_(1).mul_(torch.tensor(2.0)),
    "a mask for one number": lambda x: x.masked_fill(x > 1, 0.0),
    "where": lambda x: torch.where(x > 1, x, 0),
    "an index": lambda x: x[torch.arange(2, device=x.device)],
    "index_add": lambda x: x.index_add(0, torch.arange(4, device=x.device), x),
    "repeat_interleave of a known size": lambda x: torch.repeat_interleave(x.long(), output_size=6),
    "norms of gradients": lambda x: nn.utils.clip_grad_norm_([nn.Parameter(x)], 1.0),
}


class _Reads(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return gradients[0] * float(gradients[0].sum())


@pytest.mark.skipif(not FAR, reason="of the device that is not there")
def test_each_reading_is_counted_and_nothing_else(device: torch.device, crossed: Any) -> None:
    for name, read in [*READINGS.items(), *UNREAD.items()]:
        x = torch.arange(4.0, device=device)
        crossed.clear()
        read(x)
        assert sum(crossed.values()) == (read in READINGS.values()), (name, dict(crossed))
    crossed.clear()
    torch.ones(4).to(device, non_blocking=True)
    assert not crossed and sum(crossed.sent.values()) == 1


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_tokenizer_computes_the_same_codes_images_and_gradients(kind: str, device: torch.device) -> None:
    here = tokenizer(TOKENIZERS[kind])
    here.initialize(images(), torch.Generator().manual_seed(0))
    there = copy.deepcopy(here).to(device)
    assert_near(there.eval().encode(images().to(device)).cpu().double(), here.eval().encode(images()).double(), 1e-2)
    for each, place in ((here.eval(), "cpu"), (there.eval(), device)):
        each.zero_grad()
        output = each(images().to(place))
        (output.images_BCYX.square().mean() + sum(output.losses.values())).backward()
    assert_near(gradients(there), gradients(here), 1e-2)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_tokenizer_trains_the_same_and_no_step_waits(kind: str, device: torch.device, crossed: Counter[str]) -> None:
    settings = {"adversarial": GAN, "average_decay": 0.5, "perceptual": PERCEPTUAL if kind == "fsq" else {}}
    losses = []
    for place in (torch.device("cpu"), device):
        with device_of_training(place) as accelerator:
            take_step = tokenizer_step(kind, settings, accelerator)
            rows = []
            for step in range(STEPS):
                rows.append(take_step(step))
                if step == 0:  # which places codebooks
                    crossed.clear()
        waits = dict(crossed)
        losses.append([float(row["loss_pixel"]) for row in rows])
    assert np.allclose(losses[0], losses[1], rtol=0.2 if kind in RANDOM else 1e-2)
    if FAR:
        assert waits == {}


@pytest.mark.skipif(not FAR, reason="counts waits")
@pytest.mark.parametrize("name", TRAININGS)
def test_no_kind_of_training_waits_in_a_step(name: str, device: torch.device, crossed: Counter[str]) -> None:
    with device_of_training(device) as accelerator:
        take_step = tokenizer_step("ema", TRAININGS[name], accelerator)
        for step in range(3):
            take_step(step)
            if step == 0:
                crossed.clear()
    assert dict(crossed) == {}


@pytest.mark.skipif(not FAR, reason="counts waits")
def test_the_loop_waits_at_log_lines_alone_and_once(device: torch.device, crossed: Counter[str]) -> None:
    steps = loop_waits(device, crossed, log_every=3)
    assert [sum(each.values()) for each in steps[1:]] == [0, 0, 1, 0, 0, 1, 0, 0]


@pytest.mark.skipif(not FAR, reason="of the device that is not there")
def test_steps_that_are_not_finite_change_nothing_and_stop_the_training_at_a_log_line(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optim, "MAX_BAD_STEPS", 2)
    with device_of_training(device) as accelerator:
        task = tokenizer_task("ema", {"adversarial": {**GAN, "start_step": 0}, "average_decay": 0.5}, accelerator)
        good, bad = images().to(device), torch.full_like(images(), torch.nan).to(device)
        for step in range(2):
            metrics = task.train_step({"images": good.clone()}, step)
        task.settle({name: float(value) for name, value in metrics.items()})
        before = {name: value.cpu().clone() for name, value in named_tensors(task.state_dict())}
        for step in (2, 3):
            metrics = task.train_step({"images": bad.clone()}, step)
        numbers = {name: float(value) for name, value in metrics.items()}
        assert numbers["skipped_steps"] == 2 and numbers["discriminator_skipped_steps"] == 0
        with pytest.raises(TrainingError, match="2 steps in a row"):
            task.settle(numbers)
        after = dict(named_tensors(task.state_dict()))
        assert before.keys() == after.keys()
        moved = [name for name, value in before.items() if not torch.equal(value, after[name].cpu())]
        assert moved == []


@pytest.mark.parametrize("levels", LEVELS)
def test_a_prior_computes_the_same_loss_and_gradients(levels: tuple[CodeLevel, ...], device: torch.device) -> None:
    here = model(levels)
    there = copy.deepcopy(here).to(device)
    tokens, labels = examples(here)
    losses = []
    for each, place in ((here, torch.device("cpu")), (there, device)):
        loss, _ = PriorLoss(each)(tokens.to(place), labels.to(place))
        loss.backward()
        losses.append(loss.detach().cpu())
    assert torch.allclose(losses[0], losses[1], rtol=1e-4)
    assert_near(gradients(there), gradients(here))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_prior_trains_the_same_and_no_step_waits(options: dict, device: torch.device, crossed: Counter[str]) -> None:
    losses = []
    for place in (torch.device("cpu"), device):
        with device_of_training(place) as accelerator:
            take_step = prior_step({"z_loss": 1e-3}, accelerator, options)
            rows = []
            for step in range(STEPS):
                rows.append(take_step(step))
                if step == 0:
                    crossed.clear()
        waits = dict(crossed)
        losses.append([float(row["nll"]) for row in rows])
    assert np.allclose(losses[0], losses[1], rtol=1e-3)
    if FAR:
        assert waits == {}


@pytest.mark.skipif(not FAR, reason="counts waits")
@pytest.mark.parametrize("name", PRIORS)
def test_no_kind_of_training_of_a_prior_waits_in_a_step(name: str, device: torch.device, crossed: Any) -> None:
    with device_of_training(device) as accelerator:
        take_step = prior_step(PRIORS[name], accelerator)
        for step in range(3):
            take_step(step)
            if step == 0:
                crossed.clear()
    assert dict(crossed) == {}
    assert sum(crossed.sent.values()) == 2 * (name in ("random order", "regularized")), "orders and noise of two steps"


@pytest.mark.skipif(not FAR, reason="counts waits")
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_no_kind_of_prior_waits_in_a_step(name: str, device: torch.device, crossed: Any) -> None:
    with device_of_training(device) as accelerator:
        take_step = prior_step({}, accelerator, ARCHITECTURES[name], levels=0)
        for step in range(3):
            take_step(step)
            if step == 0:
                crossed.clear()
    assert dict(crossed) == {}


@pytest.mark.parametrize(
    "sampling",
    [
        {},
        {"guidance_scale": 2.5},
        {"top_k": 5},
        {"top_p": 0.7, "guidance_scale": 2.0},
        {"min_p": 0.1},
        {"typical_p": 0.8},
        {"entropy_temperature": (0.5, 1.0, 0.7)},
        {"temperature": 0},
    ],
    ids=str,
)
def test_the_same_numbers_draw_the_same_codes_plain_and_compiled(sampling: dict, device: torch.device) -> None:
    here = model(LEVELS[0])
    labels, uniforms = torch.arange(6) % 3, stream_uniforms(range(6), here.n_codes)
    expected = decode_codes(here, labels, uniforms, SamplingConfig(**sampling))
    there: PriorModel = copy.deepcopy(here).to(device)
    found = decode_codes(there, labels.to(device), uniforms, SamplingConfig(**sampling))
    assert float((found.cpu() == expected).float().mean()) > 0.98  # a rounding error may choose the next code
    if FAR:
        return
    there.compile_decoding()
    compiled = decode_codes(there, labels.to(device), uniforms, SamplingConfig(**sampling))
    assert isinstance(engine_for(there), CompiledEngine) and float((compiled == found).float().mean()) > 0.98


@pytest.mark.skipif(not FAR, reason="counts what is sent")
@pytest.mark.parametrize(
    "sampling",
    [
        {},
        {"guidance_scale": 2.5, "top_k": 5},
        {"top_p": 0.7},
        {"min_p": 0.1},
        {"typical_p": 0.8, "entropy_temperature": (0.5, 1.0, 0.7)},
    ],
    ids=str,
)
def test_no_code_waits_for_the_one_before(sampling: dict, device: torch.device, crossed: Counter[str]) -> None:
    """However many codes are drawn, equally much crosses over."""
    counts = []
    for side in (2, 6):
        prior = model((CodeLevel(height=side, width=side, codebook_size=29),)).to(device)
        labels, uniforms = torch.arange(6, device=device) % 3, stream_uniforms(range(6), prior.n_codes)
        crossed.clear()
        decode_codes(prior, labels, uniforms, SamplingConfig(**sampling))
        counts.append(dict(crossed))
    assert counts[0] == counts[1]


@pytest.mark.skipif(not FAR, reason="counts what is sent")
def test_a_window_waits_at_most_twice_a_pass(device: torch.device, crossed: Counter[str]) -> None:
    prior = model((CodeLevel(height=6, width=6, codebook_size=29),)).to(device)
    labels, uniforms = torch.arange(6, device=device) % 3, stream_uniforms(range(6), prior.n_codes)
    counts, passes = [], []
    for window in (1, 4):
        crossed.clear()
        sampling = SamplingConfig(random="gumbel", window=window)
        passes.append(sum(1 for _ in iterate_codes(prior, labels, uniforms, sampling, seeds=range(6))))
        counts.append(sum(crossed.values()))
    assert passes[0] == prior.n_codes > passes[1]
    assert counts[1] - counts[0] <= 2 * passes[1], "how many guesses are right; whether the caller wrote into several"


def test_a_whole_run_trains_there_and_its_generator_draws_the_same_in_both_places(
    tmp_path: Path, device: torch.device
) -> None:
    job = start_run("digits", str(tmp_path / "run"), {**TINY, "machine.device": "auto"})
    assert job.run.accelerator.device.type == device.type
    job.all()
    job.run.release()
    here, there = (ImageGenerator.from_pretrained(tmp_path / "run").to(place) for place in ("cpu", device))
    for draw in (
        lambda each: each([1, 2, 3], 4, seed=1, output_type="latent"),
        lambda each: each.complete(each([1, 2], seed=0).codes, rows=0.5, seed=1, output_type="latent"),
        lambda each: each.vary(each([1, 2], seed=0).images, share=0.5, seed=1, output_type="latent"),
        lambda each: each.change_class(each([1, 2], seed=0).codes, [3, 4], seed=1, output_type="latent"),
        lambda each: each([1], seed=2, best_of=3, output_type="latent"),
        lambda each: each([1], seed=2, height=8, width=12, output_type="latent"),
        lambda each: list(each.stream("3", seed=0))[-1],
    ):
        one, other = (draw(each).codes.cpu() for each in (here, there))
        assert float((one == other).float().mean()) > 0.95
    codes = here([1, 2], seed=0).codes
    assert torch.allclose(here.score(codes, [1, 2]), there.score(codes, [1, 2]), rtol=1e-3)
    assert (tmp_path / "run" / "report.html").exists()


COMMANDS = {
    "evaluate": "evaluate RUN",
    "reconstruct": "reconstruct RUN A B --out OUT",
    "interpolate-images": "interpolate RUN A B --out OUT.png",
    "interpolate-seeds": "interpolate RUN 0 1 --out OUT.png",
    "score": "score RUN A B",
    "sample": "sample RUN --class-labels 3 --out OUT",
    "sample-many": "sample RUN --count 20 --out OUT",
    "complete": "edit complete RUN A --guess-class --out OUT",
    "inpaint": "edit inpaint RUN A --mask B --out OUT",
    "vary": "edit vary RUN A --out OUT",
    "change-class": "edit change-class RUN A --class-label 4 --out OUT",
    "tune-guidance": "tune-guidance RUN --images 200",
    "decode": "decode RUN/codes -o OUT",
}


def test_every_command_that_takes_a_device_runs_there(
    finished_run: Path, run_copy: Path, tmp_path: Path, device: torch.device
) -> None:
    pictures = ImageGenerator.from_pretrained(finished_run)([3, 7], seed=0).images
    names = {"RUN": str(run_copy)}
    for name, picture in zip("AB", pictures, strict=True):
        names[name] = str(tmp_path / f"{name}.png")
        picture.save(names[name])
    for name, line in COMMANDS.items():
        names["OUT"] = str(tmp_path / name)
        words = line.replace("RUN/", f"{run_copy}/").replace("OUT.png", f"{names['OUT']}.png").split(" ")
        assert main([*(names.get(word, word) for word in words), "--device", str(device)]) == 0, name


def test_in_16_bits_a_device_keeps_the_input_of_norm_and_swish_only_channels_last(device: torch.device) -> None:
    torch.manual_seed(0)
    norm, conv = nn.GroupNorm(4, 8, eps=1e-6), nn.Conv2d(8, 8, 3, padding=1)
    x, kept = torch.randn(2, 8, 12, 16), []
    exact = conv(nn.functional.silu(norm(x)))
    norm, conv = norm.to(device, torch.bfloat16), conv.to(device, torch.bfloat16)
    given = fast_layout(x.to(device).to(torch.bfloat16)).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda each: kept.append(each) or each, lambda each: each):
        value = norm_silu_conv(norm, conv, given)
    value.float().square().mean().backward()
    assert [each.shape for each in kept if each.numel() >= x.numel()] == [x.shape]
    for each in (given, value, given.grad):
        assert each.dtype == torch.bfloat16 and each.is_contiguous(memory_format=torch.channels_last)
    assert_near(value.detach().float().cpu(), exact.detach(), 2e-2)
