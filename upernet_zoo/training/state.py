"""What a training run keeps on disk to go on from: `state.pt`, and `log.csv` to read."""

from __future__ import annotations

import copy
import csv
import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from .. import files
from ..checkpoints import safe_load
from ..errors import CheckpointError, StateError, shown

__all__ = ["LOG_NAME", "STATE_NAME", "Progress", "read", "restore", "write"]

STATE_NAME, LOG_NAME = "state.pt", "log.csv"
_OTHERWISE = "Choose another folder, or remove that file to start again."
_COLUMNS = ("step", "lr", "loss", "mIoU", "seconds")


@dataclass
class Progress:
    """How far a run is.

    Args:
        step: updates done.
        seconds: time they took, over all sessions.
        losses: of the steps since the last row.
        rows: of the log: step, learning rate of the backbone, mean loss since the row before, mIoU (None: not evaluated), seconds.
        best_mIoU: highest so far, from 0 to 1; -1 before the first evaluation.
        best_step: when that was.
    """

    step: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    best_mIoU: float = -1.0
    best_step: int = 0

    @classmethod
    def from_dict(cls, data: Any) -> Progress:
        """The progress in plain values.

        Raises:
            ValueError: not what `dataclasses.asdict` makes of one.
        """
        if not isinstance(data, Mapping) or data.keys() != cls.__dataclass_fields__.keys():
            raise ValueError(f"its progress is {shown(data)}")
        good = all(type(data[key]) is int and data[key] >= 0 for key in ("step", "best_step"))
        good = good and all(_is_number(data[key]) for key in ("seconds", "best_mIoU"))
        good = good and isinstance(data["losses"], list) and all(map(_is_number, data["losses"]))
        good = good and isinstance(data["rows"], list) and all(map(_is_row, data["rows"]))
        if not good:
            raise ValueError(f"its progress is {shown(data)}")
        return cls(**data)

    def add_row(self, lr: float, mIoU: float | None) -> None:
        """Close a row of the log."""
        loss = sum(self.losses) / len(self.losses)
        self.rows.append({"step": self.step, "lr": lr, "loss": loss, "mIoU": mIoU, "seconds": round(self.seconds, 1)})
        self.losses = []


def write(folder: Path, run: Mapping[str, Any], progress: Progress, parts: Mapping[str, Any]) -> None:
    """Write state and log, each whole or not at all.

    Args:
        run: what makes this run itself and no other; plain values.
        parts: name -> state dict of each thing that changes in training.

    Raises:
        WriteError: the folder cannot be written, or the disk is full. What was there stays as it was.
    """
    content = {"run": json.dumps(run), "progress": asdict(progress), "parts": dict(parts)}
    files.write_atomically(folder / STATE_NAME, lambda temporary: _save(content, temporary))
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(progress.rows)
    files.write_atomically(folder / LOG_NAME, lambda temporary: temporary.write_text(text.getvalue(), encoding="utf-8"))


def require_own_log(folder: Path) -> None:
    """Refuse a `log.csv` that no run wrote.

    Raises:
        ExistingFileError: it is there.
    """
    first = ",".join(_COLUMNS).encode()

    def is_log(path: Path) -> bool:
        try:
            with path.open("rb") as file:
                return file.read(len(first)) == first
        except OSError:
            return False

    files.require_replaceable(folder / LOG_NAME, is_log, None)


def _save(content: dict[str, Any], path: Path) -> None:
    with files.writing(path) as file:
        torch.save(content, file)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_row(value: Any) -> bool:
    if not isinstance(value, Mapping) or value.keys() != set(_COLUMNS):
        return False
    return all(_is_number(number) or (column == "mIoU" and number is None) for column, number in value.items())


def read(folder: Path, run: Mapping[str, Any]) -> tuple[Progress, dict[str, Any]] | None:
    """Progress and parts of the run in a folder; None if there is none yet. Nothing that the file holds is run.

    Raises:
        StateError: the state is another run's, or damaged.
    """
    path = folder / STATE_NAME
    if not path.exists():
        return None
    try:
        content = safe_load.read(path)
        theirs, progress, parts = json.loads(content["run"]), Progress.from_dict(content["progress"]), content["parts"]
        if not isinstance(theirs, Mapping) or not isinstance(parts, Mapping):
            raise ValueError("it says not which")
    except CheckpointError as error:
        cause = str(error).removeprefix(str(path)).lstrip(": ").split(". ")[0]
        raise StateError(f"{path}: not the state of a training run ({cause}). {_OTHERWISE}") from None
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise StateError(f"{path}: not the state of a training run ({_cause(error)}). {_OTHERWISE}") from None
    mine = json.loads(json.dumps(run))
    if theirs != mine:
        raise StateError(f"{path}: the state of another run ({', '.join(_differences(theirs, mine))}). {_OTHERWISE}")
    # in memory of their own: a mapped file cannot be replaced everywhere
    return progress, {name: copy.deepcopy(part) for name, part in parts.items()}


def restore(folder: Path, targets: Mapping[str, Any], parts: Mapping[str, Any]) -> None:
    """Give each thing that changes in training the state that was read for it.

    Raises:
        StateError: a state that does not fit.
    """
    for name, target in targets.items():
        try:
            target.load_state_dict(parts[name])
        except Exception as error:  # whatever the part makes of another one's state
            raise StateError(f"{folder / STATE_NAME}: its {name} does not fit this run ({_cause(error)}). {_OTHERWISE}") from None


def _cause(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200] if str(error).strip() else 'no more is known'}"


def _differences(theirs: Mapping[str, Any], mine: Mapping[str, Any], prefix: str = "") -> list[str]:
    """`key: their value, now mine` for each plain value that differs."""
    found = []
    for key in {**theirs, **mine}:
        a, b = theirs.get(key), mine.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += _differences(a, b, f"{prefix}{key} ")
        elif a != b:
            a, b = shown(a), shown(b)
            short = len(f"{a}{b}") < 80
            found.append(f"{prefix}{key} {a}, now {b}" if short else f"another {prefix}{key}")
    return found
