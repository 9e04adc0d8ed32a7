"""Nothing in a checkpoint is run, whatever it asks for; sound ones are read to the last value."""

from __future__ import annotations

import io
import json
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from foundation.errors import CheckpointError
from foundation.unpickling.torch_files import read_torch_file
from foundation.unpickling.values import Name, PickledObject
from pipeline.interop.checkpoint import open_checkpoint

ROOT = Path(__file__).parents[3]


def text(value: str) -> bytes:
    """An opcode that pushes a text."""
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def touch(canary: Path) -> str:
    """A shell command that would leave a trace."""
    return f"touch {canary}"


def attacks(canary: Path) -> dict[str, bytes]:
    """Pickles that would leave a trace, or exhaust the machine, in a reader that obeys them."""
    command = text(touch(canary))
    python = text(f"open({str(canary)!r}, 'w')")
    stop = b"."
    return {
        "os.system": b"\x80\x02cos\nsystem\n" + command + b"\x85R" + stop,
        "builtins eval": b"\x80\x02c__builtin__\neval\n" + python + b"\x85R" + stop,
        "nested reduce": b"\x80\x02ccollections\nOrderedDict\n(]("
        + text("k")
        + b"cos\nsystem\n"
        + command
        + b"\x85Rl"
        + b"etR"
        + stop,
        "state of a known class": b"\x80\x02ccollections\nOrderedDict\n)R}"
        + text("__setstate__")
        + b"cos\nsystem\nsb"
        + text("0")
        + b"0"
        + b"}"
        + text("x")
        + command
        + b"sb"
        + stop,
        "getattr chain": b"\x80\x02c__builtin__\ngetattr\nc__builtin__\n__import__\n"
        + text("os")
        + b"\x85R"
        + text("system")
        + b"\x86R"
        + command
        + b"\x85R"
        + stop,
        "copyreg": b"\x80\x02ccopyreg\n_reconstructor\ncsubprocess\nPopen\nc__builtin__\nobject\nN\x87R("
        + text("args")
        + command
        + text("shell")
        + b"\x88db"
        + stop,
        "torch.load in a pickle": b"\x80\x02ctorch.storage\n_load_from_bytes\nB"
        + struct.pack("<I", len(_evil_torch_file(canary)))
        + _evil_torch_file(canary)
        + b"\x85R"
        + stop,
        "stack global": b"\x80\x04" + text("os") + text("system") + b"\x93" + command + b"\x85R" + stop,
        "stack global of a computed name": b"\x80\x04"
        + text("posix")
        + b"c__builtin__\nstr\n"
        + text("system")
        + b"\x85R\x93"
        + command
        + b"\x85R"
        + stop,
        "extension codes": b"\x80\x02\x82\x01" + command + b"\x85R" + stop,
        "inst": b"(" + command + b"ios\nsystem\n" + stop,
        "obj": b"(cos\nsystem\n" + command + b"o" + stop,
        "new object with names": b"\x80\x04"
        + text("subprocess")
        + text("Popen")
        + b"\x93("
        + command
        + b"t}"
        + text("shell")
        + b"\x88s\x92"
        + stop,
        "dotted name": b"\x80\x04"
        + text("torch")
        + text("serialization.os.system")
        + b"\x93"
        + command
        + b"\x85R"
        + stop,
        "persistent id": b"\x80\x02(" + text("storage") + b"cos\nsystem\n" + command + text("cpu") + b"K\x01tQ" + stop,
        "set with a costly hash": b"\x80\x02" + b"]" + b"\x85" * 40 + b"cbuiltins\nset\n" + b"0" + stop,
        "billion laughs": b"\x80\x02]q\x00"
        + b"".join(b"](" + b"h" + bytes([i]) * 1 + (b"h" + bytes([i])) * 9 + b"eq" + bytes([i + 1]) for i in range(40))
        + stop,
        "tuple as a key that takes for ever to hash": b"\x80\x02}" + b"K\x01" + b"2\x86" * 64 + b"K\x01s" + stop,
        "memo without end": b"\x80\x02Nr\xff\xff\xff\x7f" + stop,
        "marks without end": b"\x80\x02" + b"(" * 100_000 + stop,
        "a text longer than the file": b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b"abc" + stop,
        "instructions without end": b"\x80\x02" + b"]" * 1_100_000 + stop,
    }


