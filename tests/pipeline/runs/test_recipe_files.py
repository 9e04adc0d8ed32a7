"""Recipe files: what they extend, where their paths lead, and what a run folder finds again."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from foundation.config import digest
from foundation.errors import CheckpointError, ConfigError
from pipeline.runs.folder import RunFolder
from pipeline.runs.recipe import determining, load_recipe, recipe_text
from pipeline.runs.recipe_files import read_recipe

BASE = "name: base\ndata: {source: {type: folder, path: images}}\n"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory is ``elsewhere``; ``project`` holds a recipe and its images."""
    (tmp_path / "project" / "images").mkdir(parents=True)
    (tmp_path / "project" / "base.yaml").write_text(BASE)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path


def test_paths_in_a_file_are_relative_to_it_and_others_to_the_working_directory(place: Path) -> None:
    recipe = str(place / "project" / "base.yaml")
    assert load_recipe("../project/base.yaml").data.source.path == str(place / "project" / "images")
    assert load_recipe(recipe, {"data.source.path": "x"}).data.source.path == "x"
    assert load_recipe(recipe, {"data.source.path": Path("x")}).data.source.path == "x"
    assert load_recipe("folder").data.source.path == "images"
    assert load_recipe("cifar10").data.source.path == "uoft-cs/cifar10"


def test_what_it_extends_is_beside_it(place: Path) -> None:
    folder = place / "project" / "more"
    folder.mkdir()
    for named in ("../base", "../base.yaml", str(place / "project" / "base.yaml"), "[digits, ../base]"):
        (folder / "mine.yaml").write_text(f"extends: {named}\nname: mine\n")
        recipe = load_recipe(str(folder / "mine.yaml"))
        assert (recipe.name, recipe.data.source.path) == ("mine", str(place / "project" / "images"))
    (place / "elsewhere" / "here.yaml").write_text(BASE)
    (folder / "mine.yaml").write_text("extends: here\nname: mine\n")
    with pytest.raises(ConfigError, match=r"extends: is not there(.|\n)*write \.\./\.\./elsewhere/here.yaml"):
        load_recipe(str(folder / "mine.yaml"))


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("data: {source: {type: folder, path: here}}", "data.source.path"),
        ("data: {source: {type: dataset, path: here}}", "data.source.path"),
        ("data: {source: {type: folder, path: ., labels: here}}", "data.source.labels"),
        ("tokenizer: {pretrained: here}", "tokenizer.pretrained"),
        ("tokenizer: {training: {perceptual: {weight: 1, vgg_weights: here}}}", "tokenizer.training.perceptual"),
        ("machine: {tokens: {packed_folder: here}}", "machine.tokens.packed_folder"),
    ],
)
def test_what_is_only_in_the_working_directory_is_refused_with_the_way_out(place: Path, text: str, field: str) -> None:
    (place / "elsewhere" / "here").mkdir()
    (place / "project" / "x.yaml").write_text(f"name: x\n{text}\n")
    with pytest.raises(ConfigError, match=rf"^{field}(.|\n)*write \.\./elsewhere/here"):
        load_recipe(str(place / "project" / "x.yaml"))


def test_an_empty_path_and_a_user_that_is_none_are_refused() -> None:
    for path, message in (("", "data.source.path(.|\n)*a path"), ("~nosuchuser/x", "data.source.path(.|\n)*home")):
        with pytest.raises(ConfigError, match=message):
            load_recipe("folder", {"data.source.path": path})


def claimed(place: Path) -> RunFolder:
    folder = RunFolder(place / "project" / "runs" / "a")
    folder.root.mkdir(parents=True)
    folder.claim(load_recipe(str(place / "project" / "base.yaml")))
    return folder


def test_a_run_finds_its_data_when_both_moved_and_where_it_was(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = claimed(place)
    images = place / "project" / "images"
    assert "data.source.path: ../../images" in folder.recipe.read_text()
    assert folder.load_recipe().data.source.path == str(images)
    moved = place / "moved"
    shutil.copytree(place / "project", moved)
    assert RunFolder(moved / "runs" / "a").load_recipe().data.source.path == str(images)
    assert f"using {images}" in capsys.readouterr().err
    shutil.rmtree(place / "project")
    assert RunFolder(moved / "runs" / "a").load_recipe().data.source.path == str(moved / "images")
    assert f"{images} is gone; using {moved / 'images'}" in capsys.readouterr().err
    shutil.move(moved / "runs" / "a", place / "a")
    assert RunFolder(place / "a").load_recipe().data.source.path == str(images), "neither: as it was written"


def test_moved_data_is_no_other_recipe_and_is_written_down(place: Path) -> None:
    folder = claimed(place)
    (folder.root / "tokenizer").mkdir()
    shutil.move(place / "project" / "images", place / "pictures")
    recipe = load_recipe(str(folder.recipe), {"data.source.path": str(place / "pictures")})
    folder.claim(recipe)
    assert folder.load_recipe().data.source.path == str(place / "pictures")
    with pytest.raises(CheckpointError, match=r"data.source.labels"):
        folder.claim(load_recipe(str(folder.recipe), {"data.source.labels": "l.csv"}))
    one, other = (load_recipe("folder", {"data.source.path": path}).data for path in ("a", "b"))
    assert digest(determining(one)) == digest(determining(other))
    share = load_recipe("folder", {"data.source.path": "a", "data.validation_share": 0.3}).data
    assert digest(determining(one)) != digest(determining(share))


def test_a_run_of_an_earlier_version_is_read_as_it_was(place: Path) -> None:
    """It named its data relative to the working directory, and said nothing of where that was."""
    (place / "project" / "recipe.yaml").write_text(f"{BASE}versions: {{python: '3'}}\n")
    assert load_recipe(str(place / "project" / "recipe.yaml")).data.source.path == "images"


def test_a_printed_recipe_means_the_same_elsewhere(place: Path) -> None:
    text = recipe_text(load_recipe("../project/base.yaml"))
    (place / "printed.yaml").write_text(text)
    assert load_recipe(str(place / "printed.yaml")) == load_recipe("../project/base.yaml")
    assert read_recipe(str(place / "printed.yaml")).own == {}
