"""Pretrained UPerNet segmentation models in plain PyTorch.

Names are loaded when they are first used: importing the package imports no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .errors import UPerNetZooError
from .version import __version__

if TYPE_CHECKING:
    from . import errors, evaluation, images, index, interop, labels, optimized, runtime, training
    from .config import AuxiliaryConfig, BackboneConfig, NeckConfig, Recipe, UPerNetConfig
    from .evaluation import evaluate
    from .factory import create_backbone, create_model, load_checkpoint
    from .index import ModelEntry, list_models, model_info
    from .models.backbones._base import Backbone
    from .models.backbones.resnet import ResNetConfig
    from .models.fused.model import optimize_for_inference
    from .models.necks import Neck
    from .models.upernet import UPerNet
    from .raster import segment_raster
    from .registry import register_backbone, register_neck
    from .segmentation import Segmentation
    from .segmenter import Segmenter

# public name -> module that has it; None for a module that is public as a whole
_NAMES = {
    "AuxiliaryConfig": "config",
    "Backbone": "models.backbones._base",
    "BackboneConfig": "config",
    "ModelEntry": "index",
    "Neck": "models.necks",
    "NeckConfig": "config",
    "Recipe": "config",
    "ResNetConfig": "models.backbones.resnet",
    "Segmentation": "segmentation",
    "Segmenter": "segmenter",
    "UPerNet": "models.upernet",
    "UPerNetConfig": "config",
    "create_backbone": "factory",
    "create_model": "factory",
    "errors": None,
    "evaluate": "evaluation",
    "evaluation": None,
    "images": None,
    "index": None,
    "interop": None,
    "labels": None,
    "list_models": "index",
    "load_checkpoint": "factory",
    "model_info": "index",
    "optimize_for_inference": "models.fused.model",
    "optimized": None,
    "register_backbone": "registry",
    "register_neck": "registry",
    "runtime": None,
    "segment_raster": "raster",
    "training": None,
}

__all__ = ["UPerNetZooError", "__version__", *_NAMES]


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f".{_NAMES[name] or name}", __name__)
    value = globals()[name] = module if _NAMES[name] is None else getattr(module, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_NAMES})
