"""The demo: the whole way from a published-format checkpoint to a segmented picture, with no network.

The model is a UPerNet with a narrow ResNet-18, trained by `tools/train_demo.py` on scenes drawn by `scenes.py`. It is not one of the
zoo's models and knows nothing of real streets.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from .. import files
from ..errors import ArgumentError
from ..factory import create_model
from ..images.save import is_own, picture_format, save_picture
from ..models.upernet import UPerNet
from ..reference import DEMO_NAME
from ..segmentation import Segmentation
from ..segmenter import Segmenter
from . import scenes

__all__ = ["FIRST_UNSEEN_SEED", "load", "run"]

FIRST_UNSEEN_SEED = 1_000_000  # training and evaluation use seeds below


def load(*, cache_dir: str | os.PathLike[str] | None = None) -> UPerNet:
    """The demo model, verified, converted in the cache and mapped from there: `create_model("demo")`."""
    return create_model(DEMO_NAME, cache_dir=cache_dir)


def run(out: Path, seed: int = 0, say: Callable[[str], None] = print, *, overwrite: bool = False) -> Segmentation:
    """Verify, convert, load, draw an unseen scene, segment it, and write it beside its overlay.

    Args:
        out: the picture to write (.png or .jpg).
        seed: which unseen scene, from 0 up.
        say: takes a line of text for each step.
        overwrite: replace a file that is there and was not written here.

    Raises:
        ExistingFileError: `out` is there, and was not written here.
        ArgumentError: a negative seed (those scenes may have been trained on), or a name that is no picture's.
        UPerNetZooError: the packaged file is damaged, or the cache or `out` cannot be written.
    """
    from PIL import Image

    from ..images.visualize import stack

    if seed < 0:
        raise ArgumentError(f"Scene {seed}: unseen scenes are numbered from 0 up.")
    picture_format(out)
    files.require_replaceable(out, is_own, overwrite)
    start = time.perf_counter()
    model = load()
    say(f"verified  {model.origin['file']} (SHA-256 {model.origin['sha256'][:16]}...)")
    say(f"loaded    UPerNet, {model.config.backbone.title}, {model.config.num_classes} classes, {time.perf_counter() - start:.2f} s")
    image, _ = scenes.draw(FIRST_UNSEEN_SEED + seed)
    start = time.perf_counter()
    segmentation = Segmenter(model)(image)
    say(f"segmented a scene of {image.shape[1]}x{image.shape[0]} pixels that it has not seen, {time.perf_counter() - start:.2f} s")
    save_picture(stack([Image.fromarray(image), segmentation.overlay(0.6)]), out, overwrite=overwrite)
    say(f"wrote     {out.resolve()}: the scene, and below it what the demo model sees\n")
    return segmentation
