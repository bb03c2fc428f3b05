"""Label sets against mmsegmentation's own (in the fixtures' checkpoints), torchvision's Cityscapes table and the VOC color map."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.fixture import FIXTURES
from torchvision.datasets import Cityscapes
from torchvision.models.segmentation import FCN_ResNet50_Weights

from upernet_zoo import labels
from upernet_zoo.errors import ArgumentError, ConfigError, UnknownLabelSetError
from upernet_zoo.labels import LabelSet

# the first 21 colors as the VOC 2012 development kit's documentation lists them
VOC_COLORS = """0,0,0 128,0,0 0,128,0 128,128,0 0,0,128 128,0,128 0,128,128 128,128,128 64,0,0 192,0,0 64,128,0 192,128,0 64,0,128
192,0,128 64,128,128 192,128,128 0,64,0 128,64,0 0,192,0 128,192,0 0,64,128"""


# --- what the known sets are ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("checkpoint", sorted(FIXTURES.glob("upernet_*/*.pth")), ids=lambda path: path.parent.name)
def test_classes_and_palette_are_mmsegmentations(checkpoint):
    meta = torch.load(checkpoint, weights_only=True)["meta"]
    label_set = labels.get(checkpoint.parent.name.rsplit("_", 1)[1])
    assert label_set.classes == tuple(meta["CLASSES"])
    assert label_set.palette == tuple(map(tuple, meta["PALETTE"]))


def test_cityscapes_is_torchvisions():
    label_set = labels.get("cityscapes")
    evaluated = [c for c in Cityscapes.classes if not c.ignore_in_eval]
    assert label_set.classes == tuple(c.name for c in evaluated)
    assert label_set.palette == tuple(c.color for c in evaluated)
    assert label_set.dataset_ids == tuple(c.id for c in evaluated)
    known = [c for c in Cityscapes.classes if c.id >= 0]  # the license plate is not written in label files
    assert label_set.to_train_ids(np.array([c.id for c in known])).tolist() == [c.train_id for c in known]


def test_voc_is_torchvisions_and_the_development_kits():
    label_set = labels.get("voc12aug")
    assert label_set.classes == ("background", *FCN_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1.meta["categories"][1:])
    assert label_set.palette == tuple(tuple(map(int, c.split(","))) for c in VOC_COLORS.split())
    assert labels.voc_colors(256)[255] == (224, 224, 192)  # the color of the outlines
    assert len(set(labels.voc_colors(256))) == 256


def test_ade20k_shifts_by_one():
    label_set = labels.get("ade20k")
    assert label_set.to_train_ids(np.arange(151, dtype=np.uint8)).tolist() == [255, *range(150)]
    assert label_set.to_dataset_ids(np.array([*range(150), 255])).tolist() == [*range(1, 151), 0]


@pytest.mark.parametrize("name, void", [("cityscapes", 0), ("ade20k", 0), ("voc12aug", 255)])
def test_all_ids_there_and_back(name, void):
    label_set = labels.get(name)
    assert label_set.name == name and label_set.ignore_index == 255 and label_set.title
    assert len(label_set) == len(label_set.classes) == len(label_set.palette) == len(label_set.dataset_ids)
    train_ids = np.array([*range(len(label_set)), 255], np.uint8)
    ids = label_set.to_dataset_ids(train_ids)
    assert ids[-1] == void and np.array_equal(ids[:-1], label_set.dataset_ids)
    assert np.array_equal(label_set.to_train_ids(ids), train_ids)
    assert label_set.to_train_ids(np.array([[255]])).tolist() == [[255]]


@pytest.mark.parametrize("name, unknown", [("cityscapes", [34, 254]), ("ade20k", [151, 254]), ("voc12aug", [21, 254])])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.uint64])
def test_ids_out_of_range_are_named(name, unknown, dtype):
    label_set = labels.get(name)
    ids = np.full((3, 4), 2, dtype)
    label_set.to_train_ids(ids)
    ids[1, 1:3] = unknown
    with pytest.raises(ArgumentError, match=f"Label set '{name}' has no label ids {unknown[0]}, {unknown[1]}\\."):
        label_set.to_train_ids(ids)


def test_far_and_negative_ids_are_named():
    label_set = labels.get("voc12aug")
    for ids in ([-1], [65536], [-(2**40)], [2**62]):
        with pytest.raises(ArgumentError, match=f"no label ids {ids[0]}\\."):
            label_set.to_train_ids(np.array(ids))
    with pytest.raises(ArgumentError, match=r"no label ids 21, 22, .*30, \.\.\."):
        label_set.to_train_ids(np.arange(60))
    with pytest.raises(ArgumentError, match="no train ids -1, 21"):
        label_set.to_dataset_ids(np.array([21, 3, -1]))
    with pytest.raises(ArgumentError, match="no train ids 19"):
        labels.get("cityscapes").to_dataset_ids(np.array([19]))


@pytest.mark.parametrize("ids", [np.zeros((2, 2)), np.zeros(2, bool), ["road"]])
def test_values_that_are_no_ids_are_refused(ids):
    for convert in (labels.get("cityscapes").to_train_ids, labels.get("cityscapes").to_dataset_ids):
        with pytest.raises(ArgumentError, match="must be whole numbers"):
            convert(ids)


def test_get_knows_its_names_only():
    assert set(labels.names()) == {"cityscapes", "ade20k", "voc12aug"}
    for name in ("coco", "", None, ["ade20k"]):
        with pytest.raises(UnknownLabelSetError, match="there are .*cityscapes"):
            labels.get(name)


def test_labels_need_no_torch_and_no_numpy():
    code = "import sys; from upernet_zoo import labels; labels.get('ade20k'); print(sorted({'torch', 'numpy', 'PIL'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


# --- label sets of the user's -----------------------------------------------------------------------------------------------------


@st.composite
def label_sets(draw):
    count = draw(st.integers(1, 40))
    ids = draw(st.lists(st.integers(0, 65535), min_size=count + 3, max_size=count + 3, unique=True))
    color = st.tuples(*[st.integers(0, 255)] * 3)
    return LabelSet(
        name=draw(st.text(min_size=1)),
        classes=tuple(draw(st.lists(st.text(), min_size=count, max_size=count))),
        palette=draw(st.one_of(st.just(()), st.lists(color, min_size=count, max_size=count))),
        dataset_ids=tuple(ids[:count]),
        void_ids=tuple(ids[count:]),
        void_id=ids[count],
        ignore_index=draw(st.one_of(st.just(255), st.integers(count, 65535))),
        title=draw(st.text()),
    )


@given(label_sets(), st.data())
def test_any_label_set_there_and_back(label_set, data):
    assert LabelSet.from_dict(json.loads(json.dumps(label_set.to_dict()))) == label_set
    assert hash(LabelSet.from_dict(label_set.to_dict())) == hash(label_set)
    train_ids = data.draw(st.lists(st.sampled_from([*range(len(label_set)), label_set.ignore_index]), min_size=1))
    ids = label_set.to_dataset_ids(np.array(train_ids))
    table = {**dict(enumerate(label_set.dataset_ids)), label_set.ignore_index: label_set.void_id}
    assert ids.tolist() == [table[i] for i in train_ids]
    assert label_set.to_train_ids(ids).tolist() == train_ids
    assert set(label_set.to_train_ids(np.array(label_set.void_ids)).tolist()) == {label_set.ignore_index}
    unknown = data.draw(st.integers(-70000, 70000).filter(lambda i: i not in label_set.dataset_ids + label_set.void_ids))
    with pytest.raises(ArgumentError, match=f"has no label ids {unknown}\\."):
        label_set.to_train_ids(np.array([unknown, label_set.dataset_ids[0]]))


def test_defaults():
    label_set = LabelSet("pets", ["cat", "dog"])
    assert label_set.classes == ("cat", "dog") and label_set.palette == ((0, 0, 0), (128, 0, 0))
    assert label_set.dataset_ids == (0, 1) and label_set.void_ids == (255,) and label_set.title == "pets"
    assert labels.generic(2).classes == ("class 0", "class 1")


@pytest.mark.parametrize("count", [255, 256, 300, 1000])
def test_many_classes_keep_the_ignore_index_apart(count):
    label_set = labels.generic(count)
    assert label_set.ignore_index == (255 if count == 255 else 65535)
    train_ids = np.array([*range(count), label_set.ignore_index])
    assert np.array_equal(label_set.to_train_ids(label_set.to_dataset_ids(train_ids)), train_ids)


def test_colors_of_the_known_sets():
    """Cityscapes' own table has colors of what is no class too; black is a class of Pascal VOC, and no label elsewhere."""
    label_set = labels.get("cityscapes")
    table = {c.color: c.train_id for c in Cityscapes.classes if c.ignore_in_eval}
    table |= {c.color: c.train_id for c in Cityscapes.classes if not c.ignore_in_eval}  # a group of poles has the color of a pole
    assert label_set.colors_to_train_ids(np.array(list(table), np.uint8)).tolist() == list(table.values())
    voc = np.array([[[0, 0, 0], [224, 224, 192], [128, 0, 0]]], np.uint8)
    assert labels.get("voc12aug").colors_to_train_ids(voc).tolist() == [[0, 255, 1]]
    assert labels.get("ade20k").colors_to_train_ids(voc[:, :1]).tolist() == [[255]]
    with pytest.raises(ArgumentError, match=r"has no one class of the colors \(1, 2, 3\), \(4, 5, 6\)\."):
        label_set.colors_to_train_ids(np.array([[4, 5, 6], [1, 2, 3], [0, 0, 0]], np.uint8))
    with pytest.raises(ArgumentError, match=r"no one class of the colors \(9, 9, 9\)"):
        LabelSet("same", ("a", "b"), ((9, 9, 9), (9, 9, 9))).colors_to_train_ids(np.full((1, 3), 9, np.uint8))


