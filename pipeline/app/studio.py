"""What the page and its API do with a generator: drawing, painting over, completing, and the likelihood of codes."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from foundation.codes.spec import CodeSpec
from foundation.config import require
from foundation.errors import ConfigError, DataError
from foundation.images.preprocess import decode_image, to_unit_range
from pipeline.app.limits import Limits
from pipeline.generation.generator import ImageGenerator
from pipeline.generation.inputs import grid_of
from pipeline.generation.requests import seeds_of
from pipeline.generation.streaming import PartialImages

NO_CLASS = "(no class)"
_LARGEST_SEED = 2**63 - 1


@dataclass(frozen=True)
class Wish:
    """Settings of a request, as the page's fields give them.

    Attributes:
        class_name: a class, or ``NO_CLASS``.
        seed: a whole number from 0; None takes a random one.
        images: how many.
        guidance_scale, temperature: None takes the generator's default.
    """

    class_name: str = NO_CLASS
    seed: int | None = None
    images: int = 4
    guidance_scale: float | None = None
    temperature: float | None = None


@dataclass(frozen=True)
class Drawn:
    """Pictures of a request, finished or not.

    Attributes:
        pictures: as they are so far.
        seeds: of each picture alone: with it and the same settings it is drawn again.
        class_name: of all of them.
        settings: sampling settings that differ from the generator's default.
        share: of the codes that are drawn, 0 to 1.
        edit: words of the command that changes a picture, such as ``inpaint PICTURE --mask MASK``; empty for new ones.
    """

    pictures: Sequence[Image.Image]
    seeds: Sequence[int]
    class_name: str
    settings: dict[str, float]
    share: float = 1.0
    edit: tuple[str, ...] = ()


@dataclass(frozen=True)
class CodeMap:
    """Codes of a picture, and how surprising each is.

    Attributes:
        codes_HW: of the finest grid, of its first depth.
        bits_HW: -log2 p of all codes at each place of that grid.
        bits: of the whole picture.
    """

    codes_HW: np.ndarray
    bits_HW: np.ndarray
    bits: float


class Studio:
    """A generator behind checks.

    Args:
        generator: draws.
        name: of the run, as commands give it.
        limits: of a request.
    """

    def __init__(self, generator: ImageGenerator, name: str, limits: Limits = Limits()) -> None:
        self.generator, self.name, self.limits = generator, name, limits

    @property
    def classes(self) -> list[str]:
        """Names to choose from, the default first; without classes, ``NO_CLASS`` alone."""
        names = list(self.generator.labels)
        return [*names, NO_CLASS] if not names or self.generator.label_dropout != 0 else names

    @property
    def knows_what_follows(self) -> bool:
        """Whether codes after a hole have a part in what is drawn in it."""
        return self.generator.prior.config.order in ("any", "masked")

    def draw(self, wish: Wish) -> Iterator[Drawn]:
        """New pictures, after each row of codes.

        Raises:
            ConfigError, DataError: a wish beyond the limits, or one that the generator refuses.
        """
        options = self._options(wish)
        seeds = seeds_of(wish.seed, wish.images)
        parts = self.generator.stream(self._label(wish), wish.images, seed=seeds, batch_size=wish.images, **options)
        return (self._drawn(part, seeds, wish, options) for part in parts)

    def inpaint(self, picture: Image.Image, mask: Image.Image, wish: Wish, *, keep: bool = True) -> Drawn:
        """What a mask marks, drawn again.

        Args:
            picture: any size; it is cropped and resized as in training.
            mask: white where something new belongs, of the picture's size.
            wish: how many, and how.
            keep: put the picture's own pixels back where nothing is painted.

        Raises:
            ConfigError, DataError: as ``draw``; a mask of another size, or one that marks nothing.
        """
        same, expected = picture.size == mask.size, picture.size
        DataError.unless(same, "has another size than the picture", field="mask", found=mask.size, expected=expected)
        options = self._options(wish)
        marked = mask.convert("L").point(lambda value: 255 if value else 0)
        fix = "paint over what should change"
        DataError.unless(marked.getbbox() is not None, "marks nothing", field="mask", fix=fix)
        blend = self.generator.spec.stride // 2 if keep else None
        how: Any = {"seed": wish.seed, "blend": blend, **options}
        output = self.generator.inpaint(picture, marked, self._label(wish), wish.images, **how)
        words = ("inpaint", "PICTURE", "--mask", "MASK", *(() if blend is None else ("--blend", str(blend))))
        return Drawn(output.images, output.seeds, wish.class_name, options, edit=words)

    def complete(self, picture: Image.Image, share: float, wish: Wish) -> Drawn:
        """The upper part of a picture, and new ones below it.

        Args:
            picture: any size.
            share: of the rows that are kept, between 0 and 1.
            wish: how many, and how.

        Raises:
            ConfigError, DataError: as ``draw``; a share that leaves nothing to keep or to draw.
        """
        options = self._options(wish)
        require(0 < share < 1, "share", share, "between 0 and 1")
        how: Any = {"rows": float(share), "seed": wish.seed, **options}
        output = self.generator.complete(picture, self._label(wish), wish.images, **how)
        words = ("complete", "PICTURE", "--rows", f"{share:g}")
        return Drawn(output.images, output.seeds, wish.class_name, options, edit=words)

    @torch.no_grad()
    def look(self, picture: Image.Image, class_name: str = NO_CLASS) -> CodeMap:
        """The codes of a picture and the bits that each takes.

        Raises:
            ConfigError, DataError: a class that does not exist, or a continuous tokenizer.
        """
        generator, spec = self.generator, self._spec(picture)
        ConfigError.unless(not spec.latents, "has no codes", field="run", found="a continuous tokenizer")
        pixels_YXC = spec.preprocess(picture)
        codes = generator.tokenizer.encode(to_unit_range(pixels_YXC[None]).to(generator.device))
        labels_B = torch.tensor(generator.label_ids(self._label(Wish(class_name))), device=generator.device)
        nats_BT = generator.prior.nll(codes, labels_B, grid_of(picture, generator.spec)).cpu()
        finest, level = spec.split(nats_BT)[-1][0], spec.split(codes.flatten(1).cpu())[-1][0]
        depth = finest.ndim > 2
        bits_HW = (finest.sum(2) if depth else finest).double().numpy() / math.log(2)
        codes_HW = (level[..., 0] if depth else level).numpy()
        return CodeMap(codes_HW, bits_HW, float(nats_BT.double().sum()) / math.log(2))

    def command(self, drawn: Drawn, seed: int) -> str:
        """The command that draws one of the pictures again."""
        words, field = ["tessera", "sample", shlex.quote(self.name)], "--class-labels"
        if drawn.edit:
            verb, *rest = drawn.edit
            words, field = (
                ["tessera", "edit", verb, shlex.quote(self.name), *rest, "--num-images", "1"],
                "--class-label",
            )
        words += ["--seed", str(seed)]
        if drawn.class_name != NO_CLASS:
            words += [field, shlex.quote(drawn.class_name)]
        for name, value in drawn.settings.items():
            words += [f"--{name.replace('_', '-')}", f"{value:g}"]
        return " ".join(words)

    def open_upload(self, path: str | Path) -> Image.Image:
        """An uploaded picture.

        Raises:
            DataError: no picture, or more pixels than the limit.
        """
        path = Path(path)
        size, most = path.stat().st_size, self.limits.upload_mb << 20
        DataError.unless(size <= most, "is too large", field="picture", found=size, expected=f"up to {most:,} bytes")
        return decode_image(path.read_bytes(), self.limits.upload_pixels)

    def _options(self, wish: Wish) -> dict[str, Any]:
        most = self.limits.images
        require(1 <= wish.images <= most, "images", wish.images, f"from 1 to {most}")
        if wish.seed is not None:
            require(0 <= wish.seed <= _LARGEST_SEED, "seed", wish.seed, "a whole number from 0")
        given = {"guidance_scale": wish.guidance_scale, "temperature": wish.temperature}
        return {
            name: value
            for name, value in given.items()
            if value is not None and value != getattr(self.generator.defaults, name)
        }

    def _label(self, wish: Wish) -> str | None:
        return None if wish.class_name == NO_CLASS else wish.class_name

    def _drawn(self, part: PartialImages, seeds: Sequence[int], wish: Wish, options: dict[str, Any]) -> Drawn:
        return Drawn(part.to_pil(), seeds, wish.class_name, options, part.n_done / part.n_rows)

    def _spec(self, picture: Image.Image) -> CodeSpec:
        """What the codes of a picture of its shape are."""
        spec = self.generator.spec
        return spec.of_grid(grid_of(picture, spec))
