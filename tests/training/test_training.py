"""Fine-tuning: the loop, what it keeps, what it refuses; against mmsegmentation, timm, torch and itself uninterrupted."""

import contextlib
import copy
import csv
import dataclasses
import json
import multiprocessing
import os
import re
import resource
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support.fixture import FIXTURES, ROOT
from support.models import small_config
from support.training_runs import run, small_model
from torch import nn

import upernet_zoo as uz
from upernet_zoo import errors
from upernet_zoo.cli import main
from upernet_zoo.demo import folder as demo_folder
from upernet_zoo.labels import LabelSet
from upernet_zoo.training import TrainingSettings, loop, open_splits, survey, train
from upernet_zoo.training import augment as augmentation
from upernet_zoo.training.data import Crops, batches
from upernet_zoo.training.workers import steady

FOUR = LabelSet(name="four", classes=tuple(demo_folder.MERGED))
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "tests"), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
SHORT = TrainingSettings(steps=4, batch_size=2, crop=(48, 48), evaluate_every=2)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Drawn scenes with four classes, in two splits."""
    root = tmp_path_factory.mktemp("scenes")
    demo_folder.write(root / "train", range(9), size=(64, 96))
    demo_folder.write(root / "val", range(100, 103), size=(64, 96))
    (root / "classes.txt").write_text("\n".join(FOUR.classes) + "\n")
    return root


@pytest.fixture
def own_root(tmp_path):
    """A few scenes to spoil."""
    demo_folder.write(tmp_path / "own", range(6), size=(64, 96))
    (tmp_path / "own" / "classes.txt").write_text("\n".join(FOUR.classes))
    return tmp_path / "own"


# the model's side


@pytest.mark.parametrize("case", range(4))
def test_the_loss_equals_mmsegmentations(case):
    """Logits, labels and losses of tools/make_loss_fixture.py: `avg_non_ignore=True`."""
    data = np.load(FIXTURES / "loss.npz")
    decode, auxiliary, target, expected, align_corners = (
        torch.from_numpy(data[f"{key}_{case}"]) for key in ("decode", "auxiliary", "target", "loss", "align_corners")
    )
    model = uz.UPerNet(small_config(num_classes=7, align_corners=bool(align_corners)))
    model.backbone.forward = lambda x: []
    model.decode_head.forward, model.auxiliary_head.forward = lambda _: decode, lambda _: auxiliary
    found = model.loss(torch.zeros(2, 3, *target.shape[1:]), target)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


def test_frozen_stages_keep_weights_and_statistics_also_after_train():
    model = small_model(FOUR)
    model.freeze_stages(2)
    model.train()
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameter_groups(0.1))
    model.loss(torch.randn(2, 3, 64, 64), torch.randint(0, 4, (2, 64, 64))).backward()
    optimizer.step()
    frozen = ("backbone.stem.", "backbone.layer1.", "backbone.layer2.")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) == name.startswith(frozen), name


def test_batch_norm_of_one_picture():
    model = small_model(FOUR).train()
    x, target = torch.randn(1, 3, 64, 64), torch.randint(0, 4, (1, 64, 64))
    with pytest.raises(errors.ArgumentError, match=r"one picture cannot train .* batches of two or more, .*freeze_batch_norm\(\)"):
        model.loss(x, target)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.freeze_batch_norm()
    model.train()
    model.loss(x, target).backward()
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    assert model.backbone.layer1[0].conv1.weight.grad.abs().sum() > 0


def test_gradient_checkpointing_changes_no_bit_and_counts_no_picture_twice():
    plain = small_model(FOUR).train()
    saving = copy.deepcopy(plain)
    saving.set_grad_checkpointing()
    x, target = torch.randn(2, 3, 64, 64), torch.randint(0, 4, (2, 64, 64))
    kept = []
    for model in (plain, saving):
        torch.manual_seed(0)  # dropout
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, saved=saved: saved.append(t.numel()) or t, lambda t: t):
            loss = model.loss(x, target)
        loss.backward()
        kept.append(sum(saved))
    assert kept[1] < kept[0]
    for (name, a), (_, b) in zip(plain.named_parameters(), saving.named_parameters()):
        assert torch.equal(a.grad, b.grad), name
    for (name, a), (_, b) in zip(plain.named_buffers(), saving.named_buffers()):
        assert torch.equal(a, b), name


def test_parameter_groups_hold_every_trained_parameter_once():
    model = small_model(FOUR)
    model.freeze_stages(0)
    groups = model.parameter_groups(0.01, head_multiplier=10)
    expected = {}
    for name, parameter in model.named_parameters():
        if not name.startswith("backbone.stem."):
            module = model.get_submodule(name.rpartition(".")[0])
            norm_or_bias = isinstance(module, nn.BatchNorm2d) or name.endswith(".bias")
            expected[parameter] = (0.01 if name.startswith("backbone.") else 0.1, 0.0 if norm_or_bias else None)
    found = [(p, (group["lr"], group.get("weight_decay"))) for group in groups for p in group["params"]]
    assert len(found) == len(expected) and dict(found) == expected
    with_decay = model.parameter_groups(0.01, no_decay_norm=False)
    assert len(with_decay) == 2 and not any("weight_decay" in group for group in with_decay)


@pytest.mark.parametrize("in_channels", [1, 2, 4, 7])
@pytest.mark.parametrize("deep_stem", [True, False])
def test_other_input_channels_as_timm_adapts_them(in_channels, deep_stem, tmp_path):
    from timm.models import adapt_input_conv

    config = small_config(num_classes=4, deep_stem=deep_stem)
    original = uz.UPerNet(config, label_set=FOUR)
    original.save_pretrained(tmp_path)
    model = uz.create_model(f"local-dir:{tmp_path}", in_channels=in_channels)
    assert torch.equal(model.backbone.first_conv.weight, adapt_input_conv(in_channels, original.backbone.first_conv.weight.detach()))
    assert model.config.in_channels == len(model.recipe.mean) == len(model.recipe.std) == in_channels
    assert model(torch.randn(2, in_channels, 64, 64)).shape == (2, 4, 64, 64)
    model.save_pretrained(tmp_path / "other")
    again = uz.create_model(f"local-dir:{tmp_path / 'other'}")
    assert torch.equal(again.backbone.first_conv.weight, model.backbone.first_conv.weight)
    with pytest.raises(errors.ConfigError, match=f"has {in_channels} input channels; only one of 3 can be adapted to 5"):
        uz.create_model(f"local-dir:{tmp_path / 'other'}", in_channels=5)
    assert uz.create_model(f"local-dir:{tmp_path}", False, in_channels=in_channels).config == model.config


# crops


@given(st.integers(0, 2**32 - 1), st.tuples(st.integers(20, 90), st.integers(20, 90)), st.tuples(st.integers(32, 80), st.integers(32, 80)))
@settings(max_examples=40)
def test_a_crop_keeps_picture_and_labels_together(seed, size, crop):
    """Each class has a gray of its own: what is normalized back must be the labels' gray, away from where classes meet."""
    rng = np.random.default_rng(seed)
    target = np.kron(rng.integers(0, 4, (9, 9)), np.ones((10, 10), np.int64))[: size[0], : size[1]]
    image = (60 * target + 30).astype(np.uint8)[..., None].repeat(3, 2)
    recipe = uz.Recipe(scale=(96, 64))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(augmentation, "distort", lambda image, rng: image)
        x, labels = augmentation.augment(image, target, np.random.default_rng(seed), recipe, crop, 255)
    assert x.shape == (3, *crop) and x.dtype == torch.float32 and labels.shape == crop and labels.dtype == torch.int64
    gray = (x * torch.tensor(recipe.std)[:, None, None] + torch.tensor(recipe.mean)[:, None, None]).mean(0)
    padded = labels == 255
    assert (x[:, padded] == 0).all()
    same = nn.functional.max_pool2d(labels[None, None].float(), 9, 1, 4) == -nn.functional.max_pool2d(-labels[None, None].float(), 9, 1, 4)
    inner = same[0, 0] & ~padded
    inner[:4], inner[-4:], inner[:, :4], inner[:, -4:] = False, False, False, False  # what lies outside the crop mixes in too
    if inner.any():
        assert (gray[inner] - (60 * labels[inner] + 30)).abs().max() < 2


