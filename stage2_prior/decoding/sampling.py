"""Sampling settings: temperature, filters of probabilities, and classifier-free guidance with its schedules.

A schedule is a function with an entry in ``SCHEDULES`` and ``Schedule``; a filter is a function with an entry in
``FILTERS`` and a field of the same name in ``SamplingConfig``. The command line, the API and recipes derive from these.
Imports neither torch nor numpy, so that a recipe is read without them.

Source of guidance: Ho and Salimans 2022, arXiv:2207.12598, Eq. 6.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from foundation.config import check_types, require
from foundation.config_fields import added_later

if TYPE_CHECKING:
    import numpy as np
    import torch

    from stage2_prior.decoding.filters import Filters


MAX_GUIDANCE = 1000.0
MIN_TEMPERATURE = 1e-5
_SMALLEST = 2.0**-126
"""of normal float32 numbers"""
GUIDANCE = ("guidance_scale", "schedule", "schedule_power", "schedule_start", "guidance_interval")
"""fields of ``SamplingConfig`` that say how guidance acts"""
Order = Literal["auto", "raster", "halton", "random", "confidence"]
Schedule = Literal["constant", "linear", "cosine", "power-cosine", "step"]


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How codes are sampled from the prior."""

    guidance_scale: float = 1.0
    """how closely the class is followed, 0 or more; classifier-free guidance: 1 is the plain class-conditional
    distribution, 0 that of all classes together"""
    schedule: Schedule = "constant"
    """how guidance grows; over the codes of an image, constant uses guidance_scale throughout; linear starts at 1 and
    ends at guidance_scale; cosine does so along a quarter of a wave, slowly at first; power-cosine stays near 1 for
    longer, see schedule_power; step is 1 before schedule_start"""
    schedule_power: float = 1.0
    """power-cosine only: a larger power begins later; the strength at share x of the codes is
    (1 - cos(pi * x ** power)) / 2"""
    schedule_start: float = 0.18
    """step only: share of the codes before guidance begins, 0 to 1"""
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    """shares of the codes between which guidance acts; outside it the scale is 1"""
    temperature: float = 1.0
    """divides the logits; 0 (and anything below 0.00001) always takes the likeliest code"""
    top_k: int | None = None
    """sample from the k likeliest codes only; those tied with the last of them stay; null samples from all"""
    top_p: float | None = None
    """sample from the likeliest codes that reach this total probability; the smallest such set, and those tied with its
    last; null samples from all"""
    min_p: float | None = added_later(None)
    """sample from codes at least this many times as likely as the likeliest; 0 to 1; null samples from all"""
    typical_p: float | None = added_later(None)
    """sample from the codes whose surprise is closest to the entropy; as many as reach this total probability, and
    those as close as the last of them; null samples from all"""
    order: Order = added_later("auto")
    """of codes, where prior.model.order is any or masked; raster goes row by row; halton spreads them evenly from the
    first code on; random is another order for each seed; confidence takes the likeliest of each pass, of a masked
    prior; auto is raster, or confidence of a masked prior"""
    passes: int | None = added_later(None)
    """passes over the prior for an image, with several codes in each; few at first, by the cosine schedule; for priors
    of order any or masked; null takes one for each code, or 16 in order of confidence"""
    confidence_noise: float = added_later(4.5)  # type: ignore[assignment]
    """order confidence only; Gumbel noise on the logarithm of confidence, times the share of the passes to come; 0 or
    more: the more, the more varied"""
    random: Literal["inverse", "gumbel"] = added_later("inverse")
    """how a code is drawn; inverse: by the inverse of the cumulative probabilities; gumbel: as the largest of log p
    plus noise; each has its own images for a seed, and gumbel takes fewer passes with a window"""
    window: int | None = added_later(None)
    """most codes that one pass may guess ahead and keep where the guess was right, with the same codes as 1, which
    takes one at a time; null tries what is faster where few images are sampled, on a CPU only with
    gumbel or a temperature of 0"""
    entropy_temperature: tuple[float, float, float] | None = added_later(None)
    """a, b, c of a second temperature, a * exp(-entropy / b) + c; it acts after the first, with the entropy in nats of
    each code's distribution: a + c where the code is certain, about c where many are likely; null leaves it out"""

    def __post_init__(self) -> None:
        check_types(self)
        scale, power, start = self.guidance_scale, self.schedule_power, self.schedule_start
        require(0 <= scale <= MAX_GUIDANCE, "guidance_scale", scale, f"a number from 0 to {MAX_GUIDANCE:g}")
        require(self.schedule in SCHEDULES, "schedule", self.schedule, "one of " + ", ".join(SCHEDULES))
        require(math.isfinite(power) and power > 0, "schedule_power", power, "a finite number above 0")
        require(0 <= start <= 1, "schedule_start", start, "a share from 0 to 1")
        interval = self.guidance_interval
        ordered = len(interval) == 2 and 0 <= interval[0] <= interval[1] <= 1
        require(ordered, "guidance_interval", interval, "two shares from 0 to 1, the first at most the last")
        hot = math.isfinite(self.temperature) and self.temperature >= 0
        require(hot, "temperature", self.temperature, "a finite number, 0 or more")
        orders, passes, noise = get_args(Order), self.passes, self.confidence_noise
        require(self.order in orders, "order", self.order, "one of " + ", ".join(orders))
        require(self.random in ("inverse", "gumbel"), "random", self.random, "inverse or gumbel")
        require(self.window is None or self.window >= 1, "window", self.window, "1 or more, or null")
        require(passes is None or passes >= 1, "passes", passes, "1 or more, or null")
        require(math.isfinite(noise) and noise >= 0, "confidence_noise", noise, "a finite number, 0 or more")
        for name, each in FILTERS.items():
            value = getattr(self, name)
            require(value is None or each.allows(value), name, value, f"{each.allowed}, or null")

    @property
    def takes_likeliest(self) -> bool:
        """Whether the temperature is so low that the likeliest code is always taken."""
        return self.temperature < MIN_TEMPERATURE

    def filters(self) -> list[tuple[ApplyFilter, Any]]:
        """The filters that are on, in the order in which they act, with their values."""
        values = [(each.apply, getattr(self, name)) for name, each in FILTERS.items()]
        return [(apply, value) for apply, value in values if value is not None]


