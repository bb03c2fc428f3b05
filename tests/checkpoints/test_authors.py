"""Checkpoints of the authors of Swin, ConvNeXt and BEiT, in the names of their own code, against what that code computes."""

import dataclasses
import functools

import numpy as np
import pytest
import torch
from support.fixture import FAMILY, FIXTURES, Fixture

import upernet_zoo as uz
from upernet_zoo import copied, errors, factory
from upernet_zoo.checkpoints import names, read

KINDS = ("convnext", "swin", "beit")
SIZES = {"": (64, 96), "_odd": (65, 101)}
BEIT_SIZES = {"": (64, 64), "_odd": (71, 66)}  # whole patches of 16 alone are seen
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*assumed mask ids as if nothing were said"),
    pytest.mark.filterwarnings("ignore:.*assumed min_size=64"),
]


def checkpoint(kind):
    return FIXTURES / "authors" / kind / "checkpoint.pth"


@functools.cache
def load(kind):
    return uz.load_checkpoint(checkpoint(kind))


def picture(kind, part):
    height, width = (BEIT_SIZES if kind == "beit" else SIZES)[part]
    return torch.arange(3 * height * width, dtype=torch.float64).mul(0.37).sin().mul(2).view(1, 3, height, width)


def outputs(model, x):
    """By their names in `exact.npz`."""
    with torch.inference_mode():
        features = model.features(x)
        found = {f"feature{i}": feature for i, feature in enumerate(features)}
        return found | {"decode_logits": model.decode_head(features), "aux_logits": model.auxiliary_head(features)}


def error(model, kind, part, dtype):
    """Largest difference from the authors' code, as a part of the largest value of each output."""
    exact = np.load(FIXTURES / "authors" / kind / "exact.npz")
    found = outputs(model.to(dtype), picture(kind, part).to(dtype))
    model.float()
    assert {f"{what}{part}" for what in found} <= set(exact.files)
    return max(np.abs(found[what].numpy() - (e := exact[f"{what}{part}"])).max() / np.abs(e).max() for what in found)


@pytest.mark.parametrize("part", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_as_the_authors_code_computes(kind, part):
    assert error(load(kind), kind, part, torch.float32) <= 2e-5
    assert error(load(kind), kind, part, torch.float64) <= 1e-9


def test_the_epsilons_are_the_authors():
    assert load("swin").config.backbone.eps == 1e-5 and load("beit").config.backbone.eps == 1e-6
    backbone = load("convnext").config.backbone
    assert (backbone.eps, backbone.downsample_eps) == (1e-6, 1e-6)
    assert (
        uz.load_checkpoint(Fixture(next(name for name in FAMILY if "convnext" in name)).checkpoint).config.backbone.downsample_eps == 1e-5
    )
    for key in ("eps", "downsample_eps"):  # mmcls has 1e-5 between the stages: other logits
        config = dataclasses.replace(load("convnext").config, backbone=dataclasses.replace(backbone, **{key: 1e-5}))
        other = uz.UPerNet(config).eval()
        other.load_state_dict(load("convnext").state_dict())
        assert 1e-6 < error(other, "convnext", "", torch.float64) < 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_the_config_in_the_file_is_read(kind):
    model, report = factory.load_with_report(checkpoint(kind))
    assumed = [item for item in report.assumed if not item.startswith(("mask ids", "min_size=64"))]
    assert not report.lost and not report.dropped and not assumed
    assert model.label_set.classes == ("wall", "building", "sky", "floor")
    recipes = {
        "swin": dict(scale=(2048, 512)),
        "convnext": dict(scale=(2048, 512), mode="slide", crop=(512, 512), stride=(341, 341)),
        "beit": dict(scale=(256, 64), mode="slide", crop=(64, 64), stride=(42, 42), min_size=64),
    }
    assert model.recipe == uz.Recipe(**recipes[kind])
    assert model.config.backbone.drop_path == {"swin": 0.3, "convnext": 0.4, "beit": 0.1}[kind]
    assert read.read(checkpoint(kind)).library == "authors"


@pytest.mark.parametrize("kind", KINDS)
def test_every_tensor_comes_back_under_its_name(kind):
    theirs = torch.load(checkpoint(kind), weights_only=True)["state_dict"]
    back = names.to_theirs(load(kind).state_dict(), "authors")
    kept = {key for key in theirs if not key.endswith("relative_position_index")}
    assert back.keys() == kept and all(torch.equal(back[key], theirs[key]) for key in kept)


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_config_the_rest_is_assumed_and_said(kind, tmp_path):
    torch.save(torch.load(checkpoint(kind), weights_only=True)["state_dict"], tmp_path / "bare.pth")
    with pytest.warns(UserWarning, match=r"assumed .*scale=\(2048, 512\)"):
        model = uz.load_checkpoint(tmp_path / "bare.pth")
    assert model.config == load(kind).config
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in load(kind).state_dict().items())


@pytest.mark.parametrize(
    "kind, name",
    (("convnext", "upernet_convnext_tiny_fp16_512x512_160k_ade20k"), ("swin", "upernet_swin_tiny"), ("beit", "upernet_beit-base")),
)
def test_it_is_no_copy_of_an_openmmlab_name(kind, name, tmp_path):
    """Whatever the file is called: another training has other numbers."""
    name = next(one for one in uz.list_models() if one.startswith(name))
    (tmp_path / f"{name}.pth").write_bytes(checkpoint(kind).read_bytes())
    model = uz.load_checkpoint(tmp_path / f"{name}.pth")
    assert "model" not in model.origin and copied.of_content(read.read(checkpoint(kind)), "0" * 64) is None
    with pytest.raises(errors.IntegrityError):
        uz.create_model(name, checkpoint=tmp_path / f"{name}.pth", cache_dir=tmp_path / "cache")


@pytest.mark.parametrize(
    "kind, old, new, message",
    (
        ("swin", "ape=False", "ape=True", "backbone.ape=True"),
        ("swin", "patch_norm=True", "patch_norm=False", "backbone.patch_norm=False"),
        ("beit", "use_abs_pos_emb=False", "use_abs_pos_emb=True", "backbone.use_abs_pos_emb=True"),
        ("beit", "use_rel_pos_bias=True", "use_rel_pos_bias=False", "backbone.use_rel_pos_bias=False"),
        ("convnext", "out_indices=[0, 1, 2, 3]", "out_indices=[0, 1, 2]", "backbone.out_indices"),
    ),
)
def test_a_variant_that_is_not_computed_is_refused(kind, old, new, message, tmp_path):
    content = torch.load(checkpoint(kind), weights_only=True)
    assert old in content["meta"]["config"]
    content["meta"]["config"] = content["meta"]["config"].replace(old, new)
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(errors.CheckpointError, match=message):
        uz.load_checkpoint(tmp_path / "other.pth")
