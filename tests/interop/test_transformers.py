"""To transformers and back: its own logits, its own pipeline, and what it cannot represent."""

import contextlib
import dataclasses
import functools
import re
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from support.fixture import FAMILY, FIXTURES, Fixture
from support.lively import fit_classifier, lively
from support.models import changed, small_config

import upernet_zoo as uz
from upernet_zoo.cli import main
from upernet_zoo.config import KernelUpdateConfig
from upernet_zoo.errors import ArgumentError, CheckpointError, MissingFileError
from upernet_zoo.interop.transformers import from_transformers, load_transformers, save_transformers, to_transformers
from upernet_zoo.models.backbones.convnext import ConvNeXtConfig
from upernet_zoo.models.backbones.swin import SwinConfig

R50 = small_config(depth=50, base_channels=64, stem_channels=64, channels=64, aux_channels=32)


NARROW = [name for name in FAMILY if "/upernet_swin" in name or "/upernet_convnext" in name]
WINDOWS = "meant to be run in sliding windows of .*, and transformers' pipeline runs pictures whole"
EPSILON = "an epsilon of 1e-05.*: a model that it loads from files has 1e-06"


@functools.cache
def narrow(name):
    return uz.load_checkpoint(Fixture(name).checkpoint)


@contextlib.contextmanager
def expect_notes(name):
    """What is said of a model of the fixtures when it goes over."""
    with warnings.catch_warnings(record=True) as found:
        yield
    expected = [EPSILON, WINDOWS] if "convnext" in name else []
    assert len(found) == len(expected) and all(re.search(pattern, str(one.message)) for pattern, one in zip(expected, found))


def equal(one, other):
    assert (one.config, one.recipe, one.label_set, one.origin) == (other.config, other.recipe, other.label_set, other.origin)
    states = one.state_dict(), other.state_dict()
    assert states[0].keys() == states[1].keys()
    return all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.fixture(scope="module")
def photo():
    """A photo that is enlarged on its way in, to a size of whole pixels: transformers rounds others down, and smooths when it shrinks."""
    with Image.open(FIXTURES / "photos" / "coffee.png") as image:
        return image.convert("RGB").resize((150, 100))


@pytest.fixture(scope="module")
def model(photo):
    recipe = uz.Recipe(scale=(512, 200), mean=(120.1, 110.2, 100.3), std=(50.4, 60.5, 70.6))
    label_set = uz.labels.LabelSet("steps", [f"step {i}" for i in range(5)], [(i, 2 * i, 3 * i) for i in range(5)])
    return fit_classifier(lively(R50, recipe, label_set), np.array(photo))


@pytest.mark.parametrize("depth, deep_stem", ((50, True), (18, False)))
def test_logits_equal_those_of_transformers(depth, deep_stem):
    model = lively(changed(R50, depth=depth, deep_stem=deep_stem, pool_scales=(1, 2, 4)))
    theirs, _ = to_transformers(model)
    x = torch.randn(2, 3, 65, 97)
    with torch.no_grad():
        expected, found = model(x), theirs(x).logits
        assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()
        assert (theirs.auxiliary_head(theirs.backbone(x).feature_maps) - model.auxiliary_head(model.backbone(x))).abs().max() < 1e-4
    assert equal(from_transformers(theirs), model)


