"""Folders of pictures and masks as people have them: names, places, turned pictures, and what the masks' ids are."""

import json
import os

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from upernet_zoo import labels
from upernet_zoo.errors import ArgumentError, ImageError, MissingFileError
from upernet_zoo.evaluation import open_dataset, survey
from upernet_zoo.labels import LabelSet

TWO = LabelSet("two", ("a", "b"))
SPARSE = LabelSet("sparse", ("road", "sky", "car"), dataset_ids=(1, 2, 20), void_ids=(0, 255), void_id=0)
IDS = np.random.default_rng(0).integers(0, 2, (6, 9), dtype=np.uint8)


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def pair(root, picture="p.png", mask="p.png", ids=IDS, **options):
    save(root / "images" / picture, np.zeros((*ids.shape[:2], 3), np.uint8))
    return save(root / "masks" / mask, ids, **options)


def marked():
    info = PngImagePlugin.PngInfo()
    info.add_text(labels.IDS_KEY, labels.TRAIN_IDS)
    return info


@pytest.fixture(autouse=True)
def cache_elsewhere(own_cache, tmp_path_factory, monkeypatch):
    """Not in `tmp_path`, which is the data set here."""
    monkeypatch.setenv("UPERNET_ZOO_CACHE", str(tmp_path_factory.mktemp("cache")))


# --- names and places -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "picture, mask",
    [
        ("p.jpg", "p.PNG"),
        ("p.JPG", "p.tif"),
        ("p.jpg", "p.TIFF"),
        ("p.jpg", "p.bmp"),
        ("p.jpg", "p_mask.png"),
        ("p.jpg", "p.jpg.png"),
        ("p.jpg", "p_labels.png"),
        ("p.jpg", "p_labelIds.png"),
        ("p.jpg", "p_gtFine_labelIds.png"),
        ("p_leftImg8bit.png", "p_gtFine_labelIds.png"),
        ("p_leftImg8bit.png", "p_gtFine_labelTrainIds.png"),
        ("city/p.jpg", "city/p.png"),
        ("city/p_leftImg8bit.png", "city/p_gtFine_labelIds.png"),
        ("a/b/p.jpg", "a/b/p_mask.TIF"),
        ("~p.jpg", "~p.png"),
        ("p.q.jpg", "p.q.png"),
    ],
)
def test_names_of_masks(tmp_path, picture, mask):
    pair(tmp_path, picture, mask)
    data = open_dataset("folder", tmp_path, TWO)
    assert data.names == (picture.rsplit(".", 1)[0],)
    assert np.array_equal(data[0].target, IDS)


def test_a_name_that_is_not_utf_8(tmp_path):
    pair(tmp_path)
    for folder, suffix in (("images", ".png"), ("masks", ".png")):
        (tmp_path / folder / f"p{suffix}").rename(tmp_path / folder / os.fsdecode(b"stra\xdfe" + suffix.encode()))
    data = open_dataset("folder", tmp_path, TWO)
    assert data.names == ("stra\udcdfe",) and np.array_equal(data[0].target, IDS)
    assert data.survey().ids.keys() == {0, 1} and data.survey().ids.keys() == {0, 1}


def test_what_file_managers_leave_is_left_out(tmp_path):
    pair(tmp_path)
    for name in ("images/._p.png", "images/.thumbs/q.png", "masks/._p.png", "images/Thumbs.db"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"not a picture")
    assert open_dataset("folder", tmp_path, TWO).names == ("p",)


