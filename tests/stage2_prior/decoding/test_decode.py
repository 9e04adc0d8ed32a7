"""Drawn codes are the reference's, whatever the batch, its split and what is known beforehand."""

from typing import Any

import pytest
import torch
from support.random_prior import LEVELS, OPTIONS, decode_codes, decode_without_cache, model, with_norm_weights

from foundation.codes.spec import CodeLevel, require_codes
from foundation.errors import DataError
from stage2_prior.decoding import pace
from stage2_prior.decoding.decode import MASKED, iterate_codes, stream_uniforms
from stage2_prior.decoding.engine import DecodingEngine
from stage2_prior.decoding.sampling import SamplingConfig
from stage2_prior.prior import PriorModel

SETTINGS: list[dict[str, Any]] = [
    {},
    {"guidance_scale": 0.0},
    {"guidance_scale": 2.5},
    {"guidance_scale": 2.5, "temperature": 0.7, "top_k": 9, "top_p": 0.8},
    {"guidance_scale": 1.7, "temperature": 0.0},
    {"guidance_scale": 3.0, "schedule": "linear"},
    {"guidance_scale": 0.0, "schedule": "linear"},
    {"guidance_scale": 6.0, "schedule": "power-cosine", "schedule_power": 2.0, "top_p": 0.9},
    {"guidance_scale": 3.0, "schedule": "step", "schedule_start": 0.4},
    {"guidance_scale": 3.0, "schedule": "cosine", "min_p": 0.1},
    {"guidance_scale": 3.0, "guidance_interval": (0.3, 0.7)},
    {"guidance_scale": 2.0, "typical_p": 0.7},
    {"guidance_scale": 2.0, "entropy_temperature": (0.5, 1.0, 0.7), "top_k": 9},
]
"""Each way in which rows join and leave, and each filter."""

BUILT = [(levels, {}) for levels in LEVELS] + [(LEVELS[1], options) for options in OPTIONS[1:]]
CASES = [(LEVELS[i], {}, each) for i in (0, 5) for each in SETTINGS]
CASES += [(*built, SETTINGS[i]) for built in BUILT[1:5] + BUILT[6:] for i in (3, 8)]
PLAIN = SamplingConfig(guidance_scale=2.0)