def test_crops_hold_at_most_three_quarters_of_a_class_where_there_are_such():
    target = np.zeros((64, 96), np.int64)
    target[:, 60:] = 1  # most crops of 48 pixels hold too much of class 0
    image = np.zeros((64, 96, 3), np.uint8)
    shares = []
    for seed in range(60):
        labels = augmentation.augment(image, target, np.random.default_rng(seed), uz.Recipe(scale=(96, 64)), (40, 40), 255)[1]
        counts = np.bincount(labels[labels != 255])
        shares.append(counts.max() / counts.sum())
    assert np.mean(np.array(shares) < augmentation.MAX_SHARE) > 0.9


def test_distortion_changes_colors_as_much_as_the_original_does():
    """Gray pictures: hue and saturation leave them, so what is left is the original's factor * (value + offset), clipped to 8 bits."""
    image = torch.full((3, 8, 8), 100, dtype=torch.uint8)
    values = np.array([augmentation.distort(image, np.random.default_rng(seed))[0, 0, 0].item() for seed in range(2000)])
    assert abs((abs(values - 100) <= 1).mean() - 0.26) < 0.04  # neither brightness nor contrast, or hardly
    assert values.min() in range(34, 42) and values.max() in range(190, 199)  # 0.5 * 68 and 1.5 * 132


