"""What the app's page is given to show, and what it is given to keep. No Gradio here."""

from __future__ import annotations

import base64
import html
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import files
from ..errors import shown
from ..images.save import save_picture
from ..reference import DEMO_NAME

if TYPE_CHECKING:
    from PIL import Image

    from .app_models import Answer, Choice

__all__ = ["ENDINGS", "facts", "view", "write"]

_LONGEST_SIDE = 1600  # pixels of what a page shows
ENDINGS = {"labels": "_labels.png", "overlay": "_overlay.png"}  # as `upernet-zoo predict` names them


def view(answer: Answer) -> dict[str, Any]:
    """What viewer.js shows, as plain values.

    Returns:
        picture: a JPEG as a data URL, at most 1600 pixels wide and high; labels: a PNG of that size as a data URL, whose red is the train
        id's low byte and whose green the high one; classes: as `Segmentation.to_dict` has them, with their number of `pixels`; width,
        height: the picture's own; caption: a line of text.
    """
    from PIL import Image

    seg = answer.segmentation
    height, width = seg.labels.shape
    ratio = min(1.0, _LONGEST_SIDE / max(width, height))
    size = max(1, round(width * ratio)), max(1, round(height * ratio))
    ids = np.zeros((height, width, 3), np.uint8)
    ids[..., 0], ids[..., 1] = seg.labels & 255, seg.labels >> 8
    picture, labels = Image.fromarray(seg.image), Image.fromarray(ids)
    if size != (width, height):
        picture, labels = picture.resize(size, Image.Resampling.LANCZOS), labels.resize(size, Image.Resampling.NEAREST)
    values = seg.to_dict()
    for one in values["classes"]:
        one["pixels"] = round(one["area"] * seg.labels.size)
    seconds = f"{answer.seconds:.1f} s" if answer.seconds >= 1 else f"{1000 * answer.seconds:.0f} ms"
    return {
        "picture": _data_url(picture, "JPEG", quality=92, subsampling=0),
        "labels": _data_url(labels, "PNG", compress_level=3),
        "classes": values["classes"],
        "width": width,
        "height": height,
        "caption": f"{answer.stem} · {width}x{height} pixels · {answer.model} · {seconds} on {answer.device}",
    }


def _data_url(picture: Image.Image, format: str, **options: Any) -> str:
    content = BytesIO()
    picture.save(content, format=format, **options)
    return f"data:image/{format.lower()};base64,{base64.b64encode(content.getbuffer()).decode()}"


def facts(choice: Choice) -> str:
    """What a visitor should know of a model before they use it, as HTML."""
    entry = choice.entry
    if choice.name == DEMO_NAME:
        lines = ["Small, in the package, and has learned on <b>drawn</b> street scenes alone. For photographs choose another model."]
    elif entry is None:
        lines = ["A model of this machine."]
    else:
        mode = "" if entry.recipe.crop is None else f", in windows of {entry.recipe.crop[0]}x{entry.recipe.crop[1]}"
        lines = [f"{_text(entry.backbone)} · {_text(entry.dataset)}, {len(entry.label_set)} classes{mode}"]
        if "mIoU" in entry.metrics:
            lines.append(f"published mIoU {entry.metrics['mIoU']:.2f} %")
        lines.append(f"license of the weights: {_text(str(entry.licenses.weights))}")
    if not choice.here:
        size = None if entry is None else entry.size
        lines.append(f"its weights are downloaded first{f', {files.size_text(size)}' if size else ''}")
    elif choice.name != DEMO_NAME:
        lines.append("its weights are here")
    return " · ".join(lines)


def _text(value: str) -> str:
    return html.escape(shown(value, "text"))


def write(answer: Answer, what: str, folder: Path, alpha: float = 0.5) -> Path:
    """Write what a visitor keeps, named after the picture as `upernet-zoo predict` names it.

    Args:
        what: "labels", as `Segmentation.save` writes them, or "overlay", with opacity `alpha` and a legend.

    Raises:
        ArgumentError: alpha outside 0..1.
        WriteError: it cannot be written.
    """
    path = folder / (answer.stem + ENDINGS[what])
    writers: dict[str, Callable[[], object]] = {
        "labels": lambda: answer.segmentation.save(path),
        "overlay": lambda: save_picture(answer.segmentation.overlay(alpha), path),
    }
    writers[what]()
    return path
