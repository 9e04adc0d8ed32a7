"""A thousand hostile requests: each is refused by name or served; none crashes, none takes memory without bound."""

import numpy as np
import pytest
import torch
from support.peak_memory import PeakGrowth

from foundation.errors import ConfigError, ContractError, DataError
from pipeline import ImageGenerator
from pipeline.generation.options import DrawOptions, SamplingOptions
from pipeline.generation.requests import settings_of
from stage2_prior.config import PriorConfig
from stage2_prior.decoding.sampling import SamplingConfig
from stage2_prior.prior import PriorModel

HUGE = 10**15
STRANGE = (
    None,
    True,
    False,
    -1,
    0,
    1,
    2,
    HUGE,
    -HUGE,
    2**80,
    0.5,
    -0.5,
    1.0,
    1e300,
    float("nan"),
    float("inf"),
    -float("inf"),
    "",
    "a",
    "zebra",
    "3",
    "\x00",
    "9" * 5000,
    b"a",
    [],
    [1],
    ["a", "b"],
    [None],
    [float("nan")],
    ["a"] * 300,
    {},
    {"a": 1},
    (0.2, 0.8),
    (0.8, 0.2),
    object(),
    lambda *_: None,
    np.nan,
    np.int64(2),
    np.zeros(0),
    np.zeros((3, 8, 12)),
    np.ones((8, 12), bool),
    torch.tensor(1),
    torch.zeros(0),
    torch.zeros(1, 4, 6, dtype=torch.int64),
    torch.full((2, 1, 8, 12), 0.3),
    torch.full((1, 1, 8, 12), float("nan")),
    torch.zeros(2, 4, 6, dtype=torch.bool),
    torch.zeros(8, 12, dtype=torch.uint8),
)
ORDINARY = (None, 1, 2, 3, 0.5, 1.0, "a")
COMMON = (*DrawOptions.__annotations__, "no_such_option")
METHODS = {
    "__call__": (
        "class_labels",
        "num_images_per_label",
        "height",
        "width",
        "callback_on_step_end",
        "callback_on_row",
        "callback_on_step_end_tensor_inputs",
    ),
    "stream": ("class_labels", "num_images_per_label"),
    "complete": ("class_labels", "num_images", "rows", "guess_class"),
    "inpaint": ("mask", "class_labels", "num_images", "grow", "blend", "guess_class"),
    "vary": ("share", "class_labels", "num_images"),
    "change_class": ("class_labels", "num_images", "share"),
    "interpolate": ("class_label", "steps"),
}


def usable(images: object) -> bool:
    return isinstance(images, torch.Tensor) and images.ndim == 4


def a_request(rng: np.random.Generator) -> tuple[str, list, dict]:
    def strange() -> object:
        values = ORDINARY if rng.random() < 0.3 else STRANGE
        return values[rng.integers(len(values))]

    name = list(METHODS)[rng.integers(len(METHODS))]
    images = torch.full((2, 1, 8, 12), 0.3) if rng.random() < 0.8 else strange()
    positional = {
        "__call__": [],
        "stream": [],
        "interpolate": [images[:1], images[1:]] if usable(images) else [images, 1],
    }
    arguments = positional.get(name, [images])
    given: dict = {
        "complete": {"rows": 2},
        "inpaint": {"mask": np.ones((8, 12), bool)},
        "vary": {"share": 0.5},
        "change_class": {"class_labels": "a"},
        "interpolate": {"steps": 3},
    }.get(name, {})
    own, n_changes = METHODS[name], int(rng.integers(0, 4)) // 2 + 1
    changed = [(own if rng.random() < 0.6 else COMMON) for _ in range(n_changes)]
    return name, arguments, {**given, **{names[rng.integers(len(names))]: strange() for names in changed}}


@pytest.mark.parametrize("n", [300, pytest.param(1000, marks=pytest.mark.slow)])
def test_hostile_requests_are_refused_by_name_or_served(untrained: ImageGenerator, n: int) -> None:
    rng = np.random.default_rng(0)
    served, refused = 0, 0
    with PeakGrowth() as grown:
        for _ in range(n):
            name, positional, options = a_request(rng)
            torch.manual_seed(0)
            try:
                result = getattr(untrained, name)(*positional, **options)
                if name == "stream":
                    result = next(result)
                served += 1
                assert len(result.codes)
            except (ConfigError, DataError) as error:
                refused += 1
                assert error.field is not None, f"{name} {options}: {error}"
                assert len(str(error)) < 10_000
    assert served > n / 10 and refused > n / 2
    assert grown.mib < 1024, "all of them together"


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"num_images_per_label": HUGE}, "images"),
        ({"best_of": HUGE}, "images"),
        ({"class_labels": "9" * 5000}, "class_labels"),
        ({"guidance_interval": (0.9, 0.1)}, "guidance_interval"),
        ({"schedule": "square"}, "schedule"),
        ({"schedule_start": 2.0}, "schedule_start"),
        ({"seed": []}, "seed"),
        ({"seed": "7"}, "seed"),
        ({"num_images_per_label": True}, "num_images_per_label"),
        ({"tempreature": 1.0}, "tempreature"),
        ({"batch_size": 1.5}, "batch_size"),
    ],
)
def test_a_refusal_names_the_option(untrained: ImageGenerator, arguments: dict, field: str) -> None:
    with pytest.raises((ConfigError, DataError), match=f"^{field}: "):
        untrained(**{"class_labels": "a", **arguments})