def test_a_crop_follows_from_its_position_alone(root):
    training, _ = open_splits("folder", root)
    settings = TrainingSettings(steps=6, batch_size=4, crop=(48, 48))
    recipe = uz.Recipe(scale=(96, 64))
    whole = list(batches(Crops(training, recipe, settings), 0, 0, 1, 0, False))
    assert len(whole) == 6
    later = list(batches(Crops(training, recipe, settings), 4, 0, 1, 1, False))  # from step 4 on, read by another process
    shared = [list(batches(Crops(training, recipe, settings), 0, rank, 2, 0, False)) for rank in (0, 1)]
    for step in range(6):
        for part in (0, 1):
            assert torch.equal(whole[step][part], torch.cat([shared[rank][step][part] for rank in (0, 1)]))
            assert step < 4 or torch.equal(whole[step][part], later[step - 4][part])
    seen = [int(Crops(training, recipe, settings)._picture(position)) for position in range(18)]
    assert sorted(seen[:9]) == sorted(seen[9:]) == list(range(9)) and seen[:9] != seen[9:]  # each picture once, then all again


def test_learning_rate_is_poly_with_a_warm_up():
    settings = TrainingSettings(steps=100, warmup=0.1)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    poly = torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=100, power=0.9)
    for step in range(100):
        expected = 0.01 + 0.99 * poly.get_last_lr()[0]  # mmcv's poly with min_lr a hundredth of lr
        assert settings.lr_factor(step) == pytest.approx(expected * min(1, (step + 1) / 10), rel=1e-9)
        optimizer.step()
        poly.step()


# the loop


def weights(folder):
    return uz.create_model(f"local-dir:{folder}").state_dict()


