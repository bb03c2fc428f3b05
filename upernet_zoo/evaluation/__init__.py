"""Measuring a model on a labelled data set."""

from .datasets import Sample, SegmentationDataset, open_dataset
from .evaluate import MULTI_SCALE, EvaluationResult, evaluate
from .metrics import MetricsResult, SegmentationMetrics

__all__ = [
    "MULTI_SCALE",
    "EvaluationResult",
    "MetricsResult",
    "Sample",
    "SegmentationDataset",
    "SegmentationMetrics",
    "evaluate",
    "open_dataset",
]
