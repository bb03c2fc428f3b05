"""Checkpoints that OpenMMLab's runners wrote while training, configs beside them, and the way back to mmsegmentation."""

import json
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.fixture import FIXTURES
from support.lively import lively
from support.models import changed, small_config

import upernet_zoo as uz
from upernet_zoo import factory
from upernet_zoo.checkpoints import mmseg_config, names
from upernet_zoo.cli import main
from upernet_zoo.errors import ArgumentError, CheckpointError, ConfigError, MissingFileError

TRAINING = FIXTURES / "training"
V0_EMA, V0_BGR, V1 = (TRAINING / name / "checkpoint.pth" for name in ("v0_resnet18_ema", "v0_resnet50c_bgr", "v1_resnet34c_ema"))
TINY = small_config(stem_channels=6)
NORM = dict(mean=(101.5, 111.25, 121.125), std=(51.5, 61.25, 71.125))


def error(model, path, key, turned=False):
    """Largest difference from the logits that mmsegmentation computed, as a part of the largest."""
    arrays = np.load(path.parent / "logits.npz")
    x = torch.from_numpy(arrays["input"])
    with torch.no_grad():
        found = model(x.flip(1) if turned else x).numpy()
    return np.abs(found - arrays[key]).max() / np.abs(arrays[key]).max()


def edited(path, tmp_path, change):
    """A copy of a training checkpoint, changed."""
    content = torch.load(path, weights_only=False) if path != V1 else None
    change(content)
    copy = tmp_path / "checkpoint.pth"
    torch.save(content, copy)
    return copy


# what the runners wrote


def test_a_training_checkpoint_of_mmsegmentation_0x(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = uz.load_checkpoint(V0_EMA)
    assert error(model, V0_EMA, "logits") < 2e-5 < 0.1 < error(model, V0_EMA, "ema_logits")
    assert (model.config.backbone.depth, model.config.backbone.deep_stem, model.config.align_corners) == (18, False, True)
    assert (model.config.backbone.stem_channels, model.config.backbone.base_channels) == (8, 4)
    assert model.config.pool_scales == (1, 2, 4)
    assert model.recipe == uz.Recipe(scale=(256, 128), mode="slide", crop=(64, 64), stride=(40, 40), **NORM)
    assert model.label_set.classes == ("ground", "box", "disc") and model.label_set.palette[1] == (200, 100, 0)
    assert error(uz.load_checkpoint(V0_EMA, ema=True), V0_EMA, "ema_logits") < 2e-5


def test_a_network_that_takes_bgr_is_turned_to_rgb():
    model, report = factory.load_with_report(V0_BGR)
    assert error(model, V0_BGR, "logits", turned=True) < 2e-5 < 1e-3 < error(model, V0_BGR, "logits")
    assert model.recipe == uz.Recipe(scale=(512, 96), mean=NORM["mean"][::-1], std=NORM["std"][::-1])
    assert any("takes BGR" in item for item in report.read)


def test_a_training_checkpoint_of_mmengine_has_the_averages_as_its_state_dict():
    """Its Runner, EMAHook and CheckpointHook wrote it, with message_hub, HistoryBuffers and NumPy numbers."""
    with pytest.raises(Exception, match="Weights only load failed"):
        torch.load(V1, weights_only=True)
    for ema in (False, True):
        model, report = factory.load_with_report(V1, ema=ema)
        assert error(model, V1, "logits") < 2e-5
    assert (model.config.backbone.depth, model.config.backbone.deep_stem) == (34, True)
    assert model.recipe == uz.Recipe(scale=(256, 128), **NORM)
    assert model.label_set.classes == ("ground", "box", "disc") and model.label_set.palette[2] == (0, 120, 240)
    assert report.dropped == [
        "message_hub (mmengine's logs)",
        "optimizer",
        "param_schedulers",
        "ema_state_dict (the weights of the last step: mmengine saves the averages as state_dict)",
    ]


def test_the_preprocessor_may_be_among_the_tensors(tmp_path):
    def change(content):
        text = content["meta"]["config"].replace("dict(type='Normalize'", "dict(type='Nothing'")
        content["meta"]["config"] = text.replace("type='Normalize'", "type='Nothing'") + "\ndata_preprocessor = dict(bgr_to_rgb=False)\n"
        content["state_dict"]["data_preprocessor.mean"] = torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1)
        content["state_dict"]["data_preprocessor.std"] = torch.tensor([4.0, 5.0, 6.0]).view(3, 1, 1)

    path = edited(V0_BGR, tmp_path, change)
    model = uz.load_checkpoint(path)
    assert (model.recipe.mean, model.recipe.std) == ((3, 2, 1), (6, 5, 4))
    assert error(model, V0_BGR, "logits", turned=True) < 2e-5