def inputs(prior: PriorModel, batch: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels, the null class among them, and uniform numbers."""
    labels = torch.arange(batch) % (prior.n_classes + 1)
    return labels, stream_uniforms(list(range(10, 10 + batch)), prior.n_codes)


@pytest.mark.parametrize(("levels", "built", "options"), CASES)
def test_cached_split_and_completed_draws_are_the_reference_s(
    levels: tuple[CodeLevel, ...], built: dict, options: dict
) -> None:
    prior, sampling = with_norm_weights(model(levels, **built)), SamplingConfig(**options)
    labels, uniforms = inputs(prior)
    drawn = decode_codes(prior, labels, uniforms, sampling)
    require_codes(drawn.numpy(), prior.spec)
    assert torch.equal(drawn, decode_without_cache(prior, labels, uniforms, sampling))
    for max_rows in (1, 2, 3):
        assert torch.equal(decode_codes(prior, labels, uniforms, sampling, max_rows=max_rows), drawn)
    known = drawn.clone()
    known[:, prior.n_codes // 2 :] = MASKED
    assert torch.equal(decode_codes(prior, labels, uniforms, sampling, known_BT=known), drawn)
    known = torch.where(uniforms < 0.5, drawn.roll(1, 0), MASKED)
    inpainted = decode_codes(prior, labels, uniforms, sampling, known_BT=known)
    assert torch.equal(inpainted[known >= 0], known[known >= 0])
    assert torch.equal(inpainted, decode_without_cache(prior, labels, uniforms, sampling, known))


WINDOWED = [
    *SETTINGS,
    {"random": "gumbel"},
    {"random": "gumbel", "guidance_scale": 2.5, "temperature": 0.7, "top_k": 9, "top_p": 0.8},
    {"random": "gumbel", "guidance_scale": 3.0, "guidance_interval": (0.3, 0.7), "min_p": 0.05},
]


@pytest.mark.parametrize("options", WINDOWED)
@pytest.mark.parametrize(("levels", "built"), [(LEVELS[0], {}), (LEVELS[5], {}), (LEVELS[0], {"block": "pixelcnn"})])
def test_codes_that_are_guessed_ahead_are_those_of_one_after_another(
    levels: tuple[CodeLevel, ...], built: dict, options: dict
) -> None:
    prior = with_norm_weights(model(levels, **built))
    labels, uniforms = inputs(prior)
    given = {"labels_B": labels, "uniforms_BT": uniforms, "seeds": [3, 4, 5, 6, 7]}
    one_by_one = decode_codes(prior, **given, sampling=SamplingConfig(**options, window=1))
    known = torch.where(uniforms < 0.4, one_by_one.roll(1, 0), MASKED)
    inpainted = decode_codes(prior, **given, sampling=SamplingConfig(**options, window=1), known_BT=known)
    for window in (2, 3, 16, 99):
        sampling, passes = SamplingConfig(**options, window=window), []
        codes = torch.empty_like(one_by_one)
        for step in iterate_codes(prior, sampling=sampling, **given):
            codes[step.rows].scatter_(1, step.positions_BK, step.codes_BK)
            passes.append(step.codes_BK.shape[1])
        assert torch.equal(codes, one_by_one)
        assert sum(passes) == prior.n_codes and min(passes) >= 1 and max(passes) <= window
        assert torch.equal(decode_codes(prior, **given, sampling=sampling, known_BT=known), inpainted)


def test_a_code_that_is_replaced_in_a_window_is_what_later_ones_are_sampled_given() -> None:
    prior = model()
    torch.nn.init.zeros_(prior.head.weight)  # every guess of code 0 after code 0 is right at temperature 0
    labels, uniforms = inputs(prior)
    sampling, changed = SamplingConfig(temperature=0, window=4), 0
    for step in iterate_codes(prior, labels, uniforms, sampling):
        if step.codes_BK.shape[1] > 1 and not changed:
            step.codes_BK[:, 0], changed = 5, 5
            torch.nn.init.normal_(prior.head.weight, std=0.5)
        last = step
    assert changed == 5 and last.step < 16


def test_gumbel_noise_draws_from_the_distribution() -> None:
    prior = with_norm_weights(model((CodeLevel(height=1, width=1, codebook_size=5),)))
    n = 4000
    labels, seeds = torch.ones(n, dtype=torch.int64), list(range(n))
    sampling = SamplingConfig(random="gumbel")
    drawn = decode_codes(prior, labels, stream_uniforms(seeds, 1), sampling, seeds=seeds)
    expected = prior(torch.zeros(1, 1, dtype=torch.int64), labels[:1]).detach()[0, 0].softmax(-1) * n
    counts = torch.bincount(drawn.flatten(), minlength=5)
    assert float(((counts - expected) ** 2 / expected).sum()) < 18.5, "chi-square of 4 degrees of freedom, 0.1 %"


def test_where_few_images_are_sampled_the_fastest_window_is_found_by_trying() -> None:
    prior = model((CodeLevel(height=8, width=8, codebook_size=20),))
    labels, uniforms = inputs(prior, batch=2)
    for random in ("inverse", "gumbel"):
        one_by_one = decode_codes(prior, labels, uniforms, SamplingConfig(random=random, window=1), seeds=[1, 2])
        found = decode_codes(prior, labels, uniforms, SamplingConfig(random=random), seeds=[1, 2])
        assert torch.equal(found, one_by_one)
    assert ("window", 2, False) not in prior.programs, "on a CPU nothing is gained by the inverse CDF"
    assert prior.programs[("window", 2, True)] in pace._SIZES


def test_guidance_of_one_is_conditional_and_of_zero_unconditional() -> None:
    prior = model()
    labels, uniforms = inputs(prior)
    nothing = torch.full_like(labels, prior.null_class)
    without = decode_codes(prior, nothing, uniforms, SamplingConfig())
    assert torch.equal(decode_codes(prior, labels, uniforms, SamplingConfig(guidance_scale=0.0)), without)
    assert torch.equal(decode_codes(prior, nothing, uniforms, SamplingConfig(guidance_scale=4.0)), without)
    conditional = decode_codes(prior, labels, uniforms, SamplingConfig())
    late = SamplingConfig(guidance_scale=4.0, schedule="step", schedule_start=1.0)
    assert torch.equal(decode_codes(prior, labels, uniforms, late), conditional)
    assert not torch.equal(conditional, without)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_image_s_codes_do_not_depend_on_its_batch(dtype: torch.dtype) -> None:
    prior = model((CodeLevel(height=6, width=6, codebook_size=300),), d_model=64, n_heads=2, d_ff=1408).to(dtype)
    labels, uniforms = inputs(prior, batch=33)
    for options in SETTINGS[:4] + SETTINGS[7:]:
        sampling = SamplingConfig(**options)
        together = decode_codes(prior, labels, uniforms, sampling)
        for rows in (slice(0, 1), slice(4, 5), slice(5, 7), slice(9, 33)):
            assert torch.equal(decode_codes(prior, labels[rows], uniforms[rows], sampling), together[rows])


def test_rows_that_guidance_does_not_need_are_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    prior, seen = model(), []
    extend = DecodingEngine.extend

    def counting(self: DecodingEngine, tokens_RQ: torch.Tensor, *given: Any, **named: Any) -> torch.Tensor:
        seen.append(tuple(tokens_RQ.shape))
        return extend(self, tokens_RQ, *given, **named)

    monkeypatch.setattr(DecodingEngine, "extend", counting)
    labels, uniforms = inputs(prior, batch=4)

    def rows(**options: Any) -> list[int]:
        seen.clear()
        decode_codes(prior, labels, uniforms, SamplingConfig(**options))
        return list(seen)

    alone, both = [(4, 0)] + [(4, 1)] * 15, [(8, 0)] + [(8, 1)] * 15
    assert rows() == rows(guidance_scale=0.0) == alone
    assert rows(guidance_scale=2.0) == both
    late = rows(guidance_scale=2.0, schedule="step", schedule_start=0.5)
    assert late == [*alone[:8], (4, 1), (4, 8), *both[9:]], "the unconditional rows come in one go, before code 8"
    assert rows(guidance_scale=2.0, guidance_interval=(0.0, 0.5)) == [*both[:8], *alone[8:]]
    labels = torch.full_like(labels, prior.null_class)  # guided or not, the distributions are the same
    assert rows(guidance_scale=2.0) == alone


def test_nothing_is_computed_where_codes_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    prior, seen = model(), []
    labels, uniforms = inputs(prior)
    codes = decode_codes(prior, labels, uniforms, PLAIN)
    extend = DecodingEngine.extend

    def counting(self: DecodingEngine, tokens_RQ: torch.Tensor, *given: Any, **named: Any) -> torch.Tensor:
        seen.append(tokens_RQ.shape[1])
        return extend(self, tokens_RQ, *given, **named)

    monkeypatch.setattr(DecodingEngine, "extend", counting)
    known = codes.clone()
    known[:, 5] = MASKED
    known[2, 9] = MASKED
    assert torch.equal(decode_codes(prior, labels, uniforms, PLAIN, known_BT=known), codes)
    assert seen == [5, 4], "all codes before the first one at once, then those up to the second"
    assert torch.equal(decode_codes(prior, labels, uniforms, PLAIN, known_BT=codes), codes)
    assert len(seen) == 2


def test_steps_are_reported_in_order_and_on_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    prior = model()
    labels, uniforms = inputs(prior)
    codes = decode_codes(prior, labels, uniforms, PLAIN)
    reported = list(iterate_codes(prior, labels, uniforms, PLAIN, max_rows=3))
    assert [(step.step, step.rows.start) for step in reported] == [(t, first) for first in (0, 3) for t in range(16)]
    assert all(torch.equal(step.codes_BK[:, 0], codes[step.rows, step.step]) for step in reported)
    steps = iterate_codes(prior, labels, uniforms, PLAIN, known_BT=torch.where(torch.arange(16) < 4, codes, MASKED))
    first = next(steps)
    assert (first.step, first.rows) == (4, slice(0, 5)) and torch.equal(first.codes_BK, codes[:, 4:5])
    monkeypatch.setattr(DecodingEngine, "extend", lambda *_: pytest.fail("nobody asked"))
    steps.close()


def test_a_code_that_is_replaced_is_what_later_ones_are_sampled_given() -> None:
    prior = model()
    labels, uniforms = inputs(prior)
    codes = decode_codes(prior, labels, uniforms, PLAIN)
    for step in iterate_codes(prior, labels, uniforms, PLAIN):
        if step.step == 3:
            step.codes_BK[0] = changed = (codes[0, 3] + 1) % 29
        codes[step.rows, step.step] = step.codes_BK[:, 0]
    known = torch.full_like(codes, MASKED)
    known[:, :4] = codes[:, :4]
    assert codes[0, 3] == changed
    assert torch.equal(decode_codes(prior, labels, uniforms, PLAIN, known_BT=known), codes)


def test_no_images_take_no_steps() -> None:
    prior = model()
    labels, uniforms = torch.empty(0, dtype=torch.int64), torch.empty(0, 16, dtype=torch.float64)
    assert decode_codes(prior, labels, uniforms, PLAIN).shape == (0, 16)
    assert decode_codes(prior, labels, uniforms, PLAIN, known_BT=torch.empty(0, 16, dtype=torch.int64)).shape == (0, 16)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"labels_B": torch.tensor([0, 9])}, "labels_B"),
        ({"labels_B": torch.tensor([0, -1])}, "labels_B"),
        ({"labels_B": torch.tensor([0.0, 1.0])}, "labels_B"),
        ({"labels_B": torch.tensor([[0], [1]])}, "labels_B"),
        ({"uniforms_BT": torch.rand(2, 15, dtype=torch.float64)}, "uniforms_BT"),
        ({"uniforms_BT": torch.rand(2, 16)}, "uniforms_BT"),
        ({"known_BT": torch.zeros(2, 15, dtype=torch.int64)}, "known_BT"),
        ({"known_BT": torch.full((2, 16), 29)}, r"known_BT\[0, 0\](.|\n)*29(.|\n)*0..28"),
        ({"known_BT": torch.full((2, 16), -2)}, r"known_BT\[0, 0\]"),
        ({"known_BT": torch.zeros(2, 16)}, "known_BT"),
        ({"start": 1}, "start"),
        ({"start": -1}, "start"),
        ({"max_rows": 0}, "max_rows"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_by_name(changes: dict, field: str) -> None:
    prior = model()
    labels, uniforms = inputs(prior, batch=2)
    given = {"labels_B": labels, "uniforms_BT": uniforms, "sampling": PLAIN, **changes}
    with pytest.raises(DataError, match=field):
        decode_codes(prior, **given)


def test_batches_fit_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    from stage2_prior.decoding import cache as module

    prior = model()
    one, two = (module.bytes_per_image(prior, rows) for rows in (1, 2))
    assert one < two <= 2 * one
    for free, images in ((0, 1), (4 * two, 1), (40 * two, 10), (1 << 40, 64)):
        monkeypatch.setattr(module, "free_bytes", lambda device, free=free: free)
        assert module.images_that_fit(prior, 2) == images
    monkeypatch.undo()
    assert 0 < module.free_bytes(torch.device("cpu")) < 1 << 50


def test_importing_it_imports_no_training_library() -> None:
    import subprocess
    import sys

    code = (
        "import sys, stage2_prior.decoding.decode; "
        "heavy = ('transformers', 'accelerate', 'datasets', 'torchvision', 'torch._dynamo', 'torch._inductor'); "
        "sys.exit(', '.join(name for name in heavy if name in sys.modules) or 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
