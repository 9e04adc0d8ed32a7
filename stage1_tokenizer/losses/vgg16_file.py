"""Where VGG16's weights are: a given file, the environment, torch's cache, or the network. Found or refused early."""

from __future__ import annotations

import http.client
import os
import shutil
import urllib.error
import urllib.request
from pathlib import Path

import torch

from foundation.errors import CheckpointError, ConfigError
from foundation.storage import durable

FILE_NAME = "vgg16-397923af.pth"
SHA256_START = "397923af"
RANDOM = "random"
ENVIRONMENT = "TESSERA_VGG16"
_URL = f"https://download.pytorch.org/models/{FILE_NAME}"
_N_BYTES = 553_433_881
_TIMEOUT_SECONDS = 30


def locate_vgg16(weights: str) -> Path | None:
    """The file with VGG16's weights, downloaded if need be; None for ``"random"``.

    Call it before reading any data: it is what fails on a machine without the file. The order is: ``weights`` if it
    names a file, the environment variable TESSERA_VGG16, torch's cache of checkpoints, the network unless
    HF_HUB_OFFLINE is set. A name that is given but does not exist is an error; nothing else is tried then.

    Args:
        weights: as ``PerceptualConfig.vgg_weights``.

    Raises:
        ConfigError: there is no such file; the message names the remedies.
        StorageError: the download cannot be stored.
    """
    if weights == RANDOM:
        return None
    cached = Path(torch.hub.get_dir()) / "checkpoints" / FILE_NAME
    for given, source in ((weights, "perceptual.vgg_weights"), (os.environ.get(ENVIRONMENT, ""), ENVIRONMENT)):
        if given:
            path = Path(given).expanduser()
            if not path.is_file():
                raise _missing(f"{source} names {path}, which is no file", cached)
            return path
    if not cached.is_file():
        _download(cached)
    return cached


def describe_vgg16(weights: str) -> str:
    """What a log or report says about the weights; random ones are called so."""
    if weights == RANDOM:
        return "VGG16 with random weights (not comparable with published LPIPS)"
    if weights and Path(weights).name != FILE_NAME:
        return f"VGG16 with the weights of {Path(weights).name}, which were not verified"
    return "VGG16 trained on ImageNet"


def _download(target: Path) -> None:
    """Fetch the file once, however many processes ask for it."""
    from filelock import FileLock

    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise _missing("HF_HUB_OFFLINE is set, so it was not downloaded", target)
    durable.require_free_space(target.parent, _N_BYTES, "VGG16's weights")
    with durable.writing(target), FileLock(target.with_suffix(".lock")):
        if not target.is_file():
            print(f"downloading VGG16's weights, {_N_BYTES / 1e6:.0f} MB, to {target}", flush=True)
            durable.publish_file(target, lambda path: _fetch(path, target), lambda path: _verify(path))


def _fetch(path: Path, target: Path) -> None:
    try:
        with urllib.request.urlopen(_URL, timeout=_TIMEOUT_SECONDS) as answer, open(path, "wb") as file:
            shutil.copyfileobj(answer, file, 2**20)
    except (urllib.error.URLError, TimeoutError, ConnectionError, http.client.HTTPException) as error:
        raise _missing(f"the download failed ({error})", target) from error


def _verify(path: Path) -> None:
    found = durable.file_sha256(path)
    if not found.startswith(SHA256_START):
        raise CheckpointError(
            "VGG16's weights arrived damaged",
            field=_URL,
            found=f"SHA-256 {found[:16]}...",
            expected=f"SHA-256 {SHA256_START}...",
            fix="run the same command again; if it happens again, something on the way changes downloads",
        )


def _missing(reason: str, cached: Path) -> ConfigError:
    remedies = (
        f"one of these\n"
        f"    - name a local file: perceptual.vgg_weights, or the environment variable {ENVIRONMENT}\n"
        f"    - put {FILE_NAME} ({_N_BYTES / 1e6:.0f} MB, from {_URL}) at {cached}\n"
        f"    - do without: perceptual.weight 0 (for a test: perceptual.vgg_weights {RANDOM}, which measures nothing)"
    )
    return ConfigError(
        "LPIPS needs VGG16's ImageNet weights, and they are not here",
        field="perceptual.vgg_weights",
        found=reason,
        expected=f"{FILE_NAME} as torchvision publishes it, or the same tensors as .safetensors",
        fix=remedies,
    )
