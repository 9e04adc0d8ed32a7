"""What a mirror has comes into a run folder all or nothing, verified, and never older over newer."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from support.crash_points import Places, stopped_everywhere, summary

from foundation.errors import CheckpointError, ConfigError
from foundation.storage.durable import file_sha256
from foundation.storage.remote.mirror import Mirror
from foundation.storage.remote.mirror_index import TakenOver, object_name
from pipeline.commands.start import fetched_run
from pipeline.runs.folder import RunFolder
from pipeline.runs.mirror import RunMirror, choose, is_left_out, open_mirror
from pipeline.runs.restore import progress, progress_text

ADDRESS = "memory://restored"


@pytest.fixture(autouse=True)
def _empty() -> Iterator[None]:
    system = fsspec.filesystem("memory")
    yield
    if system.exists("/restored"):
        system.rm("/restored", recursive=True)


def mirror_of(folder: Path) -> RunMirror:
    """Mirror a folder once, as a run does that begins and ends."""
    opened = open_mirror(ADDRESS, RunFolder(folder))
    assert opened is not None
    opened.fetch(print)
    opened.claim()
    mirror = Mirror(opened.store, opened.what())
    mirror.start()
    try:
        mirror.complete(patience=5.0)
    finally:
        mirror.stop()
    return opened


def fetched(folder: Path) -> list[str]:
    said: list[str] = []
    opened = open_mirror(ADDRESS, RunFolder(folder))
    assert opened is not None
    opened.fetch(said.append)
    return said


def files(root: Path) -> dict[str, str]:
    """Path => hash of what is mirrored of a folder."""
    paths = [path for path in root.rglob("*") if path.is_file() and not path.name.startswith(".")]
    names = {path.relative_to(root).as_posix(): path for path in paths}
    return {name: file_sha256(path) for name, path in names.items() if not is_left_out(name)}


def without(run: Path, *names: str) -> None:
    for name in names:
        path = run / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def test_a_run_comes_back_from_its_mirror_as_it_was(run_copy: Path, tmp_path: Path) -> None:
    (run_copy / "tracking" / "tensorboard").mkdir(parents=True)
    (run_copy / "tracking" / "tensorboard" / "events").write_text("of a tracker")
    (run_copy / "tracking" / "wandb-prior.json").write_text('{"id": "1"}')
    (run_copy / "link").symlink_to(tmp_path)
    mirror_of(run_copy)
    (said,) = fetched(tmp_path / "elsewhere" / "run")
    assert "step 6 of the prior" in said
    assert files(tmp_path / "elsewhere" / "run") == files(run_copy)
    assert not (tmp_path / "elsewhere" / "run" / "tracking" / "tensorboard").exists()
    assert not (tmp_path / "elsewhere" / "run" / "link").exists()
    assert fetched(tmp_path / "elsewhere" / "run") == [], "once"


def test_a_machine_comes_back_after_another_went_on(run_copy: Path, tmp_path: Path) -> None:
    back = Path(shutil.copytree(run_copy, tmp_path / "back"))
    without(back, "prior", "samples", "uses", "report.html", "model_index.json", "checkpoints/prior/step-00000006")
    metrics = (back / "metrics.jsonl").read_text().splitlines(keepends=True)
    (back / "metrics.jsonl").write_text("".join(metrics[:-3]))
    mirror_of(back)
    without(run_copy, "checkpoints/prior/step-00000002")
    (run_copy / "mirror.json").write_bytes((back / "mirror.json").read_bytes())
    mirror_of(run_copy)
    (said,) = fetched(back)
    assert "step 6 of the prior" in said
    assert files(run_copy).items() <= files(back).items()
    assert (back / "checkpoints/prior/step-00000002").is_dir(), "nothing of the folder is lost"


def test_older_never_comes_over_newer(run_copy: Path, tmp_path: Path) -> None:
    older = Path(shutil.copytree(run_copy, tmp_path / "older"))
    without(older, "prior", "samples", "uses", "report.html", "checkpoints/prior")
    mirror_of(older)
    (run_copy / "mirror.json").write_text((older / "mirror.json").read_text().replace('"token": "', '"token": "not-'))
    before = files(run_copy)
    assert fetched(run_copy) == [] and files(run_copy) == before


def test_what_the_user_removed_from_the_last_writer_does_not_come_back(run_copy: Path) -> None:
    mirror_of(run_copy)
    without(run_copy, "prior", "samples", "checkpoints/prior")
    assert fetched(run_copy) == [] and not (run_copy / "prior").exists()


def test_folders_that_went_different_ways_are_refused_and_stay_as_they_are(run_copy: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(run_copy, tmp_path / "other"))
    without(other, "prior", "samples", "report.html")
    mirror_of(run_copy)
    note = json.loads((run_copy / "mirror.json").read_text()) | {"token": "of an earlier start"}
    (other / "mirror.json").write_text(json.dumps(note))
    (other / "tokenizer" / "config.json").write_text("{}")
    before = files(other)
    with pytest.raises(CheckpointError, match=r"different ways(.|\n)*tokenizer/config.json differs"):
        fetched(other)
    assert files(other) == before


@pytest.mark.parametrize("damage", ["changed", "gone"])
@pytest.mark.parametrize("path", ["tokenizer/model.safetensors", "metrics.jsonl", "codes/manifest.json"])
def test_a_damaged_object_is_noticed_and_named_and_nothing_is_restored(
    run_copy: Path, tmp_path: Path, path: str, damage: str
) -> None:
    spoil(mirror_of(run_copy), path, damage)
    with pytest.raises(CheckpointError, match=f"{path} is {'damaged' if damage == 'changed' else 'missing'}") as caught:
        fetched(tmp_path / "elsewhere" / "run")
    assert "memory://restored/objects/" in str(caught.value)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def spoil(mirror: RunMirror, path: str, damage: str) -> None:
    assert mirror.store.index is not None
    system, place = fsspec.filesystem("memory"), f"/restored/{object_name(path, mirror.store.index.files[path])}"
    data = system.cat_file(place)
    system.rm_file(place)
    if damage == "changed":
        system.pipe_file(place, bytes([data[0] ^ 1]) + data[1:])


def test_a_damaged_checkpoint_is_left_out_by_name_where_there_is_an_older_one(run_copy: Path, tmp_path: Path) -> None:
    spoil(mirror_of(run_copy), "checkpoints/prior/step-00000006/state.safetensors", "changed")
    (said,) = fetched(tmp_path / "new")
    assert "step 4 of the prior" in said
    assert "left out: memory://" in said and "step-00000006/state.safetensors is damaged" in said
    assert not (tmp_path / "new/checkpoints/prior/step-00000006").exists()
    assert {name for name in files(run_copy) if "step-00000006/" not in name or "tokenizer" in name} == set(
        files(tmp_path / "new")
    )


def test_the_only_checkpoint_that_is_damaged_is_an_error(run_copy: Path, tmp_path: Path) -> None:
    without(run_copy, "checkpoints/prior/step-00000002", "checkpoints/prior/step-00000004")
    spoil(mirror_of(run_copy), "checkpoints/prior/step-00000006/MANIFEST.json", "changed")
    with pytest.raises(CheckpointError, match=r"MANIFEST.json is damaged"):
        fetched(tmp_path / "new")


def test_another_run_is_refused(run_copy: Path, tmp_path: Path) -> None:
    mirror_of(run_copy)
    other = Path(shutil.copytree(run_copy, tmp_path / "other"))
    (other / "mirror.json").unlink()
    with pytest.raises(CheckpointError, match="was not made from what this mirror holds"):
        open_mirror(ADDRESS, RunFolder(other))
    (other / "mirror.json").write_text(json.dumps({"address": ADDRESS, "run": "another", "token": ""}))
    with pytest.raises(CheckpointError, match="is the mirror of another run"):
        open_mirror(None, RunFolder(other))


def test_another_recipe_is_refused_before_anything_is_fetched(run_copy: Path, tmp_path: Path) -> None:
    mirror_of(run_copy)
    with pytest.raises(CheckpointError, match=r"memory://restored: .*another recipe") as caught:
        fetched_run("digits", str(tmp_path / "new"), {"seed": 7}, ADDRESS)
    assert "seed: the folder has 0, the recipe 7" in str(caught.value)
    assert not (tmp_path / "new").exists()
    with pytest.raises(CheckpointError, match="seed"):
        fetched_run(None, str(tmp_path / "new"), {"seed": 7}, ADDRESS)
    assert not (tmp_path / "new").exists()


def test_a_mirror_alone_gives_the_run_its_name_and_its_recipe(
    run_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror_of(run_copy)
    monkeypatch.chdir(tmp_path)
    recipe, out, opened = fetched_run(None, None, {"prior.training.fit.steps": 8}, ADDRESS)
    assert (recipe, out) == ("runs/run", None) and opened is not None
    assert files(tmp_path / "runs" / "run") == files(run_copy)


def test_a_mirror_without_a_run_needs_a_recipe(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no run yet"):
        fetched_run(None, None, None, ADDRESS)


def test_a_run_keeps_its_mirror_until_it_is_told_otherwise(run_copy: Path) -> None:
    assert open_mirror(None, RunFolder(run_copy)) is None
    mirror_of(run_copy)
    kept = open_mirror(None, RunFolder(run_copy))
    assert kept is not None and kept.store.address == ADDRESS
    assert open_mirror("none", RunFolder(run_copy)) is None
    assert open_mirror(None, RunFolder(run_copy)) is None


def test_a_run_that_begins_again_on_another_machine_ends_the_first(run_copy: Path, tmp_path: Path) -> None:
    first = mirror_of(run_copy)
    _, _, second = fetched_run(None, str(tmp_path / "second"), None, ADDRESS)
    assert second is not None
    with pytest.raises(TakenOver):
        first.store.commit({})


def test_whatever_happens_while_a_machine_catches_up_the_next_try_ends_the_same(run_copy: Path, tmp_path: Path) -> None:
    """Killed, or on a full or broken disk, at durable operations one after the other."""
    mirror_of(run_copy)
    behind = Path(shutil.copytree(run_copy, tmp_path / "behind"))
    without(behind, "tokenizer", "codes", "prior", "samples", "uses", "report.html", "model_index.json")
    without(behind, "checkpoints/prior", "checkpoints/tokenizer/step-00000006", "previews/prior")
    note = json.loads((run_copy / "mirror.json").read_text()) | {"token": ""}
    (behind / "mirror.json").write_text(json.dumps(note))
    outcomes = []
    for stopped in stopped_everywhere(Places(tmp_path / "places", behind).new, fetched, every=15):
        outcomes.append(stopped)
        RunFolder(stopped.place).sweep()
        for part in ("tokenizer", "prior", "samples", "codes/tokenizer"):
            if (stopped.place / part).exists():
                assert files(stopped.place / part) == files(run_copy / part), f"{part} is torn"
        fetched(stopped.place)
        assert files(stopped.place) == files(run_copy)
    assert summary(outcomes)["crash points"] > 10


def test_progress_orders_the_moments_of_a_run(run_copy: Path) -> None:
    names = list(files(run_copy))
    ends = [
        ("checkpoints/prior", "prior/", "samples/", "report.html", "codes/", "tokenizer/", "checkpoints/tokenizer"),
        ("checkpoints/prior", "prior/", "samples/", "report.html", "codes/", "tokenizer/"),
        ("checkpoints/prior", "prior/", "samples/", "report.html", "codes/"),
        ("checkpoints/prior", "prior/", "samples/", "report.html", "codes/manifest.json"),
        ("checkpoints/prior", "prior/", "samples/", "report.html"),
        ("checkpoints/prior/step-00000006", "prior/", "samples/", "report.html"),
        ("prior/", "samples/", "report.html"),
        ("samples/", "report.html"),
        ("report.html",),
        (),
    ]
    moments = [[name for name in names if not name.startswith(end)] for end in ends]
    assert sorted(moments, key=progress) == moments
    assert len({progress(each) for each in moments}) == len(moments)
    assert [progress_text(each) for each in moments[::4]] == [
        "no checkpoint yet",
        "2 files of codes",
        "step 6 of the prior",
    ]


def test_the_newest_checkpoint_comes_before_older_ones() -> None:
    names = [f"checkpoints/prior/step-{n:08d}/{name}" for n in (2, 4, 6) for name in ("MANIFEST.json", "state.json")]
    names += ["checkpoints/tokenizer/step-00000006/state.json", "metrics.jsonl"]
    listed = dict.fromkeys(names, (0, 0, 0))
    put: set[str] = set()
    seen = []
    while put != set(names):
        chosen = set(choose(listed, put.__contains__))
        assert put <= chosen
        seen.append(sorted({name.split("/")[2] for name in chosen - put if name.startswith("checkpoints/prior")}))
        put = chosen
    assert seen == [["step-00000006"], ["step-00000004"], ["step-00000002"]]
