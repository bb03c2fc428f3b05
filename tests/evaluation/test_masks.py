"""Mask files: the ids that are stored, colors, marks, and what Pillow would have changed."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

from upernet_zoo import labels
from upernet_zoo.errors import ArgumentError, ImageError
from upernet_zoo.evaluation.masks import load_mask, orientation

RNG = np.random.default_rng(0)


def gray_png(path, ids, bits):
    """A gray PNG with so many bits for each pixel, written without Pillow."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    unpacked = (ids[..., None] >> np.arange(bits)[::-1] & 1).astype(np.uint8).reshape(len(ids), -1)
    rows = b"".join(b"\0" + np.packbits(row).tobytes() for row in unpacked)
    header = struct.pack(">IIBBBBB", ids.shape[1], ids.shape[0], bits, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_gray_pngs_of_few_bits(tmp_path, bits):
    ids = RNG.integers(0, 2**bits, (13, 11), dtype=np.uint8)
    gray_png(tmp_path / "a.png", ids, bits)
    assert np.array_equal(load_mask(tmp_path / "a.png").values, ids)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_palette_pngs_of_few_bits(tmp_path, bits):
    ids = RNG.integers(0, 2**bits, (13, 11), dtype=np.uint8)
    image = Image.fromarray(ids)
    image.putpalette(RNG.integers(0, 256, 768, dtype=np.uint8).tobytes())
    image.save(tmp_path / "a.png", bits=bits)
    assert np.array_equal(load_mask(tmp_path / "a.png").values, ids)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("white_is_zero", [False, True])
def test_tiffs_of_few_bits(tmp_path, bits, white_is_zero):
    """One strip of packed values, as the TIFF 6.0 specification has it."""
    ids = RNG.integers(0, 2**bits, (6, 11), dtype=np.uint8)
    unpacked = (ids[..., None] >> np.arange(bits)[::-1] & 1).astype(np.uint8).reshape(len(ids), -1)
    data = b"".join(np.packbits(row).tobytes() for row in unpacked)
    tags = {256: 11, 257: 6, 258: bits, 259: 1, 262: 0 if white_is_zero else 1, 273: 8, 277: 1, 278: 6, 279: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, value) for tag, value in tags.items())
    (tmp_path / "a.tif").write_bytes(b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4))
    assert np.array_equal(load_mask(tmp_path / "a.tif").values, ids)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".PNG"])
def test_ids_of_16_bits(tmp_path, suffix):
    ids = RNG.choice(np.array([0, 300, 65535], np.uint16), (5, 7))
    Image.fromarray(ids).save(tmp_path / f"a{suffix}")
    assert np.array_equal(load_mask(tmp_path / f"a{suffix}").values, ids)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_colors_map_through_the_palette(tmp_path, mode):
    label_set = labels.get("cityscapes")
    train_ids = RNG.choice([*range(19), 255], (9, 8))
    colors = np.array([*label_set.palette, *[(0, 0, 0)] * 237], np.uint8)[train_ids]
    Image.fromarray(colors).convert(mode).save(tmp_path / "a.png")
    for ids in (labels.TRAIN_IDS, labels.DATASET_IDS):  # a color is a class, whatever ids would be
        assert np.array_equal(load_mask(tmp_path / "a.png").train_ids(label_set, ids), train_ids)
    Image.fromarray(np.full((4, 4, 3), 7, np.uint8)).save(tmp_path / "b.png")
    with pytest.raises(ArgumentError, match=r"no one class of the colors \(7, 7, 7\)"):
        load_mask(tmp_path / "b.png").train_ids(label_set)


def test_the_mark_says_train_ids_whatever_else_is_said(tmp_path):
    label_set, train_ids = labels.get("cityscapes"), np.arange(19, dtype=np.uint8).reshape(1, -1)
    plain, marked = tmp_path / "plain.png", tmp_path / "marked.png"
    Image.fromarray(train_ids).save(plain)
    info = PngImagePlugin.PngInfo()
    info.add_text(labels.IDS_KEY, labels.TRAIN_IDS)
    Image.fromarray(train_ids).save(marked, pnginfo=info)
    for ids in (labels.TRAIN_IDS, labels.DATASET_IDS):
        assert np.array_equal(load_mask(marked).train_ids(label_set, ids), train_ids)
    assert np.array_equal(load_mask(plain).train_ids(label_set, labels.TRAIN_IDS), train_ids)
    assert load_mask(plain).train_ids(label_set, labels.DATASET_IDS)[0, 7] == 0  # road is 7 in Cityscapes' files


@pytest.mark.parametrize("way", range(1, 9))
def test_a_mask_that_is_turned_itself(tmp_path, way):
    ids = RNG.integers(0, 9, (3, 5), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x112] = way
    Image.fromarray(ids).save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as image:
        assert orientation(image) == way
        expected = np.asarray(ImageOps.exif_transpose(image))
    assert np.array_equal(load_mask(tmp_path / "a.png").values, expected)


def test_masks_of_several_pictures_are_refused(tmp_path):
    pages = [Image.fromarray(np.zeros((4, 4), np.uint8))] * 2
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(ImageError, match="holds 2 pictures, and a mask is one"):
        load_mask(tmp_path / "a.tif")
