"""Peak resident memory of one picture, each system in a fresh process: at the start (Python and imports), loaded, and at the peak.

    python benchmarks/memory.py [--size 1024 2048] [--python mmsegmentation=/path/to/its/python ...]

Writes results/memory.json.
"""

import argparse
import tempfile
from pathlib import Path

from machine import record
from systems import System, add_options, pythons, write_weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=2, default=(1024, 2048), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--model", default="upernet_r50_512x1024_40k_cityscapes", help="name of the index")
    add_options(parser, ("mmsegmentation", "onnxruntime", "plain", "fused"))
    args = parser.parse_args()
    import sys

    results = {}
    with tempfile.TemporaryDirectory() as folder:
        weights = write_weights(Path(folder), args.model)
        for name in args.systems:
            try:
                for _ in range(2):  # the first run of ONNX Runtime and OpenVINO exports; the second finds the file
                    system = System(name, pythons(args).get(name, sys.executable), weights)
                    answer = system.ask(shape=(1, 3, *args.size))
                    system.close()
            except RuntimeError as error:
                print(f"left out: {error}", file=sys.stderr)
                continue
            results[name] = {key: system.about[key] for key in ("start_mb", "loaded_mb")} | {"peak_mb": answer["peak_mb"]}
            results[name]["versions"] = system.about["versions"]
            print(name, results[name])
    if {"mmsegmentation", "fused"} <= results.keys():
        peaks = {name: results[name]["peak_mb"] for name in ("mmsegmentation", "fused")}
        results["fused_part_of_mmsegmentation"] = round(peaks["fused"] / peaks["mmsegmentation"], 3)
    record("memory", results, size=list(args.size), model=args.model)


if __name__ == "__main__":
    main()
