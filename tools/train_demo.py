"""Train the demo model on drawn street scenes, with the library's own model, loss and metrics, and measure it on unseen ones.

    python tools/train_demo.py            # about half an hour on 2 cores

Writes upernet_zoo/demo/upernet_demo_r18_street-<digest>.pth in the published file format (at most 3 MB), the demo's own index beside it,
and results/demo_training.json. Scenes from 0 on are for training, 100,000 to 100,199 for measuring; the demo shows scenes from
1,000,000 on. The same seed gives the same crops and the same initial weights.
"""

import argparse
import hashlib
import json
import math
import multiprocessing
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import yaml
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
from machine import record  # noqa: E402

from upernet_zoo import Recipe, UPerNetConfig, labels  # noqa: E402
from upernet_zoo.checkpoint import to_published  # noqa: E402
from upernet_zoo.demo import scenes  # noqa: E402
from upernet_zoo.evaluation.metrics import SegmentationMetrics  # noqa: E402
from upernet_zoo.models import UPerNet  # noqa: E402
from upernet_zoo.segmenter import Segmenter  # noqa: E402

NAME = "upernet_demo_r18_street"
FOLDER = ROOT / "upernet_zoo" / "demo"
CONFIG = UPerNetConfig(depth=18, num_classes=19, base_channels=12, stem_channels=24, channels=48, aux_channels=24)
RECIPE = Recipe(scale=(512, 256))
LABELS = labels.get("cityscapes")
FIRST_HELD_OUT, HELD_OUT_SCENES = 100_000, 200

MAX_BYTES = 3_000_000


def drawn(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures and labels of the training scenes, drawn by one process for each core."""
    with multiprocessing.Pool() as pool:
        pairs = list(tqdm(pool.imap(scenes.draw, range(count), chunksize=8), total=count, unit="scene", mininterval=10))
    return np.stack([image for image, _ in pairs]), np.stack([target for _, target in pairs])


def batches(
    images: np.ndarray, targets: np.ndarray, steps: int, batch: int, crop: int, seed: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Normalised square crops and their targets, half of them mirrored.

    Of three crops of a scene the one with the rarer classes is taken: a pixel counts as much as one over the root of its class's share.
    """
    rng = np.random.default_rng(seed)
    shares = np.bincount(targets.ravel(), minlength=CONFIG.num_classes) / targets.size
    weights = 1 / np.sqrt(shares)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (RECIPE.mean, RECIPE.std))

    def one(scene: int) -> tuple[torch.Tensor, torch.Tensor]:
        rows, columns = (rng.integers(side - crop + 1, size=3) for side in targets.shape[1:])
        choices = [(slice(y, y + crop), slice(x, x + crop)) for y, x in zip(rows, columns)]
        y, x = max(choices, key=lambda c: weights[targets[scene][c]].sum())
        step = -1 if rng.random() < 0.5 else 1
        image, target = images[scene, y, x][:, ::step], targets[scene, y, x][:, ::step]
        return torch.from_numpy(image.transpose(2, 0, 1).copy()), torch.from_numpy(target.copy())

    for _ in range(steps):
        x, target = map(torch.stack, zip(*(one(scene) for scene in rng.integers(len(images), size=batch))))
        yield ((x - mean) / std).contiguous(memory_format=torch.channels_last), target


def train(count: int, steps: int, batch: int, crop: int, rate: float, seed: int) -> UPerNet:
    """A model trained on the first `count` scenes: AdamW, the learning rate up to `rate` in a tenth of the steps, then down to nothing."""
    torch.manual_seed(seed)
    model = UPerNet(CONFIG, RECIPE, LABELS).train().to(memory_format=torch.channels_last)
    decayed = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() <= 1]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.01}, {"params": rest, "weight_decay": 0.0}], lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    images, targets = drawn(count)
    smooth = math.nan
    bar = tqdm(batches(images, targets, steps, batch, crop, seed), total=steps, unit="step", mininterval=10)
    for x, target in bar:
        loss = model.loss(x, target)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        smooth = loss.item() if math.isnan(smooth) else 0.98 * smooth + 0.02 * loss.item()
        bar.set_postfix(loss=f"{smooth:.3f}", refresh=False)
    return model.eval().to(memory_format=torch.contiguous_format)


