"""A whole model in a portable form."""

from __future__ import annotations

import copy

from torch import Tensor, nn

from ...models.fused.winograd import WINOGRAD_CHANNELS
from ...models.heads import at_least_float32
from ...models.layers import resize
from ...models.necks import MultiLevelNeck
from ...models.upernet import UPerNet
from .head import PortableHead, PortableNeck

__all__ = ["PortableUPerNet", "default_form"]


def default_form(model: UPerNet) -> str:
    """The fastest form on a CPU: "fused", or "plain" of a narrow head, where Winograd's convolution wins nothing."""
    return "fused" if model.config.channels >= WINOGRAD_CHANNELS else "plain"


class PortableUPerNet(nn.Module):
    """A model for export, called like the plain one: the plain backbone, and neck and head by the fused model's algebra.

    Args:
        model: whose weights it takes; those of the backbone are shared.
        form: "fused", or "direct" for 3x3 convolutions that are the runtime's own.
        opaque: for ONNX, see `head`; else for a program of torch.export of one size.
    """

    def __init__(self, model: UPerNet, form: str, opaque: bool) -> None:
        super().__init__()
        self.config, self.recipe = model.config, model.recipe
        self.backbone = model.backbone
        self.neck = PortableNeck(model.neck, opaque) if isinstance(model.neck, MultiLevelNeck) else model.neck
        self.decode_head = PortableHead(model.decode_head, model.config, winograd=form == "fused", opaque=opaque)

    def forward(self, x: Tensor) -> Tensor:
        """Normalized picture (N, in_channels, H, W) -> logits (N, num_classes, H, W)."""
        return resize(self.logits(x), x.shape[2:], self.config.align_corners)

    def logits(self, x: Tensor) -> Tensor:
        """Normalized picture (N, in_channels, H, W) -> logits (N, num_classes, h, w) at the first feature's stride."""
        features = self.backbone(x)
        if self.neck is not None:
            features = self.neck(features)
        return at_least_float32(self.decode_head(features))

    def halved(self) -> PortableUPerNet:
        """A copy that computes in float16, but for averages and the last resize; it takes and gives float32."""
        half = copy.deepcopy(self).half()
        half.register_forward_pre_hook(lambda module, inputs: tuple(x.half() for x in inputs))
        return half
