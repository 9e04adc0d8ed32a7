"""The command line as a user meets it."""

import errno
import io
import os
import signal
import subprocess
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import yaml
from support.forked import start_command
from support.other_systems import windows
from support.tiny_run import ROOT, TINY

from foundation.storage import durable
from foundation.storage.durable import file_sha256
from pipeline.cli import COMMANDS, main
from pipeline.commands.fields import read_fields
from pipeline.commands.runs import run
from pipeline.generation.requests import image_seed
from pipeline.runs.recipe import load_recipe


def options(overrides: dict) -> list[str]:
    import json

    return [part for name, value in overrides.items() for part in (f"--{name}", json.dumps(value))]


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(list(arguments)) == 2
    error = capsys.readouterr().err
    assert "error: " in error and "Traceback" not in error
    return error


def test_fields_of_a_recipe_are_read_by_their_types() -> None:
    line = [
        "--prior.model.d-model",
        "1.6e2",
        "--name=007",
        "--tokenizer.model.quantizer.levels",
        "8",
        "6",
        "--tokenizer.model.quantizer.type",
        "fsq",
        "--samples.sampling.top_k",
        "null",
        "--description",
        "yes",
        "--encode.flip",
        "--prior.training.label_dropout=0.2",
    ]
    recipe = load_recipe("digits", read_fields(line, run))
    assert (recipe.name, recipe.description, recipe.prior.model.d_model) == ("007", "yes", 160)
    assert recipe.tokenizer.model.quantizer.levels == (8, 6) and recipe.encode.flip is True
    assert recipe.samples.sampling.top_k is None and recipe.prior.training.label_dropout == 0.2