def evaluate(model: UPerNet) -> dict:
    """mIoU, mAcc, aAcc and each class's IoU on scenes that training never drew, as `Segmenter` labels them."""
    segmenter, metrics = Segmenter(model), SegmentationMetrics(CONFIG.num_classes)
    for seed in tqdm(range(FIRST_HELD_OUT, FIRST_HELD_OUT + HELD_OUT_SCENES), unit="scene", mininterval=10):
        image, target = scenes.draw(seed)
        metrics.update(segmenter(image).labels.astype(np.int64), target.astype(np.int64))
    result = metrics.result()
    per_class = {name: None if math.isnan(v) else round(v, 4) for name, v in zip(LABELS.classes, map(float, result.IoU))}
    return {"mIoU": round(result.mIoU, 4), "mAcc": round(result.mAcc, 4), "aAcc": round(result.aAcc, 4), "IoU": per_class}


def publish(model: UPerNet, steps: int, seed: int) -> Path:
    """Write the checkpoint in the published format, its digest in its name, and the index that names it; older ones go."""
    text = (
        f"model = dict(\n    type='EncoderDecoder',\n    backbone=dict(type='ResNetV1c', depth={CONFIG.depth},\n"
        f"        base_channels={CONFIG.base_channels}, stem_channels={CONFIG.stem_channels}),\n"
        f"    decode_head=dict(type='UPerHead', channels={CONFIG.channels}, pool_scales={CONFIG.pool_scales},\n"
        f"        num_classes={CONFIG.num_classes}, align_corners={CONFIG.align_corners}),\n"
        f"    test_cfg=dict(mode='{RECIPE.mode}'))\n"
        f"test_pipeline = [dict(type='MultiScaleFlipAug', img_scale={RECIPE.scale}, transforms=[\n"
        f"    dict(type='Normalize', mean={list(RECIPE.mean)}, std={list(RECIPE.std)}, to_rgb=True)])]\n"
    )
    meta = {"config": text, "CLASSES": LABELS.classes, "PALETTE": [list(c) for c in LABELS.palette], "seed": seed, "exp_name": NAME}
    temporary = FOLDER / "new.pth"
    torch.save({"meta": meta, "state_dict": to_published(model.state_dict())}, temporary)
    digest = hashlib.sha256(temporary.read_bytes()).hexdigest()
    if temporary.stat().st_size > MAX_BYTES:
        raise SystemExit(f"{temporary}: {temporary.stat().st_size} bytes; at most {MAX_BYTES} go into the package.")
    for old in FOLDER.glob(f"{NAME}-*.pth"):
        old.unlink()
    path = temporary.rename(FOLDER / f"{NAME}-{digest[:8]}.pth")
    config = {k: v for k, v in CONFIG.to_dict().items() if k not in ("pool_scales", "in_channels")}
    entry = {
        "Name": NAME,
        "In Collection": "UPerNet demo",
        "Metadata": {"Method": "UPerNet", "Backbone": "R-18", "Crop Size": "256x512", "Lr schd": steps},
        "Results": [{"Task": "Semantic Segmentation", "Dataset": "drawn street scenes", "Metrics": {}}],
        "Config": {**config, "labels": LABELS.name, "scale": list(RECIPE.scale), "mode": RECIPE.mode},
        "Weights": f"file:///{path.name}",
        "SHA256": digest,
    }
    header = (
        "# The demo's own index, written by tools/train_demo.py. The demo is not one of the zoo's models; its file is in the package.\n"
    )
    index = yaml.safe_dump({"Collections": [{"Name": "UPerNet demo"}], "Models": [entry]}, sort_keys=False)
    (FOLDER / "model_index.yml").write_text(header + index, encoding="utf-8")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=2400)
    parser.add_argument("--steps", type=int, default=6400)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--crop", type=int, default=176)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--try", dest="trial", action="store_true", help="train and measure, but write nothing")
    args = parser.parse_args()
    start = time.perf_counter()
    model = train(args.scenes, args.steps, args.batch, args.crop, args.rate, args.seed)
    seconds = time.perf_counter() - start
    results = {"training_seconds": round(seconds), "held_out_scenes": HELD_OUT_SCENES, **evaluate(model)}
    if not args.trial:
        path = publish(model, args.steps, args.seed)
        results = {"checkpoint": path.name, "bytes": path.stat().st_size, **results}
        settings = {key: getattr(args, key) for key in ("scenes", "steps", "batch", "crop", "rate", "seed")}
        record("demo_training", results, **settings)
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
