"""InceptionV3 as the FID uses it, through the package torch-fidelity."""

from __future__ import annotations

import io
from pathlib import Path

import torch
from torch import nn

from foundation.errors import CheckpointError, ConfigError
from foundation.hardware import torchvision_problem
from foundation.storage import durable
from foundation.storage.serialization import load_tensors
from foundation.unpickling.torch_files import read_tensors
from pipeline.evaluation.extractors.build import FeatureExtractor, InceptionConfig

PUBLISHED_SHA256_PREFIX = "6726825d"
_INSTALL = 'pip install "tessera-images[eval]"'
_UNVERIFIED = (
    "these weights are not the published file of InceptionV3 (.pth, SHA-256 6726825d...), so that nothing shows what "
    "they are"
)


class InceptionExtractor(FeatureExtractor):
    """2048 features after the last average pool; bilinear resize to 299 x 299 as in TensorFlow 1."""

    def __init__(self, config: InceptionConfig) -> None:
        tensors, published = _weights(config.weights)
        resize = "bilinear to 299 x 299 without antialiasing, as in TensorFlow 1"
        super().__init__("inception", 2048, resize=resize, caveat=None if published else _UNVERIFIED)
        self.network = _network(tensors, config.weights or "the cached weights")

    def features(self, levels_BCYX: torch.Tensor) -> torch.Tensor:
        """See the base class."""
        features: torch.Tensor = self.network(levels_BCYX)[0]
        return features


def _network(tensors: dict[str, torch.Tensor], source: str) -> nn.Module:
    _require_package()
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    # The package unpickles whatever its weight file holds; here it gets only tensors that were read safely before.
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    buffer.seek(0)
    try:
        return FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=buffer)  # type: ignore[no-any-return]
    except RuntimeError as error:
        raise CheckpointError("holds other weights than InceptionV3 of the FID", field=source,
                              found=str(error)[:300], fix=_remedies()) from error  # fmt: skip


def _weights(path: str | None) -> tuple[dict[str, torch.Tensor], bool]:
    """The tensors, and whether they are those of the published file."""
    file = Path(path).expanduser() if path else _cached_or_downloaded()
    if not file.is_file():
        raise CheckpointError("no such file of InceptionV3 weights", field=str(file), fix=_remedies())
    if file.suffix == ".safetensors":
        return load_tensors(file), False
    tensors = read_tensors(file, _remedies())
    return tensors, durable.file_sha256(file).startswith(PUBLISHED_SHA256_PREFIX)


def _cached_or_downloaded() -> Path:
    _require_package()
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    file = Path(torch.hub.get_dir()) / "checkpoints" / URL_INCEPTION_V3.rsplit("/", 1)[1]
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(URL_INCEPTION_V3, str(file), hash_prefix=PUBLISHED_SHA256_PREFIX)
        except (OSError, RuntimeError) as error:
            raise CheckpointError("InceptionV3 weights (92 MB) are not here and the download failed", field=str(file),
                                  found=error, fix=_remedies()) from error  # fmt: skip
    return file


def _require_package() -> None:
    problem = torchvision_problem()
    try:
        import torch_fidelity  # noqa: F401
    except (ImportError, RuntimeError, OSError) as error:
        raise ConfigError("needs the package torch-fidelity", field="--extractor inception",
                          found=problem or error, fix=f"{_INSTALL}, or --extractor small") from error  # fmt: skip


def _remedies() -> str:
    return (
        "one of\n"
        "    - give the published file:   --weights FOLDER/pt_inception-2015-12-05-6726825d.pth\n"
        f"    - or put it, named weights-inception-2015-12-05-6726825d.pth, into {torch.hub.get_dir()}/checkpoints\n"
        "    - or use no weights:         --extractor small (compares with no published figure)"
    )
