"""ONNX and torch.export: the files compute what the model computes, at sizes that they were not traced at."""

import json
import sys
from importlib import metadata

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from support.fixture import FIXTURES
from support.lively import lively
from support.models import changed, small_config

import upernet_zoo as uz
from upernet_zoo import written
from upernet_zoo.cli import main, portable
from upernet_zoo.errors import ArgumentError, ExistingFileError, IntegrityError, MissingPackageError
from upernet_zoo.hub import folder
from upernet_zoo.images import preprocess
from upernet_zoo.interop import export
from upernet_zoo.interop.portable import graphs
from upernet_zoo.written import PROGRAM_FILE

TINY = small_config(align_corners=True)
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
    assert main.main(["export", f"local-dir:{folder / 'model'}", "--out", str(folder / "labels.onnx"), "--labels"]) == 0
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
    with Image.open(FIXTURES / "photos" / "chelsea.png") as photo:
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
        assert found["tensors_sha256"] == folder.fingerprint(model.state_dict()) and len(found["tensors_sha256"]) == 64


def test_a_program_of_torch_export_gives_the_models_logits(tmp_path, capsys):
    model = lively(changed(TINY, align_corners=False), label_set=LABELS)
    model.save_pretrained(tmp_path / "model")
    path = tmp_path / "logits.pt2"
    assert main.main(["export", f"local-dir:{tmp_path / 'model'}", "--format", "torch", "--out", str(path)]) == 0
    assert "equals the model at 1x64x96, 3x97x131, 2x160x128" in capsys.readouterr().out
    extra = {PROGRAM_FILE: ""}
    program = torch.export.load(path, extra_files=extra).module()
    assert json.loads(json.loads(extra[PROGRAM_FILE])["classes"]) == list("abcde")
    for batch, height, width in SHAPES:
        x = torch.randn(batch, 3, height, width)
        with torch.no_grad():
            torch.testing.assert_close(program(x), model(x), rtol=1e-4, atol=1e-4)


def test_the_graphs_resize_is_the_published_one(model):
    """Run as plain torch: the same values as `preprocess`, whose own tests compare it with OpenCV."""
    rng = np.random.default_rng(0)
    graph = graphs.Labels(model)
    for _ in range(30):
        picture = rng.integers(0, 256, (*rng.integers(40, 200, 2), 3), np.uint8)
        size = preprocess.fit(picture.shape[:2], model.recipe.scale)
        assert graphs._fit(*picture.shape[:2], model.recipe.scale, 33) == list(size)
        assert np.array_equal(
            graphs._resize_uint8(torch.from_numpy(picture)[None], *size)[0].numpy(), preprocess.resize_uint8(picture, size)
        )
    with torch.no_grad():
        assert (graph(torch.from_numpy(picture)[None])[0].numpy() == uz.Segmenter(model)(picture).labels).mean() >= 0.999


def test_a_file_that_computes_something_else_never_appears(model, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "program", lambda graph, size: torch.export.export(torch.nn.ReLU(), (torch.zeros(1, 5, 64, 96),)))
    monkeypatch.setattr(graphs.Logits, "example", lambda self, batch, height, width: torch.randn(1, 3, 64, 96))
    monkeypatch.setattr(torch.export, "load", lambda file: type("", (), {"module": lambda self: lambda x: torch.zeros(1, 5, 64, 96)})())
    (tmp_path / "a.pt2").write_bytes(b"mine")
    with pytest.raises(ExistingFileError, match="a.pt2 is there already"):
        export.to_torch(model, tmp_path / "a.pt2")
    with pytest.raises(IntegrityError, match="a.pt2: not written: at 64x96, batch 1, the exported graph differs from the model by 1.0e"):
        export.to_torch(model, tmp_path / "a.pt2", overwrite=True)
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["a.pt2"] and (tmp_path / "a.pt2").read_bytes() == b"mine"


