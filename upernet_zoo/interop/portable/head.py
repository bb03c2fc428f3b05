"""Decode head and neck as `models.fused` computes them, in a form that graphs of free sizes have.

The same algebra as that of the fused model, which `models.fused.model` explains; what is different is how it is written down. torch.export
cannot prove that these forms fit sizes that are free. For ONNX two parts are therefore opaque while it traces, operators of the domain
`upernet_zoo` that `lowering` replaces by ordinary ones: a Winograd convolution, and a sum of convolutions of resized maps. Run as plain
torch, and for a program of torch.export of one size, they are computed here.

Maps are (N, H, W, C).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...config import UPerNetConfig
from ...models.fused.layers import fold
from ...models.fused.winograd import TILE, winograd_matrices
from ...models.heads import UPerHead, adaptive_average_pool
from ...models.knet import KNetHead, refine
from ...models.layers import resize
from ...models.necks import MultiLevelNeck

__all__ = ["DOMAIN", "PortableHead", "PortableNeck", "resize_taps"]

DOMAIN = "upernet_zoo"  # of the operators that `lowering` replaces
# The convolution at stride 16, where maps are small, is Winograd's up to this width: one of 1024 channels takes 113 MB more, with
# which the file of BEiT-L would pass the 2 GB of ONNX.
_WINOGRAD_AT_16 = 512


def _fixed(x: Tensor) -> nn.Parameter:
    return nn.Parameter(x.float().contiguous(), requires_grad=False)


def _folded(block: Any) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution with its batch norm."""
    return fold(block.conv, block.bn)


def resize_taps(size: int, out_size: int, align_corners: bool, like: Tensor) -> Tensor:
    """(out_size, 3 * size): the matrix that resizes an axis bilinearly, and the same shifted by a row up and down (zeros enter).

    Column 3 * j + k is of input j and of tap k of a 3x3 convolution. All of it is arithmetic: A[i, j] = max(0, 1 - |source(i) - j|).
    """
    i = torch.arange(out_size, dtype=like.dtype, device=like.device)[:, None] + torch.arange(-1, 2, dtype=like.dtype, device=like.device)
    source = i * ((size - 1) / max(out_size - 1, 1)) if align_corners else (i + 0.5) * (size / out_size) - 0.5
    j = torch.arange(size, dtype=like.dtype, device=like.device)
    matrix = F.relu(1 - (source.clamp(0, size - 1)[:, None] - j[:, None]).abs())
    return (matrix * ((i >= 0) & (i < out_size))[:, None]).flatten(1)


class Pointwise(nn.Module):
    """A 1x1 convolution with bias: a product over channels."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = _fixed(weight[:, :, 0, 0].T), _fixed(bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, in_channels) -> (N, H, W, out_channels)."""
        return x @ self.weight + self.bias


class Direct(nn.Module):
    """A 3x3 convolution with bias, the runtime's own."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = _fixed(weight), _fixed(bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, in_channels) -> (N, H, W, out_channels)."""
        return F.conv2d(x.permute(0, 3, 1, 2), self.weight, self.bias, padding=1).permute(0, 2, 3, 1)


