"""Export of encoder and decoder as graphs: ``.pt2`` (torch.export) and ``.onnx``.

Graphs take any number of images of the tokenizer's own size, and are compared with the model on real images.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from foundation.config import to_dict
from foundation.errors import ConfigError, ContractError, StorageError
from foundation.images.preprocess import to_unit_range
from foundation.storage import durable
from stage1_tokenizer.canary import load_canary
from stage1_tokenizer.tokenizer import TokenizerModel

MOST_DIFFERENT_CODES = 1e-3
"""largest share of codes that may differ, or one code: near ties depend on rounding"""
MOST_DIFFERENT_PIXELS = 1e-3
"""largest difference of a pixel in [-1, 1]"""
_ONNX_PACKAGES = ("onnx", "onnxscript")


@dataclass(frozen=True)
class Exported:
    """A graph and its deviation from the model.

    Attributes:
        file: name of the file.
        checked: ``torch``, ``onnxruntime``, or the reason why it was not run.
        difference: share of codes that differ, or largest absolute difference of pixels and continuous latents; None if
            not run.
    """

    file: str
    checked: str
    difference: float | None


class Encoder(nn.Module):
    """(B, C, Y, X) float32 in [-1, 1] => codes, or continuous latents."""

    def __init__(self, tokenizer: TokenizerModel) -> None:
        super().__init__()
        self.encoder, self.bottleneck = tokenizer.encoder, tokenizer.bottleneck

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """``TokenizerModel.encode`` without its data-dependent checks."""
        return self.bottleneck.encode(self.encoder(images))


class Decoder(nn.Module):
    """Codes => (B, C, Y, X) float32, not clamped."""

    def __init__(self, tokenizer: TokenizerModel) -> None:
        super().__init__()
        self.bottleneck, self.decoder = tokenizer.bottleneck, tokenizer.decoder
        preprocess, stride = tokenizer.preprocess, tokenizer.config.stride
        self.grid = preprocess.height // stride, preprocess.width // stride

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        """``TokenizerModel.decode`` without its checks."""
        images: torch.Tensor = self.decoder(self.bottleneck.decode(codes, self.grid)).float()
        return images


def export_tokenizer(tokenizer: TokenizerModel, images_BCYX: torch.Tensor, folder: Path) -> list[Exported]:
    """Write encoder and decoder as ``.pt2``, with the onnx packages also as ``.onnx``, and ``export.json``.

    Args:
        tokenizer: in evaluation mode, on the CPU.
        images_BCYX: two or more real images in [-1, 1] of the tokenizer's size, for the comparison.
        folder: must not exist.

    Returns:
        The graphs and their deviations.

    Raises:
        ContractError: a graph deviates from the model.
        StorageError: the folder exists, or the disk refused.
    """
    if len(images_BCYX) < 2:
        raise ConfigError("are too few to check a graph", field="images", found=len(images_BCYX), expected="2 or more")
    if folder.exists():
        raise StorageError("exists and is never overwritten", field=str(folder), fix="choose another folder")
    codes = tokenizer.encode(images_BCYX)  # also computes the tables that the traced graph uses
    decoded = tokenizer.decode(codes)
    parts = (("encoder", Encoder(tokenizer), images_BCYX, codes), ("decoder", Decoder(tokenizer), codes, decoded))
    done: list[Exported] = []

    def fill(temporary: Path) -> None:
        for name, module, inputs, expected in parts:
            done.extend(_export(temporary, name, module, inputs, expected))
        about = {
            "format": 1,
            "fingerprint": tokenizer.fingerprint,
            "preprocess": to_dict(tokenizer.preprocess),
            "code_spec": to_dict(tokenizer.spec) if tokenizer.is_discrete else None,
            "images": "(B, C, Y, X) float32 in [-1, 1]",
            "codes": f"(B, {', '.join(map(str, codes.shape[1:]))})",
            "graphs": [asdict(each) for each in done],
        }
        durable.write_bytes(temporary / "export.json", json.dumps(about, indent=1).encode())

    durable.publish_folder(folder, fill)
    return done


def check_images(root: Path, tokenizer: TokenizerModel) -> torch.Tensor:
    """Load the validation images stored with a tokenizer.

    Raises:
        ConfigError: there are none.
    """
    canary = load_canary(root)
    if canary is None or len(canary.pixels_BYXC) < 2:
        raise ConfigError("has no stored images to check a graph", field=str(root), fix="give --images FOLDER")
    return to_unit_range(canary.pixels_BYXC)


@torch.no_grad()
def _export(folder: Path, name: str, module: nn.Module, inputs: torch.Tensor, expected: torch.Tensor) -> list[Exported]:
    """Trace one part with two images, then check it with all images and with one."""
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(module.eval(), (inputs[:2],), dynamic_shapes=({0: batch},))
    program = program.run_decompositions({})  # removes autocast blocks, which torch.export.load refuses
    torch.export.save(program, folder / f"{name}.pt2")
    with _quiet("torch._export.serde.serialize"):
        loaded = torch.export.load(folder / f"{name}.pt2").module()
    done = [_checked(f"{name}.pt2", "torch", lambda batch: loaded(batch), inputs, expected)]
    missing = [package for package in _ONNX_PACKAGES if importlib.util.find_spec(package) is None]
    if missing:
        return done
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = torch.onnx.export(program, (), dynamo=True, verbose=False)
    except torch.onnx.OnnxExporterError as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        return [*done, Exported(f"{name}.onnx", f"not made: {reason}", None)]
    assert graph is not None
    graph.save(folder / f"{name}.onnx", external_data=False)
    if importlib.util.find_spec("onnxruntime") is None:
        return [*done, Exported(f"{name}.onnx", "not run: onnxruntime is not installed", None)]
    run = _onnx_runner(folder / f"{name}.onnx")
    return [*done, _checked(f"{name}.onnx", "onnxruntime", run, inputs, expected)]


@contextlib.contextmanager
def _quiet(logger: str) -> Iterator[None]:
    """Silence the warnings of a logger."""
    log = logging.getLogger(logger)
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def _onnx_runner(path: Path) -> Callable[[torch.Tensor], torch.Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda batch: torch.from_numpy(np.asarray(session.run(None, {name: batch.numpy()})[0]))


def _checked(
    file: str,
    runtime: str,
    run: Callable[[torch.Tensor], torch.Tensor],
    inputs: torch.Tensor,
    expected: torch.Tensor,
) -> Exported:
    """Compare a graph with the model on all inputs at once and on the first alone.

    Raises:
        ContractError: the deviation exceeds rounding.
    """
    difference = max(_difference(run(inputs), expected), _difference(run(inputs[:1]), expected[:1]))
    discrete = not expected.is_floating_point()
    limit = max(MOST_DIFFERENT_CODES, 1 / expected.numel()) if discrete else MOST_DIFFERENT_PIXELS
    if not difference <= limit:
        found = f"{difference:.3g} {'of the codes differ' if discrete else 'largest difference'}"
        what, fix = "the graph deviates from the model", "report it with the tokenizer's config.json"
        raise ContractError(what, field=file, found=found, expected=f"at most {limit:g}", fix=fix)
    return Exported(file, runtime, difference)


def _difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    if found.shape != expected.shape:
        return float("inf")
    if not expected.is_floating_point():
        return float((found != expected).double().mean())
    return float((found - expected).abs().max())
