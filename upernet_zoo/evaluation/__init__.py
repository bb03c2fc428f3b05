"""Measuring a model on a labelled data set."""

from .datasets import Sample, SegmentationDataset, open_dataset
from .metrics import MetricsResult, SegmentationMetrics

__all__ = ["MetricsResult", "Sample", "SegmentationDataset", "SegmentationMetrics", "open_dataset"]
