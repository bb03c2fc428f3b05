"""A video with its labels drawn over it, and a table of what each frame shows, in constant memory."""

from __future__ import annotations

import collections
import contextlib
import csv
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from . import files, progress
from .errors import ArgumentError, ImageError
from .images import frames, visualize
from .images.save import MARK
from .segmentation import Segmentation, SegmentedFrame
from .segmenter import Segmenter

__all__ = ["VideoReport", "is_own_table", "is_own_video", "label_video"]

_TIME_BASE = Fraction(1, 90_000)  # MPEG's unit of time, seconds
_FIXED = ("frame", "seconds", "error")  # columns of the table, before those of the classes


@dataclass(frozen=True)
class VideoReport:
    """What became of a video.

    Attributes:
        video: the labeled video that was written.
        table: the areas of each frame that were written, as CSV.
        frames: how many frames were tried.
        failures: frame number -> why it could not be segmented.
        areas: the share of each class, over all frames that could, largest first.

    Examples:
        >>> from pathlib import Path
        >>> import upernet_zoo as uz
        >>> from upernet_zoo.video import label_video
        >>> report = label_video(uz.Segmenter("demo"), Path("clip.mp4"), Path("labeled.mp4"), Path("areas.csv"), every=2, show=False)
        >>> report.video.name, report.frames
        ('labeled.mp4', 4)
    """

    video: Path
    table: Path
    frames: int
    failures: dict[int, str]
    areas: dict[str, float]

    def require_whole(self) -> None:
        """Refuse to take a video for done of which frames failed.

        Raises:
            ImageError: says how many failed, and why the first one did.
        """
        if self.failures:
            number, error = next(iter(self.failures.items()))
            raise ImageError(
                f"{len(self.failures)} of {self.frames} frames could not be segmented; {self.table} has why, {self.video} goes without "
                f"them. The first is frame {number}: {error}. Get the file again, or go on with what was written."
            )


