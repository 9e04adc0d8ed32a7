"""What is decoded: codes that are checked before anything is written, and the tokenizer that decodes them."""

from __future__ import annotations

from pathlib import Path

from foundation.codes.shards import require_grids
from foundation.codes.sources import CodeRows, open_codes
from foundation.codes.spec import CodeSpec, require_codes, require_same_codes
from foundation.errors import CheckpointError, ConfigError, DataError
from foundation.paths import expand
from pipeline.encoding.own_codes import OTHER_TOKENIZER, inner_tokenizer

_BLOCK = 8192


def find_tokenizer(codes: Path, named: str | None) -> Path:
    """Find the folder of the tokenizer that decodes ``codes``: the named one, or the one inside them.

    Raises:
        ConfigError: codes without a tokenizer need a named one.
        CheckpointError: no tokenizer in the named folder.
    """
    if named is not None:
        root = Path(expand(named, "--tokenizer"))
        choices = [root / "codes" / "tokenizer", root / "tokenizer", root]
        found = next((each for each in choices if (each / "config.json").is_file()), None)
        fix = "give a run, a token dataset, or a folder made by tessera import"
        CheckpointError.unless(found is not None, "holds no tokenizer", field="--tokenizer", found=named, fix=fix)
    else:
        found = inner_tokenizer(codes)
        fix = "give the run or tokenizer folder that made the codes"
        what = "is needed: there is no tokenizer inside the codes"
        ConfigError.unless(found is not None, what, field="--tokenizer", found=str(codes), fix=fix)
    assert found is not None
    return found


def open_rows(codes: Path, spec: CodeSpec, split: str | None = None) -> list[CodeRows]:
    """Open the rows of a source of codes, one entry for each split.

    Args:
        codes: see ``foundation.codes.sources``.
        spec: specification of the tokenizer's codes.
        split: the split to open; None takes all.

    Raises:
        DataError: no usable codes, or codes of another shape than the tokenizer's.
        ContractError: codes of another tokenizer.
        ConfigError: a split that is not there.
    """
    several = open_codes(codes)
    names = [each.split for each in several]
    if split is not None and split not in names:
        expected = ", ".join(filter(None, names)) or "no split: these codes have none"
        raise ConfigError("is not in the codes", field="--split", found=split, expected=expected, fix="leave it out")
    chosen = [each for each in several if split in (None, each.split)]
    allowed = {(spec.n_codes,), *(spec.of_grid(grid).shape for grid in range(spec.n_grids))}
    for each in chosen:
        if each.spec is not None:
            require_same_codes(spec, each.spec, owner="the tokenizer", other=each.where)
        found, expected = each.shape, " or ".join(map(str, sorted(allowed, key=len)))
        what = "holds codes of another shape than the tokenizer's"
        DataError.unless(found in allowed, what, field=each.where, found=found, expected=expected)
        if each.listed is None:  # else verified against its manifest
            _require_usable(each, spec)
        if spec.n_grids > 1:
            _require_grids(each, spec)
    return chosen


def _require_usable(rows: CodeRows, spec: CodeSpec) -> None:
    """Read all rows once, so that nothing is written of codes that cannot be decoded."""
    for start in range(0, rows.n_rows, _BLOCK):
        codes = rows.read(start, min(start + _BLOCK, rows.n_rows)).codes
        require_codes(codes.reshape(len(codes), -1), spec, f"{rows.where}: codes", OTHER_TOKENIZER)


def _require_grids(rows: CodeRows, spec: CodeSpec) -> None:
    """Refuse rows that do not say which shape their image has, unless the shape of the codes does."""
    if rows.shape != (spec.n_codes,):
        return
    for start in range(0, rows.n_rows, _BLOCK):
        block = rows.read(start, min(start + _BLOCK, rows.n_rows))
        require_grids(block.grids, spec, len(block.codes), f"{rows.where}: grid")
