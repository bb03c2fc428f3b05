"""Folders of pictures as people have them: all formats and modes, and among them some that cannot be segmented."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

BAD = ("bad_pixels", "bomb", "cut_off_jpg", "cut_off_png", "empty", "float", "long_name", "page", "postscript", "too_large")


def _encoded(picture, format, **options):
    content = io.BytesIO()
    picture.save(content, format, **options)
    return content.getvalue()


def _chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _empty_png(width, height):
    """A PNG of one bit per pixel, black; a hundred million pixels take twenty kilobytes."""
    packed = zlib.compressobj(9)
    line = bytes(1 + -(-width // 8))
    rows = b"".join(packed.compress(line) for _ in range(height)) + packed.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", rows) + _chunk(b"IEND", b"")


def _good(number):
    """(ending, content) of a picture: its size, format, mode and metadata change with its number."""
    rng = np.random.default_rng(number)
    height, width = (int(side) for side in rng.integers(40, 160, 2))
    picture = Image.fromarray(rng.integers(0, 256, (-(-height // 8), -(-width // 8), 3), dtype=np.uint8)).resize((width, height))
    exif = Image.Exif()
    exif[0x0112] = number % 8 + 1
    kinds = (
        lambda: (".jpg", _encoded(picture, "JPEG", exif=exif)),
        lambda: (".png", _encoded(picture.convert("RGBA"), "PNG")),
        lambda: (".webp", _encoded(picture, "WEBP")),
        lambda: (".tif", _encoded(picture, "TIFF")),
        lambda: (".bmp", _encoded(picture, "BMP")),
        lambda: (".gif", _encoded(picture, "GIF")),
        lambda: (".ppm", _encoded(picture, "PPM")),
        lambda: (".JPG", _encoded(picture.convert("CMYK"), "JPEG")),
        lambda: (".png", _encoded(picture.convert("L"), "PNG")),
        lambda: (".png", _encoded(picture.quantize(16), "PNG")),
        lambda: (".png", _encoded(picture, "PNG", exif=b"garbage!")),
        lambda: (".jpeg", _encoded(picture, "JPEG", exif=b"Exif\0\0garbage!")),
        lambda: (".png", _encoded(Image.fromarray(np.array(picture.convert("L")).astype(np.uint16) << 8), "PNG")),
    )
    return kinds[number % len(kinds)]()


def _bad(kind, large):
    """(ending, content) of a picture that cannot be segmented."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8))
    png = _encoded(picture, "PNG")
    spoilt = bytearray(png)
    spoilt[len(png) // 2] ^= 255
    contents = {
        "bad_pixels": (".png", bytes(spoilt)),
        "bomb": (".png", b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)) + png[33:]),
        "cut_off_jpg": (".jpg", _encoded(picture, "JPEG")[:900]),
        "cut_off_png": (".png", png[: len(png) // 2]),
        "empty": (".png", b""),
        "float": (".tif", _encoded(Image.fromarray(np.zeros((8, 8), np.float32)), "TIFF")),
        "long_name": (".png", png),
        "page": (".jpg", b"<!DOCTYPE html><title>404 Not Found</title>"),
        "postscript": (".jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n0 0 moveto\n%%EOF\n"),
    }
    return contents[kind] if kind != "too_large" else (".png", _empty_png(large, large))


def write(folder, good, bad_of_each, large=13000):
    """Write `good` pictures and so many of each kind of bad ones, evenly mixed by name.

    Args:
        large: side in pixels of the picture that is too large for the memory.

    Returns:
        The bad ones' file names.
    """
    folder.mkdir(parents=True, exist_ok=True)
    bad = [kind for _ in range(bad_of_each) for kind in BAD]
    places = {round((i + 0.5) * (good + len(bad)) / len(bad)): kind for i, kind in enumerate(bad)}
    names = []
    for number in range(good + len(bad)):
        kind = places.get(number)
        suffix, content = _good(number) if kind is None else _bad(kind, large)
        stem = f"{number:04d}" + ("" if kind is None else f"_{kind}")
        stem += "x" * (250 - len(stem)) if kind == "long_name" else ""
        (folder / (stem + suffix)).write_bytes(content)
        if kind is not None:
            names.append(stem + suffix)
    return names