@pytest.mark.parametrize("path", ["007", "2024-01-01", "12:30", "x #2", "yes", "0x1", "1e3"])
def test_text_stays_text(path: str) -> None:
    for line in (
        ["--data.source.path", path, "--data.source.type", "folder"],
        [f"--data.source={{type: folder, path: '{path}'}}"],
    ):
        assert load_recipe("digits", read_fields(line, run)).data.source.path == path


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        ("sampel RUN", "'sample'"),
        ("sample RUN --clas-labels 3", "--class-labels"),
        ("sample RUN --top-k many", "--top-k"),
        ("sample RUN --schedule liner", "linear"),
        ("sample", "RUN"),
        ("score RUN", "IMAGES"),
        ("edit inpaint RUN a.png", "--mask"),
        ("edit complet RUN a.png", "complete"),
        ("sample RUN extra", "sample takes RUN; found also 'extra'"),
        ("doctor now", "doctor takes no argument"),
        ("edit fly RUN", "tessera edit --help"),
        ("sample RUN --seed", "--seed needs a value"),
        ("run digits --tokenizer.model.quantizer.type fsqq", "'fsq'"),
        ("run digitts", "'digits'"),
        ("run digits --seed 1 --seed 2", "--seed is given twice"),
        ("sample nowhere", "nowhere"),
        ("decode nowhere --batch-size 0", "--batch-size"),
        ("run digits --prior.model.d-modle 256", "--prior.model.d-model"),
        ("run digits --fit.steps 3", "training.fit.steps"),
        ("run digits --print-recip", "--print-recipe"),
        ("run digits --seed", "--seed"),
        ("run digits --seed 1 2", "--seed"),
        ("run digits steps", "--NAME VALUE"),
        ("run digits --tokenizer.model.quantizer.widht 3", "width"),
        ("fields prior.modle", "prior.model"),
        ("sample RUN --class-labels", "--class-labels needs a value"),
        ("sample RUN --class-labels --seed 3", "--class-labels needs a value"),
        ("export RUN -o out --images", "--images needs a value"),
        ("sample RUN --seed 1.5", "--seed: has the wrong type"),
        ("sample RUN -o ~nosuchuser/x", "-o: names no home folder"),
        ("run folder --data.source.path ~nosuchuser/x", "data.source.path: names no home folder"),
        ("run digits --tokenizer.model.quantizer.type bqs", "did you mean 'bsq'?"),
        ("run digits --encode.corner-scale 1.2", "encode.corner_scale: has no effect"),
        ("encode digits --status --retry-failed", "--retry-failed: has no effect with --status"),
        ("encode digits --status --max-bad 1%", "--max-bad: has no effect with --status"),
        ("evaluate RUN --stage prior --extractor inception", "--extractor: has no effect on the prior"),
        ("sample RUN --count 3 --images-per-file 4", "--images-per-file: has no effect with --format png"),
        ("sample RUN --partial --best-of 2", "--partial: cannot be used with --best-of"),
    ],
)
def test_a_typing_mistake_is_answered_in_one_line(
    arguments: str, answer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    error = refused(capsys, *arguments.split())
    assert error.count("\n") == 1 and answer in error


@pytest.mark.parametrize("command", ["", *(name for commands in COMMANDS.values() for name in commands)])
def test_a_command_s_help_fits_a_screen(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command.split(), "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert 3 <= len(lines) <= 50 and max(map(len, lines)) <= 100 and not any(line.endswith(" ...") for line in lines)


def test_a_whole_number_may_be_written_in_the_way_of_science(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "digits", "--print-recipe", "--prior.training.fit.steps", "1e4", "--seed=2e0"]) == 0
    out = capsys.readouterr().out
    assert "steps: 10000\n" in out and "seed: 2\n" in out
    assert "nowhere" in refused(capsys, "sample", "nowhere", "--seed", "1e1", "--count", "1e2")


def test_broken_yaml_is_one_line_with_the_file_and_the_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.yaml").write_text("name: x\ndata: {a: [1\nseed: 2\n")
    error = refused(capsys, "run", str(tmp_path / "x.yaml"))
    assert error.startswith(f"error: {tmp_path / 'x.yaml'}, line 3: is not readable") and error.count("\n") == 1


def test_nothing_heavy_is_imported_to_answer_about_commands_and_recipes() -> None:
    code = (
        "import sys; from pipeline.cli import main\n"
        "for line in ('--help', 'run --help', 'sample --help', 'edit vary --help', 'recipes', 'fields',\n"
        "             'fields prior', 'run digits --print-recipe --prior.model.d-model 64',\n"
        "             'run digits --prior.model.d-modle 64'):\n"
        "    main(line.split())\n"
        "print(sorted({'torch', 'numpy', 'PIL', 'pyarrow', 'transformers', 'datasets'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_reader_that_stops_early_ends_a_command_quietly() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    for arguments in (["recipes"], ["run", "--help"], ["fields", "tokenizer"]):
        line = [sys.executable, "-m", "pipeline.cli", *arguments]
        done = subprocess.run(line, stdout=writer, stderr=subprocess.PIPE, check=False)
        assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b""), arguments
    os.close(writer)


def test_a_pipe_that_nobody_reads_ends_quietly_on_windows_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open(tmp_path / "out", "wb") as target:

        class Broken(io.RawIOBase):
            def writable(self) -> bool:
                return True

            def write(self, content: object) -> int:
                raise OSError(errno.EINVAL, "Invalid argument")

            def fileno(self) -> int:
                return target.fileno()

        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(Broken(), write_through=True))
        with windows():
            assert main(["recipes"]) == 128 + 13


def test_names_outside_the_encoding_of_the_terminal_are_printed_with_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(printed, encoding="cp1252", write_through=True))
    assert main(["run", "\u732b"]) == 2
    assert b"\\u732b" in printed.getvalue()


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (["run", "digits", "--name", "aux"], ["name", "'aux'", "Windows"]),
        (["run", "digits", "--name", "a."], ["name", "'a.'", "Windows"]),
        (["run", "digits", "--prior.model.n_layer", "3"], ["--prior.model.n_layer", "--prior.model.n-layers?"]),
        (["run", "digits", "--tokenizer.model.quantizer.type", "vqq"], ["quantizer.type", "'vq'"]),
        (["run", "digits", "--prior.training.fit.steps", "many"], ["prior.training.fit.steps", "'many'", "whole"]),
        (["run", "digits", "--prior.training.fit.steps", "0"], ["prior.training.fit.steps", "above 0"]),
        (["run", "digits", "--data.preprocess.height", "9"], ["data.preprocess.height", "9", "multiple of 2", "10"]),
        (["run", "cifr10"], ["cifr10", "built-in", "'cifar10'?"]),
        (["run", "digits", "--data.source", "{type: folder, path: /nowhere}"], ["data.source.path", "/nowhere"]),
        (["sample", "nowhere"], ["nowhere", "no such folder"]),
        (["report", "nowhere"], ["nowhere", "not a run folder", "no such folder"]),
        (["run", "digits", "--seed"], ["--seed", "takes one value"]),
        (
            ["run", "digits", "--tokenizer.model.networks.attention_levels", "[1"],
            ["attention_levels", "not a YAML value"],
        ),
        (["run", "digits", "--tokenizer.model.networks.norm_groups", "0"], ["norm_groups", "above 0"]),
        (["run", "digits", "--samples.images_per_class", "0"], ["samples.images_per_class", "positive"]),
        (["run", "digits", "--prior.training.label_dropout", "0"], ["label_dropout", "guidance_scale"]),
        (["run", "digits", "--out", ""], ["--out", "run folder"]),
    ],
)
def test_mistakes_are_answered_with_the_way_out(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list,
    fragments: list,
) -> None:
    monkeypatch.chdir(tmp_path)
    error = refused(capsys, *arguments)
    for fragment in fragments:
        assert fragment in error


