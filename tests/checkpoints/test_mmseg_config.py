"""Configs of mmsegmentation: statements followed or named, and each setting followed, refused or said."""

import dataclasses
import time
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.lively import lively
from support.models import small_config

import upernet_zoo as uz
from upernet_zoo import factory
from upernet_zoo.checkpoints import mmseg_config, names
from upernet_zoo.errors import CheckpointError, ConfigError

TINY = small_config(num_classes=4)
HEAD = "dict(type='UPerHead', pool_scales=(1, 2, 3, 6), align_corners=False)"
MODEL = f"dict(type='EncoderDecoder', backbone=dict(type='ResNetV1c', depth=18), decode_head={HEAD}, test_cfg=dict(mode='whole'))"
PREPROCESSOR = "dict(type='SegDataPreProcessor', mean=[1, 2, 3], std=[4, 5, 6], bgr_to_rgb=True)"
PIPELINE = "[dict(type='LoadImageFromFile'), dict(type='Resize', scale=(96, 64), keep_ratio=True), dict(type='PackSegInputs')]"
CONFIG = f"model = {MODEL}\ndata_preprocessor = {PREPROCESSOR}\ntest_pipeline = {PIPELINE}\n"
V0_STEPS = (
    "dict(type='Resize', keep_ratio=True), dict(type='RandomFlip'), dict(type='Normalize', mean=[1, 2, 3], std=[4, 5, 6], to_rgb=True), "
    "dict(type='ImageToTensor', keys=['img']), dict(type='Collect', keys=['img'])"
)
OTHER_PIPELINE = f"test_dataloader = dict(dataset=dict(pipeline={PIPELINE.replace('96', '80')}))\n"
TO_TENSOR, NORMALIZE = "dict(type='ImageToTensor'", "dict(type='Normalize'"
V0_VIEW = f"dict(type='MultiScaleFlipAug', img_scale=(96, 64), flip=False, transforms=[{V0_STEPS}])"
V0 = f"model = {MODEL}\ndata = dict(test=dict(pipeline=[dict(type='LoadImageFromFile'), {V0_VIEW}]))\n"
RECIPE = uz.Recipe(scale=(96, 64), mean=(1, 2, 3), std=(4, 5, 6))


@pytest.fixture(scope="module")
def state():
    return names.to_published(lively(TINY).state_dict())


def load(state, tmp_path, text, dataset_meta=None):
    """The model of a checkpoint with a config text, and what the warning said."""
    meta = {"config": text, "dataset_meta": dataset_meta or {"classes": tuple("abcd")}}
    torch.save({"meta": meta, "state_dict": state}, tmp_path / "c.pth")
    model, report = factory.load_with_report(tmp_path / "c.pth")
    return model, report.assumed


@pytest.mark.parametrize("text", ("model = dict(", "a: 1\n- b", {"model": 1}, b"model = 1", 5, "x" * (mmseg_config.MAX_CHARACTERS + 1)))
def test_a_config_that_cannot_be_read_is_said(text, state, tmp_path):
    said = "nothing of the config in the file, which cannot be read"
    assert said in load(state, tmp_path, text)[1]
    assert said not in load(state, tmp_path, None)[1] and said not in load(state, tmp_path, "x = 1\nfor y in z: x = y")[1]


# statements


