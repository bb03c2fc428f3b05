"""Preprocessing against OpenCV, value for value, and against the pictures that mmsegmentation itself resized (fixtures)."""

import hashlib
import json
import math
import warnings

import cv2
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from support.fixture import FIXTURES

from upernet_zoo.config import Recipe
from upernet_zoo.errors import ArgumentError, ImageError, MissingFileError
from upernet_zoo.images.preprocess import fit, load_image, prepare, resize_uint8

MODELS = sorted(path.parent.name for path in FIXTURES.glob("*/expected.json"))
PHOTO = FIXTURES / "photos" / "chelsea.png"


def noise(shape, seed=0):
    """Random values, half of the time only black and white, where rounding mistakes are largest."""
    values = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return np.where(values > 127, 255, 0).astype(np.uint8) if seed % 2 else values


def opencv_resize(image, size):
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)


# --- resize -----------------------------------------------------------------------------------------------------------------------

side = st.one_of(st.integers(1, 8), st.integers(1, 300))


@settings(max_examples=200)
@given(side, side, side, side, st.sampled_from([(), (1,), (3,)]), st.integers(0, 99))
@example(1, 1, 1, 1, (3,), 0)
@example(1, 300, 7, 2, (3,), 1)
@example(300, 1, 299, 1, (), 2)
def test_resize_equals_opencv(height, width, new_height, new_width, channels, seed):
    image = noise((height, width, *channels), seed)
    result = resize_uint8(image, (new_height, new_width))
    assert result.dtype == np.uint8 and result.shape == (new_height, new_width, *channels)
    assert np.array_equal(result.reshape(result.shape[:2] + channels), opencv_resize(image, (new_height, new_width)).reshape(result.shape))


@settings(max_examples=40)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(2, 5), st.sampled_from([(), (3,)]), st.integers(0, 99))
def test_exact_reductions_equal_opencv(height, width, factor, channels, seed):
    image = noise((height * factor, width * factor, *channels), seed)
    assert np.array_equal(resize_uint8(image, (height, width)), opencv_resize(image, (height, width)))
    assert np.array_equal(resize_uint8(image, (height, width * factor)), opencv_resize(image, (height, width * factor)))


@pytest.mark.parametrize("size", [(1024, 2048), (769, 1025), (3, 6000), (3000, 2)])
def test_large_sizes_equal_opencv(size):
    image = noise((683, 1024, 3))
    assert np.array_equal(resize_uint8(image, size), opencv_resize(image, size))


def test_resize_takes_views_and_gives_memory_of_its_own():
    image = noise((40, 60, 3))
    flipped = image[:, ::-1, ::-1]
    assert np.array_equal(resize_uint8(flipped, (23, 31)), opencv_resize(np.ascontiguousarray(flipped), (23, 31)))
    same = resize_uint8(image, (40, 60))
    assert np.array_equal(same, image) and not np.shares_memory(same, image)


@pytest.mark.parametrize(
    "image, size, message",
    [
        (np.zeros((4, 4), np.float32), (2, 2), "takes uint8 .* found float32"),
        (np.zeros(4, np.uint8), (2, 2), r"found uint8 \(4,\)"),
        (np.zeros((0, 4, 3), np.uint8), (2, 2), r"found uint8 \(0, 4, 3\)"),
        (np.zeros((4, 4), np.uint8), (0, 2), r"at least 1 x 1, found \(0, 2\)"),
    ],
)
def test_resize_refuses_what_it_cannot_do(image, size, message):
    with pytest.raises(ArgumentError, match=message):
        resize_uint8(image, size)


# --- fit and prepare --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
def test_resized_picture_is_the_one_of_mmsegmentation(model):
    expected = json.loads((FIXTURES / model / "expected.json").read_text())
    image = load_image(FIXTURES / expected["photo"])
    resized = resize_uint8(image, fit(image.shape[:2], expected["config"]["img_scale"]))
    assert list(resized.shape) == expected["resized_rgb_shape"]
    assert np.array_equal(resized[:64], load_image(FIXTURES / model / "resized_rgb_top64.png"))
    assert hashlib.sha256(resized.tobytes()).hexdigest() == expected["resized_rgb_sha256"]


@settings(max_examples=200)
@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 3000), st.integers(1, 3000))
def test_fit_stays_within_the_scale_and_keeps_the_ratio(height, width, one, other):
    new = fit((height, width), (one, other))
    assert new == fit((height, width), (other, one)) == fit((width, height), (one, other))[::-1]
    assert min(new) >= 1 and max(new) <= max(one, other) and min(new) <= min(one, other)
    touches = max(new) == max(one, other) or min(new) == min(one, other)
    assert touches
    factor = min(max(one, other) / max(height, width), min(one, other) / min(height, width))
    assert all(abs(a - b * factor) <= 0.5 + 1e-9 or a == 1 for a, b in zip(new, (height, width)))


