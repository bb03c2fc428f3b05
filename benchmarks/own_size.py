"""Peak memory and time of large pictures at their own size, in windows of 512x512 every 341 pixels.

    python benchmarks/own_size.py [--threads 2] [--case NAME] [--side N]

Each case is a process of its own. The picture is an array that is made after the model is loaded, so its 3 bytes per pixel count. Peak is
the kernel's high-water mark of resident memory (VmHWM), reset before. Writes results/own_size.json, where all cases were run in full.
"""

import argparse
import json
import subprocess
import sys

from machine import memory_and_time, record

# name: (side of the picture in pixels, most that it may take in MB)
CASES = {"demo": (10000, 1500), "narrow R-18 with 150 classes": (10000, 1500), "R-50 with 150 classes": (4000, 1500)}
WINDOWS = {"mode": "slide", "crop": (512, 512), "stride": (341, 341)}


def network(case: str):
    """The demo model, or one of random weights."""
    import torch

    import upernet_zoo as uz

    torch.manual_seed(0)
    if case == "demo":
        return "demo"
    if case.startswith("R-50"):
        entry = uz.model_info("upernet_r50_512x512_160k_ade20k")
        return uz.UPerNet(entry.config, entry.recipe, entry.label_set)
    backbone = uz.ResNetConfig(depth=18, base_channels=12, stem_channels=24)
    return uz.UPerNet(uz.UPerNetConfig(backbone=backbone, num_classes=150, channels=48))


def child(case: str, side: int, threads: int) -> None:
    import numpy as np
    import torch

    import upernet_zoo as uz

    torch.set_num_threads(threads)
    segmenter = uz.Segmenter(network(case), own_size=True, **WINDOWS)
    with memory_and_time(side**2) as found:
        coarse = np.random.default_rng(0).integers(0, 256, (-(-side // 100), -(-side // 100), 3), dtype=np.uint8)
        labels = segmenter(coarse.repeat(100, 0).repeat(100, 1)[:side, :side], progress=sys.stderr.isatty()).labels
    assert labels.shape == (side, side)
    print(json.dumps({"side": side, **found}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--case", choices=CASES, help="one alone; nothing is recorded")
    parser.add_argument("--side", type=int, help="in place of the cases' own; nothing is recorded")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.case, args.side, args.threads)
        return
    results = {}
    for name, (side, limit) in CASES.items():
        if args.case in (None, name):
            line = [sys.executable, __file__, "--threads", str(args.threads), "--child", "--case", name, "--side", str(args.side or side)]
            done = subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True)
            results[name] = {**json.loads(done.stdout), "asked_for_at_most_MB": limit}
            print(name, results[name], flush=True)
    if args.case is None and args.side is None:
        record("own_size", results, threads=args.threads)


if __name__ == "__main__":
    main()
