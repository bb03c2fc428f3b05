"""ONNX of every kind: in ONNX Runtime, at sizes that the files were not traced at, what the model computes."""

import itertools
import json

import onnxruntime
import pytest
import torch
from support.fixture import FAMILY
from support.kinds import KINDS, assert_equal, load
from support.lively import lively

import upernet_zoo as uz
from upernet_zoo.interop import export
from upernet_zoo.interop.portable import graphs

# each export takes half a minute: every kind in the form of the default, two in the others
FORMS = [(name, "fused") for name in KINDS] + [
    (name, form) for name in KINDS if "upernet_swin" in name or "convnext" in name for form in ("direct", "plain")
]
# below what is traced: batch, height, width of pictures that some backbones still take, and others not
SMALL = ((1, 40, 40), (2, 33, 50), (1, 61, 33), (1, 20, 300), (1, 300, 20), (1, 7, 200), (1, 1, 1))


def assert_small_ones_are_equal_or_refused_by_both(model, run):
    for batch, height, width in SMALL:
        x = torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))
        try:
            with torch.no_grad():
                expected = model(x)
        except RuntimeError:
            with pytest.raises(Exception, match="ONNXRuntimeError"):
                run(x)
        else:
            assert (run(x) - expected).abs().max() <= 5e-5 * expected.abs().max(), (batch, height, width)


@pytest.mark.large
@pytest.mark.parametrize(("name", "form"), FORMS)
def test_onnx_runtime_gives_the_models_logits(name, form, tmp_path):
    """One file at every size and batch; also in OpenVINO of a ResNet and of a Swin Transformer."""
    model = load(name)
    check = ["openvino"] if "r50" in name or "upernet_swin" in name else []
    file = export.to_onnx(model, tmp_path / "m.onnx", form=form, check=check)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    assert session.get_modelmeta().custom_metadata_map["form"] == form
    size = model.config.backbone.input_size
    assert session.get_inputs()[0].shape == ["batch", 3, *(("height", "width") if size is None else size)]
    assert json.loads(session.get_modelmeta().custom_metadata_map["architecture"])["backbone"]["kind"] == model.config.backbone.kind

    def run(x):
        return torch.from_numpy(session.run(None, {"pictures": x.numpy()})[0])

    assert_equal(model, run)
    if size is None:
        assert_small_ones_are_equal_or_refused_by_both(model, run)


@pytest.mark.parametrize("kind, smallest", {"upernet_swin": 33, "convnext": 64, "pcpvt": 61, "r18": 33, "ln_mln": 49, "deit": 33}.items())
def test_sides_begin_where_no_map_has_one_row(kind, smallest):
    assert graphs.smallest_side(load(next(name for name in FAMILY if kind in name))) == smallest


@pytest.mark.large
def test_a_full_width_r50_is_exported_fused(tmp_path):
    """As it is by default: at six sizes and two batches from one file."""
    entry = uz.model_info("upernet_r50_512x512_160k_ade20k")
    model = lively(entry.config, entry.recipe, entry.label_set)
    session = onnxruntime.InferenceSession(export.to_onnx(model, tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    assert session.get_modelmeta().custom_metadata_map["form"] == "fused"
    for batch, (height, width) in itertools.product((1, 3), ((33, 33), (64, 96), (97, 131), (256, 256), (300, 451), (512, 512))):
        x = torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            expected = model(x)
        found = torch.from_numpy(session.run(None, {"pictures": x.numpy()})[0])
        assert (found - expected).abs().max() <= 5e-5 * expected.abs().max()


@pytest.mark.large
def test_a_half_file_gives_the_labels_of_float32(tmp_path):
    model = load(next(name for name in KINDS if "upernet_swin" in name))
    path = export.to_onnx(model, tmp_path / "m.onnx", half=True, size=(64, 96))
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = session.get_modelmeta().custom_metadata_map
    assert (found["dtype"], found["form"]) == ("float16", "direct") and session.get_inputs()[0].type == "tensor(float)"
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        expected = model(x).argmax(1).numpy()
    assert (session.run(None, {"pictures": x.numpy()})[0].argmax(1) == expected).mean() >= 0.98
    assert model.decode_head.classifier.weight.dtype == torch.float32  # its own tensors are not halved
