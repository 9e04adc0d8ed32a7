"""On a GPU everything comes out as on a CPU, up to rounding: ``pytest -m gpu``."""

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import TINY
from random_prior import LEVELS, examples, model
from torch import nn

from foundation.codes import CodeLevel
from foundation.config import from_dict
from foundation.images import Preprocess
from pipeline import ImageGenerator
from pipeline.commands import start_run
from stage1_tokenizer.config import TokenizerConfig
from stage1_tokenizer.tokenizer import TokenizerModel
from stage2_prior.decode import decode_codes, stream_uniforms
from stage2_prior.engine import engine_for
from stage2_prior.objective import PriorLoss
from stage2_prior.prior import PriorModel
from stage2_prior.sampling import SamplingConfig

pytestmark = pytest.mark.gpu
DEVICE = "cuda"
QUANTIZERS = [
    {"type": "fsq", "levels": [4, 4, 3]},
    {"type": "vq", "codebook_size": 40, "width": 4},
    {"type": "vq", "codebook_size": 40, "width": 4, "learning": "gradient", "normalize": True, "entropy_weight": 0.1},
    {"type": "lfq", "width": 5},
    {"type": "residual", "depth": 3, "codebook": {"codebook_size": 20, "width": 4}},
    {"type": "ibq", "codebook_size": 40, "width": 4},
    {"type": "kl", "width": 4},
]


@pytest.fixture(autouse=True)
def _whole_products() -> Iterator[None]:
    """Products in float32 as a CPU makes them."""
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def gradients(module: nn.Module) -> torch.Tensor:
    """All of them in one vector, on the CPU."""
    found = [each.grad for each in module.parameters() if each.grad is not None]
    return torch.cat([each.flatten().cpu() for each in found])


def assert_near(one: torch.Tensor, other: torch.Tensor, tolerance: float = 1e-3) -> None:
    """Equal up to a share of the second one's length."""
    assert float((one - other).norm()) <= tolerance * float(other.norm())


@pytest.mark.parametrize("quantizer", QUANTIZERS, ids=lambda each: each["type"])
def test_a_tokenizer_computes_the_same_codes_images_and_gradients(quantizer: dict) -> None:
    torch.manual_seed(0)
    sizes = {"base_width": 8, "width_multipliers": [1, 2], "n_res_blocks": 1, "latent_channels": 8, "norm_groups": 4}
    here = TokenizerModel(
        from_dict(TokenizerConfig, {**sizes, "attention_levels": [1], "quantizer": quantizer}),
        Preprocess(height=16, width=24),
    )
    images = torch.rand(4, 3, 16, 24) * 2 - 1
    here.initialize(images, torch.Generator().manual_seed(0))
    there = copy.deepcopy(here).to(DEVICE)
    assert_near(there.eval().encode(images.to(DEVICE)).cpu().double(), here.eval().encode(images).double(), 1e-2)
    for each in (here.eval(), there.eval()):
        each.zero_grad()
        output = each(images.to(next(each.parameters()).device))
        (output.images_BCYX.square().mean() + sum(output.losses.values())).backward()
    assert_near(gradients(there), gradients(here), 1e-2)


@pytest.mark.parametrize("levels", LEVELS)
def test_a_prior_computes_the_same_loss_and_gradients(levels: tuple[CodeLevel, ...]) -> None:
    here = model(levels)
    there = copy.deepcopy(here).to(DEVICE)
    tokens, labels = examples(here)
    losses = []
    for each, place in ((here, "cpu"), (there, DEVICE)):
        loss, _ = PriorLoss(each)(tokens.to(place), labels.to(place))
        loss.backward()
        losses.append(loss.detach().cpu())
    assert torch.allclose(losses[0], losses[1], rtol=1e-4)
    assert_near(gradients(there), gradients(here))


@pytest.mark.parametrize(
    "sampling",
    [{}, {"guidance_scale": 2.5}, {"top_k": 5}, {"top_p": 0.7, "guidance_scale": 2.0}, {"temperature": 0.0}],
    ids=str,
)
def test_the_same_numbers_draw_the_same_codes_plain_and_compiled(sampling: dict) -> None:
    here = model(LEVELS[0])
    labels, uniforms = torch.arange(6) % 3, stream_uniforms(range(6), here.n_codes)
    expected = decode_codes(here, labels, uniforms, SamplingConfig(**sampling))
    there: PriorModel = copy.deepcopy(here).to(DEVICE)
    found = decode_codes(there, labels.to(DEVICE), uniforms, SamplingConfig(**sampling))
    assert float((found.cpu() == expected).float().mean()) > 0.98  # a rounding error may choose the next code
    there.compile_decoding()
    compiled = decode_codes(there, labels.to(DEVICE), uniforms, SamplingConfig(**sampling))
    assert engine_for(there).compiled and float((compiled == found).float().mean()) > 0.98


def test_a_whole_run_trains_there_and_its_generator_draws_the_same_in_both_places(tmp_path: Path) -> None:
    job = start_run("digits", str(tmp_path / "run"), {**TINY, "machine.device": "auto"})
    assert job.run.accelerator.device.type == DEVICE
    job.all()
    job.run.release()
    here, there = (ImageGenerator.from_pretrained(tmp_path / "run").to(place) for place in ("cpu", DEVICE))
    one, other = (each([1, 2, 3], 4, seed=1, output_type="latent").codes.cpu() for each in (here, there))
    assert float((one == other).float().mean()) > 0.98
    assert (tmp_path / "run" / "report.html").exists()
