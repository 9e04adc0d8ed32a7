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
from torch import nn

from foundation.codes.spec import CodeLevel
from foundation.config import from_dict
from foundation.images.config import Preprocess
from pipeline import ImageGenerator
from pipeline.cli import main
from pipeline.commands.runs import start_run
from stage1_tokenizer.config import TokenizerConfig, TokenizerTraining
from stage1_tokenizer.networks.blocks import fast_layout
from stage1_tokenizer.networks.fused_norm import norm_silu_conv
from stage1_tokenizer.objective import Objective
from stage1_tokenizer.tokenizer import TokenizerModel
from stage1_tokenizer.train import TokenizerTask
from stage2_prior.config import PriorTraining
from stage2_prior.decoding.decode import engine_for, stream_uniforms
from stage2_prior.decoding.sampling import SamplingConfig
from stage2_prior.prior import PriorModel
from stage2_prior.train import PriorLoss, PriorTask

FAR = "TESSERA_TEST_FAR_DEVICE" in os.environ
if FAR:  # before autograd begins, which asks once what devices there are
    from support.far_device import far_device

pytestmark = [] if FAR else [pytest.mark.gpu]
PREPROCESS = Preprocess(height=16, width=24)
SIZES = {"base_width": 8, "width_multipliers": [1, 2], "n_res_blocks": 1, "latent_channels": 8, "norm_groups": 4}
TOKENIZERS = {
    "fsq": {"quantizer": {"type": "fsq", "levels": [4, 4, 3], "evenness": 0.1}},
    "ema": {"quantizer": {"type": "vq", "codebook_size": 40, "width": 4, "revive_every": 3}},
    "gradient": {
        "quantizer": {
            "type": "vq",
            "codebook_size": 40,
            "width": 4,
            "learning": "gradient",
            "normalize": True,
            "entropy_weight": 0.1,
        }
    },
    "rotation": {"quantizer": {"type": "vq", "codebook_size": 40, "width": 4, "rotation": True}},
    "simvq": {
        "quantizer": {
            "type": "vq",
            "codebook_size": 40,
            "learning": "gradient",
            "projection": True,
            "revive_below": 0.0,
        }
    },
    "lfq": {"quantizer": {"type": "lfq", "width": 5}},
    "bsq": {"quantizer": {"type": "bsq", "width": 5}},
    "residual": {"quantizer": {"type": "residual", "depth": 3, "codebook": {"codebook_size": 20, "width": 4}}},
    "gumbel": {"quantizer": {"type": "gumbel", "codebook_size": 40}},
    "ibq": {"quantizer": {"type": "ibq", "codebook_size": 40, "width": 4}},
    "kl": {"quantizer": {"type": "kl", "width": 4}},
    "two grids": {"coarse_halvings": 1, "quantizer": {"type": "vq", "codebook_size": 40, "width": 4}},
}
RANDOM = ("gumbel", "kl")  # draw in training, from each device's own generator
THE_ONE_WAIT = "foundation/training/optim.py: if bool(torch.isfinite(gradient_norm)):"


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


def tokenizer(changes: dict[str, Any]) -> TokenizerModel:
    torch.manual_seed(0)
    return TokenizerModel(from_dict(TokenizerConfig, {**SIZES, "attention_levels": [1], **changes}), PREPROCESS)


