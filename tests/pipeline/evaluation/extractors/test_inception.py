import io
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from foundation.errors import CheckpointError, ConfigError, StorageError
from pipeline.evaluation.extractors import InceptionConfig, build_extractor


@pytest.fixture(scope="module")
def inception_tensors() -> dict[str, torch.Tensor]:
    """Random weights of the right names and shapes."""
    package = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3", reason="needs torch-fidelity")

    class Unloaded(package.FeatureExtractorInceptionV3):  # type: ignore[misc, name-defined]
        def load_state_dict(self, *arguments: object, **options: object) -> None:
            """Keep the random weights."""

    empty = io.BytesIO()
    torch.save({}, empty)
    empty.seek(0)
    torch.manual_seed(0)
    return Unloaded("inception", ["2048"], feature_extractor_weights_path=empty).state_dict()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_inception_reads_both_formats_and_does_not_vouch_for_other_weights(
    inception_tensors: dict[str, torch.Tensor], tmp_path: Path, suffix: str
) -> None:
    file = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(inception_tensors, file)
    else:
        save_file(inception_tensors, file)
    extractor = build_extractor(InceptionConfig(weights=str(file)))
    for name, tensor in extractor.network.state_dict().items():  # type: ignore[operator, union-attr]
        assert torch.equal(tensor, inception_tensors[name])
    features = extractor(torch.rand(2, 3, 32, 40) * 2 - 1)
    assert features.shape == (2, extractor.n_features) == (2, 2048)
    assert extractor.caveat is not None


def test_missing_inception_weights_name_the_remedies(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"(?s)no such file.*--weights.*--extractor small"):
        build_extractor(InceptionConfig(weights=str(tmp_path / "absent.pth")))


def test_a_failed_download_names_the_remedies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch_fidelity", reason="needs torch-fidelity")

    def no_network(*arguments: object, **options: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("torch.hub.download_url_to_file", no_network)
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    with pytest.raises(CheckpointError, match=r"(?s)download failed.*no network.*one of"):
        build_extractor(InceptionConfig())


def test_without_the_package_the_install_line_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(ConfigError, match=r"tessera-images\[eval\]"):
        build_extractor(InceptionConfig())


def test_inception_weights_that_are_no_tensors_or_another_network_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.pth").write_text("not weights")
    with pytest.raises(CheckpointError, match="cannot be read"):
        build_extractor(InceptionConfig(weights=str(tmp_path / "text.pth")))
    torch.save(Path("an object that only unsafe unpickling makes"), tmp_path / "object.pth")
    with pytest.raises(CheckpointError, match="not a dictionary of tensors"):
        build_extractor(InceptionConfig(weights=str(tmp_path / "object.pth")))
    pytest.importorskip("torch_fidelity", reason="needs torch-fidelity")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="other weights"):
        build_extractor(InceptionConfig(weights=str(tmp_path / "other.pth")))


def test_a_cache_that_cannot_be_written_is_named_and_not_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3", reason="needs torch-fidelity")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("torch.hub.download_url_to_file", lambda *a, **k: pytest.fail("asked the network first"))
    with pytest.raises(StorageError, match=r"(?s)the cache cannot be written.*TORCH_HOME"):
        build_extractor(InceptionConfig())
