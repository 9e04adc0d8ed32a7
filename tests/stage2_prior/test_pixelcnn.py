"""The gated PixelCNN: no blind spot, no look ahead, likelihood and sampling as of other priors."""

import pytest
import torch
from support.random_prior import LEVELS, decode_codes, decode_without_cache, examples, model, spec

from foundation.codes.spec import CodeLevel
from foundation.errors import ConfigError
from stage2_prior.config import PriorConfig
from stage2_prior.decoding.decode import MASKED, stream_uniforms
from stage2_prior.decoding.sampling import SamplingConfig
from stage2_prior.pixelcnn import PixelCNN
from stage2_prior.prior import PriorModel

GRID = (CodeLevel(height=6, width=7, codebook_size=11),)


def pixelcnn(levels: tuple[CodeLevel, ...] = GRID, **changes: object) -> PriorModel:
    """With random weights, also in the head and the class tables."""
    prior = model(levels, block="pixelcnn", **{"n_layers": 4, **changes})
    for module in prior.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.normal_(module.weight, std=0.7 / module.weight[0].numel() ** 0.5)
    return prior


def test_a_prior_is_made_of_the_kind_that_its_settings_name() -> None:
    prior = pixelcnn()
    assert isinstance(prior, PixelCNN) and isinstance(prior, PriorModel)
    assert not isinstance(model(), PixelCNN)


@pytest.mark.parametrize("reach", [1, 2])
def test_a_code_sees_all_codes_before_it_and_no_other(reach: int) -> None:
    """Tested by gradient: with enough layers, the receptive field is every code above and to the left."""
    prior = pixelcnn(n_layers=8, reach=reach)
    tokens, labels = examples(prior, batch=2)
    embedded: list[torch.Tensor] = []

    def keep(module: torch.nn.Module, inputs: object, output: torch.Tensor) -> torch.Tensor:
        embedded.append(output.detach().requires_grad_(True))
        return embedded[-1]

    prior.code_embedding.register_forward_hook(keep)
    logits = prior(tokens, labels)
    for t in range(prior.n_codes):
        (gradient,) = torch.autograd.grad(logits[0, t].square().sum(), embedded[0], retain_graph=True)
        reached = gradient.abs().sum(-1) > 0
        assert reached[0].tolist() == [other < t for other in range(prior.n_codes)] and not reached[1].any()


def test_the_class_moves_the_distribution() -> None:
    prior = pixelcnn()
    tokens, _ = examples(prior, batch=1)
    one, other = (prior(tokens, torch.tensor([label])) for label in (0, 3))
    assert (one - other).abs().amax() > 1e-3
    assert torch.equal(prior(tokens), other), "no class is the null class"


def test_training_starts_at_the_loss_of_uniform_codes() -> None:
    prior = PriorModel(PriorConfig(block="pixelcnn", d_model=16, n_layers=2, n_heads=2), spec(GRID)).eval()
    tokens, labels = examples(prior)
    assert torch.allclose(prior.nll(tokens, labels), torch.tensor(11.0).log())
    prior.zero_residual_outputs()
    assert torch.allclose(prior.nll(tokens[:, :9], labels), torch.tensor(11.0).log())


@pytest.mark.parametrize("options", [{}, {"guidance_scale": 2.5, "schedule": "linear", "top_k": 5}])
def test_sampled_codes_are_those_of_whole_passes(options: dict) -> None:
    prior, sampling = pixelcnn(), SamplingConfig(**options)
    labels, uniforms = torch.arange(5) % 4, stream_uniforms(range(5), prior.n_codes)
    drawn = decode_codes(prior, labels, uniforms, sampling)
    assert torch.equal(drawn, decode_without_cache(prior, labels, uniforms, sampling))
    assert torch.equal(drawn, decode_codes(prior, labels, uniforms, sampling, max_rows=2))
    known = torch.where(uniforms < 0.5, drawn.roll(1, 0), MASKED)
    inpainted = decode_codes(prior, labels, uniforms, sampling, known_BT=known)
    assert torch.equal(inpainted, decode_without_cache(prior, labels, uniforms, sampling, known))


def test_the_probs_of_all_images_sum_to_one() -> None:
    from itertools import product

    prior = pixelcnn((CodeLevel(height=2, width=2, codebook_size=3),))
    images = torch.tensor(list(product(range(3), repeat=4)))
    nats = prior.nll(images, torch.ones(len(images), dtype=torch.int64)).double().sum(1)
    assert float(torch.exp(-nats).sum()) == pytest.approx(1, abs=1e-5)


def test_a_folder_opens_as_the_kind_that_it_holds(tmp_path) -> None:
    prior = pixelcnn()
    prior.save(tmp_path)
    loaded = PriorModel.load(tmp_path)
    tokens, labels = examples(prior)
    assert isinstance(loaded, PixelCNN) and torch.equal(loaded(tokens, labels), prior(tokens, labels))


def test_codes_that_it_cannot_predict_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"block(.|\n)*pixelcnn(.|\n)*4 slots"):
        model(LEVELS[3], block="pixelcnn")
    with pytest.raises(ConfigError, match=r"order(.|\n)*raster where block is pixelcnn"):
        PriorConfig(block="pixelcnn", order="masked")
