"""What predict does with a file: one kind of job for pictures, one for rasters, one for videos."""

from __future__ import annotations

import argparse
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ArgumentError
from ..images import frames

if TYPE_CHECKING:
    from ..segmenter import Segmenter

__all__ = ["PICTURES", "Job", "job", "require_fitting", "require_packages", "run_digest"]

_LABELS, _OVERLAY, _RASTER, _POLYGONS = "_labels.png", "_overlay.png", "_labels.tif", "_polygons.geojson"
_VIDEO, _TABLE = "_overlay.mp4", "_areas.csv"
PICTURES = (_LABELS, _OVERLAY, _RASTER)  # endings of what is written and could be taken for a picture


@dataclass(frozen=True)
class Job(ABC):
    """A file, and what is written for it.

    Attributes:
        source: the file.
        written: the files to write.
    """

    source: Path
    written: tuple[Path, ...]

    @abstractmethod
    def run(self, segmenter: Segmenter, args: argparse.Namespace, show: bool, run: str) -> dict[str, float]:
        """Do it; gives the share of each class.

        Args:
            segmenter: of the model.
            args: of the command.
            show: a progress bar.
            run: digest of the run, to be kept with what is written; empty for none.
        """

    def is_done(self, run: str) -> bool:
        """Whether a run with that digest has written all of it from this very file."""
        return False

    def is_own(self, path: Path) -> bool:
        """Whether a file was written by such a job, and so may be replaced."""
        from ..images.save import is_own

        return is_own(path)


class _Picture(Job):
    def run(self, segmenter: Segmenter, args: argparse.Namespace, show: bool, run: str) -> dict[str, float]:
        from ..images.save import save_labels, save_picture

        labels, overlay = self.written
        key = self._key(run)  # of what is read now: a picture that changes meanwhile is done again
        segmentation = segmenter(self.source, progress=show)
        save_picture(segmentation.overlay(args.alpha), overlay, overwrite=args.overwrite)
        # last, as the digest says that both are there
        save_labels(segmentation.labels, segmentation.palette, labels, classes=segmentation.classes, overwrite=args.overwrite, run=key)
        return segmentation.areas()

    def is_done(self, run: str) -> bool:
        from ..images.save import is_own, run_of

        labels, overlay = self.written
        key = self._key(run)
        return key is not None and run_of(labels) == key and is_own(overlay)

    def _key(self, run: str) -> str | None:
        """Of a run and this picture, as it is now; None of no run, or if the picture is gone, which reading it says."""
        if not run:
            return None
        try:
            status = self.source.stat()
        except OSError:
            return None
        return hashlib.sha256(f"{run} {status.st_size} {status.st_mtime_ns}".encode()).hexdigest()


class _Raster(Job):
    def run(self, segmenter: Segmenter, args: argparse.Namespace, show: bool, run: str) -> dict[str, float]:
        from ..raster import segment_raster

        labels, *polygons = self.written
        return segment_raster(
            segmenter,
            self.source,
            labels,
            tile=args.tile,
            stride=args.stride,
            bands=args.bands,
            value_range=args.value_range,
            geojson=polygons[0] if polygons else None,
            overwrite=args.overwrite,
            progress=show,
        )


class _Video(Job):
    def run(self, segmenter: Segmenter, args: argparse.Namespace, show: bool, run: str) -> dict[str, float]:
        from ..video import label_video

        video, table = self.written
        options = {"every": args.every or 1, "alpha": args.alpha, "overwrite": args.overwrite}
        report = label_video(segmenter, self.source, video, table, **options, show=show)
        report.require_whole()
        return report.areas

    def is_own(self, path: Path) -> bool:
        from ..video import is_own_table, is_own_video

        return is_own_table(path) or is_own_video(path)


def job(source: Path, target: Path, args: argparse.Namespace) -> Job:
    """What predict does with a file; `target` is where to write, without the ending."""
    kind: type[Job]
    endings: tuple[str, ...]
    if source.suffix.lower() in frames.SUFFIXES or source.is_char_device():
        kind, endings = _Video, (_VIDEO, _TABLE)
    elif args.tile is not None:
        kind, endings = _Raster, (_RASTER, _POLYGONS) if args.geojson else (_RASTER,)
    else:
        kind, endings = _Picture, (_LABELS, _OVERLAY)
    return kind(source, tuple(target.with_name(target.name + ending) for ending in endings))


def require_fitting(found: Iterable[Job], args: argparse.Namespace) -> None:
    """Refuse options that are for files of another kind than those given.

    Raises:
        ArgumentError: names the option, and a file.
    """
    videos = [one.source for one in found if isinstance(one, _Video)]
    if args.every is not None and not videos:
        raise ArgumentError("--every is for videos, and no video is given. Leave it out.")
    if args.tile is not None and videos:
        raise ArgumentError(f"--tile is for rasters, and {videos[0]} is a video. Run videos without it.")


def require_packages(jobs: Iterable[Job]) -> None:
    """Refuse jobs for which a package is missing, before a model is loaded.

    Raises:
        MissingPackageError: names it.
    """
    kinds = {type(one) for one in jobs}
    if _Raster in kinds:
        from ..images.shapes import require_rasterio

        require_rasterio("Rasters")
    if _Video in kinds:
        frames.pyav()


def run_digest(segmenter: Segmenter, args: argparse.Namespace) -> str:
    """SHA-256 of all that decides what is written for a picture, but for the picture."""
    from ..provenance import fingerprint

    model = segmenter.model
    settings = {
        "weights": fingerprint(model.state_dict()),
        "classes": model.label_set.to_dict(),
        **segmenter.settings,
        "backend": segmenter.backend,
        "alpha": args.alpha,
    }
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
