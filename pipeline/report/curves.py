"""The curves of a run: losses, quality and use of codes over the steps, and frequencies of codes."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from foundation.codes.usage import CodeUsage
from pipeline.report.charts import Chart, Series

Lines = Sequence[Mapping[str, Any]]
_STEP = "step"
_LOSS = "loss_"


def tokenizer_charts(train: Lines, validation: Lines) -> list[Chart]:
    """Losses, reconstruction and use of codes over the steps of stage 1."""
    charts = []
    if train:
        names = sorted({name for row in train for name in row if name.startswith(_LOSS)})
        losses = [_series(train, name, name.removeprefix(_LOSS)) for name in names]
        caption = "Each term of the loss, without its weight."
        charts.append(Chart("Tokenizer: training losses", _STEP, "loss", losses, caption, log=True))
    if validation:
        psnr = _series(validation, "psnr", "PSNR", dots=True)
        charts.append(Chart("Tokenizer: reconstruction", _STEP, "dB", [psnr], "Validation PSNR; higher is better."))
        rfid = sorted({name for row in validation for name in row if name.startswith("rfid_")})
        if rfid:
            found = [_series(validation, name, name.removeprefix("rfid_"), dots=True) for name in rfid]
            charts.append(Chart("Tokenizer: rFID", _STEP, "rFID", found, "Of validation images; lower is better."))
        charts += _usage_charts(validation)
    return [*charts, *_adversary_charts(train)]


def _usage_charts(validation: Lines) -> list[Chart]:
    if not any("code_usage" in row for row in validation):
        return []
    own = sorted({name for row in validation for name in row if re.fullmatch(r"code_usage_\d+", name)})
    shares = [_series(validation, "code_usage", "all", dots=True)]
    shares += [_series(validation, name, f"codebook {int(name.split('_')[-1]) + 1}", dashed=True) for name in own]
    perplexity = [_series(validation, "code_perplexity", "perplexity", dots=True)]
    used, even = "Share of the codes that validation images use.", "2 to the entropy of the codes, in bits."
    return [
        Chart("Tokenizer: codes in use", _STEP, "share", shares, used, low=0.0, high=1.0),
        Chart("Tokenizer: perplexity of the codes", _STEP, "codes", perplexity, even, low=0.0),
    ]


def _adversary_charts(train: Lines) -> list[Chart]:
    rows = [row for row in train if "discriminator_loss" in row]
    if not rows:
        return []
    logits = [_series(rows, "logits_real", "images"), _series(rows, "logits_fake", "reconstructions")]
    apart = "Mean logits. Where they stay apart, the discriminator has won and its gradient is useless."
    names = {"discriminator_loss": "discriminator loss", "adaptive_weight": "adaptive weight"}
    losses = [_series(rows, name, says) for name, says in names.items() if name in rows[-1]]
    return [
        Chart("Discriminator: logits", _STEP, "logit", logits, apart),
        Chart("Discriminator: loss and weight", _STEP, "", losses, log=True),
    ]


def prior_charts(train: Lines, validation: Lines) -> list[Chart]:
    """Bits per code over the steps of stage 2."""
    if not validation:
        return []
    bits = [None if row.get("loss") is None else row["loss"] / math.log(2) for row in train]
    series = [Series("training, with dropout", [row["step"] for row in train], bits)] if train else []
    series.append(_series(validation, "bits_per_code", "validation", dots=True))
    normal = validation[-1].get("unigram_bits_per_code")
    if normal is not None:
        last = max(each.xs[-1] for each in series if each.xs)
        series.append(Series("code frequencies alone", [0, last], [normal, normal], dashed=True))
    caption = "Lower is better. Where the validation curve rises while training falls, the prior overfits."
    return [Chart("Prior: bits per code", _STEP, "bits", series, caption)]


def frequency_chart(usages: Mapping[str, CodeUsage]) -> Chart:
    """How often each code occurs, the most frequent first, a curve for each name."""
    series = []
    for name, usage in usages.items():
        used = np.sort(usage.counts_U)[::-1] / max(1, usage.n_codes)
        ordered = np.concatenate([used, np.zeros(usage.codebook_size - len(used))])
        says = f"{name}: {usage.share_used:.1%} used, perplexity {usage.perplexity:,.0f}"
        series.append(Series(says, list(range(1, len(ordered) + 1)), ordered.tolist()))
    caption = "A flat curve with a steep end: the codebook is used evenly."
    return Chart(
        "How often codes occur", "codes, the most frequent first", "share of all codes", series, caption, log=True
    )


def _series(rows: Lines, name: str, says: str, *, dashed: bool = False, dots: bool = False) -> Series:
    return Series(says, [row["step"] for row in rows], [row.get(name) for row in rows], dashed, dots)
