import os
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from foundation.errors import CheckpointError
from foundation.unpickling.torch_files import read_tensors


class Payload:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.canary),)


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_come_back_bit_for_bit(tmp_path: Path, zipped: bool) -> None:
    saved = OrderedDict(a=torch.randn(3, 4), b=torch.arange(5), c=torch.nn.Parameter(torch.randn(2, 3).half()).data.T)
    torch.save(saved, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    read = read_tensors(tmp_path / "w.pth", "again")
    assert list(read) == list(saved)
    assert all(torch.equal(read[name], value) and read[name].dtype == value.dtype for name, value in saved.items())


def test_a_payload_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2), "b": Payload(tmp_path / "canary")}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"not a dictionary of tensors(.|\n)*again"):
        read_tensors(tmp_path / "w.pth", "again")
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 cut off"])
def test_what_is_no_torch_file_is_refused_with_the_remedy(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"w\.pth(.|\n)*cannot be read(.|\n)*again"):
        read_tensors(tmp_path / "w.pth", "again")
