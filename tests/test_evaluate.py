"""Evaluation against a plain loop; shared by processes, interrupted, and what it writes."""

import contextlib
import csv
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

import upernet_zoo as uz
from upernet_zoo import cli, errors
from upernet_zoo.demo import scenes
from upernet_zoo.evaluation import MULTI_SCALE, SegmentationMetrics, open_dataset
from upernet_zoo.models import UPerNet

CITYSCAPES = uz.labels.get("cityscapes")
COUNT = 15  # not to be shared evenly by two processes
# one thread each, as torchrun sets it: how a sum is split among threads may change its last bit
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Demo scenes in Cityscapes' layout, the top rows unlabelled."""
    root = tmp_path_factory.mktemp("cityscapes")
    for seed in range(COUNT):
        image, train_ids = scenes.draw(seed, size=(64, 96))
        ids = CITYSCAPES.to_dataset_ids(train_ids)
        ids[:5] = CITYSCAPES.void_id
        city, stem = ("ulm", "bonn")[seed % 2], f"{seed:06d}_000019"
        for kind, suffix, array in (("leftImg8bit", "leftImg8bit", image), ("gtFine", "gtFine_labelIds", ids.astype(np.uint8))):
            folder = root / kind / "val" / city
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(folder / f"{city}_{stem}_{suffix}.png")
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small model with random weights."""
    torch.manual_seed(0)
    config = uz.UPerNetConfig(depth=18, num_classes=19, base_channels=4, stem_channels=4, channels=8, aux_channels=4)
    model = UPerNet(config, uz.Recipe(scale=(128, 64)), CITYSCAPES)
    torch.nn.init.normal_(model.decode_head.classifier.weight)
    return model.save_pretrained(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def expected(root, folder):
    """What a plain loop over all pictures gives, in a process with one thread like the others."""
    code = (
        "import sys, json, torch, upernet_zoo as uz\n"
        "from upernet_zoo.evaluation import SegmentationMetrics, open_dataset\n"
        "segmenter = uz.Segmenter('local-dir:' + sys.argv[1], optimize=False)\n"
        "metrics = SegmentationMetrics(19)\n"
        "for sample in open_dataset('cityscapes', sys.argv[2]):\n"
        "    metrics.update(segmenter(sample.image).labels, sample.target)\n"
        "print(json.dumps(metrics.confusion.tolist()))"
    )
    done = subprocess.run([sys.executable, "-c", code, folder, root], env=ENVIRONMENT, check=True, capture_output=True, text=True)
    metrics = SegmentationMetrics(19)
    metrics.confusion += torch.tensor(json.loads(done.stdout))
    assert metrics.confusion.sum() == COUNT * 59 * 96  # every labelled pixel
    return metrics


def command(folder, root, out, *options):
    return ["upernet_zoo.cli", "evaluate", f"local-dir:{folder}", "cityscapes", str(root), "--device", "cpu", "--out", str(out), *options]


def torchrun(processes, *arguments):
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "-m", *arguments]


def check(out, expected):
    """The state and the results in a folder are those of the plain loop, to the last digit."""
    state = json.loads((out / "state.json").read_text())
    assert state["confusion"] == expected.confusion.tolist()
    assert len(state["pictures"]) == COUNT
    found, wanted = json.loads((out / "metrics.json").read_text()), expected.result()
    for key in ("mIoU", "mAcc", "aAcc"):
        assert found[key] == getattr(wanted, key)
    for key in ("IoU", "Acc"):
        assert found[key] == [None if np.isnan(v) else v for v in getattr(wanted, key)]
    return found


def test_one_process_equals_a_plain_loop(folder, root, tmp_path, capsys):
    model = uz.create_model(f"local-dir:{folder}")
    result = uz.evaluate(model, "cityscapes", root, out=tmp_path, save_worst=2, progress=False)
    segmenter, metrics, pictures = uz.Segmenter(model, optimize=False), SegmentationMetrics(19), {}
    for sample in open_dataset("cityscapes", root):
        labels = segmenter(sample.image).labels
        metrics.update(labels, sample.target)
        one = SegmentationMetrics(19)
        one.update(labels, sample.target)
        pictures[sample.name] = one.result().mIoU
    found = check(tmp_path, metrics)
    assert result.mIoU == found["mIoU"] and result.pictures == pictures and result.of == COUNT and result.published is None
    assert sum(result.pixels) == COUNT * 59 * 96
    rows = list(csv.DictReader((tmp_path / "classes.csv").open()))
    assert [row["class"] for row in rows] == list(CITYSCAPES.classes)
    assert [float(row["IoU"] or "nan") for row in rows] == pytest.approx(result.IoU, abs=0, nan_ok=True)
    rows = list(csv.DictReader((tmp_path / "pictures.csv").open()))
    assert {row["picture"]: float(row["mIoU"]) for row in rows} == pictures
    worst = sorted(pictures, key=pictures.get)[:2]
    files = sorted((tmp_path / "worst").iterdir())
    assert [file.name for file in files] == [f"0{i}_{name}.png" for i, name in enumerate(worst, 1)]
    with Image.open(files[0]) as image:
        assert image.width >= 3 * 96 and image.height > 64
    assert f"{100 * result.mIoU:.2f}" in result.table() and "motorcycle" in result.table()
    assert capsys.readouterr().err == ""


def test_two_processes_equal_one_to_the_last_digit(folder, root, tmp_path, expected):
    run = torchrun(2, *command(folder, root, tmp_path / "two"))
    done = subprocess.run(run, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("mIoU") == 1  # the first process alone prints
    check(tmp_path / "two", expected)


# `upernet-zoo evaluate` that notes each picture it runs, and hangs before its n-th
WATCHED = """
import hashlib, os, sys, time
from upernet_zoo import Segmenter, cli

