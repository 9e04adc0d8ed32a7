"""Every loader reads every payload, in a program of its own under an audit hook that records what runs.

    python watched_loaders.py PAYLOADS SOUND SCRATCH

``PAYLOADS`` holds the hostile files, ``SOUND`` intact folders to damage: ``tokenizer/``, ``checkpoints/``, ``tokens/``.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from foundation.codes.dataset import TokenDataset
from foundation.config import digest
from foundation.errors import TesseraError
from foundation.hardware import TokenAccess
from foundation.storage.durable import file_sha256
from foundation.storage.serialization import load_tensors, read_json
from foundation.training.checkpoints import latest_checkpoint
from foundation.training.log import read_metrics
from foundation.unpickling.torch_files import read_torch_file
from pipeline.evaluation.extractors.inception import _weights as load_inception
from pipeline.runs.recipe import load_recipe
from stage1_tokenizer.canary import check_canary
from stage1_tokenizer.hub import Tokenizer
from stage1_tokenizer.losses.vgg16 import load_vgg16
from stage1_tokenizer.tokenizer import TokenizerModel

DANGEROUS = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "os.remove",
    "os.rename",
    "os.chmod",
    "subprocess.Popen",
    "pickle.find_class",
    "socket.connect",
    "ctypes.dlopen",
    "shutil.",
)
OWN = {"packed copy": ("os.rename", "os.remove", "shutil.rmtree", "os.chmod")}  # it is rebuilt
SHARD = "data/train/part-00000.parquet"


def checkpoint(root: Path, name: str) -> None:
    """Make the manifest agree: an attacker can write one too."""
    step = next(root.glob("step-*"))
    saved = json.loads((step / "MANIFEST.json").read_text())
    saved["manifest"]["sha256"][name] = file_sha256(step / name)
    saved["sha256"] = digest(saved["manifest"])
    (step / "MANIFEST.json").write_text(json.dumps(saved))


def weights_only_as_pickle(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes((folder / "model.safetensors").read_bytes())
    (folder / "model.safetensors").unlink()


def listed(folder: Path) -> None:
    """Make the manifest agree."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["splits"]["train"]["files"][0]["sha256"] = file_sha256(folder / SHARD)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def spoil_packed_copy(folder: Path) -> None:
    """Make the payload the index of the packed copy."""
    TokenDataset(folder, "train", TokenAccess(form="packed"))
    (copy,) = (each for each in (folder / ".packed" / "train").iterdir() if each.is_dir())
    shutil.move(folder / "payload", copy / "packed.json")


def nothing(folder: Path) -> None:
    pass


Loader = tuple[str, str, Callable[[Path], Any], Callable[[Path], Any]]
LOADERS: dict[str, Loader] = {
    # intact folder, file that becomes the payload, what makes the rest agree, loader
    "checkpoint tensors": (
        "checkpoints",
        "step-00000001/state.safetensors",
        lambda f: checkpoint(f, "state.safetensors"),
        latest_checkpoint,
    ),
    "checkpoint state": (
        "checkpoints",
        "step-00000001/state.json",
        lambda f: checkpoint(f, "state.json"),
        latest_checkpoint,
    ),
    "checkpoint manifest": ("checkpoints", "step-00000001/MANIFEST.json", nothing, latest_checkpoint),
    "model weights": ("tokenizer", "model.safetensors", nothing, TokenizerModel.load),
    "model settings": ("tokenizer", "config.json", nothing, TokenizerModel.load),
    "transformers weights": ("tokenizer", "model.safetensors", nothing, Tokenizer.from_pretrained),
    "transformers pickle": ("tokenizer", "model.safetensors", weights_only_as_pickle, Tokenizer.from_pretrained),
    "canary": ("tokenizer", "canary.safetensors", nothing, lambda f: check_canary(TokenizerModel.load(f), f)),
    "token shard": ("tokens", SHARD, listed, lambda f: TokenDataset(f, "train", TokenAccess(form="memory"))),
    "streamed shard": (
        "tokens",
        SHARD,
        listed,
        lambda f: TokenDataset(f, "train", TokenAccess(form="streamed")).codes_NT[[0]],
    ),
    "packed copy": (
        "tokens",
        "payload",
        spoil_packed_copy,
        lambda f: TokenDataset(f, "train", TokenAccess(form="packed")),
    ),
    "token manifest": ("tokens", "manifest.json", nothing, lambda f: TokenDataset(f, "train")),
    "safetensors": ("tokenizer", "model.safetensors", nothing, lambda f: load_tensors(f / "model.safetensors")),
    "json": ("tokenizer", "config.json", nothing, lambda f: read_json(f / "config.json", ("x",), fix="none")),
    "recipe": ("tokenizer", "recipe.yaml", nothing, lambda f: load_recipe(str(f / "recipe.yaml"))),
    "metrics": ("tokenizer", "metrics.jsonl", nothing, lambda f: read_metrics(f / "metrics.jsonl")),
    "VGG16": ("tokenizer", "vgg16.pth", nothing, lambda f: load_vgg16(str(f / "vgg16.pth"))),
    "VGG16 safetensors": (
        "tokenizer",
        "vgg16.safetensors",
        nothing,
        lambda f: load_vgg16(str(f / "vgg16.safetensors")),
    ),
    "Inception": ("tokenizer", "inception.pth", nothing, lambda f: load_inception(str(f / "inception.pth"))),
    "importer": ("tokenizer", "upstream.ckpt", nothing, lambda f: read_torch_file(f / "upstream.ckpt")),
}


def attempt(load: Callable[[Path], Any], folder: Path) -> str:
    try:
        load(folder)
    except TesseraError:
        return "refused"
    except Exception as error:  # a library's refusal: what counts is that nothing ran
        return f"raised {type(error).__name__}"
    return "read"


def main(payloads: Path, sound: Path, scratch: Path) -> None:
    events: list[tuple[str, str]] = []
    armed = False

    def hook(event: str, arguments: Any) -> None:
        if armed and event.startswith(DANGEROUS):
            events.append((event, str(arguments)[:200]))

    sys.addaudithook(hook)
    results: dict[str, dict[str, str]] = {}
    for name, (part, file, agree, load) in LOADERS.items():
        attempt(load, Path(shutil.copytree(sound / part, scratch / f"{name} sound")))  # imports happen here
        for payload in sorted(payloads.iterdir()):
            folder = Path(shutil.copytree(sound / part, scratch / f"{name} {payload.name}"))
            (folder / file).write_bytes(payload.read_bytes())
            agree(folder)
            armed = True
            outcome = attempt(load, folder)
            armed = False
            results.setdefault(name, {})[payload.name] = outcome
            allowed = [event for event in events if event[0] in OWN.get(name, ())]
            assert events == allowed, (name, payload.name, events)
            events.clear()
            shutil.rmtree(folder)
    print(json.dumps(results))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
