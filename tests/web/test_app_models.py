"""What the app does with pictures and models, without a page."""

import base64
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from support.fixture import FIXTURES, NAMES

from upernet_zoo import Segmenter, index, labels
from upernet_zoo.demo import scenes
from upernet_zoo.demo.run import FIRST_UNSEEN_SEED
from upernet_zoo.errors import ArgumentError, ImageError, MissingFileError, OfflineError
from upernet_zoo.segmentation import Segmentation
from upernet_zoo.web import app_models, app_view
from upernet_zoo.web.app_models import Answer, Choice, Studio

PHOTO = next(iter(sorted((FIXTURES / "photos").iterdir())))


def answer(label_map, classes=19, image=None):
    image = np.zeros((*label_map.shape, 3), np.uint8) if image is None else image
    return Answer(Segmentation(label_map, image, labels.generic(classes)), "street", "demo", "cpu", 0.25)


def decoded(url):
    kind, content = url.split(";base64,")
    return kind, np.array(Image.open(BytesIO(base64.b64decode(content))))


def test_the_demo_then_what_is_here_then_the_rest(own_cache):
    entries = list(index.default().values())
    here = [entries[40], entries[7]]
    folder = own_cache / "checkpoints"
    folder.mkdir(parents=True)
    (folder / here[0].file_name).write_bytes(b"whole")
    (folder / f"{here[1].file_name}.part").write_bytes(b"not whole")
    (folder / f"{here[1].name}-0123456789ab.safetensors").write_bytes(b"converted")
    choices = Studio().choices()
    assert [choice.name for choice in choices[:3]] == ["demo", here[1].name, here[0].name]
    assert [choice.here for choice in choices] == [True] * 3 + [False] * (len(entries) - 2)
    assert {choice.name for choice in choices} == {"demo", *(entry.name for entry in entries)}
    assert choices[1].label == f"● {here[1].name}" and choices[3].label.startswith("○ ")


def test_a_model_of_ones_own_is_the_first(tmp_path):
    path = tmp_path / "mine.pth"
    path.write_bytes(b"x")
    first, demo = Studio(str(path)).choices()[:2]
    assert (first.name, first.entry, first.here, demo.name) == (str(path), None, True, "demo")


def test_nothing_else_can_be_chosen(tmp_path):
    path = tmp_path / "theirs.pth"
    path.write_bytes(b"x")
    for name in (str(path), "hf-hub:somebody/model", "local-dir:/etc", ""):
        with pytest.raises(ArgumentError, match="none of the models that this app offers"):
            Studio().segment(PHOTO, name)


def test_it_is_what_the_segmenter_says():
    found = Studio().segment(PHOTO, "demo", (0.75, 1.0), True)
    expected = Segmenter("demo", scales=(0.75, 1.0), flip=True)(PHOTO)
    assert np.array_equal(found.segmentation.labels, expected.labels)
    assert (found.stem, found.model, found.device) == (PHOTO.stem, "demo", "cpu") and found.seconds > 0


def test_two_models_are_kept_in_memory(small_index, monkeypatch):
    monkeypatch.setenv("UPERNET_ZOO_MIRRORS", " ".join(str(FIXTURES / name) for name in NAMES))
    studio = Studio()
    first, second, third = NAMES[:3]
    kept = {name: studio._loaded(name) for name in (first, second)}
    assert studio._loaded(first) is kept[first]
    studio._loaded(third)  # `second` was not used for longest
    assert list(studio._models) == [first, third]


def test_messages_have_the_pictures_name_and_not_its_place(tmp_path):
    path = tmp_path / "0123abcd.jpg"
    path.write_bytes(b"\xff\xd8\xff" + b"x" * 100)
    with pytest.raises(ImageError, match="^broken.jpg: a JPEG file that is damaged") as caught:
        Studio().segment(path, "demo", name="broken.jpg")
    assert str(tmp_path) not in str(caught.value)
    with pytest.raises(MissingFileError, match="^gone.jpg is no longer here"):
        Studio().segment(tmp_path / "other.jpg", "demo", name="gone.jpg")


def test_a_picture_that_is_too_large_is_not_decoded(tmp_path, monkeypatch):
    path = tmp_path / "wide.png"
    Image.new("1", (6000, 5000)).save(path)
    with pytest.raises(ImageError, match="wide.png is 6000x5000 pixels, 30 million, and this app takes up to 25 million"):
        Studio().segment(path, "demo")
    monkeypatch.setattr(app_models, "MOST_BYTES", 100)
    with pytest.raises(ImageError, match=r"wide.png has \d+ (kB|bytes), and this app takes up to 100 bytes"):
        Studio().segment(path, "demo")


def test_weights_that_cannot_be_had():
    name = next(iter(index.default()))
    with pytest.raises(OfflineError, match=name):
        Studio(local_files_only=True).segment(PHOTO, name)


def test_a_page_is_given_the_labels_bit_for_bit():
    label_map = np.random.default_rng(0).integers(0, 300, (40, 60)).astype(np.int16)
    shown = app_view.view(answer(label_map, 300))
    kind, pixels = decoded(shown["labels"])
    assert kind == "data:image/png" and np.array_equal(pixels[..., 0] + 256 * pixels[..., 1].astype(int), label_map)
    assert sum(one["pixels"] for one in shown["classes"]) == label_map.size
    assert (shown["width"], shown["height"], shown["caption"]) == (60, 40, "street · 60x40 pixels · demo · 250 ms on cpu")


def test_a_page_is_given_a_small_picture_of_a_large_one():
    image, label_map = scenes.draw(FIRST_UNSEEN_SEED, (256, 512))
    image, label_map = image.repeat(8, 0).repeat(8, 1), label_map.repeat(8, 0).repeat(8, 1)
    shown = app_view.view(answer(label_map, image=image))
    (kind, picture), (_, ids) = decoded(shown["picture"]), decoded(shown["labels"])
    assert kind == "data:image/jpeg" and picture.shape == ids.shape == (800, 1600, 3)
    assert set(np.unique(ids[..., 0])) <= set(np.unique(label_map)) and not ids[..., 1:].any()
    assert np.array_equal(ids[..., 0], np.array(Image.fromarray(label_map).resize((1600, 800), Image.Resampling.NEAREST)))


def test_what_is_kept_is_what_the_segmentation_writes(tmp_path):
    segmentation = Segmenter("demo")(PHOTO)
    segmentation.save(tmp_path / "expected.png")
    one = Answer(segmentation, "a street", "demo", "cpu", 1.5)
    assert app_view.write(one, "labels", tmp_path) == tmp_path / "a street_labels.png"
    assert (tmp_path / "a street_labels.png").read_bytes() == (tmp_path / "expected.png").read_bytes()
    overlay = np.array(Image.open(app_view.write(one, "overlay", tmp_path, 0.25)))
    assert np.array_equal(overlay, np.array(segmentation.overlay(0.25)))
    with pytest.raises(ArgumentError, match="opacity"):
        app_view.write(one, "overlay", tmp_path, 7.0)


def test_facts_of_each_model():
    for choice in Studio().choices():
        text = app_view.facts(choice)
        assert ("drawn" in text) if choice.name == "demo" else (choice.entry.dataset in text and "downloaded first" in text)
    entry = index.model_info("upernet_r101_769x769_80k_cityscapes")
    assert app_view.facts(Choice(entry.name, entry, True)) == (
        "R-101 · Cityscapes, 19 classes, in windows of 769x769 · published mIoU 80.10 % · license of the weights: Apache-2.0"
        " · its weights are here"
    )
