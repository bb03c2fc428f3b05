"""Backbones of one size (BEiT, MAE): every picture as the published evaluation handles it, or refused with what to do."""

import dataclasses
import functools
import hashlib

import numpy as np
import pytest
import torch
from support.fixture import FAMILY, Fixture

import upernet_zoo as uz
from upernet_zoo.errors import ArgumentError, ImageError
from upernet_zoo.images import preprocess

ONE_SIZE = [name for name in FAMILY if "beit" in name or "mae" in name]


@functools.cache
def load(name):
    return uz.load_checkpoint(Fixture(name).checkpoint)


@pytest.mark.parametrize("name", FAMILY)
def test_every_view_of_a_photo_is_the_published_evaluations(name):
    """Digests of what mmsegmentation's pipelines gave the network, before normalization: the recipe's view, and those of ms+flip."""
    one = Fixture(name)
    photo, recipe = preprocess.load_image(one.photo), load(name).recipe

    def view(ratio):
        return preprocess.resize_uint8(photo, preprocess.target_size(photo.shape[:2], recipe, ratio))

    def digest(pixels):
        return {"shape": list(pixels.shape), "sha256": hashlib.sha256(pixels.tobytes()).hexdigest()}

    expected = one.expected
    assert digest(view(1.0)) == {"shape": expected["resized_rgb_shape"], "sha256": expected["resized_rgb_sha256"]}
    if "ms_flip" in expected:
        found = [digest(pixels) for ratio in expected["ms_flip"]["ratios"] for pixels in (view(ratio), view(ratio)[:, ::-1])]
        assert found == expected["ms_flip"]["views"]
        assert recipe.min_size == expected["ms_flip"]["min_size"]


def in_windows(model, x, crop, stride):
    """Averaged logits of windows, as mmsegmentation's `slide_inference` adds them up."""
    height, width = x.shape[2:]
    total, count = torch.zeros(1, model.config.num_classes, height, width), torch.zeros(1, 1, height, width)
    for row in range(max(height - crop[0] + stride[0] - 1, 0) // stride[0] + 1):
        for column in range(max(width - crop[1] + stride[1] - 1, 0) // stride[1] + 1):
            bottom, right = min(row * stride[0] + crop[0], height), min(column * stride[1] + crop[1], width)
            place = (..., slice(bottom - crop[0], bottom), slice(right - crop[1], right))
            total[place] += model(x[place])
            count[place] += 1
    return total / count


@pytest.mark.parametrize("size", ((30, 90), (90, 30), (5, 7), (131, 129)))
@pytest.mark.parametrize("name", ONE_SIZE)
def test_pictures_of_any_shape_in_windows(name, size, monkeypatch):
    """Wide ones too, which mmsegmentation refuses with a single scale, since a side would be shorter than the window."""
    model, seen = load(name), set()
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    forward = model.backbone.forward
    monkeypatch.setattr(model.backbone, "forward", lambda x: seen.add(tuple(x.shape[2:])) or forward(x))
    found = uz.Segmenter(model, optimize=False).probabilities(picture)
    x = preprocess.prepare(picture, model.recipe)
    assert min(x.shape[2:]) == 128 and max(x.shape[2:]) == int(128 * max(size) / min(size) + 0.5)
    with torch.inference_mode():
        logits = in_windows(model, x, model.recipe.crop, model.recipe.stride)
        expected = torch.nn.functional.interpolate(logits, size, mode="bilinear", align_corners=False).softmax(1)[0]
    assert (found - expected).abs().max() < 1e-5
    assert uz.Segmenter(model, scales=(0.5,), flip=True)(picture).labels.shape == size
    assert seen == {(128, 128)}


@pytest.mark.parametrize("name", ONE_SIZE)
def test_a_size_that_is_not_taken_is_refused_with_what_to_do(name):
    model = load(name)
    title = model.config.backbone.title
    photo = np.zeros((300, 451, 3), np.uint8)
    for optimize in (False, True):
        whole = uz.Segmenter(model, mode="whole", optimize=optimize)
        for run in (whole, whole.probabilities):
            with pytest.raises(ImageError) as caught:
                run(photo)
            assert "451x300 pixels becomes 192x128, and " in str(caught.value) and f"{title} takes 128x128 alone" in str(caught.value)
            assert str(caught.value).endswith("mode='slide', crop=(128, 128), stride=(85, 85).")
        assert whole(photo[:, :300]).labels.shape == (300, 300)  # a square is the one size in whole mode too
    squashed = uz.Recipe(scale=(128, 128), keep_ratio=False)
    assert uz.Segmenter(model, recipe=squashed)(photo).labels.shape == (300, 451)
    with pytest.raises(ArgumentError, match=r"takes windows of 128x128 \(height x width\) alone: crop=\(128, 128\)"):
        uz.Segmenter(model, crop=(96, 96), stride=(64, 64))
    small = uz.Segmenter(model, recipe=dataclasses.replace(model.recipe, min_size=None), scales=(1.0, 0.5))
    with pytest.raises(ImageError, match=r"becomes 96x64, and .* Take larger scales, or a recipe with min_size=128"):
        small(photo)
    with pytest.raises(ArgumentError, match=r"takes pictures of 128x128 pixels only, found 96x128. Segmenter cuts any picture into such"):
        model(torch.zeros(1, 3, 96, 128))
