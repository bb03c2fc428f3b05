"""ONNX and torch.export of every kind: in ONNX Runtime, at sizes that the files were not traced at, what the model computes."""

import functools
import itertools
import json

import onnxruntime
import pytest
import torch
from support.fixture import FAMILY, Fixture
from support.lively import lively

import upernet_zoo as uz
from upernet_zoo.errors import ArgumentError
from upernet_zoo.interop import export
from upernet_zoo.interop.portable import graphs

KINDS = [name for name in FAMILY if not any(part in name for part in ("ln_mln", "knet_s3_upernet_swin", "upernet_r18"))]
# beside those at which `export` compares a file: none that a window or a patch divides, and one of few rows
SHAPES = ((1, 75, 130), (3, 224, 96))


@functools.cache
def load(name):
    return uz.load_checkpoint(Fixture(name).checkpoint)


def shapes_for(model):
    """With as many patches as in a ViT's training in another grid, for which its embedding is not resized, as 256x1024 for 512x512."""
    size, grid = model.config.backbone.input_size, getattr(model.config.backbone, "grid", None)
    if size is not None:
        return (1, *size), (2, *size)
    return SHAPES if grid is None else (*SHAPES, (1, grid[0] * 32, grid[1] * 8), (2, grid[0] * 16, grid[1] * 16))


def assert_equal(model, run):
    # K-Net's updates of kernels make more of float32's rounding than others do: 1e-4 is what its features are held to everywhere
    limit = 5e-5 if model.config.kernel_updates is None else 1e-4
    for batch, height, width in shapes_for(model):
        x = torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            expected, found = model(x), run(x)
        assert (found - expected).abs().max() <= limit * expected.abs().max()


WINDOWED = [name for name in KINDS if "upernet_swin" in name or "svt" in name]


# each export takes half a minute: every kind in the form of the default, two in the others
FORMS = [(name, "fused") for name in KINDS] + [
    (name, form) for name in KINDS if "upernet_swin" in name or "convnext" in name for form in ("direct", "plain")
]


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
    assert_equal(model, lambda x: torch.from_numpy(session.run(None, {"pictures": x.numpy()})[0]))


@pytest.mark.large
@pytest.mark.parametrize("name", WINDOWED)
def test_a_program_of_torch_export_gives_the_models_logits(name, tmp_path):
    model = load(name)
    assert_equal(model, torch.export.load(export.to_torch(model, tmp_path / "m.pt2")).module())


@pytest.mark.large
def test_a_grid_of_as_many_patches_keeps_the_embedding_as_it_is(tmp_path):
    """A ViT's graph chooses when it runs, as the model does: 4 x 1 patches in place of the 2 x 2 of the training."""
    model = load(next(name for name in KINDS if "vit-b16" in name))
    height, width = (side * 16 for side in model.config.backbone.grid)
    program = torch.export.load(export.to_torch(model, tmp_path / "m.pt2")).module()
    x = torch.randn(1, 3, 2 * height, width // 2)
    with torch.no_grad():
        torch.testing.assert_close(program(x), model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind, smallest", {"upernet_swin": 33, "convnext": 64, "pcpvt": 61, "r18": 33, "ln_mln": 49, "deit": 33}.items())
def test_sides_begin_where_no_map_has_one_row(kind, smallest):
    assert graphs.smallest_side(load(next(name for name in FAMILY if kind in name))) == smallest


def test_labels_of_one_size_alone_are_refused(tmp_path):
    model = load(next(name for name in KINDS if "beit" in name))
    whole = uz.UPerNet(model.config, uz.Recipe(scale=(512, 512))).eval()
    with pytest.raises(ArgumentError, match="takes pictures of any size, and this model's backbone, BEiT .*alone"):
        export.to_torch(whole, tmp_path / "m.pt2", labels=True)


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
@pytest.mark.parametrize("form", ["fused", "direct"])
def test_a_program_of_one_size_has_the_algebra_too(form, tmp_path):
    model = load(next(name for name in KINDS if "upernet_swin" in name))
    program = torch.export.load(export.to_torch(model, tmp_path / "m.pt2", form=form, size=(75, 131))).module()
    x = torch.randn(3, 3, 75, 131)
    with torch.no_grad():
        expected = model(x)
        assert (program(x) - expected).abs().max() <= 5e-5 * expected.abs().max()


@pytest.mark.large
def test_labels_of_windows_are_those_of_one(tmp_path):
    """A BEiT, whose windows are its only size, and which no other size is given to."""
    model = load(next(name for name in KINDS if "beit" in name))
    height, width = model.recipe.crop
    assert model.recipe.mode == "slide" and model.config.backbone.input_size == (height, width)
    program = torch.export.load(export.to_torch(model, tmp_path / "m.pt2", labels=True)).module()
    window = torch.randint(0, 256, (2, height, width, 3), dtype=torch.uint8)
    mean, std = (torch.tensor(values) for values in (model.recipe.mean, model.recipe.std))
    with torch.no_grad():
        expected = model(((window - mean) / std).permute(0, 3, 1, 2)).argmax(1)
        assert (program(window) == expected).float().mean() >= 0.999
        with pytest.raises(AssertionError, match=rf"pictures.size\(\)\[1\] == {height}"):
            program(window[:, :-1])


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
