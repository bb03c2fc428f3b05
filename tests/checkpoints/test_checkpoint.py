"""Checkpoint files in, models out: wrappers, names, inference of the architecture, strictness."""

import json
import warnings

import pytest
import torch
from support.fixture import FIXTURES

import upernet_zoo as uz
from upernet_zoo.checkpoints import mmseg_config, names, native
from upernet_zoo.errors import CheckpointError

SHAPES = json.loads((FIXTURES / "published_shapes.json").read_text())


@pytest.fixture
def content(fixture):
    return torch.load(fixture.checkpoint, weights_only=True)


def test_the_fixtures_have_both_formats_of_torch_save(request):
    heads = {p.read_bytes()[:2] for p in (FIXTURES).glob("*/*.pth")}
    assert heads == {b"PK", b"\x80\x02"}


def test_config_recipe_and_labels_come_from_the_file(fixture):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = uz.load_checkpoint(fixture.checkpoint)
    expected = fixture.expected["config"]
    for key in ("channels", "num_classes", "align_corners"):
        assert getattr(model.config, key) == expected[key], key
    widths = {"base_channels": expected["base_channels"], "stem_channels": expected["base_channels"]}
    assert model.config.backbone == uz.ResNetConfig(depth=expected["depth"], **widths)
    assert model.config.auxiliary == uz.AuxiliaryConfig(channels=expected["aux_channels"])
    assert list(model.recipe.scale) == expected["img_scale"]
    assert model.recipe.mode == expected["test_cfg"]["mode"]
    if model.recipe.mode == "slide":
        assert [list(model.recipe.crop), list(model.recipe.stride)] == [expected["test_cfg"]["crop_size"], expected["test_cfg"]["stride"]]
    assert model.label_set == uz.labels.get(fixture.name.rsplit("_", 1)[1])
    assert model.origin["sha256"] == fixture.expected["sha256"]
    assert not model.training


@pytest.mark.parametrize("name", ("r50", "r101"))
def test_the_key_table_goes_both_ways_without_loss(name):
    published = {key: torch.empty(0) for key in SHAPES[name]}
    native = names.to_native(published)
    assert len(native) == len(published)
    assert list(names.to_published(native)) == list(published)
    assert names.to_native(native).keys() == native.keys()
    assert not any("conv_seg" in key or "psp_modules" in key for key in native)


WRAPPERS = {
    "as published": lambda c: c,
    "no meta": lambda c: {"state_dict": c["state_dict"]},
    "in model": lambda c: {"model": c["state_dict"], "meta": c["meta"]},
    "module. prefix": lambda c: {"state_dict": {f"module.{k}": v for k, v in c["state_dict"].items()}},
    "bare": lambda c: dict(c["state_dict"]),
    "bare, native names": lambda c: names.to_native(c["state_dict"]),
    "twice wrapped": lambda c: {"model": {"state_dict": c["state_dict"]}},
    "half precision": lambda c: {k: v.half() if v.is_floating_point() else v for k, v in c["state_dict"].items()},
}


@pytest.mark.parametrize("zip_format", (False, True))
@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_wrapped_or_bare_the_weights_are_the_same(fixture, content, wrap, zip_format, tmp_path):
    path = tmp_path / "model.pth"
    torch.save(wrap(content), path, _use_new_zipfile_serialization=zip_format)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what had to be assumed
        found = uz.load_checkpoint(path).state_dict()
    expected = uz.load_checkpoint(fixture.checkpoint).state_dict()
    assert found.keys() == expected.keys()
    exact = wrap is not WRAPPERS["half precision"]
    assert all(torch.equal(found[k], expected[k]) if exact else torch.allclose(found[k], expected[k], rtol=1e-3, atol=1e-3) for k in found)
    assert all(v.dtype == torch.float32 for v in found.values() if v.is_floating_point())


def test_what_the_file_does_not_say_is_assumed_and_said(fixture, content, tmp_path):
    path = tmp_path / "model.pth"
    torch.save(content["state_dict"], path)
    with pytest.warns(UserWarning) as caught:
        model = uz.load_checkpoint(path)
    said = str(caught[0].message)
    for word in (str(path), "align_corners=False", "pool_scales=(1, 2, 3, 6)", "mode='whole'", "scale=(2048, 512)", "class names"):
        assert word in said
    assert model.label_set.classes[:2] == ("class 0", "class 1")


