"""The demo: the whole way from a published-format checkpoint to a segmented picture, with no network.

The model is a UPerNet with a narrow ResNet-18, trained by `tools/train_demo.py` on scenes drawn by `scenes.py`. It is not one of the
zoo's models and knows nothing of real streets.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from .. import index
from ..errors import ArgumentError
from ..factory import load_entry
from ..models import UPerNet
from ..segmenter import Segmentation, Segmenter, picture_format, save_picture
from . import scenes

FOLDER = Path(__file__).parent
FIRST_UNSEEN_SEED = 1_000_000  # training and evaluation use seeds below


def load(**options) -> UPerNet:
    """The demo model, verified, converted in the cache and mapped from there.

    Args:
        options: as for `factory.load_entry`, such as `cache_dir`.
    """
    entry = next(iter(index.load(FOLDER / "model_index.yml").values()))
    return load_entry(entry, checkpoint=FOLDER / entry.file_name, **options)


def run(out: Path, seed: int = 0, say: Callable[[str], None] = print) -> Segmentation:
    """Verify, convert, load, draw an unseen scene, segment it, and write it beside its overlay.

    Args:
        out: the picture to write (.png or .jpg).
        seed: which unseen scene, from 0 up.
        say: takes a line of text for each step.

    Raises:
        ArgumentError: a negative seed (those scenes may have been trained on), or a name that is no picture's.
        UPerNetZooError: the packaged file is damaged, or the cache or `out` cannot be written.
    """
    from PIL import Image

    from ..visualize import stack

    if seed < 0:
        raise ArgumentError(f"Scene {seed}: unseen scenes are numbered from 0 up.")
    picture_format(out)
    start = time.perf_counter()
    model = load()
    say(f"verified  {model.origin['file']} (SHA-256 {model.origin['sha256'][:16]}...)")
    say(f"loaded    UPerNet, ResNet-{model.config.depth}, {model.config.num_classes} classes, {time.perf_counter() - start:.2f} s")
    image, _ = scenes.draw(FIRST_UNSEEN_SEED + seed)
    start = time.perf_counter()
    segmentation = Segmenter(model)(image)
    say(f"segmented a scene of {image.shape[1]}x{image.shape[0]} pixels that it has not seen, {time.perf_counter() - start:.2f} s")
    save_picture(stack([Image.fromarray(image), segmentation.overlay(0.6)]), out)
    say(f"wrote     {out.resolve()}: the scene, and below it what the demo model sees\n")
    return segmentation