def _evil_torch_file(canary: Path) -> bytes:
    start = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}."
    return start + b"\x80\x02cos\nsystem\n" + text(touch(canary)) + b"\x85R.\x80\x02]."


def zipped(pickled: bytes, **entries: bytes) -> bytes:
    """A zip checkpoint around a pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        for name, data in entries.items():
            archive.writestr(f"archive/{name}", data)
    return buffer.getvalue()


WATCHER = """
import sys
seen = []
WATCHED = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "os.fork", "exec", "compile", "import", "open",
           "pickle.find_class", "socket.connect", "shutil.", "os.remove", "os.rename", "os.mkdir", "ctypes.")
armed = False
def hook(event, arguments):
    if armed and event.startswith(WATCHED):
        seen.append((event, str(arguments)[:200]))
import pathlib, json
from foundation.errors import CheckpointError
from foundation.unpickling.torch_files import read_torch_file
for name in pathlib.Path(sys.argv[2]).iterdir():  # so that what is imported late is there before the watch begins
    read_torch_file(name)
sys.addaudithook(hook)
results = {}
for name in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    armed = True
    try:
        results[name.name] = "read " + type(read_torch_file(name)).__name__
    except CheckpointError as error:
        results[name.name] = "refused " + str(error).splitlines()[0]
    finally:
        armed = False
    for event, arguments in seen:
        assert event == "open" and str(name) in arguments, (name.name, event, arguments)
    seen.clear()
