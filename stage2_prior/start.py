"""Start of a prior from the weights of another, for other codes, grids or classes: keep what fits, name the rest."""

from __future__ import annotations

import torch

from foundation.codes.spec import CodeSpec
from foundation.errors import ContractError
from stage2_prior.config import PriorConfig
from stage2_prior.prior import PriorModel

_SHAPE = ("d_model", "n_layers", "n_heads", "feed_forward_width", "block", "reach")
_CLASSES = ("class_embedding.weight", "class_gates.weight")  # ends of the names of tables with a row for each class
_OF_PLACES = ("place_embedding.weight", "target_embedding.weight", "grid_embedding.weight")
_HEX = 64  # digits of a fingerprint; codes whose tokenizer is not known have another text
_SHOWN = 5


@torch.no_grad()
def start_prior(model: PriorModel, source: PriorModel) -> list[str]:
    """Copy the weights of a prior into a new one.

    Rows of the class table are kept for classes of the same name, and the null class; a new class starts as the null
    class. Codes of another tokenizer drop the code table and the head, another grid the tables of positions.

    Args:
        model: with random weights, changed in place.
        source: trained.

    Returns:
        what is not kept, in sentences; empty if everything is.

    Raises:
        ContractError: another width, depth, number of heads, or kind of block: nothing could be kept.
    """
    for name in _SHAPE:
        own, other = _value(model.config, name), _value(source.config, name)
        if own != other:
            what, fix = "is not that of the prior to start from", "leave it out: it is taken from there"
            raise ContractError(what, field=f"prior.model.{name}", found=own, expected=other, fix=fix)
    kept, own = dict(source.state_dict()), model.state_dict()
    notes = _settings_that_differ(model.config, source.config) + _codes(model, source, kept)
    tables = {name: kept.pop(name) for name in list(kept) if name.endswith(_CLASSES)}
    fits = {name: value for name, value in kept.items() if name in own and own[name].shape == value.shape}
    lost = [name for name in own if name not in fits and name not in tables]
    if lost:
        shown = ", ".join(lost[:_SHOWN]) + (f" and {len(lost) - _SHOWN} more" if len(lost) > _SHOWN else "")
        notes.append(f"new with random weights: {shown}")
    model.load_state_dict({**own, **fits})
    return notes + _keep_classes(model, source, tables)


def _value(config: PriorConfig, name: str) -> object:
    return getattr(config, name)


def _settings_that_differ(config: PriorConfig, other: PriorConfig) -> list[str]:
    names = (
        "positions",
        "rope_base",
        "order",
        "target_aware",
        "qk_norm",
        "class_conditional",
        "class_rotation",
        "extra_codes",
    )
    changed = [name for name in names if getattr(config, name) != getattr(other, name)]
    return [f"{name}: {getattr(config, name)} instead of {getattr(other, name)}" for name in changed]


def _codes(model: PriorModel, source: PriorModel, kept: dict[str, torch.Tensor]) -> list[str]:
    """Drop what belongs to other codes or another grid, from ``kept``."""
    ours, theirs, notes = model.spec, source.spec, list[str]()
    of_codes: tuple[str, ...] = ("code_embedding.weight", "head.weight", "slot_embedding.weight")
    sizes, their_sizes = ([slot.codebook_size for slot in spec.slots] for spec in (ours, theirs))
    if sizes != their_sizes:
        notes.append(f"codes: codebooks of {sizes} instead of {their_sizes} codes: code table and head are new")
    elif ours.fingerprint != theirs.fingerprint and len(ours.fingerprint) == len(theirs.fingerprint) == _HEX:
        notes.append("codes: those of another tokenizer: code table and head are new")
    else:
        if ours.fingerprint != theirs.fingerprint:
            notes.append("codes: taken to be those of the same tokenizer, which one of the two priors does not know")
        of_codes = ()
        for name in ("code_embedding.weight", "head.weight"):  # without extra_codes of one of them
            own = model.state_dict()[name]
            n_rows = min(len(own), len(kept[name]))
            kept[name] = torch.cat([kept[name][:n_rows], own[n_rows:]])
    for name in of_codes:
        kept.pop(name, None)
    shapes, their_shapes = (_grid_shapes(spec) for spec in (ours, theirs))
    if shapes != their_shapes:
        for name in _OF_PLACES:
            kept.pop(name, None)
        notes.append(f"grid: {shapes} instead of {their_shapes}")
    return notes


def _grid_shapes(spec: CodeSpec) -> list[tuple[int, ...]]:
    """Of each level, or of images of each shape."""
    return [level.shape for grid in range(spec.n_grids) for level in spec.of_grid(grid).levels]


def _keep_classes(model: PriorModel, source: PriorModel, tables: dict[str, torch.Tensor]) -> list[str]:
    """Fill the class tables by names."""
    names = model.spec.class_names[: model.n_classes]
    rows = {name: i for i, name in enumerate(source.spec.class_names[: source.n_classes])}
    taken = [rows.get(name, source.null_class) for name in names]
    own = model.state_dict()
    for name, table_RE in tables.items():
        own[name].copy_(table_RE[[*taken, source.null_class]])
    new = [name for name in names if name not in rows]
    gone = [name for name in rows if name not in names]
    notes = []
    if new:
        start = "and start as the null class"
        notes.append(f"class table: {len(new):,} of {len(names):,} rows are new {start}: {_listed(new)}")
    if gone:
        notes.append(f"class table: {len(gone):,} classes are gone: {_listed(gone)}")
    if not (new or gone) and list(names) != list(rows):
        notes.append("class table: rows are kept by name, in another order")
    return notes


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
