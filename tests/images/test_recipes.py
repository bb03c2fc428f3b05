"""Recipes that resize in other ways than the published ones, and pad."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.fixture import FIXTURES
from support.lively import lively
from support.models import small_config

import upernet_zoo as uz
from upernet_zoo.description import Description
from upernet_zoo.errors import ArgumentError, ConfigError
from upernet_zoo.hub import card
from upernet_zoo.images import preprocess
from upernet_zoo.interop import export
from upernet_zoo.training import TrainingSettings
from upernet_zoo.training.augment import augment

PHOTO = preprocess.load_image(FIXTURES / "photos" / "chelsea.png")
EDGE = dict(scale=(200, 64), short_edge=True)
NARROW_EDGE = dict(scale=(77, 50), short_edge=True)
STRETCH = dict(scale=(70, 90), keep_ratio=False)
OWN = dict(scale=None)
# (picture, recipe, ratio) -> size that the transforms of mmsegmentation 1.4.2 (`ResizeShortestEdge`, `Resize` with keep_ratio=False or with
# scale_factor) and 0.30 (`Resize` with min_size) give, (height, width)
SIZES = [
    *(((300, 451), recipe, 1, size) for recipe, size in ((EDGE, (64, 96)), (NARROW_EDGE, (50, 75)), (STRETCH, (90, 70)))),
    *(((100, 731), recipe, 1, size) for recipe, size in ((EDGE, (27, 197)), (NARROW_EDGE, (11, 77)), (STRETCH, (90, 70)))),
    *(((33, 500), recipe, 1, size) for recipe, size in ((EDGE, (13, 197)), (NARROW_EDGE, (5, 76)), (STRETCH, (90, 70)))),
    *(((999, 77), recipe, 1, size) for recipe, size in ((EDGE, (195, 15)), (NARROW_EDGE, (77, 6)), (STRETCH, (90, 70)))),
    *(((61, 62), recipe, 1, size) for recipe, size in ((EDGE, (64, 65)), (NARROW_EDGE, (50, 51)), (STRETCH, (90, 70)))),
    *(((300, 451), OWN, ratio, size) for ratio, size in ((1, (300, 451)), (1.75, (525, 789)), (0.5, (150, 226)))),
    *(((100, 731), OWN, ratio, size) for ratio, size in ((1, (100, 731)), (1.75, (175, 1279)), (0.5, (50, 366)))),
    *(((61, 62), OWN, ratio, size) for ratio, size in ((1, (61, 62)), (1.75, (107, 109)), (0.5, (31, 31)))),
    *(((300, 451), dict(scale=(96, 64), min_size=least), 1, size) for least, size in ((80, (80, 120)), (40, (64, 96)))),
    *(((999, 77), dict(scale=(96, 64), min_size=least), 1, size) for least, size in ((80, (1038, 80)), (40, (830, 64)))),
    ((33, 500), dict(scale=(96, 64), min_size=64), 0.5, (64, 970)),
]


@pytest.mark.parametrize("picture, recipe, ratio, size", SIZES)
def test_pictures_get_the_size_that_mmsegmentation_gives_them(picture, recipe, ratio, size):
    recipe = uz.Recipe(**recipe)
    assert preprocess.target_size(picture, recipe, ratio) == size
    assert preprocess.prepare(np.zeros((*picture, 3), np.uint8), recipe, ratio).shape[2:] == size


def test_padding_is_zeros_after_the_normalized_picture():
    plain, padded = (preprocess.prepare(PHOTO, uz.Recipe(scale=(96, 61), size_divisor=divisor)) for divisor in (1, 32))
    height, width = plain.shape[2:]
    assert padded.shape[2:] == (64, 96) and (height, width) == (61, 92)
    assert torch.equal(padded[..., :height, :width], plain)
    assert not padded[..., height:, :].any() and not padded[..., width:].any()


@torch.no_grad()
def by_hand(model, picture, ratio, flip):
    """Softmax as mmsegmentation computes it: pad, network, windows, off with the padding, resize, softmax, flip back."""
    recipe, align_corners = model.recipe, model.config.align_corners
    size = preprocess.target_size(picture.shape[:2], recipe, ratio)
    x = preprocess.prepare(picture, dataclasses.replace(recipe, size_divisor=1), ratio)
    x = F.pad(x.flip(3) if flip else x, (0, -size[1] % recipe.size_divisor, 0, -size[0] % recipe.size_divisor))
    if recipe.mode == "whole":
        logits = model(x)
    else:
        total, count = torch.zeros(1, model.config.num_classes, *x.shape[2:]), torch.zeros(x.shape[2:])
        places = [(max(length - crop, 0), stride) for length, crop, stride in zip(x.shape[2:], recipe.crop, recipe.stride)]
        axes = [[min(at, last) for at in range(0, last + stride, stride)] for last, stride in places]
        for top, left in itertools.product(*axes):
            window = np.s_[top : top + recipe.crop[0], left : left + recipe.crop[1]]
            total[:, :, *window] += model(x[:, :, *window])
            count[window] += 1
        logits = total / count
    logits = F.interpolate(logits[..., : size[0], : size[1]], picture.shape[:2], mode="bilinear", align_corners=align_corners)
    return logits.softmax(1)[0].flip(2) if flip else logits.softmax(1)[0]


SLIDE = dict(mode="slide", crop=(48, 60), stride=(30, 40))


@pytest.mark.parametrize("align_corners", (False, True))
@pytest.mark.parametrize(
    "options",
    (dict(scale=(100, 70)), dict(scale=(100, 70), **SLIDE), dict(scale=(75, 90), keep_ratio=False), dict(scale=(100, 60), short_edge=True)),
    ids=("whole", "slide", "stretched", "short edge"),
)
@pytest.mark.parametrize("size_divisor", (1, 32))
def test_every_recipe_in_several_views_is_what_mmsegmentation_computes(options, size_divisor, align_corners):
    recipe = uz.Recipe(size_divisor=size_divisor, **options)
    model = lively(small_config(align_corners=align_corners), recipe)
    picture = PHOTO[:150, :217]
    segmenter = uz.Segmenter(model, optimize=False, scales=(0.75, 1.0), flip=True)
    expected = torch.stack([by_hand(model, picture, ratio, flip) for ratio in (0.75, 1.0) for flip in (False, True)]).mean(0)
    torch.testing.assert_close(segmenter.probabilities(picture), expected, rtol=0, atol=1e-5)
    assert np.mean(segmenter(picture).labels == expected.argmax(0).numpy()) > 0.9999


def test_the_published_recipes_say_no_more_than_before():
    for name in uz.list_models():
        data = uz.model_info(name).recipe.to_dict()
        assert data.keys() <= {"scale", "mode", "crop", "stride", "mean", "std", "min_size"} and data.keys() >= {
            "scale",
            "mode",
            "mean",
            "std",
        }


RECIPES = (
    uz.Recipe(**OWN),
    uz.Recipe(**EDGE),
    uz.Recipe(**STRETCH, size_divisor=32),
    uz.Recipe(scale=(96, 64), min_size=80),
    uz.Recipe(scale=(96, 64), unsupported=("CLAHE",)),
)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.resizing)
def test_a_recipe_comes_back_from_json(recipe):
    assert uz.Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


@pytest.mark.parametrize(
    "fields, message",
    (
        (dict(scale=None, keep_ratio=False), "keep_ratio goes with a scale"),
        (dict(scale=None, min_size=3), "min_size goes with a scale"),
        (dict(scale=(9, 9), keep_ratio=False, short_edge=True), "keep_ratio and short_edge are different ways"),
        (dict(scale=(9, 9), size_divisor=0), "'size_divisor' must be a whole number from 1"),
        (dict(scale=(9, 9), keep_ratio=1), "'keep_ratio' must be true or false"),
        (dict(scale=(9, 9), unsupported="x"), "'unsupported' must be a list of texts"),
        (dict(scale=480), "'scale' must be two whole numbers"),
    ),
)
def test_a_recipe_that_cannot_be_is_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        uz.Recipe(**fields)


def test_a_scale_is_no_default_of_an_index():
    with pytest.raises(ConfigError, match="key 'scale' is missing"):
        uz.Recipe.from_dict({"mode": "whole"})


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.resizing)
def test_who_cannot_follow_a_recipe_refuses_it_by_name(recipe, tmp_path):
    model = lively(small_config(), recipe)
    kind, what = (ConfigError, "CLAHE") if recipe.unsupported else (ArgumentError, recipe.resizing.split(" (")[0])
    with pytest.raises(kind, match=what):
        export.to_torch(model, tmp_path / "m.pt2", labels=True)
    assert not list(tmp_path.iterdir())


def test_transformers_cannot_be_asked_for_another_resize():
    pytest.importorskip("transformers")
    from upernet_zoo.interop.transformers import to_transformers

    model = lively(small_config(), uz.Recipe(**STRETCH))
    with pytest.raises(ArgumentError, match=r"its pictures are resized to 70x90 \(width x height\), whatever their ratio"):
        to_transformers(model)


def test_a_recipe_given_goes_before_the_models():
    model = lively(small_config(), RECIPES[-1])
    with pytest.raises(ConfigError, match="CLAHE.*recipe="):
        uz.Segmenter(model, optimize=False)
    plain = uz.Recipe(scale=(96, 64))
    given = uz.Segmenter(model, recipe=plain, optimize=False)(PHOTO).labels
    model.recipe = plain
    assert np.array_equal(given, uz.Segmenter(model, optimize=False)(PHOTO).labels)
    with pytest.raises(ArgumentError, match="a mean of 1 channels"):
        uz.Segmenter(model, recipe=uz.Recipe(scale=(9, 9), mean=(1,), std=(1,)), optimize=False)


@pytest.mark.parametrize("recipe", RECIPES[:4], ids=lambda recipe: recipe.resizing)
def test_training_and_cards_follow_a_recipe(recipe):
    crop = TrainingSettings().crop_for(recipe)
    x, labels = augment(PHOTO, np.zeros(PHOTO.shape[:2], np.int64), np.random.default_rng(0), recipe, crop, 255)
    assert x.shape[1:] == labels.shape == crop
    description = Description.of(lively(small_config(), recipe))
    text = card.render(description, reference="a", name="b", weights_sha256="0" * 64, claim=None)
    assert f"Pictures are {recipe.resizing}, and run as" in text