status = pathlib.Path("/proc/self/status").read_text()  # ru_maxrss would also count the process that started this one
results["peak"] = int(status.split("VmHWM:")[1].split()[0])
print(json.dumps(results))
"""


def test_attacks_execute_nothing(tmp_path: Path) -> None:
    canary, folder, sound = (tmp_path / name for name in ("canary", "attacks", "sound"))
    folder.mkdir()
    sound.mkdir()
    (sound / "plain").write_bytes(pickle.dumps({"a": 1.5, "b": "text"}, protocol=0))
    (sound / "zipped").write_bytes(zipped(pickle.dumps({"a": b"bytes"}, protocol=2)))
    payloads = attacks(canary)
    for i, (name, pickled) in enumerate(payloads.items()):
        (folder / f"{i:02d} {name} plain").write_bytes(pickled)
        if len(pickled) < 1 << 20:
            (folder / f"{i:02d} {name} zipped").write_bytes(zipped(pickled))
    before = {each.name for each in tmp_path.iterdir()}
    watcher = [sys.executable, "-c", WATCHER, str(folder), str(sound)]
    done = subprocess.run(watcher, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads(done.stdout)
    peak = results.pop("peak")
    assert len(results) == 2 * len(payloads) - 1
    assert not canary.exists() and {each.name for each in tmp_path.iterdir()} == before
    assert peak < 1 << 20, f"{peak >> 10} MiB"
    for name in ("os.system", "inst", "obj", "stack global", "getattr chain", "copyreg", "new object", "dotted name"):
        assert any(name in key and value == "read PickledObject" for key, value in results.items()), name
    for name in (
        "extension codes",
        "memo without",
        "marks without",
        "longer than",
        "instructions",
        "computed name",
        "for ever to hash",
        "persistent id",
    ):
        assert all(value.startswith("refused") for key, value in results.items() if name in key), name


def test_the_attacks_work_on_a_reader_that_obeys(tmp_path: Path) -> None:
    """So that what the safe reader prevents is real."""
    canary = tmp_path / "canary"
    payloads = attacks(canary)
    for name in ("os.system", "builtins eval", "getattr chain", "stack global", "inst", "obj"):
        script = f"import pickle; pickle.loads({payloads[name]!r})"
        subprocess.run([sys.executable, "-c", script], cwd=tmp_path, timeout=60, check=False, capture_output=True)
        assert canary.exists(), name
        canary.unlink()


def test_zip_bombs_are_refused(tmp_path: Path) -> None:
    bomb = tmp_path / "compressed.pt"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02]." + b"\0" * 10_000_000)
    with pytest.raises(CheckpointError, match="compressed entries"):
        read_torch_file(bomb)
    torch.save({"a": torch.zeros(1000)}, bomb)
    content = bomb.read_bytes()
    central = content.index(b"PK\x01\x02")
    # Let the second entry's record in the directory point at the first entry's data.
    second = content.index(b"PK\x01\x02", central + 4)
    overlapping = content[: second + 42] + content[central + 42 : central + 46] + content[second + 46 :]
    bomb.write_bytes(overlapping)
    with pytest.raises(CheckpointError):
        read_torch_file(bomb)


def test_declared_sizes_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "file.pt"

    def tensor(n: int, size: bytes, stride: bytes) -> bytes:
        storage = (
            b"("
            + text("storage")
            + b"ctorch\nFloatStorage\n"
            + text("0")
            + text("cpu")
            + b"J"
            + struct.pack("<i", n)
            + b"tQ"
        )
        return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00" + size + stride + b"\x89NtR"

    def written(pickled: bytes, data: bytes) -> Path:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", b"\x80\x02" + pickled + b".")
            archive.writestr("archive/data/0", data)
        return path

    sound = read_torch_file(written(tensor(4, b"K\x04\x85", b"K\x01\x85"), struct.pack("<4f", 1, 2, 3, 4)))
    assert sound.read().tolist() == [1, 2, 3, 4]
    with pytest.raises(CheckpointError, match=r"storage '0'(.|\n)*16 bytes(.|\n)*4,000 bytes"):
        read_torch_file(written(tensor(1000, b"K\x04\x85", b"K\x01\x85"), bytes(16)))
    for size, stride in ((b"K\x05\x85", b"K\x01\x85"), (b"K\x04\x85", b"K\x02\x85"), (b"K\xff\x85", b"K\x00\x85")):
        with pytest.raises(CheckpointError, match="larger than its storage"):
            read_torch_file(written(tensor(4, size, stride), bytes(16)))
    with pytest.raises(CheckpointError, match="damaged tensor"):
        read_torch_file(written(tensor(4, b"J\xff\xff\xff\xff\x85", b"K\x01\x85"), bytes(16)))
    many = b"](" + tensor(1000, b"M\xe8\x03\x85", b"K\x01\x85") * 1000 + b"e"
    with pytest.raises(CheckpointError, match="far larger than the file"):
        read_torch_file(written(many, bytes(4000)))


def test_cut_off_files_are_refused(tmp_path: Path) -> None:
    whole = tmp_path / "whole.pt"
    for modern in (True, False):
        torch.save({"state_dict": nn.Linear(30, 30).state_dict()}, whole, _use_new_zipfile_serialization=modern)
        content = whole.read_bytes()
        for share in (0.0, 0.01, 0.3, 0.6, 0.95):
            cut = tmp_path / "cut.pt"
            cut.write_bytes(content[: int(share * len(content))])
            with pytest.raises(CheckpointError, match=r"cut\.pt"):
                open_checkpoint([cut])


def test_flipped_bytes_are_read_or_refused_and_nothing_else(tmp_path: Path) -> None:
    torch.save({"state_dict": nn.Linear(3, 3).state_dict(), "epoch": 3}, tmp_path / "whole.pt")
    content = (tmp_path / "whole.pt").read_bytes()
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        place, value = (int(torch.randint(0, n, (), generator=generator)) for n in (len(content), 256))
        changed = content[:place] + bytes([value]) + content[place + 1 :]
        (tmp_path / "changed.pt").write_bytes(changed)
        try:
            for tensor in open_checkpoint([tmp_path / "changed.pt"]).tensors.values():
                tensor.read()
        except CheckpointError:
            pass


class Custom(nn.Module):
    """A module of a class that a reader elsewhere does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.scale = nn.Parameter(torch.randn(2, 3))


