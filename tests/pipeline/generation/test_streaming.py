"""Rows as they are drawn: the same codes and pictures as a call, and no more work than was asked for."""

import pytest
import torch

from foundation.codes.spec import CodeLevel, CodeSpec
from foundation.errors import ConfigError, DataError
from foundation.images.config import Preprocess
from foundation.images.preview import Preview
from pipeline import ImageGenerator
from pipeline.generation.streaming import PartialImages
from stage2_prior.config import PriorConfig
from stage2_prior.prior import PriorModel


def test_the_last_rows_are_the_call(untrained: ImageGenerator) -> None:
    how = {"seed": 3, "guidance_scale": 2.0, "top_k": 20, "batch_size": 2}
    whole = untrained(["a", "b", "c"], output_type="pt", **how)
    parts = list(untrained.stream(["a", "b", "c"], **how))
    assert [(part.images, part.n_done) for part in parts] == [
        *[(slice(0, 2), row) for row in (1, 2, 3, 4)],
        *[(slice(2, 3), row) for row in (1, 2, 3, 4)],
    ]
    last = [part for part in parts if part.is_last]
    assert torch.equal(torch.cat([part.codes for part in last]), whole.codes)
    assert torch.equal(torch.cat([part.decode("pt") for part in last]), whole.images)
    for part in parts:
        expected = whole.codes[part.images]
        assert torch.equal(part.codes[:, : part.n_done], expected[:, : part.n_done])
        assert bool((part.codes[:, part.n_done :] == -1).all())
        shown = part.decode("pt")
        assert bool((shown[:, :, part.n_done * 2 :] == 0).all()) and shown.shape == (len(expected), 1, 8, 12)
    assert torch.equal(parts[0].decode("latent"), parts[0].codes)


def test_the_callback_sees_what_the_iterator_yields(untrained: ImageGenerator) -> None:
    seen: list[PartialImages] = []
    out = untrained("a", 2, seed=1, callback_on_row=lambda generator, part: seen.append(part))
    streamed = list(untrained.stream("a", 2, seed=1))
    assert [part.n_done for part in seen] == [1, 2, 3, 4]
    assert all(torch.equal(one.codes, other.codes) for one, other in zip(seen, streamed, strict=True))
    assert torch.equal(seen[-1].codes, out.codes)


def test_a_loop_that_stops_computes_no_more_than_was_seen(
    untrained: ImageGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stage2_prior.decoding.decode import BatchDecoder

    taken: list[int] = []
    real = BatchDecoder.step
    monkeypatch.setattr(BatchDecoder, "step", lambda self, position: taken.append(position) or real(self, position))
    rows = untrained.stream("a", seed=1)
    assert taken == []
    next(rows)
    assert taken == list(range(6))


def test_a_row_of_several_levels_and_depths_is_one_of_the_finest_grid() -> None:
    levels = (CodeLevel(height=1, width=2, codebook_size=4), CodeLevel(height=2, width=4, codebook_size=6, depth=2))
    spec = CodeSpec(levels=levels, stride=4, preprocess=Preprocess(height=8, width=16, mode="L"), fingerprint="f")

    class Painted(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.spec, self.preview = spec, Preview(spec.preprocess)

        def decode(self, codes: torch.Tensor) -> torch.Tensor:
            assert int(codes.min()) >= 0, "only codes reach the tokenizer"
            return torch.ones(len(codes), 1, 8, 16)

    generator = ImageGenerator(Painted(), PriorModel(PriorConfig(d_model=16, n_layers=1, n_heads=2), spec))  # type: ignore[arg-type]
    parts = list(generator.stream(None, 2, seed=0))
    assert [part.n_done for part in parts] == [1, 2]
    assert int((parts[0].codes[0] >= 0).sum()) == 2 + 8
    assert bool((parts[0].decode("pt")[:, :, :4] == 1).all()) and bool((parts[0].decode("pt")[:, :, 4:] == 0).all())


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"best_of": 2}, "best_of"),
        ({"class_labels": "z"}, "class_labels"),
        ({"temperature": -1.0}, "temperature"),
        ({"num_images_per_label": 0}, "num_images_per_label"),
        ({"guidance_scales": 2.0}, "guidance_scales"),
    ],
)
def test_a_wrong_stream_is_refused_before_the_first_row(untrained: ImageGenerator, arguments: dict, field: str) -> None:
    with pytest.raises((ConfigError, DataError), match=f"^{field}"):
        untrained.stream(**arguments)
