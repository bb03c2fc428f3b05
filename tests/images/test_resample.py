"""Tiles of labels and probabilities against F.interpolate, softmax and sums of whole maps."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from upernet_zoo.images import resample
from upernet_zoo.images.preprocess import windows
from upernet_zoo.images.resample import View


def plain(view, size):
    """The view at the picture's size as mmsegmentation computes it: whole maps, sums of windows, mirrored at the end."""

    def resize(x, to):
        return F.interpolate(x[None], to, mode="bilinear", align_corners=view.align_corners)[0]

    if view.windows is None:
        full = resize(view.logits, view.via)
    else:
        rows, columns = view.windows
        h, w = view.logits.shape[1] // len(rows), view.logits.shape[2] // len(columns)
        full, count = torch.zeros(len(view.logits), *view.via), torch.zeros(view.via)
        for i, r in enumerate(rows):
            for j, c in enumerate(columns):
                one = view.logits[:, i * h : (i + 1) * h, j * w : (j + 1) * w]
                full[:, r, c] += resize(one, (r.stop - r.start, c.stop - c.start))
                count[r, c] += 1
        full /= count
    full = resize(full, size)
    return full.flip(2) if view.mirrored else full


def whole_matrix(view, axis, size):
    """(size, count): from the logits of all windows along an axis to the picture, made as one."""
    each = view.logits.shape[axis + 1] // len(view.windows[axis])
    length = view.windows[axis][0].stop - view.windows[axis][0].start
    one = F.interpolate(torch.eye(each)[None], length, mode="linear", align_corners=view.align_corners)[0]
    placed, seen = torch.zeros(view.logits.shape[axis + 1], view.via[axis]), torch.zeros(view.via[axis])
    for i, window in enumerate(view.windows[axis]):
        placed[i * each : (i + 1) * each, window] = one
        seen[window] += 1
    content = (view.content or view.via)[axis]
    return F.interpolate((placed / seen)[None, :, :content], size, mode="linear", align_corners=view.align_corners)[0].T


sides = st.integers(1, 60)


