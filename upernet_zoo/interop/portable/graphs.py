"""What is exported: logits of normalized pictures, at their size or a stride, or labels of uint8 ones; and the sizes that a graph takes."""

from __future__ import annotations

import bisect
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...models.layers import resize
from ...models.upernet import UPerNet
from .network import PortableUPerNet

__all__ = ["MAX_BATCH", "MAX_SIDE", "MIN_SIDE", "Labels", "Logits", "StrideLogits", "program", "smallest_side"]

MIN_SIDE = 33  # what no backbone falls below: at 32 the last feature is 1x1
MAX_SIDE = 1 << 14
TRACED_SIZE = 1024, 1056  # (height, width): larger than any window of attention in the last stage, so that no number of windows is 1
MAX_BATCH = 1 << 10
_PLAIN: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}  # whatever torch's defaults are set to


class Logits(nn.Module):
    """What is exported without `labels`: normalized pictures (N, C, H, W) float32 -> logits (N, num_classes, H, W) float32."""

    input_name, output_name = "pictures", "logits"
    output_axes = ("batch", "height", "width")  # those that may be free
    spatial = (2, 3)  # dimensions of height and width

    def __init__(self, model: UPerNet | PortableUPerNet) -> None:
        super().__init__()
        self.model = model

    def forward(self, pictures: Tensor) -> Tensor:
        """(N, C, H, W) float32 -> (N, num_classes, H, W) float32."""
        logits: Tensor = self.model(pictures)
        return logits

    def example(self, batch: int, height: int, width: int) -> Tensor:
        """Random input."""
        return torch.randn(batch, self.model.config.in_channels, height, width, generator=torch.Generator("cpu").manual_seed(0), **_PLAIN)

    def error(self, pictures: Tensor, found: Tensor) -> float:
        """Largest difference from what the model gives, as a part of the largest logit."""
        expected = self(pictures)
        return float((found - expected).abs().max() / expected.abs().max())

    def label_error(self, pictures: Tensor, found: Tensor) -> float:
        """That of the labels that logits give: see `Labels.error`."""
        return _shortfall(self(pictures), found.argmax(1))


class StrideLogits(Logits):
    """What `Segmenter` runs: pictures (N, C, H, W) float32 -> logits (N, num_classes, h, w) float32 at the first feature's stride."""

    output_name = "stride_logits"
    output_axes = ("batch", "rows", "columns")

    def forward(self, pictures: Tensor) -> Tensor:
        """(N, C, H, W) float32 -> (N, num_classes, h, w) float32."""
        logits: Tensor = self.model.logits(pictures)
        return logits


