"""The alarms of adversarial training."""

from stage1_tokenizer.losses.gan_health import gan_health


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
