"""Teach the demo model four classes in place of its nineteen, and a model without its weights the same; write results/finetune.json.

    python benchmarks/finetune.py            # about ten minutes on 2 cores

Neither has seen the scenes that they are measured on, nor has the demo model seen those that they learn from: training scenes are
numbered from 200,000 on, those that choose the best model from 300,000, those that it is then measured on from 400,000. Both take the
same steps with the same settings, but for the learning rates, of which the one without pretrained weights has the demo's own training's.
"""

import argparse
import dataclasses
import json
import tempfile
import time
from pathlib import Path

import torch
from machine import record

import upernet_zoo as uz
from upernet_zoo.demo import folder, run
from upernet_zoo.evaluation import SegmentationDataset, evaluate, open_dataset
from upernet_zoo.models import UPerNet
from upernet_zoo.training import TrainingSettings, open_splits, train

TRAINING, VALIDATION, TEST = range(200_000, 200_400), range(300_000, 300_020), range(400_000, 400_100)
PRETRAINED = dict(lr=1e-3, head_multiplier=3.0)
SCRATCH = dict(lr=3e-3, head_multiplier=1.0)  # tools/train_demo.py


def measure(model: UPerNet, root: Path, test: SegmentationDataset, settings: TrainingSettings, out: Path) -> dict:
    """Train, and measure the best model on scenes that had no part in it."""
    start = time.perf_counter()
    training, validation = open_splits("folder", root)
    result = train(model, training, validation, out, settings)
    seconds = time.perf_counter() - start
    measured = evaluate(uz.create_model(f"local-dir:{result.best}"), test)
    return {
        "seconds": round(seconds, 1),
        "mIoU": round(measured.mIoU, 4),
        "IoU": {name: round(iou, 4) for name, iou in zip(measured.classes, measured.IoU)},
        "validation": [{"step": row["step"], "mIoU": round(row["mIoU"], 4)} for row in result.rows if row["mIoU"] is not None],
        "settings": {key: value for key, value in settings.to_dict().items() if value is not None},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--try", dest="trial", action="store_true", help="write nothing")
    args = parser.parse_args()
    shared = TrainingSettings(
        steps=args.steps, batch_size=4, crop=(192, 192), optimizer="adamw", weight_decay=0.01, warmup=0.1,
        evaluate_every=-(-args.steps // 3), seed=args.seed,
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="upernet_zoo_finetune_") as name:
        root = Path(name)
        for split, seeds in (("train", TRAINING), ("val", VALIDATION), ("test", TEST)):
            folder.write(root / split, seeds)
        (root / "classes.txt").write_text("\n".join(folder.MERGED) + "\n", encoding="utf-8")
        test = open_dataset("folder", root / "test", open_splits("folder", root)[0].label_set)
        torch.manual_seed(args.seed)
        pretrained = run.load(cache_dir=root / "cache")
        pretrained.reset_classifier(test.label_set)
        scratch = UPerNet(pretrained.config, pretrained.recipe, test.label_set)
        results = {
            "scenes": {"training": len(TRAINING), "validation": len(VALIDATION), "test": len(test)},
            "classes": folder.MERGED,
            "fine-tuned": measure(pretrained, root, test, dataclasses.replace(shared, **PRETRAINED), root / "fine-tuned"),
            "from scratch": measure(scratch, root, test, dataclasses.replace(shared, **SCRATCH), root / "scratch"),
        }
    print(json.dumps(results, indent=1))
    if not args.trial:
        record("finetune", results, steps=args.steps, seed=args.seed, threads=torch.get_num_threads())


if __name__ == "__main__":
    main()
