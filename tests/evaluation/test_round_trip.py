"""What `predict` writes, taken as masks, measures 100.00; so do masks of other ids where something says what they are."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from support.training_runs import small_model

from upernet_zoo import labels
from upernet_zoo.cli import main
from upernet_zoo.demo import scenes
from upernet_zoo.errors import ArgumentError
from upernet_zoo.evaluation import open_dataset
from upernet_zoo.evaluation.masks import load_mask
from upernet_zoo.labels import LabelSet

VOID = LabelSet("void", ("a", "b", "c", "d"), void_ids=(0, 255), dataset_ids=(1, 2, 3, 4), void_id=0)
SPARSE = LabelSet("sparse", ("a", "b", "c"), dataset_ids=(3, 200, 40000), void_ids=(7,), void_id=7)
LABEL_SETS = {
    **{name: labels.get(name) for name in labels.names()},
    "void": VOID,
    "sparse": SPARSE,
    "binary": LabelSet("binary", ("a", "b")),
}


@pytest.fixture(scope="module")
def predicted(tmp_path_factory):
    """By name: the model's reference, and a folder with pictures and what `predict` made of them."""
    folders = {}

    def make(name):
        if name not in folders:
            root = tmp_path_factory.mktemp(name)
            model = "demo"
            if name != "demo":
                made = small_model(LABEL_SETS[name])
                torch.nn.init.normal_(made.decode_head.classifier.weight, std=3.0)  # so that there are many classes
                model = f"local-dir:{made.save_pretrained(root / 'model')}"
            (root / "data/images/city").mkdir(parents=True)
            for seed, place in enumerate(("a.png", "city/b.png")):
                Image.fromarray(scenes.draw(seed, (64, 96))[0]).save(root / "data/images" / place)
            images, masks = str(root / "data/images"), str(root / "data/masks")
            assert main.main(["predict", model, images, "--out", masks, "--no-optimize", "--device", "cpu"]) == 0
            folders[name] = model, root / "data"
        return folders[name]

    return make


def evaluated(capsys, tmp_path, model, root, *options):
    capsys.readouterr()
    code = main.main(["evaluate", model, "folder", str(root), "--device", "cpu", "--out", str(tmp_path / "out"), *options])
    return code, *capsys.readouterr()


@pytest.mark.parametrize("name", ["demo", *LABEL_SETS])
def test_the_model_s_own_label_maps(predicted, name, tmp_path, capsys):
    model, root = predicted(name)
    code, out, err = evaluated(capsys, tmp_path, model, root)
    assert code == 0, err
    assert "mIoU 100.00   mAcc 100.00   aAcc 100.00" in out and "2 masks, read as train ids" in out
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert metrics["mIoU"] == 1.0 and metrics["model"] == model


@pytest.mark.parametrize("name", ["cityscapes", "ade20k", "void", "sparse"])
def test_the_same_masks_with_the_data_set_s_ids(predicted, name, tmp_path, capsys):
    """Unmarked, partly unlabeled, and said to be what they are: by --ids, or by the folder's label file, in another order."""
    (model, root), label_set = predicted(name), LABEL_SETS[name]
    for path in sorted((root / "masks").rglob("*_labels.png")):
        train_ids = np.array(Image.open(path)).astype(np.int64)
        train_ids[:3] = label_set.ignore_index
        target = tmp_path / "data/masks" / path.relative_to(root / "masks")
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(label_set.to_dataset_ids(train_ids).astype(np.uint16)).save(target)
    (tmp_path / "data/images").symlink_to(root / "images")
    code, out, err = evaluated(capsys, tmp_path / "by option", model, tmp_path / "data", "--ids", "dataset")
    assert code == 0 and "mIoU 100.00   mAcc 100.00   aAcc 100.00" in out, err
    lines = [f"{id} {name.strip()}" for id, name in zip(label_set.dataset_ids, label_set.classes)]
    lines = [f"{id} void" for id in label_set.void_ids] + lines[::-1]
    (tmp_path / "data/classes.txt").write_text("\n".join(lines))
    code, out, err = evaluated(capsys, tmp_path / "by file", model, tmp_path / "data")
    assert code == 0 and "mIoU 100.00   mAcc 100.00   aAcc 100.00" in out, err
    assert "read as the data set's ids" in out


