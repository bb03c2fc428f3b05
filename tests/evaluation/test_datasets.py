"""Each loader gives back what was written in its data set's layout, and says what is wrong with another layout."""

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import Cityscapes, VOCSegmentation

from upernet_zoo import labels
from upernet_zoo.errors import ArgumentError, ImageError, MissingFileError, UnknownDatasetError
from upernet_zoo.evaluation import open_dataset

PETS = labels.LabelSet("pets", ("cat", "dog", "grass"), dataset_ids=(10, 300, 20), void_ids=(0,), void_id=0)
SIZES = [(12, 20), (17, 9), (8, 8)]


def write(path, array, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array)
    if mode == "P":
        image.putpalette([v for color in labels.voc_colors(256) for v in color])
    image.save(path)


def picture(rng, size):
    return rng.integers(0, 256, (*size, 3), dtype=np.uint8)


def make_cityscapes(root):
    """Pairs by the ids of cityscapesScripts, as torchvision has them; -1, the license plate, is not written in label files."""
    rng, train_id = np.random.default_rng(0), {c.id: c.train_id for c in Cityscapes.classes}
    expected = {}
    for number, size in enumerate(SIZES):
        city = ("munster", "frankfurt")[number % 2]
        name = f"{city}_{number:06}_000019"
        image, ids = picture(rng, size), rng.integers(0, 34, size, dtype=np.uint8)
        write(root / f"leftImg8bit/val/{city}/{name}_leftImg8bit.png", image)
        write(root / f"gtFine/val/{city}/{name}_gtFine_labelIds.png", ids)
        write(root / f"gtFine/val/{city}/{name}_gtFine_color.png", image)
        expected[name] = image, np.vectorize(train_id.get)(ids)
    write(root / "leftImg8bit/train/ulm/ulm_000000_000019_leftImg8bit.png", image)
    write(root / "gtFine/train/ulm/ulm_000000_000019_gtFine_labelIds.png", ids)
    return expected


def make_voc12aug(root):
    rng, base = np.random.default_rng(1), root / "VOCdevkit/VOC2012"
    expected = {}
    for number, size in enumerate(SIZES):
        name = f"2007_{number:06}"
        ids = rng.choice([*range(21), 255], size).astype(np.uint8)
        write(base / f"JPEGImages/{name}.jpg", picture(rng, size))
        write(base / f"SegmentationClass/{name}.png", ids, mode="P")
        with Image.open(base / f"JPEGImages/{name}.jpg") as image:
            expected[name] = np.asarray(image.convert("RGB")), ids
    write(base / "JPEGImages/2008_000001.jpg", picture(rng, size))  # has no labels, and is not in the list
    (base / "ImageSets/Segmentation").mkdir(parents=True)
    (base / "ImageSets/Segmentation/val.txt").write_text("".join(f"{name}\n" for name in reversed(expected)))
    return expected


def make_ade20k(root):
    rng = np.random.default_rng(2)
    expected = {}
    for number, size in enumerate(SIZES):
        name = f"ADE_val_{number:08}"
        ids = rng.integers(0, 151, size, dtype=np.uint8)
        write(root / f"ADEChallengeData2016/images/validation/{name}.jpg", picture(rng, size))
        write(root / f"ADEChallengeData2016/annotations/validation/{name}.png", ids)
        with Image.open(root / f"ADEChallengeData2016/images/validation/{name}.jpg") as image:
            expected[name] = np.asarray(image.convert("RGB")), np.where(ids == 0, 255, ids.astype(int) - 1)
    return expected


def make_folder(root):
    rng, train_id = np.random.default_rng(3), {10: 0, 300: 1, 20: 2, 0: 255}
    expected = {}
    for number, size in enumerate(SIZES):
        image, ids = picture(rng, size), rng.choice(list(train_id), size).astype(np.uint16)
        write(root / f"images/pet {number}.{('png', 'TIFF', 'bmp')[number]}", image)
        write(root / f"masks/pet {number}.png", ids)
        expected[f"pet {number}"] = image, np.vectorize(train_id.get)(ids)
    (root / "images/notes.txt").write_text("not a picture")
    (root / "images/.hidden.png").write_bytes(b"left behind by a file manager")
    return expected


MAKERS = {"cityscapes": make_cityscapes, "voc12aug": make_voc12aug, "ade20k": make_ade20k, "folder": make_folder}


def opened(name, root):
    return open_dataset(name, root, PETS if name == "folder" else None)


