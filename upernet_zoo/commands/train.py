"""upernet-zoo train: a model of one's own classes."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from .. import labels
from .common import Commands, load_model, pair


def _train(args: argparse.Namespace) -> int:
    import torch

    from .. import visualize
    from ..evaluation.evaluate import default_device, is_first_process
    from ..training import TrainingSettings, open_splits, train

    settings = TrainingSettings(**{f.name: getattr(args, f.name) for f in dataclasses.fields(TrainingSettings) if hasattr(args, f.name)})
    if args.plot:
        visualize.require_matplotlib()  # refuse before hours of work
    label_set = None
    if args.classes:
        label_set = labels.LabelSet(name=Path(args.root).absolute().name, classes=tuple(c.strip() for c in args.classes.split(",")))
    training, validation = open_splits(args.dataset, args.root, label_set)
    args.device = args.device or default_device()
    torch.manual_seed(settings.seed)  # of new classifiers
    model = load_model(args)
    if model.label_set.classes != training.label_set.classes:
        model.reset_classifier(training.label_set)
    out = Path(args.out)
    if args.dry_run:
        return _dry_run(model, training, validation, settings, out)
    result = train(model, training, validation, out, settings, device=args.device, workers=args.workers)
    if is_first_process():
        if args.plot:
            result.plot(out / "curves.png")
        print(f"best mIoU {100 * result.best_mIoU:.2f} after {result.best_step} steps: local-dir:{result.best}")
        print(f"last model: local-dir:{result.last}")
    return 0


def _dry_run(model, training, validation, settings, out: Path) -> int:
    """What the masks hold, and a batch as training would see it."""
    from ..segmenter import save_picture
    from ..training.data import Crops, picture_of, require_classes, survey, survey_table
    from ..visualize import beside, blend, legend, stack

    label_set = training.label_set
    found = survey(training, "training"), survey(validation, "validation")
    print(survey_table(label_set, *found))
    require_classes(label_set, found[0])
    crops, rows = Crops(training, model.recipe, settings), []
    for position in range(settings.batch_size):
        x, target = crops[position]
        image, labelled = picture_of(x, model.recipe), target.numpy()
        rows.append(beside({f"crop {position}": image, "labels": blend(image, labelled, label_set.palette, 0.6)}))
    rows.append(legend(list(zip(label_set.classes, label_set.palette)), rows[0].width))
    path = out / "dry_run.png"
    save_picture(stack(rows), path)
    height, width = crops.crop
    print(f"wrote {path}: {settings.batch_size} crops of {height}x{width} pixels, as the first step would see them")
    return 0


def _steps_and_rates(sub: argparse.ArgumentParser) -> None:
    """An option for each of `TrainingSettings`, which has the defaults and checks the values."""

    def add(name: str, help: str, **options) -> None:
        sub.add_argument(f"--{name}", default=argparse.SUPPRESS, help=help, **options)

    add("steps", "updates of the weights (default: 2000)", type=int, metavar="N")
    add("batch-size", "crops in a step, over all processes (default: 8)", type=int, metavar="N")
    add("crop", "size of the crops (default: the model's windows, or a square of at most 512)", type=pair, metavar="HxW")
    add("optimizer", "default: sgd", choices=("sgd", "adamw"))
    add("lr", "learning rate of the backbone (default: 0.001)", type=float)
    add("head-multiplier", "the heads learn so many times faster (default: 10)", type=float, metavar="X")
    add("weight-decay", "of convolutions (default: 0.0005)", type=float, metavar="X")
    add("warmup", "share of the steps (default: 0.05)", type=float, metavar="X")
    add("freeze-stages", "keep the stem and so many stages of the backbone as they are", type=int, metavar="0-4")
    add("freeze-batch-norm", "keep all batch norms as they are, as a batch of one picture needs it", action="store_true")
    add("grad-checkpointing", "less memory, more time", action="store_true")
    add("amp", "mixed precision", action="store_true")
    add("evaluate-every", "steps (default: a tenth of all)", type=int, metavar="N")
    add("seed", "default: 0", type=int, metavar="N")


def register(commands: Commands) -> None:
    sub = commands.add("train", _train, "teach a model the classes of labelled pictures; run again to go on after an interruption")
    sub.add_argument("dataset", help="cityscapes, ade20k, voc12aug, or folder (images/ and masks/, or train/ and val/ with these)")
    sub.add_argument("root", help="the data set's folder")
    sub.add_argument("--model", required=True, help="a name (upernet-zoo list), local-dir:FOLDER, or a checkpoint file")
    sub.add_argument("--out", required=True, metavar="FOLDER", help="for best/, last/, log.csv, and the state to go on from")
    sub.add_argument(
        "--classes", metavar="NAME,...", help="of the ids 0, 1, ... in a folder's masks (default: the lines of its classes.txt)"
    )
    sub.add_argument("--checkpoint", metavar="FILE", help="a checkpoint file on disk for a model of the list")
    sub.add_argument("--device", help="cpu, cuda, ... (default: cuda if there is one)")
    sub.add_argument("--workers", type=int, metavar="N", help="processes that read and augment (default: 0 on the CPU, else up to 8)")
    _steps_and_rates(sub)
    sub.add_argument("--plot", action="store_true", help="also a plot of loss and mIoU, curves.png (needs matplotlib)")
    sub.add_argument("--dry-run", action="store_true", help="count what the masks hold, draw one augmented batch, and train nothing")
