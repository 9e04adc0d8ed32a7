from pathlib import Path

import pytest
import torch

from foundation.config import to_dict
from foundation.errors import CheckpointError, ConfigError, ContractError
from foundation.images.preprocess import Preprocess
from pipeline.pretrained import adopt_tokenizer, with_pretrained
from stage1_tokenizer.config import TokenizerConfig
from stage1_tokenizer.quantizers.config import LFQConfig
from stage1_tokenizer.tokenizer import TokenizerModel

CONFIG = TokenizerConfig(base_width=8, width_multipliers=(1, 2), n_res_blocks=1, latent_channels=6, norm_groups=4,
                         networks="magvit2", middle_attention=False, projection="none",
                         quantizer=LFQConfig(width=6))  # fmt: skip
PREPROCESS = Preprocess(height=8, width=12)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A finished tokenizer."""
    path = tmp_path / "imported"
    path.mkdir()
    TokenizerModel(CONFIG, PREPROCESS).save(path)
    return path


def test_a_recipe_that_names_a_tokenizer_gets_its_settings(folder: Path, tmp_path: Path) -> None:
    values = {
        "name": "x",
        "data": {"source": "y", "preprocess": {"height": 99}},
        "tokenizer": {"pretrained": str(folder), "model": {"base_width": 99}},
    }
    found = with_pretrained(values)
    assert found["tokenizer"]["model"] == to_dict(CONFIG) and found["data"]["preprocess"] == to_dict(PREPROCESS)
    assert found["data"]["source"] == "y" and found["name"] == "x"
    folder.rename(tmp_path / "moved")
    assert with_pretrained(found) == found  # as the recipe of a run folder
    with pytest.raises(ConfigError, match=r"tokenizer.pretrained(.|\n)*imported"):
        with_pretrained({"tokenizer": {"pretrained": str(folder)}})
    assert with_pretrained({"name": "x"}) == {"name": "x"}


def test_the_tokenizer_is_copied_whole_or_refused(folder: Path, tmp_path: Path) -> None:
    adopt_tokenizer(folder, tmp_path / "run" / "tokenizer", CONFIG, PREPROCESS)
    assert TokenizerModel.load(tmp_path / "run" / "tokenizer").fingerprint == TokenizerModel.load(folder).fingerprint
    adopt_tokenizer(tmp_path / "run", tmp_path / "again", CONFIG, PREPROCESS)
    with pytest.raises(ContractError, match=r"preprocess.height differs"):
        adopt_tokenizer(folder, tmp_path / "other", CONFIG, Preprocess(height=16, width=12))
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(CheckpointError, match="changed or damaged"):
        adopt_tokenizer(folder, tmp_path / "other", CONFIG, PREPROCESS)
    assert not (tmp_path / "other").exists()


def test_codes_that_are_no_longer_the_same_are_refused(folder: Path, tmp_path: Path) -> None:
    from stage1_tokenizer.canary import load_canary, save_canary

    model = TokenizerModel.load(folder)
    save_canary(model, torch.randint(0, 256, (4, 8, 12, 3), dtype=torch.uint8).numpy(), folder)
    canary = load_canary(folder)
    assert canary is not None
    adopt_tokenizer(folder, tmp_path / "sound", CONFIG, PREPROCESS)
    with torch.no_grad():
        model.encoder.conv_out.bias += 1
    changed = tmp_path / "changed"
    changed.mkdir()
    model.save(changed)
    (changed / "canary.safetensors").write_bytes((folder / "canary.safetensors").read_bytes())
    with pytest.raises(ContractError, match="no longer gives the codes"):
        adopt_tokenizer(changed, tmp_path / "other", CONFIG, PREPROCESS)
