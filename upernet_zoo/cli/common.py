"""What several commands share."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

from ..errors import MissingFileError, UnknownDatasetError
from ..files import expanded
from ..reference import Reference
from ..wording import did_you_mean
from .examples import EXAMPLES

if TYPE_CHECKING:
    from ..models import UPerNet

__all__ = [
    "REFERENCES",
    "Commands",
    "Parser",
    "add_ids",
    "add_model",
    "add_places",
    "add_views",
    "load_model",
    "loading",
    "pair",
    "require_dataset",
    "require_model",
    "views",
]

REFERENCES = "a name (upernet-zoo list), demo, a checkpoint file, a folder, local-dir:FOLDER, or hf-hub:ORG/NAME[@REVISION]"


class Parser(argparse.ArgumentParser):
    """A parser that says what was most likely meant."""

    def error(self, message: str) -> NoReturn:
        """Exit with status 2 and the message, and with the choice or the option that is nearest to one that is none."""
        choice = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message)
        if choice:
            message += "." + did_you_mean(choice[1], re.findall(r"[^\s',]+", choice[2]))
        unknown = re.match(r"unrecognized arguments: (-\S*)", message)
        if unknown:
            options = [option for action in self._actions for option in action.option_strings]
            message += "." + did_you_mean(unknown[1].partition("=")[0], options)
        super().error(message)


class Commands:
    """Adds sub-commands to a parser."""

    def __init__(self, parser: Parser) -> None:
        self._parsers = parser.add_subparsers(dest="command", required=True, metavar="command", parser_class=Parser)

    def add(self, name: str, run: Callable[[argparse.Namespace], int], help: str) -> argparse.ArgumentParser:
        """A parser for `upernet-zoo name`, which calls `run` and exits with what it returns."""
        parser = self._parsers.add_parser(name, help=help, description=f"{help[0].upper()}{help[1:]}.", epilog=f"example: {EXAMPLES[name]}")
        parser.set_defaults(run=run, parser=parser)
        return parser


def add_model(parser: argparse.ArgumentParser, name: str = "model", *, device: bool = True, **argument: Any) -> None:
    """A model's reference, as the argument or option `name`, and the options that `loading` reads.

    Args:
        device: also --device and --dtype: of a command that runs the model.
        argument: what else `add_argument` takes for the reference.
    """
    parser.add_argument(name, help=REFERENCES, **argument)
    group = parser.add_argument_group("loading")
    group.add_argument("--checkpoint", metavar="FILE", help="a checkpoint file on disk for a name of the list")
    group.add_argument("--sha256", metavar="DIGEST", help="of the file, in place of the list's: 64 hex digits, or the first 8 or more")
    add_places(group)
    group.add_argument("--local-files-only", action="store_true", help="use no network")
    if device:
        group.add_argument("--device", help="cpu, cuda, ... (default: cuda if there is one)")
        group.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), help="default: that of the weights")


def require_model(args: argparse.Namespace) -> None:
    """Refuse a model that is not there, and loading options that do not fit it, before torch is imported.

    Raises:
        UPerNetZooError: as `Reference.parse` and `Reference.require_options`.
    """
    Reference.parse(args.model).require_options(checkpoint=args.checkpoint, sha256=args.sha256, mirrors=args.mirrors)
    if args.checkpoint is not None and not expanded(args.checkpoint).is_file():
        raise MissingFileError(f"No checkpoint file at {args.checkpoint}. Check the path.")


def require_dataset(args: argparse.Namespace) -> None:
    """Refuse a data set that is unknown, or whose folder is not there, before torch is imported.

    Raises:
        UnknownDatasetError, MissingFileError: name it.
    """
    from ..evaluation.layouts import LAYOUTS

    if args.dataset not in LAYOUTS:
        raise UnknownDatasetError(f"No data set {args.dataset!r}; there are {', '.join(LAYOUTS)}.{did_you_mean(args.dataset, LAYOUTS)}")
    if not expanded(args.root).is_dir():
        raise MissingFileError(f"{args.root}: no such folder, and a data set is looked for in it. Check the path.")


def add_places(parser: Any) -> None:
    """--mirror and --cache-dir, on a parser or a group of one."""
    parser.add_argument(
        "--mirror", dest="mirrors", action="append", default=[], metavar="URL", help="a further URL or folder to look in first"
    )
    parser.add_argument("--cache-dir", metavar="FOLDER", help="in place of UPERNET_ZOO_CACHE; for hf-hub:, of HF_HUB_CACHE")


def add_views(parser: argparse.ArgumentParser) -> None:
    """How the network is run over a picture: the arguments that `views` reads."""
    parser.add_argument("--mode", choices=("whole", "slide"), help="in place of the model's recipe")
    parser.add_argument("--crop", type=pair, metavar="HxW", help="height x width of the windows in pixels, for --mode slide")
    parser.add_argument("--stride", type=pair, metavar="HxW", help="pixels from window to window, for --mode slide")
    parser.add_argument(
        "--scales",
        type=_scales,
        default=(1.0,),
        metavar="X,...",
        help="such as 0.5,1,1.5 times the recipe's scale, averaged (default: 1)",
    )
    parser.add_argument("--flip", action="store_true", help="average with the mirrored picture")
    parser.add_argument("--batch-size", type=int, default=1, metavar="N", help="windows and views at once (default: 1)")
    parser.add_argument("--amp", action="store_true", help="half precision")


def add_ids(parser: argparse.ArgumentParser) -> None:
    """What the ids in masks are that do not say so themselves."""
    parser.add_argument(
        "--ids",
        choices=("train", "dataset"),
        help="what the masks' ids are: 0, 1, ... in the order of the model's classes, or those of the data set's files (default: what "
        "the folder's label file says, or the masks leave as the one answer). What predict writes says so itself",
    )


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


def loading(args: argparse.Namespace) -> dict[str, Any]:
    """Keywords that `create_model`, `Segmenter` and `evaluate` take; device and dtype where the command has them."""
    found = {name: getattr(args, name) for name in ("checkpoint", "sha256", "mirrors", "cache_dir", "local_files_only")}
    if hasattr(args, "device"):
        import torch

        found |= {"device": args.device, "dtype": args.dtype and getattr(torch, args.dtype)}
    return found


def load_model(args: argparse.Namespace, *, pretrained: bool = True) -> UPerNet:
    """The plain model of `add_model`'s arguments, by default on CUDA if there is one."""
    import torch

    from ..factory import create_model

    options = loading(args)
    if hasattr(args, "device"):
        options["device"] = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    model: UPerNet = create_model(args.model, pretrained, **options)
    return model
