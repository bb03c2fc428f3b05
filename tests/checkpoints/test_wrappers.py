"""The ways in which people save a model that they trained: the same weights are found, and what is left out is said."""

import collections
import hashlib
import warnings

import numpy as np
import pytest
import torch
from support.fixture import FIXTURES

import upernet_zoo as uz
from upernet_zoo import factory
from upernet_zoo.errors import CheckpointError, IntegrityError

SOURCE = FIXTURES / "training" / "v0_resnet18_ema" / "checkpoint.pth"


@pytest.fixture(scope="module")
def saved():
    """(meta, published state dict) of a small model."""
    content = torch.load(SOURCE, weights_only=False)
    return content["meta"], {key: value for key, value in content["state_dict"].items() if not key.startswith("ema_")}


@pytest.fixture(scope="module")
def expected():
    return uz.load_checkpoint(SOURCE).state_dict()


def load(content, tmp_path, **options):
    """State dict of the model in a file with that content, and the report."""
    torch.save(content, tmp_path / "mine.pth")
    model, report = factory.load_with_report(tmp_path / "mine.pth", **options)
    return model.state_dict(), report


def same(found, expected):
    return found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)


def prefixed(state, prefix):
    return {prefix + key: value for key, value in state.items()}


def other(state):
    """Another model's weights."""
    return {key: value + 1 if value.is_floating_point() else value for key, value in state.items()}


OPTIMIZER = {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]}
KEYS = [
    "state_dict",
    "model",
    "model_state_dict",
    "model_state",
    "net",
    "network",
    "weights",
    "params",
    "params_ema",
    "state_dict_ema",
    "model_ema",
    "ema",
    "teacher",
    "generator",
]


@pytest.mark.parametrize("key", KEYS)
def test_under_any_key(key, saved, expected, tmp_path):
    content = {"epoch": 3, "optimizer_state_dict": OPTIMIZER, "meta": saved[0], key: saved[1], "step": torch.tensor(3), "loss": 0.5}
    found, report = load(content, tmp_path)
    assert same(found, expected)
    assert {"epoch", "optimizer_state_dict", "loss"} <= set(report.dropped)
    assert any(repr(key) in item for item in report.read) == (key != "state_dict")


def test_under_several_keys(saved, expected, tmp_path):
    found, report = load({"trainer": {"meta": saved[0], "net": {"state_dict": saved[1]}}}, tmp_path)
    assert same(found, expected) and "under 'trainer.net.state_dict'" in report.read


PREFIXES = [
    "module.",
    "_orig_mod.",
    "net.",
    "model.",
    "segmentor.",
    "model.module.",
    "module._orig_mod.",
    "_forward_module.",
    "_fsdp_wrapped_module.",
    "a.b.c.",
    "model._fsdp_wrapped_module.module.",
]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_behind_any_prefix_and_beside_anything(prefix, saved, expected, tmp_path):
    beside = {"criterion.weight": torch.ones(4), "val_iou.confmat": torch.ones(3, 3), "extra.conv.weight": torch.ones(1, 1, 3, 3)}
    found, report = load({"meta": saved[0], "state_dict": prefixed(saved[1], prefix) | beside}, tmp_path)
    assert same(found, expected)
    assert "of training: criterion.weight, val_iou.confmat" in report.dropped
    assert report.lost == ["beside the model: extra.conv.weight"] and report.lost[0] in report.dropped
    with pytest.warns(UserWarning, match="went without beside the model: extra.conv.weight"):
        uz.load_checkpoint(tmp_path / "mine.pth")


def test_wrappers_in_the_middle_of_names(saved, expected, tmp_path):
    def wrapped(key):
        key = key.replace("layer1.0.", "layer1._fsdp_wrapped_module.0._checkpoint_wrapped_module.")
        return "_fsdp_wrapped_module." + key.replace("decode_head.", "decode_head._orig_mod.").replace("backbone.", "backbone.module.")

    found, report = load({"meta": saved[0], "state_dict": {wrapped(key): value for key, value in saved[1].items()}}, tmp_path)
    assert same(found, expected) and report.lost == []