def test_train_ids_are_checked():
    label_set = labels.get("cityscapes")
    assert label_set.check_train_ids(np.array([0, 18, 255], np.uint8)).tolist() == [0, 18, 255]
    with pytest.raises(ArgumentError, match="Label set 'cityscapes' has no train ids 19, 33\\."):
        label_set.check_train_ids(np.array([19, 33, 0]))


def test_reduce_zero_label():
    """0 is no label, and the classes are 1, 2, ... in the files."""
    label_set = LabelSet("own", ("a", "b"), dataset_ids=range(1, 3), void_ids=(0, 255), void_id=0)
    assert label_set.to_train_ids(np.array([0, 1, 2, 255])).tolist() == [255, 0, 1, 255]


def test_many_classes_keep_the_void_ids_that_were_given():
    """300 classes with ids from 1 on and 0 for unlabeled, like a larger ADE20K."""
    label_set = LabelSet("wide", [f"class {i}" for i in range(300)], dataset_ids=tuple(range(1, 301)), void_ids=(0,), void_id=0)
    assert label_set.to_train_ids(np.array([0, 1, 300])).tolist() == [label_set.ignore_index, 0, 299]
    assert label_set.to_dataset_ids(np.array([label_set.ignore_index])).tolist() == [0]


def test_masks_of_0_and_255():
    """255 is a class on disk and cannot be void too."""
    label_set = LabelSet("water", ("dry", "wet"), dataset_ids=(0, 255))
    assert label_set.to_train_ids(np.array([0, 255], np.uint8)).tolist() == [0, 1]
    ids = label_set.to_dataset_ids(np.array([0, 1, 255]))
    assert ids[:2].tolist() == [0, 255] and ids[2] not in (0, 255)
    assert label_set.to_train_ids(ids).tolist() == [0, 1, 255]
    with pytest.raises(ConfigError, match="void_id 3 is the id of a class"):
        LabelSet("water", ("dry", "wet"), dataset_ids=(0, 3), void_id=3)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"name": ""}, "the name must be text"),
        ({"name": 3}, "the name must be text"),
        ({"classes": ()}, "classes must be a list of names"),
        ({"classes": "ab"}, "classes must be a list of names"),
        ({"classes": ("a", 1)}, "classes must be a list of names"),
        ({"classes": None}, "classes must be a list of names"),
        ({"palette": ((0, 0, 0),)}, "palette must be 2 colors"),
        ({"palette": ((0, 0, 0), (0, 0, 256))}, "palette must be 2 colors"),
        ({"palette": ((0, 0, 0), (0, 0))}, "palette must be 2 colors"),
        ({"palette": 7}, "must be lists of whole numbers"),
        ({"void_colors": ((0, 0),)}, "void_colors must be colors of three numbers"),
        ({"void_colors": (7,)}, "must be lists of whole numbers"),
        ({"dataset_ids": (1,)}, "dataset_ids must be 2 different ids"),
        ({"dataset_ids": (1, 1)}, "dataset_ids must be 2 different ids"),
        ({"dataset_ids": (-1, 1)}, "dataset_ids must be 2 different ids"),
        ({"dataset_ids": (1, 65536)}, "dataset_ids must be 2 different ids"),
        ({"dataset_ids": (1, "x")}, "must be lists of whole numbers"),
        ({"dataset_ids": (1.5, 2)}, "must be lists of whole numbers"),
        ({"palette": ((0.5, 0, 0), (0, 0, 0))}, "must be lists of whole numbers"),
        ({"void_ids": (-1,)}, "void_ids"),
        ({"void_ids": (65536,)}, "void_ids"),
        ({"void_id": -1}, "void_id"),
        ({"void_id": 65536}, "void_id"),
        ({"void_id": "0"}, "void_id must be a whole number"),
        ({"ignore_index": 255.0}, "ignore_index must be a whole number"),
        ({"ignore_index": True}, "ignore_index must be a whole number"),
        ({"ignore_index": -100}, "ignore_index"),
        ({"ignore_index": 65536}, "ignore_index"),
        ({"ignore_index": 1}, "ignore_index"),
        ({"colors": ()}, "unknown key 'colors'; known keys are name, classes"),
    ],
)
def test_lists_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        LabelSet.from_dict({"name": "two", "classes": ("a", "b"), **change})


def test_from_dict_refuses_what_is_no_label_set():
    with pytest.raises(ConfigError, match="expected a mapping, found 3"):
        LabelSet.from_dict(3)
    with pytest.raises(ConfigError, match="missing 1 required"):
        LabelSet.from_dict({"name": "pets"})
