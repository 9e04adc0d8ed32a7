"""Calls of the Python API with arguments of every kind: the functions, and the values that are put in."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from foundation.codes.dataset import TokenDataset
from foundation.codes.spec import CodeLevel, CodeSpec
from foundation.hardware import TokenAccess, usable_device
from foundation.images.config import DataConfig, Preprocess
from foundation.images.image_set import open_image_sets
from foundation.images.preprocess import decode_image, image_grid, to_pil, to_uint8, to_unit_range
from foundation.images.source_config import FolderData
from pipeline import ImageGenerator
from pipeline.evaluation.config import Judges
from pipeline.evaluation.reconstruction import reconstruct_files
from pipeline.evaluation.run import evaluate_run
from pipeline.generation.bulk import Batch, generate_to_folder
from pipeline.generation.likelihood import score_files
from pipeline.generation.outputs import grid_image
from pipeline.runs.models import open_generator, open_tokenizer
from stage1_tokenizer import Tokenizer, TokenizerModel
from stage1_tokenizer.image_metrics import psnr, ssim
from stage2_prior import Prior, PriorModel, SamplingConfig
from stage2_prior.decoding.decode import iterate_codes, stream_uniforms


@dataclasses.dataclass(frozen=True)
class Function:
    """A public function and arguments with which it works."""

    name: str
    call: Callable[..., Any]
    arguments: dict[str, Any]


def values(run: Path, scratch: Path) -> dict[str, Callable[[], Any]]:
    """Values of every kind that a caller may hold, by name; some fit the run's models: 4 x 4 codes, 8 x 8 grey."""
    grids = np.random.default_rng(0).integers(0, 48, (2, 4, 4))
    pixels = np.random.default_rng(1).uniform(-1, 1, (2, 1, 8, 8))
    picture = Image.fromarray(((pixels[0, 0] + 1) * 127).astype(np.uint8))
    found: dict[str, Callable[[], Any]] = {}
    for kind in ("uint8", "int8", "uint16", "int32", "int64", "uint64", "float64", "bool"):
        found[f"numpy {kind} grids"] = lambda kind=kind: grids.astype(kind)
        found[f"torch {kind} grids"] = lambda kind=kind: torch.from_numpy(grids).to(getattr(torch, kind))
    for kind in ("float16", "float32", "float64"):
        found[f"numpy {kind} images"] = lambda kind=kind: pixels.astype(kind)
        found[f"torch {kind} images"] = lambda kind=kind: torch.from_numpy(pixels.astype(kind))
    found |= {
        "bf16 images": lambda: torch.from_numpy(pixels).bfloat16(),
        "complex images": lambda: torch.from_numpy(pixels).to(torch.complex64),
        "uint8 images": lambda: torch.from_numpy((pixels * 127 + 128).astype(np.uint8)),
        "uint8 channels last": lambda: (pixels * 127 + 128).astype(np.uint8).transpose(0, 2, 3, 1),
        "channels last": lambda: torch.from_numpy(pixels).float().permute(0, 2, 3, 1),
        "one image": lambda: torch.from_numpy(pixels[0]).float(),
        "one plane": lambda: torch.from_numpy(pixels[0, 0]).float(),
        "no images": lambda: torch.zeros(0, 1, 8, 8),
        "colour images": lambda: torch.zeros(2, 3, 8, 8),
        "odd sides": lambda: torch.zeros(1, 1, 7, 9),
        "large images": lambda: torch.zeros(1, 1, 16, 12),
        "NaN images": lambda: torch.full((1, 1, 8, 8), torch.nan),
        "images to 255": lambda: torch.full((1, 1, 8, 8), 255.0),
        "meta images": lambda: torch.zeros(1, 1, 8, 8, device="meta"),
        "sparse": lambda: torch.eye(4).to_sparse(),
        "flat codes": lambda: grids.reshape(2, 16),
        "flat torch codes": lambda: torch.from_numpy(grids.reshape(2, 16)),
        "two rows of codes": lambda: torch.from_numpy(grids[:, :2]),
        "one grid": lambda: torch.from_numpy(grids[0]),
        "no codes": lambda: torch.zeros(0, 4, 4, dtype=torch.int64),
        "negative codes": lambda: torch.full((1, 4, 4), -1),
        "large codes": lambda: np.full((1, 4, 4), 2**40),
        "codes as lists": lambda: grids.tolist(),
        "big-endian codes": lambda: grids.astype(">i4"),
        "mask": lambda: np.eye(8) > 0,
        "white mask": lambda: Image.new("L", (8, 8), 255),
        "picture": lambda: picture,
        "pictures": lambda: [picture, picture],
        "colour picture": lambda: picture.convert("RGB"),
        "float picture": lambda: picture.convert("F"),
        "tiny picture": lambda: Image.new("L", (1, 1)),
        "empty picture": lambda: Image.new("L", (0, 0)),
        "mixed list": lambda: [picture, 3, None],
        "path": lambda: run,
        "path text": lambda: str(run),
        "part of the run": lambda: run / "tokenizer",
        "file": lambda: run / "recipe.yaml",
        "no such path": lambda: scratch / "nothing",
        "paths": lambda: [run / "samples" / "grid.png"],
        "bytes": lambda: b"\x00\x01",
    }
    plain: tuple[Any, ...] = (
        *(None, True, False, -1, 0, 1, 2, 7, 2**40, 2**70, -(2**70), 0.0, 0.5, -0.5, float("nan"), float("inf"), 1j),
        *("", "3", "7", "-1", "cat", "cpu", "cuda", "cuda:99", "mps", "meta", "float16", "latent", "pt", "train", "\0"),
        *([], [0], [3, 7], [1, 2, 3], ["3", "7"], [[1, 2], [3]], [None], (8, 8), (16, 12), (8.0, 8), (), {}, {"a": 1}),
        *(np.int64(3), np.uint8(5), np.bool_(True), np.float32(0.5), np.array(3), np.array([3, 7]), np.array([])),
        *(np.array(["a", "b"]), np.array([None, object()])),
        *(torch.tensor(3), torch.tensor([3, 7]), torch.tensor([]), torch.float16, torch.device("cpu")),
        *({3, 7}, range(2), object(), object, len, Preprocess(height=8, width=8, mode="L"), SamplingConfig(top_k=3)),
    )
    found |= {f"{type(each).__name__} {str(each)[:30]}": lambda each=each: each for each in plain}
    found["generator"] = lambda: (i for i in range(3))
    found["torch generator"] = lambda: torch.Generator().manual_seed(0)
    return found


