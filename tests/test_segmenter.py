"""Segmenter and Segmentation against mmsegmentation's label maps and softmax, and against the plain two resizes."""

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support.fixture import FIXTURES
from support.models import small_config

import upernet_zoo as uz
from upernet_zoo import errors, memory
from upernet_zoo.images import fonts, resample, visualize
from upernet_zoo.images.preprocess import windows
from upernet_zoo.models import UPerNet

RATIOS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    config = small_config()
    model = UPerNet(config, uz.Recipe(scale=(128, 64)))
    torch.nn.init.normal_(model.decode_head.classifier.weight)  # so that classes differ
    return model.eval()


@pytest.fixture(scope="module")
def photo():
    return np.array(Image.open(FIXTURES / "photos" / "chelsea.png").convert("RGB"))[:100, :150]


def test_label_maps_equal_mmsegmentation(fixture):
    mode = fixture.expected["config"]["test_cfg"]["mode"]
    segmentation = uz.Segmenter(uz.load_checkpoint(fixture.checkpoint))(fixture.photo)
    expected = fixture.labels(mode)
    assert segmentation.labels.dtype == np.uint8 and segmentation.labels.shape == expected.shape
    assert (segmentation.labels == expected).mean() >= 0.9999


def test_softmax_equals_mmsegmentation(fixture):
    probes = fixture.arrays("probes.npz")
    found = uz.Segmenter(uz.load_checkpoint(fixture.checkpoint)).probabilities(fixture.photo)
    np.testing.assert_allclose(found[:, probes["rows"], probes["cols"]].T, probes["probs"], rtol=0, atol=1e-5)


def test_multi_scale_and_flip_equal_mmsegmentation(fixture):
    probes = fixture.arrays("probes.npz")
    if "probs_ms_flip" not in probes:
        assert fixture.name == "upernet_r50_512x1024_40k_cityscapes"  # the one fixture made without
        return
    segmenter = uz.Segmenter(uz.load_checkpoint(fixture.checkpoint), scales=RATIOS, flip=True, batch_size=2)
    found = segmenter.probabilities(fixture.photo)
    np.testing.assert_allclose(found[:, probes["rows"], probes["cols"]].T, probes["probs_ms_flip"], rtol=0, atol=1e-5)
    expected = fixture.labels(f"{segmenter.recipe.mode}_ms_flip")
    assert (segmenter(fixture.photo).labels == expected).mean() >= 0.9999


