"""Auxiliary heads as people train them: none, a list, several, of other forms. What the model has no room for is left out and said."""

import itertools
import warnings

import pytest
import torch
from support.fixture import FIXTURES

import upernet_zoo as uz
from upernet_zoo import factory
from upernet_zoo.config import AuxiliaryConfig
from upernet_zoo.errors import CheckpointError

SOURCE = FIXTURES / "training" / "v0_resnet18_ema" / "checkpoint.pth"
WIDTHS = (4, 8, 16, 32)  # of the four features
HEAD = "auxiliary_head."


@pytest.fixture(scope="module")
def saved():
    """(meta, published state dict without an auxiliary head, its auxiliary head without `auxiliary_head.`)."""
    content = torch.load(SOURCE, weights_only=False)
    state = {key: value for key, value in content["state_dict"].items() if not key.startswith("ema_")}
    head = {key.removeprefix(HEAD): value for key, value in state.items() if key.startswith(HEAD)}
    return content["meta"], {key: value for key, value in state.items() if not key.startswith(HEAD)}, head


@pytest.fixture(scope="module")
def expected():
    return uz.load_checkpoint(SOURCE).state_dict()


def fcn_head(feature, channels=8, convs=1, classes=3, kernel=3):
    """Tensors of mmsegmentation's FCNHead."""
    torch.manual_seed(feature)
    state = {}
    for i in range(convs):
        conv = torch.nn.Conv2d(channels if i else WIDTHS[feature], channels, kernel, bias=False)
        state |= {f"convs.{i}.conv.{key}": value for key, value in conv.state_dict().items()}
        state |= {f"convs.{i}.bn.{key}": value for key, value in torch.nn.BatchNorm2d(channels).state_dict().items()}
    return state | {f"conv_seg.{key}": value for key, value in torch.nn.Conv2d(channels, classes, 1).state_dict().items()}


def with_auxiliary_head(text, settings):
    """A config's text with another `auxiliary_head`."""
    start = text.index("auxiliary_head=dict(")
    depths = itertools.accumulate({"(": 1, ")": -1}.get(character, 0) for character in text[start:])
    opened = itertools.dropwhile(lambda item: item[1] == 0, enumerate(depths, start))
    end = next(position for position, depth in opened if depth == 0)
    return f"{text[:start]}auxiliary_head={settings}{text[end + 1 :]}"


