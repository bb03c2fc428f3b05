"""Pretrained UPerNet segmentation models in plain PyTorch.

Names are loaded when they are first used: importing the package imports no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from .errors import UPerNetZooError
from .version import __version__

if TYPE_CHECKING:
    from . import bridges, convert, evaluation, export, index, labels, optimized, preprocess, training
    from .config import Recipe, UPerNetConfig
    from .evaluation import evaluate
    from .factory import create_backbone, create_model, load_checkpoint
    from .index import ModelEntry, list_models, model_info
    from .models import UPerNet
    from .models.fused import optimize_for_inference
    from .segmenter import Segmentation, Segmenter

# public name -> module that has it; None for a module that is public as a whole
_NAMES = {
    "ModelEntry": "index",
    "Recipe": "config",
    "Segmentation": "segmenter",
    "Segmenter": "segmenter",
    "UPerNet": "models",
    "UPerNetConfig": "config",
    "bridges": None,
    "convert": None,
    "create_backbone": "factory",
    "create_model": "factory",
    "evaluate": "evaluation",
    "evaluation": None,
    "export": None,
    "index": None,
    "labels": None,
    "list_models": "index",
    "load_checkpoint": "factory",
    "model_info": "index",
    "optimize_for_inference": "models.fused",
    "optimized": None,
    "preprocess": None,
    "training": None,
}

__all__ = ["UPerNetZooError", "__version__", *_NAMES]


def __getattr__(name: str):
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f".{_NAMES[name] or name}", __name__)
    value = globals()[name] = module if _NAMES[name] is None else getattr(module, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_NAMES})
