"""A generator whose prior knows any order: edits condition on all that is kept; passes, streams and callbacks."""

from typing import Any

import pytest
import torch

from foundation.errors import ConfigError
from pipeline import ImageGenerator
from stage2_prior.config import PriorConfig
from stage2_prior.prior import PriorModel


def generator(untrained: ImageGenerator, order: str) -> ImageGenerator:
    """As ``untrained``, with another prior."""
    torch.manual_seed(1)
    prior = PriorModel(PriorConfig(d_model=32, n_layers=2, n_heads=2, order=order), untrained.spec)
    for parameter in prior.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.3)
    made = ImageGenerator(untrained.tokenizer, prior, label_dropout=0.1)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.mark.parametrize("order", ["raster", "any", "masked"])
def test_what_is_kept_after_a_hole_counts_with_a_prior_of_any_order(
    untrained: ImageGenerator, pictures: torch.Tensor, order: str
) -> None:
    pipe = untrained if order == "raster" else generator(untrained, order)
    codes = pipe.tokenizer.encode(pictures)
    mask = torch.zeros(4, 6, dtype=torch.bool)
    mask[:2] = True
    options: dict[str, Any] = {"class_labels": "a", "num_images": 3, "seed": 0}
    one = pipe.inpaint(codes, mask, **options)
    other = pipe.inpaint((codes + 7) % 48, mask, **options)
    assert torch.equal(one.codes[:, 2:], codes[:, 2:].repeat_interleave(3, 0))
    assert torch.equal(one.codes[:, :2], other.codes[:, :2]) == (order == "raster")


@pytest.mark.parametrize("order", ["any", "masked"])
def test_without_a_class_the_likeliest_one_is_taken(
    untrained: ImageGenerator, pictures: torch.Tensor, order: str
) -> None:
    pipe = generator(untrained, order)
    codes = pipe.tokenizer.encode(pictures)
    mask = torch.zeros(4, 6, dtype=torch.bool)
    mask[:2] = True
    guessed = pipe.inpaint(codes, mask, num_images=2, seed=0)
    assert torch.equal(guessed.codes, pipe.inpaint(codes, mask, num_images=2, seed=0, guess_class=True).codes)
    assert None not in guessed.labels and guessed.labels[0::2] == guessed.labels[1::2]
    assert pipe.inpaint(codes, mask, seed=0, guess_class=False).labels == [None] * 3
    assert pipe.complete(codes, rows=2, seed=0).labels != [None] * 3
    assert pipe.inpaint(codes, torch.ones(4, 6), seed=0).labels == [None] * 3, "nothing is kept"
    with pytest.raises(ConfigError, match=r"guess_class(.|\n)*kept"):
        pipe.inpaint(codes, torch.ones(4, 6), guess_class=True)
    known = codes.flatten(1).clone()
    known[:, :12] = -1
    nats = []
    for label in range(3):  # by the chain rule over the kept codes, one after another
        total = torch.zeros(3)
        seen = torch.full_like(known, -1)
        for position in range(12, 24):
            if order == "masked":
                logits = pipe.prior(seen, torch.full((3,), label))[:, position]
            else:
                orders = torch.cat([torch.arange(12, 24), torch.arange(12)]).expand(3, 24)
                logits = pipe.prior(known.clamp_min(0), torch.full((3,), label), orders)[:, position - 12]
            total -= logits.detach().log_softmax(-1).gather(1, known[:, position : position + 1]).squeeze(1)
            seen[:, position] = known[:, position]
        nats.append(total)
    assert guessed.labels[0::2] == torch.stack(nats, 1).argmin(1).tolist()


@pytest.mark.parametrize("order", ["any", "masked"])
@pytest.mark.parametrize("how", [{"order": "halton", "passes": 5}, {"order": "random"}, {}])
def test_shares_of_the_codes_are_streamed_and_the_last_is_the_call(
    untrained: ImageGenerator, order: str, how: dict[str, Any]
) -> None:
    pipe = generator(untrained, order)
    whole = pipe(["a", "b"], seed=3, output_type="pt", guidance_scale=2.0, **how)
    parts = list(pipe.stream(["a", "b"], seed=3, guidance_scale=2.0, **how))
    assert [part.n_done for part in parts] == sorted({part.n_done for part in parts}) and parts[-1].is_last
    assert torch.equal(parts[-1].codes, whole.codes)
    assert torch.equal(parts[-1].decode("pt"), whole.images)
    for part in parts:
        drawn = part.codes >= 0
        assert int(drawn.flatten(1).sum(1).min()) >= part.n_done * 6
        assert torch.equal(part.codes[drawn], whole.codes[drawn])
        shown = part.decode("pt")
        hidden = (~drawn).repeat_interleave(2, 1).repeat_interleave(2, 2).unsqueeze(1)
        assert bool((shown[hidden] == 0).all()) and shown.shape == (2, 1, 8, 12)


def test_callbacks_see_the_positions_of_a_pass_and_may_change_its_codes(untrained: ImageGenerator) -> None:
    pipe, seen = generator(untrained, "any"), []

    def change(_: ImageGenerator, step: int, t: int, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        seen.append((step, tensors["positions"].shape))
        return {"codes": torch.zeros_like(tensors["codes"])}

    names = ["codes", "positions"]
    out = pipe(
        "a", 2, seed=0, order="halton", passes=4, callback_on_step_end=change, callback_on_step_end_tensor_inputs=names
    )
    assert not out.codes.any() and len(seen) == 4
    assert seen[0] == (0, (2,)) and sum(shape[1] if len(shape) > 1 else 1 for _, shape in seen) == 24


def test_fewer_passes_are_refused_by_a_prior_of_raster_order(untrained: ImageGenerator) -> None:
    with pytest.raises(ConfigError, match=r"passes(.|\n)*train a prior of order any"):
        untrained("a", passes=4)
