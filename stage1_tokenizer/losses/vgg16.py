"""VGG16's convolutions as a frozen feature extractor, and where its weights are; their names are torchvision's.

Source: Simonyan and Zisserman 2015, arXiv:1409.1556, table 1, column D.
"""

from __future__ import annotations

import http.client
import os
import shutil
import urllib.error
import urllib.request
from pathlib import Path

import torch
from torch import nn

from foundation.errors import CheckpointError, ConfigError
from foundation.paths import expand
from foundation.storage import durable
from foundation.storage.serialization import load_tensors, load_weights
from foundation.unpickling.torch_files import read_tensors

FILE_NAME = "vgg16-397923af.pth"
SHA256_START = "397923af"
RANDOM = "random"
ENVIRONMENT = "TESSERA_VGG16"
_URL = f"https://download.pytorch.org/models/{FILE_NAME}"
_N_BYTES = 553_433_881
_TIMEOUT_SECONDS = 30
_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
_RANDOM_SEED = 0


class VGG16(nn.Module):
    """The outputs of relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3.

    Attributes:
        features: convolutions, ReLUs and poolings, numbered as in torchvision, up to relu5_3.
        widths: channels of each output.
    """

    widths = tuple(stage[-1] for stage in _STAGES)

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        self._ends: list[int] = []
        channels = 3
        for i, stage in enumerate(_STAGES):
            if i > 0:
                layers.append(nn.MaxPool2d(2))
            for width in stage:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
                channels = width
            self._ends.append(len(layers) - 1)
        self.features = nn.Sequential(*layers)

    def forward(self, x_B3YX: torch.Tensor) -> list[torch.Tensor]:
        """(B, 3, Y, X), normalised, sides of at least 16 => five feature maps, each of half the former's size."""
        outputs = []
        for i, layer in enumerate(self.features):
            x_B3YX = layer(x_B3YX)
            if i in self._ends:
                outputs.append(x_B3YX)
        return outputs


def load_vgg16(weights: str) -> VGG16:
    """A frozen VGG16. The process's random numbers are left as they were.

    Args:
        weights: as ``PerceptualConfig.vgg_weights``: a file, empty to look for it, or ``"random"``.

    Raises:
        ConfigError: the file is not found; the message says what to do.
        CheckpointError: the file is damaged or holds another model.
    """
    path = locate_vgg16(weights)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_RANDOM_SEED)
        vgg = VGG16()
        if path is None:
            _randomize(vgg)
    if path is not None:
        load_weights(vgg, _read(path), str(path))
    return vgg.eval().requires_grad_(False)


def locate_vgg16(weights: str) -> Path | None:
    """The file with VGG16's weights, downloaded if need be; None for ``"random"``.

    Call it before reading any data: it is what fails on a machine without the file. The order is: ``weights`` if it
    names a file, the environment variable TESSERA_VGG16, torch's cache of checkpoints, the network unless
    HF_HUB_OFFLINE is set. A name that is given but does not exist is an error; nothing else is tried then.

    Args:
        weights: as ``PerceptualConfig.vgg_weights``.

    Raises:
        ConfigError: there is no such file; the message says what to do.
        StorageError: the download cannot be stored.
    """
    if weights == RANDOM:
        return None
    cached = Path(torch.hub.get_dir()) / "checkpoints" / FILE_NAME
    for given, source in ((weights, "perceptual.vgg_weights"), (os.environ.get(ENVIRONMENT, ""), ENVIRONMENT)):
        if given:
            path = Path(expand(given, source))
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


def _randomize(vgg: VGG16) -> None:
    """Weights that keep the size of activations from layer to layer (He et al. 2015, arXiv:1502.01852, eq. 10)."""
    for layer in vgg.features:
        if isinstance(layer, nn.Conv2d):
            assert layer.bias is not None
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)


def _read(path: Path) -> dict[str, torch.Tensor]:
    """The tensors under ``features.``; the classifier's are left out."""
    again = f"move it away, and put {FILE_NAME} there again"
    if path.name == FILE_NAME:
        _require_published(path, "is damaged", str(path), again)
    tensors = load_tensors(path) if path.suffix == ".safetensors" else read_tensors(path, again)
    features = {name: value for name, value in tensors.items() if name.startswith("features.")}
    bad = [name for name, value in features.items() if not bool(torch.isfinite(value).all())]
    if bad:
        raise CheckpointError("has weights that are not finite", field=str(path), found=bad[0], fix=again)
    return features


def _download(target: Path) -> None:
    """Fetch the file once, however many processes ask for it."""
    from filelock import FileLock

    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise _missing("HF_HUB_OFFLINE is set, so it was not downloaded", target)
    durable.require_free_space(target.parent, _N_BYTES, "VGG16's weights")
    with durable.writing(target), FileLock(target.with_suffix(".lock")):
        if not target.is_file():
            print(f"downloading VGG16's weights, {_N_BYTES / 1e6:.0f} MB, to {target}", flush=True)
            durable.publish_file(target, lambda path: _fetch(path, target), _verify)


def _fetch(path: Path, target: Path) -> None:
    try:
        with urllib.request.urlopen(_URL, timeout=_TIMEOUT_SECONDS) as answer, open(path, "wb") as file:
            shutil.copyfileobj(answer, file, 2**20)
    except (urllib.error.URLError, TimeoutError, ConnectionError, http.client.HTTPException) as error:
        raise _missing(f"the download failed ({error})", target) from error


def _verify(path: Path) -> None:
    fix = "run the same command again; if it happens again, something on the way changes downloads"
    _require_published(path, "VGG16's weights arrived damaged", _URL, fix)


def _require_published(path: Path, what: str, field: str, fix: str) -> None:
    found, expected = f"SHA-256 {durable.file_sha256(path)[:16]}...", f"SHA-256 {SHA256_START}..."
    sound = found.startswith(f"SHA-256 {SHA256_START}")
    CheckpointError.unless(sound, what, field=field, found=found, expected=expected, fix=fix)


def _missing(reason: str, cached: Path) -> ConfigError:
    fix = (
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
        fix=fix,
    )