@pytest.mark.parametrize("name", MAKERS)
def test_exactly_the_pairs_that_were_written(tmp_path, name):
    expected = MAKERS[name](tmp_path)
    data = opened(name, tmp_path)
    assert data.label_set is (PETS if name == "folder" else labels.get(name))
    assert list(data.names) == sorted(expected) and len(data) == len(expected)
    for sample, key in zip(data, sorted(expected)):
        image, target = expected[key]
        assert sample.name == key and sample.path.stem.startswith(key)
        assert sample.image.dtype == np.uint8 and np.array_equal(sample.image, image)
        assert sample.target.dtype == np.int64 and np.array_equal(sample.target, target)
    assert len(list(data)) == len(expected)
    assert np.array_equal(data[-1].target, target)
    with pytest.raises(IndexError):
        data[len(expected)]


def test_cityscapes_and_voc_agree_with_torchvision(tmp_path):
    make_cityscapes(tmp_path)
    make_voc12aug(tmp_path)
    for name, theirs in (
        ("cityscapes", Cityscapes(str(tmp_path), split="val", mode="fine", target_type="semantic")),
        ("voc12aug", VOCSegmentation(str(tmp_path), year="2012", image_set="val")),
    ):
        label_set, ours = labels.get(name), {str(sample.path): sample for sample in open_dataset(name, tmp_path)}
        assert len(theirs) == len(ours)
        for path, (image, target) in zip(theirs.images, theirs):
            assert np.array_equal(ours[path].image, np.asarray(image))
            assert np.array_equal(ours[path].target, label_set.to_train_ids(np.asarray(target)))


def test_ade20k_takes_the_inner_folder_too(tmp_path):
    make_ade20k(tmp_path)
    assert open_dataset("ade20k", tmp_path / "ADEChallengeData2016").names == open_dataset("ade20k", tmp_path).names


def test_a_layout_with_another_label_set(tmp_path):
    make_cityscapes(tmp_path)
    two = labels.LabelSet("two", ("road", "rest"), dataset_ids=(7, 8), void_ids=tuple(range(34)))
    for own, other in zip(open_dataset("cityscapes", tmp_path), open_dataset("cityscapes", tmp_path, two)):
        assert np.array_equal(other.target, np.where(own.target < 2, own.target, 255))


def test_opening_decodes_nothing(tmp_path):
    make_cityscapes(tmp_path)
    for path in tmp_path.rglob("*.png"):
        path.write_bytes(b"no picture any more")
    data = open_dataset("cityscapes", tmp_path)
    assert len(data) == len(SIZES)
    with pytest.raises(ImageError, match="not a picture"):
        data[0]


@pytest.mark.parametrize("name", MAKERS)
def test_a_wrong_root_says_what_was_looked_for_and_what_is_there(tmp_path, name):
    (tmp_path / "holidays").mkdir()
    (tmp_path / "readme.txt").write_text("")
    parts = {
        "cityscapes": "leftImg8bit/val, gtFine/val",
        "voc12aug": "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt",
        "ade20k": "images/validation, annotations/validation",
        "folder": "images, masks",
    }
    with pytest.raises(MissingFileError) as caught:
        opened(name, tmp_path)
    message = str(caught.value)
    assert f"looked in {tmp_path} for {parts[name]}" in message and f"{tmp_path} has: holidays/, readme.txt." in message
    with pytest.raises(MissingFileError, match=f"there is no .*missing.*{tmp_path} has: holidays/, readme.txt"):
        opened(name, tmp_path / "missing")
    with pytest.raises(MissingFileError, match="readme.txt has: nothing readable"):
        opened(name, tmp_path / "readme.txt")


def test_half_a_layout_names_the_missing_half(tmp_path):
    (tmp_path / "leftImg8bit/val").mkdir(parents=True)
    (tmp_path / "gtFine/train").mkdir(parents=True)
    with pytest.raises(MissingFileError, match=f"there is no {tmp_path}/gtFine/val. {tmp_path}/gtFine has: train/."):
        open_dataset("cityscapes", tmp_path)


