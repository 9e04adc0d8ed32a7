"""Import of a published checkpoint: recognise the format, plan, account, load, publish; or refuse and write nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from foundation.errors import ConfigError, StorageError, nearest
from foundation.storage import durable
from pipeline.interop.checkpoint import Checkpoint, open_checkpoint
from pipeline.interop.llamagen_gpt import plan_llamagen_gpt
from pipeline.interop.open_magvit2 import plan_open_magvit2
from pipeline.interop.openai_dvae import plan_openai_dvae
from pipeline.interop.plan import Plan, account_for, load_values
from pipeline.interop.taming_gpt import plan_net2net
from pipeline.interop.tokenizer_plan import Options
from pipeline.interop.vqgan_family import plan_diffusers_vq, plan_llamagen_vq, plan_rqvae, plan_sd_kl, plan_taming


@dataclass(frozen=True)
class Importer:
    """One kind of model in one format; a format may have several kinds.

    Attributes:
        format: name on the command line.
        makes: tokenizer, prior, or generator (both).
        signs: regular expressions that each match the start of some name.
        never: regular expressions that match the start of no name.
        plan: names and shapes => plan of the import.
        takes: the ``PRIOR_OPTIONS`` that it uses, and ``averaged`` if its files may hold two sets of weights.
    """

    format: str
    makes: Literal["tokenizer", "prior", "generator"]
    signs: tuple[str, ...]
    never: tuple[str, ...]
    plan: Callable[[Checkpoint, Options], Plan]
    takes: tuple[str, ...] = ()

    def share(self, keys: Sequence[str]) -> float:
        """Share of signs present, 0 to 1; less for each name that must not occur."""
        unfit = len(self.absent(keys)) + sum(_any(sign, keys) for sign in self.never)
        return 1 - unfit / len(self.signs)

    def absent(self, keys: Sequence[str]) -> list[str]:
        """Signs that no name matches, as text."""
        return [sign.replace("\\", "") for sign in self.signs if not _any(sign, keys)]


def _any(sign: str, keys: Sequence[str]) -> bool:
    return any(re.match(sign, key) for key in keys)


ORIGIN = "origin.json"
PRIOR_OPTIONS = ("tokenizer", "class_names")
"""fields of ``Options`` that only priors use"""
_PRIORS = (r"transformer\.", r"cond_stage_model\.transformer_emb")
_QUANTIZED = (r"quantize\.", r"quantizer\.")
_SHELL = r"(first_stage_model\.)?"
_LLAMAGEN = (r"encoder\.conv_blocks\.0\.res\.", r"decoder\.conv_blocks\.0\.res\.", r"quantize\.embedding\.")
_TAMING = (r"encoder\.down\.0\.block\.", r"decoder\.up\.0\.block\.")
_KL = (
    _SHELL + r"encoder\.(down\.0\.block|down_blocks\.0\.resnets)\.",
    _SHELL + r"decoder\.(up\.0\.block|up_blocks\.0\.resnets)\.",
    _SHELL + r"encoder\.conv_out\.",
)
_NOT_KL = (*(_SHELL + each for each in _QUANTIZED), *_PRIORS, r"decoder\.adaptive\.")
_DIFFUSERS = (r"encoder\.down_blocks\.0\.resnets\.", r"decoder\.up_blocks\.0\.resnets\.", r"quantize\.embedding\.")
_DVAE = (r"(encoder|decoder)\.blocks\.group_1\.block_1\.", r"(encoder|decoder)\.blocks\.input\.w")
_LLAMAGEN_GPT = (r"layers\.0\.attention\.wqkv\.", r"cls_embedding\.embedding_table\.", r"tok_embeddings\.")
_TAMING_GPT = (r"transformer\.blocks\.0\.attn\.key\.", r"transformer\.tok_emb\.", r"transformer\.pos_emb")
IMPORTERS: tuple[Importer, ...] = (
    Importer("llamagen_vq", "tokenizer", _LLAMAGEN, _PRIORS, plan_llamagen_vq),
    Importer(
        "taming", "tokenizer", (*_TAMING, r"quantize\.(embedding|embed)\."), (*_PRIORS, r"quantizer\."), plan_taming
    ),
    Importer("sd_kl", "tokenizer", _KL, _NOT_KL, plan_sd_kl),
    Importer("diffusers_vq", "tokenizer", _DIFFUSERS, _PRIORS, plan_diffusers_vq),
    Importer("openai_dvae", "tokenizer", _DVAE, (), plan_openai_dvae),
    Importer(
        "open_magvit2",
        "tokenizer",
        (*_TAMING, r"decoder\.adaptive\.0\.gamma\."),
        _QUANTIZED,
        plan_open_magvit2,
        ("averaged",),
    ),
    Importer("rqvae", "tokenizer", (*_TAMING, r"quantizer\.codebooks\.0\."), _PRIORS, plan_rqvae),
    Importer("llamagen_gpt", "prior", _LLAMAGEN_GPT, (), plan_llamagen_gpt, PRIOR_OPTIONS),
    Importer("taming", "generator", _TAMING_GPT, (), plan_net2net, ("class_names",)),
)


def formats() -> list[str]:
    """Names of the formats."""
    return list(dict.fromkeys(each.format for each in IMPORTERS))


def find_importer(checkpoint: Checkpoint, format_name: str | None) -> Importer:
    """Find the one importer whose signs a checkpoint has, of the given format if any.

    Raises:
        ConfigError: no such format; the message suggests the nearest.
        CheckpointError: none or several fit; the message suggests the nearest.
    """
    keys = list(checkpoint.tensors)
    if format_name is not None and format_name not in formats():
        fix = nearest(format_name, formats())
        raise ConfigError("is not a known format", field="FORMAT", found=format_name, fix=fix)
    asked = [each for each in IMPORTERS if format_name in (None, each.format)]
    fitting = [each for each in asked if each.share(keys) == 1]
    if len(fitting) == 1:
        return fitting[0]
    if len(fitting) > 1:
        raise checkpoint.error("fits several formats", found=[each.format for each in fitting], fix="give the FORMAT")
    return _nearly(checkpoint, asked, format_name)


def _nearly(checkpoint: Checkpoint, asked: list[Importer], format_name: str | None) -> Importer:
    """Return a named importer that fits partly, whose check lists missing tensors; otherwise refuse."""
    keys = list(checkpoint.tensors)
    best = max(IMPORTERS, key=lambda each: each.share(keys))
    named = max(asked, key=lambda each: each.share(keys))
    if format_name is not None and named.share(keys) > 0 and named.share(keys) >= best.share(keys):
        return named
    what = "is of no known format" if format_name is None else f"is not of the format {format_name}"
    hint = f"the nearest is {best.format}" if best.share(keys) > 0 else f"known: {', '.join(formats())}"
    absent = named.absent(keys)
    lacking = f"nothing named {', '.join(absent)}" if absent else "the signs of another format"
    raise checkpoint.error(what, found=f"{lacking}; but {', '.join(keys[:3])}, ...", fix=hint)


def import_published(files: Sequence[Path], folder: Path, format_name: str | None, options: Options) -> list[str]:
    """Turn published files into a model folder.

    Args:
        files: one file, or two of an encoder and a decoder.
        folder: must not exist.
        format_name: one of ``formats()``; None recognises the format by the names of the tensors.
        options: other settings.

    Returns:
        A summary, line by line: the format, facts and assumptions, the use of every tensor.

    Raises:
        CheckpointError: a file is damaged, of no known format, or has other tensors than expected.
        ConfigError: an unknown format, or an argument that is missing or contradicts the tensors.
        StorageError: the folder exists, or cannot be written.
    """
    if folder.exists():
        raise StorageError("exists and is never overwritten", field=str(folder), fix="choose another folder")
    checkpoint = open_checkpoint(files)
    importer = find_importer(checkpoint, format_name)
    _require_known_options(importer, options)
    plan = importer.plan(checkpoint, options)
    account = account_for(plan, importer.format)
    model, notes = load_values(plan), [*plan.notes, *account.lines()]
    origin = {
        "format": importer.format,
        "files": [{"name": path.name, "sha256": durable.file_sha256(path)} for path in files],
        "notes": list(plan.notes),
        "left_out": {reason: len(keys) for reason, keys in account.ignored.items()},
    }

    def fill(temporary: Path) -> None:
        plan.save(model, temporary)
        durable.write_bytes(temporary / ORIGIN, json.dumps(origin, indent=1).encode())

    durable.publish_folder(folder, fill)
    return [f"{importer.format} {importer.makes} in {folder}", *(f"  {line}" for line in notes)]


def _require_known_options(importer: Importer, options: Options) -> None:
    for name in PRIOR_OPTIONS:
        given = getattr(options, name)
        if given is not None and name not in importer.takes:
            what, field = f"has no use for a {importer.makes} of {importer.format}", f"--{name.replace('_', '-')}"
            raise ConfigError(what, field=field, found=str(given), fix="leave it out")
    if not options.averaged and "averaged" not in importer.takes:
        what, fix = f"has no use for {importer.format}, whose files hold one set of weights", "leave it out"
        raise ConfigError(what, field="--raw-weights", found=True, fix=fix)
