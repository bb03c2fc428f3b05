"""What a model scored: as a table to read, as files, as plots."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .. import files, tables
from ..errors import ArgumentError, shown
from ..failures import Failures
from . import plots
from .metrics import MEANS, MetricsResult

__all__ = ["RESULT_NAMES", "EvaluationResult", "metric_names", "without_nan", "write_text"]

RESULT_NAMES = ("metrics.json", "classes.csv", "confusion.csv", "pictures.csv")  # what `EvaluationResult.save` writes


@dataclass(frozen=True)
class EvaluationResult(MetricsResult):
    """What a model scored on a data set.

    Values in Python and in the files that `save` writes are fractions from 0 to 1, as in `MetricsResult`; what is printed (`table`,
    `summary`) and drawn is in percent, as the index has it.

    Args:
        model: the model's reference, as `evaluate` was given it; of a model object, where its weights come from.
        dataset: name of the data set.
        classes: a name for each train id.
        pixels: labeled pixels of each class.
        confusion: pixels by label (rows) and prediction (columns), for each two classes.
        pictures: picture name -> mIoU of that picture alone (NaN if nothing is labeled in it), all that were counted.
        failures: picture name -> what went wrong with it, of those that could not be counted.
        of: pictures that the data set has.
        settings: how the model was run.
        published: the mIoU that was published for this model, data set and settings, as a fraction; None if there is none.

    Examples:
        >>> import upernet_zoo as uz
        >>> result = uz.evaluate("demo", "folder", "scenes", progress=False)
        >>> result.of, len(result.pictures), result.failures
        (2, 2, {})
        >>> [path.name for path in result.save("scores")]
        ['metrics.json', 'classes.csv', 'confusion.csv', 'pictures.csv']
    """

    model: str
    dataset: str
    classes: tuple[str, ...]
    pixels: tuple[int, ...]
    confusion: tuple[tuple[int, ...], ...] = field(repr=False)
    pictures: Mapping[str, float] = field(repr=False)
    failures: Mapping[str, str]
    of: int
    settings: Mapping[str, Any]
    published: float | None

    def summary(self) -> str:
        """The means in one line, in percent."""
        means = ", ".join(f"{name} {_percent(getattr(self, name))}" for name in ("mIoU", "mAcc", "aAcc", "mDice"))
        return f"{self.model} on {self.dataset}, {self._counted()}: {means} (in percent)"

    def table(self, metrics: Sequence[str] = ("IoU", "Acc")) -> str:
        """The numbers per class and overall, in percent, as a table to read.

        Args:
            metrics: which of IoU, Acc, Dice (or F1), Precision and Recall, in any case.

        Raises:
            ArgumentError: another name.
        """
        keys = metric_names(metrics)
        rows = [[name, *map(_percent, values)] for name, *values in zip(self.classes, *(getattr(self, key) for key in keys))]
        means = [MEANS[key] for key in keys] + ["aAcc"]
        lines = [
            tables.plain(("class", *keys), rows, left=1),
            "",
            f"{self.model} on {self.dataset}, {self._counted()}, in percent",
            "   ".join(f"{name} {_percent(getattr(self, name))}" for name in means),
        ]
        if self.published is not None:
            difference = 100 * (self.mIoU - self.published)
            lines.append(f"published mIoU {_percent(self.published)}, measured {_percent(self.mIoU)} ({difference:+.2f})")
        return "\n".join(lines)

    def _counted(self) -> str:
        count = len(self.pictures)
        counted = f"{count} pictures" if count == self.of else f"{count} of {self.of} pictures"
        return f"{counted} ({len(self.failures)} failed)" if self.failures else counted

    def failure_report(self) -> str:
        """How many pictures failed, and a line for each."""
        failures = Failures()
        failures.found.update(self.failures)
        return failures.report(len(self.pictures) + len(self.failures))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without the confusion matrix; NaN is None."""
        return {key: without_nan(value) for key, value in asdict(self).items() if key != "confusion"}

    def plot(self, path: str | os.PathLike, *, overwrite: bool = False) -> Path:
        """Write a bar plot of the IoU of each class, in the format of the name (.png, .svg, .pdf); needs matplotlib.

        Raises:
            MissingPackageError: matplotlib is not installed.
            ArgumentError: it has no format of that suffix.
            ExistingFileError: a file of that name is there, not written by this library, and `overwrite` is not set.
            WriteError: the file cannot be written.
        """
        named = [(name.strip(), iou) for name, iou in zip(self.classes, self.IoU) if not math.isnan(iou)]
        title = f"{self.model} on {self.dataset}, {len(self.pictures)} pictures: mIoU {100 * self.mIoU:.2f} %"
        return plots.save_bars(files.expanded(path), named, self.mIoU, title, overwrite)

    def plot_confusion(self, path: str | os.PathLike, *, overwrite: bool = False) -> Path:
        """Draw the confusion matrix: of each label's pixels, how many percent were predicted as which class; needs matplotlib.

        Raises:
            MissingPackageError: matplotlib is not installed.
            ArgumentError: it has no format of that suffix.
            ExistingFileError: a file of that name is there, not written by this library, and `overwrite` is not set.
            WriteError: the file cannot be written.
        """
        title = f"{self.model} on {self.dataset}, {len(self.pictures)} pictures"
        return plots.save_confusion(files.expanded(path), [name.strip() for name in self.classes], self.confusion, title, overwrite)

    def save(self, folder: str | os.PathLike, *, overwrite: bool = False) -> list[Path]:
        """Write `metrics.json`, `classes.csv`, `confusion.csv` and `pictures.csv`, each whole or not at all; gives back their paths.

        Their numbers are fractions, and pixels in `confusion.csv`, which has a row for each label and a column for each prediction.

        Args:
            overwrite: replace files of these names that are no results.

        Raises:
            ExistingFileError: such a file is there.
            WriteError: the folder cannot be written.
        """
        folder = files.expanded(folder)
        own = _holds_result(folder)
        for name in RESULT_NAMES:
            files.require_replaceable(folder / name, lambda _: own, overwrite)
        columns = [getattr(self, key) for key in MEANS]
        classes = [("class", *MEANS, "pixels"), *zip(self.classes, *columns, self.pixels)]
        confusion = [("label", *self.classes), *([name, *row] for name, row in zip(self.classes, self.confusion))]
        metrics = json.dumps(self.to_dict(), indent=2) + "\n"
        paths = [folder / name for name in RESULT_NAMES]
        for path, text in zip(paths, (metrics, _csv(classes), _csv(confusion), _csv([("picture", "mIoU"), *self.pictures.items()]))):
            write_text(path, text)
        return paths


