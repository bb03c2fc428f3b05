"""A backbone that somebody else registers, in one file of its own, is a backbone like any other: nothing else knows of it."""

import dataclasses
import json
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from support.fixture import ROOT
from support.models import small_config
from support.toy_backbone import Toy, ToyConfig, ToyNeckConfig
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import upernet_zoo as uz
from upernet_zoo import memory, optimized
from upernet_zoo.demo import folder as demo_folder
from upernet_zoo.errors import ArgumentError, CheckpointError, ConfigError, NotEnoughMemoryError
from upernet_zoo.interop import mmsegmentation, transformers
from upernet_zoo.training import TrainingSettings, open_splits, train

NAME = "upernet_toy_64x64_4k_mine"


@pytest.fixture(autouse=True)
def toy_index(monkeypatch):
    monkeypatch.setenv("UPERNET_ZOO_INDEX", str(ROOT / "tests" / "support" / "toy_index.yml"))


@pytest.fixture
def model():
    """A model of the index's row whose answers say something."""
    torch.manual_seed(0)
    model = uz.create_model(NAME, pretrained=False)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    torch.nn.init.normal_(model.decode_head.classifier.weight, std=0.5)
    return model


def test_its_row_of_the_index_is_read_and_built(model):
    entry = uz.model_info(NAME)
    assert entry.to_dict()["config"]["backbone"] == {"kind": "toy", "width": 12}
    assert model.config == entry.config
    assert entry.config.backbone == ToyConfig(width=12) and entry.config.neck == ToyNeckConfig(width=8)
    assert isinstance(model.backbone, Toy) and model.auxiliary_head is None
    assert uz.create_backbone(NAME, pretrained=False).feature_info.channels() == [12] * 4
    assert uz.create_backbone(NAME, pretrained=False).feature_info.reduction() == [8] * 4
    assert uz.UPerNetConfig.from_dict(json.loads(json.dumps(model.config.to_dict()))) == model.config
    with torch.inference_mode():
        assert model.logits(torch.randn(2, 3, 65, 97)).shape == (2, 5, 9, 13)
        assert model(torch.randn(2, 3, 65, 97)).shape == (2, 5, 65, 97)
        assert [f.shape for f in model.features(torch.randn(1, 3, 64, 64))] == [(1, 8, 8, 8)] * 4


def test_the_index_is_read_without_torch_by_the_name_of_a_file_and_refused_where_nobody_has_registered_the_kind():
    code = """
        import sys, upernet_zoo as uz
        from upernet_zoo.registry import BACKBONES
        assert BACKBONES.may_have("resnet") and not BACKBONES.may_have("toy") and "torch" not in sys.modules
        try:
            uz.list_models()
        except uz.UPerNetZooError as error:
            print(error)
        assert "torch" not in sys.modules
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert f"model '{NAME}', Config: backbone: no backbone of kind 'toy'; there are " in done.stdout


def test_it_is_fused(model):
    fused = uz.optimize_for_inference(model)
    for size in ((64, 64), (65, 97), (128, 40)):
        x = torch.randn(2, 3, *size)
        with torch.inference_mode():
            expected, found = model(x), fused(x)
        assert (found - expected).abs().max() <= 5e-5 * expected.abs().max()
    own = {p.data_ptr() for p in model.parameters()}
    assert not own & {p.data_ptr() for p in fused.parameters()}
    assert not any(key.startswith("auxiliary") for key in fused.state_dict())


def test_a_fused_double_model_computes_in_double(model):
    x = torch.randn(1, 3, 67, 97, dtype=torch.float64)
    for plain in (model.double(), uz.UPerNet(small_config()).double().eval()):
        with torch.inference_mode():
            expected, found = plain(x), uz.optimize_for_inference(plain)(x)
        assert (found - expected).abs().max() <= 1e-13 * expected.abs().max()


def test_a_fused_model_is_saved_and_read(model, tmp_path):
    fused = uz.optimize_for_inference(model)
    again = optimized.read(optimized.save(fused, tmp_path / "fused.safetensors"))
    x = torch.randn(1, 3, 64, 96)
    assert torch.equal(again(x), fused(x)) and again.config == model.config


def test_it_is_saved_and_loaded(model, tmp_path):
    model.save_pretrained(tmp_path / "toy")
    saved = json.loads((tmp_path / "toy" / "config.json").read_text())
    assert saved["format"] == 1
    assert saved["architecture"]["backbone"] == {"kind": "toy", "in_channels": 3, "width": 12, "blocks": 1, "side": None}
    assert "Toy-12 backbone" in (tmp_path / "toy" / "README.md").read_text()
    for again in (uz.UPerNet.from_pretrained(tmp_path / "toy"), uz.create_model(f"local-dir:{tmp_path / 'toy'}")):
        assert again.config == model.config and again.auxiliary_head is None
        assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())


def test_it_is_trained(model, tmp_path):
    demo_folder.write(tmp_path / "data" / "train", range(4), size=(64, 96))
    demo_folder.write(tmp_path / "data" / "val", range(100, 102), size=(64, 96))
    (tmp_path / "data" / "classes.txt").write_text("\n".join(demo_folder.MERGED))
    training, validation = open_splits("folder", tmp_path / "data")
    model.reset_classifier(training.label_set)
    model.set_grad_checkpointing()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    settings = TrainingSettings(steps=6, batch_size=2, crop=(64, 64), lr=0.01, freeze_stages=1, optimizer="adamw", evaluate_every=6)
    result = train(model, training, validation, tmp_path / "out", settings, progress=False)
    again = uz.create_model(f"local-dir:{result.last}")
    changed = {name.split(".")[1] for name, p in again.named_parameters() if not torch.equal(p, before[name]) and name.startswith("back")}
    assert changed == {"blocks"}  # neither `embed` nor `offset`, which come before the first stage
    assert all(torch.equal(p, before[f"backbone.blocks.0.{name}"]) for name, p in again.backbone.blocks[0].named_parameters())
    assert result.rows[-1]["loss"] < result.rows[0]["loss"]


def test_its_parameters_are_grouped_as_it_says(model):
    names = {id(p): name for name, p in model.named_parameters()}
    decayed, undecayed, *_ = groups = model.parameter_groups(1.0, head_multiplier=10.0)
    assert [names[id(p)] for p in undecayed["params"] if "embed" in names[id(p)] or "offset" in names[id(p)]] == [
        "backbone.offset",
        "backbone.embed.bias",
    ]
    assert {"backbone.blocks.0.0.gamma", "backbone.embed.weight"} <= {names[id(p)] for p in decayed["params"]}
    assert sorted(names[id(p)] for group in groups for p in group["params"]) == sorted(names.values())
    assert [group["lr"] for group in groups] == [1.0, 1.0, 10.0, 10.0]
    by_layer = model.parameter_groups(1.0, head_multiplier=1.0, layer_decay=0.5)
    rates = {names[id(p)]: group["lr"] for group in by_layer for p in group["params"]}
    assert rates["backbone.offset"] == 0.5**5 and rates["backbone.blocks.3.0.gamma"] == 0.5
    assert rates["neck.laterals.0.weight"] == rates["decode_head.classifier.weight"] == 1.0
    assert len(rates) == len(names)


def test_it_takes_pictures_of_other_channels(model):
    model.adapt_input(1)
    assert model.config.in_channels == model.config.backbone.in_channels == 1
    with torch.inference_mode():
        assert model(torch.randn(1, 1, 64, 64)).shape == (1, 5, 64, 64)
        assert uz.optimize_for_inference(model)(torch.randn(1, 1, 64, 64)).shape == (1, 5, 64, 64)


def test_its_memory_is_estimated(model, monkeypatch):
    for network in (model, uz.optimize_for_inference(model)):
        assert 0 < network.peak_values(1000) < network.peak_values(100_000)
    assert model.peak_values(64) == 4 * 8 + 14 * 16  # four features and fourteen maps of the head, a value in each channel
    wide = uz.UPerNet(dataclasses.replace(model.config, backbone=ToyConfig(width=64), channels=2))
    assert wide.peak_values(64) == 6 * 64  # the backbone's own
    monkeypatch.setattr(memory, "available", lambda device: 1 << 20)
    picture = np.zeros((512, 512, 3), np.uint8)
    with pytest.raises(NotEnoughMemoryError, match="needs about"):
        uz.Segmenter(model, scales=(8,))(picture)


def test_pictures_are_segmented_whole_and_in_windows(model):
    picture = np.random.default_rng(0).integers(0, 256, (70, 100, 3), dtype=np.uint8)
    plain = uz.Segmenter(model, optimize=False)(picture)
    fused = uz.Segmenter(model, optimize=True)(picture)
    assert len(np.unique(plain.labels)) > 1
    assert (plain.labels == fused.labels).mean() > 0.999
    assert uz.Segmenter(model, mode="slide", crop=(64, 64), stride=(48, 48))(picture).labels.shape == (70, 100)


def test_it_is_exported_to_onnx(model, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    path = uz.interop.export.to_onnx(model, tmp_path / "toy.onnx")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    x = torch.randn(2, 3, 72, 100)
    with torch.no_grad():
        expected = model(x)
    found = torch.from_numpy(session.run(None, {"pictures": x.numpy()})[0])
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_where_it_has_no_counterpart_that_is_said(model, tmp_path):
    with pytest.raises(ArgumentError, match="mmsegmentation has no Toy-12"):
        mmsegmentation.to_mmsegmentation(model, tmp_path / "toy.pth")
    with pytest.raises(ArgumentError, match="transformers has no Toy-12"):
        transformers.to_transformers(model)
    assert not list(tmp_path.iterdir())


def test_it_is_recognized_in_a_checkpoint(model, tmp_path):
    text = "model = dict(backbone=dict(type='Toy', frozen_stages=1, riddle=2), decode_head=dict(align_corners=False))"
    torch.save({"state_dict": model.state_dict(), "meta": {"config": text}}, tmp_path / "toy.pth")
    with pytest.warns(UserWarning, match="no effect of model.backbone.type='Toy'.*riddle=2"):
        assert uz.load_checkpoint(tmp_path / "toy.pth").config == model.config
    other = {key.replace("offset", "other"): value for key, value in model.state_dict().items()}
    torch.save({"state_dict": other}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="its backbone is of no kind that is known"):
        uz.load_checkpoint(tmp_path / "other.pth")


class Dtypes(TorchDispatchMode):
    """Records the floating-point types of all that is computed."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.seen |= {value.dtype for value in tree_leaves(result) if isinstance(value, torch.Tensor) and value.is_floating_point()}
        return result


