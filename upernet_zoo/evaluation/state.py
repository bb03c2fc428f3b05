"""What an evaluation has counted, kept so that an interrupted one goes on."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..distributed import exchange
from ..errors import ArgumentError, ExistingFileError, StateError, UPerNetZooError, shown
from ..wording import option
from .datasets import SegmentationDataset
from .metrics import SegmentationMetrics
from .result import RESULT_NAMES, without_nan, write_text

__all__ = ["State"]


class State:
    """What was counted so far, of which run; kept in a file if there is a path."""

    def __init__(self, run: Mapping[str, Any], dataset: SegmentationDataset, path: Path | None) -> None:
        self.run, self.path = run, path
        self.metrics = SegmentationMetrics(len(dataset.label_set), dataset.label_set.ignore_index)
        self.pictures: dict[str, float] = {}
        self._saving = 0.0  # seconds that the last time took
        self._saved = -math.inf  # when

    def add(self, confusion: torch.Tensor, pictures: Mapping[str, float]) -> None:
        """Count pictures: their summed confusion, and the mIoU of each by name."""
        self.metrics.confusion += confusion
        self.pictures.update(pictures)

    def save(self) -> None:
        """Write the file, whole or not at all."""
        if self.path is not None:
            start = time.monotonic()
            content = {"run": self.run, "confusion": self.metrics.confusion.tolist(), "pictures": without_nan(self.pictures)}
            write_text(self.path, json.dumps(content))
            self._saved = time.monotonic()
            self._saving = self._saved - start

    def save_now_and_then(self) -> None:
        """Write the file unless that would take more than a twentieth of the time."""
        if time.monotonic() - self._saved > 20 * self._saving:
            self.save()

    def read(self, names: Sequence[str], processes: int) -> None:
        """Go on from the file, if there is one; what the first process reads, or why it cannot, reaches all.

        Raises:
            StateError: the file is of another run, or damaged.
            ExistingFileError: there is none, and what would be written is there.
            ArgumentError: the processes have other models, pictures or settings than the first one.
        """
        mine: dict[str, Any] | UPerNetZooError | None
        try:
            mine = self._content(names)
        except UPerNetZooError as error:
            mine = error
        everyone = exchange((mine, self.run, names), processes)
        found = everyone[0][0]
        for rank, one in enumerate(everyone):
            if one[1:] != everyone[0][1:]:
                raise ArgumentError(f"evaluate: process {rank} has another model, other pictures or other settings than process 0.")
        if isinstance(found, UPerNetZooError):
            raise found
        if found is not None:
            pictures = {name: math.nan if iou is None else iou for name, iou in found["pictures"].items()}
            self.add(torch.tensor(found["confusion"], dtype=torch.int64, device="cpu"), pictures)

    def _content(self, names: Sequence[str]) -> dict[str, Any] | None:
        if self.path is None:
            return None
        if not self.path.exists():
            for path in (self.path.with_name(name) for name in RESULT_NAMES):
                if path.exists():  # an evaluation writes its state first
                    raise ExistingFileError(
                        f"{path} is there, of no evaluation in that folder, and would be replaced. Choose another folder."
                    )
            return None
        other = "Choose another folder, or remove that file to start again."
        try:
            content: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8"))
            run, pictures, confusion = content["run"], content["pictures"], content["confusion"]
            counts = torch.tensor(confusion, dtype=torch.int64, device="cpu")
        except (OSError, ValueError, TypeError, KeyError, RecursionError, RuntimeError, OverflowError) as error:
            raise StateError(f"{self.path}: not a state of an evaluation ({shown(str(error))}). {other}") from None
        if run != json.loads(json.dumps(self.run)):
            different = [key for key in self.run if run.get(key) != self.run[key]] if isinstance(run, dict) else list(self.run)
            raise StateError(f"{self.path}: the state of another run: not the same {', '.join(different)}. {other}")
        if counts.shape != self.metrics.confusion.shape or (counts < 0).any():
            raise StateError(f"{self.path}: not a state of an evaluation (a matrix of {tuple(counts.shape)}). {other}")
        if not isinstance(pictures, dict) or not all(map(_is_score, pictures.values())):
            raise StateError(f"{self.path}: not a state of an evaluation (pictures with {shown(pictures)}). {other}")
        more = set(pictures) - set(names)
        if more:
            raise StateError(
                f"{self.path}: {len(pictures)} pictures are counted there already, more than "
                f"{option('limit', len(names))}. Raise the limit. {other}"
            )
        return content


def _is_score(value: Any) -> bool:
    """Is it the mIoU of a picture, or that of one without labels?"""
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1)