def constant(share_T: np.ndarray, sampling: SamplingConfig) -> np.ndarray:
    """1 throughout."""
    return share_T * 0 + 1


def linear(share_T: np.ndarray, sampling: SamplingConfig) -> np.ndarray:
    """Strength t / (T - 1): Chang et al. 2023, arXiv:2301.00704, section 2.7, over the tokens of an image."""
    import numpy as np

    return np.linspace(0.0, 1.0, len(share_T)) if len(share_T) > 1 else np.ones(1)


def cosine(share_T: np.ndarray, sampling: SamplingConfig) -> np.ndarray:
    """1 - cos(pi / 2 * t / (T - 1)): Chang et al. 2022, arXiv:2202.04200, section 3.3, where it is the share of codes
    that are known after share t of the steps.
    """
    import numpy as np

    return 1 - np.cos(np.pi / 2 * linear(share_T, sampling))


def power_cosine(share_T: np.ndarray, sampling: SamplingConfig) -> np.ndarray:
    """(1 - cos(pi * (t / T) ** p)) / 2 with p the ``schedule_power``: Yu et al. 2024, arXiv:2411.00776, appendix; the
    first codes are sampled freely, the last ones close to the class.
    """
    import numpy as np

    return (1 - np.cos(np.pi * share_T**sampling.schedule_power)) / 2


def step(share_T: np.ndarray, sampling: SamplingConfig) -> np.ndarray:
    """0 for the first ``schedule_start`` of the codes, then 1."""
    return (share_T >= sampling.schedule_start).astype(float)


SCHEDULES: dict[Schedule, Callable[[np.ndarray, SamplingConfig], np.ndarray]] = {
    "constant": constant,
    "linear": linear,
    "cosine": cosine,
    "power-cosine": power_cosine,
    "step": step,
}
"""name => function from the share of the codes before each of T, (T,) float64 t / T, to the strength, (T,) in 0..1"""
ApplyFilter = Callable[["torch.Tensor", Any, "Filters"], "torch.Tensor"]


