"""upernet-zoo evaluate: a model's numbers on a data set, beside the published ones."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .. import files
from ..errors import ArgumentError
from .common import Commands, add_ids, add_model, add_views, loading, require_dataset, require_model, views

__all__ = ["register"]


def _evaluate(args: argparse.Namespace) -> int:
    require_dataset(args)
    require_model(args)
    from ..distributed import is_first_process
    from ..evaluation import MULTI_SCALE, Evaluation, plots
    from ..evaluation.result import metric_names
    from ..files import expanded

    if args.ms_flip:
        if args.scales != (1.0,):
            raise ArgumentError("--ms-flip has scales of its own. Leave out --scales, or give --scales and --flip alone.")
        args.scales, args.flip = MULTI_SCALE, True
    metrics = metric_names(args.metrics.split(","))
    if args.plot:
        plots.require_matplotlib()  # refuse before hours of work
    evaluation = Evaluation(
        args.model,
        args.dataset,
        args.root,
        ids=args.ids,
        limit=args.limit,
        optimize=args.optimize,
        **loading(args),
        **views(args),
    )
    out = expanded(args.out) if args.out else Path("evaluation") / evaluation.folder_name()
    bars, confusion = out / "classes.png", out / "confusion.png"
    if args.plot:
        for path in (bars, confusion):
            files.require_replaceable(path, plots.is_own, None)
    first = is_first_process()
    result = evaluation.run(out, save_worst=args.save_worst, say=print if first else None)
    if first:
        if args.plot:
            result.plot(bars)
            result.plot_confusion(confusion)
        print(result.table(metrics))
        print(f"wrote {out}")
        if result.failures:
            print("upernet-zoo:", result.failure_report(), file=sys.stderr)
            return 1  # the first process alone: when one fails, torchrun ends the others, and the first may not have written all
    return 0


def register(commands: Commands) -> None:
    """Add the command of this module."""
    sub = commands.add("evaluate", _evaluate, "measure a model on a data set, in percent; run again to go on after an interruption")
    add_model(sub)
    sub.add_argument(
        "dataset", help="cityscapes, ade20k, voc12aug, or folder (images/ and masks/, and what the ids mean in classes.txt, .json or .yaml)"
    )
    sub.add_argument("root", help="the data set's folder")
    add_ids(sub)
    add_views(sub)
    sub.add_argument("--ms-flip", action="store_true", help="the six scales and the flip of the published ms+flip numbers")
    sub.add_argument("--optimize", action="store_true", help="run the fused model: faster, and the same to about 1e-6")
    sub.add_argument("--limit", type=int, metavar="N", help="only the first N pictures")
    sub.add_argument(
        "--metrics",
        default="IoU,Acc",
        metavar="NAME,...",
        help="of IoU, Acc, Dice (or F1), Precision, Recall, what is printed (default: IoU,Acc)",
    )
    sub.add_argument("--save-worst", type=int, default=0, metavar="N", help="write the N pictures of the lowest mIoU (default: 0)")
    sub.add_argument(
        "--out",
        metavar="FOLDER",
        help="where to write and what to go on from (default: a folder of its own in evaluation/ for each model, data set and way to run)",
    )
    sub.add_argument("--plot", action="store_true", help="also pictures of the classes' IoU and of the confusion matrix (needs matplotlib)")
