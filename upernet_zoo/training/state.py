"""What a training run keeps on disk to go on from: `state.pt`, and `log.csv` to read."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from .. import sources
from ..errors import CacheError

STATE_NAME, LOG_NAME = "state.pt", "log.csv"


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
        CacheError: the folder cannot be written, or the disk is full. What was there stays as it was.
    """
    content = {"run": json.dumps(run), "progress": asdict(progress), "parts": dict(parts)}
    sources.write_atomically(folder / STATE_NAME, lambda temporary: _save(content, temporary))
    text = io.StringIO()
    writer = csv.DictWriter(text, ("step", "lr", "loss", "mIoU", "seconds"), lineterminator="\n")
    writer.writeheader()
    writer.writerows(progress.rows)
    sources.write_atomically(folder / LOG_NAME, lambda temporary: temporary.write_text(text.getvalue(), encoding="utf-8"))


def _save(content: dict[str, Any], path: Path) -> None:
    with open(path, "wb") as file:  # a file of our own, so that a full disk is an OSError and not torch's RuntimeError
        torch.save(content, file)


def read(folder: Path, run: Mapping[str, Any]) -> tuple[Progress, dict[str, Any]] | None:
    """Progress and parts of the run in a folder; None if there is none yet.

    Raises:
        CacheError: the state is another run's, or damaged.
    """
    path = folder / STATE_NAME
    if not path.exists():
        return None
    other = "Choose another folder, or remove that file to start anew."
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        theirs, progress, parts = json.loads(content["run"]), Progress(**content["progress"]), content["parts"]
    except Exception as error:  # on damaged data torch raises whatever its readers do
        raise CacheError(f"{path}: not the state of a training run ({str(error).splitlines()[0]}). {other}") from None
    mine = json.loads(json.dumps(run))
    if theirs != mine:
        raise CacheError(f"{path}: the state of another run ({', '.join(_differences(theirs, mine))}). {other}")
    return progress, parts


def _differences(theirs: Mapping[str, Any], mine: Mapping[str, Any], prefix: str = "") -> list[str]:
    """`key: their value, now mine` for each plain value that differs."""
    found = []
    for key in {**theirs, **mine}:
        a, b = theirs.get(key), mine.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += _differences(a, b, f"{prefix}{key} ")
        elif a != b:
            short = len(f"{a}{b}") < 80
            found.append(f"{prefix}{key} {a}, now {b}" if short else f"another {prefix}{key}")
    return found
