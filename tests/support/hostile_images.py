"""Hostile images, as found in the wild or made by an attacker, from a seed.

Each kind has the failure codes with which it may be refused: the empty set if it must be read, None if either is right.
"""

from __future__ import annotations

import io
import os
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

Codes = set[str] | None
MUST_WORK: Codes = set()
UNREADABLE, TOO_LARGE, FORMAT = {"unreadable"}, {"too_large"}, {"pixel_format"}
Rng = random.Random


def picture(rng: Rng, mode: str = "RGB", size: tuple[int, int] | None = None) -> Image.Image:
    width, height = size or (rng.randrange(20, 60), rng.randrange(20, 60))
    noise = np.random.default_rng(rng.randrange(2**32))
    coarse = noise.integers(0, 256, (-(-height // 8), -(-width // 8), 4), np.uint8)
    pixels = coarse.repeat(8, 0).repeat(8, 1)[:height, :width]
    return Image.fromarray(pixels, "RGBA").convert("RGB").convert(mode) if mode != "RGBA" else Image.fromarray(pixels)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_of_size(width: int, height: int, pixels: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def cut(content: bytes, rng: Rng) -> bytes:
    return content[: rng.randrange(len(content) // 8, len(content) * 3 // 4)]


def flipped(content: bytes, rng: Rng) -> bytes:
    damaged = bytearray(content)
    for _ in range(rng.randrange(1, 30)):
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def exif(rng: Rng, orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return encoded(picture(rng), "JPEG", exif=tags)


def animated(rng: Rng, kind: str) -> bytes:
    frames = [picture(rng, size=(30, 30)) for _ in range(3)]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:])


def text_bomb() -> bytes:
    """A compressed text chunk of 200 MB."""
    content = png_of_size(8, 8, b"\0" * 200)
    bomb = chunk(b"zTXt", b"comment\0\0" + zlib.compress(b"\0" * (200 << 20), 9))
    return content[:33] + bomb + content[33:]


def with_transparency(rng: Rng) -> bytes:
    image = picture(rng, "P")
    return encoded(image, "PNG", transparency=bytes(rng.randrange(256) for _ in range(256)))


def with_profile(rng: Rng) -> bytes:
    return encoded(picture(rng), rng.choice(["PNG", "JPEG"]), icc_profile=rng.randbytes(500))


def with_texts(rng: Rng) -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "x" * 1000, zip=True)
    return encoded(picture(rng), "PNG", pnginfo=info)


def sixteen(rng: Rng) -> bytes:
    values = np.random.default_rng(rng.randrange(2**32)).integers(0, 65536, (30, 40), np.uint16)
    return encoded(Image.fromarray(values), rng.choice(["PNG", "TIFF"]))


def floats(rng: Rng) -> bytes:
    return encoded(Image.fromarray(np.ones((9, 9), np.float32)), "TIFF")


TRUNCATED = ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP")
BOMB = text_bomb()
KINDS: dict[str, tuple[str, Codes, Callable[[Rng], bytes]]] = {
    **{
        f"truncated {kind}": (kind.lower(), UNREADABLE, lambda r, k=kind: cut(encoded(picture(r), k), r))
        for kind in TRUNCATED
    },
    **{
        f"flipped {kind}": (kind.lower(), None, lambda r, k=kind: flipped(encoded(picture(r), k), r))
        for kind in TRUNCATED
    },
    "empty": ("png", UNREADABLE, lambda r: b""),
    "a page": ("jpg", UNREADABLE, lambda r: b"<!DOCTYPE html><title>404</title>" + r.randbytes(50).hex().encode()),
    "vector": ("png", UNREADABLE, lambda r: b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
    "noise": ("jpg", UNREADABLE, lambda r: r.randbytes(r.randrange(1, 3000))),
    "zeros": ("png", UNREADABLE, lambda r: b"\0" * r.randrange(1, 3000)),
    "a signature and noise": ("png", UNREADABLE, lambda r: b"\x89PNG\r\n\x1a\n" + r.randbytes(200)),
    "postscript": ("tif", UNREADABLE, lambda r: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
    "CMYK": ("jpg", MUST_WORK, lambda r: encoded(picture(r, "CMYK"), "JPEG")),
    "16 bits": ("png", MUST_WORK, sixteen),
    "floats": ("tiff", FORMAT, floats),
    "grey and alpha": ("png", MUST_WORK, lambda r: encoded(picture(r, "LA"), "PNG")),
    "alpha": ("webp", MUST_WORK, lambda r: encoded(picture(r, "RGBA"), "WEBP", lossless=True)),
    "one bit": ("png", MUST_WORK, lambda r: encoded(picture(r, "1"), "PNG")),
    "palette with alpha": ("png", MUST_WORK, with_transparency),
    "animated gif": ("gif", MUST_WORK, lambda r: animated(r, "GIF")),
    "animated png": ("png", MUST_WORK, lambda r: animated(r, "PNG")),
    "animated webp": ("webp", MUST_WORK, lambda r: animated(r, "WEBP")),
    **{f"orientation {i}": ("jpg", MUST_WORK, lambda r, i=i: exif(r, i)) for i in range(1, 9)},
    "orientation 99": ("jpg", MUST_WORK, lambda r: exif(r, 99)),
    "damaged exif": ("jpg", None, lambda r: encoded(picture(r), "JPEG", exif=b"Exif\0\0" + r.randbytes(60))),
    "damaged profile": ("png", MUST_WORK, with_profile),
    "texts": ("png", MUST_WORK, with_texts),
    "one pixel": ("png", MUST_WORK, lambda r: encoded(picture(r, size=(1, 1)), "PNG")),
    "a line": ("png", TOO_LARGE, lambda r: encoded(picture(r, size=(r.randrange(20_000, 30_000), 1)), "PNG")),
    "a column": ("png", TOO_LARGE, lambda r: encoded(picture(r, size=(1, r.randrange(20_000, 30_000))), "PNG")),
    "too long a shape": ("png", TOO_LARGE, lambda r: encoded(picture(r, size=(r.randrange(900, 2000), 20)), "PNG")),
    "a bomb by its header": (
        "png",
        TOO_LARGE,
        lambda r: png_of_size(*r.choice([(60_000, 60_000), (12_000, 12_000), (65_500, 1), (2**31 - 1, 2**31 - 1)])),
    ),
    "a bomb in a text": ("png", UNREADABLE | TOO_LARGE, lambda r: BOMB),
    "no size": ("png", UNREADABLE, lambda r: png_of_size(0, r.randrange(9))),
    "fewer pixels than said": ("png", UNREADABLE, lambda r: png_of_size(40, 40, b"\0" * r.randrange(3000))),
    "wrong suffix": ("jpg", MUST_WORK, lambda r: encoded(picture(r), "PNG")),
}
"""name: suffix, codes with which it may be refused, and how it is made"""
NAMES = (
    "plain",
    "with blanks  ",
    "new\nline",
    "übung",
    "日本",
    "quote'\"",
    "-dash",
    "percent%20",
    "semi;colon",
    "x" * 200,
    "\U0001f600",
    "dots..",
    "back\\slash",
    "$(touch trace)",
    "`id`",
    "\u202etxt.gpj",
)


def write_hostile(folder: Path, n: int, seed: int = 0) -> dict[str, tuple[str, Codes]]:
    """Fill a folder with n files; returns name (as the sources spell it) -> (kind, codes of refusal)."""
    rng, expected = Rng(seed), {}
    folder.mkdir(parents=True)
    kinds = list(KINDS)
    for i in range(n - len(SPECIAL)):
        kind = kinds[i % len(kinds)]
        suffix, codes, make = KINDS[kind]
        name = f"{i:04d} {NAMES[i % len(NAMES)]}.{suffix}"
        (folder / name).write_bytes(make(rng))
        expected[name] = (kind, codes)
    for kind, (codes, put) in SPECIAL.items():
        name = f"special {kind}.png"
        put(folder, name)
        expected[os.fsencode(name).decode("utf-8", "backslashreplace")] = (kind, codes)
    return expected


def _fifo(folder: Path, name: str) -> None:
    os.mkfifo(folder / name)


def _sound(folder: Path, name: str) -> None:
    (folder / name).write_bytes(encoded(picture(Rng(1)), "PNG"))


def _no_permission(folder: Path, name: str) -> None:
    _sound(folder, name)
    (folder / name).chmod(0)


def _sparse(folder: Path, name: str) -> None:
    with open(folder / name, "wb") as file:
        file.truncate(5 << 30)


SPECIAL: dict[str, tuple[Codes, Callable[[Path, str], None]]] = {
    "pipe": ({"not_a_file"}, _fifo),
    "no permission": (None if os.geteuid() == 0 else {"forbidden"}, _no_permission),
    "vanishing": ({"vanished"}, _sound),
    "turning into a folder": ({"not_a_file"}, _sound),
    "turning into a link": ({"not_a_file"}, _sound),
    "five gigabytes": ({"too_large"}, _sparse),
    "not unicode \udcff\udcfe": (MUST_WORK, _sound),
}
"""no plain files, or no longer after the folder was listed (see ``change``)"""


def change(folder: Path) -> None:
    """Change the folder between its listing and its reading."""
    (folder / "special vanishing.png").unlink()
    (folder / "special turning into a folder.png").unlink()
    (folder / "special turning into a folder.png").mkdir()
    (folder / "special turning into a link.png").unlink()
    (folder / "special turning into a link.png").symlink_to("special turning into a link.png")
