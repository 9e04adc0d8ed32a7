"""Tables and charts of a report from what evaluations leave."""

from typing import Any

import numpy as np

from foundation.codes.usage import count_codes
from pipeline.report.curves import frequency_chart, prior_charts, tokenizer_charts
from pipeline.report.figures import class_bars, guidance_chart, position_maps, sample_table

TRAIN = [{"step": step, "loss_pixel": 1 / step, "loss": 2.0 / step} for step in (1, 2, 3)]
SCORES = {"step": 3, "psnr": 20.0, "code_usage": 0.5, "code_usage_0": 0.5, "code_perplexity": 9.0}


def test_curves_are_of_what_was_logged() -> None:
    assert tokenizer_charts([], []) == [] == prior_charts(TRAIN, [])
    titles = [chart.title for chart in tokenizer_charts(TRAIN, [SCORES])]
    assert titles == [
        "Tokenizer: training losses",
        "Tokenizer: reconstruction",
        "Tokenizer: codes in use",
        "Tokenizer: perplexity of the codes",
    ]
    assert len(tokenizer_charts(TRAIN, [{"step": 3, "psnr": 20.0}])) == 2, "a continuous latent has no codes"
    (bits,) = prior_charts(TRAIN, [{"step": 3, "bits_per_code": 1.0, "unigram_bits_per_code": 2.0}])
    assert [series.name for series in bits.series] == ["training, with dropout", "validation", "code frequencies alone"]


def test_an_adversary_has_curves_only_where_there_is_one() -> None:
    row = {"step": 4, "discriminator_loss": 1.0, "logits_real": 0.1, "logits_fake": -0.1, "adaptive_weight": 0.5}
    titles = {chart.title for chart in tokenizer_charts([*TRAIN, row], [SCORES])}
    assert {"Discriminator: logits", "Discriminator: loss and weight"} < titles


def test_frequencies_of_codes_fall() -> None:
    chart = frequency_chart({"train": count_codes(np.array([0, 1, 1, 1]), 4)})
    assert chart.series[0].ys == [0.75, 0.25, 0.0, 0.0] and "50.0% used" in chart.series[0].name


def test_likelihood_by_position_and_class() -> None:
    slots = [{"level": 0, "depth": depth, "bits": [[1.0, 2.0], [0.5, 0.25]]} for depth in range(2)]
    names = [{"class": f"c{i}", "images": 3, "bits_per_code": float(i)} for i in range(50)]
    found: dict[str, Any] = {"bits_by_place": slots, "bits_by_class": names, "metrics": {"bits_per_code": 1.0}}
    maps = position_maps(found)
    assert [each.title for each in maps] == [f"Bits per code by position, depth {i}" for i in (1, 2)]
    assert {(each.low, each.high) for each in maps} == {(0.25, 2.0)}
    (bars,) = class_bars(found)
    assert "The 20 hardest and the 20 easiest of 50 classes" in bars.caption and len(bars.bars) == 40
    assert bars.bars[0].name == "c49 (3)" and class_bars({**found, "bits_by_class": names[:1]}) == []
    assert position_maps({}) == [] == class_bars({})


def test_the_sweep_of_guidance_has_a_curve_for_each_schedule_in_order_of_the_scale() -> None:
    tried = [
        {"schedule": "constant", "schedule_power": 1.0, "schedule_start": 0.0, "guidance_scale": scale, "mean": mean}
        for scale, mean in ((3.0, 5.0), (1.0, 9.0), (2.0, 6.0))
    ]
    tried.append({**tried[0], "schedule": "power-cosine", "guidance_scale": 2.0})
    chart = guidance_chart({"tried": tried, "changed": True})
    assert [series.name for series in chart.series] == ["constant", "power-cosine 1"]
    assert list(chart.series[0].xs) == [1.0, 2.0, 3.0] and list(chart.series[0].ys) == [9.0, 6.0, 5.0]


def test_samples_stand_beside_real_images_with_their_interval() -> None:
    own = {"value": 0.5, "low": 0.4, "high": 0.6}
    figures = {"precision": {"samples": own, "real": {"value": 0.75}}, "density": {"samples": own, "real": None}}
    table = sample_table({"figures": figures})
    assert table.rows == [
        ("precision: samples among the real images", "50.0%", "40.0% to 60.0%", "75.0%"),
        ("density: how deep samples lie among the real images", "0.5", "0.4 to 0.6", ""),
    ]