@pytest.mark.parametrize("way", ["zip", "older format", *range(6)])
def test_whole_modules_give_their_state(way: str | int, tmp_path: Path) -> None:
    module, path = Custom(), tmp_path / "module.pkl"
    if isinstance(way, int):
        path.write_bytes(pickle.dumps(module, protocol=way))
    else:
        torch.save(module, path, _use_new_zipfile_serialization=way == "zip")
    tensors = open_checkpoint([path]).tensors
    state = module.state_dict()
    assert tensors.keys() == state.keys()
    assert all(torch.equal(tensors[name].read(), value) for name, value in state.items())


def test_views_types_and_wrappers_are_kept(tmp_path: Path) -> None:
    base = torch.arange(24.0).view(4, 6)
    state = {
        "view": base[1:, ::2],
        "turned": base.T,
        "half": torch.ones(3, dtype=torch.float16),
        "brain": torch.ones(3).bfloat16(),
        "whole": torch.arange(5),
        "flag": torch.tensor([True, False]),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
    }
    for wrapped in (
        state,
        {"state_dict": state, "args": Custom},
        {"model": state, "steps": 3},
        {"module": state},
        {f"module.{name}": value for name, value in state.items()},
    ):
        for modern in (True, False):
            torch.save(wrapped, tmp_path / "file.pt", _use_new_zipfile_serialization=modern)
            tensors = open_checkpoint([tmp_path / "file.pt"]).tensors
            assert tensors.keys() == state.keys()
            for name, value in state.items():
                assert tensors[name].dtype == value.dtype and tensors[name].shape == tuple(value.shape)
                assert torch.equal(tensors[name].read(), value)


@pytest.mark.parametrize("name", ["llamagen_gpt/grid4/checkpoint.pt", "taming/net2net_uncond/checkpoint.ckpt"])
def test_published_wrappers_that_torch_refuses(name: str, parity: Path) -> None:
    with pytest.raises(pickle.UnpicklingError):
        torch.load(parity / name, weights_only=True)
    tensors = open_checkpoint([parity / name]).tensors
    wanted = load_file((parity / name).with_name("state.safetensors"))
    assert tensors.keys() == wanted.keys()
    assert all(torch.equal(tensors[key].read(), value) for key, value in wanted.items())


def test_recorded_objects_say_what_they_were(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1), "classes": {Custom: 1}, "args": slice(1, 2)}, tmp_path / "file.pt")
    root = read_torch_file(tmp_path / "file.pt")
    (key,) = root["classes"]
    assert isinstance(key, Name) and key.path.endswith("Custom")
    assert isinstance(root["args"], PickledObject) and root["args"].arguments == (1, 2, None)


def test_what_is_no_checkpoint_is_refused_by_name(tmp_path: Path) -> None:
    for name, content, said in (
        ("text", b"hello there, friend", "is no checkpoint"),
        ("nothing", b"", "is no checkpoint"),
        ("list", pickle.dumps([1, 2]), "holds no tensors"),
        ("archive", zipped(b"\x80\x02]."), "holds no tensors"),
        ("header", struct.pack("<Q", 2**60) + b"{" + b"}" * 10, "cannot be read"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=f"{name}.*{said}"):
            open_checkpoint([tmp_path / name])
    with zipfile.ZipFile(tmp_path / "two", "w") as archive:
        archive.writestr("notes.txt", "x")
    with pytest.raises(CheckpointError, match="zip archive without one checkpoint"):
        open_checkpoint([tmp_path / "two"])
    with pytest.raises(CheckpointError, match="no such file"):
        open_checkpoint([tmp_path / "absent"])