def test_a_loss_inside_the_model_is_of_training(saved, expected, tmp_path):
    inside = {"criterion.weight": torch.ones(4), "loss_fn.aux_loss.weight": torch.ones(4), "train_acc.total": torch.ones(())}
    for prefix in ("", "model."):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found, report = load({"meta": saved[0], "state_dict": prefixed(saved[1] | inside, prefix)}, tmp_path)
        assert same(found, expected)
        assert f"of training: {', '.join(prefix + name for name in inside)}" in report.dropped
    for unknown, message in (("fc.weight", "unexpected: fc.weight"), ("neck.conv.weight", "its neck is of no kind that is known")):
        with pytest.raises(CheckpointError, match=message):
            load({"meta": saved[0], "state_dict": saved[1] | {unknown: torch.ones(1)}}, tmp_path)


def test_an_average_of_torch(saved, expected, tmp_path):
    """torch.optim.swa_utils.AveragedModel."""
    content = {"meta": saved[0], "state_dict": prefixed(saved[1], "module.") | {"n_averaged": torch.tensor(7)}}
    for ema in (False, True):
        found, report = load(content, tmp_path, ema=ema)
        assert same(found, expected) and "of training: n_averaged" in report.dropped
        assert any("averaged weights" in item for item in report.read)


def test_averages_beside_the_weights_are_taken_when_asked_for(saved, expected, tmp_path):
    state, last = saved[1], other(saved[1])
    for content in (
        {"meta": saved[0], "state_dict": last, "state_dict_ema": state},
        {"meta": saved[0], "params": last, "params_ema": state},
        {"meta": saved[0], "model": {"state_dict": last}, "ema_state_dict": {"state_dict": state}},
        {"meta": saved[0], "state_dict": prefixed(last, "model.") | prefixed(state, "ema_model.module.")},
    ):
        found, report = load(content, tmp_path, ema=True)
        assert same(found, expected) and any("of the last step; the averages were asked for" in item for item in report.dropped)
        found, report = load(content, tmp_path)
        assert not same(found, expected) and any("averaged weights; ema=True takes them" in item for item in report.dropped)
    with pytest.raises(CheckpointError, match="has no averaged"):
        load({"meta": saved[0], "state_dict": state}, tmp_path, ema=True)


def test_several_models_are_named_and_none_is_guessed(saved, expected, tmp_path):
    state = saved[1]
    for content, names in (
        ({"student": state, "teacher": other(state)}, ("'student'", "'teacher'")),
        ({"params_ema": state, "model_ema": other(state)}, ("'params_ema'", "'model_ema'")),
        ({"state_dict": prefixed(state, "student.") | prefixed(other(state), "teacher.")}, ("'student.'", "'teacher.'")),
    ):
        with pytest.raises(CheckpointError, match="holds several models") as caught:
            load({"meta": saved[0]} | content, tmp_path)
        assert all(name in str(caught.value) for name in names) and "torch.save(state_dict" in str(caught.value)
    same_twice = {"meta": saved[0], "state_dict": prefixed(state, "model.") | prefixed(state, "compiled._orig_mod.")}
    found, report = load(same_twice, tmp_path)
    assert same(found, expected) and "compiled._orig_mod. (the same weights again)" in report.dropped
    with pytest.raises(CheckpointError, match=r"two different tensors are backbone\.bn1\.bias"):
        load({"meta": saved[0], "state_dict": state | {"module.backbone.bn1.bias": state["backbone.bn1.bias"] + 1}}, tmp_path)


def test_counters_of_a_profiler(saved, expected, tmp_path):
    """What thop.profile registers in every module."""
    counters = {
        f"{module}{name}": torch.zeros(1, dtype=torch.float64)
        for module in ("", "module.", "module.backbone.", "module.backbone.layer1.", "module.decode_head.conv_seg.")
        for name in ("total_ops", "total_params")
    }
    found, report = load({"meta": saved[0], "state_dict": prefixed(saved[1], "module.") | counters}, tmp_path)
    assert same(found, expected) and report.lost == []
    assert report.dropped == ["a profiler's counters (total_ops, total_params)"]


def test_batch_norms_without_their_counter(saved, expected, tmp_path):
    stripped = {key: value for key, value in saved[1].items() if not key.endswith("num_batches_tracked")}
    found, report = load({"meta": saved[0], "state_dict": stripped}, tmp_path)
    assert same(found, {k: torch.zeros_like(v) if k.endswith("num_batches_tracked") else v for k, v in expected.items()})
    assert any("num_batches_tracked=0" in item for item in report.read)


