"""ONNX and torch.export: the files compute what the model computes, at sizes that they were not traced at."""

import dataclasses
import json
import sys

import numpy as np
import onnxruntime
import pytest
import torch
from lively import lively
from PIL import Image

import upernet_zoo as uz
from upernet_zoo import cli, export, hub, preprocess
from upernet_zoo.errors import ArgumentError, IntegrityError

TINY = uz.UPerNetConfig(depth=18, num_classes=5, base_channels=4, stem_channels=4, channels=8, aux_channels=4, align_corners=True)
LABELS = uz.labels.LabelSet("mine", list("abcde"), [(i, 2 * i, 3 * i) for i in range(5)])
SHAPES = ((1, 64, 96), (3, 97, 131), (1, 512, 512), (3, 33, 33))


@pytest.fixture(scope="module")
def model():
    return lively(TINY, uz.Recipe(scale=(160, 96), mean=(120.1, 110.2, 100.3), std=(50.4, 60.5, 70.6)), LABELS)


@pytest.fixture(scope="module")
def onnx_logits(model, tmp_path_factory):
    return export.to_onnx(model, tmp_path_factory.mktemp("onnx") / "logits.onnx")


@pytest.fixture(scope="module")
def onnx_labels(model, tmp_path_factory):
    """Written by the command, from a folder."""
    folder = tmp_path_factory.mktemp("onnx")
    model.save_pretrained(folder / "model")
    assert cli.main(["export", f"local-dir:{folder / 'model'}", "--out", str(folder / "labels.onnx"), "--labels"]) == 0
    return folder / "labels.onnx"


def run(path, pictures):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"pictures": pictures})[0]


@pytest.mark.parametrize("shape", SHAPES)
def test_onnx_runtime_gives_the_models_logits(model, onnx_logits, shape):
    x = torch.randn(shape[0], 3, *shape[1:], generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(x)
    found = torch.from_numpy(run(onnx_logits, x.numpy()))
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("size", ((150, 100), (100, 150), (451, 300), (33, 40)))
def test_labels_in_onnx_equal_the_segmenters(model, onnx_labels, size, request):
    with Image.open(request.path.parent / "fixtures" / "photos" / "chelsea.png") as photo:
        pictures = np.stack([np.array(photo.convert("RGB").resize(size)), np.array(photo.convert("RGB").rotate(180).resize(size))])
    found = run(onnx_labels, pictures)
    assert found.dtype == np.uint8 and found.shape == (2, size[1], size[0])
    expected = np.stack([uz.Segmenter(model)(picture).labels for picture in pictures])
    assert len(np.unique(expected)) > 1
    assert (found == expected).mean() >= 0.999


def test_one_file_says_what_it_is(model, onnx_logits, onnx_labels):
    for path, shape in ((onnx_logits, ["batch", 3, "height", "width"]), (onnx_labels, ["batch", "height", "width", 3])):
        assert [p.name for p in path.parent.iterdir() if p.is_file()] == [path.name]  # no weights beside it
        session = onnxruntime.InferenceSession(path)
        assert session.get_inputs()[0].shape == shape
        found = session.get_modelmeta().custom_metadata_map
        assert json.loads(found["classes"]) == list("abcde") and json.loads(found["palette"])[4] == [4, 8, 12]
        assert uz.Recipe.from_dict(json.loads(found["recipe"])) == model.recipe
        assert uz.UPerNetConfig.from_dict(json.loads(found["architecture"])) == model.config
        assert found["tensors_sha256"] == hub.fingerprint(model.state_dict()) and len(found["tensors_sha256"]) == 64


def test_a_program_of_torch_export_gives_the_models_logits(tmp_path, capsys):
    model = lively(dataclasses.replace(TINY, align_corners=False), label_set=LABELS)
    model.save_pretrained(tmp_path / "model")
    path = tmp_path / "logits.pt2"
    assert cli.main(["export", f"local-dir:{tmp_path / 'model'}", "--format", "torch", "--out", str(path)]) == 0
    assert "equals the model at 1x64x96, 3x97x131, 2x160x128" in capsys.readouterr().out
    extra = {export.METADATA_FILE: ""}
    program = torch.export.load(path, extra_files=extra).module()
    assert json.loads(json.loads(extra[export.METADATA_FILE])["classes"]) == list("abcde")
    for batch, height, width in SHAPES:
        x = torch.randn(batch, 3, height, width)
        with torch.no_grad():
            torch.testing.assert_close(program(x), model(x), rtol=1e-4, atol=1e-4)


def test_the_graphs_resize_is_the_published_one(model):
    """Run as plain torch: the same values as `preprocess`, whose own tests compare it with OpenCV."""
    rng = np.random.default_rng(0)
    graph = export.Labels(model)
    for _ in range(30):
        picture = rng.integers(0, 256, (*rng.integers(40, 200, 2), 3), np.uint8)
        size = preprocess.fit(picture.shape[:2], model.recipe.scale)
        assert export._fit(*picture.shape[:2], model.recipe.scale) == list(size)
        assert np.array_equal(
            export._resize_uint8(torch.from_numpy(picture)[None], *size)[0].numpy(), preprocess.resize_uint8(picture, size)
        )
    with torch.no_grad():
        assert (graph(torch.from_numpy(picture)[None])[0].numpy() == uz.Segmenter(model)(picture).labels).mean() >= 0.999


def test_a_file_that_computes_something_else_never_appears(model, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "_program", lambda graph: torch.export.export(torch.nn.ReLU(), (torch.zeros(1, 5, 64, 96),)))
    monkeypatch.setattr(export.Logits, "example", lambda self, batch, height, width: torch.randn(1, 3, 64, 96))
    monkeypatch.setattr(torch.export, "load", lambda file: type("", (), {"module": lambda self: lambda x: torch.zeros(1, 5, 64, 96)})())
    (tmp_path / "a.pt2").write_bytes(b"mine")
    with pytest.raises(IntegrityError, match="a.pt2: not written: at 64x96, batch 1, the exported graph differs from the model by 1.0e"):
        export.to_torch(model, tmp_path / "a.pt2")
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["a.pt2"] and (tmp_path / "a.pt2").read_bytes() == b"mine"


def test_what_cannot_be_exported_is_refused(model, tmp_path, monkeypatch):
    with pytest.raises(ArgumentError, match="Export takes a UPerNet, found Linear"):
        export.to_torch(torch.nn.Linear(1, 1), tmp_path / "a.pt2")
    with pytest.raises(ArgumentError, match="float32 on the CPU, found torch.bfloat16"):
        export.to_onnx(lively(TINY).bfloat16(), tmp_path / "a.onnx")
    slide = lively(TINY, uz.Recipe(scale=(160, 96), mode="slide", crop=(64, 64), stride=(64, 64)))
    with pytest.raises(ArgumentError, match="this model's recipe has sliding windows"):
        export.to_onnx(slide, tmp_path / "a.onnx", labels=True)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ArgumentError, match=r"needs the package onnxscript: pip install 'upernet-zoo\[onnx\]'"):
        export.to_onnx(model, tmp_path / "a.onnx")
    assert not list(tmp_path.glob("a.*"))