def test_averages_that_are_not_there_are_refused():
    with pytest.raises(CheckpointError, match="has no averaged"):
        uz.load_checkpoint(V0_BGR, ema=True)


SETTINGS = {
    "decode head": ("type='UPerHead'", "type='PSPHead'", "model.decode_head.type='PSPHead'; this library has 'UPerHead' only"),
    "backbone": (
        "type='ResNetV1c'",
        "type='mmcls.ResNeSt'",
        "model.backbone.type='mmcls.ResNeSt'; this library has 'ResNetV1c' or",
    ),
    "dilations": ("dilations=(1, 1, 1, 1)", "dilations=(1, 1, 2, 4)", "model.backbone.dilations="),
    "strides": ("strides=(1, 2, 2, 2)", "strides=[1, 2, 1, 1]", "model.backbone.strides="),
    "style": ("style='pytorch'", "style='caffe'", "model.backbone.style='caffe'"),
    "mean": ("mean=[101.5, 111.25, 121.125]", "mean=3", "'mean' must be a list of numbers"),
    "scale": ("img_scale=(512, 96)", "img_scale=7", "'scale' must be two whole numbers"),
    "segmentor": ("type='EncoderDecoder'", "type='CascadeEncoderDecoder'", "model.type='CascadeEncoderDecoder'"),
    "pool_scales": ("pool_scales=(1, 2, 4)", "pool_scales=(1, 2)", "3 pyramid pooling branches, but pool_scales is"),
    "crop": ("test_cfg=dict(mode='whole')", "test_cfg=dict(mode='slide', stride=(9, 9))", "slide mode needs 'crop'"),
}


@pytest.mark.parametrize("old, new, message", SETTINGS.values(), ids=SETTINGS)
def test_a_config_that_computes_something_else_is_refused_and_named(old, new, message, tmp_path):
    def change(content):
        assert old in content["meta"]["config"]
        content["meta"]["config"] = content["meta"]["config"].replace(old, new)

    path = edited(V0_BGR, tmp_path, change)
    with pytest.raises(CheckpointError) as caught:
        uz.load_checkpoint(path)
    assert message in str(caught.value) and str(path) in str(caught.value)


def renamed(old, new):
    def change(state):
        for key in [key for key in state if old in key]:
            state[key.replace(old, new)] = state.pop(key)

    return change


OTHERS = {
    "V1d": (renamed("downsample.1.", "downsample.2."), "ResNet-V1d"),
    "ResNeXt": (lambda s: s.update({"backbone.layer1.0.conv2.weight": torch.ones(2, 1, 3, 3)}), "ResNeXt or ResNeSt"),
    "Swin": (renamed("backbone.layer", "backbone.stages.0.blocks.0.attn."), "looks like a Swin backbone"),
    "ConvNeXt": (renamed("backbone.stem", "backbone.downsample_layers"), "looks like a ConvNeXt backbone"),
    "PSPNet": (renamed("decode_head.fpn_bottleneck", "decode_head.other"), "looks like a PSPNet head"),
    "DeepLab": (renamed("decode_head.fpn_bottleneck", "decode_head.aspp_modules"), "looks like a DeepLab head"),
    "a sigmoid": (
        lambda s: [s.update({k: v[:1].clone()}) for k, v in list(s.items()) if "conv_seg" in k],
        "has one output channel, for a sigmoid and a threshold",
    ),
    "a neck": (lambda s: s.update({"neck.lateral_convs.0.conv.weight": torch.zeros(1)}), "its neck is of no kind that is known"),
}


@pytest.mark.parametrize("change, message", OTHERS.values(), ids=OTHERS)
def test_tensors_of_another_model_are_refused_and_named(change, message, tmp_path):
    path = edited(V0_BGR, tmp_path, lambda content: change(content["state_dict"]))
    with pytest.raises(CheckpointError, match=message):
        uz.load_checkpoint(path)


