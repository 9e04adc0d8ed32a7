"""Settings in the older form, in which fields of the networks stood beside the others, mean what they meant."""

import subprocess
import sys
from pathlib import Path

import pytest

from foundation.config import digest, from_dict, to_dict
from foundation.config_fields import without_defaults
from foundation.errors import ConfigError
from pipeline.runs.recipe import load_recipe
from stage1_tokenizer.config import TokenizerConfig
from stage1_tokenizer.networks.config import DVAENetworks, Magvit2Networks, VQGANNetworks

FLAT = {"base_width": 8, "width_multipliers": [1, 2], "n_res_blocks": 1, "norm_groups": 4}
LFQ, GUMBEL = {"type": "lfq", "width": 6}, {"type": "gumbel", "codebook_size": 16, "width": 8}
OTHERS = {"patch_size": 1, "attention_levels": [], "middle_attention": False, "dropout": 0.0}
VQ = {"type": "vq", "codebook_size": 16, "width": 4}
# Digests by the code of commit 972168e, which knew no other form.
STORED = {
    "vqgan": (
        {**FLAT, "latent_channels": 8, "patch_size": 2, "dropout": 0.1, "quantizer": VQ},
        VQGANNetworks(base_width=8, width_multipliers=(1, 2), n_res_blocks=1, norm_groups=4, patch_size=2, dropout=0.1),
        "29abedf2b4391803a4ac7dcb2f556e02440f90a3a7662855a43b9e8d6d7a177a",
    ),
    "magvit2": (
        {**FLAT, **OTHERS, "networks": "magvit2", "projection": "none", "latent_channels": 6, "quantizer": LFQ},
        Magvit2Networks(base_width=8, width_multipliers=(1, 2), n_res_blocks=1, norm_groups=4),
        "165c9ef7cb439e5eafb1ba317b323340a1c5b0448425a45a62fdb822cbfbff8e",
    ),
    "dvae": (
        {**FLAT, **OTHERS, "networks": "dvae", "projection": "none", "latent_channels": 8, "quantizer": GUMBEL},
        DVAENetworks(base_width=8, width_multipliers=(1, 2), n_res_blocks=1, norm_groups=4),
        "edecfd59b631cb5da9fce18306d87cf01ea57928e18404462ecf0711af14699e",
    ),
}


@pytest.mark.parametrize(("flat", "networks", "before"), STORED.values(), ids=STORED)
def test_the_older_form_is_read_and_its_digest_stays(flat: dict, networks: object, before: str) -> None:
    config = from_dict(TokenizerConfig, flat)
    assert config.networks == networks
    assert digest(without_defaults(config)) == before
    assert "base_width" not in to_dict(config)
    again = from_dict(TokenizerConfig, to_dict(config))
    assert again == config and digest(without_defaults(again)) == before


@pytest.mark.parametrize(
    ("recipe", "before"),
    [
        ("digits", "e2458f7570fd57cbd04e8a820ad605305cb660a0a603ea8fe31f6f449fbeacab"),
        ("cifar10-10min", "17eb6a294718acc2157d99ed9b5ab73a37b55ec66289f8fa71536bfefff0d86e"),
        ("imagenet-vqgan-f16", "c059ba9a71b84700366938c3cdded2e003d18520e7367642ad9b02e792805840"),
    ],
)
def test_built_in_recipes_mean_what_they_meant(recipe: str, before: str) -> None:
    assert digest(without_defaults(load_recipe(recipe).tokenizer.model)) == before


def test_a_recipe_in_the_older_form_is_laid_over_one_in_today_s(tmp_path: Path) -> None:
    recipe = tmp_path / "own.yaml"
    recipe.write_text("extends: digits\nname: own\ntokenizer: {model: {base_width: 64, attention_levels: [1]}}\n")
    sizes = {"base_width": 64, "width_multipliers": (1, 2), "n_res_blocks": 1, "norm_groups": 8}
    expected = VQGANNetworks(**sizes, attention_levels=(1,), middle_attention=False)
    assert load_recipe(str(recipe)).tokenizer.model.networks == expected
    changed = {"tokenizer.model.networks.base_width": 16}
    assert load_recipe(str(recipe), changed).tokenizer.model.networks.base_width == 16


def test_another_family_in_a_recipe_drops_the_fields_of_the_one_before() -> None:
    family = {"tokenizer.model.networks.type": "magvit2", "tokenizer.model.networks.base_width": 64}
    assert load_recipe("digits", family).tokenizer.model.networks == Magvit2Networks(base_width=64)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"networks": {"type": "vqgan", "base_width": 64}, "base_width": 32}, "base_width: unknown key"),
        ({"networks": "magvit2", "attention_levels": [1]}, r"networks\.attention_levels: unknown key"),
        ({"networks": {"type": "dvae", "dropout": 0.1}, "projection": "none"}, r"networks\.dropout: unknown key"),
        ({"networks": {"base_width": 48}}, r"networks\.norm_groups"),
    ],
)
def test_fields_that_the_networks_do_not_have_are_refused_by_name(values: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=f"^{said}"):
        from_dict(TokenizerConfig, values)


@pytest.mark.parametrize("module", ["stage1_tokenizer.quantizers.config", "stage1_tokenizer.networks.config"])
def test_settings_are_read_without_torch(module: str) -> None:
    heavy = {"torch", "numpy", "PIL", "pyarrow", "transformers"}
    code = f"import sys, {module}; print(*({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == []
