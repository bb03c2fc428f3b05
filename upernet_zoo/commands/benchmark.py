"""upernet-zoo benchmark: how fast a model is on this machine, plain and optimised for inference."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from .. import tables
from ..errors import ArgumentError
from .common import Commands, add_model, load_model, pair

if TYPE_CHECKING:
    from ..models import UPerNet
    from ..models.fused import FusedUPerNet


def _benchmark(args: argparse.Namespace) -> int:
    import torch
    from tqdm import tqdm

    from ..factory import create_model
    from ..models.fused import optimize_for_inference

    for name, value in (("--batch-size", args.batch_size), ("--repeats", args.repeats)):
        if value < 1:
            raise ArgumentError(f"{name} {value}: give a whole number from 1.")
    if min(args.size) < 32:
        raise ArgumentError(f"--size {args.size[0]}x{args.size[1]}: a picture has 32 pixels or more on each side.")
    if args.random and args.checkpoint:
        raise ArgumentError("--random needs no checkpoint. Leave out one of --random and --checkpoint.")
    start = time.perf_counter()
    model = create_model(args.model, pretrained=False, device=args.device) if args.random else load_model(args)
    loaded = time.perf_counter() - start
    start = time.perf_counter()
    forms = {"plain": model, "fused": optimize_for_inference(model)}
    optimised = time.perf_counter() - start
    weight = model.decode_head.classifier.weight
    _require_memory(forms.values(), args.batch_size, args.size)
    x = torch.randn(args.batch_size, model.config.in_channels, *args.size, device=weight.device, dtype=weight.dtype)
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    logits = {}
    with torch.inference_mode():
        for repeat in tqdm(range(args.repeats + 1), unit="round", disable=args.format == "json"):
            for name, form in forms.items():  # they take turns, so that a busy machine is busy for both
                start = time.perf_counter()
                logits[name] = form(x)
                if weight.device.type == "cuda":
                    torch.cuda.synchronize(weight.device)
                if repeat:  # the first is for warming up
                    seconds[name].append(time.perf_counter() - start)
    largest = float(logits["plain"].abs().max())
    result = {
        "model": args.model,
        "device": str(weight.device),
        "threads": torch.get_num_threads(),
        "shape": list(x.shape),
        "load_s": loaded,
        "optimise_s": optimised,
        "largest_difference": float((logits["plain"] - logits["fused"]).abs().max()) / largest,
        "equal_labels": float((logits["plain"].argmax(1) == logits["fused"].argmax(1)).float().mean()),
        "seconds": {name: {"median": statistics.median(t), "min": min(t), "max": max(t)} for name, t in seconds.items()},
    }
    if args.format == "json":
        print(json.dumps(result))
        return 0
    print(f"{args.model} on {result['device']}, {result['threads']} threads, input {'x'.join(map(str, x.shape))}")
    print(f"loaded in {loaded:.2f} s, optimised in {optimised:.2f} s")
    rows = []
    for name, times in result["seconds"].items():
        rows.append([name, *(f"{times[key]:.3f}" for key in ("median", "min", "max")), f"{len(x) / times['median']:.2f}"])
    print(tables.plain(("Form", "Median (s)", "Min (s)", "Max (s)", "Pictures/s"), rows, left=1))
    ratio = result["seconds"]["plain"]["median"] / result["seconds"]["fused"]["median"]
    print(
        f"the fused form is {ratio:.2f} times as fast; largest difference {result['largest_difference']:.1e} of the largest logit, "
        f"labels equal at {result['equal_labels']:.2%} of pixels"
    )
    return 0


def _require_memory(forms: Iterable[UPerNet | FusedUPerNet], batch_size: int, size: tuple[int, int]) -> None:
    """Refuse what cannot fit, where that can be known: a system that runs out ends the process without a word."""
    from .. import memory
    from ..segmenter import network_bytes
    from ..transfer import size_text

    pixels = batch_size * size[0] * size[1]
    needed = 0
    for form in forms:
        weight = form.decode_head.classifier.weight
        # at full size: the logits of both forms, and one more when they are made and when they are compared
        needed = max(needed, network_bytes(form, pixels) + 3 * pixels * form.config.num_classes * weight.element_size())
    free = memory.available(weight.device)
    if free is not None and needed > free:
        raise ArgumentError(
            f"{batch_size} x {size[0]}x{size[1]} pixels need about {size_text(needed)} of memory and {weight.device} has {size_text(free)} "
            "free. Give a smaller --size or --batch-size."
        )


def register(commands: Commands) -> None:
    sub = commands.add("benchmark", _benchmark, "time a model on this machine, plain and optimised for inference")
    add_model(sub)
    sub.add_argument("--size", type=pair, default=(512, 512), metavar="HxW", help="of the pictures (default: 512x512)")
    sub.add_argument("--batch-size", type=int, default=1, help="pictures at once")
    sub.add_argument("--repeats", type=int, default=5, help="timed runs of each form (default: 5)")
    sub.add_argument("--random", action="store_true", help="fresh weights of a name's architecture; nothing is downloaded")
    sub.add_argument("--format", choices=("table", "json"), default="table")
