"""upernet-zoo train: a model of one's own classes."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import files, labels
from ..files import expanded
from ..label_files import require_names
from .common import Commands, add_ids, add_model, load_model, pair, require_dataset, require_model

if TYPE_CHECKING:
    from ..evaluation import SegmentationDataset
    from ..models import UPerNet
    from ..training import TrainingSettings

__all__ = ["register"]

_CURVES, _DRY_RUN = "curves.png", "dry_run.png"


def _train(args: argparse.Namespace) -> int:
    require_dataset(args)
    require_model(args)
    import torch

    from ..distributed import default_device, is_first_process
    from ..training import TrainingSettings, open_splits, train

    settings = TrainingSettings(**{f.name: getattr(args, f.name) for f in dataclasses.fields(TrainingSettings) if hasattr(args, f.name)})
    out = expanded(args.out)
    _require_room(out, args)
    training, validation = open_splits(args.dataset, args.root, _label_set(args), ids=args.ids)
    args.device = args.device or default_device()
    torch.manual_seed(settings.seed)  # of new classifiers
    model = _model_for(training.label_set, args)
    if args.dry_run:
        return _dry_run(model, training, validation, settings, out)
    result = train(model, training, validation, out, settings, device=args.device, workers=args.workers)
    if is_first_process():
        if args.plot:
            result.plot(out / _CURVES)
        print(f"best mIoU {100 * result.best_mIoU:.2f} after {result.best_step} steps: local-dir:{result.best}")
        print(f"last model: local-dir:{result.last}")
    return 0


def _require_room(out: Path, args: argparse.Namespace) -> None:
    """Refuse before hours of work what could not be written after them."""
    from ..evaluation import plots
    from ..images import save
    from ..training.loop import require_own_folder

    if args.plot:
        plots.require_matplotlib()
    if args.dry_run:
        files.require_replaceable(out / _DRY_RUN, save.is_own, None)
        return
    require_own_folder(out)
    if args.plot:
        files.require_replaceable(out / _CURVES, plots.is_own, None)


def _label_set(args: argparse.Namespace) -> labels.LabelSet | None:
    """The classes of --classes; None: the data set's own."""
    if not args.classes:
        return None
    names = tuple(c.strip() for c in args.classes.split(","))
    require_names(names, "--classes")
    return labels.LabelSet(name=Path(args.root).absolute().name or "folder", classes=names)


def _model_for(label_set: labels.LabelSet, args: argparse.Namespace) -> UPerNet:
    """The model that is asked for, with new classifiers where it has other classes."""
    model = load_model(args)
    if model.label_set.classes != label_set.classes:
        model.reset_classifier(label_set)
    else:
        model.label_set = label_set  # whose ids are those of these masks
    return model


def _dry_run(model: UPerNet, training: SegmentationDataset, validation: SegmentationDataset, settings: TrainingSettings, out: Path) -> int:
    """What the masks hold, and a batch as training would see it."""
    from ..images.save import save_picture
    from ..images.visualize import beside, blend, legend, stack
    from ..training.data import Crops, picture_of, require_classes, survey, survey_table

    label_set = training.label_set
    found = survey(training, "training"), survey(validation, "validation")
    print(survey_table(label_set, *found))
    require_classes(label_set, found[0])
    crops, rows = Crops(training, model.recipe, settings), []
    for position in range(settings.batch_size):
        x, target = crops[position]
        image, labeled = picture_of(x, model.recipe), target.numpy()
        rows.append(beside({f"crop {position}": image, "labels": blend(image, labeled, label_set.palette, 0.6)}))
    rows.append(legend(list(zip(label_set.classes, label_set.palette)), rows[0].width))
    path = out / _DRY_RUN
    save_picture(stack(rows), path)
    height, width = crops.crop
    print(f"wrote {path}: {settings.batch_size} crops of {height}x{width} pixels, as the first step would see them")
    return 0


def _steps_and_rates(sub: argparse.ArgumentParser) -> None:
    """An option for each of `TrainingSettings`, which has the defaults and checks the values."""

    def add(name: str, help: str, **options: Any) -> None:
        sub.add_argument(f"--{name}", default=argparse.SUPPRESS, help=help, **options)

    add("steps", "updates of the weights (default: 2000)", type=int, metavar="N")
    add("batch-size", "crops in a step, over all processes (default: 8)", type=int, metavar="N")
    add("crop", "size of the crops (default: the model's windows, or a square of at most 512)", type=pair, metavar="HxW")
    add("optimizer", "default: sgd, as for ResNets; the original trainings of all other backbones have adamw", choices=("sgd", "adamw"))
    add("lr", "learning rate of the backbone (default: 0.001)", type=float)
    add("head-multiplier", "the heads learn so many times faster (default: 10)", type=float, metavar="X")
    add("layer-decay", "each layer of the backbone learns so many times as fast as the one above it (default: 1)", type=float, metavar="X")
    add("weight-decay", "of all but norms, biases and embeddings (default: 0.0005)", type=float, metavar="X")
    add("warmup", "share of the steps (default: 0.05)", type=float, metavar="X")
    add("freeze-stages", "keep the stem and so many stages of the backbone as they are", type=int, metavar="0-4")
    add("freeze-batch-norm", "keep all batch norms as they are, as a batch of one picture needs it", action="store_true")
    add("grad-checkpointing", "less memory, more time", action="store_true")
    add("amp", "mixed precision", action="store_true")
    add("evaluate-every", "steps (default: a tenth of all)", type=int, metavar="N")
    add("seed", "default: 0", type=int, metavar="N")


def register(commands: Commands) -> None:
    """Add the command of this module."""
    sub = commands.add("train", _train, "teach a model the classes of labeled pictures; run again to go on after an interruption")
    sub.add_argument("dataset", help="cityscapes, ade20k, voc12aug, or folder (images/ and masks/, or train/ and val/ with these)")
    sub.add_argument("root", help="the data set's folder")
    add_ids(sub)
    add_model(sub, "--model", required=True)
    sub.add_argument("--out", required=True, metavar="FOLDER", help="for best/, last/, log.csv, and the state to go on from")
    sub.add_argument(
        "--classes",
        metavar="NAME,...",
        help="of the ids 0, 1, ... in a folder's masks (default: what its classes.txt, .json or .yaml says)",
    )
    sub.add_argument("--workers", type=int, metavar="N", help="processes that read and augment (default: 0 on the CPU, else up to 8)")
    _steps_and_rates(sub)
    sub.add_argument("--plot", action="store_true", help="also a plot of loss and mIoU, curves.png (needs matplotlib)")
    sub.add_argument("--dry-run", action="store_true", help="count what the masks hold, draw one augmented batch, and train nothing")
