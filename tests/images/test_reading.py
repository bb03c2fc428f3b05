"""Picture files whose pixels are fine, and whose format, metadata or size is not."""

import io
import os
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from upernet_zoo import memory
from upernet_zoo.errors import ImageError, NotEnoughMemoryError
from upernet_zoo.images import reading
from upernet_zoo.images.preprocess import load_image

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def encoded(format, **options):
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, format, **options)
    return file.getvalue()


def chunk(kind, data, crc=None):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data) if crc is None else crc)


def png_with(*chunks):
    """A PNG with chunks after its header, and one more after its pixels."""
    data = encoded("PNG")
    return data[:33] + b"".join(chunks) + data[33:-12] + b"".join(chunks) + data[-12:]


def exif_with(*tags, order="<"):
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", 8)
    return head + struct.pack(f"{order}H", len(tags)) + b"".join(struct.pack(f"{order}HHI", *tag[:3]) + tag[3] for tag in tags) + bytes(4)


SIX = (0x112, 3, 1, struct.pack("<HH", 6, 0))
RATIONAL_DATE = (0x132, 5, 1, struct.pack("<I", 8))


@pytest.mark.parametrize(
    "exif, expected",
    [
        (exif_with(SIX), 6),
        (exif_with(SIX, RATIONAL_DATE), 6),
        (exif_with((0x112, 3, 1, struct.pack(">HH", 8, 0)), order=">"), 8),
        (exif_with((0x112, 4, 1, struct.pack(">I", 3)), order=">"), 3),
        (b"Exif\0\0" + exif_with(SIX), 6),
        (exif_with((0x112, 3, 1, struct.pack("<HH", 9, 0))), 1),
        (exif_with((0x112, 2, 1, b"6\0\0\0")), 1),
        (exif_with(RATIONAL_DATE), 1),
        (exif_with(SIX)[:12], 1),
        (b"II*\0\xff\xff\xff\xff", 1),
        (b"garbage!", 1),
        (b"", 1),
    ],
)
def test_orientation_is_read_by_itself(exif, expected):
    assert reading.orientation(exif) == expected


def test_orientation_of_no_bytes_ever_fails():
    rng = np.random.default_rng(0)
    for _ in range(2000):
        data = bytearray(exif_with(SIX, RATIONAL_DATE))
        for at in rng.integers(0, len(data), 3):
            data[at] = rng.integers(256)
        assert reading.orientation(bytes(data[: rng.integers(len(data) + 1)])) in range(1, 9)


@pytest.mark.parametrize(
    "chunks",
    [
        [chunk(b"eXIf", b"garbage!")],
        [chunk(b"eXIf", b"II*\0\xff\xff\xff\xff")],
        [chunk(b"tEXt", b"Comment\0hello", crc=1)],
        [chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(5_000_000)))],
        [chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(bytes(5_000_000)))],
        [chunk(b"iCCP", b"profile\0\0" + zlib.compress(bytes(5_000_000)))],
        [chunk(b"pHYs", b"")],
        [chunk(b"cHRM", b"abc"), chunk(b"gAMA", b"")],
        [chunk(b"tEXt", f"Raw profile type exif\0\nexif\n      8\n{'zz' * 8}\n".encode())],
    ],
)
def test_metadata_never_costs_a_png(tmp_path, chunks):
    (tmp_path / "a.png").write_bytes(png_with(*chunks))
    assert np.array_equal(load_image(tmp_path / "a.png"), PIXELS)


def test_a_png_keeps_its_orientation_beside_broken_text(tmp_path):
    (tmp_path / "a.png").write_bytes(png_with(chunk(b"eXIf", exif_with(SIX)), chunk(b"tEXt", b"Comment\0hello", crc=1)))
    assert np.array_equal(load_image(tmp_path / "a.png"), np.rot90(PIXELS, -1))


@pytest.mark.parametrize("exif", [exif_with(SIX, RATIONAL_DATE), exif_with(SIX)[:-9], b"garbage!", exif_with((0x8769, 4, 1, b"\xff" * 4))])
@pytest.mark.parametrize("format", ["JPEG", "WEBP"])
def test_metadata_never_costs_a_jpeg_or_webp(tmp_path, format, exif):
    path = tmp_path / "a"
    path.write_bytes(encoded(format))
    plain = load_image(path)
    if format == "JPEG":
        data = path.read_bytes()
        path.write_bytes(data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 8) + b"Exif\0\0" + exif + data[2:])
    else:
        path.write_bytes(encoded(format, exif=exif))
    assert np.array_equal(load_image(path), np.rot90(plain, -1) if reading.orientation(exif) == 6 else plain)