class Winograd(nn.Module):
    """A 3x3 convolution with bias as Winograd's F(4x4, 3x3).

    36 strided slices (in ONNX one Gather) are all positions in the tiles, one product transforms them, 36 products over channels follow,
    one product transforms back: of the forms that were tried, the one that is fast in both ONNX Runtime and OpenVINO.

    Attributes:
        weight: (36, in_channels, out_channels).
    """

    def __init__(self, weight: Tensor, bias: Tensor, opaque: bool) -> None:
        super().__init__()
        bt, g, at = winograd_matrices()
        self.weight = _fixed((g @ weight.double() @ g.T).permute(2, 3, 1, 0).flatten(0, 1))
        self.bias = _fixed(bias)
        self.before, self.after = _fixed(torch.kron(bt, bt)), _fixed(torch.kron(at, at))
        self.opaque = opaque

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, in_channels) -> (N, H, W, out_channels)."""
        out_channels = self.bias.shape[0]
        if self.opaque:
            return _opaque("Winograd", (x, *self.tensors()), (*x.shape[:3], out_channels))
        count, height, width, channels = x.shape
        down, across = -(-height // TILE), -(-width // TILE)
        padded = F.pad(x, (0, 0, 1, TILE * across - width + 1, 1, TILE * down - height + 1))
        ends = TILE * down - TILE + 1, TILE * across - TILE + 1
        places = [padded[:, i : i + ends[0] : TILE, j : j + ends[1] : TILE] for i in range(TILE + 2) for j in range(TILE + 2)]
        tiles = (self.before @ torch.stack(places).flatten(1)).view(len(places), -1, channels)
        out = self.after @ torch.bmm(tiles, self.weight).flatten(1)
        out = out.view(TILE, TILE, count, down, across, out_channels).permute(2, 3, 0, 4, 1, 5)
        return out.reshape(count, TILE * down, TILE * across, out_channels)[:, :height, :width] + self.bias

    def tensors(self) -> tuple[Tensor, ...]:
        """What the operator takes beside the map."""
        return self.weight, self.bias, self.before, self.after


class ResizedSum(nn.Module):
    """A sum of 3x3 convolutions of maps that are resized to one size.

    Args:
        weights: (out_channels, in_channels, 3, 3) of each map.
        align_corners: of the resizes.
        opaque: an operator of its own while torch.export traces.

    Attributes:
        weights: (in_channels, 3 * out_channels) for each map and each ky: the three kx beside each other.
    """

    def __init__(self, weights: Sequence[Tensor], align_corners: bool, opaque: bool) -> None:
        super().__init__()
        self.weights = nn.ParameterList(_fixed(part) for weight in weights for part in weight.permute(2, 1, 3, 0).flatten(2))
        self.channels = weights[0].shape[0]
        self.align_corners, self.opaque = align_corners, opaque

    def forward(self, maps: Sequence[Tensor], like: Tensor) -> Tensor:
        """Maps (N, h, w, in_channels) -> (N, H, W, out_channels), N, H and W of `like`."""
        count, height, width = like.shape[:3]
        if self.opaque:
            shape = (count, height, width, self.channels)
            return _opaque("ResizedSum", (like, *maps, *self.weights), shape, align_corners=self.align_corners)
        rows, down = [], []
        for i, x in enumerate(maps):
            across = resize_taps(x.shape[2], width, self.align_corners, x)
            products = [(across @ (x @ self.weights[3 * i + k]).view(count, x.shape[1], -1, self.channels)).flatten(2) for k in range(3)]
            rows.append(torch.stack(products, 2).flatten(1, 2))
            down.append(resize_taps(x.shape[1], height, self.align_corners, x))
        return (torch.cat(down, 1) @ torch.cat(rows, 1)).view(count, height, width, self.channels)


class Fuse(nn.Module):
    """The end of the decode head at the finest stride: a 3x3 convolution over the finest map and the resized others, ReLU, the classifier.

    With Winograd's convolution it is one operator, which `lowering` computes piece by piece.

    Args:
        own: convolution of the finest map.
        resized: those of the others.
        classifier: None: none is applied.
    """

    def __init__(self, own: Winograd | Direct, resized: ResizedSum, classifier: Pointwise | None) -> None:
        super().__init__()
        self.own, self.resized, self.classifier = own, resized, classifier

    def forward(self, x: Tensor, maps: Sequence[Tensor]) -> Tensor:
        """(N, H, W, channels) and maps (N, h, w, channels) -> (N, H, W, num_classes), or channels without a classifier."""
        if isinstance(self.own, Winograd) and self.own.opaque:
            classifier = () if self.classifier is None else (self.classifier.weight, self.classifier.bias)
            shape = (*x.shape[:3], (classifier or self.own.tensors())[1].shape[0])
            inputs = (x, *self.own.tensors(), *classifier, *maps, *self.resized.weights)
            return _opaque("Fuse", inputs, shape, align_corners=self.resized.align_corners, maps=len(maps))
        fused = F.relu(self.own(x) + self.resized(maps, x))
        return fused if self.classifier is None else self.classifier(fused)


def _opaque(name: str, inputs: Sequence[Tensor], shape: Sequence[int], **attributes: Any) -> Tensor:
    return torch.onnx.ops.symbolic(f"{DOMAIN}::{name}", inputs, attributes, dtype=inputs[0].dtype, shape=shape, version=1)


class PortableHead(nn.Module):
    """A decode head, called like the plain one.

    Args:
        head: whose weights it takes, batch norm folded.
        config: of the model.
        winograd: the 3x3 convolutions at the strides where it is worth it are Winograd's; else the runtime's own.
        opaque: for ONNX; see the module.
    """

    def __init__(self, head: UPerHead, config: UPerNetConfig, *, winograd: bool, opaque: bool) -> None:
        super().__init__()
        align_corners, channels, last = config.align_corners, config.channels, config.feature_channels[-1]
        self.align_corners, self.pool_scales = align_corners, config.pool_scales

        def conv3x3(weight: Tensor, bias: Tensor) -> Winograd | Direct:
            return Winograd(weight, bias, opaque) if winograd else Direct(weight, bias)

        pooling = head.pyramid_pooling
        self.pool_convs = nn.ModuleList(Pointwise(*_folded(branch)) for branch in pooling.branches)
        weight, bias = _folded(pooling.bottleneck)
        own, *pooled = weight.split([last, *[channels] * len(config.pool_scales)], 1)
        self.pool_own, self.pool_resized = Direct(own, bias), ResizedSum(pooled, align_corners, opaque)
        self.lateral_convs = nn.ModuleList(Pointwise(*_folded(block)) for block in head.lateral_convs)
        *finer, coarsest = head.fpn_convs
        self.fpn_convs = nn.ModuleList(conv3x3(*_folded(block)) for block in finer)
        self.fpn_convs.append((conv3x3 if channels <= _WINOGRAD_AT_16 else Direct)(*_folded(coarsest)))
        weight, bias = _folded(head.fpn_bottleneck)
        own, *others = weight.split(channels, 1)
        classifier = Pointwise(head.classifier.weight, cast(Tensor, head.classifier.bias))
        self.updates = head.updates if isinstance(head, KNetHead) else None
        self.fuse = Fuse(conv3x3(own, bias), ResizedSum(others, align_corners, opaque), classifier if self.updates is None else None)
        self.classifier = None if self.updates is None else classifier

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Four features (N, C, h, w) -> logits (N, num_classes, h, w) at the first one's size."""
        *lower, last = (feature.permute(0, 2, 3, 1) for feature in features)
        pooled = [adaptive_average_pool(features[-1], bins).permute(0, 2, 3, 1) for bins in self.pool_scales]
        pooled = [F.relu(conv(x)) for conv, x in zip(self.pool_convs, pooled)]
        maps = [F.relu(self.pool_own(last) + self.pool_resized(pooled, last))]
        for lateral, x in zip(reversed(self.lateral_convs), reversed(lower)):
            maps.insert(0, F.relu(lateral(x)) + _resized(maps[0], x, self.align_corners))
        finest, *others = [F.relu(conv(x)) for conv, x in zip(self.fpn_convs, maps)] + maps[-1:]
        fused: Tensor = self.fuse(finest, others)
        if self.updates is None or self.classifier is None:
            return fused.permute(0, 3, 1, 2)
        logits = self.classifier(fused).permute(0, 3, 1, 2)
        return refine(self.updates, fused.permute(0, 3, 1, 2), logits, self.classifier.weight.T)[-1]


