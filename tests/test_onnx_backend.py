"""`Segmenter(backend="onnxruntime")`: its labels are those of torch, and its graph is exported once."""

import dataclasses
import os
import shutil

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from support.fixture import FIXTURES, shared_folder
from support.models import small_config
from support.toy_backbone import ToyConfig

import upernet_zoo as uz
from upernet_zoo import onnx_backend, raster, runtime
from upernet_zoo.cli import main
from upernet_zoo.errors import ArgumentError, CheckpointError, ImageError, MissingPackageError
from upernet_zoo.weights import cache

PHOTO = FIXTURES / "photos" / "coffee.png"
SLIDE = {"mode": "slide", "crop": (160, 192), "stride": (107, 128)}


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A cache with the graph of the demo model, exported once for all processes of a test run."""
    folder = shared_folder(tmp_path_factory) / "onnx_backend"
    onnx_backend.OnnxNetwork(uz.create_model("demo"), folder)
    return folder


@pytest.fixture
def exports(monkeypatch):
    """The paths of the files that are written while it is there; what is written takes no time, and is no graph of the model."""
    found = []

    def write(model, path, details):
        found.append(path)
        node = onnx.helper.make_node("Identity", ["pictures"], ["stride_logits"])
        values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in ("pictures", "stride_logits")]
        graph = onnx.helper.make_graph([node], "UPerNet", values[:1], values[1:])
        made = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
        onnx.helper.set_model_props(made, details)
        onnx.save(made, str(path))
        return uz.files.hash_file(path)

    monkeypatch.setattr(onnx_backend.export, "write_network", write)
    return found


@pytest.mark.parametrize("options", [{}, SLIDE, {"scales": (0.5, 1.0), "flip": True, "batch_size": 2}], ids=("whole", "slide", "views"))
def test_labels_are_those_of_torch(options, shared, exports):
    segmenter = uz.Segmenter("demo", backend="onnxruntime", cache_dir=shared, **options)
    expected = uz.Segmenter("demo", **options)(PHOTO).labels
    assert not exports
    assert (segmenter(PHOTO).labels == expected).mean() >= 0.9999 and len(np.unique(expected)) > 10


def test_logits_are_those_of_the_model(shared):
    model = uz.create_model("demo").eval()
    network = onnx_backend.OnnxNetwork(model, shared)
    for shape in ((1, 3, 64, 96), (2, 3, 97, 131), (2, 3, 1, 300), (1, 3, 300, 7), (3, 3, 20, 20), (1, 3, 1, 1)):
        x = torch.randn(shape)
        with torch.inference_mode():
            expected = model.logits(x)
        assert (network.logits(x) - expected).abs().max() <= 5e-5 * expected.abs().max()


@pytest.mark.parametrize("size", [(500, 1), (1, 500), (7, 2000), (2000, 7), (20, 20), (1, 1)], ids=str)
def test_thin_and_small_pictures_have_the_labels_of_torch(size, shared, exports):
    with Image.open(PHOTO) as photo:
        picture = photo.convert("RGB").resize(size)
    expected = uz.Segmenter("demo")(picture).labels
    found = uz.Segmenter("demo", backend="onnxruntime", cache_dir=shared)(picture).labels
    assert found.shape == size[::-1] and (found == expected).mean() >= 0.9999


def test_what_onnxruntime_cannot_run_is_said(exports, own_cache, monkeypatch):
    network = onnx_backend.OnnxNetwork(uz.create_model("demo"))

    def run(*_):
        raise RuntimeError("no such thing")

    monkeypatch.setattr(network, "session", type("Failing", (), {"run": run}))
    said = "could not run 2 x 40x32 pixels, .* too thin for ResNet.*. Take a larger .* or backend='torch'. It says: no such thing"
    with pytest.raises(ImageError, match=said):
        network.logits(torch.zeros(2, 3, 32, 40))
    with pytest.raises(ImageError, match="could not run 2 x 400x320 pixels. Take backend='torch'. It says: no such thing"):
        network.logits(torch.zeros(2, 3, 320, 400))


def test_a_graph_is_made_once_for_a_set_of_weights(exports, own_cache):
    model = uz.create_model("demo")
    for _ in range(2):
        uz.Segmenter(model, backend="onnxruntime")
    uz.Segmenter("demo", backend="onnxruntime")
    (path,) = (own_cache / "converted").glob("*.onnx")
    assert exports == [path]
    with torch.no_grad():
        model.decode_head.classifier.bias += 1
    uz.Segmenter(model, backend="onnxruntime")
    assert len(exports) == 2 and exports[1] != path


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A copy of the package's sources that the backend takes for its own."""
    folder = tmp_path / "upernet_zoo"
    shutil.copytree(onnx_backend._PACKAGE, folder, ignore=lambda _, names: [name for name in names if name == "__pycache__"])
    monkeypatch.setattr(onnx_backend, "_PACKAGE", folder)
    return folder


def test_a_graph_of_other_sources_is_made_anew(package, exports, own_cache):
    model = uz.create_model("demo")
    onnx_backend.OnnxNetwork(model)
    with (package / "interop" / "portable" / "lowering.py").open("a") as file:
        file.write("# another\n")
    for _ in range(2):
        onnx_backend.OnnxNetwork(model)
    assert len(exports) == 2 and exports[0] != exports[1]


