"""What a stage starts from: the weights of ``start_from``, known by their hash for as long as the run goes on."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from foundation.config import differences
from foundation.errors import CheckpointError, ConfigError, ContractError
from foundation.images.preprocess import to_unit_range
from foundation.storage import durable
from foundation.storage.serialization import read_json
from pipeline.runs.named_models import model_folder
from stage1_tokenizer.parts import CODING, CodesOf
from stage1_tokenizer.tokenizer import TokenizerModel
from stage2_prior.prior import PriorModel
from stage2_prior.start import start_prior

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.runs.folder import RunFolder
    from pipeline.runs.recipe import TokenizerStage


@dataclass(frozen=True)
class Start:
    """The weights that a stage starts from, noted in the run folder.

    Attributes:
        source: folder of the model; it may be gone once the run has a checkpoint.
        weights_sha256: of its weights.
        codes_of: of a tokenizer: whose codes its are.
        new_classes: of a prior: whether its classes differ from the classes of the codes.
    """

    source: Path
    weights_sha256: str
    codes_of: CodesOf | None = None
    new_classes: bool = False

    @property
    def identity(self) -> dict[str, str]:
        """What a checkpoint must agree with."""
        return {"the starting weights": self.weights_sha256}


def find_start(folder: RunFolder, stage: str, named: str | None) -> Start | None:
    """What ``start_from`` of a stage names, compared with what the run began with.

    Raises:
        CheckpointError: the folder holds other weights than when the run began.
        ConfigError: there is no such folder, and the run has no checkpoint to continue from.
    """
    if named is None:
        return None
    source, note = model_folder(Path(named), stage), _note(folder, stage)
    begun = folder.checkpoints(stage).is_dir() and any(folder.checkpoints(stage).glob("step-*"))
    noted = json.loads(note.read_bytes()) if note.is_file() and begun else None
    if not (source / "config.json").is_file():
        if noted is None:
            fix = "give a run folder, or one made by tessera import"
            raise ConfigError(f"is not a {stage} folder", field=f"{stage}.start_from", found=named, fix=fix)
        first = noted["codes_of"]
        codes_of = None if first is None else CodesOf(**first)
        return Start(source, noted["weights_sha256"], codes_of, noted["new_classes"])
    found = read_json(source / "config.json", ("weights_sha256",), fix="copy the folder again")["weights_sha256"]
    if noted is not None and noted["weights_sha256"] != found:
        what, fix = "holds other weights than when this run began", "name that folder, or begin in another --out"
        expected = noted["weights_sha256"][:16]
        raise CheckpointError(what, field=f"{stage}.start_from", found=found[:16], expected=expected, fix=fix)
    return Start(source, found)


def start_tokenizer(model: TokenizerModel, start: Start) -> Start:
    """Copy the weights into a new model; returns the start with the codes that the weights make.

    Raises:
        ContractError: another architecture, or another number of channels.
        CheckpointError: damaged weights.
    """
    if not (start.source / "config.json").is_file():  # a checkpoint has them
        return start
    source = TokenizerModel.load(start.source)
    rows = differences(source.config, model.config)
    if source.preprocess.n_channels != model.preprocess.n_channels:
        before, now = (f"{each.mode}, {each.n_channels} channels" for each in (source.preprocess, model.preprocess))
        rows.append(("data.preprocess.mode", before, now))
    for name, expected, found in rows:
        what, fix = "is not that of the tokenizer to start from", "leave it out: it is taken from there"
        field = name if name.startswith("data.") else f"tokenizer.model.{name}"
        raise ContractError(what, field=field, found=found, expected=expected, fix=fix)
    model.load_state_dict(source.state_dict())
    if source.preprocess != model.preprocess:
        return start
    return dataclasses.replace(start, codes_of=CodesOf(source.spec.fingerprint, source.coding_sha256))


def start_of_prior(model: PriorModel, start: Start, say: Callable[[str], object]) -> Start:
    """Copy the weights into a new model, and say what is not kept; returns the start with what is known of classes.

    Raises:
        ContractError: a prior of another shape.
        CheckpointError: damaged weights.
    """
    if not (start.source / "config.json").is_file():
        return start
    say(f"prior: starts from {start.source}")
    source = PriorModel.load(start.source)
    for note in start_prior(model, source):
        say(f"prior: {note}")
    before, now = (each.spec.class_names[: each.n_classes] for each in (source, model))
    return dataclasses.replace(start, new_classes=before != now)


def keep_note(folder: RunFolder, stage: str, start: Start) -> None:
    """Note in the run folder what the stage starts from."""
    first = None if start.codes_of is None else dataclasses.asdict(start.codes_of)
    values: dict[str, Any] = {"from": str(start.source), "weights_sha256": start.weights_sha256}
    values |= {"codes_of": first, "new_classes": start.new_classes}
    durable.replace_file(_note(folder, stage), json.dumps(values, indent=1).encode())


def bind_codes(model: TokenizerModel, stage: TokenizerStage, start: Start, pixels_BYXC: np.ndarray) -> None:
    """Say in a tokenizer whose encoder and codebook were frozen whose codes it makes, after checking that it does.

    Args:
        model: trained.
        stage: how.
        start: what it started from.
        pixels_BYXC: images to compare the codes of, uint8 or uint16.

    Raises:
        ContractError: a frozen part has changed, or a code of these images.
    """
    if not set(stage.freeze) >= CODING or start.codes_of is None:
        return
    same = model.coding_sha256 == start.codes_of.coding_sha256
    if same and (start.source / "config.json").is_file():
        before = TokenizerModel.load(start.source).to(next(model.parameters()).device)
        images = to_unit_range(pixels_BYXC).to(next(model.parameters()).device)
        same = torch.equal(before.encode(images), model.encode(images))
    if not same:
        fix = "this should not happen: report it"
        raise ContractError("codes changed though what makes them was frozen", field="tokenizer.freeze", fix=fix)
    model.codes_of = start.codes_of


def _note(folder: RunFolder, stage: str) -> Path:
    return folder.root / f"{stage}.start.json"
