"""Masks for other tools: COCO's run lengths as pycocotools reads them, and polygons that rasterio makes masks of again."""

import json
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import upernet_zoo as uz
from upernet_zoo import errors
from upernet_zoo.images import shapes

MASKS = st.builds(
    lambda height, width, share, seed: np.random.default_rng(seed).random((height, width)) < share,
    st.integers(1, 12),
    st.integers(1, 12),
    st.sampled_from([0, 0.1, 0.5, 0.9, 1]),
    st.integers(0, 1 << 16),
)
COUNT = 3


def segmentation(labels):
    label_set = uz.labels.LabelSet("three", ["wall ", "sky", "sea"])
    return uz.Segmentation(labels.astype(np.uint8), np.zeros((*labels.shape, 3), np.uint8), label_set)


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")  # in pycocotools
@given(MASKS)
@settings(max_examples=100)
def test_run_lengths_are_cocos(mask):
    coco = pytest.importorskip("pycocotools.mask")
    counts = shapes.run_lengths(mask)
    assert sum(counts) == mask.size and json.loads(json.dumps(counts)) == counts
    height, width = mask.shape
    rle = coco.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    assert np.array_equal(coco.decode(rle), mask)
    assert rle["counts"] == coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]
    assert coco.area(rle) == mask.sum() and coco.toBbox(rle).tolist() == shapes.bounding_box(mask)


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")
def test_a_data_set_that_pycocotools_reads(tmp_path):
    coco = pytest.importorskip("pycocotools.coco")
    rng = np.random.default_rng(0)
    pictures = {5: rng.integers(0, COUNT, (40, 60)), 6: np.full((7, 9), 2)}
    joined = {"images": [], "annotations": [], "categories": []}
    assert min(one["id"] for one in segmentation(np.zeros((2, 2), int)).to_coco(0)["annotations"]) > 0  # which COCOeval needs
    for image_id, labels in pictures.items():
        one = segmentation(labels).to_coco(image_id, f"{image_id}.png")
        joined = {key: joined[key] + one[key] for key in ("images", "annotations")} | {"categories": one["categories"]}
    (tmp_path / "all.json").write_text(json.dumps(joined))
    found = coco.COCO(str(tmp_path / "all.json"))
    assert [category["name"] for category in found.loadCats(found.getCatIds())] == ["wall", "sky", "sea"]
    assert len(set(found.getAnnIds())) == 4
    for image_id, labels in pictures.items():
        (image,) = found.loadImgs(image_id)
        assert (image["height"], image["width"], image["file_name"]) == (*labels.shape, f"{image_id}.png")
        again = np.full(labels.shape, 255)
        for annotation in found.loadAnns(found.getAnnIds(image_id)):
            mask = found.annToMask(annotation).astype(bool)
            again[mask] = annotation["category_id"] - 1
            assert annotation["area"] == mask.sum() and annotation["iscrowd"] == 0
        assert np.array_equal(again, labels)


@given(MASKS)
@settings(max_examples=100)
def test_polygons_are_the_mask_again(mask):
    features = pytest.importorskip("rasterio.features")
    found = segmentation(mask * 1).polygons("sky")
    geometry = {"type": "MultiPolygon", "coordinates": found}
    again = features.rasterize([geometry], mask.shape, dtype=np.uint8) if found else np.zeros(mask.shape, np.uint8)
    assert np.array_equal(again, mask)
    assert all(ring[0] == ring[-1] and len(ring) >= 5 for polygon in found for ring in polygon)
    # the shoelace formula: pixels inside, less those of the holes
    area = sum(abs(shoelace(polygon[0])) - sum(abs(shoelace(ring)) for ring in polygon[1:]) for polygon in found)
    assert area == mask.sum()


def shoelace(ring):
    x, y = np.array(ring).T
    return float((x[:-1] * y[1:] - x[1:] * y[:-1]).sum() / 2)


def test_a_ring_and_its_hole():
    pytest.importorskip("rasterio.features")
    labels = np.zeros((5, 6), int)
    labels[1:4, 1:5] = 1
    labels[2, 2] = 0
    (polygon,) = segmentation(labels).polygons(" sky")
    assert {frozenset(ring) for ring in polygon} == {
        frozenset([(1.0, 1.0), (1.0, 4.0), (5.0, 4.0), (5.0, 1.0)]),
        frozenset([(2.0, 2.0), (2.0, 3.0), (3.0, 3.0), (3.0, 2.0)]),
    }
    assert segmentation(labels).polygons("sea") == []
    with pytest.raises(errors.UnknownNameError, match="Did you mean 'sky'"):
        segmentation(labels).polygons("skyy")


def test_without_rasterio_the_line_that_installs_it_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "rasterio", None)
    with pytest.raises(errors.MissingPackageError, match=r"Polygons need rasterio .*upernet-zoo\[raster\]"):
        segmentation(np.zeros((2, 2), int)).polygons("sky")


@pytest.mark.parametrize("image_id", ["x", None, 1.5, -1, True])
def test_a_picture_of_coco_has_a_whole_number(image_id):
    with pytest.raises(errors.ArgumentError, match="image_id must be a whole number from 0"):
        segmentation(np.zeros((2, 3), np.uint8)).to_coco(image_id)
