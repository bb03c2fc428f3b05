"""Checkpoints and configs written for mmsegmentation 0.x and 1.x, read back by our own reader."""

import ast
import dataclasses
import re
import warnings

import pytest
import torch
from support.fixture import FAMILY, Fixture
from support.lively import lively
from support.models import small_config

import upernet_zoo as uz
from upernet_zoo import factory
from upernet_zoo.cli import main
from upernet_zoo.errors import ArgumentError, ConfigError
from upernet_zoo.interop.mmsegmentation import to_mmsegmentation
from upernet_zoo.models.backbones.convnext import ConvNeXtConfig
from upernet_zoo.models.backbones.swin import SwinConfig

NORM = dict(mean=(1, 2, 3), std=(4, 5, 6))
RECIPES = {
    "whole": uz.Recipe(scale=(300, 100), **NORM),
    "slide": uz.Recipe(scale=(300, 100), mode="slide", crop=(64, 48), stride=(32, 16), **NORM),
    "stretched": uz.Recipe(scale=(100, 300), keep_ratio=False),
    "own size": uz.Recipe(scale=None, size_divisor=32),
    "padded": uz.Recipe(scale=(300, 100), size_divisor=16),
    "short edge": uz.Recipe(scale=(300, 100), short_edge=True),
    "min_size": uz.Recipe(scale=(300, 100), min_size=120),
}
NOT_THERE = {(0, "short edge"), (1, "min_size")}


@pytest.mark.parametrize("version", (0, 1))
@pytest.mark.parametrize("name", RECIPES)
def test_what_is_written_says_all_that_tensors_do_not(name, version, tmp_path):
    label_set = uz.labels.LabelSet("mine", list("abcde"), [(i, i, 9 * i) for i in range(5)])
    model = lively(small_config(align_corners=True, pool_scales=(1, 4)), RECIPES[name], label_set)
    path = tmp_path / "mine.pth"
    if (version, name) in NOT_THERE:
        with pytest.raises(ArgumentError, match=f"mmsegmentation {version}.x has no step .*: version={1 - version}"):
            to_mmsegmentation(model, path, version=version)
        assert not list(tmp_path.iterdir())
        return
    to_mmsegmentation(model, path, version=version)
    torch.save(torch.load(path, weights_only=True)["state_dict"], tmp_path / "bare.pth")
    for file, config in ((path, None), (tmp_path / "bare.pth", path.with_suffix(".py"))):
        back, report = factory.load_with_report(file, config=config)
        assert (back.config, back.recipe) == (model.config, model.recipe)
        assert all(torch.equal(value, model.state_dict()[key]) for key, value in back.state_dict().items())
        assert [item for item in report.assumed if "class names" not in item] == []
    assert uz.load_checkpoint(path).label_set.palette == label_set.palette


def test_a_config_of_1x_has_what_init_model_and_inference_model_take(tmp_path):
    """Names and keys that 1.4.2 asks for: see results/mmsegmentation_1x.json for runs there."""
    model = lively(small_config(), uz.Recipe(scale=(96, 64), size_divisor=32, **NORM))
    to_mmsegmentation(model, tmp_path / "m.pth", version=1)
    found = {s.targets[0].id: ast.literal_eval(s.value) for s in ast.parse((tmp_path / "m.py").read_text()).body}
    assert found["default_scope"] == "mmseg"
    assert found["test_pipeline"] == [
        {"type": "LoadImageFromFile"},
        {"type": "Resize", "scale": (96, 64), "keep_ratio": True},
        {"type": "PackSegInputs"},
    ]
    assert found["model"]["data_preprocessor"] == {
        "type": "SegDataPreProcessor",
        "mean": [1.0, 2.0, 3.0],
        "std": [4.0, 5.0, 6.0],
        "bgr_to_rgb": True,
        "pad_val": 0,
        "seg_pad_val": 255,
        "test_cfg": {"size_divisor": 32},
    }
    meta = torch.load(tmp_path / "m.pth", weights_only=True)["meta"]
    assert meta["dataset_meta"]["classes"] == model.label_set.classes and (tmp_path / "m.py").read_text().endswith(meta["cfg"])


IDS = {
    "as trained": (dict(), 5),
    "one more": (dict(dataset_ids=(1, 2, 3, 4, 5), void_ids=(0, 255), void_id=0), 5),
    "any": (dict(dataset_ids=(7, 3, 11, 4, 30), void_ids=(0, 1, 255)), 5),
    "ade20k": ("ade20k", 150),
    "cityscapes": ("cityscapes", 19),
}


@pytest.mark.parametrize("version", (0, 1))
@pytest.mark.parametrize("ids, count", IDS.values(), ids=IDS)
def test_mask_ids_come_back(ids, count, version, tmp_path):
    label_set = uz.labels.get(ids) if isinstance(ids, str) else uz.labels.LabelSet("5 classes", list("abcde"), **ids)
    model = lively(small_config(num_classes=count), uz.Recipe(scale=(96, 64)), label_set)
    to_mmsegmentation(model, tmp_path / "m.pth", version=version)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = uz.load_checkpoint(tmp_path / "m.pth").label_set
    assert found.classes == label_set.classes and found.dataset_ids == label_set.dataset_ids
    assert set(found.void_ids) == set(label_set.void_ids) and found.void_id == label_set.void_id
    said = torch.load(tmp_path / "m.pth", weights_only=True)["meta"]["dataset_meta"]["reduce_zero_label"]
    assert said is (label_set.dataset_ids == tuple(range(1, count + 1)))


