"""Frames of videos and cameras, one after another, by FFmpeg (PyAV). No torch here."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ..errors import ArgumentError, ImageError, MissingFileError, MissingPackageError
from ..files import expanded
from ..version import install_line

if TYPE_CHECKING:
    import numpy as np

__all__ = ["SUFFIXES", "Frame", "Video", "pyav"]

SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")


def pyav() -> ModuleType:
    """The package av.

    Raises:
        MissingPackageError: it is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise MissingPackageError(f"Videos need the package {error.name}: {install_line('video')}.") from None
    return av


@dataclass(frozen=True, eq=False)
class Frame:
    """A frame, or why there is none.

    Attributes:
        number: counted from 0, those that are left out and those that cannot be decoded too.
        seconds: when it is shown, from the beginning of the video; None where the file does not say.
        pixels: (H, W, 3) uint8 RGB, upright; None where it cannot be decoded.
        error: why it cannot be decoded; None where it can.
    """

    number: int
    seconds: float | None
    pixels: np.ndarray | None
    error: str | None


class Video:
    """A video that is read frame by frame, in constant memory: `for frame in video`. Close it, or use it as a context manager.

    Args:
        path: of a file that FFmpeg reads, or a camera of Linux (`/dev/video0`).
        every: give every n-th frame, from the first.

    Attributes:
        path: as given.
        frames: how many the file says that it has, of which every n-th is given; None where it does not say.
        rate: frames in a second, before any is left out; None where the file does not say.
        time_base: seconds of the unit in which the file counts time.
        is_camera: whether it is one, which goes on until somebody ends it.

    Raises:
        MissingFileError: no such file.
        ImageError: no video.
        ArgumentError: `every` is no whole number from 1.
        MissingPackageError: the package av is not installed.
    """

    def __init__(self, path: str | os.PathLike[str], every: int = 1) -> None:
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise ArgumentError(f"every must be a whole number from 1, found {every!r}.")
        self.path, self.every = expanded(path), every
        av = pyav()
        if not self.path.exists():
            raise MissingFileError(f"No video at {self.path} (looked from {Path.cwd()}). Check the path.")
        self.is_camera = self.path.is_char_device()
        try:
            self._container = av.open(os.fspath(self.path), format="v4l2" if self.is_camera else None)
        except (av.error.FFmpegError, OSError) as error:
            raise ImageError(
                f"{self.path}: cannot be opened as a video ({_said(error)}). Get the file again, or convert it to MP4."
            ) from None
        if not self._container.streams.video:
            self.close()
            raise ImageError(f"{self.path}: there are no pictures in this file, only sound or text.")
        self._stream = self._container.streams.video[0]
        self._stream.thread_type = "SLICE"  # with frames in threads, an error comes with another frame than its own
        self._stream.codec_context.options = {"err_detect": "explode"}  # what is damaged is said, not painted over
        self.frames: int | None = self._stream.frames or None
        self.rate: Fraction | None = self._stream.average_rate
        self.time_base: Fraction = self._stream.time_base

    def __enter__(self) -> Video:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._container.close()

    def __iter__(self) -> Iterator[Frame]:
        start = self._stream.start_time or 0
        for number, (frame, pts, error) in enumerate(self._decoded()):
            if number % self.every == 0:
                seconds = None if pts is None else float((pts - start) * self.time_base)
                yield Frame(number, seconds, None if frame is None else _pixels(frame), error)

    def _decoded(self) -> Iterator[tuple[Any, int | None, str | None]]:
        """(frame, time, None), or (None, time, error), as the decoder gives them."""
        av = pyav()
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except av.error.FFmpegError as error:  # the file ends here, whatever it says
                yield None, None, f"the file is damaged or cut off ({_said(error)})"
                return
            try:
                for frame in packet.decode():
                    if frame.is_corrupt:
                        yield None, frame.pts, "the frame is damaged"
                    else:
                        yield frame, frame.pts, None
            except av.error.EOFError:
                return
            except av.error.FFmpegError as error:
                yield None, packet.pts, f"the frame is damaged ({_said(error)})"


def _said(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _pixels(frame: Any) -> np.ndarray:
    """(H, W, 3) uint8 RGB, turned as the file says that it is shown."""
    import numpy as np

    pixels: np.ndarray = frame.to_ndarray(format="rgb24")
    return np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90) % 4))
