"""The command line as a user meets it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from foundation.storage import durable
from foundation.storage.durable import file_sha256
from pipeline.arguments import join_images, join_overrides
from pipeline.cli import main

from support.tiny_run import TINY  # isort: skip


def options(overrides: dict) -> list[str]:
    import json

    return [part for name, value in overrides.items() for part in (f"--{name}", json.dumps(value))]


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(list(arguments)) == 2
    error = capsys.readouterr().err
    assert "error: " in error and "Traceback" not in error
    return error


def test_recipe_overrides_are_told_from_a_command_s_own_arguments() -> None:
    line = ["run", "digits", "--run_dir", "x.y", "--a.b", "3", "--c.d=[1, 2]", "--seed", "7", "--print_recipe", "true"]
    *own, overrides = join_overrides(line)
    assert own == ["run", "digits", "--run_dir", "x.y", "--print_recipe", "true"]
    assert overrides == '--overrides={"a.b": 3, "c.d": [1, 2], "seed": 7}'
    assert join_overrides(["sample", "r", "--seed", "7"]) == ["sample", "r", "--seed", "7"]


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (["run", "digits", "--prior.model.n_layer", "3"], ["prior.model.n_layer", "'n_layers'?"]),
        (["run", "digits", "--tokenizer.model.quantizer.type", "vqq"], ["quantizer.type", "'vq'"]),
        (["run", "digits", "--prior.training.fit.steps", "many"], ["prior.training.fit.steps", "'many'", "whole"]),
        (["run", "digits", "--prior.training.fit.steps", "0"], ["prior.training.fit.steps", "positive"]),
        (["run", "digits", "--data.preprocess.height", "9"], ["data.preprocess.height", "9", "multiple of 2", "10"]),
        (["run", "cifr10"], ["cifr10", "built-in", "'cifar10'?"]),
        (["run", "digits", "--data.source", "{type: folder, path: /nowhere}"], ["data.source.path", "/nowhere"]),
        (["sample", "nowhere"], ["nowhere", "no such folder"]),
        (["report", "nowhere"], ["nowhere", "not a run folder", "no such folder"]),
        (["run", "digits", "--seed"], ["--seed", "no value"]),
        (["run", "digits", "--prior.model.d_model", "[1"], ["--prior.model.d_model", "not a YAML value"]),
        (["run", "digits", "--tokenizer.model.norm_groups", "0"], ["norm_groups", "positive"]),
        (["run", "digits", "--samples.images_per_class", "0"], ["samples.images_per_class", "positive"]),
        (["run", "digits", "--prior.training.label_dropout", "0"], ["label_dropout", "guidance_scale"]),
        (["run", "digits", "--run_dir", ""], ["--run_dir", "run folder"]),
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
    run = ("run", "digits", "--run_dir", str(tmp_path / "run"), "--data.source", source)
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

    line = ["run", "digits", "--run_dir", str(tmp_path / "run"), *options(TINY)]
    monkeypatch.setattr(durable, "_fsync", fsync)
    error = refused(capsys, *line)
    assert "the disk is full" in error and "free some space" in error
    monkeypatch.setattr(durable, "_fsync", real)
    assert main(line) == 0
    for part in ("tokenizer/model.safetensors", "prior/model.safetensors", "samples/codes.npy"):
        assert file_sha256(tmp_path / "run" / part) == file_sha256(finished_run / part)


def start(folder: Path) -> subprocess.Popen:
    line = [sys.executable, "-m", "pipeline.cli", "run", "digits", "--run_dir", str(folder), *options(TINY)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(_threads())}
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment)


def _threads() -> int:
    import torch

    return torch.get_num_threads()


def wait_for(path: Path, process: subprocess.Popen) -> None:
    while not path.exists() and process.poll() is None:
        time.sleep(0.005)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_signal_saves_at_the_step_boundary(tmp_path: Path, number: signal.Signals, finished_run: Path) -> None:
    process = start(tmp_path / "run")
    wait_for(tmp_path / "run" / "checkpoints" / "tokenizer" / "step-00000002", process)
    process.send_signal(number)
    out, _ = process.communicate(timeout=120)
    if process.returncode:  # else it was done before the signal came
        assert process.returncode == 128 + number, out.decode()
        assert b"run the same command again" in out and b"Traceback" not in out
    process = start(tmp_path / "run")
    assert process.wait(timeout=120) == 0
    part = "prior/model.safetensors"
    assert file_sha256(tmp_path / "run" / part) == file_sha256(finished_run / part)


def test_a_killed_run_ends_like_one_that_was_not(tmp_path: Path, finished_run: Path) -> None:
    """SIGKILL in the middle of each stage, then to the end: weights, codes and samples are the same to the bit."""
    moments = (
        "metrics.jsonl", "checkpoints/tokenizer/step-00000004", "tokenizer/config.json", "codes/data/train",
        "checkpoints/prior/step-00000002", "prior/config.json",
    )  # fmt: skip
    kills = 0
    for moment in moments:
        process = start(tmp_path / "run")
        wait_for(tmp_path / "run" / moment, process)
        kills += process.poll() is None
        process.kill()
        process.communicate()
    assert kills >= 4
    process = start(tmp_path / "run")
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out.decode()
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
        main(["sample", run, "--class_labels", "[3, '7']", "--num_images_per_label", "2", "--seed", "5", "--out", out])
        == 0
    )
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"3-seed5.png", "3-seed6.png", "7-seed7.png", "7-seed8.png", "grid.png"}
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
    assert "could not be written" in refused(capsys, "sample", run, "--out", str(tmp_path / "file"))
    assert "keeps its own samples" in refused(capsys, "sample", run, "--out", str(run_copy / "samples"))
    assert "use cpu" in refused(capsys, "sample", run, "--device", "gpu", "--out", str(tmp_path / "out"))
    (tmp_path / "bad.png").write_bytes(b"x")
    line = ("reconstruct", run, str(tmp_path / "bad.png"), "--out", str(tmp_path / "out"))
    assert "none of the images" in refused(capsys, *line)
    assert "no such file or folder" in refused(capsys, "reconstruct", run, "nowhere.png")


def test_images_may_be_listed_as_the_shell_expands_them() -> None:
    line = ["reconstruct", "run", "a.png", "b c.png", "--out", "x", "d.png", "--device=cpu"]
    assert join_images(line) == ["reconstruct", "run", '["a.png", "b c.png", "d.png"]', "--out", "x", "--device=cpu"]
    assert join_images(["reconstruct", "run", "a.png"]) == ["reconstruct", "run", "a.png"]


def test_print_recipe_needs_no_value(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["run", "digits", "--print_recipe", "--tokenizer.model.quantizer.type", "fsq"]) == 0
    assert "type: fsq" in capsys.readouterr().out


def test_one_part_at_a_time_gives_the_same_run(tmp_path: Path, finished_run: Path) -> None:
    folder = ["--run_dir", str(tmp_path / "run"), *options(TINY)]
    for command in ("train-tokenizer", "encode", "train-prior"):
        assert main([command, "digits", *folder]) == 0
    assert not (tmp_path / "run" / "samples").exists()
    assert main(["run", str(tmp_path / "run")]) == 0
    for part in ("prior/model.safetensors", "samples/codes.npy"):
        assert file_sha256(tmp_path / "run" / part) == file_sha256(finished_run / part)


def test_the_parts_say_what_comes_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = ("--run_dir", str(tmp_path / "run"), *options(TINY))
    assert "train-tokenizer" in refused(capsys, "encode", "digits", *folder)
    assert "tessera encode" in refused(capsys, "train-prior", "digits", *folder)


def test_help_lists_every_field_of_a_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    text = capsys.readouterr().out
    for name in ("--seed", "--data.preprocess.height", "--tokenizer.model.quantizer.levels", "--prior.model.d_model",
                 "--prior.training.label_dropout", "--samples.sampling.top_p"):  # fmt: skip
        line = next(line for line in text.splitlines() if line.strip().startswith(name + " "))
        assert len(line.split()) > 3, f"{name} has no description"


def test_doctor_finds_this_installation_sound(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    assert "torchvision" in capsys.readouterr().out


def test_doctor_recognises_a_torchvision_that_does_not_match(monkeypatch: pytest.MonkeyPatch) -> None:
    from foundation import hardware
    from pipeline.doctor import diagnose

    def broken(name: str) -> None:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(hardware.importlib, "import_module", broken)
    finding = next(each for each in diagnose() if each.subject == "torchvision")
    assert "does not match" in finding.state and finding.cure and "pip install" in finding.cure


def test_help_comes_quickly_without_torch() -> None:
    code = (
        "import sys; from pipeline.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, stdout=subprocess.DEVNULL).returncode == 0
