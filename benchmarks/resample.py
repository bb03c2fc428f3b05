"""Label maps from stride-4 logits: the library's tiles against two F.interpolate and an argmax, and against blocks of classes.

Logits have their channels last in memory, as the fused model gives them. `tiles_by_index_select` are the same tiles with rows of logits
taken by `index_select`, as they were before: it copies such logits as a whole for each row of tiles.

    python benchmarks/resample.py [--repeats 5] [--threads 2]

Five sizes, each with the logits of a network (the fixture checkpoints on a photo) and with independent normal ones, in which no class can
be ruled out anywhere: the worst case. The ways take turns; the medians of wall and of CPU seconds are kept, and how many labels are equal
to those of the first way. Then whole pictures, from file to label map, by a Segmenter of random weights of full width, with the tiles of
both kinds. Writes results/resample.json.
"""

import argparse
import contextlib
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from machine import record
from PIL import Image
from systems import write_weights
from torch import Tensor

from upernet_zoo import Segmenter, load_checkpoint
from upernet_zoo.images import preprocess, resample
from upernet_zoo.models.layers import resize

FIXTURES = Path(__file__).resolve().parent.parent / "tests" / "fixtures"
Size = tuple[int, int]
# name: fixture, network's input, picture
CASES: dict[str, tuple[str, Size, Size]] = {
    "4000x3000, 150 classes": ("upernet_r50_512x512_160k_ade20k", (512, 683), (3000, 4000)),
    "2048x1024, 19 classes": ("upernet_r50_512x1024_40k_cityscapes", (1024, 2048), (1024, 2048)),
    "1536x1024, 150 classes": ("upernet_r50_512x512_160k_ade20k", (1024, 1536), (1024, 1536)),
    "512x512, 150 classes": ("upernet_r50_512x512_160k_ade20k", (512, 512), (512, 512)),
    "683x512, 150 classes": ("upernet_r50_512x512_160k_ade20k", (512, 683), (512, 683)),
}
BLOCK = 1 << 22
WHOLE = "upernet_r50_512x512_160k_ade20k"


def interpolate_twice(logits: Tensor, via: Size, size: Size) -> Tensor:
    return resize(resize(logits[None], via, False), size, False)[0].argmax(0)


def class_blocks(logits: Tensor, via: Size, size: Size) -> Tensor:
    """Both resizes for a few classes at a time, and a running maximum."""
    best = torch.full(size, -torch.inf)
    winner = torch.zeros(size, dtype=torch.uint8)
    block = max(1, BLOCK // (size[0] * size[1]))
    for first in range(0, len(logits), block):
        value, index = resize(resize(logits[None, first : first + block], via, False), size, False)[0].max(0)
        better = value > best
        best = torch.where(better, value, best)
        winner = torch.where(better, (index + first).to(torch.uint8), winner)
    return winner


def tiles(logits: Tensor, via: Size, size: Size) -> Tensor:
    return resample.labels([resample.View(logits, via, False)], size)


def as_before() -> contextlib.AbstractContextManager[object]:
    return mock.patch.object(resample, "rows_of", lambda logits, used: logits.index_select(1, used))


def tiles_by_index_select(logits: Tensor, via: Size, size: Size) -> Tensor:
    with as_before():
        return tiles(logits, via, size)


WAYS: tuple[Callable[[Tensor, Size, Size], Tensor], ...] = (interpolate_twice, class_blocks, tiles_by_index_select, tiles)


def network_logits(name: str, via: Size) -> Tensor:
    model = load_checkpoint(next((FIXTURES / name).glob("*.pth")))
    photo = np.array(Image.open(FIXTURES / "photos" / "chelsea.png").convert("RGB"))
    x = torch.from_numpy(preprocess.resize_uint8(photo, via)).permute(2, 0, 1)[None].float()
    mean, std = (torch.tensor(v)[:, None, None] for v in (model.recipe.mean, model.recipe.std))
    return model.logits((x - mean) / std)[0]


def measure(logits: Tensor, via: Size, size: Size, repeats: int) -> dict[str, dict[str, float]]:
    ways = [way for way in WAYS if way is not class_blocks or size[0] * size[1] < 1 << 22]  # which takes a minute for 4000x3000
    wall: dict[str, list[float]] = {way.__name__: [] for way in ways}
    cpu: dict[str, list[float]] = {way.__name__: [] for way in ways}
    equal = {}
    for repeat in range(repeats + 1):  # the first is for warming up
        first = None
        for way in ways:
            start, used = time.perf_counter(), time.process_time()
            found = way(logits, via, size)
            seconds, used = time.perf_counter() - start, time.process_time() - used
            if repeat:
                wall[way.__name__].append(seconds)
                cpu[way.__name__].append(used)
            first = found.to(torch.uint8) if first is None else first
            equal[way.__name__] = (found == first).double().mean().item()
    return {
        name: {
            "wall_median_s": round(statistics.median(wall[name]), 4),
            "wall_min_s": round(min(wall[name]), 4),
            "cpu_median_s": round(statistics.median(cpu[name]), 4),
            "equal_labels": equal[name],
        }
        for name in wall
    }


def whole_picture(size: Size, repeats: int) -> dict[str, dict[str, float]]:
    """Seconds of a Segmenter for a photo of a size (height, width), which is the network's input too."""
    with tempfile.TemporaryDirectory() as folder:
        model = load_checkpoint(write_weights(Path(folder), WHOLE))
        segmenter = Segmenter(model, recipe=dataclasses.replace(model.recipe, scale=(max(size), min(size))))
        photo = np.array(Image.open(FIXTURES / "photos" / "chelsea.png").convert("RGB"))
        path = Path(folder) / "photo.png"
        Image.fromarray(preprocess.resize_uint8(photo, size)).save(path)
        found: dict[str, list[float]] = {"tiles_by_index_select": [], "tiles": []}
        labels = {}
        for repeat in range(repeats + 1):
            for way, patched in zip(found, (as_before, contextlib.nullcontext)):
                start = time.perf_counter()
                with patched():
                    labels[way] = segmenter(path).labels
                if repeat:
                    found[way].append(time.perf_counter() - start)
    equal = float((labels["tiles"] == labels["tiles_by_index_select"]).mean())
    return {way: {"wall_median_s": round(statistics.median(times), 4), "equal_labels": equal} for way, times in found.items()}


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    results = {}
    for case, (fixture, via, size) in CASES.items():
        logits = network_logits(fixture, via).permute(1, 2, 0).contiguous().permute(2, 0, 1)
        noise = torch.randn_like(logits, generator=torch.Generator().manual_seed(0))
        for kind, values in (("network", logits), ("noise", noise)):
            results[f"{case}, {kind}"] = measure(values, via, size, args.repeats)
            print(f"{case}, {kind}", results[f"{case}, {kind}"], flush=True)
    for size in ((512, 512), (1024, 1536)):
        case = f"whole picture {size[1]}x{size[0]}, {WHOLE}"
        results[case] = whole_picture(size, args.repeats)
        print(case, results[case], flush=True)
    record("resample", results, repeats=args.repeats, threads=args.threads)


if __name__ == "__main__":
    main()