def mmcv_input(image, long, short, mean, std):
    """`imrescale` and `imnormalize` of mmcv 1.x on OpenCV, line by line (image/geometric.py, image/photometric.py)."""
    height, width = image.shape[:2]
    factor = min(long / max(height, width), short / min(height, width))
    image = cv2.resize(image, (int(width * factor + 0.5), int(height * factor + 0.5)), interpolation=cv2.INTER_LINEAR)
    image = image.copy().astype(np.float32)
    mean, std = np.array(mean, np.float32), np.array(std, np.float32)
    cv2.subtract(image, np.float64(mean.reshape(1, -1)), image)
    cv2.multiply(image, 1 / np.float64(std.reshape(1, -1)), image)
    return image.transpose(2, 0, 1)[None]


@pytest.mark.parametrize("ratio", [0.5, 0.75, 1.0, 1.25, 1.5, 1.75])
@pytest.mark.parametrize("scale", [(512, 128), (257, 129)])
def test_prepare_equals_mmcv_in_every_bit(scale, ratio):
    image = load_image(PHOTO)
    recipe = Recipe(scale)
    result = prepare(image, recipe, ratio)
    assert result.dtype == torch.float32 and result.is_contiguous() and result.device.type == "cpu"
    expected = mmcv_input(image, int(scale[0] * ratio), int(scale[1] * ratio), recipe.mean, recipe.std)
    assert np.array_equal(result.numpy(), expected)


def test_prepare_takes_other_channels_and_statistics():
    image = noise((50, 70, 3), seed=2)
    recipe = Recipe((90, 40), mean=(10.5, 20.25, 30.1), std=(0.1, 77.7, 1000))
    assert np.array_equal(prepare(image, recipe).numpy(), mmcv_input(image, 90, 40, recipe.mean, recipe.std))
    gray = Recipe((90, 40), mean=(99.9,), std=(3.3,))
    assert np.array_equal(prepare(image[..., :1], gray)[0, 0], mmcv_input(image, 90, 40, [99.9] * 3, [3.3] * 3)[0, 0])


@pytest.mark.parametrize(
    "image, ratio, message",
    [
        (np.zeros((4, 4), np.uint8), 1.0, r"uint8 array of \(H, W, 3\), found uint8 \(4, 4\)"),
        (np.zeros((4, 4, 4), np.uint8), 1.0, r"found uint8 \(4, 4, 4\)"),
        (np.zeros((4, 4, 3)), 1.0, r"found float64 \(4, 4, 3\)"),
        ("photo.png", 1.0, "found str. load_image makes one"),
        (np.zeros((4, 4, 3), np.uint8), 0.0, "Ratio 0.0 leaves no usable size of the scale"),
        (np.zeros((4, 4, 3), np.uint8), -1.0, "Ratio -1.0"),
        (np.zeros((4, 4, 3), np.uint8), math.nan, "Ratio nan"),
        (np.zeros((4, 4, 3), np.uint8), math.inf, "Ratio inf"),
    ],
)
def test_prepare_refuses_what_it_cannot_use(image, ratio, message):
    with pytest.raises(ArgumentError, match=message):
        prepare(image, Recipe((64, 32)), ratio)


# --- load_image -------------------------------------------------------------------------------------------------------------------


def opencv_read(path):
    """What mmcv's `imread` gives (flag "color"), as RGB."""
    return cv2.imread(str(path), cv2.IMREAD_COLOR)[..., ::-1]


def photo():
    return Image.open(PHOTO).convert("RGB").resize((60, 40))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_as_opencv(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.jpg"
    photo().save(path, exif=exif, quality=95)
    result = load_image(path)
    assert result.shape == ((40, 60, 3) if orientation < 5 else (60, 40, 3))
    assert np.array_equal(result, opencv_read(path))
    with Image.open(path) as image:
        assert np.array_equal(load_image(image), result)


FILES = {
    "rgb.png": photo,
    "rgba.png": lambda: Image.fromarray(noise((40, 60, 4))),
    "gray.png": lambda: photo().convert("L"),
    "gray_alpha.png": lambda: Image.fromarray(noise((40, 60, 2)), "LA"),
    "gray16.png": lambda: Image.fromarray(np.arange(0, 65536, 27, dtype=np.uint16).reshape(-1, 4)),
    "palette.png": lambda: photo().quantize(31),
    "one_bit.png": lambda: photo().convert("1"),
    "rgb.jpg": photo,
    "gray.jpg": lambda: photo().convert("L"),
    "rgb.bmp": photo,
    "rgb.tif": photo,
    "gray16.tif": lambda: Image.fromarray(np.arange(0, 65536, 27, dtype=np.uint16).reshape(-1, 4)),
}


@pytest.mark.parametrize("name", FILES)
def test_files_as_opencv(tmp_path, name):
    path = tmp_path / name
    FILES[name]().save(path)
    result = load_image(path)
    assert result.dtype == np.uint8 and result.flags.c_contiguous
    assert np.array_equal(result, opencv_read(path))
    assert np.array_equal(load_image(str(path)), result)
    with Image.open(path) as image:
        assert np.array_equal(load_image(image), result)


def test_sixteen_bit_color_as_opencv(tmp_path):
    path = tmp_path / "color16.png"
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 65536, (20, 30, 3)).astype(np.uint16))
    assert np.array_equal(load_image(path), opencv_read(path))