def test_a_model_without_an_auxiliary_head_is_a_whole_model(tmp_path):
    whole = uz.load_checkpoint(V0_BGR)
    path = edited(V0_BGR, tmp_path, lambda content: [content["state_dict"].pop(k) for k in list(content["state_dict"]) if "auxiliary" in k])
    model = uz.load_checkpoint(path)
    assert model.config == changed(whole.config, auxiliary=None) and model.auxiliary_head is None
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(model(x), whole(x))


# a config beside the checkpoint


@pytest.fixture
def bare(tmp_path):
    """The tensors of a training checkpoint and nothing else."""
    path = tmp_path / "bare.pth"
    content = torch.load(V0_BGR, weights_only=False)
    torch.save(content["state_dict"], path)
    (tmp_path / "full.py").write_text(content["meta"]["config"])
    return path


def test_a_config_file_says_what_the_checkpoint_does_not(bare, tmp_path):
    with pytest.raises(CheckpointError, match=r"3 pyramid pooling branches, but pool_scales is \(1, 2, 3, 6\), as none were given"):
        uz.load_checkpoint(bare)
    model = uz.load_checkpoint(bare, config=tmp_path / "full.py")
    expected = uz.load_checkpoint(V0_BGR)
    assert (model.config, model.recipe, model.label_set) == (expected.config, expected.recipe, expected.label_set)


def test_base_files_are_merged_as_mmcv_does(bare, tmp_path):
    canary = tmp_path / "canary"
    (tmp_path / "_base_" / "models").mkdir(parents=True)
    (tmp_path / "work").mkdir()
    (tmp_path / "_base_" / "models" / "upernet.py").write_text(
        "norm_cfg = dict(type='SyncBN')\n"
        "model = dict(type='EncoderDecoder', backbone=dict(type='ResNetV1c', depth=50, norm_cfg=norm_cfg),\n"
        "    decode_head=dict(type='UPerHead', pool_scales=(1, 2, 3, 6), align_corners=True),\n"
        "    test_cfg=dict(mode='slide', crop_size=(8, 8), stride=(8, 8)))\n"
    )
    (tmp_path / "_base_" / "data.py").write_text(
        f"import os\nos.system('touch {canary}')\n"
        "dataset_type = 'ADE20KDataset'\n"
        "data_preprocessor = dict(type='SegDataPreProcessor', mean=[1, 2, 3], std=[4, 5, 6], bgr_to_rgb=True)\n"
        "test_pipeline = [dict(type='Resize', scale=(640, 320), keep_ratio=True)]\n"
        f"test_dataloader = dict(dataset=dict(data_root=open('{canary}', 'w'), pipeline=test_pipeline))\n"
    )
    (tmp_path / "work" / "mine.py").write_text(
        "_base_ = ['../_base_/models/upernet.py', '../_base_/data.py']\n"
        "model = dict(decode_head=dict(pool_scales=(1, 2, 4)), test_cfg=dict(_delete_=True, mode='whole'))\n"
        "metainfo = dict(classes=('a', 'b', 'c'))\n"
    )
    model = uz.load_checkpoint(bare, config=tmp_path / "work" / "mine.py")
    assert (model.config.pool_scales, model.config.align_corners) == ((1, 2, 4), True)
    assert model.recipe == uz.Recipe(scale=(640, 320), mean=(1, 2, 3), std=(4, 5, 6))
    assert model.label_set.classes == ("a", "b", "c")
    assert not canary.exists()


def test_the_data_set_that_a_config_names_has_known_classes(tmp_path):
    model = lively(changed(TINY, num_classes=19))
    torch.save(model.state_dict(), tmp_path / "bare.pth")
    (tmp_path / "c.py").write_text("model = dict(decode_head=dict())\ndataset_type = 'CityscapesDataset'\n")
    with pytest.warns(UserWarning, match="assumed"):
        assert uz.load_checkpoint(tmp_path / "bare.pth", config=tmp_path / "c.py").label_set == uz.labels.get("cityscapes")


