"""Many processes, in any order, one dataset; nothing is done twice.

A file of an export must hold what the plan says.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.tiny_export import CONFIG, content, open_tiny, sources_of, tiny_export

from foundation.codes.dataset import TokenDataset
from foundation.codes.manifest import MANIFEST, write_manifest
from foundation.codes.shards import Shard, read_shard
from foundation.errors import ConfigError, ContractError, DataError, Interrupted, StorageError
from pipeline.encoding.accounts import by_code, require_planned, share, totals
from pipeline.encoding.export import LEASES, PLAN, Export
from pipeline.encoding.plan import ExportPlan, PlannedShard
from pipeline.encoding.status import export_status
from pipeline.work_sharing import Part
from stage1_tokenizer import canary
from stage1_tokenizer.tokenizer import TokenizerModel

Inputs = tuple[Path, Path]


class Killed(Exception):
    """In the place of a kill."""


def stop_after(export: Export, monkeypatch: pytest.MonkeyPatch, n_files: int) -> None:
    """Write so many files, then die."""
    written: list[PlannedShard] = []
    write = export.write

    def writing(planned: PlannedShard, done: object) -> None:
        if len(written) == n_files:
            raise Killed
        written.append(planned)
        write(planned, done)  # type: ignore[arg-type]

    monkeypatch.setattr(export, "write", writing)
    with pytest.raises(Killed):
        export.take_part(quiet=True)


def encode_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with each batch that any tokenizer encodes."""
    calls: list[int] = []
    encode = TokenizerModel.encode

    def counted(model: TokenizerModel, images: torch.Tensor) -> torch.Tensor:
        calls.append(len(images))
        return encode(model, images)

    monkeypatch.setattr(TokenizerModel, "encode", counted)
    return calls


def work(images: Path, tokenizer: Path, codes: Path, part: Part) -> None:
    torch.set_num_threads(1)
    os._exit(0 if tiny_export(images, tokenizer, codes, part=part, wait=False) is not None else 1)


@pytest.mark.parametrize(
    "parts", [[Part(1, 3), Part(0, 3), Part(2, 3)], [Part(i, 8) for i in (5, 2, 7, 0, 1, 6, 3, 4)]]
)
def test_any_number_of_processes_make_the_same_dataset(
    inputs: Inputs, clean: Path, tmp_path: Path, parts: list[Part]
) -> None:
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=work, args=(*inputs, tmp_path / "codes", part)) for part in parts]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * len(parts)
    assert content(tmp_path / "codes") == content(clean), "whoever was the last finished it"


def test_one_after_the_other_and_alone_they_make_it_too(inputs: Inputs, clean: Path, tmp_path: Path) -> None:
    assert tiny_export(*inputs, tmp_path / "codes", part=Part(2, 3), wait=False), "it helps with parts nobody began"
    assert content(tmp_path / "codes") == content(clean)


@pytest.mark.parametrize("n_files", [0, 1, 9])
def test_what_is_written_is_never_encoded_again(
    inputs: Inputs, clean: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_files: int
) -> None:
    stop_after(open_tiny(*inputs, tmp_path / "codes"), monkeypatch, n_files)
    monkeypatch.undo()
    calls = encode_calls(monkeypatch)
    export = open_tiny(*inputs, tmp_path / "codes")
    opening = len(calls)
    assert export.take_part(quiet=True)
    missing = [each for each in export.shards if each.name not in _first(export, n_files)]
    assert len(calls) - opening == sum(2 * len(each.views) for each in missing), "2 batches of a file, in each view"
    assert content(tmp_path / "codes") == content(clean)
    calls.clear()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "codes" / "data").rglob("*")}
    assert tiny_export(*inputs, tmp_path / "codes")
    assert len(calls) == opening, "nothing but the check of the stored images"
    assert {path: path.stat().st_mtime_ns for path in before} == before


def _first(export: Export, n: int) -> set[str]:
    return {each.name for each in export.shards[:n]}


