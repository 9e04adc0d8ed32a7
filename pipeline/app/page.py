"""The page of a generator, in Gradio: draw, paint over, look at the codes; and the same as an API."""

from __future__ import annotations

import contextlib
import functools
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import gradio as gr
import numpy as np
from PIL import Image

from foundation.errors import TesseraError
from pipeline.app.components import editor, unchecked, upload
from pipeline.app.memory import MOST, Kept, write_archive
from pipeline.app.studio import NO_CLASS, Drawn, Studio, Wish

_SMALL, _SHOWN, _SHARP = 96, 256, 16
"""pixels; pictures up to the first are enlarged to about the second, up to the third without smoothing"""
_QUEUE = "generator"
_LINK = ("class", "seed", "images", "guidance", "temperature")


class GeneratorPage:
    """Builds and serves the page.

    Args:
        studio: what it does.
        about: a sentence below the title.
    """

    def __init__(self, studio: Studio, about: str) -> None:
        self.studio, self._about = studio, about
        self._folder = tempfile.TemporaryDirectory(prefix="tessera-pictures-")
        side = max(studio.generator.shapes[0])
        self._scale, self._sharp = (max(1, _SHOWN // side), side <= _SHARP) if side <= _SMALL else (1, False)

    def build(self) -> gr.Blocks:
        """The page, not yet served."""
        title = f"{Path(self.studio.name).name} - Tessera"
        with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(600, 3600)) as page:
            gr.Markdown(f"# {Path(self.studio.name).name}\n{self._about}")
            remembered = gr.State([])
            fields = self._settings()
            with gr.Tab("Draw"):
                drawn = self._draw_tab(fields, remembered)
            with gr.Tab("Change a picture"):
                self._change_tab(fields, remembered, drawn)
            with gr.Tab("Look at the codes"):
                self._codes_tab(fields)
            with gr.Tab("Remembered") as tab:
                self._memory_tab(tab, remembered)
            page.load(self._from_link, None, fields, api_visibility="private")
        return page

    @contextlib.contextmanager
    def running(self, **where: Any) -> Iterator[str]:
        """Serve in the background; gives the address.

        Args:
            where: ``server_name``, ``server_port`` and ``inbrowser`` of Gradio; by default this machine alone.
        """
        limits = self.studio.limits
        Image.MAX_IMAGE_PIXELS = limits.upload_pixels // 2  # Pillow refuses twice as many
        page = self.build().queue(max_size=limits.queue, default_concurrency_limit=1)
        theme = gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
        _, address, _ = page.launch(
            prevent_thread_lock=True,
            share=False,
            quiet=True,
            ssr_mode=False,
            max_file_size=limits.upload_mb << 20,
            footer_links=["api"],
            theme=theme,
            enable_monitoring=False,
            **where,
        )
        try:
            yield address
        finally:
            page.close()

    def serve(self, *, host: str, port: int | None, open_browser: bool) -> None:
        """Serve until a signal comes."""
        with self.running(server_name=host, server_port=port, inbrowser=open_browser) as address:
            print(f"serving {self.studio.name} at {address}; stop with Ctrl-C", flush=True)
            threading.Event().wait()

    def _settings(self) -> list[gr.components.Component]:
        """Fields that every way of drawing reads: class, seed, images, guidance, temperature."""
        studio, defaults = self.studio, self.studio.generator.defaults
        classes, guided = studio.classes, bool(studio.generator.labels) and studio.generator.label_dropout != 0
        with gr.Row():
            label = unchecked(gr.Dropdown(classes, value=classes[0], label="Class", visible=len(classes) > 1))
            seed = gr.Textbox(label="Seed", placeholder="random", max_lines=1)
            images = unchecked(
                gr.Slider(1, studio.limits.images, value=min(4, studio.limits.images), step=1, label="Pictures")
            )
            scale = unchecked(
                gr.Slider(1, 8, value=defaults.guidance_scale, step=0.1, label="Guidance", visible=guided)
            )
            temperature = unchecked(gr.Slider(0.1, 2, value=defaults.temperature, step=0.05, label="Temperature"))
        return [label, seed, images, scale, temperature]

    def _draw_tab(self, fields: list[Any], remembered: gr.State) -> gr.State:
        last = gr.State(None)
        button = gr.Button("Draw", variant="primary")
        gallery = self._gallery("New pictures")
        about = gr.Markdown("Choose a picture for its seed and command.")
        link = gr.Textbox(label="Link with these settings", interactive=False, buttons=["copy"])
        event = button.click(
            self._draw, [*fields, remembered], [gallery, last, remembered], api_name="draw", **_one_at_a_time()
        )
        event.then(self._link, fields, link, api_visibility="private")
        gallery.select(self._chosen, last, about, api_visibility="private")
        return last

    def _change_tab(self, fields: list[Any], remembered: gr.State, drawn: gr.State) -> None:
        after = (
            "The parts that are not painted are kept, before and after it."
            if self.studio.knows_what_follows
            else "This prior draws row by row: codes after the painted part have no influence on it."
        )
        gr.Markdown(f"Load a picture, paint over what should change, and draw that part again. {after}")
        painted = editor("Picture")
        with gr.Row():
            take = gr.Button("Take the first drawn picture")
            paint = gr.Button("Draw the painted part", variant="primary")
            keep = gr.Checkbox(True, label="Keep the other pixels exactly")
            rows = unchecked(gr.Slider(0.1, 0.9, value=0.5, step=0.1, label="Upper part to keep"))
            complete = gr.Button("Draw the rest below it")
        gallery, last = self._gallery("Results"), gr.State(None)
        about = gr.Markdown("")
        out = [gallery, last, remembered]
        take.click(self._first, drawn, painted, api_visibility="private")
        paint.click(
            self._inpaint, [painted, keep, *fields, remembered], out, api_visibility="private", **_one_at_a_time()
        )
        complete.click(
            self._complete_edited,
            [painted, rows, *fields, remembered],
            out,
            api_visibility="private",
            **_one_at_a_time(),
        )
        gallery.select(self._chosen, last, about, api_visibility="private")
        self._file_api(fields)

    def _file_api(self, fields: list[Any]) -> None:
        """The same for programs, which give files."""
        with gr.Group(visible=False):
            picture, mask, share = gr.File(), gr.File(), gr.Number()
            gallery, button = gr.Gallery(format="png"), gr.Button()
        button.click(self._inpaint_files, [picture, mask, *fields], gallery, api_name="inpaint", **_one_at_a_time())
        button.click(self._complete_file, [picture, share, *fields], gallery, api_name="complete", **_one_at_a_time())

    def _codes_tab(self, fields: list[Any]) -> None:
        gr.Markdown("The grid of codes over a picture; brighter places take more bits: they surprise the prior.")
        with gr.Row():
            given = upload("Picture")
            shown = gr.Image(type="pil", format="png", label="Bits of each code", interactive=False)
        table = gr.Dataframe(label="Codes", interactive=False, wrap=True)
        words = gr.Markdown("")
        button = gr.Button("Look", variant="primary")
        button.click(self._look, [given, fields[0]], [shown, table, words], api_name="look", **_one_at_a_time())

    def _memory_tab(self, tab: gr.Tab, remembered: gr.State) -> None:
        gallery = self._gallery(f"The last {MOST} pictures of this visit")
        download = gr.DownloadButton("Download all", variant="primary", interactive=False)
        about = gr.Markdown("")
        tab.select(self._recall, remembered, [gallery, download], api_visibility="private")
        gallery.select(self._recalled, remembered, about, api_visibility="private")

    def _gallery(self, label: str) -> gr.Gallery:
        return gr.Gallery(
            label=label, columns=4, format="png", object_fit="contain", interactive=False, buttons=["fullscreen"]
        )

    def _draw(self, *given: Any) -> Iterator[tuple[Any, Any, Any]]:
        *fields, remembered = given
        for drawn in _polite(lambda: self.studio.draw(_wish(*fields))):
            done = drawn.share >= 1
            kept = self._remember(remembered, drawn) if done else gr.skip()
            yield self._enlarged(drawn), drawn if done else gr.skip(), kept

    def _inpaint(self, edited: Any, keep: bool, *given: Any) -> tuple[Any, Any, Any]:
        *fields, remembered = given
        picture, mask = self._painted(edited)
        drawn = _answer(lambda: self.studio.inpaint(picture, mask, _wish(*fields), keep=keep))
        return self._enlarged(drawn), drawn, self._remember(remembered, drawn)

    def _complete_edited(self, edited: Any, share: float, *given: Any) -> tuple[Any, Any, Any]:
        *fields, remembered = given
        picture, _ = self._painted(edited)
        drawn = _answer(lambda: self.studio.complete(picture, _number("share", share, float), _wish(*fields)))
        return self._enlarged(drawn), drawn, self._remember(remembered, drawn)

    def _painted(self, edited: Any) -> tuple[Image.Image, Image.Image]:
        """The picture of the editor, and what is painted on it; of an enlarged picture its own pixels."""
        if not isinstance(edited, dict) or edited.get("background") is None:
            raise gr.Error("picture: is missing; load or paste one", print_exception=False)
        picture = edited["background"].convert("RGB")
        layers = [layer.getchannel("A") for layer in edited.get("layers") or [] if layer is not None]
        mask = layers[0] if layers else Image.new("L", picture.size)
        height, width = self.studio.generator.shapes[0]
        if picture.size == mask.size == (self._scale * width, self._scale * height):
            return picture.reduce(self._scale), mask.reduce(self._scale)
        return picture, mask

    def _inpaint_files(self, picture: Any, mask: Any, *fields: Any) -> list[Image.Image]:
        def answer() -> Drawn:
            opened, marked = (
                self.studio.open_upload(_path(each, name)) for each, name in ((picture, "picture"), (mask, "mask"))
            )
            return self.studio.inpaint(opened, marked, _wish(*fields))

        return list(_answer(answer).pictures)

    def _complete_file(self, picture: Any, share: float, *fields: Any) -> list[Image.Image]:
        drawn = _answer(
            lambda: self.studio.complete(
                self.studio.open_upload(_path(picture, "picture")), _number("share", share, float), _wish(*fields)
            )
        )
        return list(drawn.pictures)

    def _look(self, path: str | None, class_name: str) -> tuple[Image.Image, list[list[int]], str]:
        def answer() -> tuple[Image.Image, list[list[int]], str]:
            picture = self.studio.open_upload(_path(path, "picture"))
            found = self.studio.look(picture, class_name)
            shown = heat_over(picture, found.bits_HW, _SHOWN * 2)
            mean, most = found.bits / found.bits_HW.size, found.bits_HW.max()
            words = f"{found.bits:,.1f} bits, {mean:.2f} a place; the brightest takes {most:.2f}"
            return shown, found.codes_HW.tolist(), words

        return _answer(answer)

    def _enlarged(self, drawn: Drawn) -> list[Image.Image]:
        if self._scale == 1:
            return list(drawn.pictures)
        how = Image.Resampling.NEAREST if self._sharp else Image.Resampling.BICUBIC
        return [each.resize((self._scale * each.width, self._scale * each.height), how) for each in drawn.pictures]

    def _remember(self, remembered: list[Kept], drawn: Drawn) -> list[Kept]:
        pictures = zip(self._enlarged(drawn), drawn.seeds, strict=True)
        about = [(each, f"{drawn.class_name}-seed{seed}", self._about_picture(drawn, seed)) for each, seed in pictures]
        return [*remembered, *(Kept(*each) for each in about)][-MOST:]

    def _about_picture(self, drawn: Drawn, seed: int) -> str:
        settings = ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in drawn.settings.items())
        said = "; ".join(each for each in (drawn.class_name, f"seed {seed}", settings) if each and each != NO_CLASS)
        return f"{said}\n\n```\n{self.studio.command(drawn, seed)}\n```"

    def _chosen(self, drawn: Drawn | None, event: gr.SelectData) -> str:
        return "" if drawn is None else self._about_picture(drawn, drawn.seeds[event.index])

    def _recalled(self, remembered: list[Kept], event: gr.SelectData) -> str:
        return remembered[event.index].about if event.index < len(remembered) else ""

    def _first(self, drawn: Drawn | None) -> Any:
        if drawn is None:
            raise gr.Error("draw a picture first", print_exception=False)
        first = drawn.pictures[0].convert("RGB")
        return first.resize((self._scale * first.width, self._scale * first.height), Image.Resampling.NEAREST)

    def _recall(self, remembered: list[Kept], request: gr.Request) -> tuple[Any, Any]:
        """Pictures of the visit, and the button with their archive."""
        if not remembered:
            return [], gr.DownloadButton(value=None, interactive=False)
        archive = write_archive(remembered, Path(self._folder.name), str(request.session_hash))
        return [each.picture for each in remembered], gr.DownloadButton(value=str(archive), interactive=True)

    def _link(self, label: str, seed: str, images: float, scale: float, temperature: float, request: gr.Request) -> str:
        values = dict(zip(_LINK, (label, seed, int(images), scale, temperature), strict=True))
        address = "" if request.request is None else str(request.request.base_url)
        return f"{address.rstrip('/')}/?{urlencode(values)}"

    def _from_link(self, request: gr.Request) -> list[Any]:
        """Values of the fields from the address; what makes no sense leaves a field as it is."""
        asked, values = dict(request.query_params), []
        for name in _LINK:
            text = asked.get(name, "")
            if name == "class":
                values.append(text if text in self.studio.classes else gr.skip())
                continue
            if name == "seed":
                values.append(text if text.isdecimal() else gr.skip())
                continue
            try:
                values.append(float(text) if name in ("guidance", "temperature") else int(text))
            except ValueError:
                values.append(gr.skip())
        return values


