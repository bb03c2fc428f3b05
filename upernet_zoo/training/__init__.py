"""Fine-tuning: labeled pictures and a pretrained model in, a model of your own classes out."""

from .data import Survey, open_splits, survey
from .loop import TrainingResult, train
from .settings import TrainingSettings

__all__ = ["Survey", "TrainingResult", "TrainingSettings", "open_splits", "survey", "train"]
