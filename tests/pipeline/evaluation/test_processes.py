"""Scores of an evaluation on 1, 2 and 3 processes: equal to the last bit, in both stages."""

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator, debug_launcher
from accelerate.state import AcceleratorState
from support.random_prior import spec
from support.small_tokenizer import CONFIG, PREPROCESS, Blots

from foundation.codes.spec import CodeLevel
from foundation.images.image_set import ImageSet
from foundation.training.config import FitConfig
from foundation.training.parallel import is_sharded
from foundation.training.shares import Share
from pipeline.evaluation.extractors import SmallConfig, build_extractor
from pipeline.evaluation.in_training import ReconstructionFID
from stage1_tokenizer.evaluate import score_tokenizer
from stage1_tokenizer.tokenizer import TokenizerModel
from stage2_prior.config import PriorConfig, PriorTraining
from stage2_prior.evaluate import score_prior
from stage2_prior.prior import PriorModel
from stage2_prior.train import PriorTask

LEVELS = (CodeLevel(height=1, width=2, codebook_size=9, depth=2), CodeLevel(height=2, width=2, codebook_size=2**10))
LIMITS = [None, 30, 5]
"""all 45 images, some of them, and less than one chunk: processes that score nothing"""


class Holey(ImageSet):
    """Images of which two cannot be read when they are scored."""

    def readable(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        kept_B = ~np.isin(indices, (3, 20))
        return self.pixels(indices[kept_B]), kept_B


def figures(share: Share) -> dict[str, Any]:
    """Every figure of both stages by limit, as exact texts."""
    torch.manual_seed(0)
    tokenizer = TokenizerModel(CONFIG, PREPROCESS).eval()
    images, distance = Holey(Blots(45), PREPROCESS), ReconstructionFID(build_extractor(SmallConfig()))
    prior = PriorModel(PriorConfig(d_model=16, n_layers=1, n_heads=2), spec(LEVELS)).eval()
    torch.nn.init.normal_(prior.head.weight, std=0.3)
    found: dict[str, Any] = {}
    for limit in LIMITS:
        of_images = score_tokenizer(tokenizer, images, batch_size=8, limit=limit, share=share, distance=distance)
        of_codes = score_prior(prior, codes(), batch_size=8, limit=limit, share=share)  # type: ignore[arg-type]
        found[str(limit)] = {**of_images.metrics(), **of_codes.metrics(), "images": of_images.n_images}
    return json.loads(json.dumps(found))


def codes() -> Any:
    rng = np.random.default_rng(0)
    rows = np.concatenate([rng.integers(0, 9, (45, 4)), rng.integers(0, 2**10, (45, 4))], 1)
    return SimpleNamespace(codes_NT=rows.astype(np.int32), labels_N=rng.integers(0, 3, 45))


def processes() -> Accelerator:
    AcceleratorState._reset_state(reset_partial_state=True)  # else a fork keeps its parent's single process
    torch.set_num_threads(1)  # nor can a fork use its parent's OpenMP threads
    return Accelerator(cpu=True)


def _score(folder: Path) -> None:
    accelerator = processes()
    found = figures(Share.of_processes(accelerator.device))
    (folder / f"{accelerator.process_index}.json").write_text(json.dumps(found), encoding="utf-8")


def _score_sharded(folder: Path) -> None:
    accelerator = processes()
    task = prior_task(accelerator)
    assert is_sharded(next(task.model.parameters()))
    (folder / f"{accelerator.process_index}.json").write_text(json.dumps(task.evaluate()), encoding="utf-8")


def prior_task(accelerator: Accelerator) -> PriorTask:
    torch.manual_seed(0)
    model = PriorModel(PriorConfig(d_model=16, n_layers=2, n_heads=2), spec(LEVELS[:1]))
    torch.nn.init.normal_(model.head.weight, std=0.3)
    held_out: Any = SimpleNamespace(codes_NT=codes().codes_NT[:, :4], labels_N=codes().labels_N)
    training = PriorTraining(fit=FitConfig(evaluate_images=40), precision="float32")
    return PriorTask(model, training, held_out, accelerator)


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setitem(os.environ, "OMP_NUM_THREADS", "1")
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("n_processes", [2, 3])
def test_figures_do_not_depend_on_the_number_of_processes(n_processes: int, tmp_path: Path) -> None:
    alone = figures(Share())
    assert [alone[str(limit)]["images"] for limit in LIMITS] == [43, 29, 5]
    assert {"psnr", "rfid_small", "code_usage", "bits_per_code", "worst_class"} <= alone["5"].keys()
    assert alone["None"]["unreadable_images"] == 2
    debug_launcher(_score, (tmp_path,), num_processes=n_processes)
    for rank in range(n_processes):
        assert json.loads((tmp_path / f"{rank}.json").read_text(encoding="utf-8")) == alone


def test_a_sharded_prior_is_scored_as_a_whole_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = prior_task(Accelerator(cpu=True)).evaluate()
    monkeypatch.setitem(os.environ, "ACCELERATE_USE_FSDP", "true")
    monkeypatch.setitem(os.environ, "FSDP_VERSION", "2")
    debug_launcher(_score_sharded, (tmp_path,), num_processes=2)
    for rank in range(2):
        assert json.loads((tmp_path / f"{rank}.json").read_text(encoding="utf-8")) == alone