def _holds_result(folder: Path) -> bool:
    """Whether an earlier result was saved in a folder."""
    try:
        data = json.loads((folder / RESULT_NAMES[0]).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(data, dict) and {"mIoU", "classes", "pictures", "settings"} <= data.keys()


def metric_names(names: Sequence[str]) -> list[str]:
    """Names of metrics in the spelling of `MetricsResult`.

    Raises:
        ArgumentError: none of that name, or no name.
    """
    known = {**{name.lower(): name for name in MEANS}, **{mean.lower(): name for name, mean in MEANS.items()}, "f1": "Dice"}
    unknown = [name for name in names if not isinstance(name, str) or name.strip().lower() not in known]
    if unknown or not names:
        raise ArgumentError(f"No metric {shown(unknown[0]) if unknown else ''}: there are {', '.join(MEANS)} and F1, which is Dice.")
    return list(dict.fromkeys(known[name.strip().lower()] for name in names))


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.2f}"


def without_nan(value: Any) -> Any:
    """The same plain values with None in place of NaN, which JSON does not have."""
    if isinstance(value, Mapping):
        return {key: without_nan(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _csv(rows: Sequence[Sequence[Any]]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(without_nan(rows))
    return out.getvalue()


def write_text(path: Path, text: str) -> None:
    """Write a text whole or not at all; of a file's name that is not UTF-8 the odd bytes are written as escapes."""
    files.write_atomically(path, lambda temporary: temporary.write_bytes(text.encode("utf-8", "backslashreplace")))
