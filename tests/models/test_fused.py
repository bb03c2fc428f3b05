"""The fused model against mmsegmentation's tensors, the plain model, and torch's own convolution and resize in float64."""

import gc
import mmap
import weakref

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from support.lively import lively
from support.models import small_config
from torch.utils.flop_counter import FlopCounterMode

import upernet_zoo as uz
from upernet_zoo.errors import ArgumentError, CheckpointError
from upernet_zoo.images import preprocess
from upernet_zoo.models import UPerNet
from upernet_zoo.models.backbones import convnext, swin
from upernet_zoo.models.backbones._base import build_backbone
from upernet_zoo.models.fused import layers, resized, winograd
from upernet_zoo.models.fused.model import FusedUPerNet, optimize_for_inference

SIZES = st.integers(1, 23)


@torch.no_grad()
def randomised(config, seed=0):
    """A model whose batch norms and classifiers matter; a fresh one would hide mistakes in them."""
    torch.manual_seed(seed)
    model = UPerNet(config).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.data.uniform_(0.6, 1.4)
            module.bias.data.normal_(0, 0.2)
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
        elif isinstance(module, torch.nn.Conv2d) and module.bias is not None:
            module.weight.data.normal_(0, 0.5)
            module.bias.data.normal_(0, 0.1)
    # Else one class has the largest logit nearly everywhere, whatever the picture, and labels would be equal for nothing.
    logits = model.decode_head(model.backbone(torch.randn(1, config.in_channels, 64, 96)))
    spread, mean = torch.std_mean(logits, (0, 2, 3))
    classifier = model.decode_head.classifier
    classifier.bias.data.sub_(mean).div_(spread)
    classifier.weight.data.div_(spread[:, None, None, None])
    return model


def compare(model, fused, x, bar=5e-5):
    with torch.inference_mode():
        expected, found = model(x), fused(x)
    assert found.shape == expected.shape
    error = (found - expected).abs().max() / expected.abs().max()
    assert error <= bar, (tuple(x.shape), error)
    assert (found.argmax(1) == expected.argmax(1)).float().mean() >= 0.9999


def small(depth, **changes):
    return small_config(
        **{"depth": depth, "num_classes": 7, "base_channels": 8, "stem_channels": 8, "channels": 16, "aux_channels": 256, **changes}
    )


def module_with(kind, weight, bias=None):
    """A 3x3 convolution of this module with the weight of an ordinary one."""
    module = kind(weight.shape[1], weight.shape[0])
    module.weight.copy_(kind.transform(weight.double()))
    if bias is not None:
        module.bias.copy_(bias)
    return module


