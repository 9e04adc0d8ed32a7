from stage1_tokenizer.health import codebook_health
from stage1_tokenizer.train import tokenizer_health


def row(step: int, usage: float, perplexity: float, possible: float = 1.0) -> dict:
    return {"kind": "held_out", "step": step, "code_usage": usage, "code_perplexity": perplexity,
            "code_usage_possible": possible}  # fmt: skip


def test_a_wasted_codebook_is_called_so_in_words() -> None:
    (sentence,) = codebook_health([row(0, 0.9, 300), row(100, 0.3, 200)])
    assert "wasted" in sentence and "30.0%" in sentence and "revive_below" in sentence
    assert codebook_health([row(100, 0.51, 200)]) == []


def test_a_held_out_set_too_small_to_use_the_codebook_raises_no_alarm() -> None:
    assert codebook_health([row(100, 0.3, 200, possible=0.4)]) == []
    assert codebook_health([row(100, 0.1, 200, possible=0.4)])


def test_a_sudden_fall_is_named_with_both_values() -> None:
    healthy = [row(100, 0.9, 600), row(200, 0.9, 610)]
    (sentence,) = codebook_health([*healthy, row(300, 0.8, 150)])
    assert "150" in sentence and "610" in sentence
    assert codebook_health([*healthy, row(300, 0.8, 250)]) == []


def test_a_fall_is_measured_against_the_last_few_evaluations_only() -> None:
    rows = [row(100, 0.9, 600), *(row(step, 0.8, 150) for step in range(200, 700, 100))]
    assert codebook_health(rows[:2]) and not codebook_health(rows)


def test_before_the_first_step_and_without_codes_nothing_is_said() -> None:
    assert codebook_health([]) == []
    assert codebook_health([row(0, 0.01, 3)]) == []
    assert codebook_health([{"step": 100, "psnr": 20.0}]) == []


def test_the_tokenizers_health_reads_both_kinds_of_rows() -> None:
    winning = [
        {"kind": "train", "step": step, "discriminator_loss": 0.0, "discriminator_accuracy_real": 1.0,
         "discriminator_accuracy_fake": 1.0}
        for step in range(0, 700, 10)
    ]  # fmt: skip
    sentences = tokenizer_health([*winning, row(100, 0.1, 3)])
    assert len(sentences) == 2 and "wasted" in sentences[0] and "discriminator" in sentences[1]
