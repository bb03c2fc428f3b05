"""The fused model: `UPerNet` for inference, the same answers with a fifth of the multiplications in the head.

What is different from the plain modules, none of which it replaces:

- Batch norm is folded into its convolution; there is no auxiliary head and no dropout.
- A 1x1 convolution and a bilinear resize commute (they act on different axes), and a 3x3 convolution is nine shifted 1x1
  convolutions. So a 3x3 convolution over [x, resize(y), ...] is computed as conv3x3(x) plus, for each smaller map y, nine 1x1
  products at y's own size whose results are resized and summed: `sum over ky, kx of A_ky (W[ky, kx] y) A_kx^T` with the resize
  matrices of both axes, shifted by one row for each tap (`ResizedConv3x3`). Neither the resized maps nor their concatenation exist.
- Wide 3x3 convolutions in float32 on the CPU run as Winograd's F(4x4, 3x3): 36 multiplications where there were 144 (Lavin & Gray
  2016, "Fast Algorithms for Convolutional Neural Networks"), a few rows of tiles at a time so that the transforms stay in cache.
- Maps are kept pixel by pixel, (N, H, W, C): a 1x1 convolution is then one matrix product, and rows of a map are rows of a matrix.

It needs nothing but plain torch. On CUDA, and in float16 or bfloat16, the 3x3 convolutions are torch's own; the rest is the same.
Speed has been measured on CPUs only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from ...config import Recipe, UPerNetConfig
from ...description import Description
from ...errors import ArgumentError, CheckpointError
from ...labels import LabelSet
from ..backbones._base import build_backbone
from ..heads import UPerHead, at_least_float32, feature_values, pooling_matrix
from ..knet import KernelUpdate, KNetHead, refine
from ..necks import build_neck
from ..scripting import NotScriptable
from ..upernet import UPerNet
from . import winograd as _winograd
from .layers import DirectConv, Pointwise, empty, fold, inference, parameter, set_weights
from .resized import ResizedConv3x3, ResizedSum, add_resized
from .winograd import TILE, Rows, WinogradConv3x3, store_band

__all__ = ["FusedUPerHead", "FusedUPerNet", "optimize_for_inference"]


class FusedUPerHead(nn.Module):
    """The decode head without concatenations and resized maps, batch norm folded."""

    def __init__(self, config: UPerNetConfig, winograd: bool) -> None:
        super().__init__()
        self.config = config
        *lower, last = config.feature_channels
        channels = config.channels
        conv3x3 = WinogradConv3x3 if winograd and channels >= _winograd.WINOGRAD_CHANNELS else DirectConv
        self.align_corners = config.align_corners
        self.pool_scales = config.pool_scales
        self.pool_convs = nn.ModuleList(Pointwise(last, channels) for _ in config.pool_scales)
        self.pool_bias = parameter(channels)
        self.pool_bottleneck = nn.ModuleList(ResizedConv3x3(c, channels) for c in (last, *[channels] * len(config.pool_scales)))
        self.lateral_convs = nn.ModuleList(Pointwise(c, channels) for c in lower)
        self.fpn_convs = nn.ModuleList(conv3x3(channels, channels) for _ in lower)
        self.fpn_bottleneck = conv3x3(channels, channels)
        self.fpn_resized = nn.ModuleList(ResizedConv3x3(channels, channels) for _ in lower)
        self.classifier = Pointwise(channels, config.num_classes)
        self.updates = None
        if config.kernel_updates is not None:
            self.updates = nn.ModuleList(KernelUpdate(channels, config.kernel_updates) for _ in range(config.kernel_updates.stages))

    @inference
    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Four features (N, C, h, w) -> logits (N, num_classes, h, w) at the first one's size, channels last in memory."""
        if self.updates is None:
            return self._fused(features, self.classifier, self.config.num_classes)
        feature = self._fused(features, lambda x: x, self.config.channels)
        logits = self.classifier(feature.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return refine(self.updates, feature, logits, self.classifier.weight.T)[-1]

    def _fused(self, features: Sequence[Tensor], classify: Callable[[Tensor], Tensor], count: int) -> Tensor:
        """Four features -> what `classify` makes of the fused map (or rows of it), (N, h, w, C) -> (N, h, w, count): (N, count, h, w)."""
        finest, *features = (f.permute(0, 2, 3, 1).contiguous() for f in features)
        maps = [self._pyramid_pooling(features.pop())]
        for lateral, feature in zip(self.lateral_convs[:0:-1], features[::-1]):
            x = lateral(feature).relu_()
            add_resized(x, maps[0], self.align_corners)
            maps.insert(0, x)
        above = maps[0]
        maps = [conv(m).relu_() for conv, m in zip(self.fpn_convs[1:], maps)] + maps[-1:]
        fuse = self._fuse_whole if isinstance(self.fpn_bottleneck, DirectConv) else self._fuse_in_bands
        return fuse(finest, above, maps, classify, count).permute(0, 3, 1, 2)

    def _pyramid_pooling(self, x: Tensor) -> Tensor:
        """(N, h, w, in_channels) -> (N, h, w, channels)."""
        maps = [x] + [conv(_pool(x, bins)).relu_() for bins, conv in zip(self.pool_scales, self.pool_convs)]
        out = self.pool_bias.repeat(*x.shape[:3], 1)
        for n, target in enumerate(out):
            self._resized_sum(self.pool_bottleneck, [m[n] for m in maps], target).add_to(target[None], 0)
        return out.relu_()

    def _fuse_whole(
        self, feature: Tensor, above: Tensor, maps: Sequence[Tensor], classify: Callable[[Tensor], Tensor], count: int
    ) -> Tensor:
        """The finest feature, the map that is to be added to its lateral, and the other three maps -> as `_fused`, channels last."""
        x = self.lateral_convs[0](feature).relu_()
        add_resized(x, above, self.align_corners)
        out = self.fpn_bottleneck(self.fpn_convs[0](x).relu_())
        for n, target in enumerate(out):
            self._resized_sum(self.fpn_resized, [m[n] for m in maps], target).add_to(target[None], 0)
        return classify(out.relu_())

    def _fuse_in_bands(
        self, feature: Tensor, above: Tensor, maps: Sequence[Tensor], classify: Callable[[Tensor], Tensor], count: int
    ) -> Tensor:
        """The same, a few rows at a time, so that no map with all channels exists at the finest stride."""
        logits = empty((*feature.shape[:3], count), feature)
        for n, target in enumerate(logits):
            resized = self._resized_sum(self.fpn_resized, [m[n] for m in maps], target)
            rows = self._finest_rows(feature[n], above[n])
            bottleneck: Any = self.fpn_bottleneck
            for first, band in bottleneck.bands(rows, target.shape[:2], target):
                resized.add_to(band, first, TILE)
                store_band(target, first, classify(band.relu_()))
        return logits

    def _finest_rows(self, feature: Tensor, above: Tensor) -> Callable[[int, int], Tensor]:
        """Rows of the finest map, ready for `fpn_bottleneck`: lateral, plus the map above, and its 3x3 convolution."""
        height, width, _ = feature.shape
        lateral: Any = self.lateral_convs[0]
        conv: Any = self.fpn_convs[0]
        channels = lateral.bias.shape[0]
        flat = above[None]
        size = (above.shape[:2], lambda low, high: flat[:, low:high])
        resized = ResizedSum((height, width), [size], self.align_corners, 1, feature)

        def add_lateral(low: int, high: int, out: Tensor) -> None:
            lateral(feature[low:high], out.view(-1, channels)).relu_()
            resized.add_to(out.view(1, high - low, width, channels), low)

        at_once = TILE * conv.band_rows(width)
        sums = Rows((1, height, width * channels), at_once, add_lateral, feature)
        # what a 3x3 convolution over so many rows of tiles asks for is a row more: the first band has it, so that none is made in advance
        bands = conv.bands(lambda low, high: sums(low, high)[0], (height, width), feature, more=1)

        def convolve(low: int, high: int, out: Tensor) -> None:
            _, band = next(bands)
            store_band(out.view(high - low, width, channels), 0, band.relu_())

        rows = Rows((1, height, width * channels), at_once, convolve, feature, more=TILE)
        return lambda low, high: rows(low, high)[0]

    def peak_values(self, pixels: int) -> float:
        """How many numbers are held at once, at most, for the logits of so many pixels, logits left out.

        Picture and features, and five maps at the second feature's stride; what works in bands is the same for every size.
        """
        config = self.config
        finest, second, *_ = config.feature_reductions
        values = pixels * (config.in_channels + 5 * config.channels / second**2) + feature_values(config, pixels) + 2**16 * config.channels
        if isinstance(self.fpn_bottleneck, DirectConv):  # torch's own convolution takes whole maps
            values += pixels * 4 * config.channels / finest**2
        return values

    @torch.no_grad()
    def fill(self, head: UPerHead) -> None:
        """Take the weights of a plain head, computed in float64."""
        config, like = self.config, head.classifier.weight
        for target, branch in zip(self.pool_convs, head.pyramid_pooling.branches):
            set_weights(target, *fold(branch.conv, branch.bn), like)
        for target, lateral in zip(self.lateral_convs, head.lateral_convs):
            set_weights(target, *fold(lateral.conv, lateral.bn), like)
        for target, conv in zip(self.fpn_convs, head.fpn_convs):
            set_weights(target, *fold(conv.conv, conv.bn), like)
        weight, bias = fold(head.pyramid_pooling.bottleneck.conv, head.pyramid_pooling.bottleneck.bn)
        self.pool_bias = nn.Parameter(bias.to(like), requires_grad=False)
        widths = [config.feature_channels[-1]] + [config.channels] * len(config.pool_scales)
        for target, part in zip(self.pool_bottleneck, weight.split(widths, 1)):
            set_weights(target, part, None, like)
        weight, bias = fold(head.fpn_bottleneck.conv, head.fpn_bottleneck.bn)
        own, *resized = weight.split(config.channels, 1)
        set_weights(self.fpn_bottleneck, own, bias, like)
        for target, part in zip(self.fpn_resized, resized):
            set_weights(target, part, None, like)
        if self.updates is not None and isinstance(head, KNetHead):
            self.updates.load_state_dict({key: value.clone() for key, value in head.updates.state_dict().items()}, assign=True)
        bias = cast(Tensor, head.classifier.bias)
        set_weights(self.classifier, head.classifier.weight.double(), bias.double(), like)

    def _resized_sum(self, convs: Iterable[Any], maps: Sequence[Tensor], out: Tensor) -> ResizedSum:
        """Of maps (h, w, channels) of one picture, to be added to the 3x3 convolution `out` (H, W, channels)."""
        products = [(m.shape[:2], conv.products(m)) for m, conv in zip(maps, convs)]
        return ResizedSum(out.shape[:2], products, self.align_corners, 3, out)


def _pool(x: Tensor, bins: int) -> Tensor:
    """Adaptive average pooling, (N, h, w, C) -> (N, bins, bins, C), computed in float32 at least."""
    count, height, width, channels = x.shape
    wide = at_least_float32(x)
    rows = pooling_matrix(height, bins, wide) @ wide.view(count, height, width * channels)
    return (pooling_matrix(width, bins, wide) @ rows.view(count, bins, width, channels)).to(x.dtype)


class FusedUPerNet(NotScriptable, nn.Module):
    """A `UPerNet` for inference only, made by `optimize_for_inference`.

    It is called like the plain model: `model(x)`, or `model.logits(x)` for the logits at the first feature's stride. Its tensors are
    not those of the plain model; `upernet_zoo.optimized` saves and loads them. Its dtype is settled: for another one, fuse a
    plain model in that dtype. For torch.compile, torch.export and ONNX take the plain model: which products are computed here is
    decided by each picture's size.

    Args:
        config, recipe, label_set: of the plain model.
        winograd: wide 3x3 convolutions of the head as Winograd's, which needs float32; else torch's own.

    Attributes:
        config, recipe, label_set, origin: as of the plain model.
        backbone: `backbone(x)` -> four features.
        neck: `neck(features)` -> four features; None if the model has none.
        decode_head: `decode_head(features)` -> logits at the first feature's stride.
    """

    def __init__(self, config: UPerNetConfig, recipe: Recipe, label_set: LabelSet, winograd: bool) -> None:
        super().__init__()
        self.config = config
        self.recipe = recipe
        self.label_set = label_set
        self.origin: dict[str, str] = {}
        self.backbone = build_backbone(config.backbone).eval().fuse()
        self.neck = None if config.neck is None else build_neck(config.neck, config.backbone).eval().fuse()
        self.decode_head = FusedUPerHead(config, winograd)

    @inference
    def forward(self, x: Tensor) -> Tensor:
        """Normalized picture (N, in_channels, H, W), H and W from 32 up -> logits (N, num_classes, H, W), channels last in memory."""
        logits = self.logits(x)
        count, classes = logits.shape[:2]
        out = empty((count, *x.shape[2:], classes), logits).permute(0, 3, 1, 2)
        torch.ops.aten.upsample_bilinear2d.out(logits, x.shape[2:], self.config.align_corners, None, None, out=out)
        return out

    @inference
    def features(self, x: Tensor) -> list[Tensor]:
        """Normalized picture (N, in_channels, H, W) -> the four features that the head takes."""
        weight = self.decode_head.classifier.weight
        if x.dim() != 4 or x.shape[1] != self.config.in_channels or x.dtype != weight.dtype:
            expected = f"(N, {self.config.in_channels}, H, W) pictures in {weight.dtype}"
            raise ArgumentError(f"The fused model takes {expected}, found {tuple(x.shape)} in {x.dtype}.")
        features: list[Tensor] = self.backbone(x)
        if self.neck is not None:
            features = self.neck(features)
        return features

    def logits(self, x: Tensor) -> Tensor:
        """Normalized picture (N, in_channels, H, W) -> logits (N, num_classes, h, w) at the first feature's stride."""
        logits: Tensor = self.decode_head(self.features(x))
        return logits

    def peak_values(self, pixels: int) -> float:
        """How many numbers inference holds at once, at most, for so many pixels of input, logits left out; as measured on the CPU."""
        backbone: Any = self.backbone
        neck: Any = self.neck
        values: float = max(backbone.peak_values(pixels), self.decode_head.peak_values(pixels))
        return values if neck is None else max(values, feature_values(self.config, pixels) + neck.peak_values(pixels))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        own = self.decode_head.classifier.weight.dtype
        if fn(torch.empty(0, dtype=own, device="cpu")).dtype != own:  # Winograd's form is for float32 alone
            raise ArgumentError(f"A fused model stays in {own}. Convert the plain model, then call optimize_for_inference.")
        return cast(Self, super()._apply(fn, recurse))

    def derived_state(self, tensors: Mapping[str, Tensor], owner: str) -> dict[str, Tensor]:
        """The state dict of a fused model like this one that is made from the plain model with these tensors."""
        plain = UPerNet.from_state(Description(self.config, self.recipe, self.label_set), tensors, owner)
        return optimize_for_inference(plain).state_dict()

    @classmethod
    def from_state(
        cls,
        config: UPerNetConfig,
        recipe: Recipe,
        label_set: LabelSet,
        state_dict: Mapping[str, Tensor],
        origin: Mapping[str, str] | None = None,
    ) -> FusedUPerNet:
        """The model with the tensors of a `state_dict`, taken as they are (mapped from a file, for instance), in eval mode.

        Raises:
            CheckpointError: the tensors are not those of this architecture.
        """
        bottleneck = state_dict.get("decode_head.fpn_bottleneck.weight")
        winograd = bottleneck is not None and bottleneck.shape[:2] == (TILE + 2, TILE + 2)
        with torch.device("meta"):
            model = cls(config, recipe, label_set, winograd)
        try:
            model.load_state_dict(state_dict, assign=True)
        except RuntimeError as error:
            raise CheckpointError(f"Not the state of a fused UPerNet of this config; optimize the plain model again. {error}") from None
        model.origin = dict(origin or {})
        return model.requires_grad_(False).eval()


def optimize_for_inference(model: UPerNet) -> FusedUPerNet:
    """The fused form of a model: the same answers (in float32 to about 1e-6 of the largest logit), with tensors of its own.

    The plain model is not changed and can be freed. The form is chosen for the device and dtype that it has now: to change them, change
    the plain model first. On the CPU in float32 the head runs as Winograd convolutions; elsewhere as torch's own. Later changes of the
    plain model's weights are not seen.

    Args:
        model: a plain `UPerNet` with weights, in train or eval mode.

    Returns:
        A `FusedUPerNet` in eval mode; its outputs carry no gradient.

    Raises:
        ArgumentError: something else than a `UPerNet`, or one on the meta device.

    Examples:
        >>> import torch
        >>> import upernet_zoo as uz
        >>> model = uz.create_model("demo")
        >>> x = torch.rand(1, 3, 64, 96)
        >>> with torch.inference_mode():
        ...     plain, fused = model(x), uz.optimize_for_inference(model)(x)
        >>> bool((plain - fused).abs().max() < 5e-5 * plain.abs().max())
        True
    """
    if not isinstance(model, UPerNet):
        compiled = " Pass what was compiled, model._orig_mod." if hasattr(model, "_orig_mod") else ""
        raise ArgumentError(f"optimize_for_inference takes a UPerNet, found {type(model).__name__}.{compiled}")
    weight = model.decode_head.classifier.weight
    if weight.device.type == "meta":
        raise ArgumentError("optimize_for_inference: the model is on the meta device and has no weights. Load them first.")
    if len(weight) != model.config.num_classes:
        raise ArgumentError(
            f"optimize_for_inference: the classifier has {len(weight)} classes and the model's config {model.config.num_classes}. Replace "
            "it with model.reset_classifier(label_set), which keeps the two together."
        )
    winograd = weight.device.type == "cpu" and weight.dtype == torch.float32
    state = dict(_fused_state(model, winograd))
    return FusedUPerNet.from_state(model.config, model.recipe, model.label_set, state, model.origin)


@torch.no_grad()
def _fused_state(model: UPerNet, winograd: bool) -> Iterator[tuple[str, Tensor]]:
    """The tensors of the fused model, none of them shared with the plain one."""
    for name, plain in (("backbone", model.backbone), ("neck", model.neck)):
        if plain is not None:
            shared = {value.data_ptr() for value in plain.state_dict().values()}
            for key, value in plain.fuse().state_dict().items():
                yield f"{name}.{key}", value.clone() if value.data_ptr() in shared else value
    with torch.device("meta"):
        head = FusedUPerHead(model.config, winograd)
    head.fill(model.decode_head)
    for key, value in head.state_dict().items():
        yield f"decode_head.{key}", value
