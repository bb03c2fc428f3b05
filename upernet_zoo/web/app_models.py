"""The models of the app: which there are, the few that are loaded, and pictures segmented one at a time. No Gradio here."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import files, index, memory
from ..errors import ArgumentError, ImageError, MissingFileError, UPerNetZooError
from ..images import reading
from ..reference import DEMO_NAME, Kind, Reference, demo_entry
from ..weights import cache

if TYPE_CHECKING:
    from ..index import ModelEntry
    from ..models import UPerNet
    from ..models.fused.model import FusedUPerNet
    from ..segmentation import Segmentation

__all__ = ["MOST_BYTES", "MOST_PIXELS", "Answer", "Choice", "Studio"]

MOST_BYTES = 50_000_000  # of a picture file
MOST_PIXELS = 25_000_000  # of a picture; its overlay as PNG takes seconds to write
_LOADED = 2  # models that are kept in memory


@dataclass(frozen=True)
class Choice:
    """A model that visitors can choose.

    Attributes:
        name: what they choose.
        entry: of the index, and of the demo; None of a model of one's own.
        here: whether its weights are on this machine.
    """

    name: str
    entry: ModelEntry | None
    here: bool

    @property
    def label(self) -> str:
        """The name, marked."""
        return f"{'●' if self.here else '○'} {self.name}"


@dataclass(frozen=True)
class Answer:
    """A picture that was segmented.

    Attributes:
        segmentation: of the picture.
        stem: of the picture's file name.
        model: that segmented it.
        device: where it ran, such as "cpu".
        seconds: that the computing took, without loading.
    """

    segmentation: Segmentation
    stem: str
    model: str
    device: str
    seconds: float


class Studio:
    """Segments visitors' pictures: one at a time, with the models of the index, the demo, and one of the host's own.

    Args:
        model: that is chosen at first; any reference.
        loading: keywords of `Segmenter` for it: checkpoint, sha256, mirrors, cache_dir, local_files_only, device, dtype. All but the first
            two go with the models of the index too.

    Raises:
        UPerNetZooError: as `Reference.parse` and `Reference.require_options`.
    """

    def __init__(self, model: str = DEMO_NAME, **loading: Any) -> None:
        self.reference = Reference.parse(model)
        self.reference.require_options(
            checkpoint=loading.get("checkpoint"), sha256=loading.get("sha256"), mirrors=loading.get("mirrors", ())
        )
        self.first, self._loading = model, loading
        self._models: OrderedDict[str, UPerNet | FusedUPerNet] = OrderedDict()
        self._one_at_a_time = threading.Lock()

    def choices(self) -> list[Choice]:
        """Each model that may be chosen: the demo and the host's own, then those whose weights are here, then the others."""
        cache_dir = self._loading.get("cache_dir")
        files_here = {path.name for path in self._cached(cache_dir)}
        rest = []
        for entry in index.default().values():
            here = entry.file_name in files_here or any(name.startswith(f"{entry.name}-") for name in files_here)
            rest.append(Choice(entry.name, entry, here or (entry.name == self.first and self._loading.get("checkpoint") is not None)))
        first = [Choice(DEMO_NAME, demo_entry(), True)]
        if self.reference.kind not in (Kind.NAME, Kind.DEMO):
            first.insert(0, Choice(self.first, None, self.reference.kind is not Kind.HUB))
        return first + sorted(rest, key=lambda choice: not choice.here)

    def warm_up(self) -> None:
        """Load the first model, if its weights are here. What goes wrong is told to the visitor who asks for it."""
        if any(choice.here for choice in self.choices() if choice.name == self.first):
            with self._one_at_a_time, contextlib.suppress(UPerNetZooError):
                self._loaded(self.first)

    @staticmethod
    def _cached(cache_dir: str | os.PathLike[str] | None) -> list[Path]:
        """Files on this machine that may be weights of the index: those of the cache, and of torch's hub folder."""
        found = [one.path for one in cache.held(cache_dir) if one.kind is cache.Kind.CHECKPOINT or one.kind.made_here]
        hub = cache.torch_hub_folder()
        return found + ([path for path in hub.iterdir() if path.is_file()] if hub.is_dir() else [])

    def segment(
        self,
        picture: str | os.PathLike[str],
        model: str,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        *,
        name: str | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> Answer:
        """Segment a picture file, after those that came before it.

        Args:
            picture: its path, which no message shows.
            model: one of `choices`.
            scales, flip: as for `Segmenter`.
            name: of the picture, for messages; by default that of the file.
            say: takes a line of text for what takes long.

        Raises:
            ArgumentError: no such choice.
            ImageError: more than `MOST_BYTES` or `MOST_PIXELS`, or no picture.
            UPerNetZooError: what `Segmenter` raises: weights that cannot be had, no memory.
        """
        from ..images import preprocess
        from ..segmenter import Segmenter

        path = Path(picture)
        name = name or path.name
        if model not in {choice.name for choice in self.choices()}:
            raise ArgumentError(f"{model!r} is none of the models that this app offers. Choose one from the list.")
        _require_size(path, name)
        with self._one_at_a_time, memory.refused(name):
            try:
                pixels = preprocess.load_image(path)
            except ImageError as error:  # whose message has the path
                raise ImageError(str(error).replace(str(path), name)) from None
            say(f"Loading {model}")
            segmenter = Segmenter(self._loaded(model), scales=scales, flip=flip)
            say(f"Segmenting {name}")
            start = time.perf_counter()
            segmentation = segmenter(pixels)
            return Answer(segmentation, Path(name).stem, model, str(segmenter.device), time.perf_counter() - start)

    def _loaded(self, name: str) -> UPerNet | FusedUPerNet:
        """A model, from those in memory where it is among them; the one that was not used for longest makes room."""
        from ..segmenter import Segmenter

        if name not in self._models:
            while len(self._models) >= _LOADED:
                self._models.popitem(last=False)
            loading = dict(self._loading)
            if name != self.first:
                loading |= {"checkpoint": None, "sha256": None}
                if name == DEMO_NAME:
                    loading["mirrors"] = ()
            self._models[name] = Segmenter(name, **loading).model
        self._models.move_to_end(name)
        return self._models[name]


def _require_size(path: Path, name: str) -> None:
    """Refuse a picture that is too large, before it is decoded. What is no picture is told later.

    Raises:
        ImageError: of more bytes or pixels than this app takes.
        MissingFileError: it was removed.
    """
    from PIL import Image

    way_out = "Make it smaller, or use `upernet-zoo predict`, which has no such limit."
    if not path.is_file():
        raise MissingFileError(f"{name} is no longer here: pictures are removed after an hour. Give it again.")
    if (size := path.stat().st_size) > MOST_BYTES:
        raise ImageError(f"{name} has {files.size_text(size)}, and this app takes up to {files.size_text(MOST_BYTES)}. {way_out}")
    try:
        with Image.open(path, formats=reading.FORMATS) as image:
            width, height = image.size
    except Exception:  # whatever Pillow raises on what is no picture
        return
    if width * height > MOST_PIXELS:
        raise ImageError(
            f"{name} is {width}x{height} pixels, {width * height / 1e6:.0f} million, and this app takes up to "
            f"{MOST_PIXELS // 1_000_000} million. {way_out}"
        )