@st.composite
def some_views(draw):
    classes, size = draw(st.integers(1, 30)), (draw(sides), draw(sides))
    align_corners = draw(st.booleans())
    found = []
    for _ in range(draw(st.integers(1, 3))):
        via, slices = (draw(sides), draw(sides)), None
        small = [max(1, side // 4) for side in via]
        if draw(st.booleans()):
            crop, stride = draw(st.integers(4, 40)), draw(st.integers(2, 4))
            slices = tuple(windows(side, crop, max(1, crop * stride // 4)) for side in via)
            small = [len(axis) * -(-(axis[0].stop - axis[0].start) // 4) for axis in slices]
        generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
        logits = torch.randn(classes, *small, generator=generator) * draw(st.sampled_from((0.1, 3, 10)))
        # the winner of a region is certain in some pictures and not in others
        logits[draw(st.integers(0, classes - 1)), : small[0] // 2] += draw(st.sampled_from((0, 5, 50)))
        found.append(View(logits, via, align_corners, slices, draw(st.booleans())))
    return found, size


@given(some_views(), st.sampled_from((1 << 9, 1 << 12, 1 << 18)))
@settings(max_examples=60)
def test_probabilities_and_labels_equal_whole_maps(drawn, tile):
    found, size = drawn
    expected = sum(plain(view, size).softmax(0) for view in found) / len(found)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(resample._TILE, "cpu", tile)
        torch.testing.assert_close(resample.probabilities(found, size), expected, rtol=0, atol=1e-5)
        labels = resample.labels(found, size)
    assert labels.dtype == torch.uint8 and labels.shape == size
    if len(found) == 1:
        expected = plain(found[0], size)
    chosen = expected.gather(0, labels[None].long())[0]
    assert (expected.max(0).values - chosen).max() <= 1e-4  # the winner, or one that is as good


@given(
    via=sides,
    content=sides,
    size=st.none() | sides,
    crop=st.integers(4, 40),
    align_corners=st.booleans(),
    mirrored=st.booleans(),
    step=st.integers(1, 30),
)
@settings(max_examples=40)
def test_matrices_in_bands_are_the_whole_one_bit_for_bit(via, content, size, crop, align_corners, mirrored, step):
    content = min(via, content)
    size = content if size is None else size
    slices = windows(via, crop, max(1, crop * 2 // 3))
    count = len(slices) * -(-min(via, crop) // 4)
    view = View(torch.zeros(1, 1, count), (1, via), align_corners, ([slice(0, 1)], slices), mirrored, (1, content))
    expected = whole_matrix(view, 1, size)
    found = torch.zeros(size, count)
    for start, band in zip(range(0, size, step), view.axes((1, size))[1].bands(step, torch.device("cpu"))):
        assert (band.matrix != 0).any(0).all()
        found[start : start + step, band.used] = band.matrix
    assert found.equal(expected.flip(0) if mirrored else expected)


@pytest.mark.parametrize("align_corners", (False, True))
@pytest.mark.parametrize(
    "small, via, size", (((128, 171), (512, 683), (300, 451)), ((32, 64), (125, 253), (375, 500)), ((8, 8), (32, 32), (1, 1)))
)
def test_real_sizes(small, via, size, align_corners):
    generator = torch.Generator().manual_seed(0)
    logits = F.interpolate(torch.randn(1, 21, 6, 7, generator=generator) * 8, small, mode="bicubic")[0]
    view = View(logits, via, align_corners)
    expected = plain(view, size)
    torch.testing.assert_close(resample.probabilities([view], size), expected.softmax(0), rtol=0, atol=1e-5)
    assert (resample.labels([view], size) == expected.argmax(0)).double().mean() >= 0.9999


@given(
    via=st.tuples(st.integers(100, 300), st.integers(100, 300)),
    size=st.tuples(st.integers(100, 400), st.integers(100, 400)),
    align_corners=st.booleans(),
    crop=st.none() | st.integers(64, 200),
    seed=st.integers(0, 999),
)
@settings(max_examples=10)
def test_nearly_all_labels_equal_two_resizes_and_argmax(via, size, align_corners, crop, seed):
    slices = None if crop is None else tuple(windows(side, crop, crop * 2 // 3) for side in via)
    small = [-(-side // 4) if crop is None else len(axis) * -(-min(crop, side) // 4) for side, axis in zip(via, slices or (None, None))]
    logits = F.interpolate(torch.randn(1, 19, 6, 7, generator=torch.Generator().manual_seed(seed)) * 8, small, mode="bicubic")[0]
    view = View(logits, via, align_corners, slices)
    assert (resample.labels([view], size) == plain(view, size).argmax(0)).double().mean() >= 0.9999


def test_more_than_255_classes():
    logits = torch.randn(300, 5, 6, generator=torch.Generator().manual_seed(0))
    view = View(logits, (20, 24), False)
    labels = resample.labels([view], (33, 31))
    assert labels.dtype == torch.int16
    np.testing.assert_array_equal(labels, plain(view, (33, 31)).argmax(0))


@pytest.mark.parametrize("sliced", (False, True))
def test_logits_with_channels_last_are_read_row_by_row(sliced, monkeypatch):
    monkeypatch.setitem(resample._TILE, "cpu", 40 * 8 * 8)  # tiles of 8 x 8 pixels
    slices = (windows(96, 64, 32), windows(80, 64, 16)) if sliced else None
    shape = (40, 32, 32) if sliced else (40, 24, 20)
    logits = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    last = logits.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profile:
        labels = resample.labels([View(last, (96, 80), False, slices)], (96, 80))
    copied = [math.prod(event.input_shapes[0]) for event in profile.events() if event.name == "aten::copy_"]
    assert 0 < max(copied) < logits.numel()
    assert torch.equal(labels, resample.labels([View(logits, (96, 80), False, slices)], (96, 80)))


def test_nan_stays_in_the_tiles_that_depend_on_it(monkeypatch):
    monkeypatch.setitem(resample._TILE, "cpu", 4 * 8 * 8)  # tiles of 8 x 8 pixels
    logits = torch.randn(4, 6, 6, generator=torch.Generator().manual_seed(0))
    logits[2, 3, 3] = torch.nan
    view = View(logits, (24, 24), False)
    labels = resample.labels([view], (48, 48))
    assert labels.max() <= 3
    np.testing.assert_array_equal(labels[40:], plain(view, (48, 48)).argmax(0)[40:])


class Largest(TorchDispatchMode):
    """Remembers how many elements the largest result of any operation has."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        for result in found if isinstance(found, (tuple, list)) else (found,):
            if isinstance(result, torch.Tensor):
                self.elements = max(self.elements, result.numel())
        return found


@pytest.mark.parametrize("count", (1, 3))
def test_no_array_of_all_classes_at_the_size_of_the_picture(count):
    generator = torch.Generator().manual_seed(0)
    found = [View(torch.randn(60, 16, 20, generator=generator), (64, 80), False, mirrored=bool(i % 2)) for i in range(count)]
    with Largest() as largest:
        labels = resample.labels(found, (600, 750))
    assert labels.shape == (600, 750)
    assert largest.elements <= max(600 * 750, 60 * 64 + resample._TILE["cpu"])