def test_what_is_there_is_said(tmp_path):
    pair(tmp_path, "city/p.png", "city/p_seg.png")
    save(tmp_path / "masks/city/other.png", IDS)
    with pytest.raises(MissingFileError, match=r"no file .*masks/city/p.png \(for p.png\); .*masks/city has: p_seg.png, other.png"):
        open_dataset("folder", tmp_path, TWO)
    save(tmp_path / "masks/city/p.jpg", IDS)
    with pytest.raises(MissingFileError, match=r"city has: p.jpg, .* \(JPEG changes ids: masks are PNG, TIFF or BMP\)"):
        open_dataset("folder", tmp_path, TWO)
    (tmp_path / "masks/city").rename(tmp_path / "masks/town")
    with pytest.raises(MissingFileError, match="there is no folder .*masks/city"):
        open_dataset("folder", tmp_path, TWO)
    (tmp_path / "images/city/p.png").rename(tmp_path / "images/city/p.heic")
    with pytest.raises(MissingFileError, match=r"no pictures under .*images has: city/\. Pictures end in .bmp, .gif, .jpeg"):
        open_dataset("folder", tmp_path, TWO)


def test_several_masks_of_one_picture(tmp_path):
    pair(tmp_path, mask="p_mask.png")
    save(tmp_path / "masks/p_labelIds.png", IDS)
    with pytest.raises(ArgumentError, match="p.png has several masks: .*p_mask.png, .*p_labelIds.png. Keep one"):
        open_dataset("folder", tmp_path, TWO)
    save(tmp_path / "masks/p.png", IDS)  # the picture's own name goes before
    assert np.array_equal(open_dataset("folder", tmp_path, TWO)[0].target, IDS)


def test_a_link_to_a_folder_is_followed_and_a_loop_is_named(tmp_path):
    pair(tmp_path / "elsewhere", "p.png", "p.png")
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "city").symlink_to(tmp_path / "elsewhere" / folder)
    assert open_dataset("folder", tmp_path, TWO).names == ("city/p",)
    (tmp_path / "images/again").symlink_to(tmp_path / "images")
    with pytest.raises(ArgumentError, match="are one folder, by a link"):
        open_dataset("folder", tmp_path, TWO)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
@pytest.mark.parametrize("way", range(2, 9))
def test_a_picture_that_exif_turns(tmp_path, way, suffix):
    exif = Image.Exif()
    exif[0x112] = way
    picture = save(tmp_path / f"images/p{suffix}", np.zeros((6, 9, 3), np.uint8), exif=exif)
    save(tmp_path / "masks/p.png", IDS)  # as the picture is stored
    with pytest.raises(
        ImageError, match=f"masks/p.png: EXIF turns the picture {picture} .orientation {way}., and the mask .*exif_transpose"
    ):
        open_dataset("folder", tmp_path, TWO)[0]
    assert str(picture) in str(open_dataset("folder", tmp_path, TWO).survey().problems[0])
    if way >= 5:
        save(tmp_path / "masks/p.png", IDS.T.copy())  # as it is seen
        sample = open_dataset("folder", tmp_path, TWO)[0]
        assert sample.image.shape[:2] == sample.target.shape == (9, 6)
    save(tmp_path / "masks/p.png", IDS, exif=exif)  # turned like the picture
    sample = open_dataset("folder", tmp_path, TWO)[0]
    assert sample.image.shape[:2] == sample.target.shape


# --- which ids --------------------------------------------------------------------------------------------------------------------


def test_ids_that_can_be_read_in_two_ways_are_refused(tmp_path):
    mask = pair(tmp_path, ids=np.array([[0, 1, 2]], np.uint8))
    data = open_dataset("folder", tmp_path, SPARSE)
    with pytest.raises(ArgumentError) as caught:
        data[0]
    message = str(caught.value)
    assert message.startswith(
        "The ids 0, 1, 2 of 1 mask can be read in two ways: as the data set's ids (0 is no label, 1 is 'road', 2 is 'sky'), "
    )
    assert "or as train ids (0 is 'road', 1 is 'sky', 2 is 'car'). Say which: ids='dataset' or ids='train'; or put classes.txt" in message
    with pytest.raises(ArgumentError, match="two ways"):
        data.subset([0])[0]
    assert open_dataset("folder", tmp_path, SPARSE, ids="dataset")[0].target.tolist() == [[255, 0, 1]]
    assert open_dataset("folder", tmp_path, SPARSE, ids="train")[0].target.tolist() == [[0, 1, 2]]
    with pytest.raises(ArgumentError, match="ids='own': give 'dataset' or 'train'"):
        open_dataset("folder", tmp_path, SPARSE, ids="own")
    save(mask, np.array([[0, 1, 2]], np.uint8), pnginfo=marked())
    assert open_dataset("folder", tmp_path, SPARSE)[0].target.tolist() == [[0, 1, 2]]
    assert open_dataset("folder", tmp_path, SPARSE, ids="dataset")[0].target.tolist() == [[0, 1, 2]]


