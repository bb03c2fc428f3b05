"""IoU, accuracy, Dice, precision and recall from one confusion matrix, as mmsegmentation (`evaluation/metrics/iou_metric.py`) has them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..errors import ArgumentError

if TYPE_CHECKING:
    import numpy as np

__all__ = ["MEANS", "MetricsResult", "SegmentationMetrics"]


# what is measured for each class, and its mean; `MetricsResult` has both
MEANS = {"IoU": "mIoU", "Acc": "mAcc", "Dice": "mDice", "Precision": "mPrecision", "Recall": "mRecall"}


@dataclass(frozen=True)
class MetricsResult:
    """What was measured, as fractions from 0 to 1; NaN where there is nothing to divide by; what is printed is in percent.

    Args:
        mIoU, mAcc, mDice, mPrecision, mRecall: mean of `IoU`, `Acc`, ... over the classes that have one.
        aAcc: labeled pixels that were predicted rightly.
        IoU: for each class, intersection over union; NaN if the class was neither labeled nor predicted.
        Acc: for each class, share of its labeled pixels that were predicted rightly; NaN if none was labeled.
        Dice: for each class, twice the intersection over the sum of labeled and predicted pixels, which is the F1 score; NaN as `IoU`.
        Precision: for each class, share of the pixels predicted so that are labeled so; NaN if none was predicted.
        Recall: the same as `Acc`, by the name that goes with precision.

    Examples:
        >>> import numpy as np
        >>> from upernet_zoo.evaluation import SegmentationMetrics
        >>> metrics = SegmentationMetrics(num_classes=2)
        >>> metrics.update(np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1]))
        >>> result = metrics.result()
        >>> result.aAcc, result.IoU[0], result.Precision
        (0.75, 0.5, (0.5, 1.0))
    """

    mIoU: float
    mAcc: float
    aAcc: float
    mDice: float
    mPrecision: float
    mRecall: float
    IoU: tuple[float, ...]
    Acc: tuple[float, ...]
    Dice: tuple[float, ...]
    Precision: tuple[float, ...]
    Recall: tuple[float, ...]


class SegmentationMetrics:
    """Counts pixels of predictions and labels, over any number of pictures.

    `confusion` is the whole state: a (num_classes, num_classes) int64 tensor, rows by label and columns by prediction, on the
    device of the latest prediction. To join processes or to go on after an interruption, add tensors of that kind to it.

    Args:
        num_classes: number of classes; ids are 0..num_classes - 1.
        ignore_index: id of the labels that are not counted.

    Raises:
        ArgumentError: `num_classes` is not a whole number above zero.

    Examples:
        >>> import numpy as np
        >>> from upernet_zoo.evaluation import SegmentationMetrics
        >>> metrics = SegmentationMetrics(num_classes=2)
        >>> metrics.update(np.array([0, 0, 1, 1]), np.array([0, 1, 1, 255]))  # 255 is not counted
        >>> metrics.confusion.tolist(), metrics.result().mIoU
        ([[1, 0], [1, 1]], 0.5)
    """

    def __init__(self, num_classes: int, ignore_index: int = 255) -> None:
        if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1:
            raise ArgumentError(f"SegmentationMetrics: num_classes must be a whole number above zero, found {num_classes!r}.")
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64, device="cpu")

    def update(self, prediction: torch.Tensor | np.ndarray, target: torch.Tensor | np.ndarray) -> None:
        """Count the pixels of one picture or of a batch.

        Args:
            prediction: predicted train ids, of any shape and any integer dtype.
            target: train ids of the labels, of the same shape; pixels of `ignore_index` are not counted.

        Raises:
            ArgumentError: shapes that differ, values that are not whole numbers, or ids out of range. Nothing was counted then.
        """
        prediction, target = self._integers("prediction", prediction), self._integers("target", target)
        if prediction.shape != target.shape:
            raise ArgumentError(
                f"SegmentationMetrics: prediction has shape {tuple(prediction.shape)} and target {tuple(target.shape)}; "
                "they must be equal. Bring the prediction to the size of the labels."
            )
        if prediction.numel() == 0:
            return
        target = target.to(prediction.device)
        ignored = target == self.ignore_index
        self._check_range("prediction", prediction, None)
        self._check_range("target", target, ignored)
        count = self.num_classes
        cells = (target * count + prediction).masked_fill_(ignored, count * count)  # ignored pixels go to a cell of their own
        cells = torch.bincount(cells.flatten(), minlength=count * count + 1)[:-1]
        self.confusion = self.confusion.to(cells.device) + cells.view(count, count)

    def merge(self, other: SegmentationMetrics) -> None:
        """Add what another one counted.

        Raises:
            ArgumentError: it counts other classes.
        """
        if (other.num_classes, other.ignore_index) != (self.num_classes, self.ignore_index):
            raise ArgumentError(
                f"SegmentationMetrics: cannot merge {other.num_classes} classes (ignore_index {other.ignore_index}) into "
                f"{self.num_classes} classes (ignore_index {self.ignore_index})."
            )
        self.confusion = self.confusion + other.confusion.to(self.confusion.device)

    def result(self) -> MetricsResult:
        """The metrics over all that was counted, in float64."""
        confusion = self.confusion.cpu()
        right, labeled, predicted = confusion.diagonal().double(), confusion.sum(1), confusion.sum(0)
        recall = right / labeled  # 0 / 0 is NaN, as in the original
        classes = {
            "IoU": right / (labeled + predicted - confusion.diagonal()),
            "Acc": recall,
            "Dice": 2 * right / (labeled + predicted),
            "Precision": right / predicted,
            "Recall": recall,
        }
        numbers: dict[str, Any] = {MEANS[name]: values.nanmean().item() for name, values in classes.items()}
        numbers |= {name: tuple(values.tolist()) for name, values in classes.items()}
        return MetricsResult(aAcc=(confusion.diagonal().sum().double() / labeled.sum()).item(), **numbers)

    def _integers(self, name: str, ids: torch.Tensor | np.ndarray) -> torch.Tensor:
        try:
            ids = ids if isinstance(ids, torch.Tensor) else torch.as_tensor(ids, device="cpu")
        except (TypeError, ValueError, RuntimeError) as error:
            raise ArgumentError(f"SegmentationMetrics: {name} must be an array of train ids: {error}.") from None
        if ids.dtype.is_floating_point or ids.dtype.is_complex or ids.dtype == torch.bool:
            raise ArgumentError(f"SegmentationMetrics: {name} must hold whole numbers (train ids), found dtype {ids.dtype}.")
        return ids.long()

    def _check_range(self, name: str, ids: torch.Tensor, ignored: torch.Tensor | None) -> None:
        wrong = (ids < 0) | (ids >= self.num_classes)
        if ignored is not None:
            wrong &= ~ignored
        if wrong.any():
            unknown = ids[wrong].unique().tolist()
            shown = ", ".join(map(str, unknown[:10])) + (", ..." if len(unknown) > 10 else "")
            but = f" or {self.ignore_index}" if ignored is not None else ""
            raise ArgumentError(
                f"SegmentationMetrics: {name} holds ids {shown}; they must be from 0 to {self.num_classes - 1}{but}. "
                "Bring ids of a data set's files to train ids with LabelSet.to_train_ids."
            )