@pytest.mark.parametrize("name", ["cityscapes", "ade20k", "voc12aug"])
def test_the_same_masks_as_colors(predicted, name, tmp_path, capsys):
    (model, root), palette = predicted(name), np.array(LABEL_SETS[name].palette, np.uint8)
    for path in sorted((root / "masks").rglob("*_labels.png")):
        target = tmp_path / "data/masks" / path.relative_to(root / "masks")
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(palette[np.array(Image.open(path))]).save(target)
    (tmp_path / "data/images").symlink_to(root / "images")
    code, out, err = evaluated(capsys, tmp_path, model, tmp_path / "data")
    assert code == 0 and "mIoU 100.00   mAcc 100.00   aAcc 100.00" in out, err


def test_label_maps_without_the_mark_are_not_guessed_at(predicted, tmp_path, capsys):
    """A Cityscapes model's own label maps measured 0.00 once, as they were taken for the data set's ids."""
    model, root = predicted("cityscapes")
    for path in sorted((root / "masks").rglob("*_labels.png")):
        target = tmp_path / "data/masks" / path.relative_to(root / "masks")
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.array(Image.open(path))).save(target)
    (tmp_path / "data/images").symlink_to(root / "images")
    code, out, err = evaluated(capsys, tmp_path, model, tmp_path / "data")
    assert code == 1 and "can be read in two ways" in err and "--ids dataset or --ids train" in err and not (tmp_path / "out").exists()
    code, out, err = evaluated(capsys, tmp_path, model, tmp_path / "data", "--ids", "train")
    assert code == 0 and "mIoU 100.00" in out


def test_the_label_file_must_name_the_model_s_classes(predicted, tmp_path, capsys):
    model, root = predicted("void")
    for folder in ("images", "masks"):
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / folder).symlink_to(root / folder)
    (tmp_path / "data/classes.txt").write_text("a\nb\nc\nother")
    code, _, err = evaluated(capsys, tmp_path, model, tmp_path / "data")
    assert code == 1 and "names 4 classes and the model has 4; not of the model: other; not in the file: d" in err


def test_label_maps_of_other_classes_are_refused_by_name(predicted, tmp_path, capsys):
    """Their ids are train ids too, and mean something else: nothing is measured by them and nothing learned from them."""
    _, root = predicted("void")
    other = small_model(LabelSet("other", ("d", "c", "b", "a")))  # the same, in another order
    model = f"local-dir:{other.save_pretrained(tmp_path / 'model')}"
    code, _out, err = evaluated(capsys, tmp_path, model, root)
    assert code == 1 and "masks/a_labels.png" in err and "of other classes than those of label set 'other'" in err and "2 of 2" in err
    (tmp_path / "data").mkdir()
    for name in ("images", "masks"):
        (tmp_path / "data" / name).symlink_to(root / name)
    (tmp_path / "data/classes.txt").write_text("d\nc\nb\na\n")
    line = ["train", "folder", str(tmp_path / "data"), "--model", model, "--out", str(tmp_path / "run"), "--steps", "1", "--device", "cpu"]
    assert main.main(line) == 1 and "of other classes than those of label set" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_label_maps_of_a_data_set_s_layout_are_of_its_classes(predicted, tmp_path):
    _, root = predicted("voc12aug")
    place = tmp_path / "images/validation", tmp_path / "annotations/validation"
    for folder in place:
        folder.mkdir(parents=True)
    (place[0] / "a.png").symlink_to(root / "images/a.png")
    (place[1] / "a.png").symlink_to(root / "masks/a_labels.png")
    with pytest.raises(ArgumentError, match=r"annotations/validation/a\.png: .* of other classes than those of label set 'ade20k'"):
        open_dataset("ade20k", tmp_path)[0]


def test_classes_without_names_fit_any(predicted, tmp_path, capsys):
    _, root = predicted("void")
    unnamed = small_model(labels.generic(4)).save_pretrained(tmp_path / "model")
    code, _out, err = evaluated(capsys, tmp_path, f"local-dir:{unnamed}", root)
    assert code == 0, err
    again = tmp_path / "again"
    assert main.main(["predict", f"local-dir:{unnamed}", str(root / "images"), "--out", str(again), "--device", "cpu"]) == 0
    assert load_mask(again / "a_labels.png").classes is None and load_mask(root / "masks/a_labels.png").classes is not None


def test_the_digest_of_classes():
    assert labels.classes_digest((" Road", "sky ")) == labels.classes_digest(("road", "Sky")) != labels.classes_digest(("sky", "road"))
    assert labels.classes_digest(("sky", "Sky")) != labels.classes_digest(("Sky", "sky"))
    assert labels.classes_digest(("class 0", "class 1")) is None and labels.classes_digest(("class 1", "class 0")) is not None
