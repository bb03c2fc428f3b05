"""Exported models in ONNX Runtime, without torch: NumPy, Pillow and onnxruntime are all that it needs.

The package is installed without what it requires otherwise (`version.runtime_lines` has the two commands), and an `OnnxSegmenter` runs the
files that `interop.export` writes.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from . import memory
from .config import Recipe
from .errors import (
    ArgumentError,
    CheckpointError,
    ConfigError,
    ImageError,
    MissingFileError,
    MissingPackageError,
    NotEnoughMemoryError,
    shown,
)
from .files import expanded
from .images import preprocess
from .labels import LabelSet
from .segmentation import Segmentation
from .version import runtime_lines
from .written import MARK

if TYPE_CHECKING:
    import onnxruntime

__all__ = ["OnnxSegmenter"]

_EXPORT = "Write one with upernet-zoo export MODEL --out model.onnx."
_ENOUGH = 64  # pixels that a side has at least where no backbone runs out of them: two at stride 32
_TILE = 1 << 18  # elements (classes x pixels) of a tile: 1 MiB, which stays in the cache

# top, bottom -> (num_classes, bottom - top, width) float32: rows of the logits of a prepared picture. Asked for from top to bottom.
_Rows = Callable[[int, int], np.ndarray]


class OnnxSegmenter:
    """Segments pictures with an exported model, as `Segmenter` does, in ONNX Runtime. No torch is imported.

    How pictures are prepared, the windows of slide mode, classes and palette are from the file's metadata.

    Args:
        model: path of an ONNX file that this library exported, with or without labels; or an `onnxruntime.InferenceSession` of one, for
            providers and threads of your own choice. By default ONNX Runtime's own, on the CPU.

    Attributes:
        session: the `onnxruntime.InferenceSession`.
        recipe: how a picture is prepared. A file with labels has its preparation inside.
        label_set: classes and colors.

    Raises:
        MissingFileError: no such file.
        CheckpointError: no ONNX file, one that this library did not write, or one whose metadata cannot be read.
        ArgumentError: neither a path nor a session; a model that takes no RGB pictures, or that was exported with labels and needs windows.
        ConfigError: metadata with a recipe or label set that is not valid, or with steps that this library does not do
            (`Recipe.unsupported`).
        MissingPackageError: onnxruntime is not installed.

    Examples:
        >>> from upernet_zoo.runtime import OnnxSegmenter
        >>> OnnxSegmenter("model.onnx")("street.jpg").labels.shape
        (256, 512)
    """

    def __init__(self, model: str | os.PathLike[str] | onnxruntime.InferenceSession) -> None:
        if not isinstance(model, (str, os.PathLike)) and not hasattr(model, "get_modelmeta"):
            raise ArgumentError(
                f"OnnxSegmenter: takes the path of an ONNX file, or an InferenceSession of one, found {shown(model)}. {_EXPORT}"
            )
        self._owner = str(model) if isinstance(model, (str, os.PathLike)) else "The session's model"
        self.session = _session(model) if isinstance(model, (str, os.PathLike)) else model
        metadata = self.session.get_modelmeta().custom_metadata_map
        if metadata.get("library") != MARK:
            raise CheckpointError(f"{self._owner}: was not exported by upernet_zoo. {_EXPORT}")
        inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
        if len(inputs) != 1 or len(outputs) != 1:
            raise CheckpointError(
                f"{self._owner}: was changed since its export: inputs: {len(inputs)}, outputs: {len(outputs)}, and not one of each. "
                "Export the model again."
            )
        (source,), (result,) = inputs, outputs
        if result.name not in ("logits", "labels"):
            raise CheckpointError(f"{self._owner}: a graph of Segmenter's own in its cache, with logits at another size. {_EXPORT}")
        self._input, self._labeled = source.name, result.name == "labels"
        self._size = source.shape[1:3] if self._labeled else source.shape[2:4]
        self.recipe = Recipe.from_dict(_value(metadata, "recipe", self._owner), f"{self._owner}: recipe")
        try:
            self.label_set = LabelSet.from_dict(_value(metadata, "labels", self._owner))
        except ConfigError as error:
            raise ConfigError(f"{self._owner}: labels: {error}") from None
        align_corners = _value(metadata, "architecture", self._owner).get("align_corners")
        if not isinstance(align_corners, bool):  # a guess would give other labels
            raise CheckpointError(
                f"{self._owner}: the architecture in its metadata does not say whether 'align_corners' is true or false. "
                "Export the model again."
            )
        self._align_corners = align_corners
        try:
            self.recipe.require_supported("Export the model with a recipe that does without (model.recipe).")
        except ConfigError as error:
            raise ConfigError(f"{self._owner}: {error}") from None
        if len(self.recipe.mean) != 3:
            raise ArgumentError(f"{self._owner}: takes pictures of {len(self.recipe.mean)} channels, and OnnxSegmenter has RGB pictures.")
        if self._labeled and self.recipe.mode == "slide":
            raise ArgumentError(
                f"{self._owner}: was exported with labels, and its model averages the logits of windows. Export it without labels: "
                "OnnxSegmenter runs the windows."
            )

    def __call__(self, image: Any) -> Segmentation:
        """Segment a picture.

        Args:
            image: a path, a PIL image or an (H, W, 3) uint8 RGB array: what `preprocess.load_image` takes.

        Raises:
            MissingFileError, ImageError: it cannot be read, is more than one, or has a size that the model does not take.
            NotEnoughMemoryError: more memory is needed than there is.
        """
        pixels = preprocess.load_image(image)
        height, width = pixels.shape[:2]
        with memory.refused(f"A picture of {width}x{height} pixels"):
            return Segmentation(self._run(pixels) if self._labeled else self._labels(pixels), pixels, self.label_set)

    def _labels(self, pixels: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 -> (H, W) uint8, or int16 above 255 classes."""
        size, recipe = (pixels.shape[0], pixels.shape[1]), self.recipe
        content = preprocess.target_size(size, recipe)
        if recipe.crop is None or recipe.stride is None:
            rows = _rows_of(self._run(preprocess.prepare_array(pixels, recipe)[0]))
        else:
            resized = pixels if content == size else preprocess.resize_uint8(pixels, content)
            slices = [preprocess.windows(*sides) for sides in zip(preprocess.padded_size(content, recipe), recipe.crop, recipe.stride)]

            def run(rows: slice, columns: slice) -> np.ndarray:
                sides = rows.stop - rows.start, columns.stop - columns.start
                return self._run(preprocess.normalize(resized[rows, columns], recipe, sides))  # what lies in the padding is cut off

            rows = _Windows(run, slices[0], slices[1]).rows
        return _resized_labels(rows, content, size, self._align_corners, len(self.label_set))

    def _run(self, x: np.ndarray) -> np.ndarray:
        """What the model gives for one input, without the batch dimension."""
        height, width = x.shape[:2] if self._labeled else x.shape[1:]
        if any(isinstance(fixed, int) and fixed != side for fixed, side in zip(self._size, (height, width))):
            wanted = "x".join(str(side) if isinstance(side, int) else "any" for side in reversed(self._size))
            raise ImageError(
                f"{self._owner}: takes {wanted} pixels (width x height) alone, and the picture has {width}x{height}"
                + ("." if self._labeled else ", prepared as the recipe says.")
            )
        try:
            result: np.ndarray = self.session.run(None, {self._input: np.ascontiguousarray(x[None])})[0][0]
            return result
        except Exception as error:  # ONNX Runtime's own derive from nothing else
            if memory.ran_out_in_onnxruntime(error):
                raise NotEnoughMemoryError(
                    f"{self._owner}: the memory of this process ran out for {width}x{height} pixels. Give it more, or a smaller picture."
                ) from None
            hint = ". Export the model again, or update onnxruntime"
            if min(height, width) < _ENOUGH:
                hint = ", which may be too few or too thin for the model. Take a larger or less thin picture"
            raise ImageError(f"{self._owner}: ONNX Runtime could not run {width}x{height} pixels{hint}. It says: {error}") from error


