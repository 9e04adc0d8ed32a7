import errno
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from foundation.errors import CheckpointError
from foundation.storage.serialization import (
    json_text,
    load_model_folder,
    load_state,
    load_tensors,
    load_weights,
    read_json,
    save_model_folder,
    save_state,
    tensors_sha256,
)

STATE = {"step": 3, "names": ["a", None, True], "optimizer": {0: {"m": torch.arange(3.0)}, 7: torch.tensor(2)}}


def test_a_nested_state_comes_back_with_its_keys_values_and_types(tmp_path: Path) -> None:
    save_state(tmp_path, STATE)
    found = load_state(tmp_path)
    assert found["step"] == 3 and found["names"] == ["a", None, True] and found["optimizer"].keys() == {0, 7}
    assert torch.equal(found["optimizer"][0]["m"], torch.arange(3.0)) and found["optimizer"][7].dtype == torch.int64


def test_equal_values_give_equal_json_and_nan_is_refused() -> None:
    assert json_text({"b": 1, "a": [2]}) == json_text({"a": [2], "b": 1})
    with pytest.raises(ValueError, match="JSON"):
        json_text({"a": float("nan")})


@pytest.mark.parametrize("content", ["{", "[1]", '{"a": 1}', "\xff"])
def test_json_that_is_damaged_or_lacks_a_key_is_refused_with_the_fix(content: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(content, encoding="latin-1")
    with pytest.raises(CheckpointError, match="make it again"):
        read_json(tmp_path / "x.json", ("a", "b"), fix="make it again")


def test_the_hash_of_tensors_sees_names_types_shapes_and_values_and_no_order() -> None:
    a, b = torch.arange(6, dtype=torch.int32), torch.zeros(0)
    base = tensors_sha256({"a": a, "b": b})
    assert base == tensors_sha256({"b": b, "a": a.clone()})
    others = [
        {"a": a.reshape(2, 3), "b": b},
        {"a": a.float(), "b": b},
        {"a": a + 1, "b": b},
        {"c": a, "b": b},
        {"a": a},
    ]
    assert len({base, *map(tensors_sha256, others)}) == 6


def test_a_model_folder_gives_its_settings_and_weights_back(tmp_path: Path) -> None:
    save_model_folder(tmp_path, nn.Linear(2, 3), "tessera_x", "X", {"width": 3})
    settings, weights = load_model_folder(tmp_path, "tessera_x", ("width",))
    assert settings["width"] == 3
    module = nn.Linear(2, 3)
    load_weights(module, weights, "here")
    assert torch.equal(module.weight, load_tensors(tmp_path / "model.safetensors")["model.weight"])
    with pytest.raises(CheckpointError, match="another type of model"):
        load_model_folder(tmp_path, "tessera_y", ())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "weights_sha256": "0" * 64}))
    with pytest.raises(CheckpointError, match="changed or damaged"):
        load_model_folder(tmp_path, "tessera_x", ("width",))


def test_weights_of_another_shape_or_name_are_refused_by_name() -> None:
    weights = dict(nn.Linear(2, 3).state_dict())
    with pytest.raises(CheckpointError, match=r"other shapes \['weight'\]"):
        load_weights(nn.Linear(4, 3), weights, "here")
    with pytest.raises(CheckpointError, match=r"missing \['bias'\], left over \['tail'\]"):
        load_weights(nn.Linear(2, 3), {"weight": weights["weight"], "tail": weights["bias"]}, "here")


def test_a_file_that_may_not_be_read_is_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for another user's file of mode 000; root reads those, so that readers raise here."""
    save_model_folder(tmp_path, nn.Linear(2, 2), "toy", "Toy", {})
    refusal = PermissionError(errno.EACCES, "Permission denied")

    def refuse(*arguments: object, **options: object) -> None:
        raise refusal

    for reader in ("foundation.storage.serialization.load_file", "pathlib.Path.read_bytes"):
        with monkeypatch.context() as patch:
            patch.setattr(reader, refuse)
            with pytest.raises(CheckpointError, match=r"Permission denied(.|\n)*readable for this user") as caught:
                load_model_folder(tmp_path, "toy", ())
        assert "move" not in str(caught.value) and "again" not in str(caught.value)


def test_the_blocks_of_a_file_are_the_bytes_of_the_library() -> None:
    from safetensors.torch import save

    from foundation.storage.serialization import _DTYPES, tensor_blocks

    values = torch.tensor([0.0, 1.0, 1.0])
    tensors = {f"é{i % 3}/{i}": values.to(kind) for i, kind in enumerate(_DTYPES)}
    tensors |= {"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 4), "turned": torch.arange(6.0).view(2, 3).t()}
    for metadata in (None, {"format": "pt"}):
        library = save({name: each.contiguous() for name, each in tensors.items()}, metadata)
        assert b"".join(map(bytes, tensor_blocks(tensors, metadata))) == library


def test_a_type_that_the_format_lacks_is_refused_by_the_name_of_the_tensor() -> None:
    from foundation.storage.serialization import tensor_blocks

    with pytest.raises(CheckpointError, match=r"a/b: cannot be saved(.|\n)*complex128"):
        list(tensor_blocks({"a/b": torch.zeros(1, dtype=torch.complex128)}))