log, left, call = sys.argv[1], int(sys.argv[2]), Segmenter.__call__

def watched(self, image):
    global left
    left -= 1
    with open(log, "a") as file:
        file.write(f"{os.getpid()} {'hung' if left == 0 else hashlib.sha256(image.tobytes()).hexdigest()}\\n")
    if left == 0:
        time.sleep(600)
    return call(self, image)

Segmenter.__call__ = watched
sys.exit(cli.main(sys.argv[3:]))
"""


def kill_half_way(run, log, processes):
    """Start a run, wait until each of its processes hangs, and kill -9 them all."""
    with open(f"{log}.errors", "w+") as errors_of_run:
        launched = subprocess.Popen(run, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=errors_of_run)
        pids = {launched.pid}
        try:
            hung, deadline = set(), time.monotonic() + 240
            while len(hung) < processes:
                assert launched.poll() is None and time.monotonic() < deadline, errors_of_run.seek(0) or errors_of_run.read()
                time.sleep(0.02)
                lines = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
                hung = {pid for pid, what in lines if what == "hung"}
                pids |= {int(pid) for pid, _ in lines}  # torchrun gives its processes a session of their own
        finally:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            launched.wait()


def test_killed_half_way_and_started_again(folder, root, tmp_path, expected):
    out, script = tmp_path / "out", tmp_path / "watched.py"
    script.write_text(WATCHED)
    _, *arguments = command(folder, root, out)
    digests = {hashlib.sha256(sample.image.tobytes()).hexdigest(): sample.name for sample in open_dataset("cityscapes", root)}

    def watched(launcher, log, hang_at):
        return [*launcher, str(script), str(log), str(hang_at), *arguments]

    def counted():
        return set(json.loads((out / "state.json").read_text())["pictures"])

    kill_half_way(watched([sys.executable], tmp_path / "one", 4), tmp_path / "one", 1)
    first = counted()
    assert 1 <= len(first) <= 3
    kill_half_way(watched(torchrun(2)[:-1], tmp_path / "two", 6), tmp_path / "two", 2)
    second = counted()
    assert first < second and len(second) == len(first) + 8 < COUNT and not (out / "metrics.json").exists()
    done = subprocess.run(watched([sys.executable], tmp_path / "rest", -1), env=ENVIRONMENT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    check(out, expected)
    run = [digests[line.split()[1]] for line in (tmp_path / "rest").read_text().splitlines()]
    assert sorted(run) == sorted(set(digests.values()) - second)  # what was counted was not run again


def test_pictures_already_counted_are_not_run_again(folder, root, tmp_path, monkeypatch):
    model = uz.create_model(f"local-dir:{folder}")
    seen = []
    segment = uz.Segmenter._segment
    monkeypatch.setattr(uz.Segmenter, "_segment", lambda self, pixels: seen.append(1) or segment(self, pixels))
    options = dict(out=tmp_path, progress=False)
    few = uz.evaluate(model, "cityscapes", root, limit=3, **options)
    assert len(seen) == len(few.pictures) == 3 and few.of == COUNT
    assert list(few.pictures) == list(open_dataset("cityscapes", root).names[:3])
    assert uz.evaluate(model, "cityscapes", root, limit=3, **options).to_dict() == few.to_dict() and len(seen) == 3
    whole = uz.evaluate(model, "cityscapes", root, **options)
    assert len(seen) == COUNT and len(whole.pictures) == COUNT
    assert whole.to_dict() == uz.evaluate(model, "cityscapes", root, progress=False).to_dict()  # without a folder: from the start
    assert len(seen) == 2 * COUNT


def test_the_state_of_another_run_is_refused_and_kept(folder, root, tmp_path):
    model = uz.create_model(f"local-dir:{folder}")

    def run(**options):
        return uz.evaluate(model, "cityscapes", root, out=tmp_path, progress=False, **options)

    run(limit=2)
    state = tmp_path / "state.json"
    before = state.read_text()
    with pytest.raises(errors.CacheError, match=r"state.json: .* not the same settings\. Choose another folder"):
        run(limit=2, flip=True)
    with pytest.raises(errors.CacheError, match="2 pictures are counted there already, more than limit=1"):
        run(limit=1)
    with torch.no_grad():
        model.decode_head.classifier.bias[0] += 1
    with pytest.raises(errors.CacheError, match="not the same model"):
        run(limit=2)
    assert state.read_text() == before
    for damaged in ("", "[]", "{}", before[:-10]):
        state.write_text(damaged)
        with pytest.raises(errors.CacheError, match="not a state of an evaluation"):
            run(limit=2)
        assert state.read_text() == damaged


def test_bad_arguments_and_pictures_are_named(folder, root, tmp_path):
    model = uz.create_model(f"local-dir:{folder}")
    for options, message in (
        ({"limit": 0}, "limit must be"),
        ({"limit": True}, "limit must be"),
        ({"save_worst": -1}, "save_worst must be"),
        ({"save_worst": 1}, "save_worst needs a folder"),
        ({"scales": ()}, "scales must be"),
    ):
        with pytest.raises(errors.ArgumentError, match=message):
            uz.evaluate(model, "cityscapes", root, **options)
    with pytest.raises(errors.ArgumentError, match="needs its folder"):
        uz.evaluate(model, "cityscapes")
    with pytest.raises(errors.ArgumentError, match="found list"):
        uz.evaluate(model, [1, 2])
    with pytest.raises(errors.MissingFileError, match="looked in"):
        uz.evaluate(model, "cityscapes", tmp_path)
    other = UPerNet(uz.UPerNetConfig(depth=18, num_classes=21, base_channels=4, stem_channels=4, channels=8, aux_channels=4))
    with pytest.raises(errors.ConfigError, match="'cityscapes' has 19 classes, and the model 21"):
        uz.evaluate(other, "cityscapes", root)
    for sub in ("images", "masks"):
        (tmp_path / sub).mkdir()
        for name in ("a", "b"):
            Image.fromarray(np.zeros((40, 40), np.uint8)).save(tmp_path / sub / f"{name}.png")
    Image.fromarray(np.full((40, 40), 77, np.uint8)).save(tmp_path / "masks" / "b.png")
    with pytest.raises(errors.ArgumentError, match=r"masks/b.png: .* no label ids 77"):
        uz.evaluate(other, "folder", tmp_path, progress=False)
    result = uz.evaluate(other, "folder", tmp_path, limit=1, progress=False)  # with the model's own label set
    assert result.classes == other.label_set.classes and result.pixels[0] == 1600


def test_a_picture_too_large_is_refused_by_name(folder, root, monkeypatch):
    from upernet_zoo import memory

    monkeypatch.setattr(memory, "available", lambda device: 1000)
    with pytest.raises(errors.ArgumentError, match=r"bonn_000001_000019_leftImg8bit.png: A picture of 96x64 pixels needs about .* free"):
        uz.evaluate(f"local-dir:{folder}", "cityscapes", root, device="cpu", progress=False)


@pytest.mark.parametrize("flip, scales, key", ((False, (1.0,), "mIoU"), (True, MULTI_SCALE, "mIoU(ms+flip)"), (True, (1.0,), None)))
def test_the_published_number_stands_beside_the_measured_one(small_index, root, tmp_path, flip, scales, key):
    import yaml

    data = yaml.safe_load(small_index.read_text())
    name = "upernet_r50_512x1024_40k_cityscapes"
    model = next(m for m in data["Models"] if m["Name"] == name)
    model["Results"][0]["Metrics"] = {"mIoU": 77.1, "mIoU(ms+flip)": 78.37}
    model["Config"]["scale"] = [96, 64]  # small, to be fast
    small_index.write_text(yaml.safe_dump(data))
    from conftest import Fixture

    model = uz.create_model(name, checkpoint=Fixture(name).checkpoint)
    result = uz.evaluate(model, "cityscapes", root, limit=1, flip=flip, scales=scales, progress=False)
    assert result.model == name
    assert result.published == (None if key is None else {"mIoU": 77.1, "mIoU(ms+flip)": 78.37}[key] / 100)
    assert ("published mIoU" in result.table()) == (key is not None)
    assert f"1 of {COUNT} pictures" in result.table()


def test_command_line(folder, root, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    _, *arguments = command(folder, root, "here", "--ms-flip", "--limit", "2", "--save-worst", "1")
    assert cli.main(arguments) == 0
    captured = capsys.readouterr()
    found = json.loads((tmp_path / "here" / "metrics.json").read_text())
    assert found["settings"]["scales"] == list(MULTI_SCALE) and found["settings"]["flip"] is True
    assert re.search(rf"mIoU {100 * found['mIoU']:.2f}", captured.out) and f"2 of {COUNT} pictures" in captured.out
    assert "mIoU=" in captured.err  # the bar
    assert len(list((tmp_path / "here" / "worst").iterdir())) == 1
    assert cli.main(["evaluate", "local-dir:nowhere", "cityscapes", str(root)]) == 1
    assert cli.main([*arguments, "--scales", "2"]) == 1
    assert "--ms-flip has scales of its own" in capsys.readouterr().err


def test_bar_plot(tmp_path, monkeypatch):
    from upernet_zoo import visualize

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(errors.ArgumentError, match=r"pip install 'upernet-zoo\[plot\]'"):
        visualize.save_bars(tmp_path / "bars.png", [("road", 0.5)], 0.5, "title")
    monkeypatch.undo()
    pytest.importorskip("matplotlib")
    with pytest.raises(errors.ArgumentError, match="writes no '.doc'"):
        visualize.save_bars(tmp_path / "bars.doc", [("road", 0.5)], 0.5, "title")
    path = visualize.save_bars(tmp_path / "bars.svg", [("road", 0.5), ("traffic light", 0.75)], 0.625, "A title")
    text = path.read_text()
    assert "traffic light" in text and "75.0" in text and "A title" in text
