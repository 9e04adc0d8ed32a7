"""Models for transformers: they open run folders, name wrong arguments, and turn the hub's errors into ours."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from foundation.codes.dataset import TokenDataset
from foundation.errors import CheckpointError, ConfigError, DataError, StorageError
from pipeline import ImageGenerator
from pipeline.encoding.card import push_token_dataset
from stage1_tokenizer import Tokenizer
from stage2_prior import Prior


@pytest.fixture(scope="module")
def models(finished_run: Path) -> tuple[Tokenizer, Prior]:
    return Tokenizer.from_pretrained(finished_run), Prior.from_pretrained(str(finished_run))


def test_a_run_folder_opens_as_each_of_its_models(finished_run: Path, models: tuple[Tokenizer, Prior]) -> None:
    alone = Tokenizer.from_pretrained(finished_run / "tokenizer")
    assert alone.model.fingerprint == models[0].model.fingerprint == models[1].model.spec.fingerprint


def test_both_shells_make_a_generator(finished_run: Path, models: tuple[Tokenizer, Prior]) -> None:
    one, other = ImageGenerator(*models), ImageGenerator.from_pretrained(finished_run)  # type: ignore[arg-type]
    assert torch.equal(one("3", seed=0, guidance_scale=1.0).codes, other("3", seed=0, guidance_scale=1.0).codes)


@pytest.mark.parametrize("kind", [Tokenizer, Prior])
def test_what_is_no_model_is_named(finished_run: Path, tmp_path: Path, kind: Any) -> None:
    for folder in (tmp_path, finished_run / "codes" / "data"):
        with pytest.raises(CheckpointError, match=r"no config\.json"):
            kind.from_pretrained(folder)
    with pytest.raises(CheckpointError, match="OWNER/NAME"):
        kind.from_pretrained("nobody/nothing")
    with pytest.raises(ConfigError, match="folder: is not a path"):
        kind.from_pretrained(None)
    shutil.copytree(finished_run / kind.part, tmp_path / "damaged")
    (tmp_path / "damaged" / "model.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="cannot be opened"):
        kind.from_pretrained(tmp_path / "damaged")


def test_without_a_network_a_push_is_refused_with_the_way_out(
    finished_run: Path, models: tuple[Tokenizer, Prior], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    generator = ImageGenerator.from_pretrained(finished_run)
    pushes = (generator.push_to_hub, *(each.push_to_hub for each in models))
    for push in (*pushes, lambda name, token: push_token_dataset(finished_run / "codes", name, token=token)):
        for name in ("me/model", "not a name"):
            with pytest.raises(StorageError, match=r"the hub refused(.|\n)*hf auth login"):
                push(name, token="x")


def test_arguments_are_named_as_they_are_called(models: tuple[Tokenizer, Prior]) -> None:
    tokenizer, prior = models
    tokens, size = torch.zeros(2, 16, dtype=torch.int64), prior.model.vocab_size
    for arguments, words in (
        ({"input_ids": tokens}, "input_ids: (.|\n)*tokens_BT"),
        ({"tokens_BT": tokens, "labels": [1, 2]}, "labels: (.|\n)*labels_B(.|\n)*targets_BT"),
        ({"tokens_BT": tokens, "return_dict": 1}, "return_dict"),
    ):
        with pytest.raises(ConfigError, match=words):
            prior(**arguments)
    with pytest.raises(ConfigError, match=r"pixel_values: (.|\n)*images_BCYX"):
        tokenizer(pixel_values=torch.zeros(1, 1, 8, 8))
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"tokens_BT": tokens - 1}, r"tokens_BT\[0, 0\]: no such code(.|\n)*-1"),
        ({"tokens_BT": tokens + size}, rf"tokens_BT\[0, 0\](.|\n)*0\.\.{size - 1}"),
        ({"tokens_BT": torch.zeros(2, 5, 5, dtype=torch.int64)}, r"tokens_BT: are no sequences(.|\n)*\(B, 16\)"),
        ({"tokens_BT": torch.zeros(2, 17, dtype=torch.int64)}, "tokens_BT: more codes than an image has"),
        ({"tokens_BT": tokens, "labels_B": [1]}, r"labels_B: are not one for each image"),
        ({"tokens_BT": tokens, "labels_B": [1, 11]}, r"labels_B: no such class(.|\n)*0\.\.10, of which 10"),
        ({"tokens_BT": tokens, "targets_BT": tokens[:1]}, "targets_BT: are not as many"),
        ({"tokens_BT": tokens, "targets_BT": tokens - 100 + 1}, r"targets_BT\[0, 0\]"),
    ]
    for arguments, words in wrong:
        with pytest.raises(DataError, match=words):
            prior(**arguments)


def test_grids_of_a_token_dataset_go_into_both_models(finished_run: Path, models: tuple[Tokenizer, Prior]) -> None:
    tokenizer, prior = models
    dataset = TokenDataset(finished_run / "codes")
    grids, flat = dataset.grids[:3], dataset.codes_NT[:3]
    assert grids.dtype == np.uint16 and dataset.labels_N is not None
    images = tokenizer.decode(grids)
    assert torch.equal(images, tokenizer.decode(torch.from_numpy(grids.astype(np.int64))))
    assert torch.equal(images, tokenizer.decode(torch.from_numpy(grids)))
    labels = dataset.labels_N[:3]
    logits = prior(grids, labels).logits
    assert torch.equal(logits, prior(torch.from_numpy(flat.astype(np.int32)), torch.from_numpy(labels)).logits)
    ignored = flat.astype(np.int64)
    ignored[:, 1:] = -100
    one = prior(grids, labels, ignored).loss
    expected = torch.nn.functional.cross_entropy(logits[:, 0], torch.from_numpy(flat[:, 0].astype(np.int64)))
    assert torch.allclose(one, expected)


@pytest.mark.parametrize("kind", [torch.float64, torch.float16, torch.bfloat16])
def test_images_of_every_floating_point_type_are_encoded(models: tuple[Tokenizer, Prior], kind: torch.dtype) -> None:
    images = (torch.arange(64).view(1, 1, 8, 8) / 32 - 1).to(kind)
    expected = models[0].encode(images.float())
    assert torch.equal(models[0].encode(images), expected)
    if kind != torch.bfloat16:
        assert torch.equal(models[0].encode(images.numpy()), expected)
    output = models[0](images)
    assert output.loss.dtype == torch.float32 and torch.isfinite(output.loss)