def assert_equal_weights(a, b):
    a, b = weights(a), weights(b)
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def test_it_learns_logs_and_keeps_the_best_and_the_last(root, tmp_path):
    training, validation = open_splits("folder", root)
    model = small_model(training.label_set)
    settings = TrainingSettings(steps=30, batch_size=4, crop=(64, 64), lr=0.005, evaluate_every=10, optimizer="adamw", amp=True)
    result = train(model, training, validation, tmp_path, settings, progress=False)
    rows = list(csv.DictReader((tmp_path / "log.csv").open()))
    assert [int(row["step"]) for row in rows] == list(range(1, 31))
    assert sum(float(row["loss"]) for row in rows[-5:]) < 0.9 * sum(float(row["loss"]) for row in rows[:5])
    scores = {int(row["step"]): float(row["mIoU"]) for row in rows if row["mIoU"]}
    assert sorted(scores) == [10, 20, 30]
    assert max(scores.values()) == pytest.approx(result.best_mIoU) == pytest.approx(scores[result.best_step])
    for folder, mIoU in ((result.best, result.best_mIoU), (result.last, scores[30])):
        kept = uz.create_model(f"local-dir:{folder}")
        assert kept.label_set == training.label_set
        assert uz.evaluate(kept, validation, amp=True, progress=False).mIoU == pytest.approx(mIoU, abs=0.005)
    assert not model.training and all(torch.equal(model.state_dict()[name], tensor) for name, tensor in weights(result.last).items())
    assert result.plot(tmp_path / "curves.svg").read_text().count("mIoU in %")
    again = train(small_model(training.label_set), training, validation, tmp_path, settings, progress=False)  # nothing is left to do
    assert again == result


