"""Evaluation against a plain loop; shared by processes, interrupted, and what it writes."""

import csv
import functools
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from support.killed import WATCHED, kill_half_way
from support.models import small_config

import upernet_zoo as uz
from upernet_zoo import errors
from upernet_zoo.cli import main
from upernet_zoo.demo import scenes
from upernet_zoo.evaluation import MULTI_SCALE, SegmentationMetrics, open_dataset
from upernet_zoo.models import UPerNet

CITYSCAPES = uz.labels.get("cityscapes")
COUNT = 15  # not to be shared evenly by two processes
# one thread each, as torchrun sets it: how a sum is split among threads may change its last bit
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Demo scenes in Cityscapes' layout, the top rows unlabeled."""
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
    config = small_config(num_classes=19)
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
    assert metrics.confusion.sum() == COUNT * 59 * 96  # every labeled pixel
    return metrics


def command(folder, root, out, *options):
    return ["upernet_zoo", "evaluate", f"local-dir:{folder}", "cityscapes", str(root), "--device", "cpu", "--out", str(out), *options]


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
    for key in ("Dice", "Precision", "Recall"):
        assert next(row[key] for row in csv.DictReader((tmp_path / "classes.csv").open())) == str(getattr(result, key)[0])
    head, *rows = csv.reader((tmp_path / "confusion.csv").open())
    assert head == ["label", *CITYSCAPES.classes] and [row[0] for row in rows] == list(CITYSCAPES.classes)
    assert [[int(value) for value in row[1:]] for row in rows] == metrics.confusion.tolist() == [list(row) for row in result.confusion]
    worst = sorted(pictures, key=pictures.get)[:2]
    files = sorted((tmp_path / "worst").iterdir())
    assert [file.name for file in files] == [f"0{i}_{name}.png" for i, name in enumerate(worst, 1)]
    with Image.open(files[0]) as image:
        assert image.width >= 3 * 96 and image.height > 64
    assert f"{100 * result.mIoU:.2f}" in result.table() and "motorcycle" in result.table()
    assert capsys.readouterr().err == ""


def test_python_has_fractions_and_what_is_printed_is_percent(folder, root):
    result = uz.evaluate(f"local-dir:{folder}", "cityscapes", root, device="cpu", limit=2, progress=False)
    assert result.model == f"local-dir:{folder}" and 0 < result.mIoU < 1
    summary = f"local-dir:{folder} on cityscapes, 2 of {COUNT} pictures: mIoU {100 * result.mIoU:.2f}, mAcc {100 * result.mAcc:.2f}, "
    assert result.summary() == summary + f"aAcc {100 * result.aAcc:.2f}, mDice {100 * result.mDice:.2f} (in percent)"
    table = result.table(("f1", "Precision", "miou"))
    assert table.split("\n")[0].split() == ["class", "Dice", "Precision", "IoU"] and f"mDice {100 * result.mDice:.2f}   mPrecision" in table
    assert "confusion" not in result.to_dict() and "confusion" not in repr(result)
    for names in ((), ("IoU", "kappa"), (3,)):
        with pytest.raises(errors.ArgumentError, match="there are IoU, Acc, Dice, Precision, Recall and F1, which is Dice"):
            result.table(names)


def test_what_a_model_object_is_called(folder):
    from upernet_zoo.evaluation.runner import _weights_of

    model = uz.create_model(f"local-dir:{folder}")
    assert _weights_of(model) == "UPerNet"
    model.origin = {"model": "upernet_r50_512x512_160k_ade20k", "file": "mine\x1b.pth"}  # anybody can write that
    assert _weights_of(model) == "UPerNet from mine\\x1b.pth"


