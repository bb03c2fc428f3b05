"""What several commands share."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Commands:
    """Adds sub-commands to a parser."""

    def __init__(self, parser: argparse.ArgumentParser):
        self._parsers = parser.add_subparsers(dest="command", required=True, metavar="command")

    def add(self, name: str, run: Callable[[argparse.Namespace], int], help: str) -> argparse.ArgumentParser:
        """A parser for `upernet-zoo name`, which calls `run` and exits with what it returns."""
        parser = self._parsers.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".")
        parser.set_defaults(run=run)
        return parser


def add_model(parser: argparse.ArgumentParser) -> None:
    """The arguments that `load_model` reads."""
    parser.add_argument("model", help="a name (upernet-zoo list), hf-hub:ORG/NAME, local-dir:FOLDER, or a checkpoint file")
    parser.add_argument("--checkpoint", metavar="FILE", help="a checkpoint file on disk for a model of the list")
    parser.add_argument("--device", help="cpu, cuda, ... (default: cuda if there is one)")


def add_views(parser: argparse.ArgumentParser) -> None:
    """How the network is run over a picture: the arguments that `views` reads."""
    parser.add_argument("--mode", choices=("whole", "slide"), help="in place of the model's recipe")
    parser.add_argument("--crop", type=pair, metavar="HxW", help="size of the windows, for --mode slide")
    parser.add_argument("--stride", type=pair, metavar="HxW", help="from window to window, for --mode slide")
    parser.add_argument("--scales", type=_scales, default=(1.0,), help="ratios such as 0.5,0.75,1,1.25,1.5,1.75, averaged")
    parser.add_argument("--flip", action="store_true", help="average with the mirrored picture")
    parser.add_argument("--batch-size", type=int, default=1, help="windows and views at once")
    parser.add_argument("--amp", action="store_true", help="half precision")


def views(args: argparse.Namespace) -> dict[str, Any]:
    """Keywords that `Segmenter` and `evaluate` take."""
    return {name: getattr(args, name) for name in ("mode", "crop", "stride", "scales", "flip", "batch_size", "amp")}


def _scales(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError("give numbers with commas between them, such as 0.5,1,1.5") from None


def pair(text: str) -> tuple[int, int]:
    """The type of an argument such as 769x769."""
    try:
        height, width = map(int, text.lower().split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError("give height and width in pixels, such as 769x769") from None
    return height, width


def load_model(args: argparse.Namespace, *, fused: bool = False):
    """The model of --device, --checkpoint and a reference that may also be a checkpoint file's path.

    With `fused`, on the CPU and without --amp, that of a name is its fused twin, which the cache keeps.
    """
    import torch

    from .. import optimized
    from ..factory import check_device, create_model, load_checkpoint

    check_device(args.device)
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    is_file = args.model.endswith((".pth", ".pt", ".safetensors")) or Path(args.model).expanduser().is_file()
    if is_file and args.checkpoint is None:
        return load_checkpoint(args.model, device=device)
    if fused and torch.device(device).type == "cpu" and not args.amp:
        return optimized.load(args.model, checkpoint=args.checkpoint)
    return create_model(args.model, checkpoint=args.checkpoint, device=device)