def test_killed_again_and_again_it_comes_to_the_same_weights(root, tmp_path):
    """kill -9 between and within steps, while the state is written, and between the best model and the state."""
    command = [sys.executable, str(ROOT / "tests" / "support" / "training_runs.py"), "kill", str(root), str(tmp_path)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    for name in ("best", "last"):
        assert_equal_weights(tmp_path / "killed" / name, tmp_path / "whole" / name)
    state, other = (torch.load(tmp_path / name / "state.pt", weights_only=True) for name in ("killed", "whole"))
    for a, b in zip(state["parts"]["optimizer"]["state"].values(), other["parts"]["optimizer"]["state"].values()):
        assert torch.equal(a["momentum_buffer"], b["momentum_buffer"])
    for progress in (state["progress"], other["progress"]):
        progress.pop("seconds")
        [row.pop("seconds") for row in progress["rows"]]
    assert state["progress"] == other["progress"]


def test_two_processes_take_the_step_of_one(root, tmp_path):
    script = [str(ROOT / "tests" / "support" / "training_runs.py"), "step", str(root)]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    for command, out in (([sys.executable], "one"), (launch, "two")):
        done = subprocess.run([*command, *script, str(tmp_path / out)], env=ENVIRONMENT, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr
    one, two = (torch.load(tmp_path / out / "state.pt", weights_only=True)["parts"]["optimizer"] for out in ("one", "two"))
    # after one step without weight decay SGD's momentum is the gradient
    gradients = [(one["state"][key]["momentum_buffer"], two["state"][key]["momentum_buffer"]) for key in one["state"]]
    assert len(gradients) == sum(len(group["params"]) for group in one["param_groups"])
    for a, b in gradients:
        assert a.norm() > 0 and (a - b).norm() <= 1e-6 * a.norm()


def test_a_batch_that_the_processes_cannot_share(root, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "process_group", lambda device: contextlib.nullcontext((0, 3)))
    with pytest.raises(errors.ArgumentError, match="A batch of 2 cannot be shared by 3 processes"):
        run(root, tmp_path, SHORT)


# what is refused


def test_masks_with_unknown_ids_are_all_named(own_root):
    for name in ("000001.png", "000003.png"):
        mask = np.array(Image.open(own_root / "masks" / name))
        mask[:2] = (7, 9)[name == "000003.png"]
        Image.fromarray(mask).save(own_root / "masks" / name)
    training, _ = open_splits("folder", own_root)
    with pytest.raises(errors.ArgumentError) as error:
        survey(training, "training", progress=False)
    message = str(error.value)
    assert message.startswith("2 of 5 training pictures cannot be used:")
    assert "masks/000001.png: Label set 'own' has no label ids 7." in message and "masks/000003.png: " in message and "ids 9." in message


def test_pictures_without_masks_and_of_other_sizes(own_root, tmp_path):
    Image.new("L", (30, 20)).save(own_root / "masks" / "000002.png")
    with pytest.raises(
        errors.ImageError, match=r"(?s)1 of 5 training .*000002.png: the labels are 30x20 pixels and the picture .* is 96x64"
    ):
        run(own_root, tmp_path / "out", SHORT)
    assert not (tmp_path / "out").exists()
    (own_root / "masks" / "000002.png").unlink()
    with pytest.raises(errors.MissingFileError, match=r"1 of 6 pictures without labels: no file .*masks/000002.png"):
        run(own_root, tmp_path / "out", SHORT)


def test_a_single_class(own_root, tmp_path):
    for path in (own_root / "masks").iterdir():
        Image.fromarray(np.full((64, 96), 2, np.uint8)).save(path)
    with pytest.raises(errors.ArgumentError, match="Every labeled pixel of the 5 training pictures is 'sky': there is nothing to learn"):
        run(own_root, tmp_path / "out", SHORT)
    for path in (own_root / "masks").iterdir():
        Image.fromarray(np.full((64, 96), 255, np.uint8)).save(path)
    with pytest.raises(errors.ArgumentError, match="The 5 training pictures have no labeled pixel"):
        run(own_root, tmp_path / "out", SHORT)
    for path in (own_root / "masks").iterdir():
        Image.fromarray(np.zeros((64, 96), np.uint8)).save(path)
    (own_root / "classes.txt").write_text("all\n")
    with pytest.raises(errors.ArgumentError, match="has the one class 'all': a model can only tell several apart"):
        run(own_root, tmp_path / "out", SHORT)


def test_empty_splits(root, own_root, tmp_path):
    training, validation = open_splits("folder", root)
    with pytest.raises(errors.MissingFileError, match="No validation pictures: the split is empty"):
        train(small_model(FOUR), training, validation.subset([]), tmp_path / "out", SHORT, progress=False)
    for path in sorted((own_root / "images").iterdir())[1:]:
        path.unlink()
    with pytest.raises(errors.ArgumentError, match="one picture cannot be both trained on and measured by"):
        open_splits("folder", own_root)
    (own_root / "train" / "images").mkdir(parents=True)
    (own_root / "train" / "masks").mkdir()
    with pytest.raises(errors.MissingFileError, match="no pictures under .*own, split 'train'"):
        open_splits("folder", own_root)


def test_a_folder_without_splits_holds_out_every_fifth(own_root):
    training, validation = open_splits("folder", own_root)
    assert validation.names == ("000004",) and training.names == ("000000", "000001", "000002", "000003", "000005")
    (own_root / "classes.txt").write_text("a\nb\na\n")
    with pytest.raises(errors.ArgumentError, match=r"classes.txt: a more than once. Give each class a name of its own"):
        open_splits("folder", own_root)
    (own_root / "classes.txt").unlink()
    with pytest.raises(errors.ArgumentError, match=r"classes.txt: not there, .* --classes NAME,NAME"):
        open_splits("folder", own_root)


def test_nan_stops_with_the_step_and_the_last_good_state(root, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(TrainingSettings, "lr_factor", lambda self, step: 1e20 if step == 2 else 1.0)
        with pytest.raises(errors.TrainingDivergedError) as error:
            run(root, tmp_path, SHORT, save_every=60.0)
    message = str(error.value)
    assert "after step 3 the weights are not finite" in message or "in step 4" in message
    assert f"of step 2, is kept in {tmp_path / 'state.pt'}; the best model, of step 2, is in {tmp_path / 'best'}" in message
    assert "a lower learning rate than 0.001" in message
    assert all(torch.isfinite(tensor).all() for tensor in weights(tmp_path / "best").values())
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state["progress"]["step"] == 2
    assert run(root, tmp_path, SHORT).rows[-1]["step"] == 4  # from the good state, at the right rate


def test_a_learning_rate_that_gives_nan(root, tmp_path):
    with pytest.raises(errors.TrainingDivergedError, match=r"Training stopped: .* step \d.* learning rate of \d\S*e\+2"):
        run(root, tmp_path, TrainingSettings(steps=4, batch_size=2, crop=(48, 48), lr=1e25, warmup=0, evaluate_every=4))


def test_a_full_disk_loses_nothing(root, tmp_path):
    with pytest.raises(KeyboardInterrupt), pytest.MonkeyPatch.context() as patch:
        step = loop._Run._step
        patch.setattr(loop._Run, "_step", lambda self, number, *a: step(self, number, *a) if number < 3 else interrupt())
        run(root, tmp_path, SHORT)
    kept = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert {path.name for path in kept} >= {"state.pt", "log.csv", "model.safetensors", "config.json"}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(errors.WriteError, match="the disk or the quota is full"):
            run(root, tmp_path, SHORT)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == kept
    assert run(root, tmp_path, SHORT).rows[-1]["step"] == 4


def interrupt():
    raise KeyboardInterrupt


def test_another_runs_state_is_refused_and_kept(root, tmp_path):
    run(root, tmp_path, SHORT)
    state = (tmp_path / "state.pt").read_bytes()
    with pytest.raises(errors.StateError, match=r"the state of another run \(settings lr 0.001, now 0.002\). Choose another folder"):
        run(root, tmp_path, TrainingSettings(**{**SHORT.to_dict(), "lr": 0.002}))
    assert (tmp_path / "state.pt").read_bytes() == state
    (tmp_path / "state.pt").write_bytes(state[: len(state) // 2])
    with pytest.raises(errors.StateError, match="not the state of a training run"):
        run(root, tmp_path, SHORT)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"steps": 0}, "steps must be a whole number from 1 up, found 0"),
        ({"batch_size": 2.0}, "batch_size must be a whole number from 1 up, found 2.0"),
        ({"lr": 0}, "lr must be a number above 0, found 0"),
        ({"lr": float("nan")}, "lr must be a number above 0, found nan"),
        ({"warmup": 2}, "warmup must be a share of the steps, from 0 to 1, found 2"),
        ({"layer_decay": 0}, "layer_decay must be a factor above 0 and up to 1, found 0"),
        ({"layer_decay": 1.5}, "layer_decay must be a factor above 0 and up to 1, found 1.5"),
        ({"layer_decay": float("nan")}, "layer_decay must be a factor above 0 and up to 1, found nan"),
        ({"optimizer": "adam"}, "optimizer must be 'sgd' or 'adamw', found 'adam'"),
        ({"freeze_stages": 5}, "freeze_stages must be a whole number from 0 to 4, found 5"),
        ({"crop": (16, 64)}, r"crop must be \(height, width\) in pixels, each from 32 up, found \(16, 64\)"),
        ({"amp": 1}, "amp must be True or False, found 1"),
    ],
)
def test_settings_that_cannot_be_used(changes, message):
    with pytest.raises(errors.ArgumentError, match=message):
        TrainingSettings(**changes)


def test_models_that_cannot_be_trained_on_these_pictures(root, tmp_path):
    splits = open_splits("folder", root)
    other = LabelSet(name="other", classes=("a", "b", "c", "d"))
    with pytest.raises(errors.ConfigError, match=r"made for those of 'other'.*reset_classifier\(dataset.label_set\)"):
        train(small_model(other), *splits, tmp_path / "out")
    model = small_model(FOUR)
    model.adapt_input(4)
    with pytest.raises(errors.ArgumentError, match="takes RGB pictures, and the model has 4 input channels"):
        train(model, *splits, tmp_path / "out")
    model = small_model(FOUR)
    model.recipe = dataclasses.replace(model.recipe, unsupported=("CLAHE",))
    with pytest.raises(errors.ConfigError, match="evaluation does what this library does not.*CLAHE"):
        train(model, *splits, tmp_path / "out")
    with pytest.raises(errors.ArgumentError, match=r"(?s)one picture cannot train the batch norm"):
        run(root, tmp_path / "out", TrainingSettings(steps=1, batch_size=1, crop=(48, 48)))


# the command line


def test_command_line(root, tmp_path, capsys):
    small_model(LabelSet(name="two", classes=("a", "b"))).save_pretrained(tmp_path / "model")
    command = ["train", "folder", str(root), "--model", f"local-dir:{tmp_path / 'model'}", "--out", str(tmp_path / "out")]
    command += ["--steps", "2", "--batch-size", "2", "--crop", "64x64", "--lr", "0.01", "--device", "cpu"]
    assert main.main([*command, "--dry-run"]) == 0
    table = capsys.readouterr().out
    masks = np.concatenate([np.array(Image.open(path)).ravel() for path in sorted((root / "train" / "masks").iterdir())])
    for id, name in enumerate(FOUR.classes):
        row = next(line.split() for line in table.splitlines() if f" {name} " in line)
        assert row[0] == str(id) and row[2] == f"{(masks == id).mean():.2%}"
    assert not (tmp_path / "out" / "state.pt").exists()
    picture = Image.open(tmp_path / "out" / "dry_run.png")
    assert picture.width >= 2 * 64 and picture.height >= 2 * 64
    assert main.main([*command, "--plot"]) == 0
    assert f"local-dir:{tmp_path / 'out' / 'best'}" in capsys.readouterr().out
    assert (tmp_path / "out" / "curves.png").stat().st_size > 1000
    config = json.loads((tmp_path / "out" / "best" / "config.json").read_text())
    assert tuple(config["labels"]["classes"]) == FOUR.classes
    assert main.main([*command, "--lr", "-1"]) == 1
    assert "lr must be a number above 0, found -1.0" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["log.csv", "best/config.json", "best/README.md", "last/model.safetensors", "curves.png"])
