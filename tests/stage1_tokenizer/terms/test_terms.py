"""Terms of the loss: what they measure, their gradients, what is kept of them, and where they cannot work."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from support.tokenizer_systems import LITE0, TERMS, images, task

from foundation.config import from_dict
from foundation.errors import ConfigError
from foundation.images.config import Preprocess
from stage1_tokenizer.config import TokenizerConfig, TokenizerTraining
from stage1_tokenizer.objective import Objective
from stage1_tokenizer.terms.base import Seen, Term
from stage1_tokenizer.terms.config import EquivarianceConfig
from stage1_tokenizer.terms.equivariance import Transform, transforms
from stage1_tokenizer.terms.texture import cosine_filters
from stage1_tokenizer.tokenizer import TokenizerModel
from stage1_tokenizer.train import TokenizerTask

KINDS = ("weight", "bias")
CONFIG = {
    "networks": {"base_width": 8, "width_multipliers": [1, 2], "n_res_blocks": 1, "norm_groups": 4},
    "latent_channels": 8,
    "quantizer": {"type": "fsq", "levels": [5, 4, 3]},
}


@pytest.fixture
def in_float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What computes in float32 whatever the weights are computes in float64."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def objective(*terms: dict[str, Any], preprocess: Preprocess | None = None, **training: Any) -> Objective:
    model = TokenizerModel(from_dict(TokenizerConfig, CONFIG), preprocess or Preprocess(height=16, width=16))
    settings = from_dict(TokenizerTraining, {"terms": list(terms), **training})
    return Objective(settings, model, Accelerator(cpu=True), seed=0)


def only(found: Objective) -> Term:
    (term,) = found.terms.values()
    return term


def seen(**changes: Any) -> Seen:
    """Of two images; the decoder repeats the first three channels of its inputs over two pixels."""
    torch.manual_seed(1)
    pixels = torch.rand(2, 3, 16, 16) * 2 - 1
    values = {
        "images_BCYX": pixels,
        "reconstructions_BCYX": (pixels + 0.3 * torch.randn_like(pixels)).requires_grad_(),
        "latents_BCHW": torch.randn(2, 3, 8, 8, requires_grad=True),
        "inputs_BCHW": torch.randn(2, 8, 8, 8, requires_grad=True),
        "codes": torch.zeros(2, 8, 8, dtype=torch.int64),
        "step": 0,
        "decode": lambda inputs: inputs[:, :3].repeat_interleave(2, 2).repeat_interleave(2, 3),
        **changes,
    }
    return Seen(**values)


def test_what_a_term_trains_takes_adamw_where_the_tokenizer_takes_muon() -> None:
    found = objective({"type": "alignment", **LITE0}, optim={"matrices": "muon", "learning_rate": 2e-3})
    assert found.learner is not None and found.learner.muon is None
    assert found.learner.optimizer.param_groups[0]["lr"] == 2e-3


def test_the_perceptual_distance_of_an_image_from_itself_is_0_and_grows_with_noise() -> None:
    term, batch = only(objective({"type": "lite0", **LITE0})), seen()
    noise = torch.randn_like(batch.images_BCYX)
    distances = [
        float(term(seen(reconstructions_BCYX=batch.images_BCYX + share * noise))[0]) for share in (0.0, 0.1, 0.3, 1.0)
    ]
    assert distances[0] == 0.0 and distances == sorted(distances) and distances[1] > 0


@pytest.mark.parametrize("config", TERMS, ids=["lite0", "both", "one", "equivariance", "texture", "texture of a part"])
def test_gradients_are_those_of_finite_differences(config: dict[str, Any], in_float64: None) -> None:
    found = objective({**config, **({} if "stages" not in config else {"side": 32})})
    for each in found.networks().values():
        each.double()
    term, batch = only(found), seen()
    leaves = [batch.reconstructions_BCYX, batch.latents_BCHW, batch.inputs_BCHW]
    leaves += [] if term.trained is None else list(term.trained.parameters())
    gradients = torch.autograd.grad(term(batch)[0], leaves, allow_unused=True)
    assert any(each is not None for each in gradients)
    for leaf, gradient in zip(leaves, gradients, strict=True):
        if gradient is None:
            continue
        direction, step = torch.randn_like(leaf), 1e-6
        with torch.no_grad():
            leaf += step * direction
            more = term(batch)[0]
            leaf -= 2 * step * direction
            less = term(batch)[0]
            leaf += step * direction
        expected = float((more - less) / (2 * step))
        assert float((gradient * direction).sum()) == pytest.approx(expected, rel=1e-4, abs=1e-9)


def test_alignment_is_0_for_latents_whose_projection_is_the_features() -> None:
    from stage1_tokenizer.terms.lite0 import unit_maps

    term = only(objective({"type": "alignment", **LITE0, "stages": [3]}))
    batch = seen()
    term.projections["latents"] = torch.nn.Identity()  # type: ignore[attr-defined]
    target = unit_maps(term.network, batch.images_BCYX, (3,), 32)[0]  # type: ignore[attr-defined]
    loss, more = term(seen(latents_BCHW=3.0 * target, step=0))
    assert target.shape[2:] == (8, 8)
    assert float(loss) == pytest.approx(0, abs=1e-5) and float(more["cosine"]) == pytest.approx(1, abs=1e-5)


def test_a_margin_costs_nothing_within_it() -> None:
    plain, within = (only(objective({"type": "alignment", **LITE0, "margin": each}))(seen())[0] for each in (0.0, 0.5))
    assert float(plain.detach() - within.detach()) == pytest.approx(0.5, abs=0.05)


def test_an_equivariant_decoder_costs_nothing() -> None:
    """The decoder repeats values, which is equivariant for images of four even quarters."""
    term = only(objective({"type": "equivariance"}))
    quarters = torch.randn(2, 3, 2, 2)
    inputs, pixels = (quarters.repeat_interleave(n, 2).repeat_interleave(n, 3) for n in (4, 8))
    for step in range(40):
        loss, _ = term(seen(images_BCYX=pixels, inputs_BCHW=inputs, step=step))
        assert float(loss) == pytest.approx(0, abs=1e-12)
    assert float(term(seen(step=0))[0].detach()) > 0.1


def test_transformations_are_all_but_the_identity_that_fit_the_grid() -> None:
    every = transforms(EquivarianceConfig(), 8, 8)
    assert len(every) == len(set(every)) == 8 * 3 - 1 and Transform(0, False, 1) not in every
    assert {each.divisor for each in transforms(EquivarianceConfig(), 6, 6)} == {1, 2}
    assert {each.quarters for each in transforms(EquivarianceConfig(), 4, 8)} == {0, 2}
    image = torch.arange(32.0).view(1, 1, 4, 8)
    assert all(each(image).shape[2] * 2 == each(image).shape[3] for each in transforms(EquivarianceConfig(), 4, 8))


def test_the_transformation_is_a_function_of_seed_step_and_process() -> None:
    def losses(seed: int, process: int) -> list[float]:
        term = only(objective({"type": "equivariance"}))
        term.seed, term.process = seed, process  # type: ignore[attr-defined]
        return [float(term(seen(step=step))[0]) for step in range(12)]

    assert losses(0, 0) == losses(0, 0)
    assert len({tuple(losses(*each)) for each in ((0, 0), (1, 0), (0, 1))}) == 3


def test_a_second_term_of_a_type_has_a_name_of_its_own() -> None:
    found = objective(*[{"type": "alignment", **LITE0}] * 2, {"type": "equivariance"})
    assert list(found.terms) == ["alignment", "alignment_2", "equivariance"]


def test_building_leaves_the_random_numbers_alone() -> None:
    model = TokenizerModel(from_dict(TokenizerConfig, CONFIG), Preprocess(height=16, width=16))
    before = torch.get_rng_state()
    Objective(from_dict(TokenizerTraining, {"terms": TERMS}), model, Accelerator(cpu=True), seed=0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("terms", [[], [TERMS[0], TERMS[3]]])
def test_terms_that_train_nothing_leave_no_trace_in_checkpoints(terms: list[dict[str, Any]]) -> None:
    assert objective(*terms).state_dict() == {}


def test_what_terms_train_is_in_the_checkpoint_and_not_in_the_tokenizer() -> None:
    trained = task("plain terms")
    names = set(trained.state_dict()["objective"]["terms"]["model"])
    assert names == {
        *(f"alignment.{each}.{i}.{kind}" for each in ("latents", "quantized") for i in (0, 2) for kind in KINDS),
        *(f"alignment_2.latents.{kind}" for kind in KINDS),
    }
    assert set(trained.exported().state_dict()) == set(task("vqvae2").exported().state_dict())


def take(trained: TokenizerTask, steps: range, batch: torch.Tensor | None = None) -> TokenizerTask:
    for number in steps:
        torch.manual_seed(number)  # as fit does
        trained.train_step({"images": images(6) if batch is None else batch}, number)
    return trained


def tensors(trained: TokenizerTask) -> list[torch.Tensor]:
    models = [trained.model, trained.exported(), trained.objective.learner.model]  # type: ignore[union-attr]
    return [each for model in models for each in model.state_dict().values()]


@pytest.mark.parametrize("micro", [None, 2])
def test_a_resumed_training_takes_the_same_steps(micro: int | None) -> None:
    settings = {"dropout": 0.2, "micro_batch_size": micro, "checkpoint_blocks": True}
    whole = take(task("plain terms", **settings), range(3))
    state = take(task("plain terms", **settings), range(2)).state_dict()
    resumed = task("plain terms", **settings)
    resumed.load_state_dict(state)
    take(resumed, range(2, 3))
    assert all(torch.equal(one, other) for one, other in zip(tensors(whole), tensors(resumed), strict=True))


def test_a_step_that_is_not_finite_moves_no_projection() -> None:
    trained = take(task("plain terms"), range(1))
    before = [each.clone() for each in tensors(trained)]
    take(trained, range(1, 2), images(6) * float("nan"))
    assert all(torch.equal(one, other) for one, other in zip(before, tensors(trained), strict=True))
    take(trained, range(2, 3))
    assert not all(torch.equal(one, other) for one, other in zip(before, tensors(trained), strict=True))


def test_bf16_trains() -> None:
    trained = take(task("plain terms", precision="bf16"), range(2))
    assert all(bool(each.isfinite().all()) for each in tensors(trained) if each.is_floating_point())


def _two_processes(of_one: list[torch.Tensor]) -> None:
    from accelerate import PartialState
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)  # a forked process keeps its parent's
    torch.set_num_threads(1)  # nor can it use the parent's OpenMP threads
    torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign, assignment]
    torch.set_default_dtype(torch.float64)
    state = PartialState(cpu=True)
    assert state.num_processes == 2
    batch = images(6, torch.float64).chunk(2)[state.process_index]
    alike = take(task("aligned", torch.float64), range(3), batch)
    assert all(torch.allclose(one, other, atol=1e-9) for one, other in zip(tensors(alike), of_one, strict=True))
    for micro in (None, 2):
        for each in tensors(take(task("plain terms", torch.float64, micro_batch_size=micro), range(3), batch)):
            others = [torch.empty_like(each) for _ in range(2)]
            torch.distributed.all_gather(others, each.contiguous())
            assert torch.equal(*others), "processes agree, whatever each transformed"


def test_two_processes_take_the_steps_of_one(in_float64: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate import debug_launcher

    monkeypatch.setitem(os.environ, "OMP_NUM_THREADS", "1")
    of_one = tensors(take(task("aligned", torch.float64), range(3), images(6, torch.float64)))
    debug_launcher(_two_processes, (of_one,), num_processes=2)


def test_a_missing_package_is_named_with_the_field(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TESSERA_CACHE", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"terms\[0\](.|\n)*tessera-images\[features\]"):
        objective({"type": "lite0", "side": 32})


@pytest.mark.parametrize(
    ("term", "changes", "named"),
    [
        ({"type": "lite0", "weights": "random"}, {}, r"side(.|\n)*16 pixels"),
        (
            {"type": "alignment", **LITE0},
            {"preprocess": Preprocess(height=16, width=16, mode="channels", channels=4)},
            "4 channels",
        ),
        ({"type": "equivariance"}, {"compile": True}, r"scales(.|\n)*compile"),
        (
            {"type": "equivariance", "flips": False, "rotations": False, "scales": [4]},
            {"preprocess": Preprocess(height=12, width=12)},
            r"scales(.|\n)*6 x 6",
        ),
    ],
)
def test_what_cannot_work_here_is_refused(term: dict[str, Any], changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=rf"terms\[0\](.|\n)*{named}"):
        objective(term, **changes)


def test_texture_sees_what_is_smoothed_away_and_not_where_it_lies() -> None:
    term = only(objective({"type": "texture"}, preprocess=Preprocess(height=64, width=64)))
    torch.manual_seed(0)
    image, alike = torch.randn(2, 4, 3, 64, 64)
    smooth = torch.nn.functional.avg_pool2d(image, 3, 1, 1)
    found = {
        name: float(term(seen(images_BCYX=image, reconstructions_BCYX=other))[0])
        for name, other in {"itself": image, "another": alike, "smooth": smooth, "flat": image * 0}.items()
    }
    assert found["itself"] == 0 and 0 < 2 * found["another"] < found["smooth"] < found["flat"]
    brighter = seen(images_BCYX=image, reconstructions_BCYX=image + 0.5)
    assert float(term(brighter)[0]) < 1e-8


@pytest.mark.parametrize("size", [2, 4, 5])
def test_filters_of_texture_are_orthonormal_and_leave_out_the_mean(size: int) -> None:
    flat = cosine_filters(size).flatten(1)
    assert flat.shape == (size**2 - 1, size**2)
    assert torch.allclose(flat @ flat.T, torch.eye(size**2 - 1), atol=1e-6)
    assert torch.allclose(flat.sum(1), torch.zeros(size**2 - 1), atol=1e-6)


def test_texture_of_a_part_is_that_of_the_same_part_for_all_images_and_moves_with_the_steps() -> None:
    whole, part = (only(objective({"type": "texture", "crop": crop})) for crop in (16, 9))
    batch = seen()
    plain = only(objective({"type": "texture"}))(batch)[0]
    assert torch.equal(whole(batch)[0], plain) and not torch.equal(part(batch)[0], plain)
    halves = [
        seen(**{name: getattr(batch, name)[i : i + 1] for name in ("images_BCYX", "reconstructions_BCYX")})
        for i in (0, 1)
    ]
    torch.testing.assert_close(sum(part(each)[0] for each in halves) / 2, part(batch)[0])
    assert len({float(part(seen(step=step))[0]) for step in range(8)}) > 4
    expected = torch.stack([part(seen(step=step))[0] for step in range(64)]).mean()
    assert float(expected) == pytest.approx(float(plain), rel=0.3), (
        "the mean over steps is that of whole images, but for borders"
    )


def test_texture_needs_images_as_large_as_its_window() -> None:
    small = Preprocess(height=8, width=16)
    assert only(objective({"type": "texture", "window": 6}, preprocess=small))
    with pytest.raises(ConfigError, match=r"window(.|\n)*8(.|\n)*6 or less for images of 8 pixels"):
        objective({"type": "texture", "window": 8}, preprocess=small)