def tiff_with(exif_offset, compression):
    """A gray TIFF on its side, with the offset of its EXIF directory as given."""
    gray = PIXELS[..., 0].tobytes()
    data = zlib.compress(gray) if compression == 8 else gray
    tags = [(256, 60), (257, 40), (258, 8), (259, compression), (262, 1), (273, 8), (274, 6), (277, 1), (278, 40), (279, len(data))]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in [*tags, (0x8769, exif_offset)])
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", 11) + entries + bytes(4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("compression", [1, 8])
def test_metadata_never_costs_a_tiff(tmp_path, compression):
    for offset in (3, 8, 100, 1 << 20, (1 << 32) - 1):
        (tmp_path / "a.tif").write_bytes(tiff_with(offset, compression))
        assert np.array_equal(load_image(tmp_path / "a.tif")[..., 1], np.rot90(PIXELS[..., 0], -1))


def test_only_the_formats_that_the_documentation_names_are_opened(tmp_path):
    """PostScript would be run by another program, whatever its file is called."""
    ran = tmp_path / "ran"
    (tmp_path / "gs").write_text(f"#!/bin/sh\necho $@ >> {ran}\necho 10.0\n")
    (tmp_path / "gs").chmod(0o755)
    path = tmp_path / "holiday.jpg"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n0 0 moveto\n%%EOF\n")
    code = f"from upernet_zoo.images import preprocess\npreprocess.load_image({str(path)!r})"
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert "ImageError" in done.stderr and "PNG, JPEG, WebP, TIFF, BMP, GIF, PPM or PGM" in done.stderr and not ran.exists()
    for format in ("EPS", "PCX", "TGA", "ICO", "SGI", "IM", "XBM"):
        picture = Image.fromarray(PIXELS).convert("1" if format == "XBM" else "RGB")
        picture.save(tmp_path / "a.png", format)
        with pytest.raises(ImageError, match="a.png: not a picture in a format that is read"):
            load_image(tmp_path / "a.png")
    for format in reading.FORMATS:
        Image.fromarray(PIXELS).save(tmp_path / "a.png", format)
        assert load_image(tmp_path / "a.png").shape == PIXELS.shape


@pytest.mark.parametrize("format", ["BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP"])
def test_what_is_cut_off_in_its_header_is_not_called_another_format(tmp_path, format):
    (tmp_path / "a").write_bytes(encoded(format)[:14])
    with pytest.raises(ImageError, match=f"(?i)a: (a {format} file that is|the picture is) damaged or cut off"):
        load_image(tmp_path / "a")


def test_several_pictures_in_a_jpeg_give_the_first(tmp_path):
    first = Image.fromarray(PIXELS)
    first.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[first.rotate(180)], quality=95)
    first.save(tmp_path / "b.jpg", quality=95)
    assert np.array_equal(load_image(tmp_path / "a.jpg"), load_image(tmp_path / "b.jpg"))


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com/a.jpg",
        "HTTP://example.com/a.jpg",
        Path("https://example.com/a.jpg"),
        "s3://bucket/a.jpg",
        "data:image/png;base64,AA",
    ],
)
def test_a_url_is_refused_as_a_url(url):
    with pytest.raises(ImageError, match="is a URL.*Download it"):
        load_image(url)


def test_what_is_no_regular_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    for path, kind in ((tmp_path / "a.png", "a device or a pipe"), (tmp_path, "a folder")):
        with pytest.raises(ImageError, match=f"it is {kind}"):
            load_image(path)