def test_cmyk_is_near_the_picture_it_was_made_from(tmp_path):
    path = tmp_path / "cmyk.jpg"
    photo().convert("CMYK").save(path, quality=100, subsampling=0)
    difference = load_image(path).astype(int) - np.asarray(photo(), int)
    assert np.abs(difference).mean() < 2
    assert np.abs(load_image(path).astype(int) - opencv_read(path)).max() <= 2


def test_transparent_palette_keeps_the_colors_without_a_warning(tmp_path):
    path = tmp_path / "transparent.png"
    photo().quantize(16).save(path, transparency=bytes(range(16)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = load_image(path)
    assert np.array_equal(result, np.asarray(photo().quantize(16).convert("RGB")))


@pytest.mark.parametrize(
    "mode", ["1", "L", "P", "LA", "La", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "I", "I;16"]
)
def test_every_mode_that_pillow_has(mode):
    result = load_image(Image.new(mode, (3, 2)))
    assert result.shape == (2, 3, 3) and result.dtype == np.uint8


def test_arrays_and_tensors():
    image = noise((5, 7, 3))
    gray = image[..., 0]
    alpha = np.dstack([image, gray])
    assert np.array_equal(load_image(image), image) and np.shares_memory(load_image(image), image)
    for same in (alpha, torch.from_numpy(image), torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(alpha).permute(2, 0, 1)):
        result = load_image(same)
        assert np.array_equal(result, image) and result.flags.c_contiguous
    for same in (gray, gray[..., None], torch.from_numpy(gray.copy()), torch.from_numpy(gray.copy())[None]):
        assert np.array_equal(load_image(same), np.dstack([gray] * 3))


@pytest.mark.parametrize(
    "source, message",
    [
        (np.zeros((4, 4, 3), np.float32), "pixels must be uint8 from 0 to 255, found float32"),
        (torch.zeros(3, 4, 4), "found torch.float32"),
        (torch.zeros(3, 4, 4, dtype=torch.bfloat16), "found torch.bfloat16"),
        (np.zeros((4, 4, 2), np.uint8), r"found shape \(4, 4, 2\)"),
        (np.zeros((1, 4, 4, 3), np.uint8), r"found shape \(1, 4, 4, 3\)"),
        (np.zeros((0, 4, 3), np.uint8), r"found shape \(0, 4, 3\)"),
        (Image.fromarray(np.zeros((4, 4), np.float32)), "floating-point pixels"),
        (Image.fromarray(np.full((4, 4), 70000, np.int32)), "values outside 0 to 65535"),
        (7, "Cannot take a picture from int"),
        ([1, 2], "Cannot take a picture from list"),
    ],
)
def test_objects_that_are_no_picture(source, message):
    with pytest.raises(ImageError, match=message):
        load_image(source)


def test_files_that_are_no_picture(tmp_path):
    missing = tmp_path / "missing.png"
    with pytest.raises(MissingFileError, match="No picture at .*missing.png"):
        load_image(missing)
    contents = {"empty.png": (b"", "the file is empty"), "page.jpg": (b"<html>Not found</html>", "not a picture in a format")}
    for name, (content, message) in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ImageError, match=f"{name}: {message}"):
            load_image(tmp_path / name)
    with pytest.raises(ImageError, match="cannot be opened as a picture: .*Give the path of one readable file"):
        load_image(tmp_path)
    with pytest.raises(ImageError, match="cannot be opened"):
        load_image("nul\0.png")


@pytest.mark.filterwarnings("ignore:Tag data larger than file")
@pytest.mark.parametrize("name", ["cut.png", "cut.jpg", "cut.bmp", "cut.gif", "cut.tif", "cut.webp"])
def test_a_picture_that_is_cut_off_is_never_half_a_picture(tmp_path, name):
    path = tmp_path / name
    photo().save(path)
    whole, data = load_image(path), path.read_bytes()
    refused = 0
    for length in np.linspace(0, len(data) - 1, 25).astype(int):
        path.write_bytes(data[:length])
        try:
            result = load_image(path)
        except ImageError as error:
            assert name in str(error)
            refused += 1
        else:  # only an end marker or an index of metadata is missing
            assert np.array_equal(result, whole)
    assert refused >= 20


def test_decompression_bomb(tmp_path, monkeypatch):
    path = tmp_path / "bomb.png"
    photo().save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ImageError, match="bomb.png: .*decompression bomb.*MAX_IMAGE_PIXELS"):
        load_image(path)
