"""Winograd's 3x3 convolution beside torch's own, over the widths and maps that UPerNets have: where does it pay?

    python benchmarks/winograd.py [--repeats 7]

The two take turns on the same input. The head's 3x3 convolutions are 512 wide, on maps of stride 4 to 16; the backbone's are 64 wide at
stride 4 and twice as wide at each further stride. Writes results/winograd.json, from which `models.fused` has its choice.
"""

import argparse
import statistics
import time

import torch
from machine import record

from upernet_zoo.models.fused.layers import DirectConv
from upernet_zoo.models.fused.winograd import WinogradConv3x3

# channels and side of the map, of a 512x512 picture
HEAD = [(512, 128), (512, 64), (512, 32), (256, 128), (128, 128), (64, 128)]
BACKBONE = [(64, 128), (128, 64), (256, 32), (512, 16)]


def measure(channels: int, side: int, repeats: int) -> dict:
    """Median seconds of both for one picture."""
    weight, bias = torch.randn(channels, channels, 3, 3) / (3 * channels**0.5), torch.randn(channels)
    x = torch.randn(1, side, side, channels)
    forms = {"direct": DirectConv, "winograd": WinogradConv3x3}
    seconds, outputs = {name: [] for name in forms}, {}
    for name, kind in forms.items():
        forms[name] = module = kind(channels, channels)
        module.weight.copy_(kind.transform(weight.double()))
        module.bias.copy_(bias)
    for repeat in range(repeats + 1):
        for name, module in forms.items():
            start = time.perf_counter()
            outputs[name] = module(x)
            if repeat:  # the first is for warming up
                seconds[name].append(time.perf_counter() - start)
    error = float((outputs["winograd"] - outputs["direct"]).abs().max() / outputs["direct"].abs().max())
    medians = {f"{name}_s": round(statistics.median(values), 5) for name, values in seconds.items()}
    return medians | {
        "times_as_fast": round(medians["direct_s"] / medians["winograd_s"], 2),
        "largest_difference": float(f"{error:.1e}"),
        "more_megabytes": round((36 - 9) * channels**2 * 4 / 1e6, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    results = {}
    with torch.inference_mode():
        for channels, side in dict.fromkeys(HEAD + BACKBONE):
            name = f"{channels} channels, {side}x{side}"
            results[name] = measure(channels, side, args.repeats)
            print(name, results[name])
    record("winograd", results, repeats=args.repeats, threads=torch.get_num_threads())


if __name__ == "__main__":
    main()
