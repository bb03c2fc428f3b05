"""Exported models in ONNX Runtime, without torch: the labels of `Segmenter`, in whole and in slide mode."""

import json
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support.exports import demo_onnx  # noqa: F401  a fixture
from support.fixture import FIXTURES, ROOT
from support.packages import bare_environment

import upernet_zoo as uz
from upernet_zoo import runtime
from upernet_zoo.errors import (
    ArgumentError,
    CheckpointError,
    ConfigError,
    ImageError,
    MissingFileError,
    MissingPackageError,
    NotEnoughMemoryError,
)
from upernet_zoo.images import preprocess, resample
from upernet_zoo.images.preprocess import windows
from upernet_zoo.version import runtime_lines

PHOTOS = [FIXTURES / "photos" / name for name in ("chelsea.png", "coffee.png")]
# what the package requires otherwise
OTHERS = ("torch", "torchvision", "requests", "urllib3", "huggingface_hub", "safetensors", "tqdm", "yaml")
SLIDE = {"mode": "slide", "crop": (160, 192), "stride": (107, 128)}
MOST = 250e6  # bytes of an installation without torch


def rewritten(path, out, **values):
    """The ONNX file with other metadata; None takes a key out."""
    model = onnx.load(path)
    for key, value in values.items():
        kept = [one for one in model.metadata_props if one.key != key]
        del model.metadata_props[:]
        model.metadata_props.extend(kept)
        if value is not None:
            model.metadata_props.add(key=key, value=value)
    onnx.save(model, str(out))
    return out


def with_recipe(path, out, **changes):
    recipe = json.loads(onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map["recipe"])
    return rewritten(path, out, recipe=json.dumps({**recipe, **changes}))


@pytest.mark.parametrize("photo", PHOTOS, ids=lambda path: path.stem)
@pytest.mark.parametrize("kind, options", {"logits": {}, "slide": SLIDE, "padded": {"size_divisor": 48, **SLIDE}, "labels": {}}.items())
def test_labels_equal_the_segmenters(kind, options, photo, demo_onnx, tmp_path):  # noqa: F811
    path = demo_onnx("labels" if kind == "labels" else "logits")
    if options:
        path = with_recipe(path, tmp_path / "slide.onnx", **options)
    segmenter = runtime.OnnxSegmenter(path)
    found, expected = segmenter(photo), uz.Segmenter("demo", recipe=segmenter.recipe)(photo)
    assert isinstance(found, uz.Segmentation) and len(np.unique(expected.labels)) > 10
    assert found.labels.dtype == expected.labels.dtype and (found.labels == expected.labels).mean() >= 0.9999
    assert found.label_set == expected.label_set and np.array_equal(found.image, expected.image)


@pytest.mark.parametrize("changes", [{}, {"scale": None}, {"size_divisor": 48}, {"size_divisor": 400}], ids=str)
def test_windows_are_those_of_the_whole_prepared_picture(changes, demo_onnx, tmp_path, monkeypatch):  # noqa: F811
    segmenter = runtime.OnnxSegmenter(with_recipe(demo_onnx("logits"), tmp_path / "slide.onnx", **SLIDE, **changes))
    pixels = np.array(Image.open(PHOTOS[0]))[:170, :333]
    whole, taken = preprocess.prepare_array(pixels, segmenter.recipe)[0], []

    def run(x):
        taken.append(x)
        return np.zeros((len(segmenter.label_set), *x.shape[1:]), np.float32)

    monkeypatch.setattr(segmenter, "_run", run)
    segmenter(pixels)
    axes = [windows(*sides) for sides in zip(whole.shape[1:], SLIDE["crop"], SLIDE["stride"])]
    expected = [whole[:, rows, columns] for rows in axes[0] for columns in axes[1]][: len(taken)]
    assert len(taken) > 3 and all(np.array_equal(one, other) for one, other in zip(taken, expected, strict=True))


def test_a_session_of_ones_own(demo_onnx):  # noqa: F811
    path = demo_onnx("logits")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    pixels = np.array(Image.open(PHOTOS[0]))[:200, :300]
    assert np.array_equal(runtime.OnnxSegmenter(session)(pixels).labels, runtime.OnnxSegmenter(path)(pixels).labels)


sides = st.integers(1, 70)


@given(source=sides, size=st.integers(1, 300), align_corners=st.booleans(), data=st.data())
def test_a_resize_is_torchs(source, size, align_corners, data):
    x = torch.rand(3, source, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 99))))
    start = data.draw(st.integers(0, size - 1))
    stop = data.draw(st.integers(start + 1, size))
    used, matrix = runtime._taps(source, size, align_corners).band(start, stop)
    expected = torch.nn.functional.interpolate(x[None], size, mode="linear", align_corners=align_corners)[0, :, start:stop]
    np.testing.assert_allclose(x[:, used].numpy() @ matrix.T, expected, rtol=0, atol=2e-6)


