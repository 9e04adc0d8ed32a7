"""The alarms of adversarial training."""

from __future__ import annotations

from foundation.config import from_dict
from foundation.images.config import Preprocess
from stage1_tokenizer.config import TokenizerConfig
from stage1_tokenizer.health import codebook_health, gan_health, latent_health
from stage1_tokenizer.tokenizer import TokenizerModel
from stage1_tokenizer.train import TokenizerTask


def row(step: int, usage: float, perplexity: float, possible: float = 1.0) -> dict:
    return {
        "kind": "held_out",
        "step": step,
        "code_usage": usage,
        "code_perplexity": perplexity,
        "code_usage_possible": possible,
    }


def health_of(quantizer: dict, rows: list[dict], **architecture: object) -> list[str]:
    """What a task with this quantizer says of these metrics."""
    sizes = {"base_width": 8, "width_multipliers": [1, 2], "norm_groups": 4, "latent_channels": 8}
    task = object.__new__(TokenizerTask)
    config = from_dict(TokenizerConfig, {**sizes, **architecture, "quantizer": quantizer})
    task.model = TokenizerModel(config, Preprocess(height=16, width=16))
    return task.health(rows)


def test_a_wasted_codebook_is_called_so_in_words() -> None:
    (sentence,) = codebook_health([row(0, 0.9, 300), row(100, 0.3, 200)], "fewer codes")
    assert "wasted" in sentence and "30.0%" in sentence and "set fewer codes" in sentence
    assert codebook_health([row(100, 0.51, 200)], "") == []


def test_a_held_out_set_too_small_to_use_the_codebook_raises_no_alarm() -> None:
    assert codebook_health([row(100, 0.3, 200, possible=0.4)], "") == []
    assert codebook_health([row(100, 0.1, 200, possible=0.4)], "")


def test_a_sudden_fall_is_named_with_both_values() -> None:
    healthy = [row(100, 0.9, 600), row(200, 0.9, 610)]
    (sentence,) = codebook_health([*healthy, row(300, 0.8, 150)], "")
    assert "150" in sentence and "610" in sentence
    assert codebook_health([*healthy, row(300, 0.8, 250)], "") == []


def test_a_fall_is_measured_against_the_last_few_evaluations_only() -> None:
    rows = [row(100, 0.9, 600), *(row(step, 0.8, 150) for step in range(200, 700, 100))]
    assert codebook_health(rows[:2], "") and not codebook_health(rows, "")


def test_before_the_first_step_and_without_codes_nothing_is_said() -> None:
    assert codebook_health([], "") == []
    assert codebook_health([row(0, 0.01, 3)], "") == []
    assert codebook_health([{"step": 100, "psnr": 20.0}], "") == []


def test_of_two_grids_the_one_that_collapsed_is_named() -> None:
    slots = {f"code_usage_{i}": usage for i, usage in enumerate((0.02, 1.0))}
    slots |= {f"code_perplexity_{i}": perplexity for i, perplexity in enumerate((1.0, 400.0))}
    slots |= {"code_usage_possible_0": 0.9, "code_usage_possible_1": 1.0}
    (sentence,) = health_of({"type": "vq", "codebook_size": 64}, [{**row(100, 0.51, 150), **slots}], coarse_halvings=1)
    assert "4 x 4 grid" in sentence and "2.0%" in sentence and "90.0% could be" in sentence


def test_of_several_depths_the_one_whose_use_fell_is_named() -> None:
    def at(step: int, last: float) -> dict:
        return {
            **row(step, 0.9, 100),
            **{f"code_usage_{i}": 0.9 for i in range(2)},
            "code_perplexity_0": 100.0,
            "code_perplexity_1": last,
        }

    (sentence,) = health_of({"type": "residual", "depth": 2}, [at(100, 90.0), at(200, 5.0)])
    assert "depth 2" in sentence and "fallen suddenly" in sentence and "90.0" in sentence


def test_a_gaussian_latent_that_says_nothing_is_called_silent() -> None:
    def training(active: float) -> list[dict]:
        return [{"kind": "train", "step": step, "active_channels": active} for step in (0, 10, 20, 30)]

    (sentence,) = health_of({"type": "kl", "width": 4}, training(1.0))
    assert "3 of 4 channels" in sentence and "weight" in sentence
    assert health_of({"type": "kl", "width": 4}, training(2.0)) == []
    assert latent_health(training(0.0)[:3], 4) == []  # two rows after the first step do not last yet


def test_both_kinds_of_rows_are_read() -> None:
    winning = [
        {
            "kind": "train",
            "step": step,
            "discriminator_loss": 0.0,
            "discriminator_accuracy_real": 1.0,
            "discriminator_accuracy_fake": 1.0,
        }
        for step in range(0, 700, 10)
    ]
    sentences = health_of({"type": "fsq"}, [*winning, row(100, 0.1, 3)])
    assert len(sentences) == 2 and "wasted" in sentences[0] and "discriminator" in sentences[1]


def rows(n: int, start: int = 0, **metrics: float | None) -> list[dict]:
    well = {
        "discriminator_loss": 0.8,
        "adaptive_weight": 3.0,
        "discriminator_accuracy_real": 0.7,
        "discriminator_accuracy_fake": 0.7,
    }
    return [{"step": start + 10 * i, **well, **metrics} for i in range(n)]


def test_all_is_well() -> None:
    assert gan_health(rows(200)) == []
    assert gan_health([]) == []
    assert gan_health([{"step": step, "loss": 1.0} for step in range(0, 2000, 10)]) == [], "not started yet"


def test_an_adaptive_weight_at_its_limit_for_500_steps() -> None:
    assert gan_health(rows(50, adaptive_weight=1e4)) == []
    [alarm] = gan_health(rows(51, adaptive_weight=1e4))
    assert "for 500 steps the adaptive weight" in alarm
    assert gan_health(rows(200, adaptive_weight=1e4) + rows(1, 2000)) == [], "it has come down"


def test_a_discriminator_that_wins() -> None:
    won = {"discriminator_accuracy_real": 1.0, "discriminator_accuracy_fake": 0.995}
    [alarm] = gan_health(rows(10) + rows(100, 100, **won))
    assert "for 990 steps the discriminator tells every" in alarm
    assert gan_health(rows(200, discriminator_accuracy_real=1.0)) == [], "it must win on both"


def test_metrics_that_are_missing_or_were_not_finite_raise_no_alarm() -> None:
    assert gan_health(rows(200, adaptive_weight=None, discriminator_accuracy_real=None)) == []
    plain = [{name: value for name, value in row.items() if name != "adaptive_weight"} for row in rows(200)]
    assert gan_health(plain) == []
