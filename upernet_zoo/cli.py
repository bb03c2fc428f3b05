"""The command line: upernet-zoo. Each command imports what it needs when it runs, so that `list` and `info` start without torch."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from . import index, tables
from .errors import ArgumentError, ImageError, MissingFileError, UPerNetZooError
from .version import __version__

PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")


def _list(args: argparse.Namespace) -> int:
    names = index.list_models(args.pattern, dataset=args.dataset, backbone=args.backbone, sort=args.sort)
    if not names and args.format == "table":
        print(f"No model matches {args.pattern!r}; upernet-zoo list shows all.", file=sys.stderr)
        return 1
    print(tables.render([index.model_info(name) for name in names], args.format))
    return 0


def _info(args: argparse.Namespace) -> int:
    print(tables.render_one(index.model_info(args.model), args.format))
    return 0


def _model(args: argparse.Namespace):
    """The model of --device, --checkpoint and a reference that may also be a checkpoint file's path."""
    import torch

    from .factory import create_model, load_checkpoint

    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ArgumentError(f"--device {device}: not usable here ({str(error).splitlines()[0]}). Try --device cpu.") from None
    if args.model.endswith((".pth", ".pt", ".safetensors")) and args.checkpoint is None:
        return load_checkpoint(args.model, device=device)
    return create_model(args.model, checkpoint=args.checkpoint, device=device)


def _pictures(inputs: list[str], out: Path) -> list[tuple[Path, Path]]:
    """(picture, output path without suffix) of each file, and of each picture in each folder; refused where two would be one."""
    found: list[tuple[Path, Path]] = []
    for item in map(Path, inputs):
        if item.is_dir():
            inside = sorted(p for p in item.rglob("*") if p.suffix.lower() in PICTURES and p.is_file())
            if not inside:
                raise ImageError(f"{item}: no pictures in this folder; looked for names ending in {', '.join(PICTURES)}.")
            found += [(p, out / p.relative_to(item).with_suffix("")) for p in inside]
        elif item.is_file():
            found.append((item, out / item.stem))
        else:
            raise MissingFileError(f"{item}: no such picture or folder. Check the path.")
    taken: dict[Path, Path] = {}
    for picture, target in found:
        if target in taken:
            raise ArgumentError(f"{taken[target]} and {picture} would both be written to {target}_*. Run them one by one.")
        taken[target] = picture
    return found


def _print_areas(segmentation) -> None:
    rows = [[name.strip(), f"{area:.1%}"] for name, area in segmentation.areas().items()]
    print(tables.plain(("class", "area"), rows, left=1))


def _predict(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    pictures = _pictures(args.pictures, Path(args.out))  # refuse before a model is loaded
    from .segmenter import Segmenter, save_picture

    segmenter = Segmenter(_model(args), mode=args.mode, scales=args.scales, flip=args.flip, batch_size=args.batch_size, amp=args.amp)
    failed = []
    bar = tqdm(pictures, unit="picture", disable=len(pictures) == 1)
    for picture, target in bar:
        try:
            segmentation = segmenter(picture)
        except (ImageError, MissingFileError) as error:
            failed.append(str(error))
            continue
        labels = segmentation.save(target.with_name(target.name + "_labels.png"))
        overlay = target.with_name(target.name + "_overlay.png")
        save_picture(segmentation.overlay(args.alpha), overlay)
        if len(pictures) == 1:
            _print_areas(segmentation)
            print(f"wrote {labels} and {overlay}")
    if len(pictures) > 1:
        print(f"{len(pictures) - len(failed)} of {len(pictures)} pictures segmented into {args.out}")
    for message in failed:
        print(f"upernet-zoo: {message}", file=sys.stderr)
    return 1 if failed else 0


def _demo(args: argparse.Namespace) -> int:
    from .demo.run import run

    _print_areas(run(Path(args.out), args.seed, say=print))
    return 0


def _scales(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="upernet-zoo", description="Pretrained UPerNet segmentation models in plain PyTorch.")
    parser.add_argument("--version", action="version", version=f"upernet-zoo {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    def command(name: str, run, help: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help)
        sub.set_defaults(run=run)
        return sub

    def model_options(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("model", help="a name (upernet-zoo list), local-dir:FOLDER, or a checkpoint file")
        sub.add_argument("--checkpoint", metavar="FILE", help="a checkpoint file on disk for a model of the list")
        sub.add_argument("--device", help="cpu, cuda, ... (default: cuda if there is one)")

    sub = command("list", _list, "list the models and their published numbers")
    sub.add_argument("pattern", nargs="?", default="*", help="wildcards, such as '*r101*'")
    sub.add_argument("--dataset", help="cityscapes, ade20k or voc12aug")
    sub.add_argument("--backbone", help="R-50 or R-101")
    sub.add_argument("--sort", metavar="KEY", help="best first: mIoU, 'mIoU(ms+flip)', fps, memory_gb or schedule")
    sub.add_argument("--format", choices=tables.FORMATS, default="table")

    sub = command("info", _info, "show all that the index says of a model")
    sub.add_argument("model")
    sub.add_argument("--format", choices=tables.FORMATS, default="table")

    sub = command("predict", _predict, "segment pictures: label maps (indexed PNG) and overlays")
    model_options(sub)
    sub.add_argument("pictures", nargs="+", help="picture files, or folders of them")
    sub.add_argument("--out", default="predictions", metavar="FOLDER", help="where to write (default: predictions)")
    sub.add_argument("--mode", choices=("whole", "slide"), help="in place of the model's recipe")
    sub.add_argument("--scales", type=_scales, default=(1.0,), help="ratios such as 0.5,0.75,1,1.25,1.5,1.75, averaged")
    sub.add_argument("--flip", action="store_true", help="average with the mirrored picture")
    sub.add_argument("--batch-size", type=int, default=1, help="windows and views at once")
    sub.add_argument("--amp", action="store_true", help="half precision")
    sub.add_argument("--alpha", type=float, default=0.5, help="opacity of the overlay, 0 to 1")

    sub = command("demo", _demo, "segment a drawn street scene with the small demo model that the package carries; no network")
    sub.add_argument("--out", default="upernet_zoo_demo.png", metavar="FILE", help="the picture to write")
    sub.add_argument("--seed", type=int, default=None, help="which unseen scene")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 1 for an error, 2 for wrong usage, 130 when interrupted."""
    args = _parser().parse_args(argv)
    try:
        return args.run(args)
    except UPerNetZooError as error:
        print(f"upernet-zoo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("upernet-zoo: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `upernet-zoo list | head`: the reader has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


if __name__ == "__main__":
    sys.exit(main())