@given(
    via=st.tuples(sides, sides),
    size=st.tuples(st.integers(1, 100), st.integers(1, 100)),
    crop=st.integers(4, 40),
    quarters=st.integers(2, 4),
    classes=st.sampled_from((1, 2, 19, 300)),
    align_corners=st.booleans(),
    seed=st.integers(0, 999),
    tile=st.sampled_from((1 << 9, 1 << 18)),
)
@settings(max_examples=30)
def test_windows_and_tiles_equal_those_of_torch(via, size, crop, quarters, classes, align_corners, seed, tile):
    rows, columns = (windows(side, crop, max(1, crop * quarters // 4)) for side in via)
    high, wide = rows[0].stop, columns[0].stop
    logits = torch.randn(classes, len(rows), high, len(columns), wide, generator=torch.Generator().manual_seed(seed)) * 3
    logits[seed % classes, :, : high // 2] += (0, 5, 50)[seed % 3]  # the winner of a region is certain in some pictures
    view = resample.View(logits.flatten(3).flatten(1, 2), via, align_corners, (rows, columns))
    computed = []

    def run(row, column):
        computed.append((row.start, column.start))
        return logits[:, rows.index(row), :, columns.index(column)].numpy()

    kept = runtime._Windows(run, rows, columns)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtime, "_TILE", tile)
        found = runtime._resized_labels(kept.rows, via, size, align_corners, classes)
    assert len(computed) == len(set(computed)) and kept.total.shape[1] <= via[0]
    averaged = resample.probabilities([view], size)
    assert found.shape == size and found.dtype == (np.int16 if classes > 255 else np.uint8)
    chosen = averaged.gather(0, torch.from_numpy(found)[None].long())[0]
    assert (averaged.amax(0) - chosen).max() <= 1e-4  # the winner, or one that is as good


def test_only_rows_of_windows_that_are_needed_are_kept():
    rows, columns = windows(1000, 100, 80), windows(100, 100, 80)
    kept = runtime._Windows(lambda row, column: np.ones((3, 100, 100), np.float32), rows, columns)
    most = 0
    for top in range(0, 1000, 10):
        np.testing.assert_array_equal(kept.rows(top, top + 10), 1)
        most = max(most, kept.total.shape[1])
    assert most <= 120


def test_importing_it_imports_nothing_that_it_does_not_need():
    code = "import sys, upernet_zoo.runtime; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert "upernet_zoo.runtime" in loaded and "numpy" in loaded
    assert not [name for name in OTHERS if name in loaded]


CODE = """
import json, sys
from upernet_zoo.runtime import OnnxSegmenter
for path, photo, out in json.loads(sys.argv[1]):
    segmentation = OnnxSegmenter(path)(photo)
    segmentation.save(out)
    segmentation.overlay().save(out + ".overlay.png")
    print(json.dumps(segmentation.to_dict()))
"""


def test_in_an_environment_without_torch(built, demo_onnx, tmp_path):  # noqa: F811
    """The wheel, the packages of the documented line, and what these require: 250 MB at most, and the labels of `Segmenter`."""
    without, packages = (line.removeprefix("pip install ").split() for line in runtime_lines())
    assert without[0] == "--no-deps" and len(packages) == 3
    folder, size = bare_environment(tmp_path / "venv", next(built.glob("*.whl")), packages)
    print(f"{size / 1e6:.0f} MB")
    assert size <= MOST
    slide = with_recipe(demo_onnx("logits"), tmp_path / "slide.onnx", **SLIDE)
    todo = [(path, photo, tmp_path / f"{path.stem}_{photo.stem}.png") for path in (demo_onnx("logits"), slide) for photo in PHOTOS]
    command = [folder / "bin" / "python", "-c", CODE, json.dumps(todo, default=str)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for (path, photo, out), line in zip(todo, done.stdout.splitlines(), strict=True):
        expected = uz.Segmenter("demo", **(SLIDE if path is slide else {}))(photo)
        assert (np.array(Image.open(out)) == expected.labels).mean() >= 0.9999
        assert [one["name"] for one in json.loads(line)["classes"]][:3] == [name.strip() for name in list(expected.areas())[:3]]
    for name in OTHERS:
        assert subprocess.run([folder / "bin" / "python", "-c", f"import {name}"], capture_output=True).returncode != 0
    assert (
        str(folder)
        in subprocess.run(
            [folder / "bin" / "python", "-c", "import upernet_zoo; print(upernet_zoo.__file__)"],
            capture_output=True,
            text=True,
            cwd=tmp_path,
        ).stdout
    )


def test_the_lines_are_documented():
    text = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
    assert "\n".join(runtime_lines()) in text


def test_what_it_cannot_run_is_refused(demo_onnx, tmp_path, monkeypatch):  # noqa: F811
    logits, labels = demo_onnx("logits"), demo_onnx("labels")
    with pytest.raises(MissingFileError, match="No ONNX file at .*none.onnx"):
        runtime.OnnxSegmenter(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(CheckpointError, match="text.onnx: ONNX Runtime cannot load it"):
        runtime.OnnxSegmenter(tmp_path / "text.onnx")
    with pytest.raises(CheckpointError, match="a.onnx: was not exported by upernet_zoo"):
        runtime.OnnxSegmenter(rewritten(logits, tmp_path / "a.onnx", library=None))
    for value in ("[1]", "{", None, "[" * 100_000):
        with pytest.raises(CheckpointError, match="a.onnx: its metadata has no 'recipe' that can be read"):
            runtime.OnnxSegmenter(rewritten(logits, tmp_path / "a.onnx", recipe=value))
    with pytest.raises(ConfigError, match="a.onnx: labels: "):
        runtime.OnnxSegmenter(rewritten(logits, tmp_path / "a.onnx", labels='{"name": 3}'))
    with pytest.raises(ConfigError, match=r"a.onnx: .*does what this library does not.*it dreams. Export the model with a recipe"):
        runtime.OnnxSegmenter(with_recipe(logits, tmp_path / "a.onnx", unsupported=["it dreams"]))
    for value in ("{}", '{"align_corners": null}', '{"align_corners": 0}'):
        with pytest.raises(CheckpointError, match="a.onnx: the architecture .* does not say whether 'align_corners' is true or false"):
            runtime.OnnxSegmenter(rewritten(logits, tmp_path / "a.onnx", architecture=value))
    with pytest.raises(ArgumentError, match="takes pictures of 1 channels"):
        runtime.OnnxSegmenter(with_recipe(logits, tmp_path / "a.onnx", mean=[1.0], std=[1.0]))
    with pytest.raises(ArgumentError, match="a.onnx: was exported with labels, and its model averages the logits of windows"):
        runtime.OnnxSegmenter(with_recipe(labels, tmp_path / "a.onnx", **SLIDE))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingPackageError, match="needs the package onnxruntime: pip install numpy pillow onnxruntime"):
        runtime.OnnxSegmenter(logits)


@pytest.mark.parametrize("model", [None, 3, b"x.onnx", ["x.onnx"]], ids=str)
def test_what_is_no_path_is_refused(model):
    with pytest.raises(ArgumentError, match="takes the path of an ONNX file, or an InferenceSession of one, found .*Write one with"):
        runtime.OnnxSegmenter(model)


def test_a_path_that_names_no_file_is_refused(tmp_path):
    with pytest.raises(ArgumentError, match="the path of the ONNX file is empty. Write one with"):
        runtime.OnnxSegmenter("")
    with pytest.raises(MissingFileError, match="is a folder"):
        runtime.OnnxSegmenter(tmp_path)


def test_a_graph_with_a_second_output_is_refused(demo_onnx, tmp_path):  # noqa: F811
    model = onnx.load(demo_onnx("logits"))
    model.graph.node.append(onnx.helper.make_node("Identity", ["logits"], ["second"]))
    model.graph.output.append(onnx.helper.make_tensor_value_info("second", onnx.TensorProto.FLOAT, None))
    onnx.save(model, str(tmp_path / "two.onnx"))
    with pytest.raises(CheckpointError, match="two.onnx: .* inputs: 1, outputs: 2, .*Export the model again"):
        runtime.OnnxSegmenter(tmp_path / "two.onnx")


def test_several_pictures_are_refused(demo_onnx):  # noqa: F811
    segmenter = runtime.OnnxSegmenter(demo_onnx("logits"))
    pictures = np.zeros((2, 40, 50, 3), np.uint8)
    for several in (pictures, torch.from_numpy(pictures), list(pictures), iter(pictures)):
        with pytest.raises(ImageError, match="Pass one at a time|a call for each"):
            segmenter(several)


def fixed(path, out, height, width):
    """The file with a size that is no longer free."""
    model = onnx.load(path)
    for dimension, side in zip(model.graph.input[0].type.tensor_type.shape.dim[2:], (height, width)):
        dimension.dim_value = side
    onnx.save(model, str(out))
    return out


def test_what_cannot_be_computed_is_said(demo_onnx, tmp_path):  # noqa: F811
    segmenter = runtime.OnnxSegmenter(fixed(demo_onnx("logits"), tmp_path / "fixed.onnx", 256, 512))
    assert segmenter(np.zeros((64, 128, 3), np.uint8)).labels.shape == (64, 128)  # made to fit 512x256
    with pytest.raises(ImageError, match="fixed.onnx: takes 512x256 pixels .* alone, and the picture has 256x256, prepared as"):
        segmenter(np.zeros((64, 64, 3), np.uint8))

    class Failing:
        def __init__(self, error):
            self.error = error

        def __getattr__(self, name):
            return getattr(segmenter.session, name)

        def run(self, *_):
            raise self.error

    picture = np.zeros((64, 128, 3), np.uint8)
    with pytest.raises(NotEnoughMemoryError, match="memory of this process ran out for 512x256 pixels"):
        runtime.OnnxSegmenter(Failing(Exception("Failed to allocate memory for requested buffer of size 7")))(picture)
    with pytest.raises(ImageError, match="ONNX Runtime could not run 512x256 pixels.*no such thing"):
        runtime.OnnxSegmenter(Failing(Exception("no such thing")))(picture)
    for source in (tmp_path / "none.png", PHOTOS[0].read_bytes()):
        with pytest.raises((MissingFileError, ImageError)):
            segmenter(source)