def assert_same_logits(model, theirs, size):
    x = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = theirs(x).logits
        assert (model(x) - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("name", NARROW)
def test_swin_and_convnext_equal_transformers(name):
    """At sizes that its windows and patches divide, and at others; and back, bit for bit."""
    with expect_notes(name):
        theirs, _ = to_transformers(narrow(name))
    for size in ((641, 480), (65, 97)):
        assert_same_logits(narrow(name), theirs, size)
    x = torch.randn(1, 3, 65, 97)
    with torch.no_grad():
        expected = theirs.auxiliary_head(theirs.backbone(x).feature_maps)
        assert (narrow(name).auxiliary_head(narrow(name).features(x)) - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert equal(from_transformers(theirs), narrow(name))
    theirs.requires_grad_(False).decode_head.classifier.weight.zero_()
    assert narrow(name).decode_head.classifier.weight.abs().max() > 0  # the tensors are copies


@pytest.mark.parametrize("name", NARROW)
def test_swin_and_convnext_from_a_folder(name, tmp_path, capfd):
    """transformers loads the files itself, in which tensors have the names of its first releases; what is not the same is on the card."""
    import transformers

    model = narrow(name)
    with expect_notes(name):
        save_transformers(model, tmp_path)
    assert "Loading weights" not in capfd.readouterr().err
    loaded = transformers.UperNetForSemanticSegmentation.from_pretrained(tmp_path).eval()
    is_convnext = "convnext" in name
    x = torch.randn(1, 3, 65, 97)
    with torch.no_grad():
        difference = (loaded(x).logits - model(x)).abs().max() / model(x).abs().max()
    assert 1e-6 < difference < 1e-4 if is_convnext else difference <= 1e-5
    assert equal(load_transformers(tmp_path), model)
    card = (tmp_path / "README.md").read_text()
    assert "library_name: transformers" in card
    assert ("What is not the same" in card, "an epsilon of 1e-05" in card, "sliding windows" in card) == (is_convnext,) * 3
    (tmp_path / "README.md").write_text("mine")
    with expect_notes(name):
        save_transformers(model, tmp_path, overwrite=True)
    assert (tmp_path / "README.md").read_text() == "mine"


def test_two_epsilons_of_convnext_are_two_models():
    """mmcls' 1e-5 before the stages, and the authors' and transformers' 1e-6: each is the model that its format means."""
    import transformers

    name = next(name for name in NARROW if "convnext" in name)
    model = narrow(name)
    backbone = dataclasses.replace(model.config.backbone, downsample_eps=1e-6)
    other = uz.UPerNet(dataclasses.replace(model.config, backbone=backbone), uz.Recipe(scale=(512, 512))).eval()
    other.load_state_dict(model.state_dict())
    x = torch.randn(1, 3, 65, 97)
    with torch.no_grad():
        assert 1e-6 < (other(x) - model(x)).abs().max() / model(x).abs().max() < 1e-4
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is otherwise over there
        theirs, _ = to_transformers(other)
    assert_same_logits(other, theirs, (65, 97))
    del theirs.config.upernet_zoo, theirs.config.backbone_config.downsample_eps
    assert from_transformers(theirs).config.backbone.downsample_eps == 1e-6
    assert isinstance(theirs, transformers.UperNetForSemanticSegmentation)


def test_the_epsilons_of_a_swin_are_those_of_its_config(tmp_path):
    """transformers has its config's in the blocks, and 1e-5 in the other norms; in float64, where it shows."""
    import transformers

    backbone = transformers.SwinConfig(
        embed_dim=8, num_heads=(1, 2, 2, 4), depths=(1, 2, 1, 1), out_indices=(1, 2, 3, 4), layer_norm_eps=1e-3
    )
    theirs = transformers.UperNetForSemanticSegmentation(
        transformers.UperNetConfig(backbone_config=backbone, hidden_size=8, auxiliary_channels=8, auxiliary_in_channels=32)
    ).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    with pytest.warns(UserWarning, match="assumed"):
        models = from_transformers(theirs), uz.create_model(tmp_path / "theirs")
    x = torch.randn(1, 3, 65, 97, dtype=torch.float64)
    with torch.no_grad():
        expected = theirs.double()(x).logits
        for model in models:
            assert (model.config.backbone.eps, model.config.backbone.embed_eps, model.config.backbone.feature_eps) == (1e-3, 1e-5, 1e-5)
            assert (model.double()(x) - expected).abs().max() <= 1e-9 * expected.abs().max()


def test_a_swin_with_other_epsilons_goes_over_with_a_note():
    model = narrow(next(name for name in NARROW if "swin" in name))
    backbone = dataclasses.replace(model.config.backbone, eps=1e-4, embed_eps=1e-3, feature_eps=1e-6)
    other = uz.UPerNet(dataclasses.replace(model.config, backbone=backbone), model.recipe, model.label_set).eval()
    other.load_state_dict(model.state_dict())
    with pytest.warns(UserWarning, match="epsilons of 0.001 and, behind the stages, 1e-06"):
        theirs, _ = to_transformers(other)
    x = torch.randn(1, 3, 65, 97, dtype=torch.float64)
    with torch.no_grad():
        expected = theirs.double()(x).logits
        assert (other.double()(x) - expected).abs().max() <= 1e-9 * expected.abs().max()
    assert from_transformers(theirs).config == other.config


@pytest.mark.parametrize("setting", (dict(use_absolute_embeddings=True), dict(hidden_act="relu"), dict(patch_size=2)), ids=str)
def test_a_swin_of_another_kind_is_refused(setting):
    import transformers

    backbone = transformers.SwinConfig(embed_dim=8, num_heads=(1, 2, 2, 4), depths=(1, 1, 1, 1), out_indices=(1, 2, 3, 4), **setting)
    theirs = transformers.UperNetForSemanticSegmentation(transformers.UperNetConfig(backbone_config=backbone, hidden_size=8))
    with pytest.raises(CheckpointError, match=f"its config has backbone_config.{next(iter(setting))}="):
        from_transformers(theirs)


@pytest.mark.large
@pytest.mark.filterwarnings("ignore:The layer norms between the stages have an epsilon")
@pytest.mark.parametrize("size", ((512, 512), (641, 480), (65, 97)), ids=str)
@pytest.mark.parametrize("config", (SwinConfig(), ConvNeXtConfig()), ids=lambda config: config.title)
def test_full_width_equals_transformers(config, size):
    model, theirs = full_width(config)
    assert_same_logits(model, theirs, size)


@functools.lru_cache(maxsize=1)
def full_width(config):
    model = lively(uz.UPerNetConfig(backbone=config, num_classes=150, auxiliary=uz.AuxiliaryConfig(channels=256)))
    return model, to_transformers(model)[0]


@pytest.mark.parametrize("wide", (False, pytest.param(True, marks=pytest.mark.large)))
def test_torchvision_has_the_same_convnext(wide):
    from torchvision.models import convnext

    backbone = (full_width(ConvNeXtConfig())[0] if wide else narrow(next(name for name in NARROW if "convnext" in name))).backbone
    config = backbone.config
    ends = (*config.widths[1:], None)
    settings = [convnext.CNBlockConfig(width, end, depth) for width, end, depth in zip(config.widths, ends, config.depths)]
    theirs = convnext.ConvNeXt(settings).eval().features
    ours = backbone.state_dict()
    names = {"0.0.": "stem.0.", "0.1.": "stem.1."}
    for i, depth in enumerate(config.depths):
        if i:
            names |= {f"{2 * i}.{j}.": f"stage{i}.downsample.{j}." for j in (0, 1)}
            theirs[2 * i][0].eps = config.downsample_eps
        for j in range(depth):
            parts = {"block.0.": "dwconv.", "block.2.": "norm.", "block.3.": "mlp.fc1.", "block.5.": "mlp.fc2.", "layer_scale": "gamma"}
            names |= {f"{2 * i + 1}.{j}.{part}": f"stage{i}.blocks.{j}.{name}" for part, name in parts.items()}
    state = {}
    for key, value in theirs.state_dict().items():
        prefix = next(prefix for prefix in names if key.startswith(prefix))
        state[key] = ours[names[prefix] + key[len(prefix) :]].view_as(value)
    theirs.load_state_dict(state)
    for size in ((512, 512), (641, 480), (65, 97)):
        x = found = torch.randn(1, 3, *size)
        with torch.no_grad():
            for i, feature in enumerate(backbone(x)):
                found = theirs[2 * i + 1](theirs[2 * i](found))
                expected = backbone.get_submodule(f"norm{i}")(found)
                assert (feature - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_the_pipeline_of_a_saved_folder_gives_our_labels_and_the_folder_comes_back(model, photo, tmp_path, capsys):
    import transformers

    model.save_pretrained(tmp_path / "native")
    assert main.main(["convert", f"local-dir:{tmp_path / 'native'}", "--to", "transformers", "--out", str(tmp_path / "theirs")]) == 0
    segments = transformers.pipeline("image-segmentation", str(tmp_path / "theirs"))(photo)
    found = np.full((photo.height, photo.width), 255)
    for segment in segments:
        found[np.array(segment["mask"]) > 0] = model.label_set.classes.index(segment["label"])
    expected = uz.Segmenter(model)(photo).labels
    assert len(np.unique(expected)) == 5
    assert (found == expected).mean() >= 0.99

    assert main.main(["convert", str(tmp_path / "theirs"), "--out", str(tmp_path / "back")]) == 0
    assert equal(uz.create_model(f"local-dir:{tmp_path / 'back'}"), model)
    assert "create_model('local-dir:" in capsys.readouterr().out


def test_a_model_of_transformers_own_is_read_with_its_processor():
    import transformers

    backbone = transformers.TimmBackboneConfig(backbone="resnet18", out_indices=(1, 2, 3, 4))
    theirs = transformers.UperNetForSemanticSegmentation(
        transformers.UperNetConfig(backbone_config=backbone, hidden_size=16, auxiliary_channels=8, id2label={0: "no", 1: "yes"})
    ).eval()
    processor = transformers.SegformerImageProcessor(size={"height": 128, "width": 256}, image_mean=[0, 0.5, 1], image_std=[1, 0.5, 0.2])
    ours = from_transformers(theirs, processor)
    assert ours.label_set.classes == ("no", "yes")
    assert ours.recipe == uz.Recipe(scale=(256, 128), mean=(0, 127.5, 255), std=(255, 127.5, 51))
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x).logits, rtol=1e-4, atol=1e-5)
    backbone = transformers.TimmBackboneConfig(backbone="resnet26", out_indices=(1, 2, 3, 4))
    other = transformers.UperNetForSemanticSegmentation(transformers.UperNetConfig(backbone_config=backbone, hidden_size=16))
    with pytest.raises(CheckpointError, match="has the backbone 'resnet26', which this library does not know"):
        from_transformers(other)


REFUSED = {
    "align_corners": (dict(align_corners=True), {}, "align_corners=True, and transformers always with False"),
    "K-Net": (dict(kernel_updates=KernelUpdateConfig(channels=32)), {}, "its head is K-Net's, and transformers has UPerNet's alone"),
    "width": (dict(base_channels=8), {}, "widths 64 and 8, and timm's have 64"),
    "depth": (dict(depth=34), {}, "timm has no ResNet-V1c-34"),
    "channels": (dict(in_channels=1), dict(mean=(1.0,), std=(1.0,)), "takes 1 channels, and the image processor RGB"),
}


@pytest.mark.parametrize("change, recipe, message", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_represented_is_refused_saying_why(change, recipe, message):
    with torch.device("meta"):
        model = uz.UPerNet(changed(R50, **change), uz.Recipe(**{"scale": (64, 64), **recipe}))
    with pytest.raises(ArgumentError, match=f"transformers cannot represent this model: .*{message}"):
        to_transformers(model)


def test_a_model_of_windows_goes_with_a_warning():
    model = lively(R50, uz.Recipe(scale=(64, 64), mode="slide", crop=(64, 96), stride=(32, 32)))
    with pytest.warns(UserWarning, match=WINDOWS.replace(".*", "64x96")):
        theirs, _ = to_transformers(model)
    assert equal(from_transformers(theirs), model)


def test_what_is_no_such_model_is_refused(tmp_path):
    with pytest.raises(ArgumentError, match="takes a UperNetForSemanticSegmentation, found Linear"):
        from_transformers(torch.nn.Linear(1, 1))
    with pytest.raises(MissingFileError, match="has no config.json"):
        load_transformers(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "upernet", "transformers_version": "5.0"}')
    with pytest.raises(CheckpointError, match="transformers cannot load it"):
        load_transformers(tmp_path)