def functions(run: Path, scratch: Path) -> list[Function]:
    """The public functions and methods, with arguments with which they work on a tiny run of digits."""
    generator = ImageGenerator.from_pretrained(run)
    generator.set_progress_bar_config(disable=True)
    new = (scratch / f"new-{i}" for i in itertools.count())
    spec = generator.spec
    grids, images = torch.zeros(1, 4, 4, dtype=torch.int64), torch.zeros(1, 1, 8, 8)
    picture, pixels = scratch / "pictures" / "a.png", np.zeros((2, 8, 8, 1), np.uint8)
    picture.parent.mkdir()
    Image.new("L", (12, 9)).save(picture)
    level = {"height": 4, "width": 4, "codebook_size": 48, "depth": 1}
    parts = {"levels": spec.levels, "stride": 2, "preprocess": spec.preprocess, "fingerprint": "f"}
    tokenizer, prior = generator.tokenizer, generator.prior
    hub_tokenizer, hub_prior = Tokenizer.from_pretrained(run), Prior.from_pretrained(run)
    how = {"seed": 0, "guidance_scale": 1.5, "temperature": 1.0, "top_k": 5, "schedule": "linear", "best_of": 1}
    how |= {"batch_size": 2, "output_type": "np"}
    few = {"class_labels": "3", "num_images": 1, **how}
    decoding = (prior, torch.zeros(1, dtype=torch.int64), stream_uniforms([0], 16), SamplingConfig())
    table: list[tuple[str, Callable[..., Any], dict[str, Any]]] = [
        ("tokenizer.encode", tokenizer.encode, {"images_BCYX": images}),
        ("tokenizer.forward", tokenizer, {"images_BCYX": images}),
        ("tokenizer.features", tokenizer.features, {"images_BCYX": images}),
        ("tokenizer.decode", tokenizer.decode, {"codes": grids, "image_size": (8, 8)}),
        ("Tokenizer.forward", hub_tokenizer, {"images_BCYX": images, "return_dict": True}),
        ("Tokenizer.decode", hub_tokenizer.decode, {"codes": grids, "image_size": None}),
        ("Tokenizer.pixel_values", hub_tokenizer, {"pixel_values": images}),
        ("Tokenizer.from_pretrained", Tokenizer.from_pretrained, {"folder": run}),
        ("TokenizerModel", TokenizerModel, {"config": tokenizer.config, "preprocess": spec.preprocess}),
        ("TokenizerModel.load", TokenizerModel.load, {"folder": run / "tokenizer"}),
        ("prior.forward", prior, {"tokens_BT": grids, "labels_B": [3], "orders_BT": None}),
        ("prior.nll", prior.nll, {"tokens_BT": grids, "labels_B": [3]}),
        ("Prior.forward", hub_prior, {"tokens_BT": grids, "labels_B": [3], "targets_BT": grids}),
        ("Prior.input_ids", hub_prior, {"input_ids": grids, "labels": [3]}),
        ("Prior.from_pretrained", Prior.from_pretrained, {"folder": run}),
        ("PriorModel", PriorModel, {"config": prior.config, "spec": spec}),
        ("PriorModel.load", PriorModel.load, {"folder": run / "prior"}),
        ("iterate_codes", _first(iterate_codes), _named(("prior", "labels_B", "uniforms_BT", "sampling"), decoding)),
        ("iterate_codes known", _first(_bound(iterate_codes, decoding)), {"known_BT": grids.flatten(1), "start": 3}),
        ("stream_uniforms", stream_uniforms, {"seeds": [0], "n_codes": 16}),
        ("ImageGenerator", ImageGenerator, {"tokenizer": tokenizer, "prior": prior, "defaults": None}),
        ("from_pretrained", ImageGenerator.from_pretrained, {"folder": run, "torch_dtype": None, "device_map": "cpu"}),
        ("from_pretrained revision", ImageGenerator.from_pretrained, {"folder": "me/m", "revision": "main"}),
        ("save_pretrained", generator.save_pretrained, {"folder": next(new)}),
        ("push_to_hub", generator.push_to_hub, {"repo_id": "me/model", "token": "x", "private": True}),
        ("Tokenizer.push_to_hub", hub_tokenizer.push_to_hub, {"repo_id": "me/model", "token": "x"}),
        ("to", generator.to, {"device": "cpu", "dtype": torch.float32}),
        ("generator", generator, {"class_labels": ["3"], "num_images_per_label": 1, **how}),
        ("larger", generator, {"class_labels": None, "height": 8, "width": 10, "seed": 0}),
        (
            "callbacks",
            partial(generator, callback_on_step_end=_replace),
            {"callback_on_step_end_tensor_inputs": ["codes"], "seed": 0},
        ),
        ("complete", generator.complete, {"images": images, "rows": 2, "guess_class": False, "hide": True, **few}),
        ("complete codes", generator.complete, {"images": grids[:, :2], "class_labels": None}),
        ("inpaint", generator.inpaint, {"images": images, "mask": np.eye(8) > 0, "grow": 1, "blend": 1, **few}),
        ("vary", generator.vary, {"images": images, "share": 0.5, **few}),
        ("change_class", generator.change_class, {"images": grids, "share": 0.5, **few}),
        ("interpolate", generator.interpolate, {"first": 0, "last": 1, "class_label": "3", "steps": 2}),
        ("interpolate images", generator.interpolate, {"first": images, "last": images, "steps": 2}),
        ("stream", _first(generator.stream), {"class_labels": "3", "num_images_per_label": 1, "seed": 0}),
        ("partial", _partial(generator), {"output_type": "np"}),
        ("score", generator.score, {"images": images, "class_labels": "3", "unit": "bits", "batch_size": 2}),
        ("decode", generator.decode, {"codes": grids, "batch_size": 1}),
        ("label_ids", generator.label_ids, {"class_labels": "3"}),
        ("components", generator.set_progress_bar_config, {"disable": True}),
        ("open_generator", open_generator, {"run": str(run), "device": "cpu"}),
        ("open_tokenizer", open_tokenizer, {"run_or_folder": run, "device": "cpu"}),
        ("usable_device", usable_device, {"name": "cpu"}),
        ("TokenDataset", TokenDataset, {"folder": run / "codes", "split": "train", "access": TokenAccess()}),
        ("CodeLevel", CodeLevel, level),
        ("CodeSpec", CodeSpec, {**parts, "class_names": ("a",)}),
        ("spec.grid", spec.grid, {"codes_BT": grids.flatten(1)}),
        ("spec.split", spec.split, {"codes_BT": grids.flatten(1)}),
        ("spec.join", spec.join, {"grids": [grids]}),
        ("spec.with_classes", spec.with_classes, {"class_names": ("a", "b")}),
        ("SamplingConfig", SamplingConfig, {"guidance_scale": 1.0, "temperature": 1.0, "top_k": 3, "top_p": 0.5}),
        ("Preprocess", Preprocess, {"height": 8, "width": 8, "mode": "L", "background": (0, 0, 0)}),
        ("preprocess", spec.preprocess, {"image": Image.new("L", (9, 9))}),
        ("open_image_sets", open_image_sets, {"config": DataConfig(source=FolderData(path=str(picture.parent)))}),
        ("FolderData", _opened, {"path": str(picture.parent), "labels": None}),
        ("decode_image", decode_image, {"data": picture.read_bytes()}),
        ("to_unit_range", to_unit_range, {"images_BYXC": pixels}),
        ("to_uint8", to_uint8, {"images_BCYX": images}),
        ("to_pil", to_pil, {"image_YXC": pixels[0]}),
        ("image_grid", image_grid, {"images_BYXC": pixels, "n_columns": 2, "scale": 1, "gap": 1}),
        ("grid_image", grid_image, {"images": [Image.new("L", (8, 8))], "n_columns": 1}),
        ("psnr", psnr, {"images_BCYX": images, "reconstructions_BCYX": images}),
        ("ssim", ssim, {"images_BCYX": images, "reconstructions_BCYX": images}),
        ("score_files", score_files, {"pipe": generator, "paths": [picture], "class_label": "3", "batch_size": 2}),
        ("reconstruct_files", reconstruct_files, {"tokenizer": tokenizer, "paths": [picture], "keep_size": False}),
        ("Batch", Batch, {"count": 2, "labels": (3,), "seed": 0, "format": "png", "batch_size": 2}),
        (
            "generate_to_folder",
            partial(generate_to_folder, generator),
            {"folder": next(new), "batch": Batch(count=2, labels=(3,))},
        ),
        (
            "evaluate_run",
            evaluate_run,
            {"run": str(run), "part": "prior", "judges": Judges(), "split": "validation", "device": "cpu"},
        ),
    ]
    return [Function(*row) for row in table]


