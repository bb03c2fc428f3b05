"""Peak memory for one 4000x3000 picture, above that of the process with the model loaded.

    python benchmarks/memory_large_picture.py [--threads 2]

Each case is a process of its own. The picture is an array that is made after the model is loaded, so its 36 MB count. Peak is the
kernel's high-water mark of resident memory (VmHWM), reset before. Writes results/memory_large_picture.json.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from machine import memory_and_time, record

FIXTURES = Path(__file__).resolve().parent.parent / "tests" / "fixtures"
# name: (model, views, most that it may take in MB, None where nothing was asked for)
CASES = {
    "fixture, whole": ("fixture", "single", 400),
    "fixture, ms+flip": ("fixture", "ms+flip", 1200),
    "fixture, slide 512x512": ("fixture", "slide", None),
    "R-50 of full width, whole": ("full", "single", 1300),
}
KEYWORDS = {
    "single": {},
    "ms+flip": {"scales": (0.5, 0.75, 1.0, 1.25, 1.5, 1.75), "flip": True},
    "slide": {"mode": "slide", "crop": (512, 512), "stride": (341, 341)},
}


def child(kind: str, views: str, threads: int) -> None:
    import numpy as np
    import torch

    import upernet_zoo as uz
    from upernet_zoo.models import UPerNet

    torch.set_num_threads(threads)
    if kind == "fixture":
        model = uz.load_checkpoint(next((FIXTURES / "upernet_r50_512x512_160k_ade20k").glob("*.pth")))
    else:
        entry = uz.model_info("upernet_r50_512x512_160k_ade20k")
        torch.manual_seed(0)
        model = UPerNet(entry.config, entry.recipe, entry.label_set)
    segmenter = uz.Segmenter(model, **KEYWORDS[views])
    with memory_and_time(3000 * 4000) as found:
        coarse = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
        labels = segmenter(coarse.repeat(100, 0).repeat(100, 1)).labels
    assert labels.shape == (3000, 4000)
    print(json.dumps(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(*args.child, args.threads)
        return
    results = {}
    for name, (kind, views, limit) in CASES.items():
        command = [sys.executable, __file__, "--threads", str(args.threads), "--child", kind, views]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        results[name] = {**json.loads(done.stdout), "asked_for_at_most_MB": limit}
        print(name, results[name], flush=True)
    record("memory_large_picture", results, threads=args.threads)


if __name__ == "__main__":
    main()