def test_one_mask_may_decide_for_all(tmp_path):
    pair(tmp_path, "p.png", "p.png", np.array([[1, 2]], np.uint8))
    pair(tmp_path, "q.png", "q.png", np.array([[20, 1]], np.uint8))
    data = open_dataset("folder", tmp_path, SPARSE)
    assert data.ids == "dataset" and data[0].target.tolist() == [[0, 1]]


def test_the_label_file_of_the_folder_decides(tmp_path):
    pair(tmp_path, ids=np.array([[0, 1, 2]], np.uint8))
    (tmp_path / "classes.txt").write_text("1 road\n2 sky\n20 car\n0 void\n")
    data = open_dataset("folder", tmp_path)
    assert data.label_set.classes == SPARSE.classes and data[0].target.tolist() == [[255, 0, 1]]
    (tmp_path / "classes.txt").write_text("road\nsky\ncar\n")
    assert open_dataset("folder", tmp_path)[0].target.tolist() == [[0, 1, 2]]


# --- what the masks hold ----------------------------------------------------------------------------------------------------------


def checked(root, label_set, ids="dataset"):
    data = open_dataset("folder", root, label_set, ids=ids)
    data.survey().require(data.label_set, data.ids)


def test_the_survey(tmp_path):
    pair(tmp_path, "p.png", "p.png", np.array([[0, 1, 77]], np.uint8))
    pair(tmp_path, "q.png", "q.png", np.array([[255, 1, 20]], np.uint8))
    found = open_dataset("folder", tmp_path, SPARSE, ids="dataset").survey()
    assert found.rows(SPARSE, "dataset") == [
        ("0", "void", "", 1),
        ("1", "class", "road", 2),
        ("20", "class", "car", 1),
        ("77", "unknown", "", 1),
        ("255", "void", "", 1),
    ]
    assert "2 masks, read as the data set's ids" in found.table(SPARSE, "dataset") and "road" in found.table(SPARSE, "dataset")
    with pytest.raises(ArgumentError, match=r"p.png: Label set 'sparse' has no label ids 77\. In 1 of 2 masks\. .*'77 NAME'"):
        found.require(SPARSE, "dataset")
    with pytest.raises(ArgumentError, match=r"has no train ids 20, 77\."):
        found.require(SPARSE, "train")


def test_masks_without_a_label_are_refused(tmp_path):
    pair(tmp_path, ids=np.array([[0, 255]], np.uint8))
    with pytest.raises(ArgumentError, match="No label in 1 mask: the ids 0, 255 are no class of label set 'sparse'"):
        checked(tmp_path, SPARSE)


@pytest.mark.parametrize("high, dtype", [(255, np.uint8), (65535, np.uint16)])
def test_masks_of_0_and_255(tmp_path, high, dtype):
    pair(tmp_path, ids=IDS.astype(dtype) * high)
    with pytest.raises(ArgumentError, match=f"{high} is most often the object: put classes.txt .*'0 background' and '{high} object'"):
        checked(tmp_path, TWO)
    (tmp_path / "classes.txt").write_text(f"0 background\n{high} object\n")
    checked(tmp_path, None)
    assert np.array_equal(open_dataset("folder", tmp_path)[0].target, IDS)