def test_safetensors_files_load_too(fixture, content, tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "model.safetensors"
    save_file({k: v.contiguous() for k, v in content["state_dict"].items()}, path)
    with pytest.warns(UserWarning, match="assumed"):
        found = uz.load_checkpoint(path).state_dict()
    expected = uz.load_checkpoint(fixture.checkpoint).state_dict()
    assert all(torch.equal(found[k], expected[k]) for k in expected)


def damaged(content, change):
    state = dict(content["state_dict"])
    change(state)
    return {"meta": content["meta"], "state_dict": state}


FAULTS = {
    "missing": (lambda s: s.pop("backbone.layer2.0.bn1.running_var"), "missing: backbone.layer2.0.bn1.running_var"),
    "unexpected": (lambda s: s.update({"decode_head.extra.weight": torch.ones(1)}), "unexpected: decode_head.extra.weight"),
    "wrong shape": (
        lambda s: s.update({"decode_head.conv_seg.bias": torch.ones(3)}),
        r"wrong shape: decode_head.classifier.bias is \(3,\) instead of \(\d+,\)",
    ),
    "NaN": (lambda s: s["backbone.stem.0.weight"].fill_(float("nan")), "NaN or infinite weights in backbone.stem.0.weight"),
    "no head": (lambda s: [s.pop(k) for k in list(s) if k.startswith("decode_head")], "no convolution 'decode_head.fpn_bottleneck"),
    "blocks": (lambda s: [s.pop(k) for k in list(s) if k.startswith("backbone.layer2.1.")], "bottleneck blocks is not known"),
    "another backbone": (
        lambda s: [s.update({k.replace("backbone.stem", "backbone.patch_embed"): s.pop(k)}) for k in list(s)],
        "not a UPerNet that this library knows.*looks like a Swin or ViT backbone.*backbone.patch_embed",
    ),
}


@pytest.mark.parametrize("change, message", FAULTS.values(), ids=FAULTS)
def test_faults_are_named_with_the_file(fixture, content, change, message, tmp_path):
    path = tmp_path / "model.pth"
    torch.save(damaged(content, change), path)
    with pytest.raises(CheckpointError, match=message) as caught:
        uz.load_checkpoint(path)
    assert str(path) in str(caught.value)
    assert isinstance(caught.value, ValueError) and isinstance(caught.value, uz.UPerNetZooError)


@pytest.mark.parametrize("dtype", (torch.float64, torch.float32, torch.float16, torch.bfloat16), ids=str)
def test_every_number_that_is_none_is_seen_and_no_other(dtype):
    limits = torch.finfo(dtype)
    extremes = torch.tensor([limits.max, limits.min, limits.tiny, limits.smallest_normal / 2, 0.0, -0.0], dtype=dtype)
    for finite in (extremes, extremes.reshape(2, 3).T, extremes[:0], extremes[0], torch.nn.Parameter(extremes)):
        native.check_finite({"weight": finite}, "here")
    for value in ("nan", "-nan", "inf", "-inf"):
        with pytest.raises(CheckpointError, match="here: NaN or infinite weights in weight"):
            native.check_finite({"weight": torch.cat([extremes, torch.tensor([float(value)], dtype=dtype), extremes])}, "here")


def test_a_file_without_tensors_is_refused(tmp_path):
    path = tmp_path / "model.pth"
    torch.save({"meta": {}, "state_dict": {}}, path)
    with pytest.raises(CheckpointError, match="holds no state dict"):
        uz.load_checkpoint(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.pth"):
        uz.load_checkpoint(tmp_path / "nothing.pth")


def test_a_published_name_promises_a_digest(fixture, tmp_path):
    path = tmp_path / fixture.checkpoint.name
    data = bytearray(fixture.checkpoint.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    with pytest.raises(uz.UPerNetZooError, match=fixture.expected["sha256"][:8]):
        uz.load_checkpoint(path)
    assert path.read_bytes() == data
    with pytest.raises(uz.UPerNetZooError, match="0000000000"):
        uz.load_checkpoint(fixture.checkpoint, sha256="0000000000")


def test_config_text_is_parsed_and_never_executed(tmp_path):
    canary = tmp_path / "canary"
    text = f"""
import os
norm_cfg = dict(type='SyncBN', requires_grad=True)
evil = os.system('touch {canary}')
also_evil = [x for x in open('{canary}', 'w')]
model = dict(decode_head=dict(align_corners=True, norm_cfg=norm_cfg, pool_scales=(1, 2, 3, 6)), bias=-0.5)
comment = "kept"  # a comment
"""
    found = mmseg_config.parse(text)
    assert not canary.exists()
    assert found.keys() == {"norm_cfg", "model", "comment"}
    assert found["model"]["decode_head"]["norm_cfg"] == {"type": "SyncBN", "requires_grad": True}
    assert found["model"]["bias"] == -0.5
    for nonsense in (None, 3, "((((", "a = " + "[" * 100_000, "\x00", "x" * (mmseg_config.MAX_CHARACTERS + 1), "a = -" * 50_000):
        assert mmseg_config.parse(nonsense) == {}
