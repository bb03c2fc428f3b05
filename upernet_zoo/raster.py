"""Georeferenced rasters of any size, read and written in parts through rasterio. rasterio is imported when it is needed."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import files
from .errors import ArgumentError, ImageError, MissingFileError, WriteError
from .files import expanded, size_text
from .images import reading
from .images.save import MARK, is_own
from .images.shapes import require_rasterio
from .labels import LabelSet, classes_digest
from .models.fused.model import FusedUPerNet
from .segmenter import Segmenter
from .wording import option, worded

__all__ = ["segment_raster"]

# GDAL's names. It has drivers for what is on the web, in databases and in archives too.
_DRIVERS = ("GTiff", "VRT", "JP2OpenJPEG", "HFA", "PNG", "JPEG")
_CACHE = 128  # MB that GDAL keeps of blocks that it read or is to write; by default it takes 5 % of the machine
_BLOCK = 512  # side of the blocks of what is written, in pixels
_PIECE = 128  # rows that are read at once: of other types than uint8 they take up to eight times as much as they become


def segment_raster(
    segmenter: Segmenter,
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    tile: int = 1024,
    stride: tuple[int, int] | None = None,
    bands: Sequence[int] | None = None,
    value_range: tuple[float, float] | None = None,
    geojson: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> dict[str, float]:
    """Segment a raster that need not fit into memory, and write its labels as a GeoTIFF that lies where the raster lies.

    A raster that fits into one tile is segmented as any picture is. A larger one is run at its own size in overlapping windows, whose
    logits are averaged, as slide mode does: at no time is more held than two rows of windows. What is written appears whole or not at all:
    one band of train ids, in tiles and compressed, with the raster's CRS and transform (or control points, or RPCs), its colors, its
    classes as the tags `class_0`, `class_1`, ... of the band, and overviews where the raster has them. Pixels that the raster masks
    (nodata, NaN, alpha, a mask) are void: the label set's `ignore_index`, which is the nodata value.

    Args:
        segmenter: what to run; for windows its recipe gives way to the picture's own size, `tile` and `stride`.
        source: a GeoTIFF, VRT, JPEG 2000, Erdas Imagine, PNG or JPEG file.
        target: the GeoTIFF to write, ends in ".tif" or ".tiff".
        tile: height and width of the windows in pixels.
        stride: (height, width) from window to window in pixels; by default two thirds of the tile.
        bands: numbers, from 1, of the three bands that are red, green and blue, or of a gray one; by default those that the raster names
            so, else the first three, or the one.
        value_range: the values that become 0 and 255, where the raster's are not uint8. What is outside is clipped.
        geojson: also write a polygon of each connected region of a class, in the raster's coordinates with its CRS by name. All polygons
            are held in memory.
        overwrite: replace files that are there and were not written by this library.
        progress: show a bar of the windows that are done.

    Returns:
        Class name -> fraction of the pixels that are not masked (0..1), largest first, only classes that occur.

    Raises:
        MissingPackageError: rasterio is not installed.
        ArgumentError: a value that cannot be used.
        MissingFileError, ImageError: the raster cannot be read, or its bands or values are none that can be taken as they are.
        NotEnoughMemoryError: more memory is needed than there is.
        ExistingFileError: a file of that name is there, and was not written by this library.
        WriteError: the disk is full, or cannot be written.

    Examples:
        >>> import rasterio
        >>> import upernet_zoo as uz
        >>> place = {"crs": "EPSG:32633", "transform": rasterio.Affine(0.5, 0, 400000, 0, -0.5, 5000000)}
        >>> with rasterio.open("scan.tif", "w", driver="GTiff", width=300, height=200, count=3, dtype="uint8", **place) as out:
        ...     pass  # all zeros
        >>> areas = uz.segment_raster(uz.Segmenter("demo"), "scan.tif", "labels.tif", tile=256)
        >>> with rasterio.open("labels.tif") as labels:
        ...     print(labels.shape, labels.crs, labels.transform == place["transform"])
        (200, 300) EPSG:32633 True
    """
    require_rasterio("Rasters")
    import rasterio

    target, polygons = expanded(target), None if geojson is None else expanded(geojson)
    if target.suffix.lower() not in (".tif", ".tiff"):
        raise ArgumentError(f"{target}: a raster's labels are written as GeoTIFF, to a name that ends in .tif.")
    tiled = _tiled(segmenter, tile, stride)
    for path in filter(None, (target, polygons)):
        files.require_replaceable(path, is_own, overwrite)
    with rasterio.Env(GDAL_CACHEMAX=_CACHE), _Source(source, bands, value_range) as raster:
        if polygons is not None and raster.dataset.gcps[0]:
            raise ImageError(f"{source}: has control points and no transform, so polygons have no coordinates. Warp it first (rio warp).")
        _require_space(target, raster)
        labels = _Labels(raster, segmenter.model.label_set)

        def write(temporary: Path) -> None:
            with labels.writing(temporary) as put:
                if max(raster.size) <= tile:
                    everything = slice(0, raster.size[0])
                    put(everything, segmenter(raster.read(everything), progress=progress).labels)
                else:
                    tiled.stream(raster.size, raster.cut, put, progress=progress)
            if polygons is not None:
                labels.written = temporary

        writers: list[tuple[Path, Callable[[Path], object]]] = [(target, write)]
        if polygons is not None:
            writers.append((polygons, labels.write_polygons))
        files.write_together(writers)
    return labels.areas()


def _tiled(segmenter: Segmenter, tile: int, stride: tuple[int, int] | None) -> Segmenter:
    """The same segmenter over windows at the picture's own size."""
    if isinstance(tile, bool) or not isinstance(tile, int) or tile < 1:
        raise ArgumentError(f"{option('tile')} is the side of the windows in pixels, a whole number from 1; found {tile!r}.")
    only = segmenter.model.config.backbone.input_size
    if only not in (None, (tile, tile)):
        raise ArgumentError(f"This model's backbone takes windows of one size alone: {option('tile', max(only))}.")
    if segmenter.scales != (1.0,):
        raise ArgumentError(f"A raster is run at its own size: leave out {option('scales')}.")
    return Segmenter(
        segmenter.model,
        recipe=segmenter.recipe,
        mode="slide",
        crop=(tile, tile),
        stride=stride or (max(1, tile * 2 // 3),) * 2,
        own_size=True,
        flip=segmenter.flip,
        batch_size=segmenter.batch_size,
        amp=segmenter.amp,
        optimize=None if isinstance(segmenter.model, FusedUPerNet) else False,
        backend=segmenter.backend,
        cache_dir=segmenter.cache_dir,
    )


def _require_space(target: Path, raster: _Source) -> None:
    """Refuse to begin what may not fit on the disk. Labels compress well, but by how much is known at the end."""
    folder = next(folder for folder in target.absolute().parents if folder.exists())
    needed, free = raster.size[0] * raster.size[1] * 4 // 3, shutil.disk_usage(folder).free
    if needed > free:
        raise WriteError(
            f"{target}: labels of {raster.size[1]}x{raster.size[0]} pixels may take {size_text(needed)}, and {size_text(free)} are free on "
            "the disk. Free some space, or name another folder."
        )


class _Source:
    """A raster that is read in parts, as RGB of 8 bits. Its errors name it."""

    def __init__(self, path: str | os.PathLike[str], bands: Sequence[int] | None, value_range: tuple[float, float] | None) -> None:
        import rasterio

        if reading.is_url(path):
            raise ImageError(f"{path} is a URL, and rasters are read from files. Download it, and give the file's path.")
        self.path = expanded(path)
        if not self.path.is_file():
            raise MissingFileError(f"No raster at {self.path} (looked from {Path.cwd()}). Check the path.")
        with self._errors(), warnings.catch_warnings():
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)  # a picture, say
            self.dataset = self._opened()
        try:
            self.size: tuple[int, int] = self.dataset.height, self.dataset.width
            self.bands = self._bands(bands)
            self._range = self._checked(value_range)
            self._palette = self._colors()
            # gray of a fax, say: 0 is white, as plain predict reads it
            self._inverted = self.dataset.tags(ns="IMAGE_STRUCTURE").get("MINISWHITE") == "YES"
        except BaseException:
            self.dataset.close()
            raise
        flags = [flag.name for band in self.bands for flag in self.dataset.mask_flag_enums[band - 1]]
        self._floats = any(np.dtype(self.dataset.dtypes[band - 1]).kind == "f" for band in self.bands)
        self.masked = self._floats or set(flags) != {"all_valid"}
        self._rows: slice | None = None  # those of the picture that are at hand: of a row of windows each is a part

    def _opened(self) -> Any:
        import rasterio

        problem: Exception | None = None
        for driver in _DRIVERS:
            try:
                return rasterio.open(self.path, driver=driver)
            except rasterio.errors.RasterioIOError as error:
                if problem is None or "not recognized" in str(problem):
                    problem = error
        assert problem is not None
        raise problem

    def __enter__(self) -> _Source:
        return self

    def __exit__(self, *error: object) -> None:
        self.dataset.close()

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        from rasterio.errors import RasterioError

        try:
            yield
        except RasterioError as error:
            raise ImageError(
                f"{self.path}: cannot be read as a raster ({error.__cause__ or error}). Get the file again, or convert it."
            ) from None

    def _bands(self, bands: Sequence[int] | None) -> tuple[int, ...]:
        from rasterio.enums import ColorInterp

        count = self.dataset.count
        if bands is None:
            colors = ColorInterp.red, ColorInterp.green, ColorInterp.blue
            if all(self.dataset.colorinterp.count(color) == 1 for color in colors):
                red, green, blue = (self.dataset.colorinterp.index(color) + 1 for color in colors)
                return red, green, blue
            if count >= 3:
                return 1, 2, 3
            if count == 1 or self.dataset.colorinterp[1] == ColorInterp.alpha:
                return (1,)
            raise ImageError(
                f"{self.path}: has {count} bands. Say which are red, green and blue, or which one is gray: {option('bands', '1')}."
            )
        found = tuple(bands)
        if len(found) not in (1, 3) or not all(isinstance(band, int) and 1 <= band <= count for band in found):
            raise ArgumentError(
                f"{option('bands')}: three numbers from 1 (red, green, blue) or one (gray); {self.path} has {count} bands, found {found!r}."
            )
        return found

    def _checked(self, value_range: tuple[float, float] | None) -> tuple[float, float] | None:
        types = sorted({self.dataset.dtypes[band - 1] for band in self.bands})
        if value_range is not None:
            try:
                low, high = map(float, value_range)
            except (TypeError, ValueError):
                low = high = float("nan")
            if not (np.isfinite([low, high]).all() and low < high):
                raise ArgumentError(f"{option('value_range')}: two numbers, the lower first; found {value_range!r}.")
            if any(name.startswith("complex") for name in types):
                raise ImageError(f"{self.path}: holds complex numbers. Convert it first.")
            return low, high
        if types != ["uint8"]:
            python, command = "value_range=(LOW, HIGH)", "--value-range LOW,HIGH"
            raise ImageError(
                f"{self.path}: its values are {', '.join(types)}, and models take 0 to 255. Say which values become 0 and 255: "
                f"{worded(python, command)}."
            )
        return None

    def _colors(self) -> np.ndarray | None:
        """(256, 3) uint8 of a raster with a color table."""
        from rasterio.enums import ColorInterp

        if len(self.bands) != 1 or self.dataset.colorinterp[self.bands[0] - 1] != ColorInterp.palette or self._range is not None:
            return None
        table = np.zeros((256, 3), np.uint8)
        for value, color in self.dataset.colormap(self.bands[0]).items():
            table[value] = color[:3]
        return table

    def read(self, rows: slice) -> np.ndarray:
        """(rows, width, 3) uint8 RGB."""
        from rasterio.windows import Window

        width = self.size[1]
        out = np.empty((rows.stop - rows.start, width, 3), np.uint8)
        with self._errors():
            for top in range(rows.start, rows.stop, _PIECE):
                bottom = min(top + _PIECE, rows.stop)
                values = self.dataset.read(self.bands, window=Window(0, top, width, bottom - top)).transpose(1, 2, 0)
                if self._range is not None:
                    low, high = self._range
                    scaled = np.nan_to_num((values.astype(np.float32) - low) * (255 / (high - low)), nan=0.0)
                    values = scaled.clip(0, 255).round().astype(np.uint8)
                elif self._palette is not None:
                    values = self._palette[values[..., 0]]
                elif self._inverted:
                    values = 255 - values
                out[top - rows.start : bottom - rows.start] = values
        return out

    def valid(self, rows: slice) -> np.ndarray | None:
        """(rows, width) bool: what is not masked; None where nothing is."""
        from rasterio.windows import Window

        if not self.masked:
            return None
        with self._errors():
            window = Window(0, rows.start, self.size[1], rows.stop - rows.start)
            found: np.ndarray = self.dataset.read_masks(self.bands, window=window).any(0)
            for top in range(rows.start, rows.stop, _PIECE) if self._floats else ():  # NaN is no value, whether or not nodata says so
                part = found[top - rows.start : min(top + _PIECE, rows.stop) - rows.start]
                part &= ~np.isnan(self.dataset.read(self.bands, window=Window(0, top, self.size[1], len(part)))).all(0)
        return found

    def cut(self, rows: slice, columns: slice) -> np.ndarray | None:
        """(rows, columns, 3) uint8 RGB; None where all of it is masked."""
        if rows != self._rows:
            self._valid, self._pixels, self._rows = self.valid(rows), self.read(rows), rows
        if self._valid is not None and not self._valid[:, columns].any():
            return None
        return self._pixels[:, columns]


class _Labels:
    """The labels of a raster, written from the top down."""

    def __init__(self, raster: _Source, label_set: LabelSet) -> None:
        self._raster, self._set = raster, label_set
        self.void = label_set.ignore_index
        self.dtype = np.uint8 if max(self.void, len(label_set.classes) - 1) <= 255 else np.uint16
        self.counts = np.zeros(max(self.void, len(label_set.classes)) + 1, np.int64)
        self.written: Path | None = None

    def _profile(self) -> dict[str, Any]:
        source = self._raster.dataset
        points, crs = source.gcps
        where = {"gcps": points, "crs": crs} if points else {"transform": source.transform, "crs": source.crs}
        if not points and source.transform.is_identity:
            del where["transform"]
        height, width = self._raster.size
        size = {"height": height, "width": width, "count": 1, "dtype": self.dtype, "nodata": self.void}
        blocks = {"tiled": True, "blockxsize": _BLOCK, "blockysize": _BLOCK, "compress": "deflate", "BIGTIFF": "IF_SAFER"}
        return {"driver": "GTiff", **size, **blocks, **where, **({"rpcs": source.rpcs} if source.rpcs else {})}

    @contextlib.contextmanager
    def writing(self, path: Path) -> Iterator[Callable[[slice, np.ndarray], None]]:
        """A new GeoTIFF at `path`. Yields what takes rows of the picture, from the top down, and their labels."""
        import rasterio
        from rasterio.enums import Resampling

        try:
            with _write_errors(path), warnings.catch_warnings():
                warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
                with rasterio.open(path, "w", **self._profile()) as out:
                    self._describe(out)
                    rows = _Rows(out, self._raster.size, self.dtype)
                    yield lambda where, labels: rows.put(self._finished(where, labels))
                    rows.end()
                factors = self._raster.dataset.overviews(self._raster.bands[0])
                if factors:
                    with rasterio.open(path, "r+") as out:
                        out.build_overviews(factors, Resampling.mode)
                self._check(path)
        finally:
            path.with_name(path.name + ".aux.xml").unlink(missing_ok=True)

    def _describe(self, out: Any) -> None:
        if self.dtype == np.uint8:
            colors = {id: (*color, 255) for id, color in enumerate(self._set.palette)}
            out.write_colormap(1, colors | {self.void: (0, 0, 0, 0)})
        out.update_tags(1, **{f"class_{id}": name.strip() for id, name in enumerate(self._set.classes)})
        tags = {"TIFFTAG_SOFTWARE": MARK, "upernet_zoo_ids": "train", "label_set": self._set.name}
        digest = classes_digest(self._set.classes)
        kept = {key: value for key, value in self._raster.dataset.tags().items() if key == "AREA_OR_POINT"}
        out.update_tags(**kept, **tags, **({} if digest is None else {"upernet_zoo_classes": digest}))

    def _finished(self, rows: slice, labels: np.ndarray) -> np.ndarray:
        found = labels.astype(self.dtype)
        valid = self._raster.valid(rows)
        if valid is not None:
            found[~valid] = self.void
        self.counts += self._counted(found)
        return found

    def _counted(self, labels: np.ndarray) -> np.ndarray:
        return np.bincount(labels.ravel(), minlength=len(self.counts))

    def _check(self, path: Path) -> None:
        """Read the file back: GDAL does not always say that what it wrote late did not fit."""
        import rasterio
        from rasterio.windows import Window

        found = np.zeros_like(self.counts)
        height, width = self._raster.size
        try:
            with rasterio.open(path) as written:
                for top in range(0, height, _BLOCK):
                    found += self._counted(written.read(1, window=Window(0, top, width, min(_BLOCK, height - top))))
        except rasterio.errors.RasterioError:
            found[:] = -1
        if not np.array_equal(found, self.counts):
            raise OSError(errno.ENOSPC, "what was written is not what is there")

    def write_polygons(self, path: Path) -> None:
        """A GeoJSON file at `path` with a polygon of each connected region of the labels in `written`."""
        import rasterio
        from rasterio.features import shapes

        crs = self._raster.dataset.crs
        head: dict[str, Any] = {"type": "FeatureCollection", "generator": MARK}
        if crs:
            authority = crs.to_authority()
            name = f"urn:ogc:def:crs:{authority[0]}::{authority[1]}" if authority else crs.to_wkt()
            head["crs"] = {"type": "name", "properties": {"name": name}}
        with _write_errors(path), warnings.catch_warnings():
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            with rasterio.open(self.written) as labels, path.open("w", encoding="utf-8") as file:
                file.write(json.dumps(head)[:-1] + ', "features": [')
                separator = "\n"
                for geometry, value in shapes(rasterio.band(labels, 1), transform=labels.transform):
                    if int(value) != self.void:
                        properties = {"class": self._set.classes[int(value)].strip(), "id": int(value)}
                        file.write(separator + json.dumps({"type": "Feature", "properties": properties, "geometry": geometry}))
                        separator = ",\n"
                file.write("\n]}\n")

    def areas(self) -> dict[str, float]:
        """As `segment_raster` returns them."""
        counts = self.counts[: len(self._set.classes)]
        order = sorted(np.flatnonzero(counts).tolist(), key=lambda id: -counts[id])
        return {self._set.classes[id].strip(): float(counts[id] / counts.sum()) for id in order}


class _Rows:
    """Rows of labels on their way into whole rows of blocks: a block that is written twice takes twice the space."""

    def __init__(self, out: Any, size: tuple[int, int], dtype: Any) -> None:
        self._out, self._top, self._filled = out, 0, 0
        self._block = np.empty((min(_BLOCK, size[0]), size[1]), dtype)

    def put(self, labels: np.ndarray) -> None:
        """The next rows."""
        while len(labels):
            count = min(len(labels), len(self._block) - self._filled)
            self._block[self._filled : self._filled + count] = labels[:count]
            self._filled, labels = self._filled + count, labels[count:]
            if self._filled == len(self._block):
                self.end()

    def end(self) -> None:
        """Write what there is."""
        from rasterio.windows import Window

        if self._filled:
            self._out.write(self._block[: self._filled], 1, window=Window(0, self._top, self._block.shape[1], self._filled))
        self._top, self._filled = self._top + self._filled, 0


@contextlib.contextmanager
def _write_errors(path: Path) -> Iterator[None]:
    """Turn what GDAL says of a file that it writes into an OSError: of a full disk where there is hardly any space left."""
    from rasterio.errors import RasterioError

    try:
        yield
    except RasterioError as error:
        text = str(error.__cause__ or error)
        full = "space" in text.lower() or "too large" in text.lower() or shutil.disk_usage(path.parent).free < 1 << 20
        raise OSError(errno.ENOSPC if full else errno.EIO, text) from error
