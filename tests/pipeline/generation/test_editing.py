"""What an edit keeps, it keeps to the last bit; what it marks, it draws anew."""

import numpy as np
import pytest
import torch
from PIL import Image

from foundation.codes.spec import CodeLevel, CodeSpec
from foundation.errors import ConfigError, DataError
from foundation.images.config import Preprocess
from foundation.images.preprocess import to_pil, to_uint8
from pipeline import ImageGenerator
from pipeline.generation.drawing import candidate_seed, nats_of
from pipeline.generation.editing import blend_weights
from pipeline.generation.inputs import below_rows, codes_of_pixels, hide, pixel_mask
from pipeline.generation.requests import image_seed


def codes_of(generator: ImageGenerator, images: torch.Tensor) -> torch.Tensor:
    return generator.tokenizer.encode(images)


@pytest.mark.parametrize("guess_class", [False, True])
def test_completion_keeps_the_given_rows_and_draws_the_others(
    untrained: ImageGenerator, pictures: torch.Tensor, guess_class: bool
) -> None:
    codes = codes_of(untrained, pictures)
    out = untrained.complete(codes, rows=2, num_images=4, seed=0, guess_class=guess_class)
    given = codes.repeat_interleave(4, 0)
    assert torch.equal(out.codes[:, :2], given[:, :2])
    assert (out.codes[:, 2:] != given[:, 2:]).float().mean() > 0.5
    assert len(out.images) == 12 and len({tuple(each.flatten().tolist()) for each in out.codes}) == 12
    assert all((label is not None) == guess_class for label in out.labels)


def test_rows_as_a_share_a_number_or_the_codes_themselves_mean_the_same(
    untrained: ImageGenerator, pictures: torch.Tensor
) -> None:
    codes = codes_of(untrained, pictures)
    expected = untrained.complete(codes, "b", rows=2, seed=3).codes
    assert torch.equal(untrained.complete(codes, "b", rows=0.5, seed=3).codes, expected)
    assert torch.equal(untrained.complete(codes[:, :2], "b", seed=3).codes, expected)
    assert torch.equal(untrained.complete(codes[:, :2].numpy().astype(np.uint16), "b", seed=3).codes, expected)
    odd = untrained.complete(codes.flatten(1)[:, :13], "b", seed=3).codes.flatten(1)
    assert torch.equal(odd[:, :13], codes.flatten(1)[:, :13])


def test_an_edited_image_is_the_same_alone_and_in_a_batch(untrained: ImageGenerator, pictures: torch.Tensor) -> None:
    mask = torch.zeros(8, 12)
    mask[2:5, 3:9] = 1
    edits = {
        "complete": {"rows": 1},
        "inpaint": {"mask": mask},
        "vary": {"share": 0.4},
        "change_class": {"class_labels": "b"},
    }
    for name, how in edits.items():
        together = getattr(untrained, name)(pictures, seed=5, batch_size=2, **how).codes
        for i in range(3):
            alone = getattr(untrained, name)(pictures[i : i + 1], seed=image_seed(5, i), **how).codes
            assert torch.equal(alone[0], together[i]), name


def test_the_hidden_pixels_have_no_part_in_what_is_kept(untrained: ImageGenerator, pictures: torch.Tensor) -> None:
    other = pictures.clone()
    other[:, :, 4:] = -other[:, :, 4:]
    keep = untrained.complete(pictures, rows=2, seed=0).codes
    assert torch.equal(untrained.complete(other, rows=2, seed=0).codes, keep)
    seen = untrained.complete(pictures, rows=2, seed=0, hide=False).codes
    assert torch.equal(seen[:, :2], codes_of(untrained, pictures)[:, :2])
    assert not torch.equal(seen[:, :2], keep[:, :2])


def test_hidden_pixels_are_those_of_the_nearest_shown_one() -> None:
    image = torch.arange(20.0).view(1, 1, 4, 5)
    mask = torch.zeros(1, 4, 5, dtype=torch.bool)
    mask[0, 2:] = True
    assert torch.equal(hide(image, mask)[0, 0, 2:], image[0, 0, 1:2].expand(2, -1))
    mask = torch.ones(1, 4, 5, dtype=torch.bool)
    mask[0, 1, 2] = False
    assert bool((hide(image, mask) == 7).all())
    assert bool((hide(image, torch.ones(1, 4, 5, dtype=torch.bool)) == 0).all())


