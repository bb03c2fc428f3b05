"""upernet-zoo evaluate: a model's numbers on a data set, beside the published ones."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from ..errors import ArgumentError
from .common import Commands, add_model, add_views, load_model, views


def _evaluate(args: argparse.Namespace) -> int:
    from .. import visualize
    from ..evaluation import MULTI_SCALE, evaluate, open_dataset
    from ..evaluation.evaluate import default_device, is_first_process

    if args.ms_flip:
        if args.scales != (1.0,):
            raise ArgumentError("--ms-flip has scales of its own. Leave out --scales, or give --scales and --flip alone.")
        args.scales, args.flip = MULTI_SCALE, True
    if args.plot:
        visualize.require_matplotlib()  # refuse before hours of work
    name = "-".join([Path(args.model.rstrip("/")).name, args.dataset] + ["ms-flip"] * args.ms_flip)
    out = Path(args.out or Path("evaluation") / re.sub(r"[^A-Za-z0-9._-]", "_", name))
    # opened before the model is looked for; "folder" needs the model's label set
    dataset = args.dataset if args.dataset == "folder" else open_dataset(args.dataset, args.root)
    args.device = args.device or default_device()
    result = evaluate(
        load_model(args),
        dataset,
        args.root,
        **views(args),
        optimize=args.optimize,
        limit=args.limit,
        out=out,
        save_worst=args.save_worst,
    )
    if is_first_process():
        if args.plot:
            result.plot(out / "classes.png")
        print(result.table())
        print(f"wrote {out}")
    return 0


def register(commands: Commands) -> None:
    sub = commands.add("evaluate", _evaluate, "measure a model on a data set; run again to go on after an interruption")
    add_model(sub)
    sub.add_argument("dataset", help="cityscapes, ade20k, voc12aug, or folder (images/ and masks/ with the model's own ids)")
    sub.add_argument("root", help="the data set's folder")
    add_views(sub)
    sub.add_argument("--ms-flip", action="store_true", help="the six scales and the flip of the published ms+flip numbers")
    sub.add_argument("--optimize", action="store_true", help="run the fused twin of the model: sooner, and the same to about 1e-6")
    sub.add_argument("--limit", type=int, metavar="N", help="only the first N pictures")
    sub.add_argument("--save-worst", type=int, default=0, metavar="N", help="write the N pictures of the lowest mIoU beside the labels")
    sub.add_argument("--out", metavar="FOLDER", help="where to write and what to go on from (default: evaluation/MODEL-DATASET)")
    sub.add_argument("--plot", action="store_true", help="also a bar plot of the classes (needs matplotlib)")