def test_colors(tmp_path):
    palette = np.array(TWO.palette, np.uint8)
    pair(tmp_path, ids=palette[IDS])
    checked(tmp_path, TWO)
    assert open_dataset("folder", tmp_path, TWO).survey().rows(TWO, "dataset")[1] == ("(128, 0, 0)", "class", "b", 1)
    pair(tmp_path, ids=np.full((4, 4, 3), 7, np.uint8))
    with pytest.raises(ArgumentError, match=r"p.png: Label set 'two' has no colors \(7, 7, 7\)\..*classes.json"):
        checked(tmp_path, TWO)
    pair(tmp_path, ids=np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    with pytest.raises(ImageError, match="p.png: 4096 different colors: a photograph, and no mask"):
        checked(tmp_path, TWO)


def test_all_that_cannot_be_used_is_named_at_once(tmp_path):
    for i in range(13):
        pair(tmp_path, f"{i:02}.png", f"{i:02}.png")
    for i in range(11):
        save(tmp_path / f"masks/{i:02}.png", np.zeros((3, 3), np.uint8))
    (tmp_path / "masks/11.png").write_bytes(b"")
    checked(tmp_path, TWO)  # one is left
    data = open_dataset("folder", tmp_path, TWO)
    assert "12 of 13 pictures or masks cannot be used" in data.survey().table(TWO, data.ids)
    save(tmp_path / "masks/12.png", np.zeros((3, 3), np.uint8))
    with pytest.raises(ImageError) as caught:
        checked(tmp_path, TWO)
    message = str(caught.value)
    assert "13 of 13 pictures or masks cannot be used" in message and "00.png: the labels are 3x3" in message and message.endswith("...")


def test_a_picture_with_a_mask_in_a_format_that_is_not_read(tmp_path):
    pair(tmp_path)
    save(tmp_path / "masks/q_mask.png", IDS)
    (tmp_path / "images/q.heic").write_bytes(b"")
    with pytest.raises(ImageError, match="q.heic: has the mask .*q_mask.png, and is in no format that is read"):
        open_dataset("folder", tmp_path, TWO)


def test_masks_that_did_not_change_are_not_read_again(tmp_path, monkeypatch):
    for name in ("p", "q", "r"):
        pair(tmp_path, f"{name}.png", f"{name}.png")
    read, before = [], {path for path in tmp_path.rglob("*")}
    load = survey.load_mask
    monkeypatch.setattr(survey, "load_mask", lambda path: read.append(path.name) or load(path))

    def look():
        read.clear()
        return open_dataset("folder", tmp_path, TWO).survey(), sorted(read)

    first, names = look()
    assert names == ["p.png", "q.png", "r.png"]
    assert look() == (first, [])
    pair(tmp_path, "q.png", "q.png", np.full((6, 9), 9, np.uint8))
    second, names = look()
    assert names == ["q.png"] and second.ids.keys() == {0, 1, 9}
    assert look() == (second, [])
    assert {path for path in tmp_path.rglob("*")} == before  # nothing is written into the data set
    (kept,) = (survey.cache_root() / "masks").iterdir()
    assert len(json.loads(kept.read_text())["masks"]) == 3
    whole = kept.read_text()
    for damaged in ("", "[]", '{"format": 1, "masks": 3}', '{"format": 1, "masks": {"masks/p.png": 7}}', whole.replace("[0, 1]", '["0"]')):
        kept.write_text(damaged)
        found, names = look()
        assert found == second and {"p.png", "r.png"} <= set(names), damaged


def test_a_cache_that_cannot_be_written_costs_nothing(tmp_path, monkeypatch):
    pair(tmp_path)
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("UPERNET_ZOO_CACHE", str(tmp_path / "file"))
    assert open_dataset("folder", tmp_path, TWO).survey().ids.keys() == {0, 1}
