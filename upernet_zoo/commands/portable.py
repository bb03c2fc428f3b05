"""upernet-zoo convert, export: models of one's own in, and out to other libraries and runtimes."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from ..errors import ArgumentError
from ..transfer import size_text
from .common import Commands


def _is_transformers(source: str) -> bool:
    """Whether it is a folder that transformers wrote."""
    try:
        return "transformers_version" in json.loads((Path(source).expanduser() / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


def _load(args: argparse.Namespace):
    """The model of a checkpoint file (with its report printed), of a folder of transformers, or of a reference."""
    from .. import bridges, factory

    if Path(args.model).expanduser().is_file():
        model, report = factory.load_with_report(args.model, config=args.config, ema=args.ema)
        print(report)
        return model
    if args.config or args.ema:
        raise ArgumentError(f"--config and --ema go with a checkpoint file, and {args.model} is none.")
    return bridges.load_transformers(args.model) if _is_transformers(args.model) else factory.create_model(args.model)


def _convert(args: argparse.Namespace) -> int:
    from .. import bridges, convert

    out = Path(args.out).expanduser()
    if args.to == "mmseg" and out.suffix != ".pth":
        raise ArgumentError(f"--out {out}: a checkpoint for mmsegmentation is a .pth file. Name one.")
    if args.to != "mmseg" and out.exists() and not out.is_dir():
        raise ArgumentError(f"--out {out} is a file, and a folder is written. Name another.")
    model = _load(args)
    if args.to == "mmseg":
        convert.to_mmsegmentation(model, out)
        print(f"wrote {out} and {out.with_suffix('.py')}; use them: init_segmentor('{out.with_suffix('.py')}', '{out}')")
    elif args.to == "transformers":
        bridges.save_transformers(model, out)
        print(f"wrote {out}; use it: transformers.pipeline('image-segmentation', '{out}')")
    else:
        model.save_pretrained(out)
        print(f"wrote {out}; use it: upernet_zoo.create_model('local-dir:{out}')")
    return 0


def _export(args: argparse.Namespace) -> int:
    from .. import export
    from .common import load_model

    model = load_model(args)
    print("exporting and checking; this takes a minute or two", file=sys.stderr)
    write = export.to_onnx if args.format == "onnx" else export.to_torch
    path = write(model, args.out, labels=args.labels)
    shapes = ", ".join(f"{batch}x{height}x{width}" for batch, height, width in export.CHECKED_SHAPES)
    print(f"wrote {path} ({size_text(path.stat().st_size)}); it equals the model at {shapes} (batch, height, width)")
    return 0


def register(commands: Commands) -> None:
    sub = commands.add("convert", _convert, "bring a model from mmsegmentation or transformers, or take one there")
    sub.add_argument("model", help="a checkpoint file, a folder written by transformers, a name (upernet-zoo list) or local-dir:FOLDER")
    sub.add_argument("--out", required=True, help="the folder to write; with --to mmseg, the .pth file")
    sub.add_argument("--to", choices=("native", "mmseg", "transformers"), default="native", help="what to write (default: native)")
    sub.add_argument("--config", metavar="FILE", help="mmsegmentation's config of a checkpoint without one; it is parsed, not run")
    sub.add_argument("--ema", action="store_true", help="take the averaged weights of a training checkpoint")

    sub = commands.add("export", _export, "write a model for ONNX Runtime and others, or as a program of torch.export")
    sub.add_argument("model", help="a name (upernet-zoo list), local-dir:FOLDER, or a checkpoint file")
    sub.add_argument("--checkpoint", metavar="FILE", help="a checkpoint file on disk for a model of the list")
    sub.add_argument("--format", choices=("onnx", "torch"), default="onnx", help="default: onnx")
    sub.add_argument("--out", required=True, metavar="FILE", help="such as model.onnx or model.pt2")
    sub.add_argument("--labels", action="store_true", help="uint8 pictures in and labels out, in place of normalised ones and logits")
    sub.set_defaults(device="cpu")
