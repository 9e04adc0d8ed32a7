"""Adapters of a prior: what is trained, merged, saved, loaded, and sampled from."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from support.random_prior import spec
from support.tiny_prior import TinyTask, code_vectors, dataset, fit_config, train

from foundation.codes.spec import CodeLevel
from foundation.config import from_dict
from foundation.errors import CheckpointError, ConfigError
from foundation.storage.serialization import load_tensors
from foundation.training.checkpoints import latest_checkpoint
from foundation.training.config import OptimConfig
from pipeline.runs.recipe import PriorStage
from stage2_prior.config import LoRAConfig, PriorConfig, PriorTraining, Regularizer
from stage2_prior.decoding.decode import iterate_codes, stream_uniforms
from stage2_prior.decoding.sampling import SamplingConfig
from stage2_prior.lora import add_adapters, has_adapters, load_adapter, merged, save_adapter
from stage2_prior.prior import PriorModel

pytest.importorskip("peft")
CODES = (CodeLevel(height=2, width=3, codebook_size=11),)
CONFIG = PriorConfig(d_model=16, n_layers=2, n_heads=2, dropout=0.1, rope_base=100.0)


def base(n_classes: int = 3) -> PriorModel:
    torch.manual_seed(0)
    model = PriorModel(CONFIG, spec(CODES, n_classes))
    torch.nn.init.normal_(model.head.weight, std=0.4)
    return model


def test_adapters_are_refused_where_muon_trains_matrices() -> None:
    training = {"training": {"optim": {"matrices": "muon"}}, "start_from": "elsewhere", "lora": {"rank": 2}}
    with pytest.raises(ConfigError, match=r"training\.optim\.matrices"):
        from_dict(PriorStage, training)


def adapted_task(
    stop_at: int | None = None, *, new_classes: bool = False, regularizer: Regularizer | None = None
) -> TinyTask:
    model = base()
    add_adapters(model, LoRAConfig(rank=2, dropout=0.1), new_classes=new_classes)
    optim = OptimConfig(learning_rate=0.03, warmup_steps=2)
    training = PriorTraining(fit=fit_config(), optim=optim, average_decay=0.9, regularizer=regularizer)
    how: dict[str, Any] = {"seed": 5, "stop_at": stop_at, "code_vectors_VC": code_vectors()}
    return TinyTask(model, training, None, Accelerator(cpu=True), **how)


def test_adapters_train_beside_the_regularizer_whose_networks_stay_behind(tmp_path: Path) -> None:
    task = adapted_task(regularizer=Regularizer(noise=0.5))
    train(tmp_path, task, Accelerator(cpu=True))
    plain, before = task.exported().state_dict(), base().state_dict()
    assert plain.keys() == before.keys()
    changed = {name for name, value in plain.items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if name.startswith("blocks.") and before[name].ndim == 2}


def logits(model: PriorModel) -> torch.Tensor:
    codes = dataset()
    with torch.no_grad():
        return model.eval()(codes.codes_NT.astype(np.int64), codes.labels_N)


def test_only_adapters_are_trained_and_nothing_else_has_memory(tmp_path: Path) -> None:
    before, task = base(), adapted_task()
    assert torch.equal(logits(task.model), logits(before)), "adapters begin at zero"
    train(tmp_path, task, task.accelerator)
    own = task.model.state_dict()
    for name, value in before.state_dict().items():
        *module, last = name.split(".")
        wrapped = ".".join((*module, "base_layer", last))
        assert torch.equal(value, own.get(wrapped, own.get(name))), name
    in_optimizer = sum(each.numel() for group in task.learner.optimizer.param_groups for each in group["params"])
    adapters = sum(value.numel() for name, value in own.items() if ".lora_" in name)
    assert in_optimizer == adapters < sum(value.numel() for value in before.state_dict().values()) / 3
    shared = {each.data_ptr() for each in task.model.parameters() if not each.requires_grad}
    assert shared <= {each.data_ptr() for each in task.averaged().parameters()}, "the average holds adapters only"
    found = latest_checkpoint(tmp_path / "checkpoints")
    assert found is not None and all(".lora_" in name for name in found.state["task"]["average"])
    assert not torch.equal(logits(task.exported()), logits(before))


def test_merged_weights_compute_and_sample_the_same(tmp_path: Path) -> None:
    task = train(tmp_path, adapted_task(), Accelerator(cpu=True))
    beside, whole = task.averaged(), task.exported()
    assert has_adapters(beside) and not has_adapters(whole) and whole is merged(whole)
    assert torch.allclose(logits(beside), logits(whole), atol=1e-5)
    uniforms, labels = stream_uniforms([1, 2, 3], 6), torch.tensor([0, 1, 2])
    codes = [
        torch.cat([step.codes_BK for step in iterate_codes(each.eval(), labels, uniforms, SamplingConfig())])
        for each in (beside, whole, base())
    ]
    assert torch.equal(codes[0], codes[1]) and not torch.equal(codes[0], codes[2])


def test_an_adapter_is_saved_as_peft_does_and_merges_again(tmp_path: Path) -> None:
    import peft

    task = train(tmp_path, adapted_task(new_classes=True), Accelerator(cpu=True))
    save_adapter(task.averaged(), tmp_path / "adapter")
    names = set(load_tensors(tmp_path / "adapter" / "adapter_model.safetensors"))
    assert "base_model.model.blocks.0.attention.qkv.lora_A.weight" in names
    assert "base_model.model.class_embedding.weight" in names
    trained = logits(task.exported())
    assert torch.allclose(logits(load_adapter(base(), tmp_path / "adapter")), trained, atol=1e-6)
    theirs = peft.PeftModel.from_pretrained(base(), str(tmp_path / "adapter")).eval()
    codes = dataset()
    with torch.no_grad():
        found = theirs(codes.codes_NT.astype(np.int64), codes.labels_N)
    assert torch.allclose(found, trained, atol=1e-5)
    with pytest.raises(CheckpointError, match="is of another prior"):
        load_adapter(base(5), tmp_path / "adapter")


@pytest.mark.parametrize("stop_at", [4, 13])
def test_a_killed_training_of_adapters_ends_as_an_uninterrupted_one(tmp_path: Path, stop_at: int) -> None:
    whole = train(tmp_path / "whole", adapted_task(), Accelerator(cpu=True))
    train(tmp_path / "parts", adapted_task(stop_at), Accelerator(cpu=True))
    parts = train(tmp_path / "parts", adapted_task(), Accelerator(cpu=True))
    assert torch.equal(logits(whole.exported()), logits(parts.exported()))


def test_a_layer_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"down, gate_up, out, qkv"):
        add_adapters(base(), LoRAConfig(target=("query",)))
