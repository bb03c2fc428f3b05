"""From the normalized tensor to full-size logits: all systems side by side, on the same weights where they can take them.

    python benchmarks/inference.py [CASE ...] [--repeats 7] [--systems ...] [--python mmsegmentation=/path/to/its/python ...]

Each system runs in a process of its own. After one run of each to warm up, they take turns; the medians are compared. Beside them
is the machine's sgemm peak, taken between them: about what a system can do whose convolutions are matrix products.
Writes results/inference_CASE.json. `growth` runs from 256x256 to 2048x2048; `cityscapes_slide_r50` is a whole sliding-window
segmentation, from a uint8 picture to its labels.
"""

import argparse
import operator
import tempfile
from pathlib import Path

from machine import record
from systems import add_options, difference, ratios, sgemm_peak, start, summary, write_weights

CASES = {  # the index's model whose architecture is run, and the shapes of its inputs
    "ade20k_r50": ("upernet_r50_512x512_160k_ade20k", [(1, 3, 512, 512)]),
    "ade20k_r101": ("upernet_r101_512x512_160k_ade20k", [(1, 3, 512, 512)]),
    "ade20k_r50_batch8": ("upernet_r50_512x512_160k_ade20k", [(8, 3, 512, 512)]),
    "ade20k_r101_batch8": ("upernet_r101_512x512_160k_ade20k", [(8, 3, 512, 512)]),
    "cityscapes_r50": ("upernet_r50_512x1024_40k_cityscapes", [(1, 3, 1024, 2048)]),
    "cityscapes_r101": ("upernet_r101_512x1024_40k_cityscapes", [(1, 3, 1024, 2048)]),
    "cityscapes_769_r50": ("upernet_r50_769x769_40k_cityscapes", [(1, 3, 769, 769)]),  # one of the 8 windows of a slide over 1025x2049
    "cityscapes_slide_r50": (
        "upernet_r50_769x769_40k_cityscapes",
        [(1025, 2049)],
    ),  # 8 such windows, uint8 to labels
    "cityscapes_769_r101": ("upernet_r101_769x769_40k_cityscapes", [(1, 3, 769, 769)]),
    "ade20k_swin_t": ("upernet_swin_tiny_patch4_window7_512x512_160k_ade20k_pretrain_224x224_1K", [(1, 3, 512, 512)]),
    "ade20k_convnext_s": ("upernet_convnext_small_fp16_512x512_160k_ade20k", [(1, 3, 512, 512)]),
    "ade20k_vit_b_mln": ("upernet_vit-b16_mln_512x512_160k_ade20k", [(1, 3, 512, 512)]),
    "ade20k_beit_b": ("upernet_beit-base_8x2_640x640_160k_ade20k", [(1, 3, 640, 640)]),
    "growth": ("upernet_r50_512x1024_40k_cityscapes", [(1, 3, side, side) for side in (256, 512, 768, 1024, 1536, 2048)]),
}
OTHER_KINDS = ("mmsegmentation", "transformers", "plain", "fused")
SYSTEMS_OF = {
    "growth": ("mmsegmentation", "onnxruntime", "plain", "fused"),
    "cityscapes_slide_r50": ("mmsegmentation", "plain", "fused"),
    **dict.fromkeys(("ade20k_swin_t", "ade20k_convnext_s"), OTHER_KINDS),
    **dict.fromkeys(("ade20k_vit_b_mln", "ade20k_beit_b"), ("mmsegmentation", "plain", "fused")),
}


def measure(systems, shape, repeats):
    """{system: ...} of interleaved runs of one shape, and the sgemm peak between them."""
    warm = {system.name: system.ask(shape=shape) for system in systems}
    seconds = {system.name: [] for system in systems}
    peaks = [sgemm_peak()]
    for _ in range(repeats):
        for system in systems:
            seconds[system.name].append(system.ask(shape=shape)["seconds"])
        peaks.append(sgemm_peak())
    same = [system.name for system in systems if system.about["takes_weights"]]
    probes = {name: warm[name]["probe"] for name in same}
    if len(shape) == 2:  # label maps
        equal = {name: sum(map(operator.eq, probes[name], probes[same[0]])) / len(probes[name]) for name in same[1:]}
        compared = {f"labels_equal_to_{same[0]}": {name: round(value, 5) for name, value in equal.items()}}
    else:
        differences = difference(probes, same)
        compared = {f"largest_difference_from_{same[0]}": {name: float(f"{value:.2g}") for name, value in differences.items()}}
    medians = {name: summary(values)["median_s"] for name, values in seconds.items()}
    return {
        "systems": {name: summary(values) for name, values in seconds.items()},
        "times_the_fused_model": ratios(medians),
        "sgemm_peak_gmacs_per_s": round(max(peaks), 1),
        **compared,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=" ".join(CASES))
    parser.add_argument("--repeats", type=int, default=7)
    add_options(parser)
    args = parser.parse_args()
    if unknown := set(args.cases) - CASES.keys():
        parser.error(f"unknown case {', '.join(sorted(unknown))}; known are {', '.join(CASES)}")
    wanted = list(args.systems)
    for case in args.cases or ["ade20k_r50"]:
        name, shapes = CASES[case]
        args.systems = [name for name in wanted if name in SYSTEMS_OF.get(case, wanted)]
        with tempfile.TemporaryDirectory() as folder:
            systems = start(args, write_weights(Path(folder), name))
            results = {}
            for shape in shapes:
                size = "x".join(map(str, shape))
                results[size] = measure(systems, shape, args.repeats)
                for system in systems:
                    # the others compute what the plain model does, and a slide what one of its windows does, eight times
                    if len(shape) == 4 and system.name not in ("torch.compile", "onnxruntime", "openvino"):
                        results[size]["systems"][system.name]["gmacs"] = system.ask(gmacs=shape)["gmacs"]
                print(size, results[size])
            versions = {system.name: system.about["versions"] for system in systems}
            for system in systems:
                system.close()
        record(f"inference_{case}", results, model=name, repeats=args.repeats, systems=versions)


if __name__ == "__main__":
    main()