def test_what_cannot_be_written_is_refused(tmp_path):
    model = lively(small_config(), uz.Recipe(scale=(96, 64), unsupported=("CLAHE",)))
    with pytest.raises(ConfigError, match="CLAHE"):
        to_mmsegmentation(model, tmp_path / "m.pth")
    model.recipe = uz.Recipe(scale=(96, 64))
    for version in (2, "1", True, None):
        with pytest.raises(ArgumentError, match="version is 0 or 1"):
            to_mmsegmentation(model, tmp_path / "m.pth", version=version)
    four = lively(small_config(in_channels=4), uz.Recipe(scale=(96, 64), mean=(1,) * 4, std=(1,) * 4))
    with pytest.raises(ArgumentError, match="1 or 3 channels, and this model takes 4"):
        to_mmsegmentation(four, tmp_path / "m.pth", version=1)
    assert not list(tmp_path.iterdir())


def test_the_command_writes_either(tmp_path, capsys):
    model = lively(small_config(), uz.Recipe(scale=(96, 64)))
    to_mmsegmentation(model, tmp_path / "m.pth")
    command = ["convert", str(tmp_path / "m.pth"), "--to", "mmseg", "--out", str(tmp_path / "back.pth")]
    for options, call, key in (([], "init_segmentor", "data"), (["--mmseg-version", "0"], "init_segmentor", "data"),
                               (["--mmseg-version", "1"], "init_model", "test_dataloader")):  # fmt: skip
        assert main.main([*command, *options]) == 0
        assert f"{call}('{tmp_path / 'back.py'}'" in capsys.readouterr().out
        assert f"\n{key} = " in (tmp_path / "back.py").read_text()
    assert main.main(["convert", str(tmp_path / "m.pth"), "--out", str(tmp_path / "x"), "--mmseg-version", "1"]) == 1
    assert "--mmseg-version goes with --to mmseg" in capsys.readouterr().err


@pytest.mark.parametrize("name", FAMILY)
def test_every_tensor_of_the_original_is_written_bit_for_bit(name, tmp_path):
    """Its index buffers too, without which nothing loads with strict=True."""
    published = torch.load(Fixture(name).checkpoint, weights_only=True)["state_dict"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = to_mmsegmentation(uz.load_checkpoint(Fixture(name).checkpoint), tmp_path / "model.pth", version=0)
    written = torch.load(path, weights_only=True)["state_dict"]
    assert written.keys() == published.keys()
    assert all(torch.equal(written[key], value) and written[key].dtype == value.dtype for key, value in published.items())
    assert path.stat().st_size <= Fixture(name).checkpoint.stat().st_size * 1.1


def narrow(backbone):
    return lively(uz.UPerNetConfig(backbone=backbone, num_classes=3, channels=8, auxiliary=uz.AuxiliaryConfig(channels=4)))


SMALL = dict(depths=(1, 1, 1, 1), widths=(4, 8, 8, 8))
SMALL_SWIN = dict(embed_dim=4, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1), window=2)
EPSILONS = {  # config, version -> the epsilons that are read back, and whether something is said
    "as mmcls": (ConvNeXtConfig(**SMALL), 0, {}, False),
    "mmcls' in 1.x": (ConvNeXtConfig(**SMALL), 1, dict(downsample_eps=1e-6), True),
    "as the authors": (ConvNeXtConfig(downsample_eps=1e-6, **SMALL), 0, dict(downsample_eps=1e-5), True),
    "the authors' in 1.x": (ConvNeXtConfig(downsample_eps=1e-6, **SMALL), 1, {}, False),
    "another": (ConvNeXtConfig(eps=1e-4, **SMALL), 0, {}, False),
    "Swin's": (SwinConfig(eps=1e-4, embed_eps=1e-4, feature_eps=1e-4, **SMALL_SWIN), 0, {}, False),
    "smp's of Swin": (SwinConfig(feature_eps=1e-6, **SMALL_SWIN), 1, dict(feature_eps=1e-5), True),
}


@pytest.mark.parametrize("backbone, version, changed, is_said", EPSILONS.values(), ids=EPSILONS)
def test_epsilons_that_a_version_does_not_have_are_said(backbone, version, changed, is_said, tmp_path):
    model = narrow(backbone)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        to_mmsegmentation(model, tmp_path / "m.pth", version=version)
    assert [re.search("an epsilon of .*: logits differ by up to 1e-4 of the largest", str(one.message)) is not None for one in said] == [
        True
    ] * is_said
    back, _ = factory.load_with_report(tmp_path / "m.pth")
    assert back.config.backbone == dataclasses.replace(backbone, **changed)
