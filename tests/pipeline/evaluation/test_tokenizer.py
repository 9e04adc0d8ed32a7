import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from foundation.codes.usage import count_codes
from foundation.config import from_dict
from foundation.errors import ConfigError, DataError
from foundation.images.config import Preprocess
from foundation.images.image_set import ImageSet
from foundation.images.source_config import DatasetData, DigitsData
from foundation.images.sources import SubsetSource, open_sources
from pipeline.evaluation.distances import FeatureMoments, frechet_distance, unbiased_mmd2
from pipeline.evaluation.extractors import SmallConfig, build_extractor
from pipeline.evaluation.tokenizer import evaluate_tokenizer
from stage1_tokenizer.config import TokenizerConfig
from stage1_tokenizer.image_metrics import psnr, ssim
from stage1_tokenizer.tokenizer import TokenizerModel

ARCHITECTURE = {
    "base_width": 8,
    "width_multipliers": [1, 2],
    "n_res_blocks": 1,
    "latent_channels": 8,
    "norm_groups": 4,
    "dropout": 0.5,
    "quantizer": {"type": "fsq", "levels": [4, 4, 3]},
}


class ExactTokenizer(TokenizerModel):
    """Reconstructs perfectly: its codes are ignored, and the images come back."""

    def encode(self, images_BCYX: torch.Tensor) -> torch.Tensor:
        self.seen_BCYX = images_BCYX
        return super().encode(images_BCYX)

    def decode(self, codes: torch.Tensor, image_size: tuple[int, int] | None = None) -> torch.Tensor:
        return self.seen_BCYX * 1.0


def tokenizer(preprocess: Preprocess, kind: type[TokenizerModel] = TokenizerModel) -> TokenizerModel:
    torch.manual_seed(0)
    return kind(from_dict(TokenizerConfig, ARCHITECTURE), preprocess).eval()


@pytest.fixture(scope="module")
def digits() -> ImageSet:
    source, _ = open_sources(DigitsData())
    return ImageSet(SubsetSource(source, np.arange(150)), Preprocess(height=8, width=8, mode="L"))


def l1_distance(images_BCYX: torch.Tensor, reconstructions_BCYX: torch.Tensor) -> torch.Tensor:
    return (images_BCYX - reconstructions_BCYX).abs().mean((1, 2, 3))


def test_every_figure_equals_the_one_of_all_images_at_once(digits: ImageSet) -> None:
    model, extractor = tokenizer(digits.preprocess), build_extractor(SmallConfig())
    found = evaluate_tokenizer(model, digits, extractor=extractor, lpips=l1_distance, batch_size=64).metrics()
    images = digits.images(np.arange(len(digits)))
    codes = model.encode(images)
    decoded = model.decode(codes).clamp(-1, 1)
    usage = count_codes(codes.numpy(), 48)
    real, made = extractor(images).double().numpy(), extractor(decoded).double().numpy()
    moments = [FeatureMoments(64), FeatureMoments(64)]
    for state, features in zip(moments, (real, made), strict=True):
        state.update(features)
    order = np.random.default_rng(0).permutation(150)  # subsets are samples of the whole set
    subsets = [order[i : i + 30] for i in range(0, 150, 30)]
    expected = {
        "n_images": 150.0,
        "psnr": psnr(images, decoded).mean().item(),
        "ssim": ssim(images, decoded).mean().item(),
        "l1": (images - decoded).abs().mean().item(),
        "lpips": (images - decoded).abs().mean().item(),
        "code_usage": usage.share_used,
        "code_perplexity": usage.perplexity,
        "code_usage_possible": -math.expm1(150 * 16 * math.log1p(-1 / 48)),
        "rfid_small": frechet_distance(*moments),
        "rkid_small": np.mean([unbiased_mmd2(real[each], made[each], paired=True) for each in subsets]),
    }
    assert found.pop("rkid_small_standard_error") > 0
    assert found == pytest.approx(expected, rel=1e-4)
    assert expected["rfid_small"] > 0.01