FOLLOWED = {
    "subscript": "x = dict(a=dict(b=1))\nx['a']['b'] = 2",
    "update": "x = dict(a=dict(b=1))\nx['a'].update(b=2)",
    "update of a dict": "x = dict(a=1)\nx.update(dict(a=dict(b=2)))",
    "an alias": "a = dict(b=1)\nx = dict(a=a)\na['b'] = 2",
    "annotated": "x: dict = dict(a=dict(b=2))",
    "double star": "a = dict(b=2)\nx = dict(**dict(a=a))",
    "double star in braces": "x = {**{'a': {'b': 1}}, 'a': {'b': 2}}",
    "expression": "x = dict(a=dict(b=1 if not True else 6 // 3))",
    "if": "n = 3\nif n > 2 and n in (1, 3):\n    x = dict(a=dict(b=2))\nelse:\n    x = dict(a=dict(b=1))",
    "del": "x = dict(a=dict(b=2, c=1))\ndel x['a']['c']",
    "pop": "x = dict(a=dict(b=2, c=1))\nx['a'].pop('c')",
    "dict union": "x = dict(a=1)\nx |= dict(a=dict(b=2))",
    "augmented": "x = dict(a=dict(b=1))\nx['a']['b'] += 1",
    "several targets": "y, b = 1, 2\nx = z = dict(a=dict(b=b))",
    "deepcopy": "import copy\na = dict(b=2)\nx = dict(a=copy.deepcopy(a))\na['b'] = 3",
    "setdefault": "x = dict()\nx.setdefault('a', dict(b=2))",
    "attribute": "x = dict(a=dict(b=1))\nx.a.b = 2",
    "walrus": "x = dict(a=dict(b=1))\n(y := x['a'])\ny['b'] = 2",
    "assert": "x = dict(a=dict(b=1))\nassert x['a'].update(b=2) is None",
    "and": "x = dict(a=dict(b=1))\nTrue and x['a'].update(b=2)",
    "unpacked targets": "x = dict(a=dict(b=1))\nx['a']['b'], y = 2, 3",
    "lists": "s = [1]\ns += [4]\ns.insert(1, 2)\ns.append(5)\nx = dict(a=dict(b=s[1]))\ns.remove(4)",
}


@pytest.mark.parametrize("text", FOLLOWED.values(), ids=FOLLOWED)
def test_statements_are_followed_as_python_runs_them(text):
    names = {}
    if "x.a.b" not in text:  # of lazily read configs alone
        exec(text, names)
        assert names["x"] == {"a": {"b": 2}}
    found = mmseg_config.parse(text)
    assert found["x"] == {"a": {"b": 2}} and not mmseg_config.unread(found, "x")


NOT_FOLLOWED = {
    "a call": "x['a']['b'] = make()",
    "a loop": "for key in ('b',):\n    x['a'][key] = 2",
    "while": "while flag():\n    x['a']['b'] = 2",
    "an unknown test": "if flag():\n    x['a']['b'] = 2",
    "try": "try:\n    x['a']['b'] = 2\nexcept Exception:\n    pass",
    "with": "with read_base():\n    from .base import x",
    "a function": "def change():\n    x['a']['b'] = 2\nchange()",
    "a function that is given it": "change(x)",
    "as part of a value": "y = change(x['a'])",
    "a comprehension": "x['a'] = {k: 2 for k in 'b'}",
    "setattr": "setattr(x, 'a', 2)",
    "exec": "exec('x = 3')",
    "globals": "globals()['x'] = 3",
    "exec by another name": "run = exec\nrun('x = 3')",
    "exec of builtins": "__builtins__.exec('x = 3')",
    "exec of a module": "import builtins\nbuiltins.exec('x = 3')",
    "exec that is imported": "from builtins import exec as run\nrun('x = 3')",
    "exec in a list": "y = [exec]\ny[0]('x = 3')",
    "exec in a test": "if exec('x = 3'):\n    y = 1",
    "its own module": "import sys\nsys.modules[__name__].x = 3",
    "a frame": "import sys\nsys._getframe().f_globals['x'] = 3",
    "star import": "from other import *",
    "unknown update": "x['a'].update(make())",
    "unknown unpacking": "x = dict(a=dict(b=1), **more())",
    "deleted by an unknown key": "del x['a'][key()]",
    "assigned in an expression": "y = (x := make())",
    "through an alias": "y = x['a']\nchange(y)",
    "through an alias that is not followed": "y = [z for z in [x['a']]][0]\ny['b'] = 2",
    "in a test": "assert change(x)",
    "a test of what may have been changed": "change(x)\nif not x:\n    y = 1\nelse:\n    y = 2\nx = dict(a=dict(b=y))",
    "the length of what may have been changed": "change(x)\nx = dict(a=dict(b=len(x)))",
    "in an argument": "any(y.update(b=2) for y in [x['a']])",
    "in a default": "f = lambda y=x['a'].update(b=make()): y",
    "a method that is not known": "x['a'].__setitem__('b', 2)",
    "a match": "match 1:\n    case 1:\n        x['a']['b'] = 2",
    "a class": "class A:\n    x['a']['b'] = 2",
}