def test_what_no_run_wrote_is_kept(root, tmp_path, capsys, name, monkeypatch):
    path = tmp_path / "out" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    command = ["train", "folder", str(root), "--model", "demo", "--out", str(tmp_path / "out"), "--device", "cpu", "--plot"]
    monkeypatch.setattr("upernet_zoo.cli.train.load_model", lambda args: pytest.fail("refused before a model is loaded"))
    assert main.main(command) == 1
    assert f"{path} is there already and is not marked as written by upernet_zoo. Choose another folder" in capsys.readouterr().err
    assert [p for p in (tmp_path / "out").rglob("*") if p.is_file()] == [path] and path.read_text() == "mine"
    if name != "curves.png":
        with pytest.raises(errors.ExistingFileError, match="is not marked"):
            run(root, tmp_path / "out", TrainingSettings(steps=1, batch_size=2, crop=(48, 48)))


def test_a_run_whose_state_is_removed_may_start_again(root, tmp_path):
    once = TrainingSettings(steps=1, batch_size=2, crop=(48, 48))
    result = run(root, tmp_path, once)
    (tmp_path / "state.pt").unlink()
    again = run(root, tmp_path, once)
    assert (again.best_mIoU, again.best_step) == (result.best_mIoU, 1)
    first = result.plot(tmp_path / "a.svg").read_bytes()
    assert result.plot(tmp_path / "a.svg").exists() and b"upernet_zoo" in first