def test_what_cannot_be_exported_is_refused(model, tmp_path, monkeypatch):
    with pytest.raises(ArgumentError, match="Export takes a UPerNet, found Linear"):
        export.to_torch(torch.nn.Linear(1, 1), tmp_path / "a.pt2")
    with pytest.raises(ArgumentError, match="float32 on the CPU, found torch.bfloat16"):
        export.to_onnx(lively(TINY).bfloat16(), tmp_path / "a.onnx")
    slide = lively(TINY, uz.Recipe(scale=(160, 96), mode="slide", crop=(64, 64), stride=(64, 64)))
    with pytest.raises(ArgumentError, match="with labels a model that runs in windows takes 64x64 alone, found 96x96"):
        export.to_onnx(slide, tmp_path / "a.onnx", labels=True, size=(96, 96))
    with pytest.raises(ArgumentError, match="from 33 to 16384 pixels each, found \\(32, 64\\)"):
        export.to_torch(model, tmp_path / "a.pt2", size=(32, 64))
    with pytest.raises(ArgumentError, match="form='fused' in a program of torch.export takes pictures of one size alone: add size="):
        export.to_torch(model, tmp_path / "a.pt2", form="fused")
    with pytest.raises(ArgumentError, match="form='quick': the forms are fused, direct, plain"):
        export.to_onnx(model, tmp_path / "a.onnx", form="quick")
    with pytest.raises(ArgumentError, match="check='tensorrt': a file is also checked in openvino"):
        export.to_onnx(model, tmp_path / "a.onnx", check=["tensorrt"])
    with pytest.raises(ArgumentError, match="check='openvino' is for ONNX files"):
        export.export(model, tmp_path / "a.pt2", check=["openvino"])
    with pytest.raises(ArgumentError, match="half=True: float16 goes with form='direct', found form='fused'"):
        export.export(model, tmp_path / "a.onnx", half=True, form="fused")
    with monkeypatch.context() as patched:
        patched.setattr(export, "_LARGEST", 1000)
        for form, smaller in (("fused", "form='direct'"), ("direct", "half=True")):
            wanted = rf"a.onnx: the weights take \d+ kB in the form '{form}', and .* 1 kB at most\. Use {smaller}, or write \.pt2"
            with pytest.raises(ArgumentError, match=wanted):
                export.to_onnx(model, tmp_path / "a.onnx", form=form)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(MissingPackageError, match=r"needs the package onnxscript: pip install 'upernet-zoo\[onnx\] @ git\+https:"):
        export.to_onnx(model, tmp_path / "a.onnx")
    assert not list(tmp_path.glob("a.*"))


@pytest.mark.parametrize(
    "name, options, message",
    (
        ("a.onnx", {"size": 512}, r"size= is \(height, width\), from 1 to 16384 pixels each, found 512"),
        ("a.pt2", {"size": (512,)}, r"size= is \(height, width\), .* found \(512,\)"),
        ("a.onnx", {"size": "64x64"}, r"size= is \(height, width\), .* found '64x64'"),
        ("a.onnx", {"check": None}, r"check= takes a list of runtimes, such as \['openvino'\], found None"),
        ("a.pt2", {"check": None}, "check= takes a list of runtimes"),
        ("a.onnx", {"check": "openvino"}, r"check= takes a list of runtimes, such as \['openvino'\], found 'openvino'"),
        ("a.onnx", {"check": [None]}, r"check= takes a list of runtimes, .* found \[None\]"),
    ),
)
def test_arguments_of_another_type_are_refused_with_what_is_taken(model, tmp_path, name, options, message):
    with pytest.raises(ArgumentError, match=message):
        export.export(model, tmp_path / name, **options)
    slide = lively(TINY, uz.Recipe(scale=(160, 96), mode="slide", crop=(64, 64), stride=(64, 64)))  # which takes one size alone
    with pytest.raises(ArgumentError, match=message):
        export.export(slide, tmp_path / name, labels=True, **options)


