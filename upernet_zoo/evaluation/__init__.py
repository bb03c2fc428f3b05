"""Measuring a model on a labeled data set. Names are loaded when they are first used: layouts and masks need no torch."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .datasets import Sample, SegmentationDataset, open_dataset
    from .metrics import MetricsResult, SegmentationMetrics
    from .result import EvaluationResult
    from .runner import MULTI_SCALE, Evaluation, evaluate

_MODULES = {
    "MULTI_SCALE": "runner",
    "Evaluation": "runner",
    "EvaluationResult": "result",
    "MetricsResult": "metrics",
    "Sample": "datasets",
    "SegmentationDataset": "datasets",
    "SegmentationMetrics": "metrics",
    "evaluate": "runner",
    "open_dataset": "datasets",
}
_SUBMODULES = ("datasets", "layouts", "masks", "metrics", "plots", "result", "runner", "state", "survey")

__all__ = [
    "MULTI_SCALE",
    "Evaluation",
    "EvaluationResult",
    "MetricsResult",
    "Sample",
    "SegmentationDataset",
    "SegmentationMetrics",
    "evaluate",
    "open_dataset",
]


def __getattr__(name: str) -> object:
    if name in _SUBMODULES:
        return importlib.import_module(f".{name}", __name__)
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    return value