def test_an_empty_folder_of_images_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "images").mkdir()
    source = f"{{type: folder, path: {tmp_path / 'images'}}}"
    run = ("run", "digits", "--out", str(tmp_path / "run"), "--data.source", source)
    assert "no image files" in refused(capsys, *run)


def test_a_full_disk_stops_with_a_reason_and_the_run_continues_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], finished_run: Path
) -> None:
    """The disk fills up at the second checkpoint; once there is room, the run ends like one that was never stopped."""
    import errno

    real, calls = durable._fsync, []

    def fsync(path: Path) -> None:
        calls.append(path)
        if len([each for each in calls if each.name == "state.safetensors"]) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path)

    line = ["run", "digits", "--out", str(tmp_path / "run"), *options(TINY)]
    monkeypatch.setattr(durable, "_fsync", fsync)
    error = refused(capsys, *line)
    assert "the disk is full" in error and "free some space" in error
    monkeypatch.setattr(durable, "_fsync", real)
    assert main(line) == 0
    for part in ("tokenizer/model.safetensors", "prior/model.safetensors", "samples/codes.npy"):
        assert file_sha256(tmp_path / "run" / part) == file_sha256(finished_run / part)


def start(folder: Path) -> BaseProcess:
    return start_command(["run", "digits", "--out", str(folder), *options(TINY)], folder.with_name("said"))


def wait_for(path: Path, process: BaseProcess) -> None:
    while not path.exists() and process.is_alive():
        time.sleep(0.005)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_signal_saves_at_the_step_boundary(tmp_path: Path, number: signal.Signals, finished_run: Path) -> None:
    process = start(tmp_path / "run")
    wait_for(tmp_path / "run" / "checkpoints" / "tokenizer" / "step-00000002", process)
    assert process.pid is not None and process.is_alive()
    os.kill(process.pid, number)
    process.join(timeout=120)
    if process.exitcode:  # else it was done before the signal came
        out = (tmp_path / "said").read_text()
        assert process.exitcode == 128 + number, out
        assert "run the same command again" in out and "Traceback" not in out
    assert main(["run", "digits", "--out", str(tmp_path / "run"), *options(TINY)]) == 0
    part = "prior/model.safetensors"
    assert file_sha256(tmp_path / "run" / part) == file_sha256(finished_run / part)


def test_a_killed_run_ends_like_one_that_was_not(tmp_path: Path, finished_run: Path) -> None:
    """SIGKILL in the middle of each stage, then to the end: weights, codes and samples are the same to the bit."""
    moments = (
        "metrics.jsonl",
        "checkpoints/tokenizer/step-00000004",
        "tokenizer/config.json",
        "codes/data/train",
        "checkpoints/prior/step-00000002",
        "prior/config.json",
    )
    kills = 0
    for moment in moments:
        process = start(tmp_path / "run")
        wait_for(tmp_path / "run" / moment, process)
        kills += process.is_alive()
        process.kill()
        process.join()
    assert kills >= 4
    process = start(tmp_path / "run")
    process.join(timeout=300)
    assert process.exitcode == 0, (tmp_path / "said").read_text()
    for part in ("tokenizer", "codes", "prior", "samples"):
        files = [path for path in (finished_run / part).rglob("*") if path.is_file()]
        assert files
        for path in files:
            twin = tmp_path / "run" / path.relative_to(finished_run)
            assert file_sha256(twin) == file_sha256(path), path