def load(saved, tmp_path, heads, settings=None):
    """(model, report, warnings) of a checkpoint with these tensors under `auxiliary_head.`, and that setting in its config."""
    meta, state, _ = saved
    path = tmp_path / "a.pth"
    text = meta["config"] if settings is None else with_auxiliary_head(meta["config"], settings)
    torch.save({"meta": meta | {"config": text}, "state_dict": state | {HEAD + key: value for key, value in heads.items()}}, path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = uz.load_checkpoint(path)
    return model, factory.load_with_report(path)[1], [str(warning.message) for warning in caught]


def numbered(*heads):
    return {f"{i}.{key}": value for i, head in enumerate(heads) for key, value in head.items()}


def inference_part(state):
    return {key: value for key, value in state.items() if not key.startswith(HEAD)}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("settings", (None, "None", "[]"))
def test_none(settings, saved, expected, tmp_path):
    model, report, warned = load(saved, tmp_path, {}, settings)
    assert model.config.auxiliary is None and model.auxiliary_head is None
    assert same(model.state_dict(), inference_part(expected)) and not warned and not report.dropped
    again = uz.create_model(f"local-dir:{model.save_pretrained(tmp_path / 'saved')}")
    assert again.config == model.config and same(again.state_dict(), model.state_dict())


@pytest.mark.parametrize("settings", (None, "[dict(type='FCNHead', in_index=2)]"))
def test_a_list_of_one(settings, saved, expected, tmp_path):
    model, report, warned = load(saved, tmp_path, numbered(saved[2]), settings)
    assert same(model.state_dict(), expected) and not warned and not report.dropped


def test_of_several_the_usual_one_is_kept(saved, expected, tmp_path):
    heads = numbered(fcn_head(1), saved[2], fcn_head(3))
    model, report, warned = load(saved, tmp_path, heads, "[dict(type='FCNHead', in_index=i) for i in (1, 2, 3)]")
    assert same(model.state_dict(), expected)
    assert report.lost == [f"auxiliary_head.{i} (a model has one auxiliary head)" for i in (0, 2)] and set(report.lost) <= set(
        report.dropped
    )
    assert any("the model went without auxiliary_head.0" in text for text in warned)


@pytest.mark.parametrize("feature, convs, channels", ((2, 2, 8), (1, 1, 8), (3, 1, 12), (0, 3, 4)))
def test_more_convolutions_and_another_feature(feature, convs, channels, saved, expected, tmp_path):
    head = fcn_head(feature, channels, convs)
    model, _report, warned = load(saved, tmp_path, head, f"dict(type='FCNHead', in_index={feature - 4}, num_convs={convs})")
    assert model.config.auxiliary == AuxiliaryConfig(feature=feature, channels=channels, convs=convs) and not warned
    found = model.state_dict()
    assert same(inference_part(found), inference_part(expected))
    assert torch.equal(found[f"{HEAD}convs.{convs - 1}.conv.weight"], head[f"convs.{convs - 1}.conv.weight"])
    assert torch.equal(found[f"{HEAD}classifier.weight"], head["conv_seg.weight"])
    back = uz.interop.mmsegmentation.to_mmsegmentation(model, tmp_path / "back.pth")
    assert same(uz.load_checkpoint(back).state_dict(), found)


OTHERS = {
    "concatenated with its input": (lambda h: h | {"conv_cat.conv.weight": torch.ones(8, 24, 3, 3)}, None, "conv_cat.conv.weight"),
    "1x1 convolutions": (lambda h: fcn_head(2, kernel=1), None, r"its convolutions are of \(8, 16, 1, 1\)"),
    "no batch norm": (lambda h: {k: v for k, v in h.items() if ".bn." not in k}, None, "with batch norms"),
    "other classes": (lambda h: fcn_head(2, classes=1), None, "there are 3 classes"),
    "of no feature's width": (lambda h: h | {"convs.0.conv.weight": torch.ones(8, 5, 3, 3)}, None, "takes 5 channels"),
    "another kind": (lambda h: h, "dict(type='DepthwiseSeparableFCNHead')", "type='DepthwiseSeparableFCNHead'"),
    "a weight of another rank": (lambda h: h | {"convs.0.conv.weight": torch.ones(8)}, None, "its convolutions are of"),
    "unlike anything": (lambda h: {"x.y": torch.ones(1)}, None, "not of 3x3 convolutions"),
}


@pytest.mark.parametrize("number", (False, True), ids=("alone", "in a list"))
@pytest.mark.parametrize("change, settings, message", OTHERS.values(), ids=OTHERS)
def test_what_does_not_fit_is_left_out_and_said(number, change, settings, message, saved, expected, tmp_path):
    head = change(saved[2])
    model, report, warned = load(saved, tmp_path, numbered(head) if number else head, settings)
    assert model.config.auxiliary is None and same(model.state_dict(), inference_part(expected))
    with pytest.raises(AssertionError, match=message):
        raise AssertionError("\n".join(warned))
    assert len(report.lost) == 1 and report.lost[0] in report.dropped


def test_a_head_of_upernets_own_is_not_called_another(saved, tmp_path):
    meta, state, _head = saved
    broken = {key: value for key, value in state.items() if not key.startswith("backbone.layer4")}
    torch.save({"meta": meta, "state_dict": broken}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError) as caught:
        uz.load_checkpoint(tmp_path / "a.pth")
    assert "looks like" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ("torch.nn.BatchNorm2d", "torch.nn.SyncBatchNorm", "torch.nn.modules.batchnorm.SyncBatchNorm", "SyncBatchNorm", "mmcv.BN")
)
def test_batch_norms_as_configs_in_pure_python_name_them(name, saved, expected, tmp_path):
    meta, state, head = saved
    text = meta["config"].replace("'SyncBN'", repr(name)).replace("'BN'", repr(name))
    assert name in text
    torch.save({"meta": meta | {"config": text}, "state_dict": state | {HEAD + k: v for k, v in head.items()}}, tmp_path / "a.pth")
    assert same(uz.load_checkpoint(tmp_path / "a.pth").state_dict(), expected)
