"""upernet-zoo list, info: the index, without torch."""

from __future__ import annotations

import argparse
import json
import sys

from .. import index, tables
from ..errors import ArgumentError
from ..reference import Reference
from ..weights import cache
from .common import Commands, add_model, load_model

__all__ = ["register"]


def _list(args: argparse.Namespace) -> int:
    names = index.list_models(args.pattern, dataset=args.dataset, backbone=args.backbone, license=args.license, sort=args.sort)
    if not names and args.format == "table":
        print(f"No model matches {args.pattern!r}; upernet-zoo list shows all.", file=sys.stderr)
        return 1
    render = tables.render if args.license is None else tables.render_licenses
    print(render([index.model_info(name) for name in names], args.format))
    return 0


def _info(args: argparse.Namespace) -> int:
    if args.digests:
        return _digests([index.model_info(args.model)] if args.model else list(index.default().values()))
    if not args.model:
        raise ArgumentError("upernet-zoo info needs a model (upernet-zoo list shows them); only --digests goes without one.")
    reference = Reference.parse(args.model)
    if reference.entry is None:
        return _info_of_saved(args)
    if args.checkpoint or args.sha256 or args.mirrors:
        raise ArgumentError("--checkpoint, --sha256 and --mirror go with commands that load a model; of a name, info reads the list alone.")
    print(tables.render_one(reference.entry, args.format))
    return 0


def _info_of_saved(args: argparse.Namespace) -> int:
    """What a file, folder or repository holds. Its record of its origin is shown as its own word, unless it is confirmed here."""
    from ..description import Description
    from ..provenance import Evidence, claim_of

    if args.format not in ("table", "json"):
        raise ArgumentError(f"--format {args.format} goes with a name of the list. Give table or json.")
    model = load_model(args)
    description, claim = Description.of(model).to_dict(), claim_of(model)
    metrics = dict(claim.entry.metrics) if claim is not None and claim.evidence is Evidence.PUBLISHED else None
    if args.format == "json":
        evidence = None if claim is None else claim.evidence.name.lower()
        print(json.dumps({**description, "evidence": evidence, "metrics": metrics}, indent=2))
        return 0
    labels = f"{model.label_set.title or model.label_set.name}, {len(model.label_set)} classes"
    rows = {"model": args.model, "backbone": model.config.backbone.title, "labels": labels}
    rows |= {"config": description["architecture"], "recipe": description["recipe"], "record": description["origin"]}
    if claim is not None:
        rows["evidence"] = f"the record names {claim.entry.name}; {claim.evidence.value}"
    print(tables.fields({**rows, **(metrics or {})}))
    return 0


def _digests(entries: list[index.ModelEntry]) -> int:
    """The pinned digest of each model, as its entry in an index has it; the size as a comment."""
    missing = []
    for entry in entries:
        pin = cache.read_receipt(cache.cached_path(entry))
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
    """Add the commands of this module."""
    sub = commands.add("list", _list, "list the models and their published numbers")
    sub.add_argument("pattern", nargs="?", default="*", help="wildcards, such as '*r101*'")
    sub.add_argument("--dataset", help="cityscapes, ade20k or voc12aug")
    sub.add_argument("--backbone", help="such as R-50, Swin-T or 'ConvNeXt*'")
    sub.add_argument(
        "--license",
        nargs="?",
        const="*",
        metavar="NAME",
        help="show what is stated of licenses; with a name or wildcards, such as 'cc-by-nc*', only the models of which a part has it",
    )
    sub.add_argument("--sort", metavar="KEY", help="best first: mIoU, 'mIoU(ms+flip)', fps, memory_gb, parameters, gmacs or schedule")
    sub.add_argument("--format", choices=tables.FORMATS, default="table", help="how it is printed (default: table)")

    sub = commands.add("info", _info, "show all that the index says of a model, or what a file, folder or repository holds")
    add_model(sub, nargs="?", device=False)
    sub.add_argument("--format", choices=tables.FORMATS, default="table", help="how it is printed (default: table)")
    sub.add_argument("--digests", action="store_true", help="the full SHA-256 pinned by the first download, as the index takes it")
