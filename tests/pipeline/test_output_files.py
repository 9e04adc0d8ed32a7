"""Files of others are never replaced, and a refusal comes before any work."""

import errno
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from foundation.errors import ConfigError, DataError, StorageError
from pipeline import ImageGenerator
from pipeline.cli import main
from pipeline.image_files import files_below
from pipeline.output_files import RECORD, Outputs, overviews


def picture(path: Path, grey: int = 9) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (16, 12), grey).save(path)
    return path


@pytest.mark.parametrize("content", [b"mine", b""])
def test_a_file_that_we_did_not_write_stays(tmp_path: Path, content: bytes) -> None:
    outputs = Outputs(tmp_path / "out", {"seed": 1})
    outputs.require_free(["a.csv"])
    outputs.write("a.csv", b"ours")
    outputs.require_free(["a.csv"], ["*.csv"])
    outputs.write("a.csv", b"ours again")
    with pytest.raises(ConfigError, match="other settings"):
        Outputs(tmp_path / "out", {"seed": 2}).require_free(["a.csv"])
    (tmp_path / "out" / "a.csv").write_bytes(content)  # edited by its owner since
    for attempt in (lambda: outputs.require_free(["a.csv"]), lambda: outputs.write("a.csv", b"x")):
        with pytest.raises(ConfigError, match="not in the record"):
            attempt()
    assert (tmp_path / "out" / "a.csv").read_bytes() == content


def test_a_torn_record_and_a_link_protect_what_is_there(tmp_path: Path) -> None:
    outputs = Outputs(tmp_path, {})
    outputs.write("a.csv", b"ours")
    record = (tmp_path / RECORD).read_bytes()
    (tmp_path / RECORD).write_bytes(record[: len(record) // 2])
    with pytest.raises(ConfigError):
        outputs.require_free(["a.csv"])
    (tmp_path / "link.csv").symlink_to(tmp_path / "nothing")
    with pytest.raises(ConfigError, match=r"link\.csv"):
        outputs.require_free(["link.csv"])


@pytest.mark.parametrize("part", ["codes", "codes/data", "tokenizer", "prior/x", "samples", "uses", "checkpoints"])
def test_parts_of_a_run_are_no_place_for_outputs(finished_run: Path, part: str) -> None:
    with pytest.raises(ConfigError, match="choose another folder"):
        Outputs(finished_run / part, {}).require_free(["x.png"])


def test_models_and_datasets_elsewhere_and_files_are_no_place_either(finished_run: Path, tmp_path: Path) -> None:
    shutil.copytree(finished_run / "codes", tmp_path / "set")
    shutil.copytree(finished_run / "prior", tmp_path / "model")
    (tmp_path / "file").write_text("mine")
    for name in ("set", "set/data/new", "model", "file", "file/below"):
        with pytest.raises(ConfigError, match="--out"):
            Outputs(tmp_path / name, {}).require_free()


def test_a_folder_that_cannot_be_written_is_refused_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "touch", refuse)
    with pytest.raises(StorageError, match="permissions"):
        Outputs(tmp_path / "new", {}).require_free(["x"])


COMMANDS: dict[str, tuple[list[str], str]] = {
    "sample": (["sample", "RUN", "--class-labels", "3", "--seed", "0", "-o", "out"], "out/grid.png"),
    "sample, an image": (["sample", "RUN", "--class-labels", "3", "--seed", "0", "-o", "out"], "out/3-seed0.png"),
    "sample many": (["sample", "RUN", "--count", "3", "-o", "out"], "out/images/00000000-0.png"),
    "sample many, table": (["sample", "RUN", "--count", "3", "-o", "out"], "out/metadata.csv"),
    "reconstruct": (["reconstruct", "RUN", "in/a.png", "-o", "out"], "out/0000-a.png"),
    "edit": (["edit", "vary", "RUN", "in/a.png", "-o", "out"], "out/0000-a-all.png"),
    "edit, a result": (["edit", "complete", "RUN", "in/a.png", "-o", "out"], "out/0000-a-1.png"),
    "interpolate": (["interpolate", "RUN", "0", "1", "-o", "out/strip.png"], "out/strip.png"),
    "score": (["score", "RUN", "in/a.png", "-o", "out/list.csv"], "out/list.csv"),
    "evaluate": (["evaluate", "RUN", "--stage", "prior", "-o", "out/figures.json"], "out/figures.json"),
    "decode": (["decode", "RUN", "-o", "out"], "out/train/00000"),
    "report": (["report", "RUN"], "RUN/report.html"),
    "export": (["export", "RUN", "-o", "out"], "out/encoder.pt2"),
    "export-diffusers": (["export-diffusers", "RUN", "-o", "out"], "out/config.json"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_replaces_a_file_of_its_user(
    run_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, mine = COMMANDS[name]
    path = tmp_path / mine.replace("RUN", str(run_copy))
    picture(tmp_path / "in" / "a.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"drawn by hand")
    for work in ("__call__", "vary", "complete", "interpolate", "score", "decode"):
        monkeypatch.setattr(ImageGenerator, work, lambda *given, **options: pytest.fail("refused only after the work"))
    status = main([run_copy.as_posix() if each == "RUN" else each for each in arguments])
    said = capsys.readouterr().err
    assert status in (1, 2) and "error" in said and path.read_bytes() == b"drawn by hand", said
    assert "delete" not in said and "remove" not in said


def run_command(*arguments: object) -> int:
    return main([str(each) for each in arguments])


def test_sampling_again_with_other_settings_replaces_nothing(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    sample = ("sample", finished_run, "--class-labels", "3", "-o", "out", "--seed")
    assert run_command(*sample, 0) == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.name != RECORD}
    assert run_command(*sample, 0) == 0, "the same again is the same"
    assert run_command(*sample, 1) and run_command(*sample, 0, "--temperature", 0.5)
    assert "other settings" in capsys.readouterr().err
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.name != RECORD}
    for _ in range(3):
        assert run_command("sample", finished_run, "--class-labels", "3") == 0
    assert {path.name for path in tmp_path.iterdir()} == {"out", "new_samples", "new_samples-2", "new_samples-3"}


def test_a_refused_command_leaves_no_folder(finished_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "place"
    for wrong in (["--class-labels", "walrus"], ["--guidance-scale", "-1"]):
        assert main(["sample", str(finished_run), *wrong, "-o", str(out)]) == 2
        assert not out.parent.exists()


def test_pictures_of_several_images_are_not_scored(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run_command("sample", finished_run, "--class-labels", "3", "--num-images-per-label", 2, "-o", out) == 0
    assert overviews(out) == {"grid.png"}
    found = files_below([str(out)])
    assert len(found) == 2 and all("seed" in path.name for path in found)
    assert "grid.png" in capsys.readouterr().err
    assert files_below([str(out / "grid.png")]) == [out / "grid.png"], "a file that is named is taken"
    with pytest.raises(DataError, match="several images"):
        files_below([str(finished_run / "samples")])


def test_decoding_into_a_dataset_is_refused(run_copy: Path) -> None:
    before = sorted(path.name for path in (run_copy / "codes").iterdir())
    assert run_command("decode", run_copy, "-o", run_copy / "codes")
    assert sorted(path.name for path in (run_copy / "codes").iterdir()) == before
