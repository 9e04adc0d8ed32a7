"""What the page and programs send to Gradio's components reaches our checks, which refuse it with words.

Gradio's own checks name no field, and a file that is no picture ends in a server error.
"""

from __future__ import annotations

from typing import Any, TypeVar

import gradio as gr

AnyComponent = TypeVar("AnyComponent", bound=gr.components.Component)


def unchecked(component: AnyComponent) -> AnyComponent:
    """A component that gives values as they were sent."""
    component.preprocess = lambda payload: payload  # type: ignore[method-assign]
    return component


def upload(label: str) -> gr.Image:
    """A picture, given as the path of its file, unopened; None without one."""
    component = gr.Image(type="filepath", label=label, sources=["upload", "clipboard"], elem_id="upload")
    component.preprocess = lambda payload: None if payload is None else payload.path  # type: ignore[method-assign]
    return component


def editor(label: str) -> gr.ImageEditor:
    """A picture to paint on in white; a file that is no picture is refused."""
    brush = gr.Brush(colors=["#ffffff"], color_mode="fixed")
    component = gr.ImageEditor(type="pil", image_mode="RGBA", brush=brush, label=label, layers=False, transforms=())
    opened = component.preprocess

    def preprocess(payload: Any) -> Any:
        try:
            return opened(payload)
        except Exception as error:  # on hostile bytes a decoder raises any class
            said = f"picture: is no picture, or too large; found: {type(error).__name__}; give a PNG or JPEG file"
            raise gr.Error(said, print_exception=False) from error

    component.preprocess = preprocess  # type: ignore[method-assign]
    return component
