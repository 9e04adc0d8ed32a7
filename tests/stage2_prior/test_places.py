import torch
from support.random_prior import examples, model

from foundation.codes.spec import CodeLevel, CodeSpec
from foundation.images.preprocess import Preprocess
from stage2_prior.places import PlaceTables
from stage2_prior.rope2d import grid_angles, rotation

LEVELS = (CodeLevel(height=1, width=2, codebook_size=5), CodeLevel(height=2, width=4, codebook_size=9, depth=2))
SPEC = CodeSpec(levels=LEVELS, stride=4, preprocess=Preprocess(height=8, width=16), fingerprint="f")


def test_an_input_stands_where_its_own_code_does_and_predicts_the_next() -> None:
    """The class at (0, 0); two coarse codes at the centres of their 2 x 2 blocks; fine codes at their own places."""
    places = PlaceTables(SPEC, 8, 100.0).on(torch.device("cpu"))
    rows = torch.tensor([0, 0.5, 0.5, *[0] * 8, *[1] * 7])
    columns = torch.tensor([0, 0.5, 2.5, *[0, 0, 1, 1, 2, 2, 3, 3] * 2])[:18]
    for found, expected in zip(places.rope, rotation(grid_angles(rows, columns, 8, 100.0)), strict=True):
        assert torch.equal(found, expected)
    assert places.slot_T.tolist() == [0, 0, *[1, 2] * 8]
    assert places.offset_T.tolist() == [0, 0, 0, *([5, 14] * 8)[:15]]
    assert places.size_T.tolist() == [5, 5, *[9] * 16]
    part = places.part(3, 5)
    assert part.slot_T.tolist() == [2, 1] and torch.equal(part.rope[0], places.rope[0][3:5])


def test_what_was_made_while_drawing_also_serves_a_training() -> None:
    prior = model().train()
    tokens, labels = examples(prior)
    with torch.inference_mode():
        prior(tokens, labels)
    prior(tokens, labels).sum().backward()
    assert prior.blocks[0].attention.qkv.weight.grad.abs().sum() > 0
