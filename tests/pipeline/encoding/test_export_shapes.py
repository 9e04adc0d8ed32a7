"""A token dataset of images of several shapes: written in batches of one shape, read and decoded in their own."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from support.several_shapes import make_pictures
from support.tiny_export import content, open_tiny, tiny_export

from foundation.codes.dataset import TokenDataset
from foundation.codes.gathered import gather
from foundation.codes.manifest import read_manifest
from foundation.codes.sources import open_codes
from foundation.errors import ContractError, DataError
from foundation.hardware import TokenAccess
from foundation.images.config import Preprocess
from foundation.images.preprocess import to_unit_range
from pipeline.encoding import decode
from pipeline.encoding.decode import decode_to_folder
from pipeline.encoding.export import retry_failed
from pipeline.encoding.plan import EncodeConfig
from pipeline.work_sharing import Part
from stage1_tokenizer.canary import save_canary
from stage1_tokenizer.config import TokenizerConfig
from stage1_tokenizer.networks.config import VQGANNetworks
from stage1_tokenizer.quantizers.config import FSQConfig
from stage1_tokenizer.tokenizer import TokenizerModel

SHAPES = ((16, 24), (24, 16))
CONFIG = EncodeConfig(batch_size=3, images_per_shard=10, flip=True)


def make_tokenizer(folder: Path) -> Path:
    """Of 16 x 24 and 24 x 16 images, 4 x 6 and 6 x 4 codes of 48."""
    torch.manual_seed(0)
    config = TokenizerConfig(
        networks=VQGANNetworks(base_width=8, width_multipliers=(1, 1, 1), n_res_blocks=1, norm_groups=4),
        latent_channels=8,
        quantizer=FSQConfig(levels=(4, 4, 3)),
    )
    model = TokenizerModel(config, Preprocess(height=16, width=24, shapes=SHAPES[1:])).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (8, 16, 24, 3), np.uint8)
    model.initialize(to_unit_range(pixels), torch.Generator())
    folder.mkdir()
    model.save(folder)
    save_canary(model, pixels, folder)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    make_pictures(folder / "images")
    make_tokenizer(folder / "tokenizer")
    assert tiny_export(folder / "images", folder / "tokenizer", folder / "codes", CONFIG)
    return folder


def test_each_row_has_the_codes_of_its_image_in_its_shape(made: Path) -> None:
    dataset, tokenizer = TokenDataset(made / "codes"), TokenizerModel.load(made / "tokenizer")
    assert dataset.spec.grids == ((4, 6), (6, 4)) and dataset.grids_N.dtype == np.int8
    assert np.bincount(dataset.grids_N).tolist() == [24, 24]
    for row in range(len(dataset)):
        image = Image.open(made / "images" / dataset.image_ids[row])
        assert dataset.grids_N[row] == (image.height > image.width)
        pixels = tokenizer.preprocess(image)
        assert pixels.shape[:2] == SHAPES[dataset.grids_N[row]]
        pixels = pixels[:, ::-1] if dataset.views_N[row] else pixels
        codes = tokenizer.encode(to_unit_range(pixels[None].copy())).flatten().numpy()
        assert (codes != dataset.codes_NT[row]).mean() < 0.1, "another batch may round otherwise"
    with pytest.raises(DataError, match="several shapes"):
        _ = dataset.grids
    entry = read_manifest(made / "codes")["splits"]
    assert entry["train"]["grids"] == [24, 24] and entry["validation"]["grids"] == [12, 12]


@pytest.mark.parametrize("form", ["packed", "streamed"])
def test_every_form_of_the_dataset_has_the_grids(made: Path, tmp_path: Path, form: Any) -> None:
    access = TokenAccess(form=form, packed_folder=str(tmp_path))
    found, expected = TokenDataset(made / "codes", "train", access), TokenDataset(made / "codes")
    assert np.array_equal(np.asarray(found.grids_N), expected.grids_N)
    assert np.array_equal(found.grids_N[[3, 1]], expected.grids_N[[3, 1]])


def test_datasets_opens_it_and_the_card_explains_it(made: Path, tmp_path: Path) -> None:
    from datasets import load_dataset

    rows = load_dataset(str(made / "codes"), split="train", cache_dir=str(tmp_path))
    assert rows["grid"] == TokenDataset(made / "codes").grids_N.tolist()
    card = (made / "codes" / "README.md").read_text(encoding="utf-8")
    assert "`grid` 1: **6 x 4** codes" in card and "16 x 24 or 24 x 16 pixels" in card
    assert '.reshape([(4, 6), (6, 4)][rows[0]["grid"]])' in card


def test_bytes_are_equal_however_the_work_is_shared(made: Path, tmp_path: Path) -> None:
    for i in (1, 0):
        tiny_export(made / "images", made / "tokenizer", tmp_path / "codes", CONFIG, part=Part(i, 2), wait=False)
    assert content(tmp_path / "codes") == content(made / "codes")


def test_a_retry_gives_the_bytes_of_a_first_export(made: Path, tmp_path: Path) -> None:
    images = make_pictures(tmp_path / "images")
    victim = images / "ant" / "003.png"
    sound = victim.read_bytes()
    plain = tiny_export(images, made / "tokenizer", tmp_path / "first", CONFIG)
    assert plain
    victim.write_bytes(sound[:60])  # the header is still there, so the shape is known
    assert tiny_export(images, made / "tokenizer", tmp_path / "codes", CONFIG)
    assert len(read_manifest(tmp_path / "codes")["splits"]["train"]["failures"]) == 1
    victim.write_bytes(sound)
    assert retry_failed(open_tiny(images, made / "tokenizer", tmp_path / "codes", CONFIG))
    for path in sorted((tmp_path / "first" / "data").rglob("*.parquet")):
        other = tmp_path / "codes" / path.relative_to(tmp_path / "first")
        assert pq.read_table(path).equals(pq.read_table(other))


def test_an_image_of_another_shape_than_planned_is_named(made: Path, tmp_path: Path) -> None:
    images = make_pictures(tmp_path / "images")
    open_tiny(images, made / "tokenizer", tmp_path / "codes", CONFIG)
    path = images / "ant" / "003.png"
    Image.open(path).transpose(Image.Transpose.ROTATE_90).save(path)
    with pytest.raises(ContractError, match=r"shape of ant/003.png \(train\): the plan has 0, this run 1"):
        open_tiny(images, made / "tokenizer", tmp_path / "codes", CONFIG)


def test_decode_writes_each_image_in_its_shape(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "IMAGES_PER_FOLDER", 20)
    assert decode_to_folder(str(made / "codes"), str(tmp_path / "out"), batch_size=5) == 72
    for listing in sorted(tmp_path.rglob("metadata.jsonl")):
        for line in listing.read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            original = Image.open(made / "images" / entry["image_id"])
            found = Image.open(listing.parent / entry["file_name"])
            assert (found.width > found.height) == (original.width > original.height)
            assert found.size in [(24, 16), (16, 24)]


def test_codes_in_rows_and_columns_decode_without_a_column(made: Path, tmp_path: Path) -> None:
    dataset = TokenDataset(made / "codes")
    tall = dataset.codes_NT[dataset.grids_N == 1][:3]
    np.save(tmp_path / "tall.npy", dataset.spec.grid(tall, 1))
    place = {"tokenizer": str(made / "tokenizer"), "batch_size": 2}
    assert decode_to_folder(str(tmp_path / "tall.npy"), str(tmp_path / "out"), **place) == 3
    assert {Image.open(path).size for path in (tmp_path / "out").rglob("*.png")} == {(16, 24)}
    np.save(tmp_path / "flat.npy", tall)
    with pytest.raises(DataError, match="grids are not there"):
        decode_to_folder(str(tmp_path / "flat.npy"), str(tmp_path / "other"), **place)


def test_codes_of_several_shapes_are_not_gathered(made: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="several shapes"):
        gather(open_codes(made / "codes"), tmp_path, 0.1, "codes")


def test_a_grid_that_was_changed_is_found(made: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(made / "codes", tmp_path / "codes")
    path = next((tmp_path / "codes" / "data" / "train").glob("*.parquet"))
    table = pq.read_table(path)
    flipped = (1 - table["grid"].to_numpy()).astype(np.int8)
    index = table.column_names.index("grid")
    pq.write_table(table.set_column(index, table.schema.field("grid"), [flipped]), path)
    with pytest.raises(DataError, match="rows differ"):
        TokenDataset(tmp_path / "codes")
