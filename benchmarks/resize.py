"""`preprocess.resize_uint8` beside OpenCV's resize, to 2048x1024 pixels of RGB.

    python benchmarks/resize.py [--repeats 30]

The two take turns, OpenCV with its own threads and with one; every value is compared. Writes results/resize.json.
"""

import argparse
import statistics
import time
from importlib import metadata

import cv2
import numpy as np
from machine import record

from upernet_zoo.images.preprocess import resize_uint8

SIZE = (1024, 2048)
SOURCES = {"up from 1024x683": (683, 1024), "down from 3000x1500": (1500, 3000), "half of 4096x2048": (2048, 4096)}


def opencv(threads: int):
    def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        cv2.setNumThreads(threads)
        return cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)

    return resize


WAYS = {"resize_uint8": resize_uint8, "opencv": opencv(-1), "opencv, one thread": opencv(1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=30)
    args = parser.parse_args()
    results = {}
    for name, shape in SOURCES.items():
        image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
        seconds: dict[str, list[float]] = {way: [] for way in WAYS}
        for repeat in range(args.repeats + 1):  # the first is for warming up
            found = {}
            for way, resize in WAYS.items():
                start = time.perf_counter()
                found[way] = resize(image, SIZE)
                if repeat:
                    seconds[way].append(time.perf_counter() - start)
        different = int((found["resize_uint8"] != found["opencv"]).sum())
        results[name] = {way: {"median_ms": ms(statistics.median(s)), "min_ms": ms(min(s))} for way, s in seconds.items()}
        results[name]["different_values"] = different
        print(name, results[name], flush=True)
    opencv_version = metadata.version("opencv-python-headless")
    record("resize", results, repeats=args.repeats, asked_for="below 100 ms", opencv=opencv_version)


def ms(seconds: float) -> float:
    return round(1000 * seconds, 1)


if __name__ == "__main__":
    main()
