"""Checkpoints that mmsegmentation 1.x trained, of configs changed in many ways: its own answers beside ours, and the way back to it.

    python benchmarks/mmsegmentation_1x.py --python 1x/bin/python --v0-python mmseg/bin/python

peer_1x.py trains and answers in an environment of 1.x, whose Python is given (its maintained fork, `onedl-mmsegmentation`); what stands in
--folder already is used again. A case ends in one of four ways: it agrees (probabilities of both photos, and of views where it has them,
within 1e-5), is refused, differs and said so, or differs in silence. Every model that agrees is then written for 1.x and, with --v0-python,
for 0.30 (`convert --to mmseg`), and run there. With --as, answers go under another name: --as before, with an earlier version of the
library on PYTHONPATH, which is not written back. Writes results/mmsegmentation_1x.json.
"""

import argparse
import json
import subprocess
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import RESULTS, record

import upernet_zoo as uz
from upernet_zoo import errors

HERE = Path(__file__).resolve().parent
PHOTOS = [HERE.parent / "tests" / "fixtures" / "photos" / name for name in ("chelsea.png", "coffee.png")]
BAR = 1e-5  # in probability
NAME = "mmsegmentation_1x"
V0 = """
import sys, warnings; warnings.filterwarnings("ignore")
from pathlib import Path
import numpy as np, torch
from mmseg.apis import inference_segmentor, init_segmentor
torch.set_num_threads(1)
folder, *photos = sys.argv[1:]
for path in sorted(Path(folder).glob("*/back.pth")):
    model = init_segmentor(str(path.with_suffix(".py")), str(path), device="cpu")
    found = {f"labels{i}": inference_segmentor(model, photo)[0].astype(np.uint8) for i, photo in enumerate(photos)}
    np.savez_compressed(path.with_suffix(".npz"), **found)
"""


def difference(model: uz.UPerNet, expected: Any, ratios: list[float]) -> float:
    """Largest difference of probabilities, over photos and views."""
    views = [(photo, str(i), {}) for i, photo in enumerate(PHOTOS)]
    views += [(PHOTOS[0], "_views", {"scales": ratios, "flip": True})] if ratios else []
    worst = 0.0
    for photo, key, options in views:
        found = uz.Segmenter(model, optimize=False, **options).probabilities(photo).numpy()
        found = found[:, expected["rows" + key], expected["columns" + key]]
        worst = max(worst, float(np.abs(found - expected["values" + key]).max()))
    return worst


def verdict(folder: Path) -> tuple[str, dict[str, Any], uz.UPerNet | None]:
    """Name of a case, what became of it, and the model where it agrees."""
    case = json.loads((folder / "case.json").read_text())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            model = uz.load_checkpoint(folder / "checkpoint.pth")
            worst = difference(model, np.load(folder / "expected.npz"), case["ratios"])
        except errors.UPerNetZooError as error:
            return case["name"], {"is": "refused", "says": str(error).replace(str(folder / "checkpoint.pth"), "FILE")}, None
    said = [str(item.message).split(": ", 1)[-1] for item in caught if issubclass(item.category, UserWarning)]
    state = "agrees" if worst <= BAR else "differs and says so" if said else "differs in silence"
    return case["name"], {"is": state, "difference": float(f"{worst:.1e}"), **({"says": said[0]} if said else {})}, model


def written_back(models: dict[str, uz.UPerNet], version: int, python: str) -> dict[str, Any]:
    """Models written for a version of mmsegmentation and run there: difference of probabilities (1.x), share of equal labels (0.30)."""
    from upernet_zoo.interop import mmsegmentation

    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folders = {name: Path(temporary) / f"{i:02}" for i, name in enumerate(models)}
        for name, folder in folders.items():
            folder.mkdir()
            try:
                mmsegmentation.to_mmsegmentation(models[name], folder / "back.pth", version=version)
            except errors.UPerNetZooError as error:
                found[name] = f"refused: {error}"
        command = [HERE / "peer_1x.py", "run", temporary] if version else ["-c", V0, temporary, *PHOTOS]
        subprocess.run([python, *map(str, command)], check=True, stdout=subprocess.DEVNULL)
        for name, folder in folders.items():
            if name in found:
                continue
            answers = np.load(folder / "back.npz")
            if version:
                found[name] = float(f"{difference(models[name], answers, []):.1e}")
                continue
            segmenter = uz.Segmenter(models[name], optimize=False)
            equal = [float((segmenter(photo).labels == answers[f"labels{i}"]).mean()) for i, photo in enumerate(PHOTOS)]
            found[name] = round(min(equal), 6)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", required=True, help="of an environment with mmsegmentation 1.x")
    parser.add_argument("--v0-python", help="of one with mmsegmentation 0.30")
    parser.add_argument("--folder", type=Path, help="where the checkpoints are, or go (default: a temporary one)")
    parser.add_argument("--as", dest="column", default="now", help="name that the answers are kept under (default: now)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = (args.folder or Path(temporary)).resolve()
        subprocess.run([args.python, str(HERE / "peer_1x.py"), "train", str(folder)], check=True, stdout=subprocess.DEVNULL)
        cases, models = {}, {}
        for path in sorted(folder.glob("*/case.json")):
            name, case, model = verdict(path.parent)
            cases[name] = case
            if model is not None and case["is"] == "agrees":
                models[name] = model
            print(name, case, flush=True)
    path = RESULTS / f"{NAME}.json"
    results = json.loads(path.read_text())["results"] if path.is_file() else {"counts": {}, "cases": {}}
    results["counts"][args.column] = dict(Counter(case["is"] for case in cases.values()))
    for name, case in cases.items():
        results["cases"].setdefault(name, {})[args.column] = case
    if args.column == "now":
        results["written for 1.x, largest difference of probabilities"] = written_back(models, 1, args.python)
        if args.v0_python:
            results["written for 0.30, share of equal labels"] = written_back(models, 0, args.v0_python)
    print(record(NAME, results, bar=BAR))


if __name__ == "__main__":
    main()
