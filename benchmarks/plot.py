"""Draw docs/benchmark.png: seconds of every system of results/portable_r50.json for one 512x512 picture.

python benchmarks/plot.py
"""

import argparse
import json
from pathlib import Path

from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parent.parent
SIZE = "512x512"
LABELS = {
    "onnxruntime fused": "ONNX Runtime, our fused export",
    "openvino fused": "OpenVINO, our fused export",
    "fused": "upernet_zoo, fused",
    "onnxruntime plain": "ONNX Runtime, plain export",
    "openvino plain": "OpenVINO, plain export",
    "mmsegmentation": "mmsegmentation 0.30",
}


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    record = json.loads((ROOT / "results" / "portable_r50.json").read_text())
    results, machine = record["results"][SIZE], record["machine"]
    systems = sorted(results["systems"].items(), key=lambda item: -item[1]["median_s"])
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    axes = figure.subplots()
    for place, (name, found) in enumerate(systems):
        seconds = found["median_s"]
        spread = [[seconds - found["min_s"]], [found["max_s"] - seconds]]
        color = "#cc3311" if "fused" in name else "#8899aa"
        axes.barh(place, seconds, height=0.66, color=color, xerr=spread, error_kw={"capsize": 3, "ecolor": "#333333"})
        axes.annotate(f"{seconds:.2f} s", (0.05, place), va="center", color="white", fontsize=9, fontweight="bold")
    axes.set_yticks(range(len(systems)), [LABELS.get(name, name) for name, _ in systems], fontsize=9)
    axes.set_xlabel("seconds, median and range")
    axes.set_title(f"UPerNet R-50, 150 classes, {SIZE}, {machine['cpu']}, {machine['cores']} cores, float32", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(ROOT / "docs" / "benchmark.png", dpi=130, metadata={"Software": None})


if __name__ == "__main__":
    main()