def test_a_model_of_somebody_elses_code_is_exported_each_time(exports, own_cache):
    model = uz.UPerNet(dataclasses.replace(small_config(), backbone=ToyConfig())).eval()
    for _ in range(2):  # its forward may be another by then, which no digest of tensors would tell
        onnx_backend.OnnxNetwork(model)
    assert len(exports) == 2 and not list(own_cache.rglob("*.onnx"))


def test_each_source_of_a_graph_is_in_its_key(package):
    sources = [package / "interop" / "export.py"]
    sources += [path for folder in ("interop/portable", "models") for path in (package / folder).rglob("*.py")]
    seen = [onnx_backend._sources()]
    for path in [*sources, package / "models" / "backbones" / "new.py"]:
        with path.open("a") as file:
            file.write("# another\n")
        seen.append(onnx_backend._sources())
        assert seen[-1] != seen[-2], path
    assert len(seen) > 20


@pytest.mark.parametrize("change", ["bytes", "another model's", "no receipt"])
def test_a_graph_that_was_changed_is_made_anew(change, exports, own_cache):
    model = uz.create_model("demo")
    onnx_backend.OnnxNetwork(model)
    (path,) = (own_cache / "converted").glob("*.onnx")
    if change == "bytes":
        path.write_bytes(path.read_bytes() + b"\0")
    elif change == "no receipt":
        cache.receipt_path(path).unlink()
    else:
        onnx_backend.export.write_network(model, path, {"key": "of another"})
        cache.write_receipt(path, uz.files.hash_file(path), "")
    exports.clear()
    onnx_backend.OnnxNetwork(model)
    assert exports == [path]
    onnx_backend.OnnxNetwork(model)
    assert exports == [path]


def test_the_cache_lists_verifies_and_prunes_it(exports, own_cache):
    onnx_backend.OnnxNetwork(uz.create_model("demo"))
    (held,) = (one for one in cache.held() if one.kind is cache.Kind.EXPORTED)
    assert [one.state for one in cache.verify(deep=True) if one.path == held.path] == [cache.State.VERIFIED]
    assert [one.path for one in cache.prune()] == [held.path]
    assert not list((own_cache / "converted").glob("nameless*"))


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="of POSIX")
def test_without_a_cache_it_is_made_each_time(exports, tmp_path):
    (tmp_path / "file").touch()
    for _ in range(2):
        onnx_backend.OnnxNetwork(uz.create_model("demo"), tmp_path / "file")
    assert len(exports) == 2 and not any(path.exists() for path in exports)


REFUSED = {
    "amp=True": {"amp": True},
    "optimize=True": {"optimize": True},
    "device='cuda'": {"device": "cuda"},
    "dtype='bfloat16'": {"dtype": torch.bfloat16},
}


@pytest.mark.parametrize("named", REFUSED)
def test_what_it_does_not_do_is_refused_by_name(named, monkeypatch):
    monkeypatch.setattr(uz.segmenter, "check_device", lambda *_: None)  # which may refuse a GPU that is not there
    with pytest.raises(ArgumentError, match=f"backend='onnxruntime'.*goes without {named}"):
        uz.Segmenter("demo", backend="onnxruntime", **REFUSED[named])


def test_other_models_backends_and_a_missing_package_are_refused(monkeypatch):
    with pytest.raises(ArgumentError, match="the backends are torch, onnxruntime"):
        uz.Segmenter("demo", backend="tvm")
    model = uz.create_model("demo")
    with pytest.raises(ArgumentError, match="takes a plain UPerNet, and this one is fused"):
        uz.Segmenter(uz.optimize_for_inference(model), backend="onnxruntime")
    with pytest.raises(ArgumentError, match="float32"):
        uz.Segmenter(model.bfloat16(), backend="onnxruntime")
    monkeypatch.setitem(onnx_backend.importlib.sys.modules, "onnxruntime", None)
    with pytest.raises(MissingPackageError, match=r"needs the package onnxruntime: pip install .*\[onnx\]"):
        uz.Segmenter("demo", backend="onnxruntime")


def test_predict_takes_it(shared, exports, tmp_path, capsys):
    args = ["predict", "demo", str(PHOTO), "--cache-dir", str(shared), "--backend", "onnxruntime"]
    assert main.main([*args, "--out", str(tmp_path)]) == 0 and not exports
    expected = uz.Segmenter("demo")(PHOTO).labels
    assert (np.array(Image.open(tmp_path / "coffee_labels.png")) == expected).mean() >= 0.9999
    assert main.main([*args, "--out", str(tmp_path / "amp"), "--amp"]) == 1
    assert "--backend onnxruntime runs on the CPU in float32, by a graph of its own, and goes without --amp" in capsys.readouterr().err


def test_its_graph_is_not_taken_for_an_export(shared):
    (path,) = (shared / "converted").glob("*.onnx")
    with pytest.raises(CheckpointError, match="of Segmenter's own in its cache"):
        runtime.OnnxSegmenter(path)


def test_the_tiles_of_a_raster_run_in_it_too(shared, exports):
    segmenter = uz.Segmenter("demo", backend="onnxruntime", cache_dir=shared)
    assert raster._tiled(segmenter, 160, None).backend == "onnxruntime" and not exports
