"""The native modules against mmsegmentation's features and logits, torch's operators, and the published names and shapes."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fixture import FIXTURES
from support.models import changed, small_config

import upernet_zoo as uz
from upernet_zoo.checkpoints import names
from upernet_zoo.errors import ArgumentError, ConfigError
from upernet_zoo.models import UPerNet
from upernet_zoo.models.backbones.resnet import STAGES
from upernet_zoo.models.heads import adaptive_average_pool

SHAPES = json.loads((FIXTURES / "published_shapes.json").read_text())
TINY = small_config()


def tiny(depth=18, seed=0, **changes):
    torch.manual_seed(seed)
    return UPerNet(changed(TINY, depth=depth, **changes)).eval()


def test_features_and_logits_equal_mmsegmentation(fixture):
    model = uz.load_checkpoint(fixture.checkpoint)
    reference = fixture.arrays("tensors.npz")
    with torch.inference_mode():
        features = model.backbone(torch.from_numpy(reference["input"]))
        found = {f"feature{i}": f for i, f in enumerate(features)}
        found |= {"decode_logits": model.decode_head(features), "aux_logits": model.auxiliary_head(features)}
    for key, value in found.items():
        error = np.abs(value.numpy() - reference[key]).max() / np.abs(reference[key]).max()
        assert error < 2e-5, (key, error)


@pytest.mark.parametrize("name", uz.list_models("upernet_r*"))
def test_published_names_and_shapes_at_full_width(name):
    entry = uz.model_info(name)
    with torch.device("meta"):
        model = UPerNet(entry.config)
    found = {key: list(value.shape) for key, value in names.to_published(model.state_dict()).items()}
    expected = SHAPES[entry.backbone.lower().replace("-", "")]
    count = entry.config.num_classes
    assert found == {key: [count if n == "C" else n for n in shape] for key, shape in expected.items()}


@pytest.mark.parametrize("name", uz.list_models("upernet_r*"))
def test_a_forward_pass_of_every_resnet_at_full_width(name):
    model = uz.create_model(name, pretrained=False)
    with torch.inference_mode():
        logits = model(torch.randn(1, 3, 64, 96))
    assert logits.shape == (1, model.config.num_classes, 64, 96)
    assert logits.isfinite().all()


@given(
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    bins=st.integers(1, 8),
    seed=st.integers(0, 99),
)
@settings(max_examples=200)
def test_pooling_equals_adaptive_average_pooling(size, bins, seed):
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(adaptive_average_pool(x, bins), F.adaptive_avg_pool2d(x, bins), rtol=0, atol=1e-6)


@pytest.mark.parametrize("depth", STAGES)
@pytest.mark.parametrize("align_corners", (False, True))
@pytest.mark.parametrize("size", ((32, 32), (33, 47), (64, 35), (97, 131)))
def test_any_size_from_32_up_and_batches_agree_with_single_pictures(depth, align_corners, size):
    model = tiny(depth, align_corners=align_corners)
    x = torch.randn(2, 3, *size)
    with torch.inference_mode():
        both = model(x)
        assert both.shape == (2, 5, *size)
        torch.testing.assert_close(model(x[1:]), both[1:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype, tolerance", ((torch.bfloat16, 0.1), (torch.float16, 0.02)))
def test_half_precision_stays_near_float32(dtype, tolerance):
    model = tiny(50)
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        full = model(x)
        half = model.to(dtype)(x.to(dtype))
    assert half.dtype == dtype
    assert (half.float() - full).abs().max() < tolerance * full.abs().max()


def test_torch_compile_takes_it_without_graph_breaks():
    model = tiny()
    x = torch.randn(1, 3, 64, 96)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)


def test_building_on_the_meta_device_initializes_nothing():
    state = torch.get_rng_state()
    with torch.device("meta"):
        model = UPerNet(TINY)
    assert all(t.is_meta for t in model.state_dict().values())
    assert torch.equal(torch.get_rng_state(), state)


def test_loss_is_cross_entropy_over_labeled_pixels_of_both_heads():
    model = tiny()
    x = torch.randn(2, 3, 64, 64)
    target = torch.randint(0, 5, (2, 64, 64), dtype=torch.uint8)
    target[0, :20] = 255
    with torch.no_grad():
        features = model.backbone(x)
        expected = 0
        for head, weight in ((model.decode_head, 1.0), (model.auxiliary_head, 0.4)):
            logits = F.interpolate(head(features), size=(64, 64), mode="bilinear", align_corners=False)
            expected += weight * F.cross_entropy(logits, target.long(), ignore_index=255)
        torch.testing.assert_close(model.loss(x, target), expected)
    assert model.loss(x, torch.full((2, 64, 64), 255)).item() == 0
    for bad in (target[:, :32], target.float(), target[0]):
        with pytest.raises(ArgumentError, match="target must"):
            model.loss(x, bad)


def test_every_parameter_gets_a_gradient():
    model = tiny(50).train()
    model.loss(torch.randn(2, 3, 64, 64), torch.randint(0, 5, (2, 64, 64))).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not without


def test_a_label_set_of_another_size_is_refused():
    with pytest.raises(ConfigError, match="19 classes, and the model 5"):
        UPerNet(TINY, label_set=uz.labels.get("cityscapes"))


@given(
    depth=st.sampled_from(list(STAGES)),
    num_classes=st.integers(1, 300),
    align_corners=st.booleans(),
    stem=st.integers(1, 64),
    pool_scales=st.lists(st.integers(1, 9), min_size=1, max_size=5),
)
def test_config_goes_to_json_and_back(depth, num_classes, align_corners, stem, pool_scales):
    heads = dict(num_classes=num_classes, align_corners=align_corners, pool_scales=tuple(pool_scales))
    one = small_config(depth=depth, stem_channels=2 * stem, **heads)
    assert uz.UPerNetConfig.from_dict(json.loads(json.dumps(one.to_dict()))) == one


@pytest.mark.parametrize("name", uz.list_models())
def test_recipe_goes_to_json_and_back(name):
    recipe = uz.model_info(name).recipe
    assert uz.Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


@pytest.mark.parametrize(
    "change, message",
    (
        ({"backbone": {"kind": "resnet", "depth": 152}}, "'depth' must be one of 18, 34, 50, 101"),
        ({"backbone": {"kind": "resnet", "depth": True}}, "'depth'"),
        ({"backbone": {"kind": "resnet", "depth": 50, "width": 3}}, "backbone: unknown key 'width'"),
        ({"backbone": {"kind": "none", "depth": 50}}, "no backbone of kind 'none'; there are .*resnet"),
        ({"backbone": {"depth": 50}}, "with the key 'kind'"),
        ({"backbone": None}, "'backbone' must be the config of a backbone"),
        ({"neck": {"kind": "none"}}, "no neck of kind 'none'"),
        ({"auxiliary": {"feature": 4}}, "auxiliary: .*'feature' must be a whole number from 0 to 3"),
        ({"auxiliary": 3}, "'auxiliary' must be an AuxiliaryConfig, or none"),
        ({"num_classes": 0}, "'num_classes' must be a whole number from 1"),
        ({"num_classes": 2.5}, "'num_classes'"),
        ({"backbone": {"kind": "resnet", "depth": 50, "stem_channels": 7}}, "'stem_channels' must be even"),
        ({"pool_scales": ()}, "'pool_scales'"),
        ({"align_corners": 1}, "'align_corners' must be true or false"),
        ({"widths": 3}, "unknown key 'widths'"),
    ),
)
def test_a_config_that_cannot_be_built_is_refused(change, message):
    with pytest.raises(ConfigError, match=message) as caught:
        uz.UPerNetConfig.from_dict({**TINY.to_dict(), **change}, "config.json")
    assert "config.json" in str(caught.value)


@pytest.mark.parametrize(
    "change, message",
    (
        ({"mode": "tiles"}, "'whole' or 'slide'"),
        ({"mode": "slide"}, "needs 'crop'"),
        ({"crop": (3, 3)}, "belongs to slide mode"),
        ({"mode": "slide", "crop": (10, 10), "stride": (11, 10)}, "larger than crop"),
        ({"scale": 512}, "'scale' must be two whole numbers"),
        ({"std": (1, 0, 1)}, "above zero"),
        ({"mean": (1, 2)}, "mean has 2 channels and std 3"),
    ),
)
def test_a_recipe_that_cannot_be_used_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        uz.Recipe.from_dict({"scale": (2048, 512), **change})
