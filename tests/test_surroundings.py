"""What a program may have set in torch, or do with a model, before or around this library."""

import contextlib
from pathlib import Path

import numpy as np
import pytest
import torch
from support.training_runs import small_model
from torchvision.models.feature_extraction import create_feature_extractor

import upernet_zoo as uz
from upernet_zoo.checkpoints.names import to_published
from upernet_zoo.errors import ArgumentError
from upernet_zoo.training.augment import augment

FOUR = uz.labels.generic(4)
FAMILY = Path(__file__).parent / "fixtures" / "family"
PICTURE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def default_device(device):
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextlib.contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


SURROUNDINGS = {
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "float16": lambda: default_dtype(torch.float16),
    "meta": lambda: default_device("meta"),
    "deterministic": deterministic,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "no gradients": torch.no_grad,
    "inference": torch.inference_mode,
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model as a folder and as a checkpoint file."""
    folder = tmp_path_factory.mktemp("saved")
    model = small_model(FOUR)
    model.save_pretrained(folder / "model")
    torch.save({"state_dict": to_published(model.state_dict())}, folder / "model.pth")
    return folder


def everything(saved):
    """All that can be asked of a model, from loading on."""
    found = {}
    models = {"folder": uz.create_model(f"local-dir:{saved / 'model'}"), "file": uz.load_checkpoint(saved / "model.pth")}
    models["file"].recipe = models["folder"].recipe  # which the file does not say
    for name, model in models.items():
        for optimize in (None, False):
            segmenter = uz.Segmenter(model, optimize=optimize, mode="slide", crop=(48, 48), stride=(32, 32), scales=(0.75, 1.0), flip=True)
            found[f"{name} probabilities {optimize}"] = segmenter.probabilities(PICTURE)
            found[f"{name} labels {optimize}"] = torch.from_numpy(uz.Segmenter(model, optimize=optimize)(PICTURE).labels)
        found[f"{name} weights"] = torch.cat([value.flatten() for value in model.state_dict().values()])
    x, target = augment(PICTURE, np.zeros((40, 60), np.int64), np.random.default_rng(0), model.recipe, (32, 32), 255)
    return found | {"crop": x, "target": target}


@pytest.fixture(scope="module")
def plain(saved):
    """The same at torch's defaults."""
    return everything(saved)


@pytest.mark.filterwarnings("ignore:.*the file does not say all")
@pytest.mark.parametrize("name", SURROUNDINGS)
def test_all_is_computed_as_at_torchs_defaults(saved, plain, name):
    with SURROUNDINGS[name]():
        found = everything(saved)
    for key, value in plain.items():
        assert found[key].dtype == value.dtype and found[key].device == value.device, key
        assert torch.equal(torch.as_tensor(found[key]), torch.as_tensor(value)), key


def test_fresh_weights_are_the_same_at_any_default_dtype():
    torch.manual_seed(0)
    expected = uz.create_model("demo", pretrained=False).state_dict()
    with default_dtype(torch.float64):
        torch.manual_seed(0)
        found = uz.create_model("demo", pretrained=False).state_dict()
        assert torch.get_default_dtype() == torch.float64
    for key, value in expected.items():
        assert found[key].dtype == value.dtype and torch.equal(found[key], value)


def test_a_model_on_the_meta_device_is_asked_for_by_torchs_own_way():
    with torch.device("meta"):
        assert uz.create_model("demo", pretrained=False).decode_head.classifier.weight.is_meta


@pytest.mark.parametrize("optimize", [True, False])
def test_a_model_is_exported_at_any_default(saved, tmp_path, optimize):
    model = uz.create_model(f"local-dir:{saved / 'model'}")
    with default_dtype(torch.float64), default_device("meta"):
        graph = uz.interop.export.Labels(model) if optimize else uz.interop.export.Logits(model)
        example = graph.example(1, 64, 96)
    assert graph.error(example, graph(example)) == 0
    assert all(buffer.dtype != torch.float64 and not buffer.is_meta for buffer in graph.buffers())


# targets


@pytest.mark.parametrize("id", [-100, -1, 4, 7, 254])
def test_a_target_that_holds_no_train_id_is_named_with_the_way_out(id):
    model = small_model(FOUR).train()
    x, target = torch.randn(2, 3, 64, 64), torch.zeros(2, 64, 64, dtype=torch.long)
    target[:, :5] = id
    with pytest.raises(ArgumentError, match=rf"holds {id}, and train ids of this model are 0 to 3, or 255 .*target == {id}, 255\)"):
        model.loss(x, target)
    assert torch.isfinite(model.loss(x, target.masked_fill(target == id, 255)))
    with pytest.raises(ArgumentError, match="-100"):
        model.loss(x, target.to(torch.int16).fill_(-100))


# tracers


def test_torch_fx_gives_features_of_any_size():
    model = small_model(FOUR)
    extractor = create_feature_extractor(model, ["backbone.layer3", "decode_head.classifier"])
    for size in ((64, 96), (97, 80)):
        x = torch.randn(1, 3, *size)
        found, features = extractor(x), model.backbone(x)
        assert torch.equal(found["backbone.layer3"], features[2])
        assert torch.equal(found["decode_head.classifier"], model.decode_head(features))
        assert torch.equal(torch.fx.symbolic_trace(model)(x), model(x))


@pytest.mark.filterwarnings("ignore:.*the file does not say all")
@pytest.mark.parametrize(
    "name", ["upernet_convnext", "upernet_swin", "twins_svt", "upernet_beit", "upernet_vit-b16_mln", "knet_s3_upernet_swin"]
)
def test_torch_fx_traces_each_kind_or_says_what_to_take(name):
    model = uz.load_checkpoint(next(FAMILY.glob(f"{name}*/*.pth")))
    x, leaves = torch.randn(1, 3, *(model.config.backbone.input_size or (64, 96))), {}
    if name != "upernet_convnext":
        for module in (model, model.backbone):
            with pytest.raises(ArgumentError, match=f"torch.fx cannot trace a {type(model.backbone).__name__}: .*'leaf_modules'"):
                torch.fx.symbolic_trace(module)
        leaves = {"leaf_modules": [type(model.backbone)]}  # as the message says
    extractor = create_feature_extractor(model, ["decode_head"], tracer_kwargs=leaves).eval()
    assert torch.equal(extractor(x)["decode_head"], model.logits(x))


def test_what_cannot_be_compiled_or_traced_says_what_to_take(recwarn):
    model = small_model(FOUR)
    fused = uz.optimize_for_inference(model)
    for module in (model, model.backbone, fused):
        with pytest.raises(ArgumentError, match=f"torch.jit.script cannot compile a {type(module).__name__}.*upernet-zoo export"):
            torch.jit.script(module)
    with pytest.raises(ArgumentError, match="cannot be traced by torch.fx.*Trace the plain UPerNet"):
        torch.fx.symbolic_trace(fused)