def _session(model: str | os.PathLike[str]) -> onnxruntime.InferenceSession:
    if not os.fspath(model):
        raise ArgumentError(f"OnnxSegmenter: the path of the ONNX file is empty. {_EXPORT}")
    path = expanded(model)
    if path.is_dir():
        raise MissingFileError(f"{path} is a folder, and OnnxSegmenter takes an ONNX file. Name the file in it. {_EXPORT}")
    if not path.is_file():
        raise MissingFileError(f"No ONNX file at {path}. {_EXPORT}")
    try:
        import onnxruntime
    except ImportError:
        raise MissingPackageError(f"OnnxSegmenter needs the package onnxruntime: {runtime_lines()[1]}.") from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what fails is raised, and need not be on stderr before
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own derive from nothing else
        raise CheckpointError(f"{path}: ONNX Runtime cannot load it: {error}. Export the model again, or update onnxruntime.") from None


def _value(metadata: Mapping[str, str], key: str, owner: str) -> dict[str, Any]:
    """A mapping in the file's metadata."""
    try:
        value = json.loads(metadata[key])
    except (KeyError, ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise CheckpointError(f"{owner}: its metadata has no {key!r} that can be read. Export the model again.")
    return value


def _rows_of(logits: np.ndarray) -> _Rows:
    """Of logits that are there as a whole."""
    return lambda top, bottom: logits[:, top:bottom]


class _Windows:
    """Logits averaged over overlapping windows, which are computed when rows of theirs are asked for; rows above those are forgotten.

    Args:
        run: rows and columns of a window -> its logits, (num_classes, height, width).
        rows, columns: where the windows are.
    """

    def __init__(self, run: Callable[[slice, slice], np.ndarray], rows: list[slice], columns: list[slice]) -> None:
        self.run, self.todo, self.columns = run, list(rows), columns
        self.height = rows[-1].stop
        self.counts = [_counts(axis) for axis in (rows, columns)]
        self.top = 0  # of `total`, the sums
        self.total: np.ndarray | None = None

    def rows(self, top: int, bottom: int) -> np.ndarray:
        """(num_classes, bottom - top, width) float32; `top` never goes back."""
        while self.todo and self.todo[0].start < bottom:
            self._add(self.todo.pop(0))
        assert self.total is not None  # the first row is of the first window
        self.total, self.top = self.total[:, top - self.top :], top
        down, across = self.counts
        average: np.ndarray = self.total[:, : bottom - top] / (down[top:bottom, None] * across)
        return average

    def _add(self, window: slice) -> None:
        """Compute a row of windows."""
        for columns in self.columns:
            logits = self.run(window, columns)
            if self.total is None:
                self.total = np.zeros((len(logits), 0, self.columns[-1].stop), np.float32)
            if missing := window.stop - self.top - self.total.shape[1]:
                self.total = np.concatenate([self.total, np.zeros((len(logits), missing, self.total.shape[2]), np.float32)], axis=1)
            self.total[:, window.start - self.top : window.stop - self.top, columns] += logits


def _counts(windows: list[slice]) -> np.ndarray:
    """How many windows each pixel of an axis is in, float32."""
    counts = np.zeros(windows[-1].stop, np.float32)
    for window in windows:
        counts[window] += 1
    return counts


class _Taps(NamedTuple):
    """Of each position of a resized axis, (size,) each: the two source positions that it lies between, and their weights."""

    first: np.ndarray
    second: np.ndarray
    weight: np.ndarray
    other: np.ndarray

    def band(self, start: int, stop: int) -> tuple[slice, np.ndarray]:
        """Of the positions from `start` to `stop`: the source positions that they depend on, and the matrix from these to them."""
        part = slice(start, stop)
        source = slice(int(self.first[start]), int(self.second[stop - 1]) + 1)
        matrix = np.zeros((stop - start, source.stop - source.start), np.float32)
        position = np.arange(stop - start)
        matrix[position, self.first[part] - source.start] += self.weight[part]
        matrix[position, self.second[part] - source.start] += self.other[part]
        return source, matrix


def _taps(source: int, size: int, align_corners: bool) -> _Taps:
    """As torch's `interpolate` computes them, in float32 (`aten/src/ATen/native/UpSample.h`, with its products and sums fused)."""
    if align_corners:
        scale = np.float32(source - 1) / np.float32(max(size - 1, 1))
        coordinate = scale * np.arange(size, dtype=np.float32)
    else:
        scale = np.float32(source) / np.float32(size)
        coordinate = np.maximum((np.float64(scale) * (np.arange(size) + 0.5) - 0.5).astype(np.float32), 0)
    first = np.minimum(coordinate.astype(np.int64), source - 1)
    other = np.clip(coordinate - first.astype(np.float32), 0, 1)
    return _Taps(first, np.minimum(first + 1, source - 1), 1 - other, other)


def _resized_labels(rows: _Rows, source: tuple[int, int], size: tuple[int, int], align_corners: bool, classes: int) -> np.ndarray:
    """The class of the largest logit at each pixel, after a bilinear resize from `source` (height, width) to `size`.

    As `resample.labels`: in tiles that stay in the cache, each from the few logits that it depends on and for the classes that can win
    there alone, so that no resized logits of the whole picture ever exist.

    Returns:
        (*size) uint8, or int16 above 255 classes.
    """
    out = np.empty(size, np.uint8 if classes <= 255 else np.int16)
    side = max(8, math.isqrt(_TILE // classes))
    down, across = (_taps(*lengths, align_corners) for lengths in zip(source, size))
    columns = [(slice(left, min(left + side, size[1])), *across.band(left, min(left + side, size[1]))) for left in range(0, size[1], side)]
    for top in range(0, size[0], side):
        bottom = min(top + side, size[0])
        needed, row_matrix = down.band(top, bottom)
        stripe = rows(needed.start, needed.stop)
        for place, used, column_matrix in columns:
            tile = stripe[:, :, used]
            winners = _candidates(tile)
            resized = row_matrix @ (tile[winners] @ column_matrix.T) if len(winners) > 1 else np.zeros((1, 1, 1))
            out[top:bottom, place] = winners[resized.argmax(0)]
    return out


def _candidates(logits: np.ndarray) -> np.ndarray:
    """The classes of (classes, h, w) logits that can be the largest in a mean of the h * w with whatever weights, as in `resample`.

    The margin covers float32 rounding many times. NaN rules nothing out.
    """
    least = logits.min((1, 2)).max() - 1e-5 * np.abs(logits).max()
    return np.flatnonzero(~(logits.max((1, 2)) < least))
