"""A run keeps its images, and every command says what differs."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from support.image_sets import usable
from support.picture_runs import begin, picture, save_pictures

from foundation.errors import CheckpointError, DataError
from foundation.images.listing import Listing
from foundation.storage import durable
from pipeline.cli import main
from pipeline.runs.failed_images import failed_images
from pipeline.runs.folder import RunFolder
from pipeline.runs.found_images import inventory_of
from pipeline.runs.images import differences_since, open_run_split


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with its pictures beside it, two of them copies and one damaged; read only."""
    home = tmp_path_factory.mktemp("pictures")
    for name, numbers in (("cat", range(30)), ("dog", range(30, 60))):
        save_pictures(home / "images" / name, numbers)
    (home / "images" / "cat" / "bad.png").write_bytes(b"no image")
    (home / "images" / "cat" / "phone.HEIC").write_bytes(b"")
    job = begin(home / "run", home / "images")
    job.all()
    job.run.release()
    return home


@pytest.fixture
def home(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the finished run; its recipe names the copied pictures."""
    copy = Path(shutil.copytree(finished, tmp_path / "copy"))
    recipe = copy / "run" / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace(str(finished), str(copy)))
    return copy


def again(home: Path) -> None:
    job = begin(home / "run", home / "images")
    try:
        job.train_tokenizer()
        job.encode()
        job.train_prior()
    finally:
        job.run.release()


def held_out(home: Path) -> list[str]:
    folder = RunFolder(home / "run")
    return usable(open_run_split(folder, folder.load_recipe(), "validation")[0])


def test_the_listing_accounts_for_every_image(finished: Path) -> None:
    listing = Listing.load(finished / "run" / "images.parquet")
    ids = [name for each in listing.splits.values() for name in each.ids]
    there = {path.relative_to(finished / "images").as_posix() for path in (finished / "images").rglob("*.png")}
    assert {*ids} == there and len(ids) == len(there)
    assert listing.class_names == ("cat", "dog")
    found = inventory_of(RunFolder(finished / "run"))
    assert sum(each["used"] + each["failed"] for each in found["splits"].values()) == 61
    assert sum(each["failed"] for each in found["splits"].values()) == 1
    assert [(each["kind"], each["count"]) for each in found["passed_over"]] == [(".heic", 1)]
    met_in_training = {name for each in failed_images(RunFolder(finished / "run")).values() for name in each}
    assert met_in_training <= {"cat/bad.png"}
    assert "61 + " not in (finished / "run" / "report.html").read_text()
    assert "62 = 60 used + 1 failed + 1 passed over" in (finished / "run" / "report.html").read_text()


def test_what_was_added_removed_and_changed_is_said_and_not_evaluated(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = held_out(home)
    save_pictures(home / "images" / "cat", range(100, 112))
    trained = next(
        name for name in Listing.load(home / "run" / "images.parquet").splits["train"].ids if "bad" not in name
    )
    (home / "images" / before[0]).unlink()
    shutil.copy(home / "images" / trained, home / "images" / before[1])
    (home / "images" / trained).unlink()
    capsys.readouterr()
    assert held_out(home) == before[2:]
    for command in (
        ["evaluate", str(home / "run"), "--stage", "tokenizer"],
        ["evaluate", str(home / "run"), "--stage", "prior"],
    ):
        assert main(command) == 0
        said = capsys.readouterr().out
        assert "12 new images are not in this run" in said and "2 of its images are gone" in said
    again(home)
    assert "12 new images are not in this run" in capsys.readouterr().out
    assert main(["report", str(home / "run")]) == 0
    assert "12 new images are not in this run" in (home / "run" / "report.html").read_text()


def test_likelihoods_of_training_images_are_said_to_be_memory(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained = next(
        name for name in Listing.load(home / "run" / "images.parquet").splits["train"].ids if "bad" not in name
    )
    picture(500).save(home / "new.png")
    out = home / "scores.csv"
    assert (
        main(["score", str(home / "run"), str(home / "images" / trained), str(home / "new.png"), "-o", str(out)]) == 0
    )
    assert "1 of these images were trained on" in capsys.readouterr().out
    assert {line.split(",")[0]: line.split(",")[3] for line in out.read_text().splitlines()[1:]} == {
        str(home / "images" / trained): "True",
        str(home / "new.png"): "False",
    }


def test_codes_are_those_of_the_run_s_images(home: Path) -> None:
    import pyarrow.parquet as pq

    before = pq.read_table(home / "run" / "codes" / "data" / "train").to_pydict()
    for name in ("codes", "prior", "model_index.json", "samples", "uses"):
        durable.remove_folder(home / "run" / name)
    durable.remove_folder(home / "run" / "checkpoints" / "prior")
    save_pictures(home / "images" / "dog", range(100, 120))
    again(home)
    assert pq.read_table(home / "run" / "codes" / "data" / "train").to_pydict() == before


def test_an_image_that_changed_before_its_codes_were_made_has_none(home: Path) -> None:
    import json

    for name in ("codes", "prior", "model_index.json", "samples", "uses"):
        durable.remove_folder(home / "run" / name)
    durable.remove_folder(home / "run" / "checkpoints" / "prior")
    picture(900).save(home / "images" / "dog" / "031.png")
    assert main(["encode", str(home / "run"), "--max-bad", "10%"]) == 0
    manifest = json.loads((home / "run" / "codes" / "manifest.json").read_text())
    failed = {each["image_id"]: each["code"] for part in manifest["splits"].values() for each in part["failures"]}
    assert failed == {"cat/bad.png": "unreadable", "dog/031.png": "changed"}


def test_a_training_in_progress_refuses_other_images_and_ignores_new_ones(home: Path) -> None:
    for name in ("tokenizer", "codes", "prior", "model_index.json", "samples", "uses"):
        durable.remove_folder(home / "run" / name)
    durable.remove_folder(home / "run" / "checkpoints" / "prior")
    save_pictures(home / "images" / "dog", range(100, 120))
    trained = Listing.load(home / "run" / "images.parquet").splits["train"].ids
    for name in [name for name in trained if name.startswith("dog")][:8]:
        (home / name).parent.mkdir(exist_ok=True)
        (home / "images" / name).rename(home / name)
    with pytest.raises(DataError, match=r"too many images cannot be used(.|\n)*no longer there"):
        again(home)
    for path in (home / "dog").iterdir():
        path.rename(home / "images" / "dog" / path.name)
    again(home)
    assert len(Listing.load(home / "run" / "images.parquet").known()) == 61


def test_a_run_that_has_not_begun_takes_the_images_that_are_there(tmp_path: Path) -> None:
    save_pictures(tmp_path / "images", range(8))
    changes = {"tokenizer.model.quantizer": {"type": "vq", "codebook_size": 512, "width": 4}}
    job = begin(tmp_path / "run", tmp_path / "images", **changes)
    try:
        with pytest.raises(Exception, match="larger than the data supports"):
            job.train_tokenizer()
    finally:
        job.run.release()
    save_pictures(tmp_path / "images", range(200))
    job = begin(tmp_path / "run", tmp_path / "images", **changes)
    job.train_tokenizer()
    job.run.release()
    assert len(Listing.load(tmp_path / "run" / "images.parquet").known()) == 200


def test_a_given_tokenizer_brings_what_it_was_trained_on(home: Path, tmp_path: Path) -> None:
    save_pictures(home / "images" / "dog", range(60, 80))
    first = Listing.load(home / "run" / "images.parquet")
    job = begin(
        tmp_path / "second",
        home / "images",
        **{"tokenizer.pretrained": str(home / "run"), "data.validation_share": 0.6},
    )
    job.train_tokenizer()
    job.encode()
    job.run.release()
    folder = RunFolder(tmp_path / "second")
    images, _ = open_run_split(folder, folder.load_recipe(), "validation")
    assert {*images.ids} and not {*images.ids} & {*first.splits["train"].ids}
    assert {*first.splits["validation"].ids} <= {*images.ids}


def test_a_run_without_its_list_is_not_evaluated_on_a_guess(home: Path) -> None:
    folder = RunFolder(home / "run")
    folder.listing.unlink()
    assert len(held_out(home)) > 0, "the plan of the codes has the ids too"
    durable.remove_folder(folder.codes)
    with pytest.raises(CheckpointError, match="does not know which images it was trained on"):
        held_out(home)


def test_a_folder_with_none_of_the_images_is_refused(home: Path) -> None:
    shutil.rmtree(home / "images")
    save_pictures(home / "images", range(5))
    with pytest.raises(DataError, match=r"none of the run's images(.|\n)*5 other images"):
        held_out(home)


def test_a_finished_run_refuses_a_folder_with_few_of_its_images(home: Path, tmp_path: Path) -> None:
    recipe = (home / "run" / "recipe.yaml").read_bytes()
    shutil.copytree(home / "images" / "cat", tmp_path / "others" / "cat")
    save_pictures(tmp_path / "others" / "dog", range(30, 32))
    for name in sorted((tmp_path / "others" / "cat").glob("*.png"))[8:]:
        name.unlink()
    with pytest.raises(DataError, match=r"holds few of the run's images(.|\n)*another --out"):
        begin(home / "run", tmp_path / "others")
    assert (home / "run" / "recipe.yaml").read_bytes() == recipe
    shutil.rmtree(home / "images")  # the images are not needed any more, where they are said to be
    begin(home / "run", home / "images").run.release()


def test_a_damaged_list_is_refused_and_kept(home: Path) -> None:
    folder = RunFolder(home / "run")
    folder.listing.write_bytes(folder.listing.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"list of the run's images is damaged(.|\n)*restore"):
        held_out(home)
    assert folder.listing.is_file()


def test_copies_of_training_images_are_not_held_out(tmp_path: Path) -> None:
    save_pictures(tmp_path / "images", range(40))
    for i in range(40):
        picture(i).save(tmp_path / "images" / f"copy{i}.bmp")
    job = begin(tmp_path / "run", tmp_path / "images")
    images = job.run.images
    job.run.release()
    pixels = [each.pixels(np.arange(len(each))) for each in images.values()]
    assert len(images["validation"]) < 40
    train, validation = ({image.tobytes() for image in each} for each in pixels)
    assert validation and not train & validation
    found = Listing.load(tmp_path / "run" / "images.parquet").inventory
    assert [each["kind"] for each in found["passed_over"]] == ["copies"]


def test_rows_that_were_replaced_are_noticed_though_their_numbers_stay(tmp_path: Path) -> None:
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    def write(numbers: range) -> None:
        files = []
        for i in numbers:
            picture(i).save(buffer := io.BytesIO(), "PNG")
            files.append(buffer.getvalue())
        pq.write_table(pa.table({"image": files}), tmp_path / "x.parquet")

    write(range(40))
    source = {"data.source": {"type": "dataset", "path": str(tmp_path / "x.parquet")}}
    job = begin(tmp_path / "run", tmp_path, **source)
    job.train_tokenizer()
    job.run.release()
    folder = RunFolder(tmp_path / "run")
    assert differences_since(folder, folder.load_recipe()) == ""
    write(range(1000, 1040))
    assert "were written again" in differences_since(folder, folder.load_recipe())
    with pytest.raises(DataError, match="has other pixels than when the run began"):
        usable(open_run_split(folder, folder.load_recipe(), "validation")[0])


def test_both_parts_may_have_files_of_one_name(tmp_path: Path) -> None:
    save_pictures(tmp_path / "train" / "cat", range(20))
    save_pictures(tmp_path / "train" / "dog", range(20, 30))
    for name, first in (("cat", 100), ("dog", 200)):
        (tmp_path / "val" / name).mkdir(parents=True)
        for i in range(6):
            picture(first + i).save(tmp_path / "val" / name / f"{i:03d}.png")
    (tmp_path / "val" / "cat" / "000.png").write_bytes(b"no image")
    source = {"type": "folder", "path": str(tmp_path / "train"), "validation_path": str(tmp_path / "val")}
    changes = {"data.source": source, "data.max_failed_share": 0.2, "data.validation_share": 0.1}
    job = begin(tmp_path / "run", tmp_path, **changes)
    job.train_tokenizer()
    job.encode()
    job.train_prior()
    job.run.release()
    folder = RunFolder(tmp_path / "run")
    assert differences_since(folder, folder.load_recipe()) == ""
    images, _ = open_run_split(folder, folder.load_recipe(), "validation")
    pixels, _ = images.readable(np.arange(len(images)))
    assert len(pixels) == 11
    assert {each.tobytes() for each in pixels} == {
        np.asarray(picture(first + i)).tobytes() for first in (100, 200) for i in range(6)
    } - {np.asarray(picture(100)).tobytes()}
    (tmp_path / "val" / "cat" / "001.png").rename(tmp_path / "train" / "cat" / "900.png")
    said = differences_since(folder, folder.load_recipe())
    assert "1 new image is not in this run (cat/900.png); 1 of its images is gone (cat/001.png)" in said