def test_inpainting_leaves_the_codes_outside_the_mask_and_a_shared_mask_is_one_for_each(
    untrained: ImageGenerator, pictures: torch.Tensor
) -> None:
    mask = torch.zeros(8, 12, dtype=torch.bool)
    mask[3:6, 5:7] = True  # touches codes (1, 2), (1, 3), (2, 2), (2, 3)
    touched = torch.zeros(4, 6, dtype=torch.bool)
    touched[1:3, 2:4] = True
    codes = codes_of(untrained, hide(pictures, mask[None]))
    out = untrained.inpaint(pictures, mask, "a", seed=1, num_images=8)
    assert torch.equal(out.codes[:, ~touched], codes.repeat_interleave(8, 0)[:, ~touched])
    changed = (out.codes != codes.repeat_interleave(8, 0))[:, touched].float().mean(0)
    assert bool((changed > 0.3).all())
    for same in (touched, mask.numpy(), mask.float(), mask.to(torch.uint8) * 255, Image.fromarray(mask.numpy())):
        again = untrained.inpaint(codes, same, "a", seed=1, num_images=8)
        assert torch.equal(again.codes, out.codes)
    grown = untrained.inpaint(codes, mask, "a", seed=1, grow=1).codes
    assert torch.equal(grown[:, 3, [0, 1, 4, 5]], codes[:, 3, [0, 1, 4, 5]])
    assert not torch.equal(grown[:, 3, 2:4], codes[:, 3, 2:4])


def test_a_mask_of_pixels_marks_the_codes_of_every_level_that_it_touches() -> None:
    levels = (CodeLevel(height=2, width=2, codebook_size=4), CodeLevel(height=4, width=4, codebook_size=4, depth=2))
    spec = CodeSpec(levels=levels, stride=2, preprocess=Preprocess(height=8, width=8, mode="L"), fingerprint="f")
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[0, 3, 6] = True
    marked = codes_of_pixels(mask, spec)[0]
    assert marked.nonzero().flatten().tolist() == [1, 4 + 2 * 7, 4 + 2 * 7 + 1]
    assert (
        codes_of_pixels(below_rows(2, spec), spec)[0].tolist() == [False] * 2 + [True] * 2 + [False] * 16 + [True] * 16
    )
    assert torch.equal(pixel_mask(torch.eye(4), spec)[0, ::2, ::2], torch.eye(4, dtype=torch.bool))


def test_blending_puts_the_given_pixels_back_outside_the_mask(
    untrained: ImageGenerator, pictures: torch.Tensor
) -> None:
    mask = torch.zeros(8, 12, dtype=torch.bool)
    mask[4:, 6:] = True
    plain = untrained.inpaint(pictures, mask, seed=0, output_type="pt")
    hard = untrained.inpaint(pictures, mask, seed=0, output_type="pt", blend=0)
    assert torch.equal(plain.codes, hard.codes)
    assert torch.equal(hard.images[:, :, ~mask], pictures[:, :, ~mask])
    assert torch.equal(hard.images[:, :, mask], plain.images[:, :, mask])
    weights = blend_weights(mask[None], 3)[0, 0]
    assert torch.allclose(weights[5, :8], torch.tensor([0, 0, 0, 0.25, 0.5, 0.75, 1, 1]))
    soft = untrained.inpaint(pictures, mask, seed=0, output_type="pt", blend=3).images
    assert torch.allclose(soft, pictures + (plain.images - pictures) * weights, atol=1e-6)
    assert torch.equal(soft[..., :3], pictures[..., :3])


def test_variations_change_the_share_that_was_asked_for(untrained: ImageGenerator, pictures: torch.Tensor) -> None:
    codes = codes_of(untrained, pictures)
    for share, n in ((0.25, 6), (1.0, 24), (1e-6, 1)):
        out = untrained.vary(codes, share, num_images=20, seed=2).codes
        changed = (out != codes.repeat_interleave(20, 0)).flatten(1).sum(1)
        assert int(changed.max()) <= n and float(changed.float().mean()) > n / 2
    places = (untrained.vary(codes[:1], 0.25, num_images=60, seed=2).codes != codes[:1]).float().mean(0)
    assert bool((places > 0).all()), "every place is drawn anew now and then"