def wrong_calls(
    table: list[Function], kinds: dict[str, Callable[[], Any]], n: int, seed: int = 0
) -> Iterator[tuple[str, Function, dict[str, Any]]]:
    """Calls in which one argument, sometimes two, are of another kind; each has a name for messages."""
    chosen = random.Random(seed)
    for i in range(n):
        function = table[i % len(table)]
        names = chosen.sample(list(function.arguments), min(len(function.arguments), chosen.choice((1, 1, 1, 2))))
        given = {name: chosen.choice(list(kinds)) for name in names}
        arguments = {**function.arguments, **{name: kinds[kind]() for name, kind in given.items()}}
        yield f"{function.name}({', '.join(f'{name}={kind}' for name, kind in given.items())})", function, arguments


def _first(iterate: Callable[..., Iterator[Any]]) -> Callable[..., Any]:
    return lambda *arguments, **options: next(iter(iterate(*arguments, **options)), None)


def _bound(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Callable[..., Any]:
    return lambda **options: function(*arguments, **options)


def _named(names: tuple[str, ...], found: tuple[Any, ...]) -> dict[str, Any]:
    return dict(zip(names, found, strict=True))


def _replace(pipe: Any, step: int, t: int, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return tensors


def _partial(generator: ImageGenerator) -> Callable[..., Any]:
    return lambda output_type: next(generator.stream("3", seed=0)).decode(output_type)


def _opened(path: Any, labels: Any) -> Any:
    return open_image_sets(DataConfig(source=FolderData(path=path, labels=labels)))