BAD_CONFIGS = {
    "itself": ({"c.py": "_base_ = 'c.py'"}, ConfigError, "names itself as its _base_"),
    "a circle": ({"c.py": "_base_ = ['d.py']", "d.py": "_base_ = './c.py'"}, ConfigError, "names itself as its _base_"),
    "absolute": ({"c.py": "_base_ = '/etc/passwd'"}, ConfigError, "is no relative path"),
    "a URL": ({"c.py": "_base_ = 'http://127.0.0.1/c.py'"}, ConfigError, "is no relative path"),
    "a scope": ({"c.py": "_base_ = 'mmseg::_base_/models/upernet_r50.py'"}, ConfigError, "is no relative path"),
    "a number": ({"c.py": "_base_ = [3]"}, ConfigError, "is no relative path"),
    "not there": ({"c.py": "_base_ = 'other.py'"}, MissingFileError, "other.py, which .*c.py names as its _base_"),
    "no Python": ({"c.py": "model = {"}, ConfigError, "not a config in Python"),
    "no model": ({"c.py": "from other import model"}, ConfigError, "assigns no dict to 'model'"),
    "a bomb": ({"c.py": "_base_ = [" + "'d.py'," * 200 + "]", "d.py": ""}, ConfigError, "more than 100 _base_ files"),
}


@pytest.mark.parametrize("files, kind, message", BAD_CONFIGS.values(), ids=BAD_CONFIGS)
def test_a_config_that_cannot_be_read_is_refused(files, kind, message, bare, tmp_path):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(kind, match=message) as caught:
        uz.load_checkpoint(bare, config=tmp_path / "c.py")
    assert str(tmp_path) in str(caught.value)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(-9, 9) | st.text("ab'\\\n", max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["model", "data", "x"]), PLAIN))
def test_what_is_written_as_python_is_read_back(values):
    assert mmseg_config.parse("".join(f"{name} = {value!r}\n" for name, value in values.items())) == values


# and back


def test_published_to_native_to_mmsegmentation_to_native_bit_for_bit(fixture, tmp_path):
    first = uz.load_checkpoint(fixture.checkpoint)
    native = uz.create_model(f"local-dir:{first.save_pretrained(tmp_path / 'native')}")
    uz.interop.mmsegmentation.to_mmsegmentation(native, tmp_path / "back.pth")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        last = uz.load_checkpoint(tmp_path / "back.pth")
    assert (last.config, last.recipe, last.label_set) == (first.config, first.recipe, first.label_set)
    assert all(torch.equal(last.state_dict()[key], value) for key, value in first.state_dict().items())
    published = torch.load(fixture.checkpoint, weights_only=True)["state_dict"]
    written = torch.load(tmp_path / "back.pth", weights_only=True)["state_dict"]
    assert published.keys() == written.keys()
    assert all(torch.equal(written[key], value) for key, value in published.items())


@pytest.mark.parametrize("deep_stem", (True, False))
def test_the_config_that_is_written_says_all_that_tensors_do_not(deep_stem, tmp_path):
    recipe = uz.Recipe(scale=(300, 100), mode="slide", crop=(64, 48), stride=(32, 16), mean=(1, 2, 3), std=(4, 5, 6))
    label_set = uz.labels.LabelSet("mine", list("abcde"), [(i, i, 9 * i) for i in range(5)])
    model = lively(changed(TINY, deep_stem=deep_stem, align_corners=True, pool_scales=(1, 4)), recipe, label_set)
    path = uz.interop.mmsegmentation.to_mmsegmentation(model, tmp_path / "out" / "mine.pth")
    torch.save(torch.load(path, weights_only=True)["state_dict"], tmp_path / "bare.pth")
    for back in (uz.load_checkpoint(path), factory.load_with_report(tmp_path / "bare.pth", config=path.with_suffix(".py"))[0]):
        assert (back.config, back.recipe) == (model.config, model.recipe)
    found = uz.load_checkpoint(path).label_set
    assert (found.classes, found.palette) == (label_set.classes, label_set.palette)
    assert ("backbone.conv1.weight" in torch.load(path, weights_only=True)["state_dict"]) is not deep_stem
    with pytest.raises(ArgumentError, match="is a .pth file"):
        uz.interop.mmsegmentation.to_mmsegmentation(model, tmp_path / "folder")