@pytest.mark.parametrize("text", NOT_FOLLOWED.values(), ids=NOT_FOLLOWED)
def test_what_cannot_be_followed_is_named_with_its_line(text):
    found = mmseg_config.parse("x = dict(a=dict(b=1))\n" + text)
    unread = mmseg_config.unread(found, "x", "a", "b")
    assert unread and all(cause.line >= 2 for cause in unread.values()), found


@pytest.mark.parametrize("text", ("compile = True\ny = compile", "vars = dict(a=1)\nz = vars['a']", "import re\ny = re.compile('x')"))
def test_a_name_that_the_config_gives_is_no_function_of_pythons(text):
    assert not mmseg_config.unread(mmseg_config.parse("x = dict(a=1)\n" + text), "x")


def test_what_comes_after_is_known_again():
    found = mmseg_config.parse("x = 1\nfrom other import *\nx = dict(a=2)\ny = print(x)\n")
    assert found["x"] == {"a": 2} and not mmseg_config.unread(found, "x")
    assert mmseg_config.unread(found, "never_set")["never_set"].line == 2


BOMBS = {
    "doubled list": "a = [1]\n" + "a.extend(a)\n" * 60,
    "doubled by +=": "a = [1]\n" + "a += a\n" * 60,
    "doubled sum": "a = [1]\n" + "a = a + a\n" * 60,
    "doubled text": "a = 'x'\n" + "a = a * 1000\n" * 9,
    "squared": "a = 10\n" + "a = a * a\n" * 60,
    "copied": "a = [1] * 60000\n" + "b = list(a)\n" * 20000,
    "copied deep": "a = [[1, 2] for _ in 'x']\n" + "a = [[a, a], [a, a]]\n" * 200 + "b = copy.deepcopy(a)\n" * 20000,
    "compared": "a = b = 1\n" + "a, b = [a, a], [b, b]\n" * 60 + "c = a == b\n",
    "joined": "a = dict(b=1)\n" + "a = dict(c=a, d=a)\n" * 60 + "for i in a:\n    change(a)\n",
}


@pytest.mark.parametrize("text", BOMBS.values(), ids=BOMBS)
def test_a_text_that_computes_without_end_is_given_up(text):
    start = time.process_time()
    found = mmseg_config.parse(text)
    assert time.process_time() - start < 5
    assert all(not isinstance(value, (str, list)) or len(value) <= 1 << 16 for value in found.values())
    mmseg_config.unread(found, "a")


@given(st.text("abxm=[](){}.*'\n 12,:+-_|", max_size=60))
def test_no_text_is_answered_with_an_error(text):
    assert isinstance(mmseg_config.parse(text), dict)


# statements of files with bases


BASE = f"flag = True\nnested = dict(deep=dict(flag=True))\n{CONFIG}"
CHANGES = {
    "subscript": "model = dict(decode_head=dict())\nmodel['decode_head']['align_corners'] = True\n",
    "{{}}": "model = dict(decode_head=dict(align_corners={{_base_.flag}}))\n",
    "{{ }} of a nested one": "model = dict(decode_head=dict(align_corners={{ _base_.nested.deep.flag }}))\n",
    "_base_": "model = dict(decode_head=dict(align_corners=_base_.flag))\n",
    "_base_ with a subscript": "model = dict(decode_head=dict(align_corners=_base_.nested['deep'].flag))\n",
    "_base_ changed": "_base_.model.decode_head.align_corners = True\n",
}


@pytest.mark.parametrize("text", CHANGES.values(), ids=CHANGES)
def test_the_values_of_base_files_are_used_and_changed(text, tmp_path):
    (tmp_path / "base.py").write_text(BASE)
    (tmp_path / "c.py").write_text("_base_ = ['base.py']\n" + text)
    found = mmseg_config.read_file(tmp_path / "c.py")
    assert found["model"]["decode_head"]["align_corners"] is True
    assert found["model"]["decode_head"]["pool_scales"] == (1, 2, 3, 6)