RESNET, ONE_SIZE = "upernet_r50_512x512_160k_ade20k", "upernet_beit-base_8x2_640x640_160k_ade20k"
EARLY = {
    "half in a program": ([RESNET, "--out", "a.pt2", "--half"], "--half is for ONNX files"),
    "check in a program": ([RESNET, "--out", "a.pt2", "--check", "openvino"], "--check openvino is for ONNX files"),
    "fused program of any size": ([RESNET, "--out", "a.pt2", "--form", "fused"], "takes pictures of one size alone: add --size"),
    "half, plain": ([RESNET, "--out", "a.onnx", "--half", "--form", "plain"], "float16 goes with --form direct, found --form plain"),
    "half, fused": ([RESNET, "--out", "a.onnx", "--half", "--form", "fused"], "float16 goes with --form direct, found --form fused"),
    "no size": ([RESNET, "--out", "a.onnx", "--size", "0x0"], "--size is (height, width), from 1 to 16384 pixels each, found (0, 0)"),
    "small size": ([RESNET, "--out", "a.onnx", "--size", "20x20"], "--size is (height, width), from 33 to 16384 pixels each"),
    "another size": ([ONE_SIZE, "--out", "a.onnx", "--size", "64x64"], "takes 640x640 alone, found 64x64"),
    "a folder": ([RESNET, "--out", "folder.onnx"], "folder.onnx is a folder. Give the name of a file in it."),
    "a folder to replace": ([RESNET, "--out", "folder.onnx", "--overwrite"], "folder.onnx is a folder. Give the name of a file in it."),
}


@pytest.fixture
def unloaded(tmp_path, monkeypatch):
    """A folder to work in, where no model can be loaded."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(portable, "load_model", lambda args: pytest.fail("the model is loaded"))
    (tmp_path / "folder.onnx").mkdir()


@pytest.mark.parametrize("arguments, message", EARLY.values(), ids=EARLY)
def test_the_command_refuses_before_the_model_is_loaded(unloaded, capsys, arguments, message):
    assert main.main(["export", *arguments]) == 1
    told = capsys.readouterr().err
    assert message in told and "exporting" not in told


@pytest.mark.parametrize("package", ("onnx", "onnxruntime", "onnxscript", "openvino"))
def test_the_command_refuses_without_a_package_before_the_model_is_loaded(unloaded, monkeypatch, capsys, package):
    def version(name):
        raise metadata.PackageNotFoundError

    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(metadata, "version", version)
    check = ["--check", "openvino"] if package == "openvino" else []
    assert main.main(["export", RESNET, "--out", "a.onnx", *check]) == 1
    told = capsys.readouterr().err
    assert f"needs the package {package}: pip install" in told and "exporting" not in told


def test_what_a_model_of_one_size_takes_reaches_it(tmp_path, monkeypatch):
    def load(args):
        raise InterruptedError

    monkeypatch.setattr(portable, "load_model", load)
    with pytest.raises(InterruptedError):
        main.main(["export", ONE_SIZE, "--out", str(tmp_path / "a.pt2"), "--form", "fused"])


@pytest.mark.parametrize("name", ("a.onnx", "a.pt2"))
@pytest.mark.parametrize("fails", (True, False), ids=("fails", "succeeds"))
def test_a_model_keeps_its_modes(tmp_path, monkeypatch, name, fails):
    model = lively(TINY, label_set=LABELS).train()
    model.backbone.eval()
    modes = [module.training for module in model.modules()]
    assert set(modes) == {False, True}

    def check(reference, *_):
        assert not any(module.training for module in reference.modules())
        if fails:
            raise IntegrityError("not equal")

    monkeypatch.setattr(export, "program", lambda graph, size: torch.export.export(torch.nn.ReLU(), (torch.zeros(1, 3, 64, 96),)))
    monkeypatch.setattr(export, "_check", check)
    if fails:
        with pytest.raises(IntegrityError, match="not equal"):
            export.export(model, tmp_path / name)
    else:
        export.export(model, tmp_path / name)
    assert [module.training for module in model.modules()] == modes


def test_the_ending_says_the_format(model, tmp_path, monkeypatch, capsys):
    formats = []
    monkeypatch.setattr(export, "to_onnx", lambda model, path, **_: formats.append("onnx"))
    monkeypatch.setattr(export, "to_torch", lambda model, path, **_: formats.append("torch"))
    for name in ("a.onnx", "a.PT2"):
        export.export(model, tmp_path / name)
    assert formats == ["onnx", "torch"]
    for name in ("a.pt", "a", "a.onnx.gz", "a.torchscript"):
        with pytest.raises(ArgumentError, match=r"the endings are \.onnx \(onnx\), \.pt2 \(torch\)"):
            export.export(model, tmp_path / name)
        assert main.main(["export", "no_such_model", "--out", name]) == 1  # before the model is looked for
        assert "the endings are .onnx" in capsys.readouterr().err
    assert main.main(["export", "no_such_model", "--out", "a.onnx", "--format", "torch"]) == 1
    assert "its ending says onnx, and --format torch another" in capsys.readouterr().err


def test_only_what_was_exported_here_is_replaced(onnx_logits, model, tmp_path, capsys):
    assert written.is_own(onnx_logits)
    (tmp_path / "a.onnx").write_bytes(b"another model")
    assert main.main(["export", "no_such_model", "--out", str(tmp_path / "a.onnx")]) == 1
    assert "a.onnx is there already" in capsys.readouterr().err
    program = torch.export.export(torch.nn.ReLU(), (torch.zeros(1),))
    torch.export.save(program, tmp_path / "theirs.pt2")
    torch.export.save(program, tmp_path / "ours.pt2", extra_files={written.PROGRAM_FILE: "{}"})
    assert written.is_own(tmp_path / "ours.pt2") and not written.is_own(tmp_path / "theirs.pt2")


@pytest.mark.parametrize("producer, domain, own", (("pytorch", "", False), ("pytorch", "upernet_zoo", False), ("upernet_zoo", "", True)))
def test_an_onnx_file_is_ours_by_its_producer_alone(tmp_path, producer, domain, own):
    """torch.onnx.export writes our classes' names into the nodes of a graph that a user makes of one of our models."""
    node = onnx.helper.make_node("Relu", ["x"], ["y"], name="upernet_zoo.models.upernet.UPerNet/relu", doc_string="upernet_zoo")
    node.metadata_props.add(key="library", value="upernet_zoo")
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    graph = onnx.helper.make_graph([node], "upernet_zoo", values[:1], values[1:])
    proto = onnx.helper.make_model(graph, producer_name=producer, producer_version="1", domain=domain, model_version=1 << 40)
    onnx.save(proto, tmp_path / "a.onnx")
    assert written.is_own(tmp_path / "a.onnx") == own