def images() -> torch.Tensor:
    return torch.rand(4, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.skipif(not FAR, reason="of the device that is not there")
def test_what_lies_on_two_devices_does_not_meet(device: torch.device, crossed: Counter[str]) -> None:
    here, there = torch.arange(3.0), torch.arange(3.0, device=device)
    assert there.device == device and (there + 1).tolist() == [1, 2, 3] and torch.equal(there.cpu(), here)
    for refused in (lambda: here + there, lambda: torch.stack([here, there]), lambda: here.mul_(there)):
        with pytest.raises(RuntimeError, match="same device"):
            refused()
    assert sum(crossed.values()) == 2, "tolist, cpu"


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
def test_a_tokenizer_trains_the_same_and_a_step_waits_once(
    kind: str, device: torch.device, crossed: Counter[str]
) -> None:
    adversarial = {
        "weight": 0.5,
        "start_step": 1,
        "ramp_steps": 2,
        "lecam_weight": 0.1,
        "discriminator": {"n_layers": 1, "width": 8},
    }
    training = from_dict(
        TokenizerTraining,
        {
            "fit": {"steps": 4, "batch_size": 4},
            "adversarial": adversarial,
            "average_decay": 0.5,
            "perceptual": {"weight": 0.1 if kind == "fsq" else 0.0, "vgg_weights": "random"},
        },
    )
    losses = []
    for place in (torch.device("cpu"), device):
        accelerator = Accelerator(cpu=True) if place.type == "cpu" or FAR else Accelerator()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Accelerator, "device", property(lambda self, place=place: place))
            objective = Objective(training, PREPROCESS, accelerator, seed=0)
            task = TokenizerTask(tokenizer(TOKENIZERS[kind]), training, objective, None, accelerator, seed=0)
            batch, rows = {"images": images().to(place)}, []
            for step in range(4):
                crossed.clear()
                rows.append(task.train_step(batch, step))
        last_step = dict(crossed)
        losses.append([float(row["loss_pixel"]) for row in rows])
    assert np.allclose(losses[0], losses[1], rtol=0.2 if kind in RANDOM else 1e-2)
    if FAR:
        assert last_step == {THE_ONE_WAIT: 2}, "its own gradient's norm and the discriminator's"


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
def test_a_prior_trains_the_same_and_a_step_waits_once(
    options: dict, device: torch.device, crossed: Counter[str]
) -> None:
    training = from_dict(PriorTraining, {"fit": {"steps": 4, "batch_size": 3}, "z_loss": 1e-3})
    losses = []
    for place in (torch.device("cpu"), device):
        accelerator = Accelerator(cpu=True) if place.type == "cpu" or FAR else Accelerator()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Accelerator, "device", property(lambda self, place=place: place))
            task = PriorTask(model(LEVELS[-1], dropout=0.0, **options), training, None, accelerator)
            tokens, labels = (each.to(place) for each in examples(task.model))
            rows = []
            for step in range(4):
                crossed.clear()
                rows.append(task.train_step({"tokens": tokens, "labels": labels}, step))
        last_step = dict(crossed)
        losses.append([float(row["nll"]) for row in rows])
    assert np.allclose(losses[0], losses[1], rtol=1e-3)
    if FAR:
        assert last_step == {THE_ONE_WAIT: 1}


@pytest.mark.skipif(not FAR, reason="counts what is sent")
def test_a_step_in_random_order_waits_once_and_sends_the_order(device: torch.device, crossed: Counter[str]) -> None:
    order = {"until_step": 8, "zero_step": 9}
    training = from_dict(PriorTraining, {"fit": {"steps": 10, "batch_size": 3}, "random_order": order})
    task = PriorTask(model(LEVELS[0], target_aware=True, dropout=0.0), training, None, Accelerator(cpu=True))
    tokens, labels = (each.to(device) for each in examples(task.model))
    for step in range(3):
        crossed.clear()
        task.train_step({"tokens": tokens, "labels": labels, "positions": torch.arange(3)}, step)
    waits = {line: n for line, n in crossed.items() if "orders_BT.to(" not in line}
    assert waits == {THE_ONE_WAIT: 1}


@pytest.mark.parametrize(
    "sampling",
    [
        {},
        {"guidance_scale": 2.5},
        {"top_k": 5},
        {"top_p": 0.7, "guidance_scale": 2.0},
        {"min_p": 0.1},
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
    assert engine_for(there).compiled and float((compiled == found).float().mean()) > 0.98


@pytest.mark.skipif(not FAR, reason="counts what is sent")
@pytest.mark.parametrize("sampling", [{}, {"guidance_scale": 2.5, "top_k": 5}, {"top_p": 0.7}, {"min_p": 0.1}], ids=str)
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
