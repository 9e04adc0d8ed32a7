"""A run whose codes are at an address: the commands find them there, and the rest of the run is as on a disk."""

import json
import shutil
from pathlib import Path

import pytest
from support.object_store import ObjectStore, hurry
from support.tiny_export import content
from support.tiny_run import TINY

from foundation.codes.config import CODES_ADDRESS
from foundation.codes.dataset import TokenDataset
from foundation.storage.durable import file_sha256
from pipeline.cli import main
from pipeline.commands.start import start_run


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hurry(monkeypatch)
    monkeypatch.setenv("TESSERA_CACHE", str(tmp_path / "cache"))


def everything(folder: Path) -> str:
    """All text below a folder, for a search of secrets."""
    texts = (path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.stat().st_size < 2**20)
    return b"\n".join(texts).decode(errors="replace")


def test_a_run_encodes_to_an_address_and_goes_on_with_its_codes_there(
    object_store: ObjectStore, run_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, prior = content(run_copy / "codes"), file_sha256(run_copy / "prior" / "model.safetensors")
    for name in ("codes", "prior", "checkpoints"):
        shutil.rmtree(run_copy / name)
    address, object_store.share = f"{object_store.address}/codes", 0.1
    assert main(["encode", str(run_copy), "--to", address, "--part", "0/2"]) == 0
    assert f"codes: {address} (1,797 images planned, 1,797 written, 0 failed)" in capsys.readouterr().out
    assert object_store.hashes("codes") == before == content(run_copy / "codes")
    assert json.loads((run_copy / CODES_ADDRESS).read_text()) == {"address": address}
    shutil.rmtree(run_copy / "codes")
    assert main(["encode", str(run_copy), "--status"]) == 0
    assert "finished: 1,797 of 1,797 images" in capsys.readouterr().out
    shutil.rmtree(run_copy / "codes")
    assert main(["train-prior", str(run_copy)]) == 0
    assert content(run_copy / "codes") == before
    assert file_sha256(run_copy / "prior" / "model.safetensors") == prior
    shutil.rmtree(run_copy / "codes")
    assert main(["decode", str(run_copy), "-o", str(run_copy.parent / "images"), "--split", "validation"]) == 0
    assert main(["encode", str(run_copy), "--to", f"{object_store.address}/elsewhere"]) == 2
    assert "is not where the run's codes are" in capsys.readouterr().err
    secret = object_store.environment["AWS_SECRET_ACCESS_KEY"]
    assert secret not in everything(run_copy) and secret not in str(object_store.files())


@pytest.mark.slow
def test_tessera_run_goes_on_with_codes_at_an_address(object_store: ObjectStore, run_copy: Path) -> None:
    prior = file_sha256(run_copy / "prior" / "model.safetensors")
    for name in ("codes", "prior", "checkpoints", "samples", "uses"):
        shutil.rmtree(run_copy / name)
    (run_copy / CODES_ADDRESS).write_text(json.dumps({"address": f"{object_store.address}/codes"}))
    job = start_run(str(run_copy))
    job.all()
    job.run.release()
    assert file_sha256(run_copy / "prior" / "model.safetensors") == prior
    assert object_store.hashes("codes") == content(run_copy / "codes")


def test_a_prior_is_trained_on_codes_of_a_store(
    object_store: ObjectStore, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from foundation.storage.remote.uploads import upload

    monkeypatch.chdir(tmp_path)
    address = f"{object_store.address}/codes"
    for path in (each for each in sorted((finished_run / "codes").rglob("*")) if each.is_file()):
        upload(path, f"{address}/{path.relative_to(finished_run / 'codes').as_posix()}")
    overrides = {name: value for name, value in TINY.items() if name.startswith(("prior", "samples"))}
    priors = []
    object_store.share = 0.1
    for name, source in (("local", str(finished_run / "codes")), ("remote", address)):
        job = start_run("digits", str(tmp_path / name), {**overrides, "codes.source": source}, stages=("prior",))
        job.train_prior()
        job.run.release()
        priors.append(file_sha256(tmp_path / name / "prior" / "model.safetensors"))
    assert priors[0] == priors[1]
    assert json.loads((tmp_path / "remote" / "codes" / "source.json").read_text())["source"] == address
    object_store.share, object_store.faults = 1.0, ("refused",)
    job = start_run(str(tmp_path / "remote"))
    assert len(TokenDataset(job.run.folder.codes)) > 0, "a run that has its codes needs no store"
    job.run.release()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("encode RUN --to codes", "is no address"),
        ("encode RUN --to s3://me:hidden@bucket/codes", "holds a password"),
        ("encode RUN --status --to s3://bucket/codes", "has no effect with --status"),
        ("train-prior digits --codes s3://me:hidden@bucket/codes", "holds a password"),
        ("decode s3://bucket/codes?token=hidden", "holds the secret token"),
        ("sample RUN -o s3://bucket/few", "cannot be an address here"),
        ("run digits -o s3://bucket/run", "cannot be a run folder"),
    ],
)
def test_addresses_that_cannot_be_used_are_refused(
    run_copy: Path, line: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(run_copy) if each == "RUN" else each for each in line.split()]) == 2
    told = capsys.readouterr()
    assert said in told.err and "hidden" not in told.err + told.out
    assert not (run_copy / CODES_ADDRESS).exists()