def test_nobody_reads_an_unfinished_dataset(inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_after(open_tiny(*inputs, tmp_path / "codes"), monkeypatch, 7)
    with pytest.raises(DataError, match="not complete"):
        TokenDataset(tmp_path / "codes")
    status = export_status(tmp_path / "codes")
    assert (status.planned, status.written, status.failed) == (40, 28, 0)
    assert (status.files, status.files_written, status.finished) == (10, 7, False)
    assert "28 of 40 images" in status.text() and "7 of 10 files" in status.text()
    with pytest.raises(DataError, match="no export has begun"):
        export_status(tmp_path)


def test_the_work_of_the_dead_is_taken_over_and_that_of_the_living_is_not(
    inputs: Inputs, clean: Path, tmp_path: Path
) -> None:
    leases = tmp_path / "codes" / LEASES
    leases.mkdir(parents=True)
    dead = multiprocessing.get_context("fork").Process(target=lambda: None)
    dead.start()
    dead.join()
    owner = f".tmp-{'0' * 12}-1-1-{'0' * 12}-x"  # of another machine, so that its heart alone tells
    living = leases / "train-00001.json"
    living.write_text(json.dumps({"owner": owner, "host": "elsewhere", "pid": 1}))
    (leases / "train-00002.json").write_text(
        json.dumps({"owner": _owner(dead.pid or 0), "host": platform.node(), "pid": dead.pid})
    )
    (leases / "train-00003.json").write_text("torn")
    old = time.time() - 1000
    os.utime(leases / "train-00003.json", (old, old))
    assert not tiny_export(*inputs, tmp_path / "codes", wait=False)
    status = export_status(tmp_path / "codes")
    assert status.files_written == 9 and [each.work for each in status.holders] == ["train-00001"]
    assert "process 1 on elsewhere" in status.text()
    os.utime(living, (old, old))
    assert tiny_export(*inputs, tmp_path / "codes", wait=False)
    assert content(tmp_path / "codes") == content(clean), "no lease is left either"


def _owner(pid: int) -> str:
    from foundation.storage.names import temporary_name

    mine = temporary_name(Path("x")).name
    return mine.replace(f"-{os.getpid()}-", f"-{pid}-")


def test_without_leases_it_works_all_the_same(inputs: Inputs, clean: Path, tmp_path: Path) -> None:
    (tmp_path / "codes").mkdir()
    (tmp_path / "codes" / LEASES).write_text("no folder can be made here")
    assert tiny_export(*inputs, tmp_path / "codes")
    (tmp_path / "codes" / LEASES).unlink()
    assert content(tmp_path / "codes") == content(clean)


def test_two_processes_on_one_file_write_it_once(inputs: Inputs, clean: Path, tmp_path: Path) -> None:
    """As if no lease had been seen: the second finds the first one's file, with the same bytes."""
    one, other = open_tiny(*inputs, tmp_path / "codes"), open_tiny(*inputs, tmp_path / "codes")
    planned = one.shards[1]
    one.write(planned)
    inode = planned.path(tmp_path / "codes").stat().st_ino
    other.write(planned)
    assert planned.path(tmp_path / "codes").stat().st_ino == inode
    assert one.take_part(quiet=True) and content(tmp_path / "codes") == content(clean)


def test_another_result_for_a_written_file_is_loud(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export = open_tiny(*inputs, tmp_path / "codes")
    export.write(export.shards[0])
    encode = TokenizerModel.encode
    monkeypatch.setattr(TokenizerModel, "encode", lambda model, images: encode(model, images.flip(-1)))
    with pytest.raises(StorageError, match="other content"):
        export.write(export.shards[0])


def test_a_stop_signal_ends_between_batches_and_keeps_what_is_written(
    inputs: Inputs, clean: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export = open_tiny(*inputs, tmp_path / "codes")
    encode, batches = export.tokenizer.encode, []

    def encode_and_signal(images: torch.Tensor) -> torch.Tensor:
        batches.append(images)
        if len(batches) == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return encode(images)

    monkeypatch.setattr(export.tokenizer, "encode", encode_and_signal)
    with pytest.raises(Interrupted) as stopped:
        export.take_part(quiet=True)
    assert stopped.value.signal_number == signal.SIGTERM and len(batches) == 6
    assert export_status(tmp_path / "codes").files_written == 1
    assert not export_status(tmp_path / "codes").holders, "it leaves no lease"
    assert tiny_export(*inputs, tmp_path / "codes")
    assert content(tmp_path / "codes") == content(clean)


def test_a_device_that_makes_other_codes_gives_way_to_the_cpu(
    inputs: Inputs, clean: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def checked(model: TokenizerModel, folder: Path) -> None:
        if next(model.parameters()).device.type != "cpu":
            raise ContractError("gives other codes", found="3.1% of the codes differ")

    monkeypatch.setattr(canary, "check_canary", checked)
    images, tokenizer = inputs
    export = Export(tokenizer, sources_of(images), tmp_path / "codes", CONFIG, torch.device("meta"))
    assert "device: cpu for the codes" in capsys.readouterr().err and export.plan.device == "cpu"
    assert export.take_part(quiet=True) and content(tmp_path / "codes") == content(clean)


def test_a_lost_manifest_is_derived_from_the_files(inputs: Inputs, clean: Path, tmp_path: Path) -> None:
    assert tiny_export(*inputs, tmp_path / "codes")
    before = content(clean)
    (tmp_path / "codes" / MANIFEST).unlink()
    assert tiny_export(*inputs, tmp_path / "codes")
    assert content(tmp_path / "codes") == before
    (tmp_path / "codes" / MANIFEST).unlink()
    write_manifest(tmp_path / "codes", TokenDataset(clean).spec)
    assert content(tmp_path / "codes") == before, "from the files alone"


def test_a_damaged_plan_and_strange_files_are_refused(inputs: Inputs, tmp_path: Path) -> None:
    assert tiny_export(*inputs, tmp_path / "codes")
    plan = tmp_path / "codes" / PLAN
    whole = plan.read_bytes()
    for damaged in (whole[:-20], whole.replace(b'"cpu"', b'"gpu"'), b"", b"[]", b'{"what": 1}'):
        plan.write_bytes(damaged)
        with pytest.raises(DataError, match="plan is damaged"):
            open_tiny(*inputs, tmp_path / "codes")
    plan.write_bytes(whole)
    data = tmp_path / "codes" / "data" / "train"
    (data / "part-00099.parquet").write_bytes((data / "part-00000.parquet").read_bytes())
    with pytest.raises(ContractError, match="part-00099"):
        open_tiny(*inputs, tmp_path / "codes")


def test_rows_are_in_the_order_of_the_plan(clean: Path) -> None:
    dataset = TokenDataset(clean)
    names = [f"{kind}/{i:03d}.png" for kind in ("ant", "bee") for i in range(10)]
    expected = [(name, view) for start in range(0, 20, 4) for view in (0, 1) for name in names[start : start + 4]]
    assert list(zip(dataset.image_ids, dataset.views_N.tolist(), strict=True)) == expected
    assert dataset.labels_N is not None
    assert dataset.labels_N.tolist() == [name.startswith("bee") for name, _ in expected]


def test_codes_are_those_of_each_image_alone(inputs: Inputs, clean: Path) -> None:
    from support.tiny_export import sources_of

    from foundation.images.preprocess import to_unit_range

    tokenizer = TokenizerModel.load(inputs[1])
    dataset, source = TokenDataset(clean), sources_of(inputs[0])["train"]
    for row in range(len(dataset)):
        pixels = tokenizer.preprocess(source.read(source.ids.index(dataset.image_ids[row])))
        pixels = pixels[:, ::-1] if dataset.views_N[row] else pixels
        alone = tokenizer.encode(to_unit_range(pixels[None].repeat(CONFIG.batch_size or 1, 0)))[0]
        assert np.array_equal(alone.flatten().numpy(), dataset.codes_NT[row])


@pytest.mark.parametrize(
    "change",
    [
        lambda shard: replace(shard, image_ids=list(reversed(shard.image_ids))),
        lambda shard: replace(shard, views=1 - shard.views),
        lambda shard: replace(shard, labels=1 - shard.labels),
        lambda shard: replace(shard, labels=None),
    ],
    ids=["other images", "other views", "other labels", "no labels"],
)
def test_a_file_of_other_images_views_or_labels_is_refused(change: Callable[[Shard], Shard], clean: Path) -> None:
    plan = ExportPlan.from_json(clean / "plan.json")
    planned = plan.shards[0]
    shard = read_shard(planned.path(clean), plan.spec)
    require_planned(Path("file"), shard, planned, plan)
    with pytest.raises(ContractError, match=r"file: the shard holds other images or labels(.|\n)*codes folder"):
        require_planned(Path("file"), change(replace(shard, views=np.asarray(shard.views))), planned, plan)


def test_shares_are_written_as_percent_or_number() -> None:
    assert (share("1%"), share("0.01"), share(0.5)) == (0.01, 0.01, 0.5)
    for text in ("a lot", "101%", "-1%", "nan"):
        with pytest.raises(ConfigError, match="--max-bad"):
            share(text)


def test_planned_is_written_and_failed_together() -> None:
    failures = [{"code": "unreadable"}, {"code": "truncated"}, {"code": "unreadable"}]
    manifest = {
        "splits": {"train": {"rows": 9, "planned": 12, "failures": failures}, "other": {"rows": 3, "failures": []}}
    }
    assert totals(manifest) == {"planned": 15, "written": 12, "failed": 3}
    assert by_code(failures) == "2 unreadable, 1 truncated"