class Labels(nn.Module):
    """What is exported with `labels`: pictures (N, H, W, C) uint8, RGB -> train ids (N, H, W) uint8, or int16 above 255 classes.

    `Segmenter` in one graph, for one view in whole mode: the same resize on 8-bit values, normalization, network and two resizes of
    the logits. In slide mode it is one window of the resized picture.
    """

    input_name, output_name = "pictures", "labels"
    output_axes = ("batch", "height", "width")
    spatial = (1, 2)

    def __init__(self, model: UPerNet | PortableUPerNet) -> None:
        super().__init__()
        self.model = model
        self.scale = model.recipe.scale if model.recipe.mode == "whole" else None
        self.mean: Tensor
        self.std: Tensor
        self.smallest = 1 if self.scale is None else smallest_side(model)
        self.register_buffer("mean", torch.tensor(model.recipe.mean, **_PLAIN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(model.recipe.std, **_PLAIN)[:, None, None], persistent=False)

    def logits(self, pictures: Tensor) -> Tensor:
        """(N, num_classes, H, W) float32, at the pictures' own size."""
        size = pictures.shape[1:3]
        if self.scale is not None:
            pictures = _resize_uint8(pictures, *_fit(size[0], size[1], self.scale, self.smallest))
        x = (pictures.permute(0, 3, 1, 2).float() - self.mean) / self.std
        logits: Tensor = self.model(x)
        return logits if self.scale is None else resize(logits, size, self.model.config.align_corners)

    def forward(self, pictures: Tensor) -> Tensor:
        """(N, H, W, C) uint8 -> (N, H, W) uint8, or int16."""
        return self.logits(pictures).argmax(1).to(torch.uint8 if self.model.config.num_classes <= 255 else torch.int16)

    def example(self, batch: int, height: int, width: int) -> Tensor:
        """Random input, smooth as pictures are."""
        noise = torch.rand(batch, self.model.config.in_channels, 8, 8, generator=torch.Generator("cpu").manual_seed(0), **_PLAIN) * 255
        return F.interpolate(noise, (height, width), mode="bicubic").clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()

    def error(self, pictures: Tensor, found: Tensor) -> float:
        """By how much the logit of a label falls short of the largest at its pixel, at most, as a part of the largest of all."""
        return _shortfall(self.logits(pictures), found)

    label_error = error


def _shortfall(logits: Tensor, labels: Tensor) -> float:
    chosen = logits.gather(1, labels[:, None].long())[:, 0]
    return float((logits.amax(1) - chosen).max() / logits.abs().max())


def _fit(height: int, width: int, scale: tuple[int, int], smallest: int) -> list[int]:
    """`preprocess.fit` for sizes that torch.export keeps free, in whole numbers: floor(side * factor + 1/2)."""
    long, short = scale
    longest, shortest = torch.sym_max(height, width), torch.sym_min(height, width)
    fitted = []
    for side in (height, width):
        formula = torch.sym_min((2 * side * long + longest) // (2 * longest), (2 * side * short + shortest) // (2 * shortest))
        if not isinstance(formula, int):
            # through a tensor it becomes a new symbol: the network's sizes follow from it, and not from the formula
            formula = cast(int, torch.scalar_tensor(formula, dtype=torch.int64, device="cpu").item())
            torch._check(formula >= smallest)
            torch._check(formula <= long)
        fitted.append(formula)
    return fitted


def _resize_uint8(pictures: Tensor, height: int, width: int) -> Tensor:
    """`preprocess.resize_uint8` of (N, H, W, C) uint8 to (N, height, width, C) int32, equal in every value."""
    x = pictures.int()
    first, second, weight, other = _taps(x.shape[2], width, zero_outside=True)
    x = (x[:, :, first] * weight[:, None] + x[:, :, second] * other[:, None]) >> 4
    first, second, weight, other = _taps(x.shape[1], height, zero_outside=False)
    return ((x[:, first] * weight[:, None, None] >> 16) + (x[:, second] * other[:, None, None] >> 16) + 2) >> 2


def _taps(source: int, target: int, zero_outside: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`preprocess._taps`: both positions, int64, and their weights times 2048, int32."""
    lengths = [
        torch.scalar_tensor(length, dtype=torch.float64, device="cpu") for length in (target, source)
    ]  # ONNX would divide numbers in float32
    coordinate = ((torch.arange(target, dtype=torch.float64, device="cpu") + 0.5) * (1.0 / (lengths[0] / lengths[1])) - 0.5).float()
    floor = coordinate.floor()
    first, fraction = floor.long(), coordinate - floor
    if zero_outside:
        fraction = torch.where((first < 0) | (first >= source - 1), 0.0, fraction)
    weight, other = ((part * 2048).round().int() for part in (1 - fraction, fraction))
    return first.clamp(0, source - 1), (first + 1).clamp(0, source - 1), weight, other


def program(graph: Logits | Labels, size: tuple[int, int] | None) -> torch.export.ExportedProgram:
    """The traced graph: batch free, and height and width too without a `size`."""
    shapes = {0: torch.export.Dim("batch", max=MAX_BATCH)}
    if size is None:
        smallest = smallest_side(graph.model)
        shapes |= {axis: torch.export.Dim(name, min=smallest, max=MAX_SIDE) for axis, name in zip(graph.spatial, ("height", "width"))}
    with torch.no_grad():
        return torch.export.export(
            graph, (graph.example(2, *(size or TRACED_SIZE)),), dynamic_shapes=(shapes,), prefer_deferred_runtime_asserts_over_guards=True
        )


@torch.no_grad()
def smallest_side(model: UPerNet | PortableUPerNet) -> int:
    """From how many pixels on every convolution of backbone and neck gives two rows at least."""
    with torch.device("meta"):
        network = UPerNet(model.config).eval()
    rows: list[int] = []
    for part in (network.backbone, network.neck):
        for module in () if part is None else part.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(lambda module, inputs, output: rows.append(output.shape[2]))

    def fewest(side: int) -> int:
        rows.clear()
        network.features(torch.empty(1, model.config.in_channels, side, side, device="meta"))
        return min(rows)

    sides = range(MIN_SIDE, 1024)
    return sides[bisect.bisect_left(sides, 2, key=fewest)]