def label_video(
    segmenter: Segmenter,
    path: Path,
    out: Path,
    table: Path,
    *,
    every: int = 1,
    alpha: float = 0.5,
    overwrite: bool = False,
    show: bool = True,
) -> VideoReport:
    """Write a video with its labels drawn over it (H.264 in MP4, without sound), and the areas of each frame (CSV).

    A camera (`/dev/video0`) is recorded until Ctrl+C. A frame that cannot be decoded or segmented is a row of the table with its error, and
    the one before stays in view for its time.

    Args:
        segmenter: of the pictures.
        path: the video.
        out, table: the files to write; whole, or not at all.
        every: take every n-th frame.
        alpha: opacity of the labels, 0 to 1.
        overwrite: replace files that are there and were not written here.
        show: a progress bar.

    Raises:
        MissingFileError, ImageError, ArgumentError, MissingPackageError: as `Segmenter.video`; ImageError too where its frames change
            their size, or none can be segmented.
        ExistingFileError: a file of that name is there, and was not written here.
        WriteError: the files cannot be written.

    Examples:
        >>> from pathlib import Path
        >>> import upernet_zoo as uz
        >>> from upernet_zoo.video import label_video
        >>> report = label_video(uz.Segmenter("demo"), Path("clip.mp4"), Path("labeled.mp4"), Path("areas.csv"), show=False)
        >>> report.frames, report.failures
        (8, {})
    """
    files.require_replaceable(out, is_own_video, overwrite)
    files.require_replaceable(table, is_own_table, overwrite)
    if out.suffix.lower() != ".mp4":
        raise ArgumentError(f"{out}: a labeled video is saved as .mp4.")
    failures: dict[int, str] = {}
    areas: collections.Counter[str] = collections.Counter()
    count = 0
    # the rows wait on the disk, as a camera may run for days
    with frames.Video(path, every) as video, tempfile.SpooledTemporaryFile(1 << 20, "w+", newline="", encoding="utf-8") as rows:

        def write_video(temporary: Path) -> None:
            nonlocal count
            table_rows = csv.writer(rows)
            names = [name.strip() for name in segmenter.model.label_set.classes]
            table_rows.writerow([*_FIXED, *names])
            total = None if video.frames is None else -(-video.frames // every)
            # Ctrl+C is how a camera ends, and no end of a file
            ends = contextlib.suppress(KeyboardInterrupt) if video.is_camera else contextlib.nullcontext()
            with _Writer(temporary, video) as writer, ends:
                for frame in progress.bar(segmenter.frames(video), unit="frame", total=total, show=show):
                    count += 1
                    table_rows.writerow(_row(frame, names))
                    if frame.segmentation is None:
                        failures[frame.number] = frame.error or ""
                    else:
                        areas.update(frame.segmentation.areas())
                        writer.add(_drawn(frame.segmentation, alpha), frame.seconds)
            if len(failures) == count:
                raise ImageError(f"{path}: no frame could be segmented. {next(iter(failures.values()), 'There is none')}.")

        def write_table(temporary: Path) -> None:
            rows.seek(0)
            with temporary.open("w", newline="", encoding="utf-8") as file:
                shutil.copyfileobj(rows, file)

        files.write_together([(out, write_video), (table, write_table)])
    shares = {name: area / (count - len(failures)) for name, area in areas.most_common()}
    return VideoReport(out, table, count, failures, shares)


def is_own_video(path: Path) -> bool:
    """Whether a file is a video that was written here."""
    av = frames.pyav()
    try:
        with av.open(str(path)) as container:
            return bool(container.metadata.get("comment") == MARK)
    except Exception:  # no video, or one that is damaged
        return False


def is_own_table(path: Path) -> bool:
    """Whether a file is a table that was written here."""
    try:
        with path.open(encoding="utf-8") as file:
            return file.readline().startswith(",".join(_FIXED) + ",")
    except (OSError, UnicodeDecodeError):
        return False


def _drawn(segmentation: Segmentation, alpha: float) -> np.ndarray:
    """The labels over the picture, without the legend of an overlay, whose height changes with what is seen."""
    return np.asarray(visualize.blend(segmentation.image, segmentation.labels, segmentation.palette, alpha))


def _row(frame: SegmentedFrame, names: Sequence[str]) -> list[str]:
    seconds = "" if frame.seconds is None else f"{frame.seconds:.3f}"
    if frame.segmentation is None:
        return [str(frame.number), seconds, frame.error or "", *[""] * len(names)]
    areas = {name.strip(): area for name, area in frame.segmentation.areas().items()}
    return [str(frame.number), seconds, "", *(f"{areas.get(name, 0.0):.6f}" for name in names)]


class _Writer:
    """An MP4 file of frames of one size."""

    def __init__(self, path: Path, like: frames.Video) -> None:
        self.like = like
        self._container = frames.pyav().open(str(path), "w", format="mp4")
        self._container.metadata["comment"] = MARK
        self._stream: Any = None
        self._last = -1

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *_: object) -> None:
        if self._stream is not None:
            for packet in self._stream.encode():
                self._container.mux(packet)
        self._container.close()

    def add(self, pixels: np.ndarray, seconds: float | None) -> None:
        """Add a frame, (H, W, 3) uint8 RGB.

        Raises:
            ImageError: it has another size than those before.
        """
        av = frames.pyav()
        height, width = pixels.shape[:2]
        if self._stream is None:
            rate = (self.like.rate or Fraction(25)) / self.like.every
            self._stream = self._container.add_stream("libx264", rate=rate)
            self._stream.width, self._stream.height, self._stream.pix_fmt = width + width % 2, height + height % 2, "yuv420p"
            self._stream.codec_context.time_base = _TIME_BASE
            self._size = height, width
        if (height, width) != self._size:
            raise ImageError(f"{self.like.path}: its frames change their size, from {self._size[1]}x{self._size[0]} to {width}x{height}.")
        if height % 2 or width % 2:  # what H.264 halves
            pixels = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        step = max(round(1 / (self._stream.average_rate * _TIME_BASE)), 1)
        asked = self._last + step if seconds is None else round(seconds / _TIME_BASE)
        self._last = frame.pts = max(asked, self._last + 1)  # time goes on, whatever the file says
        frame.time_base = _TIME_BASE
        for packet in self._stream.encode(frame):
            self._container.mux(packet)