def test_layers_learn_at_rates_of_their_own(root, tmp_path, monkeypatch):
    """AdamW gets them, and the weight decay of the settings for all but norms and biases."""
    made = []

    class Spy(torch.optim.AdamW):
        def __init__(self, groups, **options):
            made.append(([(group["lr"], group.get("weight_decay")) for group in groups], options))
            super().__init__(groups, **options)

    monkeypatch.setattr(torch.optim, "AdamW", Spy)
    settings = TrainingSettings(steps=1, batch_size=2, crop=(48, 48), optimizer="adamw", lr=0.32, layer_decay=0.5, weight_decay=0.05)
    run(root, tmp_path, settings)
    ((groups, options),) = made
    assert options == {"weight_decay": 0.05}
    rates = (0.01, 0.02, 0.04, 0.08, 0.16, 3.2)  # the stem, four stages, the heads
    assert groups == [(pytest.approx(rate), decay) for rate in rates for decay in (None, 0.0)]


@pytest.mark.parametrize("where", ["starting", "reading", "updating", "writing", "sending"])
def test_a_worker_that_dies_leaves_a_whole_state_and_says_what_to_do(root, tmp_path, where):
    """In a process of its own: torch raises what it says of a dead worker wherever the main thread is by then."""
    command = [sys.executable, str(ROOT / "tests" / "support" / "training_runs.py"), "died", str(root), str(tmp_path), where]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert not re.search("Traceback|Exception", done.stderr), done.stderr
    assert re.search(r"is kept in .*state.*the same call goes on from it.*--workers 0.*--shm-size", done.stdout), done.stdout
    assert_equal_weights(tmp_path / "died" / "last", tmp_path / "whole" / "last")