def test_real_against_real_scores_perfectly(digits: ImageSet) -> None:
    model = tokenizer(digits.preprocess, ExactTokenizer)
    found = evaluate_tokenizer(model, digits, extractor=build_extractor(SmallConfig()), batch_size=40)
    numbers = found.metrics()
    assert numbers["rfid_small"] < 1e-10
    assert abs(numbers["rkid_small"]) < 1e-10
    assert (numbers["psnr"], numbers["l1"]) == (100.0, 0.0)
    assert numbers["ssim"] == pytest.approx(1.0, abs=1e-6)


def test_dropout_is_off_and_the_mode_is_put_back(digits: ImageSet) -> None:
    model = tokenizer(digits.preprocess)
    expected = evaluate_tokenizer(model, digits).metrics()
    model.train()
    assert evaluate_tokenizer(model, digits).metrics() == expected
    assert model.training
    assert "rfid_small" not in expected and "lpips" not in expected


@pytest.mark.parametrize(
    ("quantizer", "sizes"),
    [({"type": "kl"}, []), ({"type": "residual", "depth": 3, "codebook": {"codebook_size": 16}}, [16] * 3)],
)
def test_continuous_latents_have_no_usage_and_each_depth_has_its_own(
    digits: ImageSet, quantizer: dict[str, object], sizes: list[int]
) -> None:
    config = from_dict(TokenizerConfig, {**ARCHITECTURE, "quantizer": quantizer})
    model = TokenizerModel(config, digits.preprocess).eval()
    found = evaluate_tokenizer(model, digits, extractor=build_extractor(SmallConfig()))
    assert [usage.codebook_size for usage in found.scores.usages] == sizes
    assert all(usage.n_codes == 150 * 4 * 4 for usage in found.scores.usages)
    assert ("code_usage" in found.metrics()) == ("perplexity" in found.table()) == bool(sizes)


def test_table_says_what_was_measured_and_what_does_not_compare(digits: ImageSet) -> None:
    found = evaluate_tokenizer(tokenizer(digits.preprocess), digits, extractor=build_extractor(SmallConfig()))
    table = found.table()
    assert "150 images of 8 x 8 pixels" in table
    assert "NOT COMPARABLE with published figures" in table
    assert "small, 64 features" in table
    assert "5 subsets of 30" in table
    assert "of 48 codes" in table
    assert "LPIPS" not in table


def test_too_few_images_for_the_features_are_noted(digits: ImageSet) -> None:
    few = ImageSet(SubsetSource(digits._source, np.arange(20)), digits.preprocess)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the note says it
        found = evaluate_tokenizer(tokenizer(digits.preprocess), few, extractor=build_extractor(SmallConfig()))
    assert any("too few images" in note for note in found.notes)
    single = ImageSet(SubsetSource(digits._source, np.arange(1)), digits.preprocess)
    with pytest.raises(DataError, match="too few images"):
        evaluate_tokenizer(tokenizer(digits.preprocess), single, extractor=build_extractor(SmallConfig()))
    assert evaluate_tokenizer(tokenizer(digits.preprocess), single).scores.n_images == 1


def test_bad_settings_and_broken_weights_are_refused(digits: ImageSet) -> None:
    model = tokenizer(digits.preprocess)
    with pytest.raises(ConfigError, match="batch_size"):
        evaluate_tokenizer(model, digits, batch_size=0)
    with torch.no_grad():
        next(model.decoder.parameters()).fill_(math.nan)
    with pytest.raises(DataError, match="not finite"):
        evaluate_tokenizer(model, digits)


def test_colour_photographs(photographs: Path) -> None:
    config = DatasetData(path=str(photographs), split="validation")
    source, _ = open_sources(config)
    images = ImageSet(SubsetSource(source, np.arange(70)), Preprocess(height=32, width=48))
    found = evaluate_tokenizer(tokenizer(images.preprocess), images, extractor=build_extractor(SmallConfig()))
    numbers = found.metrics()
    assert all(math.isfinite(value) for value in numbers.values())
    assert 0 < numbers["ssim"] < 0.9 and numbers["rfid_small"] > 0
