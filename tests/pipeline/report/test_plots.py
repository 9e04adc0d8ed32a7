"""Plots of a report are inline pictures; what is absent leaves no figure."""

from __future__ import annotations

import base64
import io
import re
from typing import Any

import numpy as np
from PIL import Image

from foundation.codes.usage import count_codes
from pipeline.report.plots import (
    adversary_plot,
    class_plot,
    likelihood_rows,
    picture,
    position_plot,
    prior_plot,
    tokenizer_plot,
    usage_plot,
)

TRAIN = [{"step": step, "loss_pixel": 1 / step, "loss": 2.0 / step} for step in (1, 2, 3)]
SCORES = {"psnr": 20.0, "code_usage": 0.5, "code_usage_0": 0.5, "code_perplexity": 9.0}


def figures(page: str) -> list[Image.Image]:
    """Decode the inline pictures of a piece of HTML."""
    return [Image.open(io.BytesIO(base64.b64decode(each))) for each in re.findall(r"base64,([^']+)", page)]


def test_a_picture_survives_the_page_and_its_caption_is_escaped() -> None:
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    (found,) = figures(picture(Image.fromarray(pixels), "a <b> & 'c'"))
    assert np.array_equal(np.asarray(found), pixels)
    assert "alt='a &lt;b&gt; &amp; &#x27;c&#x27;'" in picture(Image.fromarray(pixels), "a <b> & 'c'")


def test_curves_need_both_training_and_validation() -> None:
    validation = [{"step": 3, "bits_per_code": 1.0, "unigram_bits_per_code": 2.0, **SCORES}]
    assert tokenizer_plot(TRAIN, []) == tokenizer_plot([], validation) == prior_plot(TRAIN, []) == ""
    assert len(figures(tokenizer_plot(TRAIN, validation))) == len(figures(prior_plot(TRAIN, validation))) == 1
    assert "dotted for each codebook" in tokenizer_plot(TRAIN, validation)
    assert len(figures(tokenizer_plot(TRAIN, [{"step": 3, "psnr": 20.0}]))) == 1  # a continuous latent


def test_an_adversary_is_plotted_only_where_there_is_one() -> None:
    assert adversary_plot(TRAIN) == ""
    rows = [{"step": 1, "discriminator_loss": 1.0, "logits_real": 0.1, "logits_fake": -0.1, "adaptive_weight": 0.5}]
    assert len(figures(adversary_plot(TRAIN + rows))) == 1


def test_codebooks_are_plotted_two_in_a_figure() -> None:
    usages = {
        name: count_codes(np.array([0, 0, 0, 1]), 4) for name in ("train", "validation, depth 1", "validation, depth 2")
    }
    page = usage_plot(usages)
    assert len(figures(page)) == 2 and "train; validation, depth 1" in page


def test_likelihood_by_position_and_class() -> None:
    slots = [{"level": 0, "depth": depth, "bits": [[1.0, 2.0], [0.5, 0.25]]} for depth in range(4)]
    names = [{"class": f"c{i}", "images": 3, "bits_per_code": float(i)} for i in range(50)]
    metrics = {"bits_per_code": 1.0, "bits_per_value": 0.5}
    metrics |= {"count_unigram_bits_per_code": 3.0, "count_neighbour_bits_per_code": 2.0}
    found: dict[str, Any] = {"bits_by_place": slots, "bits_by_class": names, "metrics": metrics}
    assert len(figures(position_plot(found))) == 2
    assert "the 20 hardest and the 20 easiest of 50 classes" in class_plot(found)
    assert class_plot({**found, "bits_by_class": names[:1]}) == ""
    assert [value for _, value in likelihood_rows(found)] == ["3.000", "2.000", "0.5000"]
