"""Labels whose windows are computed as they are reached, against those from the logits of all windows and of the whole padded picture."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from support.models import small_model

import upernet_zoo as uz
from upernet_zoo import cpu, memory
from upernet_zoo.images import preprocess, resample
from upernet_zoo.images.preprocess import windows
from upernet_zoo.window_logits import WindowLogits, most_rows

RECIPE = uz.Recipe(scale=None)


def network(x):
    """Three channels to eight classes at stride 4: what lies around a place counts, as in a network."""
    pooled = F.avg_pool2d(x, 4, ceil_mode=True)
    mixed = torch.cat([pooled, pooled.roll(1, 2), pooled.mean((2, 3), keepdim=True) - pooled], 1)[:, :8]
    return mixed * torch.linspace(-1, 1, 8)[:, None, None]


def canvas(picture, recipe, slices, flip, batch_size):
    """Logits of each view with all windows side by side, cut from the whole padded picture in float32."""
    size = picture.shape[:2]
    plain = torch.from_numpy(preprocess.normalize(picture, recipe, preprocess.padded_size(size, recipe)))[None]
    mirrored = plain.clone()
    mirrored[..., : size[0], : size[1]] = plain[..., : size[0], : size[1]].flip(3)
    views = []
    for x in (plain, mirrored) if flip else (plain,):
        stacked = torch.cat([x[..., r, c] for r in slices[0] for c in slices[1]])
        logits = torch.cat([network(part) for part in stacked.split(batch_size)])
        _, classes, h, w = logits.shape
        rows, columns = map(len, slices)
        views.append(logits.view(rows, columns, classes, h, w).permute(2, 0, 3, 1, 4).reshape(classes, rows * h, columns * w))
    return views


@given(
    content=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    crop=st.tuples(st.integers(4, 40), st.integers(4, 40)),
    step=st.tuples(st.integers(2, 4), st.integers(2, 4)),
    size=st.none() | st.tuples(st.integers(1, 90), st.integers(1, 90)),
    divisor=st.sampled_from((1, 16)),
    flip=st.booleans(),
    batch_size=st.integers(1, 3),
    align_corners=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=20)
def test_equal_to_the_whole_canvas_bit_for_bit(content, crop, step, size, divisor, flip, batch_size, align_corners, seed):
    picture = np.random.default_rng(seed).integers(0, 256, (*content, 3), dtype=np.uint8)
    recipe = dataclasses.replace(RECIPE, size_divisor=divisor)
    size = content if size is None else size
    via = preprocess.padded_size(content, recipe)
    slices = tuple(windows(side, c, max(1, c * s // 4)) for side, c, s in zip(via, crop, step))
    done = []

    def views(logits):
        return [resample.View(one, via, align_corners, slices, i > 0, content) for i, one in enumerate(logits)]

    def streamed():
        def cut(rows, columns):
            return picture[rows, columns]

        options = {"flip": flip, "batch_size": batch_size, "done": done.append}
        return views(WindowLogits(network, cut, content, recipe, *slices, **options).views)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(resample._TILE, "cpu", 8 * 11 * 11)  # bands of 11 rows
        whole = views(canvas(picture, recipe, slices, flip, batch_size))
        assert resample.labels(streamed(), size).equal(resample.labels(whole, size))
        assert resample.probabilities(streamed(), size).equal(resample.probabilities(whole, size))
    number = 2 * (1 + flip) * len(slices[0]) * len(slices[1])
    assert sum(done) <= number  # fewer where no pixel depends on a row of windows
    assert via != content or content != size or sum(done) == number


@given(st.integers(1, 300), st.integers(4, 60), st.integers(2, 4))
@settings(max_examples=20)
def test_no_more_logits_are_kept_than_later_windows_touch(height, crop, step):
    rows, columns = windows(height, crop, max(1, crop * step // 4)), windows(30, 20, 10)
    picture = np.zeros((height, 30, 3), np.uint8)
    logits = WindowLogits(
        network, lambda r, c: picture[r, c], (height, 30), RECIPE, rows, columns, flip=False, batch_size=1, done=lambda count: None
    )
    most, compute = 0, logits._compute

    def counted(number):
        nonlocal most
        found = compute(number)
        most = max(most, found.shape[2] + sum(one.shape[2] for _, one in logits._kept.values()))
        return found

    logits._compute = counted
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(resample._TILE, "cpu", 8 * 8 * 8)  # bands of 8 rows
        resample.labels([resample.View(logits.views[0], (height, 30), False, (rows, columns))], (height, 30))
    overlapping = max(sum(b.stop > r.start - 8 for b in rows[: i + 1]) for i, r in enumerate(rows))
    assert most <= most_rows(rows) / 4 + 5 * overlapping  # a band, and the edges of each window's rows, rounded up


def test_a_window_without_use_is_not_computed():
    ran = []

    def watched(x):
        ran.append(len(x))
        return network(x)

    rows = columns = windows(40, 20, 20)
    picture = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)

    def cut(r, c):
        return None if r.start == 0 else picture[r, c]

    logits = WindowLogits(watched, cut, (40, 40), RECIPE, rows, columns, flip=False, batch_size=1, done=lambda count: None)
    found = resample.labels([resample.View(logits.views[0], (40, 40), False, (rows, columns))], (40, 40))
    (expected,) = canvas(picture, RECIPE, (rows, columns), False, 1)
    expected = resample.labels([resample.View(expected, (40, 40), False, (rows, columns))], (40, 40))
    assert found[20:].equal(expected[20:]) and found.shape == (40, 40)
    assert len(ran) == 3  # one for the logits' shape, two windows


def test_own_size_is_a_recipe_without_a_scale():
    model = small_model(uz.Recipe(scale=(64, 32), min_size=20), num_classes=7)
    picture = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    slide = {"mode": "slide", "crop": (48, 40), "stride": (32, 30)}
    segmenter = uz.Segmenter(model, own_size=True, **slide)
    assert segmenter.recipe == uz.Recipe(scale=None, **slide)
    expected = uz.Segmenter(model, recipe=uz.Recipe(scale=None), **slide)(picture).labels
    np.testing.assert_array_equal(segmenter(picture).labels, expected)
    assert not np.array_equal(uz.Segmenter(model, **slide)(picture).labels, expected)
    with pytest.raises(ValueError, match="own_size must be True or False"):
        uz.Segmenter(model, own_size="yes")


def test_a_bar_counts_windows(capsys):
    segmenter = uz.Segmenter(small_model(), own_size=True, mode="slide", crop=(32, 32), stride=(32, 32), flip=True)
    segmenter(np.zeros((64, 96, 3), np.uint8), progress=True)
    assert "12/12" in capsys.readouterr().err
    segmenter(np.zeros((32, 32, 3), np.uint8))
    assert not capsys.readouterr().err


def test_a_large_picture_at_its_own_size_is_not_refused_for_logits_that_are_never_held(monkeypatch):
    model = small_model(num_classes=150)
    monkeypatch.setattr(memory, "available", lambda device: 1_500_000_000)
    segmenter = uz.Segmenter(model, own_size=True, mode="slide", crop=(512, 512), stride=(341, 341))
    segmenter._require_memory((10000, 10000), 1)
    with pytest.raises(uz.errors.NotEnoughMemoryError, match="10000x10000 pixels needs about"):
        uz.Segmenter(model, own_size=True)._require_memory((10000, 10000), 1)


@pytest.mark.parametrize(
    "text, lacks",
    (
        ("flags\t\t: fpu avx2 fma\n", True),
        ("flags\t\t: fpu avx2 avx512f avx512_bf16\n", False),
        ("flags\t\t: amx_bf16\n", False),
        ("Features\t: fp asimd bf16\n", False),
        ("Features\t: fp asimd\n", True),
        ("hardware: unknown\n", False),
    ),
)
def test_half_precision_on_a_cpu_without_bfloat16_warns(text, lacks, tmp_path, monkeypatch, recwarn):
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{text}")
    monkeypatch.setattr(cpu, "_CPUINFO", tmp_path / "cpuinfo")
    uz.Segmenter(small_model(), amp=True)
    found = [str(one.message) for one in recwarn]
    assert len(found) == lacks and all("amp=True: this CPU has no instructions for bfloat16" in message for message in found)
    monkeypatch.setattr(cpu, "_CPUINFO", tmp_path / "none")
    assert not cpu.lacks_bfloat16()