def test_counters_of_any_whole_type_and_parameters_come_back_as_a_model_has_them(saved, expected, tmp_path):
    state = {key: torch.nn.Parameter(value) if value.is_floating_point() else value.int() for key, value in saved[1].items()}
    found, _ = load({"meta": saved[0], "state_dict": state}, tmp_path)
    assert same(found, expected) and {value.dtype for value in found.values()} == {torch.float32, torch.int64}


def test_a_scheduler_with_a_counter_and_a_log_with_a_defaultdict(saved, expected, tmp_path):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 4])
    assert isinstance(scheduler.state_dict()["milestones"], collections.Counter)
    log = collections.defaultdict(list, loss=[1.0])
    content = {"meta": saved[0], "state_dict": saved[1], "param_schedulers": [scheduler.state_dict()], "log": log, "seen": {1, 2}}
    assert same(load(content, tmp_path)[0], expected)


@pytest.mark.parametrize("dtype", (torch.float8_e4m3fn, torch.complex64))
def test_weights_of_a_type_that_no_model_has_are_refused(dtype, saved, tmp_path):
    state = {key: value.to(dtype) if key == "backbone.layer1.0.conv1.weight" else value for key, value in saved[1].items()}
    with pytest.raises(CheckpointError, match=f"conv1.weight is of {dtype}"):
        load({"meta": saved[0], "state_dict": state}, tmp_path)


# what else is in a file, and its name


PROMISES = {
    "upernet_r50_512x512_80k_ade20k_20200614_144127-{}.pth": True,
    "upernet_swin_tiny_patch4_window7_512x512_160k_ade20k_pretrain_224x224_1K_20210531_112542-{}.pth": True,
    "knet_s3_upernet_swin-t_8x2_512x512_adamw_80k_ade20k_20220303_133059-{}.pth": True,
    "upernet_r50_4xb4-80k_ade20k-512x512_20230202_101010-{}.pth": True,
    # mmengine's `published_keys`: SHA-256 of a pickle in memory
    "iter_4000-{}.pth": False,
    "best_mIoU_iter_4000-{}.pth": False,
    "best_mIoU_iter_4000_20260101_120000-{}.pth": False,
    "epoch_20_20260101_120000-{}.pth": False,
    "mine_20260101_120000-{}.pth": False,
}


@pytest.mark.parametrize("name, promises", PROMISES.items(), ids=PROMISES)
def test_only_a_published_name_has_the_files_digest(name, promises, tmp_path):
    path = tmp_path / name.format("0a1b2c3d")
    path.write_bytes(SOURCE.read_bytes())
    if promises:
        with pytest.raises(IntegrityError, match="0a1b2c3d"):
            uz.load_checkpoint(path)
    else:
        assert uz.load_checkpoint(path).config == uz.load_checkpoint(SOURCE).config
    path = path.rename(tmp_path / name.format(hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:8]))
    assert uz.load_checkpoint(path).origin["file"] == path.name


def test_meta_may_hold_arrays(saved, tmp_path):
    """mmsegmentation's random palettes are NumPy arrays."""
    palette = np.arange(9).reshape(3, 3)
    meta = saved[0] | {"PALETTE": palette, "iter": np.int64(3), "x": torch.ones(2), "classes": {"a", "b"}}
    torch.save({"meta": meta, "state_dict": saved[1]}, tmp_path / "a.pth")
    assert uz.load_checkpoint(tmp_path / "a.pth").label_set.palette == ((0, 1, 2), (3, 4, 5), (6, 7, 8))


ODD = (np.arange(3), torch.ones(2), np.float64(2), [1], {"a": 1}, b"text", 3, None, [[1]] * 3, ["x", np.arange(2), 3], 10**30, "\x1b[31m")


@pytest.mark.parametrize("key", ("meta", "config", "CLASSES", "PALETTE", "dataset_meta", "cfg"))
def test_meta_of_any_kind_loads_or_is_refused_by_name(key, saved, tmp_path):
    path = tmp_path / "a.pth"
    for value in ODD:
        torch.save({"meta": value if key == "meta" else saved[0] | {key: value}, "state_dict": saved[1]}, path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                uz.load_checkpoint(path)
            except CheckpointError as error:
                assert str(path) in str(error)