def test_the_command_prints_what_was_read_assumed_and_dropped(tmp_path, capsys):
    assert main.main(["convert", str(V0_EMA), "--ema", "--out", str(tmp_path / "native")]) == 0
    said = capsys.readouterr().out
    for line in (
        "read:    from the tensors: ResNet-18 (depth=18, base_channels=4, stem_channels=8, deep_stem=False), head of width 8, "
        "auxiliary head of width 8, 3 classes",
        "read:    from the config: align_corners=True",
        "read:    from the config: pool_scales=(1, 2, 4)",
        "read:    from the config: scale=[256, 128]",
        "read:    from the config: stride=[40, 40]",
        "assumed: nothing",
        "dropped: optimizer",
        "dropped: the weights of the last step",
        f"create_model('local-dir:{tmp_path / 'native'}')",
    ):
        assert line in said
    assert error(uz.create_model(f"local-dir:{tmp_path / 'native'}"), V0_EMA, "ema_logits") < 2e-5
    assert main.main(["convert", f"local-dir:{tmp_path / 'native'}", "--to", "mmseg", "--out", str(tmp_path / "back.pth")]) == 0
    assert "init_segmentor" in capsys.readouterr().out
    assert error(uz.load_checkpoint(tmp_path / "back.pth"), V0_EMA, "ema_logits") < 2e-5


@pytest.mark.parametrize(
    "arguments, message",
    (
        (["{v0}", "--to", "mmseg", "--out", "{tmp}/folder"], "is a .pth file"),
        (["{v0}", "--out", "{tmp}/file"], "is a file, and a folder is written"),
        (["upernet_r50_512x512_160k_ade20k", "--ema", "--out", "{tmp}/x"], "go with a checkpoint file"),
        (["upernet_r50_nothing", "--out", "{tmp}/x"], "upernet_r50_nothing"),
        (["{tmp}/file", "--out", "{tmp}/x"], "file"),
    ),
)
def test_wrong_usage_is_refused_and_nothing_is_written(arguments, message, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert main.main(["convert", *(a.format(v0=V0_EMA, tmp=tmp_path) for a in arguments)]) == 1
    assert message in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir() if p.name != "cache"] == ["file"] and (tmp_path / "file").read_text() == "mine"


# plain ResNets, and backbones alone


def test_a_plain_stem_may_be_odd():
    plain = changed(TINY, deep_stem=False, stem_channels=7)
    assert uz.UPerNetConfig.from_dict(json.loads(json.dumps(plain.to_dict()))) == plain


@pytest.mark.parametrize("depth", (18, 50))
def test_a_plain_resnet_equals_torchvisions(depth):
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    config = changed(TINY, depth=depth, deep_stem=False, base_channels=64, stem_channels=64)
    backbone = lively(config).backbone
    theirs = getattr(torchvision.models, f"resnet{depth}")(num_classes=1).eval()
    named = names.to_published({f"backbone.{key}": value for key, value in backbone.state_dict().items()})
    state = {key.removeprefix("backbone."): value for key, value in named.items()}
    fc = {key: value for key, value in theirs.state_dict().items() if key.startswith("fc.")}
    theirs.load_state_dict({**state, **fc}, strict=True)
    x = torch.randn(1, 3, 65, 97)
    with torch.no_grad():
        expected = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x))))
        for i, found in enumerate(backbone(x)):
            expected = getattr(theirs, f"layer{i + 1}")(expected)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "name, timm_name", (("upernet_r50_512x512_160k_ade20k", "resnet50c"), ("upernet_r101_769x769_40k_cityscapes", "resnet101c"))
)
def test_a_backbone_says_what_its_features_are_as_timm_does(name, timm_name):
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        backbone = uz.create_backbone(name, pretrained=False)
        theirs = timm.create_model(timm_name, features_only=True, out_indices=(1, 2, 3, 4)).feature_info
    ours = backbone.feature_info
    assert ours.channels() == theirs.channels() == [256, 512, 1024, 2048]
    assert ours.reduction() == theirs.reduction() == [4, 8, 16, 32]
    assert ours.module_name() == theirs.module_name()
    features = backbone(torch.empty(1, 3, 64, 96, device="meta"))
    assert [(f.shape[1], 64 // f.shape[2]) for f in features] == list(zip(ours.channels(), ours.reduction()))


def test_a_backbone_is_pretrained(small_index, fixture):
    model = uz.load_checkpoint(fixture.checkpoint)
    backbone = uz.create_backbone(fixture.name, checkpoint=fixture.checkpoint)
    assert not backbone.training
    assert all(torch.equal(value, backbone.state_dict()[key]) for key, value in model.backbone.state_dict().items())
