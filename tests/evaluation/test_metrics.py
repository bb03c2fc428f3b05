"""The metrics, against mmsegmentation's own numbers (fixtures) and scikit-learn's."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, confusion_matrix, jaccard_score
from support.fixture import FIXTURES

from upernet_zoo import labels
from upernet_zoo.errors import ArgumentError
from upernet_zoo.evaluation import SegmentationMetrics
from upernet_zoo.evaluation.metrics import MEANS

METRICS = FIXTURES / "metrics"
EXPECTED = json.loads((METRICS / "metrics.json").read_text())
LABEL_SETS = {"cityscapes": "cityscapes", "ade20k": "ade20k", "voc": "voc12aug"}


def pairs(name):
    """(prediction, train ids) of a fixture's pictures. ADE20K's labels are as its files hold them; the others are train ids."""
    data = np.load(METRICS / "metrics.npz")
    for i in range(sum(key.startswith(f"{name}_pred") for key in data)):
        target = data[f"{name}_gt{i}"]
        if EXPECTED[name]["reduce_zero_label"]:
            target = labels.get(LABEL_SETS[name]).to_train_ids(target)
        yield data[f"{name}_pred{i}"], target


def assert_as_published(result, expected):
    for key in ("mIoU", "mAcc", "aAcc"):
        assert abs(getattr(result, key) - expected[key]) <= 1e-12, key
    for key in ("IoU", "Acc"):
        found = getattr(result, key)
        assert len(found) == len(expected[key])
        for number, (value, reference) in enumerate(zip(found, expected[key])):
            assert math.isnan(value) if reference is None else abs(value - reference) <= 1e-12, (key, number)


@pytest.mark.parametrize("convert", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
@pytest.mark.parametrize("name", EXPECTED)
def test_every_number_of_mmsegmentation(name, convert):
    expected = EXPECTED[name]
    assert expected["num_classes"] == len(labels.get(LABEL_SETS[name]))
    metrics = SegmentationMetrics(expected["num_classes"], expected["ignore_index"])
    for prediction, target in pairs(name):
        metrics.update(convert(prediction), convert(target))
    assert metrics.confusion.dtype == torch.int64
    assert_as_published(metrics.result(), expected)


@pytest.mark.parametrize("name", EXPECTED)
def test_every_number_of_mmsegmentation_1x(name):
    """Its IoUMetric divides in float32; tools/make_metrics_fixture.py wrote what it gives."""
    expected = json.loads((METRICS / "metrics_1x.json").read_text())[name]
    metrics = SegmentationMetrics(EXPECTED[name]["num_classes"], EXPECTED[name]["ignore_index"])
    for pair in pairs(name):
        metrics.update(*pair)
    found = metrics.result()
    for theirs, ours in {
        "aAcc": "aAcc",
        "IoU": "IoU",
        "Acc": "Acc",
        "Dice": "Dice",
        "Fscore": "Dice",
        "Precision": "Precision",
        "Recall": "Recall",
    }.items():
        values = np.array([np.nan if value is None else value for value in expected[theirs]])
        np.testing.assert_allclose(np.atleast_1d(getattr(found, ours)), values, atol=1e-7, rtol=0, err_msg=theirs)


@pytest.mark.parametrize("name", EXPECTED)
def test_torchmetrics_agrees(name):
    """Of classes that are neither labeled nor predicted it makes 0, and a number of none."""
    classification = pytest.importorskip("torchmetrics.classification")
    classes, ignored = EXPECTED[name]["num_classes"], EXPECTED[name]["ignore_index"]
    options = dict(num_classes=classes, ignore_index=ignored, average=None)
    theirs = {
        "IoU": classification.MulticlassJaccardIndex(**options),
        "Dice": classification.MulticlassF1Score(**options),
        "Precision": classification.MulticlassPrecision(**options),
        "Recall": classification.MulticlassRecall(**options),
    }
    ours = SegmentationMetrics(classes, ignored)
    for prediction, target in pairs(name):
        ours.update(prediction, target)
        for metric in theirs.values():
            metric.update(torch.from_numpy(prediction.astype(np.int64)), torch.from_numpy(target.astype(np.int64)))
    found = ours.result()
    for key, metric in theirs.items():
        np.testing.assert_allclose(np.nan_to_num(getattr(found, key)), metric.compute().numpy(), atol=1e-6, rtol=0, err_msg=key)
        assert getattr(found, MEANS[key]) == pytest.approx(np.nanmean(getattr(found, key)), abs=1e-15)


def test_the_fixture_has_classes_without_a_number():
    assert any(None in expected["IoU"] for expected in EXPECTED.values())


def test_merged_halves_and_a_saved_confusion_equal_the_whole():
    halves = [SegmentationMetrics(19), SegmentationMetrics(19)]
    for number, pair in enumerate(pairs("cityscapes")):
        halves[number % 2].update(*pair)
    saved = json.loads(json.dumps(halves[0].confusion.tolist()))
    halves[0].merge(halves[1])
    assert_as_published(halves[0].result(), EXPECTED["cityscapes"])
    resumed = SegmentationMetrics(19)
    resumed.confusion += torch.tensor(saved)
    resumed.merge(halves[1])
    assert resumed.result() != halves[1].result()
    assert resumed.confusion.equal(halves[0].confusion)


ids = st.lists(st.tuples(st.integers(0, 5), st.one_of(st.integers(0, 5), st.just(255))), min_size=1, max_size=60)


@settings(max_examples=60)
@given(ids)
def test_scikit_learn_agrees(pixels):
    prediction, target = np.array(pixels).T
    metrics = SegmentationMetrics(6)
    metrics.update(prediction.astype(np.uint8), target.astype(np.uint8))
    result = metrics.result()
    counted = target != 255
    prediction, target = prediction[counted], target[counted]
    if not len(target):
        assert metrics.confusion.sum() == 0 and math.isnan(result.mIoU) and math.isnan(result.aAcc)
        return
    assert np.array_equal(metrics.confusion, confusion_matrix(target, prediction, labels=range(6)))
    occurring = np.union1d(target, prediction)
    reference = jaccard_score(target, prediction, labels=occurring, average=None)
    np.testing.assert_allclose([result.IoU[c] for c in occurring], reference, atol=1e-12, rtol=0)
    assert all(math.isnan(result.IoU[c]) for c in set(range(6)) - set(occurring))
    assert abs(result.mIoU - reference.mean()) <= 1e-12
    assert abs(result.aAcc - accuracy_score(target, prediction)) <= 1e-12


def test_counts_past_32_bits_stay_exact():
    metrics = SegmentationMetrics(2)
    metrics.confusion += torch.tensor([[2**53 + 1, 0], [0, 2**40]])
    metrics.update(torch.zeros(3, dtype=torch.uint8), torch.zeros(3, dtype=torch.uint8))
    assert metrics.confusion.tolist() == [[2**53 + 4, 0], [0, 2**40]]


@pytest.mark.parametrize(
    "prediction, target, message",
    [
        ([[0, 19]], [[0, 1]], "prediction holds ids 19; they must be from 0 to 18"),
        ([[0, 255]], [[0, 255]], "prediction holds ids 255"),
        ([[0, -1]], [[0, 1]], "prediction holds ids -1"),
        ([[0, 0]], [[33, 20]], "target holds ids 20, 33; they must be from 0 to 18 or 255"),
        ([[0, 0]], [[-1, 255]], "target holds ids -1;"),
        ([[0, 1]], [[0], [1]], r"prediction has shape \(1, 2\) and target \(2, 1\)"),
        ([[0.0, 1.0]], [[0, 1]], "prediction must hold whole numbers"),
        ([[0, 1]], [[0.0, 1.0]], "target must hold whole numbers"),
        ([[True]], [[1]], "prediction must hold whole numbers"),
        ("road", [[1]], "prediction must be an array of train ids"),
    ],
)
def test_what_cannot_be_counted_is_refused_and_nothing_is_counted(prediction, target, message):
    metrics = SegmentationMetrics(19)
    with pytest.raises(ArgumentError, match=message):
        metrics.update(np.array(prediction), np.array(target))
    assert metrics.confusion.sum() == 0


def test_wrong_classes_are_refused():
    with pytest.raises(ArgumentError, match="cannot merge 21 classes .* into 19 classes"):
        SegmentationMetrics(19).merge(SegmentationMetrics(21))
    for count in (0, -1, 2.0, True, "19"):
        with pytest.raises(ArgumentError, match="num_classes must be a whole number above zero"):
            SegmentationMetrics(count)


def test_empty_arrays_count_nothing():
    metrics = SegmentationMetrics(3)
    metrics.update(np.zeros((0, 4), np.uint8), np.zeros((0, 4), np.uint8))
    assert metrics.confusion.sum() == 0
