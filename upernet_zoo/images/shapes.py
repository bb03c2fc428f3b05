"""Masks in the forms that other tools read: run lengths as COCO has them, and polygons."""

from __future__ import annotations

import numpy as np

from ..errors import MissingPackageError
from ..version import install_line

__all__ = ["bounding_box", "polygons", "run_lengths"]


def run_lengths(mask: np.ndarray) -> list[int]:
    """Lengths of runs, column by column, of pixels outside and inside in turn; the first are outside, and may be none (COCO's RLE).

    Args:
        mask: (H, W) bool.
    """
    flat = mask.ravel(order="F")
    starts = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    edges = np.concatenate([[0], starts, [flat.size]])
    lengths: list[int] = np.diff(edges).tolist()
    return [0, *lengths] if flat.size and flat[0] else lengths


def bounding_box(mask: np.ndarray) -> list[int]:
    """Left, top, width and height of the pixels inside, in pixels; zeros where there are none.

    Args:
        mask: (H, W) bool.
    """
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    if not len(rows):
        return [0, 0, 0, 0]
    return [int(columns[0]), int(rows[0]), int(columns[-1] - columns[0] + 1), int(rows[-1] - rows[0] + 1)]


def require_rasterio(what: str) -> None:
    """Refuse to go on without it.

    Args:
        what: needs it, in the plural.

    Raises:
        MissingPackageError: rasterio is not installed; the message says how to get it.
    """
    try:
        import rasterio  # noqa: F401
    except ImportError as error:
        raise MissingPackageError(f"{what} need rasterio ({error}). Install it: {install_line('raster')}.") from None


def polygons(mask: np.ndarray) -> list[list[list[tuple[float, float]]]]:
    """Outlines along the edges of pixels, one polygon for each group of pixels that share an edge.

    Args:
        mask: (H, W) bool.

    Returns:
        Of each polygon its outer ring and those of its holes; a ring is of (x, y) in pixels from the upper left corner, and ends where it
        begins. So they are the coordinates of a GeoJSON MultiPolygon.

    Raises:
        MissingPackageError: rasterio is not installed.
    """
    require_rasterio("Polygons")
    from rasterio import features

    found = features.shapes(mask.astype(np.uint8), mask=mask, connectivity=4)
    return [[[(float(x), float(y)) for x, y in ring] for ring in shape["coordinates"]] for shape, _ in found]