UNREAD_CHANGES = {
    "a call": ("model = dict(decode_head=dict(align_corners=flag()))\n", "nothing for model.decode_head.align_corners (line 2, `flag()`"),
    "an auxiliary head": ("model = dict(auxiliary_head=make())\n", "nothing for model.auxiliary_head (line 2, `make()`"),
    "a step": ("test_pipeline = [dict(type='Resize', scale=size())]\n", "Resize with scale=<not read, line 2: size()>"),
    "a pipeline": ("test_pipeline = make()\n", "test_pipeline is not read: line 2, `make()`"),
    "a preprocessor": ("data_preprocessor = make()\n", "data_preprocessor is not read: line 2, `make()`"),
    "a test mode": ("model = dict(test_cfg=dict(mode=mode()))\n", "test_cfg with mode=<not read, line 2: mode()>"),
    "a data set": ("data = dict(train=make())\n", "nothing for data.train (line 2, `make()`"),
    "what masks mean": (
        "train_dataloader = dict(dataset=dict(reduce_zero_label=make()))\n",
        "nothing for train_dataloader.dataset.reduce_",
    ),
    "classes": ("metainfo = dict(classes=make())\n", "nothing for metainfo.classes (line 2, `make()`"),
}


@pytest.mark.parametrize("text, said", UNREAD_CHANGES.values(), ids=UNREAD_CHANGES)
def test_what_a_file_says_and_cannot_be_read_never_loses_in_silence(text, said, state, tmp_path):
    torch.save(state, tmp_path / "c.pth")
    (tmp_path / "base.py").write_text(BASE)
    (tmp_path / "c.py").write_text("_base_ = ['base.py']\n" + text)
    with pytest.warns(UserWarning) as caught:
        uz.load_checkpoint(tmp_path / "c.pth", config=tmp_path / "c.py")
    assert said in str(caught[0].message)


REFUSED_CHANGES = {
    "a loop over the model": "model = dict(decode_head=dict())\nfor k in ('align_corners',):\n    model['decode_head'][k] = True\n",
    "the base given away": "change(_base_.model)\n",
    "read_base": "with read_base():\n    from .base import *\n",
}


@pytest.mark.parametrize("text", REFUSED_CHANGES.values(), ids=REFUSED_CHANGES)
def test_statements_that_may_change_the_model_are_refused_by_name(text, tmp_path):
    (tmp_path / "base.py").write_text(BASE)
    (tmp_path / "c.py").write_text("_base_ = ['base.py']\n" + text)
    with pytest.raises(ConfigError, match=r"assigns no dict to 'model' .*: line \d, `.*`, is not followed"):
        mmseg_config.read_file(tmp_path / "c.py")


def test_a_setting_that_decides_what_is_computed_must_be_read(state, tmp_path):
    for old, new in (("decode_head=" + HEAD, "decode_head=make()"), ("'EncoderDecoder'", "make()"), ("depth=18", "depth=18, style=make()")):
        with pytest.raises(CheckpointError, match=r"its config has model\.\S+=<not read, line 1: make\(\)>"):
            load(state, tmp_path, CONFIG.replace(old, new))


# settings of the model


def test_no_activation_is_refused(state, tmp_path):
    for value in ("None", "dict(type='GELU')", "dict()"):
        text = CONFIG.replace("type='UPerHead'", f"type='UPerHead', act_cfg={value}")
        if value == "dict()":
            load(state, tmp_path, text)
            continue
        with pytest.raises(CheckpointError, match=r"model.decode_head.act_cfg.*this library has .*'ReLU' only"):
            load(state, tmp_path, text)


@pytest.mark.parametrize(
    "old, new",
    (
        ("type='UPerHead'", "type='mmseg.models.decode_heads.uper_head.UPerHead'"),
        ("type='ResNetV1c'", "type='mmseg.ResNetV1c'"),
        ("type='Resize'", "type='mmcv.transforms.processing.Resize'"),
        ("type='Resize'", "type='mmseg.datasets.transforms.Resize'"),
        ("model = dict(type='EncoderDecoder'", "from mmseg.models import EncoderDecoder as E\nmodel = dict(type=E"),
        ("type='SegDataPreProcessor'", "type='mmseg.models.data_preprocessor.SegDataPreProcessor'"),
    ),
)
def test_types_with_a_module_path_are_the_same(old, new, state, tmp_path):
    assert old in CONFIG
    model, assumed = load(state, tmp_path, CONFIG.replace(old, new))
    assert model.recipe == RECIPE and not assumed


