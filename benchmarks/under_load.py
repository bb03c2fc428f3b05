"""The fused model alone on the machine, and beside other programs that keep every core busy: one busy loop for each core.

    python benchmarks/under_load.py [--model NAME] [--size 512] [--repeats 5]

`as_it_is` chooses its number of threads for each call; `all_threads` always has all, and `one_thread` one. They take turns, quiet and
under load, so that other changes of the machine meet all alike. Writes results/under_load.json.
"""

import argparse
import os
import signal
import statistics
import subprocess
import sys
import time
from unittest import mock

import torch
from machine import record

import upernet_zoo as uz

WAYS = ("as_it_is", "all_threads", "one_thread")


def seconds(model, x, way: str) -> float:
    """One call's time."""
    threads = torch.get_num_threads()
    settled = {} if way == "as_it_is" else {"OMP_NUM_THREADS": "settled"}  # read by the library alone once torch runs
    with mock.patch.dict(os.environ, settled):
        torch.set_num_threads(1 if way == "one_thread" else threads)
        start = time.perf_counter()
        model(x)
        taken = time.perf_counter() - start
        torch.set_num_threads(threads)
    return taken


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="upernet_r50_512x512_160k_ade20k", help="of the index; its weights are random")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    if any(name in os.environ for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")):
        parser.error("OMP_NUM_THREADS and MKL_NUM_THREADS settle the number of threads. Unset them.")
    model = uz.optimize_for_inference(uz.create_model(args.model, pretrained=False).eval())
    x = torch.randn(1, 3, args.size, args.size)
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        found: dict[str, dict[str, list[float]]] = {load: {way: [] for way in WAYS} for load in ("quiet", "busy")}
        for repeat in range(args.repeats + 1):  # the first is for warming up
            for load, of_load in found.items():
                for loop in loops:
                    loop.send_signal(signal.SIGSTOP if load == "quiet" else signal.SIGCONT)
                time.sleep(0.2)
                for way, values in of_load.items():
                    taken = seconds(model, x, way)
                    if repeat:
                        values.append(taken)
    finally:
        for loop in loops:
            loop.kill()
    medians = {load: {way: statistics.median(values) for way, values in ways.items()} for load, ways in found.items()}
    results = {
        way: {
            "quiet_median_s": round(medians["quiet"][way], 4),
            "busy_median_s": round(medians["busy"][way], 4),
            "busy_min_s": round(min(found["busy"][way]), 4),
            "busy_max_s": round(max(found["busy"][way]), 4),
            "times_the_quiet_time_as_it_is": round(medians["busy"][way] / medians["quiet"]["as_it_is"], 2),
        }
        for way in WAYS
    }
    for way, result in results.items():
        print(way, result)
    record("under_load", results, model=args.model, size=args.size, repeats=args.repeats, threads=torch.get_num_threads())


if __name__ == "__main__":
    main()
