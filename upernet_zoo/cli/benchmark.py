"""upernet-zoo benchmark: how fast a model is on this machine, plain and optimized for inference."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from .. import progress, tables
from ..errors import ArgumentError
from .common import Commands, add_model, load_model, pair, require_model

if TYPE_CHECKING:
    from torch import Tensor

    from ..models import UPerNet
    from ..models.fused.model import FusedUPerNet

__all__ = ["register"]

_SIZE = (512, 512)  # of pictures, where nothing else is said


def _benchmark(args: argparse.Namespace) -> int:
    for name, value in (("--batch-size", args.batch_size), ("--repeats", args.repeats)):
        if value < 1:
            raise ArgumentError(f"{name} {value}: give a whole number from 1.")
    if args.size is not None and min(args.size) < 32:
        raise ArgumentError(f"--size {args.size[0]}x{args.size[1]}: a picture has 32 pixels or more on each side.")
    require_model(args)
    result = _measure(args)
    if args.format == "json":
        print(json.dumps(result))
    else:
        _print_result(result)
    return 0


def _measure(args: argparse.Namespace) -> dict[str, Any]:
    """What is printed, as plain values; seconds of each form."""
    import torch

    from ..models.fused.model import optimize_for_inference

    start = time.perf_counter()
    model = load_model(args, pretrained=not args.random)
    loaded = time.perf_counter() - start
    start = time.perf_counter()
    forms: dict[str, UPerNet | FusedUPerNet] = {"plain": model, "fused": optimize_for_inference(model)}
    optimized = time.perf_counter() - start
    weight = model.decode_head.classifier.weight
    only = model.config.backbone.input_size
    size = args.size or only or _SIZE
    if only not in (None, size):
        raise ArgumentError(
            f"--size {size[0]}x{size[1]}: {model.config.backbone.title} takes pictures of {only[0]}x{only[1]} pixels alone. "
            "Leave --size out."
        )
    _require_memory(forms.values(), args.batch_size, size)
    x = torch.randn(args.batch_size, model.config.in_channels, *size, device=weight.device, dtype=weight.dtype)
    seconds, logits = _timed(forms, x, args.repeats, show=args.format != "json")
    plain, fused = logits["plain"], logits["fused"]
    return {
        "model": args.model,
        "device": str(weight.device),
        "threads": torch.get_num_threads(),
        "shape": list(x.shape),
        "load_s": loaded,
        "optimize_s": optimized,
        "largest_difference": float((plain - fused).abs().max()) / float(plain.abs().max()),
        "equal_labels": float((plain.argmax(1) == fused.argmax(1)).float().mean()),
        "seconds": {name: {"median": statistics.median(t), "min": min(t), "max": max(t)} for name, t in seconds.items()},
    }


def _timed(
    forms: Mapping[str, UPerNet | FusedUPerNet], x: Tensor, repeats: int, show: bool
) -> tuple[dict[str, list[float]], dict[str, Tensor]]:
    """Seconds of each form in each round, and its last logits. They take turns, so that a busy machine is busy for both."""
    import torch

    seconds: dict[str, list[float]] = {name: [] for name in forms}
    logits = {}
    with torch.inference_mode():
        for repeat in progress.bar(range(repeats + 1), unit="round", show=show):
            for name, form in forms.items():
                start = time.perf_counter()
                logits[name] = form(x)
                if x.device.type == "cuda":
                    torch.cuda.synchronize(x.device)
                if repeat:  # the first is for warming up
                    seconds[name].append(time.perf_counter() - start)
    return seconds, logits


def _print_result(result: Mapping[str, Any]) -> None:
    print(f"{result['model']} on {result['device']}, {result['threads']} threads, input {'x'.join(map(str, result['shape']))}")
    print(f"loaded in {result['load_s']:.2f} s, optimized in {result['optimize_s']:.2f} s")
    rows = []
    for name, times in result["seconds"].items():
        rows.append([name, *(f"{times[key]:.3f}" for key in ("median", "min", "max")), f"{result['shape'][0] / times['median']:.2f}"])
    print(tables.plain(("Form", "Median (s)", "Min (s)", "Max (s)", "Pictures/s"), rows, left=1))
    ratio = result["seconds"]["plain"]["median"] / result["seconds"]["fused"]["median"]
    print(
        f"the fused form is {ratio:.2f} times as fast; largest difference {result['largest_difference']:.1e} of the largest logit, "
        f"labels equal at {result['equal_labels']:.2%} of pixels"
    )


def _require_memory(forms: Iterable[UPerNet | FusedUPerNet], batch_size: int, size: tuple[int, int]) -> None:
    """Refuse what cannot fit, where that can be known: a system that runs out ends the process without a word."""
    from .. import memory
    from ..files import size_text
    from ..segmenter import network_bytes

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
    """Add the command of this module."""
    sub = commands.add("benchmark", _benchmark, "time a model on this machine, plain and optimized for inference")
    add_model(sub)
    help_size = f"of the pictures (default: {_SIZE[0]}x{_SIZE[1]}, or the only size that the model takes)"
    sub.add_argument("--size", type=pair, metavar="HxW", help=help_size)
    sub.add_argument("--batch-size", type=int, default=1, metavar="N", help="pictures at once (default: 1)")
    sub.add_argument("--repeats", type=int, default=5, help="timed runs of each form (default: 5)")
    sub.add_argument("--random", action="store_true", help="fresh weights of a name's architecture; nothing is downloaded")
    sub.add_argument("--format", choices=("table", "json"), default="table", help="how it is printed (default: table)")