def test_sample_and_reconstruct_write_pictures(
    finished_run: Path, mixed_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = str(finished_run), str(tmp_path / "out")
    assert (
        main(["sample", run, "--class-labels", "3", "7", "--num-images-per-label", "2", "--seed", "5", "--out", out])
        == 0
    )
    names = {path.name for path in (tmp_path / "out").glob("*.png")}
    seeds = [image_seed(5, i) for i in range(4)]
    images = {f"{label}-seed{seed}.png" for label, seed in zip("3377", seeds, strict=True)}
    assert names == {*images, "grid.png"}
    pictures = str(tmp_path / "pictures")
    assert main(["reconstruct", run, str(mixed_folder), "--out", pictures]) == 0
    text = capsys.readouterr().out
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 30
    assert "mean PSNR" in text and text.count("unusable") == 2
    assert "corrupt.png" in text and "empty.jpg" in text


def test_outputs_and_devices_that_cannot_be_used_are_refused(
    run_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(run_copy)
    (tmp_path / "file").write_text("")
    assert "is a file" in refused(capsys, "sample", run, "--out", str(tmp_path / "file"))
    assert "keeps its own samples" in refused(capsys, "sample", run, "--out", str(run_copy / "samples"))
    assert "use cpu" in refused(capsys, "sample", run, "--device", "gpu", "--out", str(tmp_path / "out"))
    (tmp_path / "bad.png").write_bytes(b"x")
    line = ("reconstruct", run, str(tmp_path / "bad.png"), "--out", str(tmp_path / "out"))
    assert "none of the images" in refused(capsys, *line)
    assert "no such file or folder" in refused(capsys, "reconstruct", run, "nowhere.png")


def test_track_is_the_recipe_s_tracker(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "digits", "--print-recipe", "--track", "trackio"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["machine"]["track"] == "trackio"
    assert main(["run", "digits", "--print-recipe", "--track", "aim"]) != 0
    assert "tensorboard" in capsys.readouterr().err


def test_print_recipe_needs_no_value(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["run", "digits", "--print-recipe", "--tokenizer.model.quantizer.type", "fsq"]) == 0
    assert "type: fsq" in capsys.readouterr().out


def test_one_part_at_a_time_gives_the_same_run(tmp_path: Path, finished_run: Path) -> None:
    folder = ["--out", str(tmp_path / "run"), *options(TINY)]
    for command in ("train-tokenizer", "encode", "train-prior"):
        assert main([command, "digits", *folder]) == 0
    assert not (tmp_path / "run" / "samples").exists()
    assert main(["run", str(tmp_path / "run")]) == 0
    for part in ("prior/model.safetensors", "samples/codes.npy"):
        assert file_sha256(tmp_path / "run" / part) == file_sha256(finished_run / part)


def test_the_parts_say_what_comes_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = ("--out", str(tmp_path / "run"), *options(TINY))
    assert "train-tokenizer" in refused(capsys, "encode", "digits", *folder)
    assert "tessera encode" in refused(capsys, "train-prior", "digits", *folder)


def test_fields_are_listed_with_default_and_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fields"]) == 0 and "tokenizer.model.quantizer" in capsys.readouterr().out
    for section in ("data", "tokenizer", "encode", "prior", "samples", "machine"):
        assert main(["fields", section]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert max(map(len, lines)) <= 100
        rows = [line for line in lines if line.startswith("  ") and not line.startswith(" " * 9)]
        assert rows and all(len(line.split()) >= 4 for line in rows), "a default and a meaning"
    assert main(["fields", "prior.training.label-dropout"]) == 0
    assert capsys.readouterr().out.split()[:2] == ["label_dropout", "0.1"]


def test_doctor_finds_this_installation_sound(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    assert "torchvision" in capsys.readouterr().out


def test_doctor_recognises_a_torchvision_that_does_not_match(monkeypatch: pytest.MonkeyPatch) -> None:
    from foundation import hardware
    from pipeline.commands.inspect import diagnose

    def broken(name: str) -> None:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(hardware.importlib, "import_module", broken)
    finding = next(each for each in diagnose() if each.subject == "torchvision")
    assert "does not match" in finding.state and finding.cure and "pip install" in finding.cure


def test_a_folder_that_may_not_be_read_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(path: Path) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_file", refuse)
    assert "readable for this user" in refused(capsys, "report", str(tmp_path / "run"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_output_that_cannot_be_written_is_said_in_a_line() -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "pipeline.cli", "recipes"]
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT, check=False)
    assert (ended.returncode, ended.stderr) == (2, "error: the output cannot be written: No space left on device\n")