def test_an_unknown_option_names_the_nearest(untrained: ImageGenerator) -> None:
    with pytest.raises(ConfigError, match="did you mean 'temperature'"):
        untrained("a", temprature=1.0)  # type: ignore[call-arg]


def test_a_prior_without_label_dropout_is_not_guided_and_needs_a_class(untrained: ImageGenerator) -> None:
    sure = ImageGenerator(untrained.tokenizer, untrained.prior, label_dropout=0)
    assert torch.equal(sure("a", seed=0).codes, untrained("a", seed=0).codes)
    with pytest.raises(ConfigError, match=r"^guidance_scale: (.|\n)*found: +2(.|\n)*label_dropout"):
        sure("a", guidance_scale=2.0)
    for method, arguments in (("__call__", {}), ("vary", {"images": torch.zeros(1, 1, 8, 12), "share": 0.5})):
        with pytest.raises(ConfigError, match=r"^class_labels: is needed"):
            getattr(sure, method)(**arguments)
    assert sure.change_class(torch.zeros(1, 1, 8, 12), "b", seed=0).labels == [1]
    unknown = ImageGenerator(untrained.tokenizer, untrained.prior)
    assert unknown("a", guidance_scale=2.0).labels == [0] and unknown().labels == [None]


def test_an_unconditional_prior_has_no_classes_to_miss(untrained: ImageGenerator) -> None:
    prior = PriorModel(PriorConfig(d_model=16, n_layers=1, n_heads=2, class_conditional=False), untrained.spec)
    generator = ImageGenerator(untrained.tokenizer, prior, label_dropout=0)
    assert generator(None, 2).labels == [None, None]
    with pytest.raises(DataError, match=r"^class_labels"):
        generator.change_class(torch.zeros(1, 1, 8, 12), "a")


def test_the_options_are_those_of_the_sampling_config() -> None:
    import dataclasses

    fields = {each.name for each in dataclasses.fields(SamplingConfig)}
    assert set(SamplingOptions.__annotations__) == fields
    defaults = SamplingConfig(temperature=0.5, top_k=7)
    assert settings_of({"top_k": None}, defaults).sampling == defaults


def test_parts_that_do_not_belong_together_are_refused(untrained: ImageGenerator) -> None:
    other = PriorModel(untrained.prior.config, untrained.spec.with_classes(("a", "b")))
    assert ImageGenerator(untrained.tokenizer, other).labels == {"a": 0, "b": 1}
    import dataclasses

    wrong = PriorModel(untrained.prior.config, dataclasses.replace(untrained.spec, fingerprint="x"))
    with pytest.raises(ContractError, match="fingerprint"):
        ImageGenerator(untrained.tokenizer, wrong)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"schedule": "cosine"}, "schedule"),
        ({"guidance_interval": (0.0, 0.5)}, "guidance_interval"),
        ({"guidance_scale": 2.0, "schedule_power": 2.0}, "schedule_power"),
        ({"guidance_scale": 2.0, "schedule_start": 0.5}, "schedule_start"),
        ({"temperature": 0, "top_k": 3}, "top_k"),
        ({"temperature": 0, "best_of": 2}, "best_of"),
    ],
)
def test_a_given_setting_that_cannot_act_is_refused(untrained: ImageGenerator, options: dict, name: str) -> None:
    with pytest.raises(ConfigError, match=f"^{name}: has no effect"):
        untrained("a", **options)


def test_guidance_that_is_given_needs_classes(untrained: ImageGenerator, pictures: torch.Tensor) -> None:
    for call in (
        lambda: untrained(None, guidance_scale=2.0),
        lambda: untrained.vary(pictures, 0.5, guidance_scale=2.0),
        lambda: untrained.interpolate(1, 2, guidance_scale=2.0),
        lambda: next(iter(untrained.stream(guidance_scale=2.0))),
    ):
        with pytest.raises(ConfigError, match=r"^guidance_scale: has no effect without a class"):
            call()
    prior = PriorModel(PriorConfig(d_model=16, n_layers=1, n_heads=2, class_conditional=False), untrained.spec)
    with pytest.raises(ConfigError, match=r"^guidance_scale: has no effect: this prior knows no classes"):
        ImageGenerator(untrained.tokenizer, prior)(guidance_scale=2.0)
    assert untrained(None, guidance_scale=1.0, seed=0).labels == [None]
    with pytest.raises(ConfigError, match=r"^top_k: has no effect between two images"):
        untrained.interpolate(pictures[:1], pictures[1:2], top_k=3)
