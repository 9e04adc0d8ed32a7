"""Regression check of a frozen tokenizer: a few images stored beside it with their codes.

Encoding them again shows at once whether the tokenizer still does what it did when it was frozen: another value range,
channel order, filter, precision, codebook, or weights that were never averaged all change something. Codes that a
rounding error can change (near ties, found by encoding one image at a time with noise of the size of rounding) are not
compared. What preprocessing does is checked on synthetic images, ``source_images``.
"""

from __future__ import annotations

import copy
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from foundation.errors import CheckpointError, ContractError
from foundation.images.array_image import ArrayImage
from foundation.images.config import Preprocess
from foundation.images.preprocess import to_unit_range
from foundation.storage.serialization import load_tensors, write_tensors
from foundation.training.arithmetic import Arithmetic, arithmetic
from stage1_tokenizer.image_metrics import psnr
from stage1_tokenizer.tokenizer import TokenizerModel

FILE = "canary.safetensors"
N_IMAGES = 16
TOLERANCE = 1e-3  # share of codes that may differ on another device or with other libraries
_PSNR_TOLERANCE = 0.1  # dB
_GREY_LEVELS = 2  # by which versions of Pillow may differ
_NUDGE = 1e-5  # of pixels in [-1, 1]; float32 rounds values near 1 by 6e-8, and a deep network adds its own
_N_CROPS, _CROP_PIXELS, _CROP_CODES = 4, 32, 2  # small crops, for a check in a fraction of a second
_LATENT_TOLERANCE = 1e-2  # of a latent's standard deviation


@dataclass(frozen=True)
class Canary:
    """Stored images and codes.

    Attributes:
        pixels_BYXC: (B, Y, X, C) uint8 or uint16.
        codes: as the tokenizer encoded them; latents of a continuous one.
        stable: which of the codes no rounding error changes.
        psnr_B: of the images decoded from their codes, in dB; None beside tokenizers frozen by an earlier version.
    """

    pixels_BYXC: np.ndarray
    codes: torch.Tensor
    stable: torch.Tensor
    psnr_B: torch.Tensor | None


def save_canary(tokenizer: TokenizerModel, pixels_BYXC: np.ndarray, folder: Path) -> None:
    """Store up to 16 images, (B, Y, X, C) pixels, with their codes; small crops of them; and what preprocessing does.

    The codes are computed on the CPU, wherever the tokenizer is, so that another device is compared with it.
    """
    if _device(tokenizer).type != "cpu":
        tokenizer = copy.deepcopy(tokenizer).cpu()
    pixels = np.ascontiguousarray(pixels_BYXC[:N_IMAGES])
    sources = source_images(tokenizer.preprocess)
    tensors = {
        **_record(tokenizer, pixels, ""),
        **_record(tokenizer, _crops(tokenizer, pixels), "crop_"),
        "sources": torch.from_numpy(sources),
        "source_pixels": torch.from_numpy(preprocessed(sources, tokenizer.preprocess)),
    }
    write_tensors(folder / FILE, tensors)


def load_canary(folder: Path) -> Canary | None:
    """The images that ``save_canary`` stored; None beside a tokenizer that was frozen without one.

    Raises:
        CheckpointError: the file is damaged.
    """
    tensors = _stored(folder)
    return None if tensors is None else _canary(tensors, "")


def copy_canary(source: Path, folder: Path) -> None:
    """Put the canary of one folder of a tokenizer into another one of the same tokenizer, if it has any."""
    if (source / FILE).exists():
        shutil.copyfile(source / FILE, folder / FILE)


def check_canary(tokenizer: TokenizerModel, folder: Path) -> None:
    """Preprocess, encode and decode what is stored again, and compare.

    Raises:
        ContractError: a filter, more than one code in a thousand, or a reconstruction differs.
        CheckpointError: the file is damaged.
    """
    tensors = _stored(folder)
    if tensors is not None:
        _require_same_preprocess(tokenizer, tensors, folder)
        _require_same(tokenizer, _canary(tensors, ""), folder)


def load_checked(folder: Path, device: torch.device) -> TokenizerModel:
    """The tokenizer of a folder, on ``device`` if it does there what it did when it was frozen, else on the CPU.

    The reason of a change to the CPU is printed to stderr.

    Raises:
        ContractError, CheckpointError: as ``check_canary``, on the CPU.
    """
    tokenizer = TokenizerModel.load(folder).to(device)
    try:
        check_canary(tokenizer, folder)
    except (ContractError, NotImplementedError) as error:  # MPS lacks some operations
        if device.type == "cpu":
            raise
        tokenizer = TokenizerModel.load(folder)
        check_canary(tokenizer, folder)
        reason = "; ".join(line.strip() for line in str(error).splitlines()[:2])
        print(f"device: cpu for the codes, since on {device}: {reason}", file=sys.stderr)
    return tokenizer