def test_archives_are_not_unpacked(tmp_path):
    for archive in ("leftImg8bit_trainvaltest.zip", "gtFine_trainvaltest.zip"):
        (tmp_path / archive).write_bytes(b"")
    with pytest.raises(MissingFileError, match="has: gtFine_trainvaltest.zip, leftImg8bit_trainvaltest.zip"):
        open_dataset("cityscapes", tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("name", MAKERS)
def test_pictures_without_labels_are_named(tmp_path, name):
    MAKERS[name](tmp_path)
    data = opened(name, tmp_path)
    lost = [path for path in tmp_path.rglob("*.png") if path.stem.startswith(data.names[1]) and path.parents[0] != data[1].path.parent]
    for path in lost:
        path.unlink()
    with pytest.raises(MissingFileError, match=f"1 of 3 pictures without labels: no file .*for {data._files[1][1].name}"):
        opened(name, tmp_path)


def test_pictures_that_are_listed_but_missing_are_named(tmp_path):
    make_voc12aug(tmp_path)
    (tmp_path / "VOCdevkit/VOC2012/JPEGImages/2007_000002.jpg").unlink()
    with pytest.raises(MissingFileError, match="1 of 3 pictures without picture: no file .*2007_000002.jpg"):
        open_dataset("voc12aug", tmp_path)


def test_an_empty_data_set_is_refused(tmp_path):
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    with pytest.raises(MissingFileError, match=f"no pictures under {tmp_path}"):
        opened("folder", tmp_path)


@pytest.mark.parametrize("name, wrong", [("cityscapes", 34), ("voc12aug", 21), ("ade20k", 151), ("folder", 11)])
def test_labels_out_of_range_are_named_with_their_file(tmp_path, name, wrong):
    MAKERS[name](tmp_path)
    data = opened(name, tmp_path)
    path = data._files[2][2]
    ids = np.array(Image.open(path))
    ids[3, 4] = wrong
    write(path, ids, mode="P" if name == "voc12aug" else None)
    data[0], data[1]
    with pytest.raises(ArgumentError, match=f"{path}: Label set '{data.label_set.name}' has no label ids {wrong}\\."):
        data[2]


def test_labels_of_another_size_are_named(tmp_path):
    make_folder(tmp_path)
    path = tmp_path / "masks/pet 1.png"
    write(path, np.zeros((9, 17), np.uint8))
    with pytest.raises(ImageError, match=f"{path}: the labels are 17x9 pixels and the picture .*pet 1.TIFF is 9x17"):
        opened("folder", tmp_path)[1]


def test_labels_that_are_no_ids_are_refused(tmp_path):
    make_folder(tmp_path)
    path = tmp_path / "masks/pet 0.png"
    write(path, np.zeros((12, 20, 2), np.uint8))
    with pytest.raises(ImageError, match=f"{path}: labels with transparent pixels"):
        opened("folder", tmp_path)[0]
    Image.fromarray(np.zeros((12, 20), np.float32)).save(path.with_suffix(".tif"))
    path.with_suffix(".tif").rename(path)
    with pytest.raises(ImageError, match=f"{path}: labels must be one id per pixel, as gray or palette PNG, .*; found mode F"):
        opened("folder", tmp_path)[0]
    write(path, np.random.default_rng(0).integers(0, 2, (200, 200), dtype=np.uint8))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ImageError, match=f"{path}: the labels cannot be read"):
        opened("folder", tmp_path)[0]


def test_one_bit_masks(tmp_path):
    mask = np.array([[True, False], [False, True]])
    write(tmp_path / "images/a.png", np.zeros((2, 2, 3), np.uint8))
    write(tmp_path / "masks/a.png", mask)
    sample = open_dataset("folder", tmp_path, labels.LabelSet("water", ("dry", "wet")))[0]
    assert np.array_equal(sample.target, mask.astype(int))


def test_what_cannot_be_told_apart_or_is_unknown_is_refused(tmp_path):
    make_folder(tmp_path)
    with pytest.raises(ArgumentError, match="'folder' needs a label set"):
        open_dataset("folder", tmp_path)
    with pytest.raises(UnknownDatasetError, match="No data set 'coco'; there are cityscapes, voc12aug, ade20k, folder"):
        open_dataset("coco", tmp_path)
    write(tmp_path / "images/pet 1.png", np.zeros((2, 2, 3), np.uint8))
    with pytest.raises(ArgumentError, match="pet 1.png has the same name as .*pet 1.TIFF"):
        opened("folder", tmp_path)


def test_stray_files_in_cityscapes(tmp_path):
    expected = make_cityscapes(tmp_path)
    (tmp_path / "leftImg8bit/val/munster/Thumbs.db").write_bytes(b"")
    assert list(open_dataset("cityscapes", tmp_path).names) == sorted(expected)
    (tmp_path / "leftImg8bit/val/.DS_Store").write_bytes(b"")
    with pytest.raises(ArgumentError, match="val/.DS_Store is not a folder that can be listed. Remove it"):
        open_dataset("cityscapes", tmp_path)


def test_a_file_in_the_place_of_a_folder(tmp_path):
    (tmp_path / "masks").mkdir()
    (tmp_path / "images").write_bytes(b"")
    with pytest.raises(ArgumentError, match="images is not a folder that can be listed"):
        opened("folder", tmp_path)


def test_a_picture_listed_twice_would_count_twice(tmp_path):
    make_voc12aug(tmp_path)
    with (tmp_path / "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt").open("a") as file:
        file.write("2007_000001\n")
    with pytest.raises(ArgumentError, match="2007_000001.jpg has the same name as"):
        open_dataset("voc12aug", tmp_path)