def test_another_class_draws_the_codes_anew_that_fit_it_worst(
    untrained: ImageGenerator, pictures: torch.Tensor
) -> None:
    codes = codes_of(untrained, pictures)
    sequences, prior = codes.flatten(1), untrained.prior
    gain = prior.nll(sequences, torch.full((3,), 3)) - prior.nll(sequences, torch.full((3,), 1))
    kept = gain.argsort(dim=1)[:, 6:]  # all but the six that fit class b worst
    worst = gain.argsort(dim=1)[:, :6]
    out = untrained.change_class(codes, "b", share=0.25, seed=0, num_images=10).codes.flatten(1)
    same = out == sequences.repeat_interleave(10, 0)
    assert bool(same.gather(1, kept.repeat_interleave(10, 0)).all())
    assert float(same.gather(1, worst.repeat_interleave(10, 0)).float().mean()) < 0.5


def test_best_of_keeps_the_likeliest_and_names_the_seed_that_gives_it(untrained: ImageGenerator) -> None:
    best = untrained(["a", "b"], seed=7, best_of=6, output_type="latent")
    labels = [0] * 6 + [1] * 6
    seeds = [candidate_seed(seed, i) for seed in (7, image_seed(7, 1)) for i in range(6)]
    candidates = untrained(["a"] * 6 + ["b"] * 6, seed=seeds, output_type="latent").codes
    costs = nats_of(untrained.prior, candidates.flatten(1), labels).view(2, 6)
    assert torch.equal(best.codes, candidates.view(2, 6, 4, 6)[torch.arange(2), costs.argmin(1)])
    assert best.seeds == [seeds[int(costs[0].argmin())], seeds[6 + int(costs[1].argmin())]]
    assert torch.equal(untrained(["a", "b"], seed=best.seeds).codes, best.codes)
    assert candidate_seed(7, 0) == 7


def test_best_of_an_edit_counts_the_kept_codes_too(untrained: ImageGenerator, pictures: torch.Tensor) -> None:
    mask = torch.zeros(4, 6, dtype=torch.bool)
    mask[:2] = True
    best = untrained.inpaint(pictures, mask, "c", seed=0, best_of=8)
    first = untrained.inpaint(pictures, mask, "c", seed=0)
    assert torch.equal(best.codes[:, 2:], first.codes[:, 2:])
    cost = [nats_of(untrained.prior, out.codes.flatten(1), [2] * 3) for out in (best, first)]
    assert bool((cost[0] <= cost[1]).all()) and bool((cost[0] < cost[1]).any())


def test_the_same_call_with_the_seeds_of_the_best_variations_gives_them_again(
    untrained: ImageGenerator, pictures: torch.Tensor
) -> None:
    best = untrained.vary(pictures, 0.5, "a", seed=5, best_of=6)
    assert best.seeds == [image_seed(5, i) for i in range(3)]
    assert torch.equal(untrained.vary(pictures, 0.5, "a", seed=best.seeds, best_of=6).codes, best.codes)