def require_few_changes(
    tokenizer: TokenizerModel, folder: Path, precision: Arithmetic, max_share: float
) -> tuple[float, int]:
    """Encode the stored images in a lower precision, and compare with the codes that float32 gave.

    Args:
        tokenizer: of the folder, on its device.
        folder: with the stored images.
        precision: tf32 or bf16.
        max_share: of the codes that may change, 0 to 1.

    Returns:
        the share of the codes that change, and of how many images.

    Raises:
        ContractError: more codes change, or the tokenizer was frozen without images.
        CheckpointError: the file is damaged.
    """
    canary, field, fix = load_canary(folder), "encode.precision", "encode in float32"
    if canary is None:
        what, expected = "has no stored images to judge a lower precision by", "float32"
        raise ContractError(what, field=str(folder), found=f"{field} {precision}", expected=expected, fix=fix)
    with arithmetic(_device(tokenizer), precision):
        codes = _encode(tokenizer, canary.pixels_BYXC)
    share = float(_differing(canary.codes, codes).double().mean())
    ContractError.unless(
        share <= max_share,
        "changes too many codes",
        field=field,
        found=f"{precision}: {share:.2%} of the codes of {len(codes)} stored images differ from float32's",
        expected=f"at most {max_share:.2%} (encode.max_code_changes)",
        fix=f"{fix}, or allow more if the prior may learn from them",
    )
    return share, len(codes)


def check_canary_quickly(tokenizer: TokenizerModel, folder: Path, seconds: float = 0.2) -> None:
    """``check_canary`` on small crops, one after the other until the time is up; one at least.

    For where a model is loaded to be used at once: it finds what changes every image, not damage at one place.

    Raises:
        ContractError, CheckpointError: as ``check_canary``.
    """
    started, tensors = time.perf_counter(), _stored(folder)
    if tensors is None:
        return
    _require_same_preprocess(tokenizer, tensors, folder)
    if "crop_pixels" not in tensors:  # frozen by an earlier version
        return
    canary = _canary(tensors, "crop_")
    for i in range(len(canary.codes)):
        one = slice(i, i + 1)
        psnr_B = None if canary.psnr_B is None else canary.psnr_B[one]
        each = Canary(canary.pixels_BYXC[one], canary.codes[one], canary.stable[one], psnr_B)
        _require_same(tokenizer, each, folder)
        if time.perf_counter() - started > seconds:
            return


