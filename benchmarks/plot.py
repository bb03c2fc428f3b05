"""Draw docs/benchmark.png: seconds against multiplications, every system of results/inference_ade20k_r50.json.

python benchmarks/plot.py
"""

import argparse
import json
from pathlib import Path

from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parent.parent
COLOURS = {"fused": "#cc3311", "plain": "#4477aa"}
LABELS = {"fused": "upernet_zoo, fused", "plain": "upernet_zoo, plain"}


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    record = json.loads((ROOT / "results" / "inference_ade20k_r50.json").read_text())
    ((shape, results),) = record["results"].items()
    systems, peak = results["systems"], results["sgemm_peak_gmacs_per_s"]
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.subplots()
    placed: list[float] = []
    for name, found in sorted(systems.items(), key=lambda item: item[1]["median_s"]):
        seconds, gmacs = found["median_s"], found.get("gmacs", systems["mmsegmentation"]["gmacs"])  # runtimes compute the plain model
        bars = [[seconds - found["min_s"]], [found["max_s"] - seconds]]
        axes.errorbar(gmacs, seconds, yerr=bars, fmt="o", capsize=3, color=COLOURS.get(name, "#777777"))
        height = max([seconds, *(y + 0.24 for y in placed if gmacs > 200)])
        placed.append(height)
        axes.annotate(
            f"{LABELS.get(name, name)}  {seconds:.2f} s", (gmacs, seconds), (gmacs - 6, height), ha="right", va="center", fontsize=8
        )
    limit = 1.12 * max(found.get("gmacs", 0) for found in systems.values())
    axes.plot([0, limit], [0, limit / peak], "--", color="#999999", linewidth=1)
    axes.annotate(f"sgemm peak, {peak:.0f} GMAC/s", (20, 20 / peak), (24, 20 / peak - 0.05), va="top", fontsize=8, color="#777777")
    machine = record["machine"]
    axes.set(xlim=(0, limit), ylim=(0, None), xlabel=f"multiplications (GMACs), {shape}", ylabel="seconds, median and range")
    axes.set_title(f"UPerNet R-50, 150 classes, {machine['cpu']}, {machine['cores']} cores, float32", fontsize=10)
    figure.savefig(ROOT / "docs" / "benchmark.png", dpi=130, metadata={"Software": None})


if __name__ == "__main__":
    main()