def test_a_setting_of_the_model_that_is_not_known_is_said(state, tmp_path):
    text = CONFIG.replace("type='UPerHead'", "type='UPerHead', frozen=3").replace("depth=18", "depth=18, drop_path=0.1, with_cp=True")
    _, assumed = load(state, tmp_path, text)
    assert assumed == [
        "no effect of model.backbone.drop_path=0.1, which is not known here",
        "no effect of model.decode_head.frozen=3, which is not known here",
    ]
    with pytest.raises(CheckpointError, match="its neck is of no kind"):
        load(state, tmp_path, CONFIG.replace("model = dict(", "model = dict(neck=dict(type='FPN'), "))


# the recipe


def v1(**changes):
    """The 1.x config with parts of it replaced: resize, preprocessor, after (a step behind the resize), test_cfg."""
    text = CONFIG
    if "resize" in changes:
        text = text.replace("dict(type='Resize', scale=(96, 64), keep_ratio=True), ", changes["resize"])
    if "preprocessor" in changes:
        text = text.replace("bgr_to_rgb=True", changes["preprocessor"])
    if "after" in changes:
        text = text.replace("dict(type='PackSegInputs')", changes["after"] + ", dict(type='PackSegInputs')")
    return text.replace("dict(mode='whole')", changes.get("test_cfg", "dict(mode='whole')"))


def v0(old="", new="", scale="(96, 64)"):
    assert old in V0
    return V0.replace(old, new).replace("img_scale=(96, 64)", f"img_scale={scale}")


FOLLOWED_RECIPES = {
    "1.x": (v1(), {}),
    "0.x": (v0(), {}),
    "keep_ratio False": (v1(resize="dict(type='Resize', scale=(64, 96), keep_ratio=False), "), dict(scale=(64, 96), keep_ratio=False)),
    "keep_ratio absent in 1.x": (v1(resize="dict(type='Resize', scale=(64, 96)), "), dict(scale=(64, 96), keep_ratio=False)),
    "keep_ratio absent in 0.x": (v0("'Resize', keep_ratio=True", "'Resize'"), {}),
    "keep_ratio False in 0.x": (v0("keep_ratio=True", "keep_ratio=False", "(64, 96)"), dict(scale=(64, 96), keep_ratio=False)),
    "one number": (v1(resize="dict(type='Resize', scale=80), "), dict(scale=(80, 80), keep_ratio=False)),
    "one number, ratio kept": (v1(resize="dict(type='Resize', scale=80, keep_ratio=True), "), dict(scale=(80, 80))),
    "own size": (v1(resize=""), dict(scale=None)),
    "own size in 0.x": (v0(scale="None, img_ratios=[1.0]"), dict(scale=None)),
    "short edge": (v1(resize="dict(type='ResizeShortestEdge', scale=64, max_size=96), "), dict(short_edge=True)),
    "least of several short edges": (v1(resize="dict(type='ResizeShortestEdge', scale=(80, 64), max_size=96), "), dict(short_edge=True)),
    "min_size": (v0("keep_ratio=True", "keep_ratio=True, min_size=80"), dict(min_size=80)),
    "padding": (v1(preprocessor="bgr_to_rgb=True, test_cfg=dict(size_divisor=32)"), dict(size_divisor=32)),
    "padding in training alone": (v1(preprocessor="bgr_to_rgb=True, size=(512, 512), size_divisor=32"), {}),
    "padding in 0.x": (
        v0(TO_TENSOR, f"dict(type='Pad', size_divisor=32), {TO_TENSOR}"),
        dict(size_divisor=32),
    ),
    "mean of one": (v1().replace("[1, 2, 3]", "[7]").replace("[4, 5, 6]", "[8]"), dict(mean=(7,) * 3, std=(8,) * 3)),
    "no mean": (v1().replace("mean=[1, 2, 3], std=[4, 5, 6], ", ""), dict(mean=(0,) * 3, std=(1,) * 3)),
    "rgb_to_bgr, which exchanges too": (v1(preprocessor="rgb_to_bgr=True"), {}),
    "no exchange": (v1(preprocessor="bgr_to_rgb=False"), dict(mean=(3, 2, 1), std=(6, 5, 4))),
    "usual options": (v1(resize="dict(type='Resize', scale=(96, 64), keep_ratio=True, backend='cv2', interpolation='bilinear'), "), {}),
    "pictures decoded by Pillow": (v1().replace("'LoadImageFromFile'", "'LoadImageFromFile', imdecode_backend='pillow'"), {}),
    "slide": (v1(test_cfg="dict(mode='slide', crop_size=(8, 9), stride=(6, 7))"), dict(mode="slide", crop=(8, 9), stride=(6, 7))),
}


