"""Low-rank adapters of a prior: W x + (alpha / rank) B A x with trained A and B, and W as it was.

The layers are peft's, so that adapters have its layout on the disk. What is evaluated, saved and sampled from is the
prior with A and B merged into W: plain layers again.

Source: Hu et al. 2021, arXiv:2106.09685, section 4.1.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from foundation.config import require
from foundation.errors import CheckpointError, ConfigError
from foundation.storage.serialization import load_tensors, read_json, write_tensors
from stage2_prior.config import LoRAConfig
from stage2_prior.prior import PriorModel

ADAPTER = "adapter"
"""folder of the adapter in a prior's folder"""
_FILES = ("adapter_config.json", "adapter_model.safetensors")
_NAME = "default"  # peft's, of a model's first adapter
_PREFIX = "base_model.model."  # before names in peft's files
_CLASSES = "class_embedding"


def add_adapters(model: PriorModel, config: LoRAConfig, *, new_classes: bool = False) -> None:
    """Put adapters beside linear layers of the blocks, in place, and freeze everything else.

    Args:
        model: its random numbers are torch's; A is random, B zero: at first, the model computes what it did.
        config: rank, scale, and which layers.
        new_classes: also train the class table.

    Raises:
        ConfigError: peft is not installed, or a layer that these blocks do not have.
    """
    layers = {name.split(".")[-1] for name, each in model.blocks.named_modules() if isinstance(each, nn.Linear)}
    missing = [name for name in config.target if name not in layers]
    require(not missing, "prior.lora.target", list(config.target), f"some of {', '.join(sorted(layers))}")
    peft = _peft()
    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=list(config.target or sorted(layers)),
        modules_to_save=[_CLASSES] if new_classes else None,
    )
    wrapped = copy.copy(settings)
    wrapped.modules_to_save = None  # the table is trained where it is
    peft.inject_adapter_in_model(wrapped, model)
    model.adapter = settings
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".lora_" in name or (new_classes and name.startswith(_CLASSES)))


def has_adapters(model: nn.Module) -> bool:
    """Whether some layer computes more than its weight says."""
    return any(hasattr(each, "lora_A") for each in model.modules())


@torch.no_grad()
def merged(model: PriorModel) -> PriorModel:
    """A plain prior with the adapters in its weights; the model itself if it has none."""
    if not has_adapters(model):
        return model
    state = {
        name.replace(".base_layer.", "."): value for name, value in model.state_dict().items() if ".lora_" not in name
    }
    for name, each in model.named_modules():
        if hasattr(each, "lora_A"):
            layer: Any = each
            change = layer.lora_B[_NAME].weight @ layer.lora_A[_NAME].weight
            state[f"{name}.weight"] = state[f"{name}.weight"] + layer.scaling[_NAME] * change
    with torch.device("meta"):
        plain = PriorModel(model.config, model.spec)
    plain.load_state_dict(state, assign=True)
    return plain.requires_grad_(False).train(model.training)


def save_adapter(model: PriorModel, folder: Path) -> None:
    """Fill a new folder with the adapters, as peft does; with the class table, if it was trained."""
    adapter: Any = model.adapter
    folder.mkdir()
    adapter.save_pretrained(str(folder))
    with_classes = bool(adapter.modules_to_save)
    kept = {
        _PREFIX + name.replace(f".{_NAME}.", "."): value.detach().cpu().contiguous()
        for name, value in model.state_dict().items()
        if ".lora_" in name or (with_classes and name.startswith(_CLASSES))
    }
    write_tensors(folder / _FILES[1], kept, {"format": "pt"})


@torch.no_grad()
def load_adapter(model: PriorModel, folder: str | Path) -> PriorModel:
    """A prior with the adapters of a folder merged into its weights.

    Args:
        model: plain, the one they were trained on; for other classes, first ``start_prior`` it into one for these.
        folder: as ``save_adapter`` or peft wrote it.

    Raises:
        CheckpointError: damaged, or of a prior of another shape.
        ConfigError: peft is not installed.
    """
    folder, fix = Path(folder), "copy the folder again"
    saved = read_json(folder / _FILES[0], ("r", "lora_alpha", "target_modules"), fix=fix)
    config = LoRAConfig(rank=saved["r"], alpha=saved["lora_alpha"], target=tuple(sorted(saved["target_modules"])))
    changed = copy.deepcopy(model)
    add_adapters(changed, config)
    tensors = load_tensors(folder / _FILES[1])
    own = changed.state_dict()
    for name, value in tensors.items():
        plain = name.removeprefix(_PREFIX)
        for part in ("lora_A", "lora_B"):
            plain = plain.replace(f".{part}.", f".{part}.{_NAME}.")
        if plain not in own or own[plain].shape != value.shape:
            found = f"{plain} {tuple(value.shape)}"
            raise CheckpointError("is of another prior", field=str(folder), found=found, fix="give the prior it is of")
        own[plain].copy_(value)
    return merged(changed)


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        fix = "pip install 'tessera-images[finetune]'"
        raise ConfigError("needs peft, which is not installed", field="prior.lora", fix=fix) from error
    return peft