def heat_over(picture: Image.Image, bits_HW: np.ndarray, side: int) -> Image.Image:
    """A picture in grey under its bits: dark purple for few, yellow for many, with the border of each code."""
    from matplotlib import colormaps

    height, width = bits_HW.shape
    cell = max(4, side // max(height, width))
    spread = float(np.ptp(bits_HW)) or 1.0
    colours = colormaps["inferno"]((bits_HW - bits_HW.min()) / spread)[..., :3]
    heat = (255 * colours.repeat(cell, 0).repeat(cell, 1)).astype(np.uint8)
    under = np.asarray(picture.convert("L").resize((width * cell, height * cell)), np.float32)[..., None]
    mixed = (0.65 * heat + 0.35 * under).astype(np.uint8)
    mixed[::cell], mixed[:, ::cell] = 32, 32
    return Image.fromarray(mixed)


def _wish(label: Any, seed: Any, images: Any, scale: Any, temperature: Any) -> Wish:
    """Fields of the page as a wish; a field of another type is named."""
    chosen = None if seed in (None, "") else _number("seed", seed, int)
    given = (_number("guidance", scale, float), _number("temperature", temperature, float))
    return Wish(str(label), chosen, _number("images", images, int), *given)


def _number(name: str, value: Any, kind: type) -> Any:
    """A field of the page as a number, or an error that the page shows."""
    try:
        return kind(value)
    except (TypeError, ValueError, OverflowError):
        raise gr.Error(f"{name}: is no number; found: {str(value)[:80]}", print_exception=False) from None


def _path(value: Any, name: str) -> str:
    if not value:
        raise gr.Error(f"{name}: is missing; give a picture", print_exception=False)
    return str(value)


def _answer(ask: Callable[[], Any]) -> Any:
    """The result, or an error that the page shows."""
    try:
        return ask()
    except TesseraError as error:
        raise gr.Error(str(error), print_exception=False) from error


def _polite(ask: Callable[[], Iterator[Any]]) -> Iterator[Any]:
    """The results one by one, or an error that the page shows."""
    try:
        yield from ask()
    except TesseraError as error:
        raise gr.Error(str(error), print_exception=False) from error


@functools.cache
def _one_at_a_time() -> dict[str, Any]:
    return {"concurrency_limit": 1, "concurrency_id": _QUEUE}