class SamplingFilter(NamedTuple):
    """One change of probabilities.

    Attributes:
        apply: (probs_BV, value, filters) => probs_BV with zeros, or other proportions, in place; ``filters`` holds
            memory and what is fast on the device.
        allows: whether a value is in range.
        allowed: the range in words.
    """

    apply: ApplyFilter
    allows: Callable[[Any], bool]
    allowed: str


def top_k(probs_BV: torch.Tensor, k: int, filters: Filters) -> torch.Tensor:
    """Keep the k likeliest codes of each row."""
    return filters.keep_top_k(probs_BV, k)


def top_p(probs_BV: torch.Tensor, p: float, filters: Filters) -> torch.Tensor:
    """Nucleus sampling: Holtzman et al. 2020, arXiv:1904.09751, section 3.1."""
    return filters.keep_top_p(probs_BV, p)


def min_p(probs_BV: torch.Tensor, p: float, filters: Filters) -> torch.Tensor:
    """Keep the codes with at least p times the probability of the likeliest: Nguyen et al. 2024, arXiv:2407.01082."""
    return filters.keep_from(probs_BV, probs_BV.amax(1, keepdim=True) * p)


def typical_p(probs_BV: torch.Tensor, p: float, filters: Filters) -> torch.Tensor:
    """Locally typical sampling: Meister et al. 2022, arXiv:2202.00666, section 5."""
    return filters.keep_typical(probs_BV, p)


def entropy_temperature(probs_BV: torch.Tensor, factors: tuple[float, float, float], filters: Filters) -> torch.Tensor:
    """A temperature that falls with the entropy of each row: Ma et al. 2025, arXiv:2510.09012."""
    rise, decay, least = factors
    entropy_B1 = (probs_BV * probs_BV.clamp_min(_SMALLEST).log_()).sum(1, keepdim=True).neg_()
    temperature_B1 = (entropy_B1 / -decay).exp_().mul_(rise).add_(least)
    scaled_BV = probs_BV.div_(probs_BV.amax(1, keepdim=True)).pow_(1 / temperature_B1)
    return scaled_BV.div_(scaled_BV.sum(1, keepdim=True))


def _are_factors(values: tuple[float, float, float]) -> bool:
    rise, decay, least = values
    return all(math.isfinite(each) for each in values) and rise >= 0 and decay > 0 and least >= MIN_TEMPERATURE


FILTERS = {
    "entropy_temperature": SamplingFilter(
        entropy_temperature, _are_factors, "three finite numbers: a 0 or more, b above 0, c 0.00001 or more"
    ),
    "top_k": SamplingFilter(top_k, lambda k: k >= 1, "at least 1"),
    "top_p": SamplingFilter(top_p, lambda p: 0 < p <= 1, "above 0 and up to 1"),
    "min_p": SamplingFilter(min_p, lambda p: 0 <= p <= 1, "from 0 to 1"),
    "typical_p": SamplingFilter(typical_p, lambda p: 0 < p <= 1, "above 0 and up to 1"),
}
"""field of ``SamplingConfig`` => filter, in the order in which they act"""


def guidance_scales(sampling: SamplingConfig, n_codes: int) -> np.ndarray:
    """The scale of each of T codes, (T,) float64: 1 + (s - 1) * strength, s the ``guidance_scale``.

    Outside ``guidance_interval`` the scale is 1 (Kynkaanniemi et al. 2024, arXiv:2404.07724, section 3, with the share
    of codes sampled instead of the noise level).
    """
    import numpy as np

    share_T = np.arange(n_codes) / n_codes
    strength_T = SCHEDULES[sampling.schedule](share_T, sampling)
    scales_T = np.where(strength_T == 1, sampling.guidance_scale, 1 + (sampling.guidance_scale - 1) * strength_T)
    first, last = sampling.guidance_interval
    return np.where((share_T >= first) & (share_T < last), scales_T, 1.0)


def guide(conditional_BV: torch.Tensor, unconditional_BV: torch.Tensor, scale: float | torch.Tensor) -> torch.Tensor:
    """Logits of the guided distribution, u + scale * (c - u), as an interpolation between the two.

    Scale 1 gives the conditional logits and scale 0 the unconditional ones, exactly. Both must be finite: of a prior
    whose codebooks differ in size, pass the logits of the position's own codebook.
    """
    return unconditional_BV.lerp(conditional_BV, scale)