@pytest.mark.parametrize("text, fields", FOLLOWED_RECIPES.values(), ids=FOLLOWED_RECIPES)
def test_a_setting_of_the_recipe_is_followed(text, fields, state, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model, assumed = load(state, tmp_path, text)
    assert model.recipe == dataclasses.replace(RECIPE, **fields) and not assumed


REFUSED_RECIPES = {
    "interpolation": (v1(resize="dict(type='Resize', scale=9, interpolation='area'), "), "Resize with interpolation='area'"),
    "backend": (v1(resize="dict(type='Resize', scale=9, backend='pillow'), "), "Resize with backend='pillow'"),
    "scale_factor": (v1(resize="dict(type='Resize', scale_factor=0.75), "), "Resize with scale_factor=0.75"),
    "two resizes": (v1(after="dict(type='Resize', scale=9)"), "Resize after Resize"),
    "ResizeToMultiple": (v1(after="dict(type='ResizeToMultiple', size_divisor=32)"), "the step 'ResizeToMultiple'"),
    "with a module path": (v1(after="dict(type='mmseg.datasets.ResizeToMultiple')"), "the step 'ResizeToMultiple'"),
    "an unknown step": (v1(after="dict(type='CenterCrop', crop_size=9)"), "the step 'CenterCrop'"),
    "no step at all": (v1(after="3"), "the step 3"),
    "CLAHE": (v1(after="dict(type='CLAHE')"), "the step 'CLAHE'"),
    "Pad": (v1(after="dict(type='Pad', size_divisor=32)"), "Pad, whose margin is part of the picture"),
    "Pad to a size": (v0(TO_TENSOR, f"dict(type='Pad', size=(9, 9)), {TO_TENSOR}"), "Pad with size=(9, 9)"),
    "Pad before Normalize": (
        v0(NORMALIZE, f"dict(type='Pad', size_divisor=8), {NORMALIZE}"),
        "Pad before Normalize",
    ),
    "padding to a size": (v1(preprocessor="bgr_to_rgb=True, test_cfg=dict(size=(600, 900))"), "test_cfg with size=(600, 900)"),
    "another padding": (v1(preprocessor="bgr_to_rgb=True, pad_val=3, test_cfg=dict(size_divisor=8)"), "data_preprocessor with pad_val=3"),
    "another preprocessor": (v1().replace("SegDataPreProcessor", "Other"), "data_preprocessor with type='Other'"),
    "normalized twice": (v1(after="dict(type='Normalize', mean=[1, 2, 3], std=[1, 1, 1])"), "Normalize in the test pipeline and a data_p"),
    "flips": (v1(after="dict(type='RandomFlip', prob=0.5)"), "RandomFlip, which flips"),
    "a part of the scale": (v0(scale="(96, 64), img_ratios=[0.5]"), "MultiScaleFlipAug with img_ratios=[0.5]"),
    "gray": (v1().replace("'LoadImageFromFile'", "'LoadImageFromFile', color_type='grayscale'"), "LoadImageFromFile with color_type="),
    "an unknown option": (v1(resize="dict(type='Resize', scale=9, sharp=True), "), "Resize with sharp=True"),
    "short edge over the limit": (v1(resize="dict(type='ResizeShortestEdge', scale=9, max_size=8), "), "ResizeShortestEdge with scale=9"),
    "a part of test_cfg": (v1(test_cfg="dict(mode='whole', tiles=3)"), "test_cfg with tiles=3"),
}


@pytest.mark.parametrize("text, what", REFUSED_RECIPES.values(), ids=REFUSED_RECIPES)
def test_what_is_not_done_to_pictures_refuses_prediction_by_name(text, what, state, tmp_path):
    model, assumed = load(state, tmp_path, text)
    assert any(what in item for item in assumed)
    picture = np.zeros((20, 30, 3), np.uint8)
    with pytest.raises(ConfigError) as caught:
        uz.Segmenter(model, optimize=False)
    assert what in str(caught.value)
    back = uz.create_model(str(model.save_pretrained(tmp_path / "saved")))
    assert back.recipe == model.recipe and back.recipe.unsupported
    assert uz.Segmenter(back, recipe=RECIPE, optimize=False)(picture).labels.shape == (20, 30)


def test_what_is_assumed_is_said(state, tmp_path):
    for text, said in (
        (v0(scale="[(96, 64), (48, 32)]"), "one view of a picture"),
        (v0("flip=False", "flip=True"), "one view of a picture"),
        (v0(scale="(96, 64), img_ratios=[0.5, 1.0]"), "one view of a picture"),
        (
            v1() + f"test_dataloader = dict(dataset=dict(pipeline={PIPELINE.replace('96', '80')}))\n",
            "and not as test_pipeline, which differs",
        ),
    ):
        model, assumed = load(state, tmp_path, text)
        assert any(said in item for item in assumed) and not model.recipe.unsupported
    assert model.recipe.scale == (80, 64)


# what mask ids mean


META = {"classes": tuple("abcd"), "palette": [[i, i, i] for i in range(4)]}


@pytest.mark.parametrize(
    "said, text, ids, void_ids, void_id",
    (
        ({}, "", (0, 1, 2, 3), (255,), 255),
        ({"reduce_zero_label": False, "label_map": None}, "", (0, 1, 2, 3), (255,), 255),
        ({"reduce_zero_label": True, "label_map": None}, "", (1, 2, 3, 4), (0, 255), 0),
        ({}, "data = dict(train=dict(reduce_zero_label=True))", (1, 2, 3, 4), (0, 255), 0),
        ({}, "train_dataloader = dict(dataset=dict(dataset=dict(reduce_zero_label=True)))", (1, 2, 3, 4), (0, 255), 0),
        ({}, "train_pipeline = [dict(type='LoadAnnotations', reduce_zero_label=True)]", (1, 2, 3, 4), (0, 255), 0),
        ({}, "dataset_type = 'LoveDADataset'", (1, 2, 3, 4), (0, 255), 0),
        ({"label_map": {0: 255, 3: 0, 4: 1, 7: 3, 9: 2}}, "", (3, 4, 9, 7), (0, 255), 255),
        ({"label_map": {0: 255, 3: 0, 4: 1, 7: 3, 9: 2}, "reduce_zero_label": True}, "", (4, 5, 10, 8), (0, 1, 255), 0),
    ),
)
def test_mask_ids_mean_what_the_training_took_them_for(said, text, ids, void_ids, void_id, state, tmp_path):
    model, assumed = load(state, tmp_path, CONFIG + text, META | said)
    found = model.label_set
    assert (found.dataset_ids, sorted(found.void_ids), found.void_id) == (ids, list(void_ids), void_id) and not assumed
    assert found.classes == META["classes"] and found.palette[3] == (3, 3, 3)


def test_some_classes_of_a_known_data_set_have_its_ids(state, tmp_path):
    classes = ("car", "road", "sky", "bus")
    text = f"data = dict(test=dict(type='CityscapesDataset', classes={classes!r}))\n"
    (tmp_path / "c.py").write_text(CONFIG + text)
    torch.save(state, tmp_path / "bare.pth")
    label_set = uz.load_checkpoint(tmp_path / "bare.pth", config=tmp_path / "c.py").label_set
    known = uz.labels.get("cityscapes").classes
    assert label_set.dataset_ids == tuple(known.index(name) for name in classes) == (13, 0, 10, 15)
    assert len(label_set.void_ids) == 16


def test_a_label_map_that_joins_classes_is_said(state, tmp_path):
    _, assumed = load(state, tmp_path, CONFIG, META | {"label_map": {0: 0, 1: 1, 2: 2, 3: 3, 4: 3}})
    assert len(assumed) == 1 and "mask ids as if nothing were said" in assumed[0]
