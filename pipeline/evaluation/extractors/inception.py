"""InceptionV3 of the FID (Heusel et al. 2017, arXiv:1706.08500), from the package torch-fidelity."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn

from foundation.config import Choice
from foundation.errors import CheckpointError, ConfigError, StorageError, one_line
from foundation.hardware import torchvision_problem
from foundation.paths import expand
from foundation.storage import durable
from foundation.storage.serialization import load_tensors
from foundation.unpickling.torch_files import read_tensors
from pipeline.evaluation.extractors.base import FeatureExtractor

PUBLISHED_SHA256_PREFIX = "6726825d"
_OUTPUTS = ["2048", "logits_unbiased"]
_INSTALL = 'pip install "tessera-images[eval]"'
_UNVERIFIED = "the weights are not those of the published InceptionV3 file (.pth, SHA-256 6726825d...)"


@dataclass(frozen=True, kw_only=True)
class InceptionConfig(Choice):
    """InceptionV3 of the FID's authors, 2048 features: what papers report as FID and KID (arXiv:1706.08500)."""

    type_name: ClassVar[str] = "inception"

    weights: str | None = None
    """file of the weights, .pth or .safetensors; null takes the cached file, or downloads it"""

    def build(self) -> FeatureExtractor:
        """On the CPU; raises CheckpointError for missing weights, ConfigError without the package."""
        return InceptionExtractor(self)


class InceptionExtractor(FeatureExtractor):
    """2048 features after the last average pool; bilinear resize to 299 x 299 as in TensorFlow 1."""

    def __init__(self, config: InceptionConfig) -> None:
        tensors, published = _weights(config.weights)
        resize = "bilinear to 299 x 299 without antialiasing, as in TensorFlow 1"
        caveat = None if published else _UNVERIFIED
        super().__init__("inception", 2048, resize=resize, caveat=caveat, n_classes=1008)
        self.network = _network(tensors, config.weights or "the cached weights")

    def features(self, levels_BCYX: torch.Tensor) -> torch.Tensor:
        """See the base class."""
        return self.features_and_logits(levels_BCYX)[0]

    def features_and_logits(self, levels_BCYX: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See the base class; logits without the bias, as the Inception score was published with."""
        features, logits = self.network(levels_BCYX)
        return features, logits


def _network(tensors: dict[str, torch.Tensor], source: str) -> nn.Module:
    _require_package()
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    # The package unpickles its weight file: give it only tensors, read safely before.
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    buffer.seek(0)
    try:
        return FeatureExtractorInceptionV3("inception", _OUTPUTS, feature_extractor_weights_path=buffer)  # type: ignore[no-any-return]
    except RuntimeError as error:
        what = "holds other weights than InceptionV3 of the FID"
        raise CheckpointError(what, field=source, found=str(error)[:300], fix=_suggestions()) from error


def _weights(path: str | None) -> tuple[dict[str, torch.Tensor], bool]:
    """Read the tensors, and say whether the file is the published one."""
    file = Path(expand(path, "--weights")) if path else _cached_or_downloaded()
    if not file.is_file():
        raise CheckpointError("no such file of InceptionV3 weights", field=str(file), fix=_suggestions())
    if file.suffix == ".safetensors":
        return load_tensors(file), False
    tensors = read_tensors(file, _suggestions())
    return tensors, durable.file_sha256(file).startswith(PUBLISHED_SHA256_PREFIX)


def cached_weights() -> Path | None:
    """The weight file where torch-fidelity keeps it; None if it is not there.

    Raises:
        ConfigError: the package is not installed.
    """
    file = _cache_file()
    return file if file.is_file() else None


def _cache_file() -> Path:
    _require_package()
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    return Path(torch.hub.get_dir()) / "checkpoints" / URL_INCEPTION_V3.rsplit("/", 1)[1]


def _cached_or_downloaded() -> Path:
    file = _cache_file()
    if not file.is_file():
        from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

        _require_writable(file.parent)
        try:
            torch.hub.download_url_to_file(URL_INCEPTION_V3, str(file), hash_prefix=PUBLISHED_SHA256_PREFIX)
        except (OSError, RuntimeError) as error:
            what = "InceptionV3 weights (92 MB) are missing, and the download failed"
            raise CheckpointError(what, field=str(file), found=error, fix=_suggestions()) from error
    return file


def _require_writable(cache: Path) -> None:
    """Refuse a cache that cannot be written before anything is downloaded: the network is not at fault."""
    probe = durable.temporary_name(cache / "weights")
    try:
        with durable.writing(probe):
            probe.touch()
            probe.unlink()
    except StorageError as error:
        fix = f"set TORCH_HOME to a folder that can be written, or {_suggestions()}"
        raise StorageError("the cache cannot be written", field=str(cache), found=one_line(error), fix=fix) from error


def _require_package() -> None:
    problem = torchvision_problem()
    try:
        import torch_fidelity  # noqa: F401
    except (ImportError, RuntimeError, OSError) as error:
        what, fix = "needs the package torch-fidelity", f"{_INSTALL}, or --extractor small"
        raise ConfigError(what, field="--extractor inception", found=problem or error, fix=fix) from error


def _suggestions() -> str:
    return (
        "one of\n"
        "    - give the published file:   --weights FOLDER/pt_inception-2015-12-05-6726825d.pth\n"
        f"    - or put it, named weights-inception-2015-12-05-6726825d.pth, into {torch.hub.get_dir()}/checkpoints\n"
        "    - or use no weights:         --extractor small (compares with no published figure)"
    )