def testwinograd_matrices_are_exact():
    bt, g, at = winograd.winograd_matrices()
    signal, kernel = torch.randn(6, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    expected = np.correlate(signal.numpy(), kernel.numpy(), "valid")
    assert np.abs((at @ ((g @ kernel) * (bt @ signal))).numpy() - expected).max() < 1e-13


@settings(max_examples=40)
@given(st.integers(1, 3), SIZES, SIZES, st.integers(1, 5), st.integers(1, 5), st.integers(1, 30), st.integers(0, 2**31))
def test_winograd_convolution_of_any_size(count, height, width, channels, out_channels, tiles, seed):
    torch.manual_seed(seed)
    x, weight = torch.randn(count, height, width, channels), torch.randn(out_channels, channels, 3, 3)
    bias = torch.randn(out_channels)
    expected = F.conv2d(x.permute(0, 3, 1, 2).double(), weight.double(), bias.double(), padding=1).permute(0, 2, 3, 1)
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(winograd, "TILES_PER_BAND", tiles)
        found = module_with(winograd.WinogradConv3x3, weight, bias)(x)
    assert (found - expected).abs().max() <= 2e-5 * expected.abs().max()


@settings(max_examples=60)
@given(SIZES, SIZES, st.integers(1, 60), st.integers(1, 60), st.booleans(), st.integers(1, 9), st.integers(1, 200), st.integers(0, 2**31))
def test_convolution_of_a_resized_map_of_any_size(height, width, out_height, out_width, align_corners, band, pixels, seed):
    """Against resizing with torch in float32 (its weights are to be used) and convolving in float64; rows come a band at a time."""
    torch.manual_seed(seed)
    maps = [torch.randn(height, width, 3), torch.randn(-(-height // 2), -(-width // 2), 3)]
    weights = [torch.randn(4, 3, 3, 3) for _ in maps]
    out = torch.randn(1, out_height, out_width, 4)
    expected = out.permute(0, 3, 1, 2).double()
    for x, weight in zip(maps, weights):
        large = F.interpolate(x.permute(2, 0, 1)[None], (out_height, out_width), mode="bilinear", align_corners=align_corners)
        expected = expected + F.conv2d(large.double(), weight.double(), padding=1)
    expected = expected.permute(0, 2, 3, 1)
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(resized, "_PIXELS_AT_ONCE", pixels)
        parts = [(x.shape[:2], module_with(resized.ResizedConv3x3, w).products(x)) for x, w in zip(maps, weights)]
        total = resized.ResizedSum((out_height, out_width), parts, align_corners, 3, out)
        for top in range(0, out_height, band):
            total.add_to(out[:, top : top + band], top)
    assert (out - expected).abs().max() <= 1e-5 * expected.abs().max()


@settings(max_examples=40)
@given(SIZES, SIZES, st.integers(1, 60), st.integers(1, 60), st.booleans(), st.integers(1, 100))
def test_resize_equals_torch(height, width, out_height, out_width, align_corners, tiles):
    x, out = torch.randn(2, height, width, 3), torch.randn(2, out_height, out_width, 3)
    large = F.interpolate(x.permute(0, 3, 1, 2), (out_height, out_width), mode="bilinear", align_corners=align_corners)
    expected = out + large.permute(0, 2, 3, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(winograd, "TILES_PER_BAND", tiles)
        resized.add_resized(out, x, align_corners)
    assert (out - expected).abs().max() < 1e-5


def test_features_and_logits_equal_mmsegmentation(fixture):
    model = optimize_for_inference(uz.load_checkpoint(fixture.checkpoint))
    reference = fixture.arrays("tensors.npz")
    features = model.backbone(torch.from_numpy(reference["input"]))
    found = {f"feature{i}": f for i, f in enumerate(features)} | {"decode_logits": model.decode_head(features)}
    for key, value in found.items():
        error = np.abs(value.numpy() - reference[key]).max() / np.abs(reference[key]).max()
        assert error < 5e-5, (key, error)


def test_probes_equal_mmsegmentation_on_a_photo(fixture):
    """Whole pictures; the published evaluation resizes logits to the network's input and then to the picture."""
    model = optimize_for_inference(uz.load_checkpoint(fixture.checkpoint))
    if model.recipe.mode != "whole":
        pytest.skip("slide mode is the Segmenter's")
    pixels, reference = preprocess.load_image(fixture.photo), fixture.arrays("probes.npz")
    logits = model(preprocess.prepare(pixels, model.recipe))
    logits = F.interpolate(logits, pixels.shape[:2], mode="bilinear", align_corners=model.config.align_corners)
    found = logits.softmax(1)[0, :, reference["rows"], reference["cols"]].T
    assert np.abs(found.numpy() - reference["probs"]).max() < 1e-4


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("depth", [18, 34, 50, 101])
def test_equals_the_plain_model(depth, align_corners, monkeypatch):
    """Every depth, with Winograd, which models as small as these would not use; sizes that divide by nothing."""
    monkeypatch.setattr(winograd, "WINOGRAD_CHANNELS", 1)
    model = randomised(small(depth, align_corners=align_corners))
    fused = optimize_for_inference(model)
    assert isinstance(fused.decode_head.fpn_bottleneck, winograd.WinogradConv3x3)
    for shape in ((1, 3, 32, 32), (2, 3, 33, 97), (1, 3, 161, 70)):
        compare(model, fused, torch.randn(shape))


@pytest.mark.parametrize("tiles", [1, 7, 30])
def test_bands_of_any_size(tiles, monkeypatch):
    monkeypatch.setattr(winograd, "WINOGRAD_CHANNELS", 1)
    monkeypatch.setattr(winograd, "TILES_PER_BAND", tiles)
    monkeypatch.setattr(resized, "_PIXELS_AT_ONCE", 5 * tiles)
    model = randomised(small(18))
    for shape in ((1, 3, 161, 70), (2, 3, 33, 97)):
        compare(model, optimize_for_inference(model), torch.randn(shape))


@pytest.mark.parametrize(
    ("depth", "classes", "align_corners", "sizes"), [(50, 150, False, [(64, 96), (77, 130)]), (101, 19, True, [(97, 65)])]
)
def test_equals_the_plain_model_at_full_width(depth, classes, align_corners, sizes):
    model = randomised(uz.UPerNetConfig(backbone=uz.ResNetConfig(depth=depth), num_classes=classes, align_corners=align_corners))
    fused = optimize_for_inference(model)
    for size in sizes:
        compare(model, fused, torch.randn(1, 3, *size))


def test_other_widths_channels_and_pools():
    model = randomised(small(34, deep_stem=False))
    compare(model, optimize_for_inference(model), torch.randn(1, 3, 71, 64))
    model = randomised(small(18, in_channels=4, pool_scales=(1, 5), num_classes=1))
    compare(model, optimize_for_inference(model), torch.randn(2, 4, 45, 64))


TRANSFORMERS = {
    "swin": swin.SwinConfig(embed_dim=12, depths=(2, 2, 1, 2), num_heads=(1, 2, 3, 4), window=5),
    "convnext": convnext.ConvNeXtConfig(depths=(2, 1, 2, 1), widths=(8, 12, 16, 20), eps=1e-3, downsample_eps=1e-2),
}


@pytest.mark.parametrize("at_once", [1000, layers.AT_ONCE])
@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_backbones_in_blocks_of_any_size(kind, at_once, monkeypatch):
    """Every parameter matters; maps smaller than a window and such that divide by nothing."""
    monkeypatch.setattr(layers, "AT_ONCE", at_once)
    swin._kept_places.cache_clear()
    torch.manual_seed(0)
    plain = build_backbone(TRANSFORMERS[kind]).eval()
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.1 if parameter.dim() > 1 else 0.5))
    fused = plain.fuse()
    with torch.inference_mode():
        for shape in ((1, 3, 32, 32), (2, 3, 97, 64), (1, 3, 70, 161)):
            x = torch.randn(shape)
            for expected, found in zip(plain(x), fused(x), strict=True):
                assert found.shape == expected.shape
                assert (found - expected).abs().max() <= 5e-6 * expected.abs().max(), shape
    swin._kept_places.cache_clear()


def test_a_fifth_of_the_multiplications_of_the_head():
    """At 512x512 the head has 215 GMACs; this counts a smaller picture's with torch's counter."""
    model = randomised(uz.UPerNetConfig(backbone=uz.ResNetConfig(depth=50), num_classes=150))
    x = torch.randn(1, 3, 256, 256)
    counts = []
    for either in (model, optimize_for_inference(model)):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            features = either.backbone(x)
            before = counter.get_total_flops()
            either.decode_head(features)
        counts.append(counter.get_total_flops() - before)
    assert counts[1] < 0.25 * counts[0], counts


def test_saves_and_loads_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(winograd, "WINOGRAD_CHANNELS", 1)
    fused = optimize_for_inference(randomised(small(18)))
    fused.origin = {"model": "one"}
    save_file(fused.state_dict(), tmp_path / "fused.safetensors")
    tensors = load_file(tmp_path / "fused.safetensors")
    loaded = FusedUPerNet.from_state(fused.config, fused.recipe, fused.label_set, tensors, fused.origin)
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(loaded(x), fused(x))
    assert loaded.origin == {"model": "one"}
    assert not loaded.training
    taken = {tensor.data_ptr() for tensor in loaded.state_dict().values()}
    assert taken == {tensor.data_ptr() for tensor in tensors.values()}

    del tensors["decode_head.fpn_convs.1.bias"]
    with pytest.raises(CheckpointError, match=r"(?s)optimize the plain model again.*fpn_convs\.1\.bias"):
        FusedUPerNet.from_state(fused.config, fused.recipe, fused.label_set, tensors)
    with pytest.raises(CheckpointError, match="size mismatch"):
        FusedUPerNet.from_state(small(18, channels=24), fused.recipe, fused.label_set, fused.state_dict())


def test_a_forward_pass_changes_no_weight():
    """The last feature of a 32x32 picture is one pixel, where an expanded bias would be the bias itself."""
    fused = optimize_for_inference(randomised(small(18)))
    before = {key: value.clone() for key, value in fused.state_dict().items()}
    fused(torch.randn(1, 3, 32, 32))
    assert all(torch.equal(value, before[key]) for key, value in fused.state_dict().items())


def test_the_plain_model_can_go_and_nothing_is_held_twice():
    model = randomised(small(50, channels=32))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    fused = optimize_for_inference(model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    unused = [p for name, p in model.named_parameters() if name.startswith("auxiliary_head.")]
    own = sum(p.numel() for p in fused.parameters()) + sum(b.numel() for b in fused.buffers())
    assert own <= sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in unused)
    alive = [weakref.ref(p) for p in model.parameters()]
    del model, unused
    gc.collect()
    assert not any(ref() is not None for ref in alive)
    assert fused(torch.randn(1, 3, 64, 64)).isfinite().all()


def test_outputs_carry_no_gradient():
    fused = optimize_for_inference(randomised(small(18)))
    logits = fused(torch.randn(1, 3, 64, 64, requires_grad=True))
    assert not logits.requires_grad
    assert not any(p.requires_grad for p in fused.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near_float32(dtype):
    """The fused form of a half precision model is as near to the float32 model as the plain one is, within a factor of two."""
    model = randomised(small(50))
    x = torch.randn(1, 3, 96, 96)
    with torch.inference_mode():
        exact = model(x)
        half = model.to(dtype)
        fused = optimize_for_inference(half)
        plain, found = half(x.to(dtype)), fused(x.to(dtype))
    assert found.dtype == dtype
    error, plain_error = (float((y - exact).abs().mean()) for y in (found, plain))
    assert error <= 2 * plain_error


def test_autocast_does_not_reach_in():
    model = randomised(small(18))
    x = torch.randn(1, 3, 64, 64)
    fused = optimize_for_inference(model)
    expected = fused(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fused(x), expected)
        assert torch.equal(fused.decode_head(fused.backbone(x)), optimize_for_inference(model).decode_head(fused.backbone(x)))


def test_another_dtype_or_shape_is_refused():
    fused = optimize_for_inference(randomised(small(18)))
    for convert in (fused.half, fused.double, lambda: fused.to(torch.bfloat16)):
        with pytest.raises(ArgumentError, match=r"stays in torch\.float32\. Convert the plain model, then call optimize_for_inference"):
            convert()
    fused.to("cpu").float()
    for x in (torch.randn(1, 3, 64, 64).bfloat16(), torch.randn(3, 64, 64), torch.randn(1, 4, 64, 64)):
        with pytest.raises(ArgumentError, match=r"takes \(N, 3, H, W\) pictures in torch.float32, found"):
            fused(x)


def test_what_is_kept_from_inference_mode_serves_outside_it(monkeypatch):
    monkeypatch.setattr(winograd, "WINOGRAD_CHANNELS", 1)
    fused, x = optimize_for_inference(randomised(small(18))), torch.randn(1, 3, 70, 96)
    resized._kept_taps.cache_clear()
    winograd.winograd_matrices.cache_clear()
    with torch.inference_mode():
        expected = fused(x)
    assert torch.equal(fused(x), expected)
    assert torch.equal(optimize_for_inference(randomised(small(18)))(x), expected)


def test_global_defaults_change_nothing():
    fused, x = optimize_for_inference(randomised(small(18))), torch.randn(1, 3, 64, 96)
    expected = fused(x)
    resized._kept_taps.cache_clear()
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(fused(x), expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_what_cannot_be_optimized_is_refused():
    with pytest.raises(ArgumentError, match="takes a UPerNet, found Linear"):
        optimize_for_inference(torch.nn.Linear(2, 2))
    with pytest.raises(ArgumentError, match="Pass what was compiled"):
        optimize_for_inference(torch.compile(UPerNet(small(18))))
    with torch.device("meta"):
        model = UPerNet(small(18))
    with pytest.raises(ArgumentError, match="on the meta device and has no weights"):
        optimize_for_inference(model)
    model = UPerNet(small(18))
    model.decode_head.classifier = torch.nn.Conv2d(16, 11, 1)
    with pytest.raises(ArgumentError, match=r"has 11 classes and the model's config 7. Replace it with model.reset_classifier"):
        optimize_for_inference(model)


def test_a_kernel_without_huge_pages(monkeypatch):
    class Memory(mmap.mmap):
        def madvise(self, advice):
            raise OSError(22, "Invalid argument")

    monkeypatch.setattr(layers.mmap, "mmap", Memory)
    monkeypatch.setattr(layers, "_HUGE_PAGES_FROM", 1)
    model = randomised(small(18))
    compare(model, optimize_for_inference(model), torch.randn(1, 3, 64, 96))


def test_large_resize_matrices_are_not_kept(monkeypatch):
    fused, x = optimize_for_inference(randomised(small(18))), torch.randn(1, 3, 70, 90)
    resized._kept_taps.cache_clear()
    expected = fused(x)
    kept = resized._kept_taps.cache_info().currsize
    resized._kept_taps.cache_clear()
    monkeypatch.setattr(resized, "_TAPS_KEPT", 500)
    assert torch.equal(fused(x), expected)
    assert 0 < resized._kept_taps.cache_info().currsize < kept


def test_large_blocks_are_ordinary_tensors():
    block = layers.empty((3, 1 << 22), torch.empty(0))
    block.fill_(2)
    assert block.shape == (3, 1 << 22)
    assert float(block.double().sum()) == 6 * (1 << 22)
    kept = block[1, 5:9]
    del block
    gc.collect()
    assert kept.tolist() == [2, 2, 2, 2]


@pytest.mark.parametrize(
    "config",
    [
        swin.SwinConfig(embed_dim=8, depths=(1, 2, 1, 1), num_heads=(1, 1, 2, 2), window=2, eps=1e-1, embed_eps=1e-2, feature_eps=1e-3),
        convnext.ConvNeXtConfig(depths=(1, 1, 1, 1), widths=(8, 8, 16, 16), eps=1e-1, downsample_eps=1e-2),
    ],
    ids=lambda config: config.kind,
)
def test_each_layer_norm_keeps_its_epsilon(config):
    backbone = lively(uz.UPerNetConfig(backbone=config, num_classes=3, channels=8)).backbone.double()
    x = torch.randn(1, 3, 70, 99, dtype=torch.float64)
    with torch.no_grad():
        for plain, fused in zip(backbone(x), backbone.fuse()(x), strict=True):
            torch.testing.assert_close(fused, plain, rtol=1e-10, atol=1e-10)
