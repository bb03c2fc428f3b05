"""Exported models in their runtimes, beside the fused model and the others: time and memory, from normalized pictures to full-size logits.

    python benchmarks/portable.py [CASE ...] [--repeats 7] [--systems ...] [--python mmsegmentation=/path/to/its/python ...]

Each model is exported once in its plain and its fused form, all sizes free, as `upernet-zoo export` does. Each system runs in a process
of its own. After one run of each to warm up, they take turns; the medians are compared, and beside them is the most memory that each
process has held, size after size. Random weights of full width. Writes results/portable_CASE.json.

All systems are in memory together: at 1024x2048 (`r50_large`) that is more than 24 GB, so give some of them there, such as
`--systems "onnxruntime plain" "onnxruntime fused" fused`.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from machine import record
from systems import PORTABLE, add_options, difference, pythons, sgemm_peak, start, summary, write_weights

SIZES = [(1, 3, 256, 256), (1, 3, 512, 512)]
OTHERS = ("fused", "mmsegmentation", "transformers")
CASES = {  # the index's model whose architecture is run, and the shapes of its inputs
    "r50": ("upernet_r50_512x512_160k_ade20k", SIZES),
    "r50_large": ("upernet_r50_512x512_160k_ade20k", [(1, 3, 1024, 2048)]),
    "swin_t": ("upernet_swin_tiny_patch4_window7_512x512_160k_ade20k_pretrain_224x224_1K", SIZES),
    "convnext_s": ("upernet_convnext_small_fp16_512x512_160k_ade20k", SIZES),
    "vit_b": ("upernet_vit-b16_mln_512x512_160k_ade20k", SIZES),
}
EXPORT = """
import sys, upernet_zoo as uz
from upernet_zoo.interop.export import to_onnx
to_onnx(uz.load_checkpoint(sys.argv[1]), sys.argv[2], form=sys.argv[3])
"""


def export(weights: Path) -> dict[str, int]:
    """Write both files beside the weights, each in a process of its own; {form: megabytes}."""
    sizes = {}
    for form in ("plain", "fused"):
        path = f"{weights}.{form}.onnx"
        subprocess.run([sys.executable, "-W", "ignore", "-c", EXPORT, str(weights), path, form], check=True)
        sizes[form] = Path(path).stat().st_size >> 20
    return sizes


def measure(systems, shape, repeats):
    """Interleaved runs of one shape: seconds and memory of each system, and how it compares with its runtime's plain export."""
    warm = {system.name: system.ask(shape=shape) for system in systems}
    answers = {system.name: [] for system in systems}
    peaks = [sgemm_peak()]
    for _ in range(repeats):
        for system in systems:
            answers[system.name].append(system.ask(shape=shape))
        peaks.append(sgemm_peak())
    found = {
        name: summary([one["seconds"] for one in given]) | {"peak_mb": max(one["peak_mb"] for one in given)}
        for name, given in answers.items()
    }
    medians = {name: one["median_s"] for name, one in found.items()}
    pairs = {runtime: (f"{runtime} plain", f"{runtime} fused") for runtime in ("onnxruntime", "openvino")}
    probes = {name: one["probe"] for name, one in warm.items()}
    names = sorted(probes, key=lambda name: name != "fused")  # compared with the fused model where it runs
    return {
        "systems": found,
        "fused_export_as_fast_as_plain": {
            runtime: round(medians[plain] / medians[fused], 2)
            for runtime, (plain, fused) in pairs.items()
            if {plain, fused} <= medians.keys()
        },
        "fused_in_onnxruntime_as_fast_as": {
            name: round(value / medians["onnxruntime fused"], 2) for name, value in medians.items() if "onnxruntime fused" in medians
        },
        f"largest_difference_from_{names[0]}": {name: float(f"{value:.2g}") for name, value in difference(probes, names).items()},
        "sgemm_peak_gmacs_per_s": round(max(peaks), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=" ".join(CASES))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--sizes", nargs="+", metavar="HxW", help="in place of the case's own")
    parser.add_argument("--suffix", default="", help="of the record's name, so that one of another machine stays")
    add_options(parser, (*PORTABLE, *OTHERS))
    args = parser.parse_args()
    if unknown := set(args.cases) - CASES.keys():
        parser.error(f"unknown case {', '.join(sorted(unknown))}; known are {', '.join(CASES)}")
    pythons(args)  # refused before the export, which takes minutes
    for case in args.cases or list(CASES):
        name, shapes = CASES[case]
        if args.sizes:
            shapes = [(1, 3, *map(int, size.split("x"))) for size in args.sizes]
        with tempfile.TemporaryDirectory() as folder:
            weights = write_weights(Path(folder), name)
            files = export(weights)
            results = {}
            for shape in shapes:  # new processes for each size: the memory is that of the size
                systems = start(args, weights)
                results["x".join(map(str, shape[2:]))] = found = measure(systems, shape, args.repeats)
                print(case, shape, found, flush=True)
                versions = {system.name: system.about["versions"] for system in systems}
                for system in systems:
                    system.close()
        record(f"portable_{case}{args.suffix}", results, model=name, repeats=args.repeats, systems=versions, exported_mb=files)


if __name__ == "__main__":
    main()
