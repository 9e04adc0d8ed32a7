"""No file that is loaded can run code: payloads against every loader, watched by an audit hook."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import random
import shutil
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save
from support.peak_memory import PeakGrowth
from support.token_folders import write_tokens

from foundation.errors import CheckpointError
from foundation.storage.serialization import load_tensors
from foundation.training.checkpoints import save_checkpoint

ROOT = Path(__file__).parents[2]


class Evil:
    """Leaves a trace when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.trace}",)


def payloads(trace: Path) -> dict[str, bytes]:
    """Twelve files that run code in a reader that obeys them."""
    evil, npy, npz, zipped, legacy, parquet = Evil(trace), *(io.BytesIO() for _ in range(5))
    objects = np.array([evil], dtype=object)
    np.save(npy, objects, allow_pickle=True)
    np.savez(npz, codes=objects)
    torch.save({"weights": evil}, zipped)
    torch.save({"weights": evil}, legacy, _use_new_zipfile_serialization=False)
    metadata = {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": pickle.dumps(evil)}
    field = pa.field("codes", pa.list_(pa.uint16(), 6), metadata=metadata)
    pq.write_table(pa.table([pa.array([[1] * 6], field.type)], pa.schema([field])), parquet)
    text = pickle.dumps(evil, 0).decode("latin1")
    python = f"open({str(trace)!r}, 'w')"
    return {
        "protocol-0": pickle.dumps(evil, 0),
        "protocol-2": pickle.dumps(evil, 2),
        "protocol-4": pickle.dumps(evil, 4),
        "eval": b"\x80\x02c__builtin__\neval\nX" + struct.pack("<I", len(python)) + python.encode() + b"\x85R.",
        "torch-zip": zipped.getvalue(),
        "torch-legacy": legacy.getvalue(),
        "npy-object": npy.getvalue(),
        "npz-object": npz.getvalue(),
        "gzip": gzip.compress(pickle.dumps(evil, 4)),
        "yaml-tag": f"name: !!python/object/apply:os.system ['touch {trace}']\n".encode(),
        "parquet-extension": parquet.getvalue(),
        "safetensors-metadata": save({"weights": torch.zeros(2)}, {"pickle": text, "format": "pt"}),
    }


def obedient_readers() -> dict[str, str]:
    return {
        "protocol-0": "import pickle; pickle.load(open(path, 'rb'))",
        "protocol-2": "import pickle; pickle.load(open(path, 'rb'))",
        "protocol-4": "import pickle; pickle.load(open(path, 'rb'))",
        "eval": "import pickle; pickle.load(open(path, 'rb'))",
        "torch-zip": "import zipfile, pickle; z = zipfile.ZipFile(path); pickle.loads(z.read(z.namelist()[0]))",
        "npy-object": "import numpy; numpy.load(path, allow_pickle=True)",
        "npz-object": "import numpy; numpy.load(path, allow_pickle=True)['codes']",
        "gzip": "import gzip, pickle; pickle.loads(gzip.open(path).read())",
        "yaml-tag": "import yaml; yaml.unsafe_load(open(path))",
    }


@pytest.fixture
def attacked(tmp_path: Path) -> tuple[Path, Path]:
    """The folder of payloads, and the trace that they would leave."""
    folder, trace = tmp_path / "payloads", tmp_path / "trace"
    folder.mkdir()
    for name, content in payloads(trace).items():
        (folder / name).write_bytes(content)
    return folder, trace


def test_payloads_run_nothing_in_any_loader(
    attacked: tuple[Path, Path], frozen: Path, tmp_path: Path, keep: Callable
) -> None:
    folder, trace = attacked
    sound = tmp_path / "sound"
    save_checkpoint(sound / "checkpoints", 1, {"step": 1, "weights": torch.zeros(3)})
    write_tokens(sound / "tokens", (5,))
    shutil.copytree(frozen, sound / "tokenizer")
    (tmp_path / "scratch").mkdir()
    program = [sys.executable, str(ROOT / "tests" / "support" / "watched_loaders.py")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [*program, str(folder), str(sound), str(tmp_path / "scratch")],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(done.stdout.splitlines()[-1])
    assert not trace.exists()
    assert len(results) >= 19 and all(len(each) == 12 for each in results.values())
    ours = {name: each for name, each in results.items() if not name.startswith("transformers")}
    raised = {(name, payload): how for name, each in ours.items() for payload, how in each.items() if "raised" in how}
    assert not raised, raised
    read = {(name, payload) for name, each in ours.items() for payload, how in each.items() if how == "read"}
    sane = {("packed copy", payload) for payload in results["packed copy"]}  # made again from the shards
    sane |= {("safetensors", "safetensors-metadata"), ("checkpoint tensors", "safetensors-metadata")}
    assert {each for each in read if each[0] not in ("importer", "metrics", "Inception")} <= sane, read
    keep("no code runs", payloads=12, loaders=len(results), attempts=12 * len(results), executed=0)


def test_the_payloads_work_on_readers_that_obey(attacked: tuple[Path, Path]) -> None:
    folder, trace = attacked
    for name, reader in obedient_readers().items():
        script = f"path = {str(folder / name)!r}; {reader}"
        subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60, check=False)
        assert trace.exists(), name
        trace.unlink()


@pytest.mark.parametrize("n", [1500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_a_mutated_header_of_weights_neither_hangs_nor_eats_memory(tmp_path: Path, keep: Callable, n: int) -> None:
    rng, path = random.Random(0), tmp_path / "x.safetensors"
    whole = save({f"layer.{i}.weight": torch.rand(8, 8) for i in range(4)})
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    refused, slowest = 0, 0.0
    with PeakGrowth() as grown:
        for _ in range(n):
            damaged = bytearray(whole)
            for _ in range(rng.randrange(1, 4)):
                damaged[rng.randrange(header)] = rng.randrange(256)
            if rng.random() < 0.1:
                damaged[:8] = struct.pack("<Q", rng.choice([0, 2**31, 2**63, len(whole), header * 2]))
            path.write_bytes(damaged)
            began = time.process_time()
            try:
                load_tensors(path)
            except CheckpointError:
                refused += 1
            slowest = max(slowest, time.process_time() - began)
    assert slowest < 5 and grown.mib < 64, (slowest, grown.mib)
    assert refused > 0.8 * n
    keep("mutated headers of weights", headers=n, refused=refused, hangs=0, **{"MiB of memory more": round(grown.mib)})


def test_a_zip_with_a_name_outside_is_no_way_out(tmp_path: Path) -> None:
    """No loader unpacks archives."""
    archive = tmp_path / "model.safetensors"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("../../outside", b"x")
    with pytest.raises(CheckpointError):
        load_tensors(archive)