@pytest.mark.parametrize(
    "data", (b"", bytes(1 << 17), b"\xff" * 99, b"\x12\x0bupernet", b"\x08", b"\x0b\x12\x0bupernet_zoo", b"upernet_zoo" * 99)
)
def test_what_is_no_onnx_file_is_not_ours(tmp_path, data):
    (tmp_path / "a.onnx").write_bytes(data)
    assert not written.is_own(tmp_path / "a.onnx")


@pytest.mark.parametrize("to", ["native", "mmseg", "transformers"])
def test_convert_replaces_its_own_and_nothing_else(model, tmp_path, to, capsys):
    model.save_pretrained(tmp_path / "model")
    model.save_pretrained(tmp_path / "model")  # its own
    names = ["out.pth", "out.py"] if to == "mmseg" else ["out/config.json", "out/model.safetensors"]
    out = tmp_path / names[0] if to == "mmseg" else tmp_path / "out"
    command = ["convert", f"local-dir:{tmp_path / 'model'}", "--to", to, "--out", str(out)]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"transformers_version": "5"}')
        assert main.main(["convert", "no_such_model", *command[2:]]) == 1  # before the model is looked for
        assert f"{name} is there already" in capsys.readouterr().err
        assert (tmp_path / name).read_text() == '{"transformers_version": "5"}'
        (tmp_path / name).unlink()
    if to == "transformers":
        return
    for name in names:
        (tmp_path / name).write_text("{}")
    assert main.main([*command, "--overwrite"]) == 0
    assert main.main(command) == 0
    if to == "native":
        (tmp_path / "out/config.json").write_text("{}")
        with pytest.raises(ExistingFileError):
            model.save_pretrained(out)