def test_a_double_model_computes_in_double(model):
    for one in (model.double(), uz.UPerNet(small_config()).double()):
        x = torch.randn(2, 3, 67, 97, dtype=torch.float64)
        with Dtypes() as dtypes:
            assert one.eval()(x).dtype == torch.float64
            assert one.train().loss(x, torch.zeros(2, 67, 97, dtype=torch.long)).dtype == torch.float64
        assert dtypes.seen == {torch.float64}


def test_a_class_that_breaks_the_rules_is_not_registered():
    class Nameless(uz.Backbone):
        pass

    with pytest.raises(ArgumentError, match="Nameless: a backbone needs a config_class whose 'kind' is a name"):
        uz.register_backbone(Nameless)

    class Other(uz.Backbone):
        config_class = ToyConfig

    with pytest.raises(ArgumentError, match="support.toy_backbone.Toy is the backbone of kind 'toy'; choose another"):
        uz.register_backbone(Other)
    assert uz.register_backbone(Toy) is Toy  # a module may be run again


def test_options_that_it_does_not_take_are_refused():
    with pytest.raises(ConfigError, match="config.json: backbone: unknown key 'depth'; known keys are in_channels, width, blocks, side"):
        uz.UPerNetConfig.from_dict({"backbone": {"kind": "toy", "depth": 50}, "num_classes": 5}, "config.json")
    with pytest.raises(ConfigError, match="'in_channels' must be a whole number"):
        ToyConfig(in_channels=0)


def test_a_new_file_is_all_that_the_library_needs_for_a_kind_of_its_own(tmp_path):
    """The toy as if it were the library's own: the package with one file more knows the kind, without torch too."""
    shutil.copytree(ROOT / "upernet_zoo", tmp_path / "upernet_zoo", ignore=shutil.ignore_patterns("__pycache__", "*.pth"))
    shutil.copy2(ROOT / "tests" / "support" / "toy_backbone.py", tmp_path / "upernet_zoo" / "models" / "backbones" / "toy.py")
    code = f"""
        import sys
        sys.path.insert(0, {str(tmp_path)!r})
        import upernet_zoo as uz
        entry = uz.model_info({NAME!r})
        assert "torch" not in sys.modules and uz.__file__.startswith({str(tmp_path)!r})
        assert entry.config.backbone.title == "Toy-12"
        assert uz.create_model({NAME!r}, pretrained=False).config == entry.config
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)


def test_a_backbone_of_one_size_is_exported_for_that_size(model, tmp_path):
    one_size = uz.UPerNet(dataclasses.replace(model.config, backbone=ToyConfig(side=72)), model.recipe, model.label_set).eval()
    program = torch.export.load(uz.interop.export.to_torch(one_size, tmp_path / "toy.pt2")).module()
    x = torch.randn(3, 3, 72, 72)
    with torch.no_grad():
        torch.testing.assert_close(program(x), one_size(x), rtol=1e-4, atol=1e-5)
    with pytest.raises(ArgumentError, match="Toy-12, 72x72 alone. Export the logits"):
        uz.interop.export.to_torch(one_size, tmp_path / "labels.pt2", labels=True)
