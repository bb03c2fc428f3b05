"""The public API as a type checker sees it, used rightly and wrongly. Nothing here is run: `test_typing.py` has mypy read it.

mypy must take every line but those marked `# wrong`, and must refuse each of these.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import upernet_zoo as uz
from upernet_zoo.evaluation import EvaluationResult, open_dataset
from upernet_zoo.training import TrainingSettings, open_splits, train


def right(picture: np.ndarray, out: Path) -> None:
    model: uz.UPerNet = uz.create_model("upernet_r50_512x512_160k_ade20k", pretrained=False, num_classes=4)
    logits: Tensor = model(torch.zeros(1, 3, 64, 64))
    own: uz.UPerNet = uz.load_checkpoint(out / "model.pth", device="cpu", dtype=torch.float16)
    names: list[str] = uz.list_models("*r50*", dataset="ADE20K")
    miou: float = uz.model_info(names[0]).metrics["mIoU"]
    segmentation: uz.Segmentation = uz.Segmenter(own, scales=(0.75, 1.0), flip=True)(picture)
    areas: dict[str, float] = segmentation.areas()
    result: EvaluationResult = uz.evaluate(model, "cityscapes", out, limit=4)
    loss: float = uz.training.train(model, *open_splits("folder", out), out, TrainingSettings(steps=10)).best_mIoU
    features: list[Tensor] = list(uz.create_backbone(out / "model.pth")(logits))
    print(miou, areas, result.mIoU, loss, len(features), uz.errors.ModelNotFoundError("x"))


def wrong(picture: np.ndarray, out: Path) -> None:
    model = uz.create_model("demo")
    uz.create_model("demo", pretraned=False)  # wrong
    uz.create_model("demo", num_classes="4")  # wrong
    uz.load_checkpoint(out, ema="yes")  # wrong
    uz.list_models(data_set="ADE20K")  # wrong
    uz.model_info("demo").metric["mIoU"]  # wrong
    uz.Segmenter(model, scales=1.0)  # wrong
    uz.Segmenter(model)(picture).labels.areas()  # wrong
    uz.evaluate(model, "cityscapes", out, limit="4")  # wrong
    train(model, open_dataset("folder", out), out)  # wrong
    TrainingSettings(step=10)  # wrong
