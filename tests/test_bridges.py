"""To transformers and back: its own logits, its own pipeline, and what it cannot represent."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from lively import fit_classifier, lively
from PIL import Image

import upernet_zoo as uz
from upernet_zoo import bridges, cli
from upernet_zoo.errors import ArgumentError, CheckpointError, MissingFileError

R50 = uz.UPerNetConfig(depth=50, num_classes=5, channels=64, aux_channels=32)


def equal(one, other):
    assert (one.config, one.recipe, one.label_set, one.origin) == (other.config, other.recipe, other.label_set, other.origin)
    states = one.state_dict(), other.state_dict()
    assert states[0].keys() == states[1].keys()
    return all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.fixture(scope="module")
def photo():
    """A photo that is enlarged on its way in, to a size of whole pixels: transformers rounds others down, and smooths when it shrinks."""
    with Image.open(Path(__file__).parent / "fixtures" / "photos" / "coffee.png") as image:
        return image.convert("RGB").resize((150, 100))


@pytest.fixture(scope="module")
def model(photo):
    recipe = uz.Recipe(scale=(512, 200), mean=(120.1, 110.2, 100.3), std=(50.4, 60.5, 70.6))
    label_set = uz.labels.LabelSet("steps", [f"step {i}" for i in range(5)], [(i, 2 * i, 3 * i) for i in range(5)])
    return fit_classifier(lively(R50, recipe, label_set), np.array(photo))


@pytest.mark.parametrize("depth, deep_stem", ((50, True), (18, False)))
def test_logits_equal_those_of_transformers(depth, deep_stem):
    model = lively(dataclasses.replace(R50, depth=depth, deep_stem=deep_stem, pool_scales=(1, 2, 4)))
    theirs, _ = bridges.to_transformers(model)
    x = torch.randn(2, 3, 65, 97)
    with torch.no_grad():
        expected, found = model(x), theirs(x).logits
        assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()
        assert (theirs.auxiliary_head(theirs.backbone(x).feature_maps) - model.auxiliary_head(model.backbone(x))).abs().max() < 1e-4
    assert equal(bridges.from_transformers(theirs), model)


def test_the_pipeline_of_a_saved_folder_gives_our_labels_and_the_folder_comes_back(model, photo, tmp_path, capsys):
    import transformers

    model.save_pretrained(tmp_path / "native")
    assert cli.main(["convert", f"local-dir:{tmp_path / 'native'}", "--to", "transformers", "--out", str(tmp_path / "theirs")]) == 0
    segments = transformers.pipeline("image-segmentation", str(tmp_path / "theirs"))(photo)
    found = np.full((photo.height, photo.width), 255)
    for segment in segments:
        found[np.array(segment["mask"]) > 0] = model.label_set.classes.index(segment["label"])
    expected = uz.Segmenter(model)(photo).labels
    assert len(np.unique(expected)) == 5
    assert (found == expected).mean() >= 0.99

    assert cli.main(["convert", str(tmp_path / "theirs"), "--out", str(tmp_path / "back")]) == 0
    assert equal(uz.create_model(f"local-dir:{tmp_path / 'back'}"), model)
    assert "create_model('local-dir:" in capsys.readouterr().out


def test_a_model_of_transformers_own_is_read_with_its_processor():
    import transformers

    backbone = transformers.TimmBackboneConfig(backbone="resnet18", out_indices=(1, 2, 3, 4))
    theirs = transformers.UperNetForSemanticSegmentation(
        transformers.UperNetConfig(backbone_config=backbone, hidden_size=16, auxiliary_channels=8, id2label={0: "no", 1: "yes"})
    ).eval()
    processor = transformers.SegformerImageProcessor(size={"height": 128, "width": 256}, image_mean=[0, 0.5, 1], image_std=[1, 0.5, 0.2])
    ours = bridges.from_transformers(theirs, processor)
    assert ours.label_set.classes == ("no", "yes")
    assert ours.recipe == uz.Recipe(scale=(256, 128), mean=(0, 127.5, 255), std=(255, 127.5, 51))
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x).logits, rtol=1e-4, atol=1e-5)
    backbone = transformers.TimmBackboneConfig(backbone="resnet26", out_indices=(1, 2, 3, 4))
    other = transformers.UperNetForSemanticSegmentation(transformers.UperNetConfig(backbone_config=backbone, hidden_size=16))
    with pytest.raises(CheckpointError, match="has the backbone 'resnet26'; known are timm's resnet50c"):
        bridges.from_transformers(other)


REFUSED = {
    "align_corners": (dict(align_corners=True), {}, "align_corners=True, and transformers always with False"),
    "slide": ({}, dict(mode="slide", crop=(64, 64), stride=(32, 32)), "sliding windows, and the pipeline runs pictures whole"),
    "width": (dict(base_channels=8), {}, "widths 64 and 8, and timm's have 64"),
    "depth": (dict(depth=34), {}, "timm has no ResNet-V1c-34"),
    "channels": (dict(in_channels=1), dict(mean=(1.0,), std=(1.0,)), "takes 1 channels, and the image processor RGB"),
}


@pytest.mark.parametrize("change, recipe, message", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_represented_is_refused_saying_why(change, recipe, message):
    with torch.device("meta"):
        model = uz.UPerNet(dataclasses.replace(R50, **change), uz.Recipe(**{"scale": (64, 64), **recipe}))
    with pytest.raises(ArgumentError, match=f"transformers cannot represent this model: .*{message}"):
        bridges.to_transformers(model)


def test_what_is_no_such_model_is_refused(tmp_path):
    with pytest.raises(ArgumentError, match="takes a UperNetForSemanticSegmentation, found Linear"):
        bridges.from_transformers(torch.nn.Linear(1, 1))
    with pytest.raises(MissingFileError, match="has no config.json"):
        bridges.load_transformers(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "upernet", "transformers_version": "5.0"}')
    with pytest.raises(CheckpointError, match="transformers cannot load it"):
        bridges.load_transformers(tmp_path)