class Broken(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, position):
        raise RuntimeError("this position is broken") if position == 2 else ConnectionResetError("the server went away")


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(("first", "error"), [(2, RuntimeError), (1, ConnectionResetError)])
def test_an_error_of_a_worker_that_lives_is_no_death(first, error, workers):
    context = "fork" if workers else None
    loader = torch.utils.data.DataLoader(Broken(), sampler=[first], num_workers=workers, multiprocessing_context=context)
    with pytest.raises(error, match="this position is broken|the server went away") as found:
        list(steady(loader))
    assert not isinstance(found.value, errors.WorkerError)


@pytest.fixture
def handled():
    """The signals of ended processes that a handler of the user's got."""
    found = []
    before = signal.signal(signal.SIGCHLD, lambda *args: found.append(args))
    yield found
    signal.signal(signal.SIGCHLD, before)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_users_own_handler_gets_its_signals(handled, workers):
    handler, others = signal.getsignal(signal.SIGCHLD), multiprocessing.active_children()
    context = "fork" if workers else None
    loader = torch.utils.data.DataLoader(range(20), num_workers=workers, multiprocessing_context=context)
    with contextlib.closing(steady(loader)) as left:
        next(left)
        handled.clear()
        subprocess.run([sys.executable, "-c", ""], check=True)
        assert bool(handled) == (workers == 0)
        next(left)
        assert handled
        handled.clear()
        subprocess.run([sys.executable, "-c", ""], check=True)
    assert handled
    assert signal.getsignal(signal.SIGCHLD) == handler and set(multiprocessing.active_children()) <= set(others)


def test_a_step_that_fails_after_a_death_says_its_own_error_alone(monkeypatch):
    said, others = [], multiprocessing.active_children()
    monkeypatch.setattr(sys, "unraisablehook", said.append)
    loader = torch.utils.data.DataLoader(range(100), num_workers=2, multiprocessing_context="fork")
    with pytest.raises(ArithmeticError, match="diverged"), contextlib.closing(steady(loader)) as left:
        next(left)
        child = next(one for one in multiprocessing.active_children() if one not in others)
        os.kill(child.pid, signal.SIGKILL)
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        raise ArithmeticError("diverged")
    assert not said and set(multiprocessing.active_children()) <= set(others)