def _resized(x: Tensor, like: Tensor, align_corners: bool) -> Tensor:
    """(N, h, w, C) -> (N, H, W, C), H and W of `like`."""
    return resize(x.permute(0, 3, 1, 2), like.shape[1:3], align_corners).permute(0, 2, 3, 1)


class PortableNeck(nn.Module):
    """A `MultiLevelNeck`, called like it: the 3x3 convolution of an enlarged map is a `ResizedSum`.

    Args:
        neck: whose weights it takes.
        opaque: for ONNX; see the module.
    """

    def __init__(self, neck: MultiLevelNeck, opaque: bool) -> None:
        super().__init__()
        self.scales = neck.config.scales
        laterals: Any = neck.lateral_convs
        convs: Any = neck.convs
        self.laterals = nn.ModuleList(Pointwise(conv.weight, conv.bias) for conv in laterals)
        self.convs = nn.ModuleList(
            ResizedSum([conv.weight], False, opaque) if scale > 1 else Direct(conv.weight, conv.bias)
            for conv, scale in zip(convs, self.scales)
        )
        self.biases = nn.ParameterList(_fixed(conv.bias) for conv in convs)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Four features (N, C, h, w) -> (N, out_channels, floor(h * scale), floor(w * scale))."""
        made = []
        for feature, lateral, conv, bias, scale in zip(features, self.laterals, self.convs, self.biases, self.scales):
            x = lateral(feature.permute(0, 2, 3, 1))
            if isinstance(conv, ResizedSum):
                size = [side * int(scale) for side in x.shape[1:3]]
                out = conv([x], x.new_empty((x.shape[0], *size, 1))) + bias
            else:
                if scale < 1:
                    x = F.interpolate(x.permute(0, 3, 1, 2), scale_factor=scale, mode="bilinear", align_corners=False).permute(0, 2, 3, 1)
                out = conv(x)
            made.append(out.permute(0, 3, 1, 2))
        return made