def test_two_processes_equal_one_to_the_last_digit(folder, root, tmp_path, expected):
    run = torchrun(2, *command(folder, root, tmp_path / "two"))
    done = subprocess.run(run, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("mIoU") == 1  # the first process alone prints
    check(tmp_path / "two", expected)


def test_killed_half_way_and_started_again(folder, root, tmp_path, expected):
    out, script = tmp_path / "out", tmp_path / "watched.py"
    script.write_text(WATCHED)
    _, *arguments = command(folder, root, out)
    digests = {hashlib.sha256(sample.image.tobytes()).hexdigest(): sample.name for sample in open_dataset("cityscapes", root)}

    def watched(launcher, log, hang_at):
        return [*launcher, str(script), str(log), str(hang_at), *arguments]

    def counted():
        return set(json.loads((out / "state.json").read_text())["pictures"])

    kill_half_way(watched([sys.executable], tmp_path / "one", 4), tmp_path / "one", 1, ENVIRONMENT)
    first = counted()
    assert 1 <= len(first) <= 3
    kill_half_way(watched(torchrun(2)[:-1], tmp_path / "two", 6), tmp_path / "two", 2, ENVIRONMENT)
    second = counted()
    assert first < second and len(second) == len(first) + 8 < COUNT and not (out / "metrics.json").exists()
    done = subprocess.run(watched([sys.executable], tmp_path / "rest", -1), env=ENVIRONMENT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    check(out, expected)
    run = [digests[line.split()[1]] for line in (tmp_path / "rest").read_text().splitlines()]
    assert sorted(run) == sorted(set(digests.values()) - second)  # what was counted was not run again


def test_pictures_already_counted_are_not_run_again(folder, root, tmp_path, monkeypatch):
    model = uz.create_model(f"local-dir:{folder}")
    seen = []
    segment = uz.Segmenter._segment
    monkeypatch.setattr(uz.Segmenter, "_segment", lambda self, pixels, *more: seen.append(1) or segment(self, pixels, *more))
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
    with pytest.raises(errors.StateError, match=r"state.json: .* not the same settings\. Choose another folder"):
        run(limit=2, flip=True)
    with pytest.raises(errors.StateError, match="2 pictures are counted there already, more than limit=1"):
        run(limit=1)
    with torch.no_grad():
        model.decode_head.classifier.bias[0] += 1
    with pytest.raises(errors.StateError, match="not the same model"):
        run(limit=2)
    assert state.read_text() == before
    with torch.no_grad():
        model.decode_head.classifier.bias[0] -= 1
    other_root = tmp_path / "other root"
    shutil.copytree(root, other_root)
    for path in (other_root / "gtFine").rglob("*.png"):
        Image.fromarray(np.full((64, 96), 7, np.uint8)).save(path)
    with pytest.raises(errors.StateError, match="not the same pictures"):  # of the same names
        uz.evaluate(model, "cityscapes", other_root, out=tmp_path, limit=2, progress=False)
    for damaged in ("", "[]", "{}", before[:-10]):
        state.write_text(damaged)
        with pytest.raises(errors.StateError, match="not a state of an evaluation"):
            run(limit=2)
        assert state.read_text() == damaged


def test_files_that_no_evaluation_wrote_are_kept(folder, root, tmp_path):
    (tmp_path / "metrics.json").write_text("mine")
    with pytest.raises(errors.ExistingFileError, match="metrics.json is there, of no evaluation in that folder"):
        uz.evaluate(f"local-dir:{folder}", "cityscapes", root, device="cpu", limit=1, out=tmp_path, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"] and (tmp_path / "metrics.json").read_text() == "mine"


@pytest.mark.parametrize("name", ["classes.png", "confusion.png", "worst/01_mine.png"])
def test_pictures_that_no_evaluation_wrote_are_kept(folder, root, tmp_path, monkeypatch, capsys, name):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("upernet_zoo.evaluation.runner._counted", lambda *_: pytest.fail("refused before a picture is run"))
    path = tmp_path / "out" / name
    path.parent.mkdir(parents=True)
    Image.new("RGB", (2, 2)).save(path)
    line = ["evaluate", f"local-dir:{folder}", "cityscapes", str(root), "--out", str(tmp_path / "out"), "--device", "cpu", "--limit", "1"]
    assert main.main([*line, "--plot", "--save-worst", "1"]) == 1
    assert f"{path} is there already and is not marked as written by upernet_zoo. Choose another folder" in capsys.readouterr().err
    assert Image.open(path).size == (2, 2)


def test_results_replace_results_and_nothing_else(folder, root, tmp_path):
    result = uz.evaluate(f"local-dir:{folder}", "cityscapes", root, device="cpu", limit=1, progress=False)
    paths = result.save(tmp_path)
    assert result.save(tmp_path) == paths
    paths[0].write_text("{}")
    with pytest.raises(errors.ExistingFileError, match="metrics.json is there already"):
        result.save(tmp_path)
    assert paths[0].read_text() == "{}" and result.save(tmp_path, overwrite=True) == paths and paths[0].read_text() != "{}"


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
    other = UPerNet(small_config(num_classes=21))
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

    monkeypatch.setattr(memory, "available", lambda device=None: None if device is None else 1000)  # enough to decode it
    with pytest.raises(
        errors.NotEnoughMemoryError, match=r"bonn_000001_000019_leftImg8bit.png: A picture of 96x64 pixels needs about .* free"
    ):
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
    from support.fixture import Fixture

    model = uz.create_model(name, checkpoint=Fixture(name).checkpoint)
    result = uz.evaluate(model, "cityscapes", root, limit=1, flip=flip, scales=scales, progress=False)
    assert result.model == name
    assert result.published == (None if key is None else {"mIoU": 77.1, "mIoU(ms+flip)": 78.37}[key] / 100)
    assert ("published mIoU" in result.table()) == (key is not None)
    assert f"1 of {COUNT} pictures" in result.table()


def test_command_line(folder, root, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    _, *arguments = command(folder, root, "here", "--ms-flip", "--limit", "2", "--save-worst", "1")
    assert main.main(arguments) == 0
    captured = capsys.readouterr()
    found = json.loads((tmp_path / "here" / "metrics.json").read_text())
    assert found["settings"]["scales"] == list(MULTI_SCALE) and found["settings"]["flip"] is True
    assert re.search(rf"mIoU {100 * found['mIoU']:.2f}", captured.out) and f"2 of {COUNT} pictures" in captured.out
    assert "mIoU=" in captured.err  # the bar
    assert len(list((tmp_path / "here" / "worst").iterdir())) == 1
    assert main.main(["evaluate", "local-dir:nowhere", "cityscapes", str(root)]) == 1
    assert main.main([*arguments, "--scales", "2"]) == 1
    assert "--ms-flip has scales of its own" in capsys.readouterr().err


def test_folders_by_default_never_clash(folder, root, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for place in ("a/best", "b/best"):
        shutil.copytree(folder, tmp_path / place)
    model = uz.create_model(f"local-dir:{tmp_path / 'b/best'}")
    with torch.no_grad():
        model.decode_head.classifier.bias[0] += 1
    model.save_pretrained(tmp_path / "b/best")
    runs = [("a/best",), ("b/best",), ("a/best", "--flip"), ("a/best", "--scales", "0.5"), ("./a/best",)]
    for run in [*runs, runs[0]]:  # the last one goes on from the first
        assert main.main(["evaluate", *run, "cityscapes", str(root), "--device", "cpu", "--limit", "1", "--metrics", "dice,recall"]) == 0
        assert re.search(r"class +Dice +Recall\n", capsys.readouterr().out)
    names = [path.name for path in (tmp_path / "evaluation").iterdir()]
    assert len(names) == len(runs) and all(re.fullmatch(r"best-cityscapes-[0-9a-f]{8}", name) for name in names)
    found = {json.loads(path.read_text())["model"] for path in (tmp_path / "evaluation").glob("*/metrics.json")}
    assert found == {"a/best", "b/best", "./a/best"}


def test_pictures_without_any_label_measure_nothing(folder, tmp_path):
    for kind, suffix, array in (("leftImg8bit", "leftImg8bit", np.zeros((64, 96, 3))), ("gtFine", "gtFine_labelIds", np.zeros((64, 96)))):
        (tmp_path / kind / "val/ulm").mkdir(parents=True)
        Image.fromarray(array.astype(np.uint8)).save(tmp_path / kind / f"val/ulm/ulm_0_{suffix}.png")
    with pytest.raises(errors.ArgumentError, match="No label in any of the 1 pictures, so nothing was measured"):
        uz.evaluate(f"local-dir:{folder}", "cityscapes", tmp_path, device="cpu", progress=False)


def test_an_evaluation_survives_its_worst_pictures(folder, root, tmp_path, capsys):
    shutil.copytree(root, tmp_path / "data")
    paths = {path.name.removesuffix("_leftImg8bit.png"): path for path in (tmp_path / "data/leftImg8bit").rglob("*.png")}
    first, second, third, *rest = sorted(paths)[:5]
    paths[first].write_bytes(b"not a picture")
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(paths[second])
    mask = str(paths[third]).replace("leftImg8bit", "gtFine").replace("_gtFine.png", "_gtFine_labelIds.png")
    Image.fromarray(np.full((64, 96), 99, np.uint8)).save(mask)
    with pytest.warns(UserWarning, match="3 of 5 pictures failed:\n.*not a picture"):
        result = uz.evaluate(f"local-dir:{folder}", "cityscapes", tmp_path / "data", device="cpu", limit=5, progress=False)
    assert list(result.pictures) == rest and list(result.failures) == [first, second, third]
    assert "no label ids 99" in result.failures[third] and f"2 of {COUNT} pictures (3 failed)" in result.summary()
    expected = uz.evaluate(f"local-dir:{folder}", "cityscapes", root, device="cpu", limit=5, progress=False)
    assert {name: result.pictures[name] for name in rest} == {name: expected.pictures[name] for name in rest}
    options = ("--limit", "5", "--device", "cpu", "--out", str(tmp_path / "out"))
    assert main.main(["evaluate", f"local-dir:{folder}", "cityscapes", str(tmp_path / "data"), *options]) == 1
    assert "3 of 5 pictures failed:" in capsys.readouterr().err


def test_names_that_are_not_utf_8(folder, tmp_path):
    for place, array in (("images", np.zeros((32, 32, 3))), ("masks", np.zeros((32, 32)))):
        (tmp_path / "data" / place).mkdir(parents=True)
        Image.fromarray(array.astype(np.uint8)).save(tmp_path / "data" / place / "p.png")
        (tmp_path / "data" / place / "p.png").rename(tmp_path / "data" / place / os.fsdecode(b"stra\xdfe.png"))
    options = dict(ids="train", device="cpu", out=tmp_path / "out", save_worst=1, progress=False)
    result = uz.evaluate(f"local-dir:{folder}", "folder", tmp_path / "data", **options)
    assert list(result.pictures) == ["stra\udcdfe"] and "stra\\udcdfe" in (tmp_path / "out/pictures.csv").read_text()
    assert [path.name for path in (tmp_path / "out/worst").iterdir()] == ["01_stra_e.png"]
    again = uz.evaluate(f"local-dir:{folder}", "folder", tmp_path / "data", **options)  # from the state
    assert again.to_dict() == result.to_dict()


def test_confusion_plot(tmp_path):
    from upernet_zoo.evaluation import plots

    pytest.importorskip("matplotlib")
    path = plots.save_confusion(tmp_path / "confusion.svg", ["road", "traffic light"], [[3, 1], [0, 0]], "A title")
    text = path.read_text()
    assert "traffic light" in text and "<!-- 75 -->" in text and "<!-- 25 -->" in text and "A title" in text


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_plots_replace_plots_and_nothing_else(tmp_path, suffix):
    from upernet_zoo.evaluation import plots

    pytest.importorskip("matplotlib")
    path = tmp_path / f"bars{suffix}"
    path.write_text("mine")
    draw = functools.partial(plots.save_bars, path, [("road", 0.5)], 0.5, "title")
    with pytest.raises(errors.ExistingFileError, match="is not marked as written by upernet_zoo"):
        draw()
    assert path.read_text() == "mine" and draw(overwrite=True) == path and draw() == path


def test_bar_plot(tmp_path, monkeypatch):
    from upernet_zoo.evaluation import plots

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(errors.MissingPackageError, match=r"pip install 'upernet-zoo\[plot\] @ git\+https:"):
        plots.save_bars(tmp_path / "bars.png", [("road", 0.5)], 0.5, "title")
    monkeypatch.undo()
    pytest.importorskip("matplotlib")
    with pytest.raises(errors.ArgumentError, match="writes no '.doc'"):
        plots.save_bars(tmp_path / "bars.doc", [("road", 0.5)], 0.5, "title")
    path = plots.save_bars(tmp_path / "bars.svg", [("road", 0.5), ("traffic light", 0.75)], 0.625, "A title")
    text = path.read_text()
    assert "traffic light" in text and "75.0" in text and "A title" in text
