"""A clear no to torch.jit.script, and to torch.fx where it cannot trace."""

from __future__ import annotations

from typing import Any, NoReturn

import torch.fx
from torch import nn

from ..errors import ArgumentError

__all__ = ["NotScriptable", "refuse_fx"]


def refuse_fx(module: nn.Module, x: Any) -> None:
    """Refuse to be traced by torch.fx, for a backbone whose steps follow from the size of its input.

    Raises:
        ArgumentError: `x` is what torch.fx traces with.
    """
    if isinstance(x, torch.fx.Proxy):
        name = type(module).__name__
        raise ArgumentError(
            f"torch.fx cannot trace a {name}: sizes decide what it computes. Take its features from model.features(x); for layers of the "
            f"heads make it a leaf: create_feature_extractor(model, names, tracer_kwargs={{'leaf_modules': [type(model.backbone)]}})."
        )


class NotScriptable:
    """A module that says what to take in place of torch.jit.script."""

    def __prepare_scriptable__(self) -> NoReturn:  # which torch.jit.script calls first
        raise ArgumentError(
            f"torch.jit.script cannot compile a {type(self).__name__}. For a model that runs without this library: upernet-zoo export "
            "(ONNX, or a program of torch.export). To run it faster here: Segmenter's fused model, or torch.compile of the plain one."
        )
