"""The portable forms: against torch's own layers, and their operators in ONNX Runtime at sizes that nothing was traced at."""

import functools
import itertools

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from support.fixture import FAMILY, NAMES, Fixture
from torch import nn

import upernet_zoo as uz
from upernet_zoo.interop.portable import head, lowering
from upernet_zoo.interop.portable.network import PortableUPerNet, default_form

# (N, H, W) of the finest map; whole tiles of 4x4, parts of them, one row of them, several pieces with more or less of each
SIZES = ((1, 24, 36), (3, 25, 33), (2, 9, 70), (1, 67, 18), (2, 6, 6), (7, 6, 5), (5, 10, 13))  # of the last, pieces hold several


@functools.cache
def load(name):
    return uz.load_checkpoint(Fixture(name).checkpoint)


@pytest.mark.parametrize("form", ["fused", "direct"])
@pytest.mark.parametrize("name", FAMILY + NAMES)
def test_a_portable_form_gives_the_models_logits(name, form):
    model = load(name)
    portable = PortableUPerNet(model, form, opaque=False).eval()
    only = model.config.backbone.input_size
    for batch, size in ((1, (64, 96)), (3, (75, 131))) if only is None else ((2, only),):
        x = torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            expected, found = model(x), portable(x)
        assert (found - expected).abs().max() <= 5e-5 * expected.abs().max()


def test_a_narrow_head_is_exported_as_it_is():
    assert default_form(load(FAMILY[0])) == "plain"
    with torch.device("meta"):
        assert default_form(uz.UPerNet(uz.model_info("upernet_r50_512x512_160k_ade20k").config)) == "fused"


class Whole(nn.Module):
    """All opaque operators in one graph: a Winograd convolution, `Fuse` after it, and a lone sum of resized convolutions."""

    def __init__(self, conv, classifier, align_corners):
        super().__init__()
        own, *others = conv.weight.data.split(conv.out_channels, 1)
        resized = head.ResizedSum(others, align_corners, opaque=True)
        self.alone = head.Winograd(own, conv.bias.data, opaque=True)
        self.fuse = head.Fuse(self.alone, resized, head.Pointwise(classifier.weight.data, classifier.bias.data))
        self.unclassified = head.Fuse(self.alone, resized, None)

    def forward(self, x, *maps):
        return self.alone(x), self.fuse.resized(maps, x), self.fuse(x, maps), self.unclassified(x, maps)


@functools.cache
def exported(align_corners, channels=6, classes=5):
    """Two layers of torch in float64, and an ONNX model of the same before its operators are lowered."""
    torch.manual_seed(0)
    conv, classifier = nn.Conv2d(4 * channels, channels, 3, padding=1).double(), nn.Conv2d(channels, classes, 1).double()
    maps = [torch.randn(2, side, side + 1, channels) for side in (24, 12, 6, 3)]
    free = [{0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC} for _ in maps]
    names = [f"map{i}" for i in range(4)]
    shapes = {"x": free[0], "maps": tuple(free[1:])}
    graph = Whole(conv, classifier, align_corners).eval()
    program = torch.onnx.export(graph, tuple(maps), input_names=names, dynamic_shapes=shapes, dynamo=True, verbose=False)
    return conv, classifier, program.model_proto


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("tiles, across", [(1024, 32), (12, 3), (1, 1)])
def test_the_operators_give_what_torchs_layers_give(align_corners, tiles, across, monkeypatch):
    monkeypatch.setattr(lowering, "_TILES", tiles)
    monkeypatch.setattr(lowering, "_ACROSS", across)
    conv, classifier, proto = exported(align_corners)
    lowered = type(proto)()
    lowered.CopyFrom(proto)
    lowering.lower(lowered)
    assert {node.domain for node in lowered.graph.node} | {o.domain for o in lowered.opset_import} == {""}
    session = onnxruntime.InferenceSession(lowered.SerializeToString(), providers=["CPUExecutionProvider"])
    for (count, height, width), (a, b) in itertools.product(SIZES, ((2, 2), (1, 3))):
        generator = torch.Generator().manual_seed(height)
        sides = [(height, width)] + [(-(-height // a**i), -(-width // b**i)) for i in (1, 2, 3)]
        maps = [torch.randn(count, *side, 6, generator=generator) for side in sides]
        found = session.run(None, {f"map{i}": m.numpy() for i, m in enumerate(maps)})
        with torch.no_grad():
            x, *others = (m.permute(0, 3, 1, 2).double() for m in maps)
            others = [F.interpolate(m, x.shape[2:], mode="bilinear", align_corners=align_corners) for m in others]
            own, rest = conv.weight.split([6, 18], 1)
            fused = F.relu(conv(torch.cat([x, *others], 1)))
            expected = [F.conv2d(x, own, conv.bias, padding=1), F.conv2d(torch.cat(others, 1), rest, padding=1)]
            expected += [classifier(fused), fused]
        for one, other in zip(found, expected):
            np.testing.assert_allclose(one, other.permute(0, 2, 3, 1).numpy(), rtol=0, atol=1e-5 * other.abs().max().item())


@pytest.mark.parametrize("align_corners", [False, True])
def test_resize_matrices_are_torchs(align_corners):
    for size, out_size in ((5, 9), (7, 7), (3, 40), (6, 5), (1, 4)):
        x = torch.randn(1, 1, size, 1, dtype=torch.float64)
        expected = F.interpolate(x, (out_size, 1), mode="bilinear", align_corners=align_corners)[0, 0, :, 0]
        taps = head.resize_taps(size, out_size, align_corners, x).view(out_size, size, 3) * x.view(size, 1)
        for k, found in enumerate(taps.sum(1).T):
            padded = F.pad(expected, (1, 1))
            torch.testing.assert_close(found, padded[k : k + out_size], rtol=0, atol=1e-12)
