"""upernet-zoo convert, export: models of one's own in, and out to other libraries and runtimes."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .. import written
from ..errors import ArgumentError, shown
from ..files import expanded, size_text
from ..interop import formats
from ..reference import Kind, Reference
from .common import Commands, add_model, load_model, pair, require_model

if TYPE_CHECKING:
    from ..models import UPerNet

__all__ = ["register"]


def _is_transformers(folder: Path) -> bool:
    """Whether transformers wrote it."""
    try:
        return "transformers_version" in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


def _load(args: argparse.Namespace) -> UPerNet:
    """The model of a checkpoint file (with its report printed), of a folder of transformers, or of any other reference."""
    from .. import factory
    from ..interop import transformers

    reference = Reference.parse(args.model)
    if (args.config or args.ema) and reference.kind is not Kind.FILE:
        raise ArgumentError(f"--config and --ema go with a checkpoint file, and {args.model} is none.")
    if reference.path is None or (reference.kind is Kind.FOLDER and not _is_transformers(reference.path)):
        return load_model(args)
    reference.require_options(checkpoint=args.checkpoint, sha256=args.sha256, mirrors=args.mirrors)
    if reference.kind is Kind.FOLDER:
        return transformers.load_transformers(reference.path)
    model, report = factory.load_with_report(reference.path, config=args.config, ema=args.ema, sha256=args.sha256)
    print(shown(str(report), "message"))
    return model


def _convert(args: argparse.Namespace) -> int:
    out = expanded(args.out)
    if args.to == "mmseg" and out.suffix != ".pth":
        raise ArgumentError(f"--out {out}: a checkpoint for mmsegmentation is a .pth file. Name one.")
    if args.to != "mmseg" and args.mmseg_version is not None:
        raise ArgumentError(f"--mmseg-version goes with --to mmseg, and this is --to {args.to}.")
    if args.to != "mmseg" and out.exists() and not out.is_dir():
        raise ArgumentError(f"--out {out} is a file, and a folder is written. Name another.")
    if args.to == "mmseg":
        for file in (out, out.with_suffix(".py")):
            written.require_replaceable(file, args.overwrite)
    else:
        written.require_replaceable_folder(out, args.overwrite)
    require_model(args)
    from ..interop import mmsegmentation, smp, transformers

    model = _load(args)
    if args.to == "mmseg":
        config, version = out.with_suffix(".py"), args.mmseg_version or 0
        mmsegmentation.to_mmsegmentation(model, out, version=version, overwrite=args.overwrite)
        print(f"wrote {out} and {config}; use them: {'init_model' if version else 'init_segmentor'}('{config}', '{out}')")
    elif args.to == "transformers":
        transformers.save_transformers(model, out, overwrite=args.overwrite)
        print(f"wrote {out}; use it: transformers.pipeline('image-segmentation', '{out}')")
    elif args.to == "smp":
        smp.save_smp(model, out, overwrite=args.overwrite)
        print(f"wrote {out}; use it: segmentation_models_pytorch.from_pretrained('{out}'); its README.md says how")
    else:
        model.save_pretrained(out, overwrite=args.overwrite)
        print(f"wrote {out}; use it: upernet_zoo.create_model('local-dir:{out}')")
    return 0


def _export(args: argparse.Namespace) -> int:
    out = expanded(args.out)
    formats.format_of(out, args.format)
    written.require_replaceable(out, args.overwrite)
    require_model(args)
    import torch

    from ..interop.export import HALF_TOLERANCE, checked_shapes, export, fitted, require_options
    from ..models import UPerNet

    options = {"form": args.form, "size": args.size, "half": args.half}
    writing = {"check": args.check, "overwrite": args.overwrite}
    require_options(out, **options, **writing)
    if entry := Reference.parse(args.model).entry:  # what it is can be known before its weights are here
        with torch.device("meta"):
            described = UPerNet(entry.config, entry.recipe, entry.label_set)
        fitted(described, out, labels=args.labels, **options)
    model = load_model(args)
    _, size = fitted(model, out, labels=args.labels, **options)
    print("exporting and checking; this takes a minute or two", file=sys.stderr)
    path = export(model, out, labels=args.labels, **options, **writing)
    shapes = ", ".join(f"{batch}x{height}x{width}" for batch, height, width in checked_shapes(size))
    agrees = (
        f"the model's logit of each label is its pixel's largest, but for {HALF_TOLERANCE * 100:g} % of the largest of all,"
        if args.half
        else "it equals the model"
    )
    print(f"wrote {path} ({size_text(path.stat().st_size)}); {agrees} at {shapes} (batch, height, width)")
    return 0


def register(commands: Commands) -> None:
    """Add the commands of this module."""
    sub = commands.add("convert", _convert, "bring a model from another library, or take one there")
    add_model(sub, device=False)
    sub.add_argument("--out", required=True, help="the folder to write; with --to mmseg, the .pth file")
    sub.add_argument("--to", choices=("native", "mmseg", "transformers", "smp"), default="native", help="what to write (default: native)")
    sub.add_argument("--mmseg-version", type=int, choices=(0, 1), help="with --to mmseg, whose config it is: 0.x or 1.x (default: 0)")
    sub.add_argument("--config", metavar="FILE", help="mmsegmentation's config of a checkpoint without one; it is parsed, not run")
    sub.add_argument("--ema", action="store_true", help="take the averaged weights of a training checkpoint")
    sub.add_argument("--overwrite", action="store_true", help="replace files that are there and were not written here")

    sub = commands.add("export", _export, "write a model for ONNX Runtime and others, or as a program of torch.export")
    add_model(sub, device=False)
    sub.add_argument("--format", choices=("onnx", "torch"), help="what the ending of --out must say")
    sub.add_argument("--out", required=True, metavar="FILE", help="model.onnx, or model.pt2 for torch.export: the ending says the format")
    sub.add_argument("--labels", action="store_true", help="uint8 pictures in and labels out, in place of normalized ones and logits")
    sub.add_argument("--form", choices=formats.FORMS, help="of the graph (default: fused; plain of narrow heads and of .pt2 of any size)")
    sub.add_argument("--size", type=pair, metavar="HxW", help="the only pictures that it takes, such as 512x512 (default: any size)")
    sub.add_argument("--half", action="store_true", help="float16, for GPUs, in the form direct; compared with the labels of float32")
    sub.add_argument("--check", action="append", default=[], choices=["openvino"], help="compare it with the model there too")
    sub.add_argument("--overwrite", action="store_true", help="replace a file that is there and was not exported here")
