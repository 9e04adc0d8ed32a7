"""Another plan is refused by what differs; views, batch shape and order are the plan's."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.tiny_export import CONFIG, make_images, make_tokenizer, open_tiny, sources_of, tiny_export

from foundation.codes.dataset import ImageViews, TokenDataset
from foundation.errors import ConfigError, ContractError, DataError
from foundation.images.preprocess import to_unit_range
from foundation.images.views import TEN_CROP, VIEWS, view_pixels
from foundation.training.arithmetic import arithmetic
from pipeline.encoding import export as export_module
from pipeline.encoding.encoder import LARGEST, fastest_batch_size, near_tie_share
from pipeline.encoding.export import Export
from pipeline.encoding.plan import EncodeConfig, ExportPlan, make_plan
from pipeline.work_sharing import Part
from stage1_tokenizer.tokenizer import TokenizerModel

Inputs = tuple[Path, Path]


def test_another_plan_is_refused_by_what_differs(inputs: Inputs, tmp_path: Path) -> None:
    images = Path(shutil.copytree(inputs[0], tmp_path / "images"))
    open_tiny(images, inputs[1], tmp_path / "codes")
    for changes, named in (
        ({"images_per_shard": 5}, r"images_per_shard: the plan has 4, this run 5"),
        ({"batch_size": 4}, r"batch_size: the plan has 3, this run 4"),
        ({"flip": False}, r"views of train: the plan has \(0, 1\), this run \(0,\)"),
        ({"flip": False, "ten_crop": True}, "views of train"),
    ):
        with pytest.raises(ContractError, match=named):
            open_tiny(images, inputs[1], tmp_path / "codes", dataclasses.replace(CONFIG, **changes))
    (images / "ant/000.png").rename(images / "ant/new.png")
    with pytest.raises(ContractError, match=r"images of train(.|\n)*ant/000.png(.|\n)*ant/new.png"):
        open_tiny(images, inputs[1], tmp_path / "codes")
    (images / "ant/new.png").rename(images / "ant/000.png")
    with pytest.raises(ContractError, match="fingerprint"):
        open_tiny(images, make_tokenizer(tmp_path / "other", seed=1), tmp_path / "codes")
    open_tiny(images, inputs[1], tmp_path / "codes")


def test_another_label_is_named(inputs: Inputs) -> None:
    spec = TokenizerModel.load(inputs[1]).spec.with_classes(("ant", "bee"))
    there = make_plan(spec, sources_of(inputs[0]), CONFIG, batch_size=3, device="cpu")
    changed = sources_of(inputs[0])
    changed["train"].labels = np.array([*changed["train"].labels[:7], 1, *changed["train"].labels[8:]])  # type: ignore[index]
    wanted = make_plan(spec, changed, CONFIG, batch_size=3, device="cpu")
    assert there.identity != wanted.identity
    with pytest.raises(ContractError, match=r"label of ant/007.png \(train\): the plan has 0, this run 1"):
        from pipeline.encoding.plan import require_same_plan

        require_same_plan(there, wanted, Path("plan.json"))


def test_a_plan_comes_back_as_it_was(inputs: Inputs, clean: Path) -> None:
    plan = ExportPlan.from_json(clean / "plan.json")
    assert plan == open_tiny(*inputs, clean).plan and plan.n_images == 40
    covered = {name: [] for name in plan.splits}  # type: ignore[var-annotated]
    for shard in plan.shards:
        covered[shard.split] += range(shard.start, shard.stop)
        assert 0 < shard.n_images <= 4
    assert covered == {"train": list(range(20)), "validation": list(range(20))}


def test_two_images_of_one_name_are_refused(inputs: Inputs) -> None:
    sources = sources_of(inputs[0])
    sources["train"].ids[3] = sources["train"].ids[2]
    with pytest.raises(DataError, match=r"one id(.|\n)*ant/002.png"):
        make_plan(TokenizerModel.load(inputs[1]).spec, sources, CONFIG, batch_size=3, device="cpu")


@pytest.mark.parametrize("n", [0, 1, 7, 24])
@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_parts_share_out_everything_and_then_help_each_other(n: int, count: int) -> None:
    orders = [Part(i, count).order(n) for i in range(count)]
    assert all(sorted(order) == list(range(n)) for order in orders)
    own = [order[: len(range(i, n, count))] for i, order in enumerate(orders)]
    assert sorted(each for some in own for each in some) == list(range(n)), "each piece is the first duty of one part"
    split = [Part(1, 2).within(process, count) for process in range(count)]
    assert {(part.index, part.count) for part in split} == {(count + process, 2 * count) for process in range(count)}


@pytest.mark.parametrize("text", ["4/4", "-1/4", "1", "1/0", "a/b", "1/", "/", "0.5/2"])
def test_parts_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^part: "):
        Part.parse(text)


def test_ten_views_are_the_ones_that_their_numbers_say(tmp_path: Path, inputs: Inputs) -> None:
    images = make_images(tmp_path / "images", n=3)
    config = EncodeConfig(batch_size=4, images_per_shard=4, ten_crop=True)
    assert tiny_export(images, inputs[1], tmp_path / "codes", config)
    dataset, tokenizer = TokenDataset(tmp_path / "codes"), TokenizerModel.load(inputs[1])
    source = sources_of(images)["train"]
    assert len(dataset) == 60 and set(dataset.views_N.tolist()) == set(range(10))
    assert len(TokenDataset(tmp_path / "codes", "validation")) == 6, "held-out images are encoded as they are"
    views = ImageViews(dataset.views_N, dataset.rows_by_shard)
    assert (len(views), views.n_views) == (6, 10)
    for number in range(6):
        pixels = view_pixels(tokenizer.preprocess, source.read(number), TEN_CROP)
        codes = tokenizer.encode(to_unit_range(pixels)).flatten(1).numpy()
        for view in range(10):
            (row,) = views.rows(np.array([number]), np.array([view]))
            assert dataset.views_N[row] == view and dataset.image_ids[row] == source.ids[number]
            assert np.array_equal(dataset.codes_NT[row], codes[view])


def test_crops_lie_where_their_names_say(inputs: Inputs) -> None:
    from PIL import Image

    preprocess = dataclasses.replace(TokenizerModel.load(inputs[1]).preprocess, height=16, width=16, resize="nearest")
    grid = np.add.outer(np.arange(20) * 10, np.arange(20)).astype(np.uint8)  # 10 a row, 1 a column
    views = view_pixels(preprocess, Image.fromarray(grid), TEN_CROP, corner_scale=1.25)[..., 0]
    assert np.array_equal(views[2], grid[:16, :16]) and np.array_equal(views[3], grid[:16, 4:])
    assert np.array_equal(views[4], grid[4:, :16]) and np.array_equal(views[5], grid[4:, 4:])
    assert np.array_equal(views[0], preprocess(Image.fromarray(grid))[..., 0])
    for one, other in ((0, 1), (2, 6), (3, 7), (4, 8), (5, 9)):
        assert np.array_equal(views[one][:, ::-1], views[other]) and VIEWS[other].name == f"{VIEWS[one].name}, mirrored"


def test_the_batch_is_measured_once_and_then_kept(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = iter([5, 7])
    monkeypatch.setattr(export_module, "fastest_batch_size", lambda tokenizer, **_: next(measured))
    config = dataclasses.replace(CONFIG, batch_size=None)
    assert open_tiny(*inputs, tmp_path / "codes", config).plan.batch_size == 5
    assert open_tiny(*inputs, tmp_path / "codes", config).plan.batch_size == 5, "who joins takes what is there"
    assert next(measured) == 7


def test_who_measures_at_the_same_time_takes_what_the_first_wrote(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, inside = dataclasses.replace(CONFIG, batch_size=None), []

    def measure(tokenizer: TokenizerModel, **_: Any) -> int:
        if not inside:
            inside.append(True)
            assert open_tiny(*inputs, tmp_path / "codes", config).plan.batch_size == 6
            return 9
        return 6

    monkeypatch.setattr(export_module, "fastest_batch_size", measure)
    assert open_tiny(*inputs, tmp_path / "codes", config).plan.batch_size == 6


def test_the_smallest_batch_of_about_the_best_speed_is_taken(monkeypatch: pytest.MonkeyPatch, inputs: Inputs) -> None:
    from pipeline.encoding import encoder

    speeds = {1: 10.0, 2: 19.0, 4: 39.0, 8: 40.0, 16: 30.0, 32: 29.0, 64: 28.0}
    asked: list[int] = []

    def speed(_: TokenizerModel, size: int) -> float:
        asked.append(size)
        if size > 32:
            raise torch.OutOfMemoryError
        return speeds[size]

    monkeypatch.setattr(encoder, "_images_per_second", speed)
    tokenizer = TokenizerModel.load(inputs[1])
    assert fastest_batch_size(tokenizer) == 4 and asked[-1] == 32, "two steps without gain end it"
    speeds.update({16: 80.0, 32: 160.0})
    assert fastest_batch_size(tokenizer, seconds=100) == 32, "what does not fit into memory is left out"
    monkeypatch.undo()
    assert fastest_batch_size(tokenizer, seconds=0.5) in [2**i for i in range(LARGEST.bit_length())]


def test_precision_is_full_within_and_as_before_after() -> None:
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16), arithmetic(torch.device("cpu")):
            assert torch.get_float32_matmul_precision() == "highest" and torch.backends.cudnn.deterministic
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
        assert torch.get_float32_matmul_precision() == "medium" and not torch.backends.cudnn.deterministic
    finally:
        torch.set_float32_matmul_precision("highest")


def test_near_ties_are_counted(inputs: Inputs) -> None:
    tokenizer = TokenizerModel.load(inputs[1])
    images = torch.rand(32, 3, 16, 16) * 2 - 1
    few, some, many = (near_tie_share(tokenizer, images, margin) for margin in (1e-7, 1e-2, 0.5))
    assert few <= 0.01 < some < many and near_tie_share(tokenizer, images, 1e-2) == some


def test_a_tokenizer_that_changed_is_not_used(inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = TokenizerModel.encode
    monkeypatch.setattr(TokenizerModel, "encode", lambda model, images: encode(model, images.flip(-1)))
    with pytest.raises(ContractError, match="no longer gives the codes"):
        Export(inputs[1], sources_of(inputs[0]), tmp_path / "codes", CONFIG, torch.device("cpu"))
    assert not (tmp_path / "codes").exists()
