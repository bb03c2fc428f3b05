"""Picture files: the formats that are opened, and what of their metadata is believed. No torch here."""

from __future__ import annotations

import os
import re
import struct
import zlib
from collections.abc import Iterator
from io import BytesIO
from typing import IO, TYPE_CHECKING

from .. import memory
from ..errors import NotEnoughMemoryError
from ..files import size_text

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["FORMATS", "FORMATS_TEXT", "SUFFIXES", "is_url", "orientation", "read", "upright", "why_unread"]

# Pillow's names. It knows more formats: some run other programs (PostScript), some hold no picture at all.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
FORMATS_TEXT = "PNG, JPEG, WebP, TIFF, BMP, GIF, PPM or PGM"

_BYTES_PER_PIXEL = 10  # at least, as measured: Pillow's own array, and ours of RGB twice while it is copied
_PNG = b"\x89PNG\r\n\x1a\n"
_ORIENTATION = 0x0112
_SIGNATURE = re.compile(
    rb"(?P<BMP>BM)|(?P<GIF>GIF8)|(?P<JPEG>\xff\xd8\xff)|(?P<PNG>\x89PNG)|(?P<TIFF>II\*\0|MM\0\*)|(?P<WebP>RIFF.{4}WEBP)", re.S
)
_URL = re.compile(r"(?:data:|[a-z][a-z0-9+.-]+:/{1,2}[^/])", re.IGNORECASE)  # one slash is what pathlib leaves of two


def is_url(source: str | os.PathLike[str]) -> bool:
    """Whether this names something on the web, or in a store, and no file of this machine."""
    return _URL.match(os.fspath(source)) is not None


def read(file: IO[bytes]) -> Image.Image:
    """The picture in a file, decoded and upright. Metadata that Pillow stumbles over, as libpng does not, is left out.

    Raises:
        NotEnoughMemoryError: it is too large for the memory that there is.
        Exception: whatever Pillow raises on what is no picture of `FORMATS`, or a damaged one.
    """
    from PIL import Image

    try:
        return upright(Image.open(file, formats=FORMATS))
    except (MemoryError, Image.DecompressionBombError):
        raise
    except Exception:
        file.seek(0)
        if file.read(len(_PNG)) != _PNG:
            raise
        return upright(Image.open(BytesIO(_PNG + b"".join(_pixel_chunks(file))), formats=("PNG",)))


def why_unread(file: IO[bytes]) -> str:
    """What to say of a file that Pillow takes for no picture of `FORMATS`."""
    file.seek(0)
    head = file.read(12)
    if not head:
        return "the file is empty"
    if found := _SIGNATURE.match(head):
        return f"a {found.lastgroup} file that is damaged or cut off, or of a kind that is not read (more than four channels, say)"
    return f"not a picture in a format that is read ({FORMATS_TEXT})"


def _pixel_chunks(file: IO[bytes]) -> Iterator[bytes]:
    """The chunks of a PNG that its pixels need, and EXIF data for the orientation, if it is whole."""
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        rest = file.read(length + 4)
        whole = len(rest) == length + 4 and zlib.crc32(rest[:length], zlib.crc32(kind)) == int.from_bytes(rest[length:], "big")
        if kind[:1].isupper() or (kind == b"eXIf" and whole):
            yield head + rest


def upright(image: Image.Image) -> Image.Image:
    """The picture decoded, and turned by its EXIF orientation; whatever else its metadata says does not matter.

    Raises:
        NotEnoughMemoryError: it is too large for the memory that there is.
        Exception: whatever Pillow raises on damaged pixels.
    """
    from PIL import Image

    _require_memory(image)
    image.load()  # which turns a TIFF already
    method = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }.get(orientation(_exif(image)))
    return image if method is None else image.transpose(method)


def _require_memory(image: Image.Image) -> None:
    """Refuse a picture that cannot be decoded, where that can be known, before it takes all the memory there is."""
    free, needed = memory.available(None), image.width * image.height * _BYTES_PER_PIXEL
    if free is not None and needed > free:
        raise NotEnoughMemoryError(
            f"A picture of {image.width}x{image.height} pixels needs about {size_text(needed)} of memory to be decoded, and "
            f"{size_text(free)} are free. Make it smaller, or cut it into parts."
        )


def _exif(image: Image.Image) -> bytes:
    """Raw EXIF data; of old PNG files from the text that ImageMagick writes."""
    exif = image.info.get("exif")
    if isinstance(exif, bytes):
        return exif
    text = image.info.get("Raw profile type exif")
    try:
        return bytes.fromhex("".join(text.split("\n")[3:])) if isinstance(text, str) else b""
    except ValueError:
        return b""


def orientation(exif: bytes) -> int:
    """The orientation, 1 to 8, in EXIF data; 1 where it says none, or cannot be read.

    Read here, and alone: a date or a comment that is damaged says nothing about the picture.
    """
    data = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(f"{order}I", data, 4)
        (count,) = struct.unpack_from(f"{order}H", data, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(f"{order}HH", data, entry)
            if tag == _ORIENTATION:
                (value,) = struct.unpack_from(order + {3: "H", 4: "I"}[kind], data, entry + 8)
                return value if 1 <= value <= 8 else 1
    except (struct.error, KeyError):  # cut off, or of a type that holds no whole number
        pass
    return 1