@pytest.mark.parametrize(
    "source, message",
    [
        (
            np.ones((4, 5, 3), np.float32),
            r"float32 of 3 channels with values from 1 to 1\. Convert them first: \(array \* 255\)\.round\(\)",
        ),
        (np.full((4, 5, 3), 200.0), r"float64 .* from 200 to 200\. Convert them first: array\.round\(\)\.astype\(np\.uint8\)"),
        (np.full((4, 5), -2.0, np.float16), r"float16 of 1 channels.* look normalized.*\(array \* std \+ mean\)\.clip\(0, 255\)"),
        (np.full((4, 5, 3), np.nan), "NaN or infinity"),
        (torch.rand(3, 4, 5), r"torch\.float32 of 3 channels.*\(tensor \* 255\)\.round\(\)\.to\(torch\.uint8\)"),
        (torch.rand(3, 4, 5, dtype=torch.bfloat16), r"torch\.bfloat16 of 3 channels"),
        (np.full((4, 5, 3), 40000, np.uint16), r"uint16 of 3 channels.*\(array >> 8\)\.astype\(np\.uint8\) for values of 16 bits"),
        (np.full((4, 5, 4), 7, np.uint16), r"uint16 of 4 channels.*first: array\.astype\(np\.uint8\)"),
        (np.zeros((4, 5), bool), r"bool of 1 channels.*array\.astype\(np\.uint8\) \* 255"),
        (np.zeros((3, 40, 50), np.uint8), r"\(3, 40, 50\): channels first\. Pass array\.transpose\(1, 2, 0\)"),
        (np.zeros((40, 50, 6), np.uint8), r"\(40, 50, 6\): 6 channels\. Pass the three that are red, green and blue: array\[\.\.\., \["),
        (np.zeros((12, 40, 50), np.uint16), r"12 channels.*array\[\[R, G, B\]\]\.transpose\(1, 2, 0\)"),
        (np.zeros((8, 40, 50, 3), np.uint8), "8 pictures. Pass one at a time, or all to Segmenter.map"),
        ([PIXELS, PIXELS], r"from list\. For several pictures: a call for each, or Segmenter\.map\(pictures\)"),
        ((p for p in ()), r"from generator\. For several pictures: a call for each, or Segmenter\.map"),
        (b"\x89PNG", r"from bytes\. .*PIL\.Image\.open\(io\.BytesIO\(data\)\)"),
        (None, "from NoneType. Give a path"),
    ],
)
def test_what_is_no_picture_is_refused_with_the_way_out(source, message):
    with pytest.raises(ImageError, match=message):
        load_image(source)


def test_the_conversions_that_messages_spell_out_give_the_picture():
    array = PIXELS / 255
    assert np.array_equal(load_image((array * 255).round().astype(np.uint8)), PIXELS)
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    assert np.array_equal(load_image((tensor * 255).round().to(torch.uint8)), PIXELS)
    array = PIXELS.transpose(2, 0, 1)
    assert np.array_equal(load_image(array.transpose(1, 2, 0)), PIXELS)
    array = PIXELS.astype(np.uint16) << 8
    assert np.array_equal(load_image((array >> 8).astype(np.uint8)), PIXELS)


def test_a_picture_too_large_for_the_memory_is_not_called_damaged(tmp_path, monkeypatch):
    path = tmp_path / "large.png"
    Image.new("1", (3000, 4000)).save(path)
    monkeypatch.setattr(memory, "available", lambda device: 1_000_000)
    with pytest.raises(NotEnoughMemoryError, match="large.png: A picture of 3000x4000 pixels needs about 120 MB .* 1 MB are free"):
        load_image(path)
    monkeypatch.setattr(memory, "available", lambda device: None)
    monkeypatch.setattr(reading, "upright", lambda image: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(NotEnoughMemoryError, match="large.png: the memory of this process ran out"):
        load_image(path)


WITH_LIMIT = """
import resource, sys
from upernet_zoo import memory
from upernet_zoo.errors import NotEnoughMemoryError
from upernet_zoo.images.preprocess import load_image
limit, name = getattr(resource, sys.argv[1]), sys.argv[2]
used = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name)) * 1024
free = memory.available(None)
resource.setrlimit(limit, (used + 200_000_000, resource.RLIM_INFINITY))
assert free > 250_000_000 > memory.available(None) > 150_000_000, (free, memory.available(None))
assert load_image(sys.argv[3]).shape == (40, 60, 3)
try:
    load_image(sys.argv[4])
except NotEnoughMemoryError as error:
    print(error)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists() or shutil.which("true") is None, reason="Linux's limits")
@pytest.mark.parametrize("limit, name", [("RLIMIT_AS", "VmSize"), ("RLIMIT_DATA", "VmData")])
def test_limits_of_the_process_count(tmp_path, limit, name):
    Image.fromarray(PIXELS).save(tmp_path / "small.png")
    Image.new("L", (6000, 6000)).save(tmp_path / "large.png")
    arguments = [sys.executable, "-c", WITH_LIMIT, limit, name, str(tmp_path / "small.png"), str(tmp_path / "large.png")]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "large.png: A picture of 6000x6000 pixels needs about 360 MB" in done.stdout


def test_allocations_that_fail_are_out_of_memory_and_other_errors_are_not():
    with pytest.raises(NotEnoughMemoryError, match="it: the memory of this process ran out"), memory.refused("it"):
        torch.empty(1 << 60)
    with pytest.raises(NotEnoughMemoryError), memory.refused("it"):
        np.empty(1 << 55)
    with pytest.raises(RuntimeError, match="another"), memory.refused("it"):
        raise RuntimeError("another")
    with pytest.raises(FileNotFoundError), memory.refused("it"):
        Path("/nowhere/at/all").read_bytes()
