"""upernet-zoo list, info: the index, without torch."""

from __future__ import annotations

import argparse
import sys

from .. import index, sources, tables
from ..errors import ArgumentError
from .common import Commands


def _list(args: argparse.Namespace) -> int:
    names = index.list_models(args.pattern, dataset=args.dataset, backbone=args.backbone, sort=args.sort)
    if not names and args.format == "table":
        print(f"No model matches {args.pattern!r}; upernet-zoo list shows all.", file=sys.stderr)
        return 1
    print(tables.render([index.model_info(name) for name in names], args.format))
    return 0


def _info(args: argparse.Namespace) -> int:
    if args.digests:
        return _digests([index.model_info(args.model)] if args.model else list(index.default().values()))
    if not args.model:
        raise ArgumentError("upernet-zoo info needs a model (upernet-zoo list shows them); only --digests goes without one.")
    print(tables.render_one(index.model_info(args.model), args.format))
    return 0


def _digests(entries: list[index.ModelEntry]) -> int:
    """The pinned digest of each model, as its entry in an index has it; the size, which an index does not take, as a comment."""
    missing = []
    for entry in entries:
        pin = sources.read_receipt(sources.cached_path(entry))
        if pin is None:
            missing.append(entry.name)
        else:
            print(f'  - Name: {entry.name}\n    SHA256: "{pin.sha256}" # {pin.size} bytes')
    if missing:
        print(
            f"upernet-zoo: no pinned digest of {', '.join(missing)}: the first verified download makes it (upernet-zoo download NAME).",
            file=sys.stderr,
        )
    return 1 if missing else 0


def register(commands: Commands) -> None:
    sub = commands.add("list", _list, "list the models and their published numbers")
    sub.add_argument("pattern", nargs="?", default="*", help="wildcards, such as '*r101*'")
    sub.add_argument("--dataset", help="cityscapes, ade20k or voc12aug")
    sub.add_argument("--backbone", help="R-50 or R-101")
    sub.add_argument("--sort", metavar="KEY", help="best first: mIoU, 'mIoU(ms+flip)', fps, memory_gb or schedule")
    sub.add_argument("--format", choices=tables.FORMATS, default="table")

    sub = commands.add("info", _info, "show all that the index says of a model")
    sub.add_argument("model", nargs="?")
    sub.add_argument("--format", choices=tables.FORMATS, default="table")
    sub.add_argument("--digests", action="store_true", help="the full SHA-256 pinned by the first download, as the index takes it")