def source_images(preprocess: Preprocess) -> np.ndarray:
    """Two images made by arithmetic alone, (2, Y, X, 4) uint8: red, green, blue and opacity.

    They are larger than ``preprocess`` makes them, by other factors in height and width, with stripes as fine as a
    pixel (which filters treat differently), tiles of pure red, green and blue, grey ramps, and transparency.
    """
    height, width = preprocess.height * 7 // 5 + 3, preprocess.width * 9 // 5 + 5
    y, x = np.mgrid[0:height, 0:width]
    stripes = np.stack([(x + y) % 2 * 255, (x // 2 + y) % 3 * 127, x * 255 // width], -1)
    tiles = np.stack([((y * 4 // height + x * 4 // width) % 3 == i) * 255 for i in range(3)], -1)
    opacity = np.stack([np.full_like(x, 255), 255 * y // height])
    return np.concatenate([np.stack([stripes, tiles]), opacity[..., None]], -1).astype(np.uint8)


def preprocessed(sources_BYXC: np.ndarray, preprocess: Preprocess) -> np.ndarray:
    """What ``source_images`` become, (B, Y, X, C) pixels; in mode channels, with their channels in turn."""
    if preprocess.mode != "channels":
        return np.stack([preprocess(Image.fromarray(each)) for each in sources_BYXC])
    turn = np.arange(preprocess.n_channels) % sources_BYXC.shape[-1]
    return np.stack([preprocess(ArrayImage(each[..., turn], channel_axis=2)) for each in sources_BYXC])


def _record(tokenizer: TokenizerModel, pixels: np.ndarray, prefix: str) -> dict[str, torch.Tensor]:
    codes = _encode(tokenizer, pixels)
    singly = torch.cat([_encode(tokenizer, pixels[i : i + 1], _NUDGE) for i in range(len(pixels))])
    psnr_B = _psnr(tokenizer, pixels, codes)
    stable = ~_differing(codes, singly)
    values = {"pixels": torch.from_numpy(pixels), "codes": codes, "stable": stable, "psnr": psnr_B}
    return {prefix + name: value for name, value in values.items()}


def _stored(folder: Path) -> dict[str, torch.Tensor] | None:
    """Every tensor of the file, None without a file.

    Raises:
        CheckpointError: it is damaged, or holds something else than a canary.
    """
    if not (folder / FILE).exists():
        return None
    tensors = load_tensors(folder / FILE)
    prefixes = ("", "crop_") if any(name.startswith("crop_") for name in tensors) else ("",)
    if not all(_is_canary(tensors, prefix) for prefix in prefixes):
        found, fix = ", ".join(sorted(tensors)), "copy the folder again from its source"
        raise CheckpointError("is no canary", field=str(folder / FILE), found=found, fix=fix)
    return tensors


def _is_canary(tensors: dict[str, torch.Tensor], prefix: str) -> bool:
    pixels, codes = tensors.get(f"{prefix}pixels"), tensors.get(f"{prefix}codes")
    if pixels is None or codes is None or not len(pixels) == len(codes) > 0:
        return False
    stable, psnr_B = tensors.get(f"{prefix}stable", codes), tensors.get(f"{prefix}psnr", pixels)
    return (
        pixels.ndim == 4
        and pixels.dtype in (torch.uint8, torch.uint16)
        and stable.shape == codes.shape
        and len(psnr_B) == len(codes)
    )


def _canary(tensors: dict[str, torch.Tensor], prefix: str) -> Canary:
    codes = tensors[f"{prefix}codes"]
    stable = tensors.get(f"{prefix}stable", torch.ones_like(codes, dtype=torch.bool))
    return Canary(tensors[f"{prefix}pixels"].numpy(), codes, stable, tensors.get(f"{prefix}psnr"))


def _require_same_preprocess(tokenizer: TokenizerModel, tensors: dict[str, torch.Tensor], folder: Path) -> None:
    if "sources" not in tensors:  # frozen by an earlier version
        return
    expected = tensors["source_pixels"].numpy().astype(int)
    found = preprocessed(tensors["sources"].numpy(), tokenizer.preprocess).astype(int)
    same_shape = found.shape == expected.shape
    most = _GREY_LEVELS * tokenizer.preprocess.top_level // 255
    differing = float((abs(found - expected) > most).mean()) if same_shape else 1.0
    ContractError.unless(
        differing <= TOLERANCE,
        "images become other pixels than when the tokenizer was frozen",
        field=str(folder),
        found=f"{differing:.1%} of the pixel values of {len(expected)} stored images differ",
        expected=f"at most {TOLERANCE:.1%}, by more than {most} of {tokenizer.preprocess.top_level}",
        fix="copy the folder again; if that changes nothing, this version of Pillow resizes differently: report it",
    )


def _require_same(tokenizer: TokenizerModel, canary: Canary, folder: Path) -> None:
    """Compare the codes of the stored images, then the images that their stored codes decode to."""
    n, fix = len(canary.codes), "copy the folder again; if that changes nothing, this machine computes differently"
    changed = _differing(canary.codes, _encode(tokenizer, canary.pixels_BYXC)) & canary.stable
    differing = int(changed.sum()) / max(1, int(canary.stable.sum()))
    what = "the tokenizer no longer gives the codes it gave when it was frozen"
    found, expected = f"{differing:.1%} of the codes of {n} stored images differ", f"at most {TOLERANCE:.1%}"
    details = {"field": str(folder), "fix": f"{fix}: report it"}
    ContractError.unless(differing <= TOLERANCE, what, found=found, expected=expected, **details)
    if canary.psnr_B is not None:
        before, now = float(canary.psnr_B.mean()), float(_psnr(tokenizer, canary.pixels_BYXC, canary.codes).mean())
        what = "the tokenizer no longer decodes its codes as it did when it was frozen"
        found, expected = f"{now:.2f} dB on {n} stored images", f"{before:.2f} dB, give or take {_PSNR_TOLERANCE}"
        ContractError.unless(abs(now - before) <= _PSNR_TOLERANCE, what, found=found, expected=expected, **details)


def _encode(tokenizer: TokenizerModel, pixels_BYXC: np.ndarray, nudge: float = 0.0) -> torch.Tensor:
    images_BCYX = to_unit_range(pixels_BYXC)
    if nudge:
        noise = torch.rand(images_BCYX.shape, generator=torch.Generator().manual_seed(0)).mul_(2).sub_(1)
        images_BCYX = (images_BCYX + nudge * noise).clamp_(-1, 1)
    return tokenizer.encode(images_BCYX.to(_device(tokenizer))).cpu().contiguous()


def _psnr(tokenizer: TokenizerModel, pixels_BYXC: np.ndarray, codes: torch.Tensor) -> torch.Tensor:
    """Of each image decoded from its codes, (B,) on the CPU."""
    height, width = pixels_BYXC.shape[1:3]
    images_BCYX = tokenizer.decode(codes.to(_device(tokenizer)), (height, width)).cpu()
    return psnr(to_unit_range(pixels_BYXC), images_BCYX)


def _differing(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Which codes differ; latents, by more than rounding can make them."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return torch.ones_like(one, dtype=torch.bool)
    if one.is_floating_point():
        return ~((one - other).abs() <= _LATENT_TOLERANCE * one.std())
    return one != other


def _crops(tokenizer: TokenizerModel, pixels_BYXC: np.ndarray) -> np.ndarray:
    """The middle of the first images."""
    multiple = tokenizer.config.side_multiple
    side = multiple * max(_CROP_CODES, -(-_CROP_PIXELS // multiple))
    height, width = (min(side, size) for size in pixels_BYXC.shape[1:3])
    top, left = (pixels_BYXC.shape[1] - height) // 2, (pixels_BYXC.shape[2] - width) // 2
    return pixels_BYXC[:_N_CROPS, top : top + height, left : left + width].copy()


def _device(tokenizer: TokenizerModel) -> torch.device:
    return next(tokenizer.parameters()).device
