"""Write tests/fixtures/metrics/metrics_1x.json: what mmsegmentation 1.x's `IoUMetric` gives for the pictures of metrics.npz.

Needs an environment with that.

    python tools/make_metrics_fixture.py
"""

import json
import math
from pathlib import Path

import numpy as np
import torch
from mmseg.evaluation import IoUMetric

FOLDER = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "metrics"
METRICS = ["mIoU", "mDice", "mFscore"]


def numbers(arrays: np.lib.npyio.NpzFile, name: str, expected: dict) -> dict:
    """Every number for one data set, as fractions; None for NaN."""
    areas = []
    for i in range(sum(key.startswith(f"{name}_pred") for key in arrays)):
        target = arrays[f"{name}_gt{i}"].astype(np.int64)
        if expected["reduce_zero_label"]:
            target = np.where((target == 0) | (target == 255), 255, target - 1)  # as its LoadAnnotations does
        prediction = torch.from_numpy(arrays[f"{name}_pred{i}"].astype(np.int64))
        classes, ignored = expected["num_classes"], expected["ignore_index"]
        areas.append(IoUMetric.intersect_and_union(prediction, torch.from_numpy(target), classes, ignored))
    found = IoUMetric.total_area_to_metrics(*(sum(area) for area in zip(*areas)), METRICS)
    plain = {key: np.atleast_1d(value).astype(float).tolist() for key, value in found.items()}
    return {key: [None if math.isnan(v) else v for v in values] for key, values in plain.items()}


def main() -> None:
    arrays, expected = np.load(FOLDER / "metrics.npz"), json.loads((FOLDER / "metrics.json").read_text())
    found = {name: numbers(arrays, name, values) for name, values in expected.items()}
    (FOLDER / "metrics_1x.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