def test_another_class_is_scored_in_parts(
    untrained: ImageGenerator, pictures: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = untrained.change_class(pictures, "b", seed=0).codes
    rows, nll = [], untrained.prior.nll
    monkeypatch.setattr("pipeline.generation.drawing._SCORED_TOKENS", 24)
    monkeypatch.setattr(untrained.prior, "nll", lambda codes, *rest: rows.append(len(codes)) or nll(codes, *rest))
    assert torch.equal(untrained.change_class(pictures, "b", seed=0).codes, expected)
    assert rows == [1] * 6


def test_inpainting_guesses_each_class_from_the_codes_before_the_hole(
    untrained: ImageGenerator, pictures: torch.Tensor
) -> None:
    """Each guess is that of the image alone, and of a completion of the same codes."""
    masks = torch.zeros(3, 4, 6, dtype=torch.bool)
    masks[0, 1:3], masks[1, 2:, 3:], masks[2, 0, 5] = True, True, True
    codes = untrained.tokenizer.encode(pictures)
    together = untrained.inpaint(codes, masks, seed=0, guess_class=True)
    assert None not in together.labels and torch.equal(together.codes[~masks], codes[~masks])
    for i, n_before in enumerate((6, 15, 5)):
        alone = untrained.inpaint(codes[i : i + 1], masks[i], seed=together.seeds[i], guess_class=True)
        assert alone.labels == [together.labels[i]]
        assert untrained.complete(codes[i : i + 1].flatten(1)[:, :n_before], guess_class=True).labels == alone.labels
        given = untrained.inpaint(codes[i : i + 1], masks[i], alone.labels, seed=alone.seeds)
        assert torch.equal(alone.codes, given.codes)


@pytest.mark.parametrize(
    ("name", "how", "field"),
    [
        ("inpaint", {"mask": torch.ones(8, 12), "guess_class": True}, "guess_class"),
        ("inpaint", {"mask": torch.eye(4, 6).flip(0), "class_labels": "a", "guess_class": True}, "guess_class"),
        ("complete", {}, "rows"),
        ("complete", {"rows": 0}, "rows"),
        ("complete", {"rows": 4}, "rows"),
        ("complete", {"rows": 1.5}, "rows"),
        ("complete", {"rows": float("nan")}, "rows"),
        ("complete", {"rows": "2"}, "rows"),
        ("complete", {"rows": True}, "rows"),
        ("complete", {"rows": 2, "num_images": 0}, "num_images"),
        ("complete", {"rows": 2, "best_of": 0}, "best_of"),
        ("complete", {"rows": 2, "class_labels": ["a", "b"]}, "class_labels"),
        ("complete", {"rows": 2, "class_labels": "a", "guess_class": True}, "guess_class"),
        ("complete", {"rows": 2, "row": 2}, "row"),
        ("complete", {"rows": 2, "num_images": 10**12}, "images"),
        ("inpaint", {"mask": torch.zeros(8, 12)}, "mask"),
        ("inpaint", {"mask": torch.ones(8, 8)}, "mask"),
        ("inpaint", {"mask": torch.full((8, 12), 2.0)}, "mask"),
        ("inpaint", {"mask": None}, "mask"),
        ("inpaint", {"mask": torch.ones(2, 8, 12)}, "mask"),
        ("inpaint", {"mask": "circle"}, "mask"),
        ("inpaint", {"mask": torch.full((8, 12), float("nan"))}, "mask"),
        ("inpaint", {"mask": torch.ones(8, 12), "blend": -1}, "blend"),
        ("inpaint", {"mask": torch.ones(8, 12), "blend": 10**9}, "blend"),
        ("inpaint", {"mask": torch.ones(8, 12), "grow": 0.5}, "grow"),
        ("inpaint", {"mask": torch.ones(8, 12), "blend": 1, "output_type": "latent"}, "blend"),
        ("vary", {"share": 0.0}, "share"),
        ("vary", {"share": 1.1}, "share"),
        ("vary", {"share": "x"}, "share"),
        ("vary", {"share": float("nan")}, "share"),
        ("vary", {"share": 0.5, "temperatur": 1.0}, "temperatur"),
        ("change_class", {"class_labels": None}, "class_labels"),
        ("change_class", {"class_labels": "d"}, "class_labels"),
    ],
)
def test_wrong_edits_are_refused_by_name(
    untrained: ImageGenerator, pictures: torch.Tensor, name: str, how: dict, field: str
) -> None:
    with pytest.raises((ConfigError, DataError), match=f"^{field}"):
        getattr(untrained, name)(pictures, **how)


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(3, 4, 5, dtype=torch.int64),
        torch.full((1, 4, 6), 48),
        torch.full((1, 4, 6), -1),
        5,
        None,
        [],
        [1],
        torch.zeros(0, 4, 6, dtype=torch.int64),
        torch.zeros(1, 1, 8, 8),
        torch.full((1, 1, 8, 12), 2.0),
        torch.full((1, 1, 8, 12), float("nan")),
        torch.zeros(1, 7, 6, dtype=torch.int64),
        np.zeros((1, 8, 12)),
    ],
)
def test_wrong_images_are_refused_by_name(untrained: ImageGenerator, images: object) -> None:
    with pytest.raises(DataError, match=r"^images"):
        untrained.vary(images, 0.5)


def test_pillow_images_are_read_as_the_tokenizer_reads_them(untrained: ImageGenerator, pictures: torch.Tensor) -> None:
    listed = [to_pil(each) for each in to_uint8(pictures)]
    exact = torch.from_numpy(to_uint8(pictures)).permute(0, 3, 1, 2) / 127.5 - 1
    expected = untrained.vary(exact, 0.5, seed=0).codes
    assert torch.equal(untrained.vary(listed, 0.5, seed=0).codes, expected)
    assert torch.equal(untrained.vary(listed[0], 0.5, seed=0).codes[0], expected[0])