@pytest.mark.parametrize("size, crop, stride", ((2049, 769, 513), (769, 769, 513), (770, 769, 513), (100, 769, 513), (1538, 769, 513)))
def test_windows_cover_and_stay_inside(size, crop, stride):
    found = windows(size, crop, stride)
    covered = np.zeros(size, int)
    for window in found:
        assert window.stop - window.start == min(crop, size)
        covered[window] += 1
    assert covered.min() >= 1
    assert len(found) == max(-(-(size - crop) // stride), 0) + 1


def test_slide_mode_is_the_average_of_windows(tiny, photo):
    segmenter = uz.Segmenter(tiny, mode="slide", crop=(48, 48), stride=(32, 40), batch_size=3)
    x = uz.images.preprocess.prepare(photo, tiny.recipe)
    height, width = x.shape[2:]
    total, count = torch.zeros(5, height, width), torch.zeros(height, width)
    with torch.inference_mode():
        for r in windows(height, 48, 32):
            for c in windows(width, 48, 40):
                total[:, r, c] += tiny(x[:, :, r, c])[0]
                count[r, c] += 1
    expected = F.interpolate((total / count)[None], photo.shape[:2], mode="bilinear", align_corners=False).softmax(1)[0]
    torch.testing.assert_close(segmenter.probabilities(photo), expected, rtol=0, atol=1e-5)


@given(
    classes=st.integers(1, 40),
    small=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    via=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    align_corners=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=100)
def test_labels_equal_two_resizes_and_argmax(classes, small, via, size, align_corners, seed):
    logits = torch.randn(classes, *small, generator=torch.Generator().manual_seed(seed))
    once = F.interpolate(logits[None], via, mode="bilinear", align_corners=align_corners)
    full = F.interpolate(once, size, mode="bilinear", align_corners=align_corners)[0]
    found = resample.labels([resample.View(logits, via, align_corners)], size)
    chosen = full.gather(0, found[None].long())[0]
    assert (full.max(0).values - chosen).max() <= 1e-5  # the winner, or one that is as good


def test_what_can_go_in_gives_the_same(tiny, photo, tmp_path):
    segmenter = uz.Segmenter(tiny)
    expected = segmenter(photo).labels
    assert expected.shape == photo.shape[:2] and len(np.unique(expected)) > 1
    path = tmp_path / "photo.png"
    Image.fromarray(photo).save(path)
    for image in (path, str(path), Image.fromarray(photo), torch.from_numpy(photo).permute(2, 0, 1), np.dstack([photo, photo[..., 0]])):
        np.testing.assert_array_equal(segmenter(image).labels, expected)


def test_half_precision_is_near(tiny, photo):
    plain, half = (uz.Segmenter(tiny, amp=amp).probabilities(photo) for amp in (False, True))
    assert half.dtype == torch.float32 and not half.equal(plain)
    torch.testing.assert_close(half, plain, rtol=0, atol=0.05)


def test_map_keeps_the_order_and_stops_at_a_bad_picture(tiny, photo, tmp_path):
    segmenter = uz.Segmenter(tiny)
    pictures = [photo, photo[:50], photo[:, :40]]
    assert [s.labels.shape for s in segmenter.map(pictures)] == [p.shape[:2] for p in pictures]
    assert list(segmenter.map([])) == []
    found = segmenter.map([photo, tmp_path / "missing.png", photo])
    assert next(found).labels.shape == photo.shape[:2]
    with pytest.raises(FileNotFoundError, match="missing.png"):
        next(found)


@pytest.mark.parametrize("size", ((1, 1), (1, 300), (300, 1), (33, 33), (500, 20)))
def test_pictures_of_odd_shapes(tiny, size):
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    assert uz.Segmenter(tiny)(picture).labels.shape == size


def test_result_areas_overlay_and_png(tiny, photo, tmp_path):
    segmentation = uz.Segmenter(tiny)(photo)
    areas = segmentation.areas()
    assert sum(areas.values()) == pytest.approx(1)
    assert list(areas.values()) == sorted(areas.values(), reverse=True)
    assert areas == {f"class {i}": pytest.approx((segmentation.labels == i).mean()) for i in np.unique(segmentation.labels)}
    path = segmentation.save(tmp_path / "new" / "labels.png")
    with Image.open(path) as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.array(image), segmentation.labels)
        assert image.getpalette()[:15] == [v for c in segmentation.palette for v in c]
    plain = np.array(segmentation.overlay(0.25, legend=False)).astype(float)
    expected = 0.75 * photo + 0.25 * np.array(segmentation.palette)[segmentation.labels]
    assert np.abs(plain - expected).max() <= 0.51
    assert segmentation.overlay().height > photo.shape[0]
    with pytest.raises(ValueError, match="saved as .png"):
        segmentation.save(tmp_path / "labels.jpg")
    for alpha in (2, -0.1, float("nan"), "x", None):
        with pytest.raises(ValueError, match="opacity"):
            segmentation.overlay(alpha)


def test_a_large_picture_is_blended_in_parts(photo, monkeypatch):
    labels = np.arange(photo.shape[0] * photo.shape[1]).reshape(photo.shape[:2]) % 7
    palette = [(id * 30, 255 - id * 30, id) for id in range(6)]  # the seventh is no class
    whole = visualize.blend(photo, labels, palette, 0.3)
    monkeypatch.setattr(visualize, "_PIXELS", 1000)
    np.testing.assert_array_equal(visualize.blend(photo, labels, palette, 0.3), whole)


def test_ignored_pixels_stay_as_they_are(photo):
    labels = np.zeros(photo.shape[:2], np.int64)
    labels[:50] = 255
    mixed = visualize.blend(photo, labels, ((255, 0, 0),), 1.0)
    np.testing.assert_array_equal(mixed[:50], photo[:50])
    assert (mixed[50:] == (255, 0, 0)).all()


def test_a_legend_is_as_wide_as_its_longest_name():
    names = ["x" * 60 + "i", "x" * 60 + "w"]  # differ at the end
    pictures = [np.array(visualize.legend([(name, (255, 0, 0))], 40)) for name in names]
    ends = [picture.min(axis=(0, 2)) < 128 for picture in pictures]
    for dark, picture in zip(ends, pictures):
        assert dark.any() and np.flatnonzero(dark)[-1] < picture.shape[1] - 1  # the last letter is inside
    assert pictures[0].shape != pictures[1].shape
    assert visualize.legend([("road", (255, 0, 0))], 400).width == 400


def test_more_than_255_classes_are_int16(photo, tmp_path):
    config = small_config(num_classes=300)
    segmentation = uz.Segmenter(UPerNet(config, uz.Recipe(scale=(128, 64))))(photo)
    assert segmentation.labels.dtype == np.int16
    with Image.open(segmentation.save(tmp_path / "labels.png")) as image:
        np.testing.assert_array_equal(np.array(image), segmentation.labels)


def test_what_cannot_fit_is_refused_before_it_starts(tiny, photo, monkeypatch):
    monkeypatch.setattr(uz.Segmenter, "_network", lambda *_: pytest.fail("the network ran"))
    monkeypatch.setattr(memory, "available", lambda device: 40_000)
    whole = uz.Segmenter(tiny)
    with pytest.raises(
        errors.NotEnoughMemoryError, match=r"150x100 pixels needs about \d.*network.*logits.*result.*free\. .*batch_size=1"
    ) as refused:
        whole(photo)
    with pytest.raises(errors.NotEnoughMemoryError, match="pixels needs about") as probabilities:
        whole.probabilities(photo)
    assert str(probabilities.value) != str(refused.value)  # 5 classes of float32 in place of a byte
    monkeypatch.setattr(memory, "available", lambda device: None)
    with pytest.raises(pytest.fail.Exception, match="the network ran"):
        whole(photo)


MEASURE = """
import sys, torch
import upernet_zoo as uz
from upernet_zoo.models import UPerNet
from upernet_zoo.segmenter import network_bytes
torch.set_num_threads(1)
form, channels = sys.argv[1], int(sys.argv[2])
backbone = uz.ResNetConfig(depth=18, base_channels=8, stem_channels=8)
model = UPerNet(uz.UPerNetConfig(backbone=backbone, num_classes=19, channels=channels)).eval()
network = uz.optimize_for_inference(model) if form == "fused" else model
peak = lambda: next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
with torch.inference_mode():
    network.decode_head(network.backbone(torch.randn(1, 3, 64, 64)))
    x = torch.randn(1, 3, 768, 768)
    open("/proc/self/clear_refs", "w").write("5")  # the peak starts again
    before = peak()
    network.decode_head(network.backbone(x))
print((peak() - before) / network_bytes(network, 768 * 768))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measures with Linux's /proc")
@pytest.mark.parametrize(("form", "channels"), [("plain", 128), ("fused", 248), ("fused", 256)])
def test_the_estimate_of_memory_is_near_what_is_taken(form, channels):
    ran = subprocess.run([sys.executable, "-c", MEASURE, form, str(channels)], capture_output=True, text=True, check=True)
    assert 0.5 < float(ran.stdout) < 1.5, ran.stdout


def test_available_memory(tmp_path, monkeypatch):
    lines = Path("/proc/meminfo").read_text().splitlines()
    most = next(int(line.split()[1]) for line in lines if line.startswith("MemTotal:")) * 1024
    assert 0 < memory.available(torch.device("cpu")) <= most
    assert memory.available(torch.device("meta")) is None
    # a job in a scheduler's group that has a limit, version 2 and 1
    for version, controllers, names, cached in (
        (2, "", ("memory.max", "memory.current"), "inactive_file 400\nactive_file 100\n"),
        (
            1,
            "memory",
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
            "inactive_file 7\nactive_file 0\ntotal_inactive_file 400\ntotal_active_file 100\n",
        ),
    ):
        root = tmp_path / str(version)
        monkeypatch.setattr(memory, "_CGROUPS", root)
        monkeypatch.setattr(memory, "_OWN_CGROUPS", tmp_path / f"own{version}")
        (tmp_path / f"own{version}").write_text(f"0:{controllers}:/jobs/7\n12:devices:/elsewhere\n")
        outer = root / controllers / "jobs"
        (outer / "7").mkdir(parents=True)
        for name, value in zip(names, ("10000", "7000")):
            (outer / name).write_text(f"{value}\n")
        (outer / "memory.stat").write_text(f"anon 6000\n{cached}file 900\n")
        for name, value in zip(names, ("max", "7000")):
            (outer / "7" / name).write_text(f"{value}\n")
        assert memory.available(torch.device("cpu")) == 3500


def test_arguments_are_checked(tiny):
    for keywords, message in (
        ({"mode": "tiles"}, "'whole' or 'slide'"),
        ({"crop": (3, 3)}, "belong to slide mode"),
        ({"mode": "slide"}, "needs 'crop'"),
        ({"scales": ()}, "scales must be"),
        ({"scales": (0,)}, "scales must be"),
        ({"scales": "12"}, "scales must be .* found '12'"),
        ({"scales": ("1",)}, "scales must be"),
        ({"scales": (1.0, float("nan"))}, "scales must be"),
        ({"scales": 2}, "scales must be"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"flip": "no"}, "flip must be True or False, found 'no'"),
        ({"amp": 1}, "amp must be True or False"),
        ({"device": "tpu"}, "Device 'tpu' is not usable here"),
    ):
        with pytest.raises(errors.ArgumentError, match=message):
            uz.Segmenter(tiny, **keywords)
    with pytest.raises(errors.ArgumentError, match="expected a UPerNet"):
        uz.Segmenter(3)
    with pytest.raises(errors.ModelNotFoundError):
        uz.Segmenter("no_such_model")
    with pytest.raises(errors.ArgumentError, match=r"torch.compile returned.*model.backbone.compile\(\)"):
        uz.Segmenter(torch.compile(tiny))
    if not torch.cuda.is_available():
        with pytest.raises(errors.ArgumentError, match="Device 'cuda' is not usable here"):
            uz.Segmenter(tiny, device="cuda")


def test_a_result_shows_what_it_is(tiny, photo):
    segmentation = uz.Segmenter(tiny)(photo)
    text = repr(segmentation)
    name, area = next(iter(segmentation.areas().items()))
    assert text.startswith(f"Segmentation(150x100, 5 classes: {name} {area:.1%}") and "\n" not in text
    png = segmentation._repr_png_()
    assert np.array_equal(Image.open(io.BytesIO(png)), segmentation.overlay())


def test_colors_masks_and_plain_values(tiny, photo):
    segmentation = uz.Segmenter(tiny)(photo)
    colors = segmentation.colors()
    assert colors.shape == photo.shape and colors.dtype == np.uint8
    total = np.zeros(photo.shape[:2], int)
    for id, (name, color) in enumerate(zip(segmentation.classes, segmentation.palette)):
        mask = segmentation.mask(name)
        assert mask.dtype == bool and np.array_equal(mask, segmentation.labels == id) and (colors[mask] == color).all()
        total += mask
    assert (total == 1).all()
    data = segmentation.to_dict()
    assert json.loads(json.dumps(data)) == data and (data["height"], data["width"]) == (100, 150)
    assert {c["name"]: c["area"] for c in data["classes"]} == segmentation.areas()
    assert all(segmentation.classes[c["id"]] == c["name"] for c in data["classes"])
    with pytest.raises(errors.UnknownNameError, match="has no class 'Class 1'. Did you mean 'class 1'"):
        segmentation.mask("Class 1")
    ade20k = uz.Segmentation(np.full((1, 1), 7, np.uint8), photo[:1, :1], uz.labels.get("ade20k"))
    assert ade20k.mask("bed").all() and "bed 100.0%" in repr(ade20k)  # the published name ends in a space


def test_colors_of_ade20k_are_controlnets():
    expected = json.loads((FIXTURES / "controlnet_ade20k_palette.json").read_text())["colors"]
    labels = np.arange(150, dtype=np.uint8).reshape(1, 150)
    found = uz.Segmentation(labels, np.zeros((1, 150, 3), np.uint8), uz.labels.get("ade20k")).colors()
    assert found.shape == (1, 150, 3) and found[0].tolist() == expected


def test_a_legend_without_a_font_shows_the_classes_numbers_with_one_warning(monkeypatch):
    monkeypatch.setattr(fonts, "_files", lambda: ())
    fonts._font_for.cache_clear()
    names = ["道路", "天空", "road"]
    with pytest.warns(UserWarning, match=r"No font .* letters of '道路 50.0%', '天空 30.0%': .*Noto Sans CJK") as warned:
        label_set = uz.labels.LabelSet("streets", names)
        labels = np.array([[0] * 5 + [1] * 3 + [2] * 2], np.uint8)
        found = uz.Segmentation(labels, np.zeros((1, 10, 3), np.uint8), label_set).overlay()
    assert len(warned) == 1
    entries = [("class 0", label_set.palette[0]), ("class 1", label_set.palette[1]), ("road 20.0%", label_set.palette[2])]
    assert np.array_equal(np.array(found)[1:], np.array(visualize.legend(entries, 10)))
    with pytest.warns(UserWarning):
        one, other = (np.array(visualize.legend([(name, (0, 0, 0))], 400)) for name in names[:2])
    assert not np.array_equal(one, other)
    fonts._font_for.cache_clear()


def test_a_legend_takes_a_font_that_has_the_letters(recwarn):
    text, font = fonts.drawable("небо", 20)
    assert text == "небо" and fonts._has(font, "небо") and not fonts._has(font, "\U0010fffe")
    assert not any("LastResort" in path.name for path in fonts._files())  # matplotlib's, which draws all Chinese letters alike
    visualize.legend([("небо", (0, 0, 0)), ("straße", (0, 0, 0))], 200, [0, 1])
    assert not recwarn.list


def test_many_texts_share_a_font():
    assert len({id(fonts.drawable(f"road {share}.0%", 13)[1]) for share in range(1000)}) == 1


@pytest.mark.parametrize("name", ["upernet_convnext", "twins_svt", "upernet_vit-b16_mln"])
def test_a_picture_too_thin_for_a_backbone_is_refused(name):
    """Resized to 64x2 pixels there is less than a patch at some stage; torch's own error would end a batch."""
    model = uz.load_checkpoint(next((Path(__file__).parent / "fixtures" / "family").glob(f"{name}*/*.pth")))
    model.recipe = uz.Recipe(scale=(64, 64))
    for optimize in (False, True):
        segmenter = uz.Segmenter(model, optimize=optimize)
        with pytest.raises(errors.ImageError, match=f"64x2 pixels, which is too small for {re.escape(model.config.backbone.title)}"):
            segmenter(np.zeros((10, 320, 3), np.uint8))
        assert segmenter(np.zeros((10, 10, 3), np.uint8)).labels.shape == (10, 10)
