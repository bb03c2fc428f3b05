"""mmsegmentation 1.x in a process of its own: started by mmsegmentation_1x.py with the Python of its environment.

    python peer_1x.py train FOLDER    # small UPerNets trained by its own Runner, one for each case, and what its own inference says
    python peer_1x.py run FOLDER      # init_model and inference_model for each FOLDER/*/back.py and back.pth

Each case is a published config, its widths divided by 16, with a few settings changed. Writes FOLDER/<case>/case.json (its name, and the
ratios of its views if it is run in views too) and expected.npz or back.npz: labels of each photo, and probabilities at some pixels.
"""

import copy
import json
import shutil
import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

warnings.filterwarnings("ignore")
import mmseg
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.model import revert_sync_batchnorm
from mmengine.runner import Runner
from mmseg.apis import inference_model, init_model
from mmseg.models.segmentors import SegTTAModel
from mmseg.utils import register_all_modules
from PIL import Image

CONFIGS = Path(mmseg.__file__).parent / ".mim" / "configs" / "upernet"
PHOTOS = [Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "photos" / name for name in ("chelsea.png", "coffee.png")]
RATIOS = (0.5, 1.0, 1.5)  # of the views
PIXELS = 3000
R18 = "upernet_r18_4xb4-20k_voc12aug-512x512"
USUAL = dict(type="Resize", scale=(640, 256), keep_ratio=True)  # of the cases on R18
BACKBONE, HEAD, AUXILIARY, PREPROCESSOR = ("model." + part for part in ("backbone", "decode_head", "auxiliary_head", "data_preprocessor"))


@dataclass
class Case:
    """A published config, changed.

    Attributes:
        settings: dotted path -> value that it gets.
        resize: the test pipeline's step; None: no such step; (): the published one.
        after: steps behind it.
        classes: of a data set of one's own.
        views: how each ratio of a run in several views resizes: "scale", "own" (the picture's own size) or "".
        base: the published config.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    resize: Any = field(default_factory=lambda: dict(USUAL))
    after: tuple[dict[str, Any], ...] = ()
    classes: tuple[str, ...] = ()
    views: str = ""
    base: str = R18


def published(name, views=""):
    return Case(base=name, resize=(), views=views)


def resized(views="", **step):
    return Case(resize={"type": "Resize", **step}, views=views)


def put(views="", **settings):
    return Case({key.replace("__", "."): value for key, value in settings.items()}, views=views)


CITYSCAPES, ADE, VOC = "upernet_r{}_4xb2-{}k_cityscapes-{}", "upernet_r{}_4xb4-{}k_ade20k-512x512", "upernet_r{}_4xb4-{}k_voc12aug-512x512"
AVERAGED = dict(type="EMAHook", ema_type="ExponentialMovingAverage", momentum=0.3)
AVERAGED_TOO = dict(type="EMAHook", ema_type="StochasticWeightAverage", update_buffers=True)
SIGMOID = dict(type="CrossEntropyLoss", use_sigmoid=True, loss_weight=1.0)
SLIDE = dict(mode="slide", crop_size=(200, 333), stride=(133, 222))
CASES = {
    "published: R-50, Cityscapes 512x1024": published(CITYSCAPES.format(50, 40, "512x1024")),
    "published: R-101, Cityscapes 512x1024": published(CITYSCAPES.format(101, 80, "512x1024")),
    "published: R-50, Cityscapes 769x769": published(CITYSCAPES.format(50, 40, "769x769")),
    "published: R-101, Cityscapes 769x769": published(CITYSCAPES.format(101, 80, "769x769")),
    "published: R-50, ADE20K": published(ADE.format(50, 160), "scale"),
    "published: R-101, ADE20K": published(ADE.format(101, 80)),
    "published: R-50, VOC": published(VOC.format(50, 20), "scale"),
    "published: R-101, VOC": published(VOC.format(101, 40)),
    "averaged weights": put(custom_hooks=[AVERAGED]),
    "averaged weights and buffers": put(custom_hooks=[AVERAGED_TOO]),
    "AdamW": put(optim_wrapper__optimizer=dict(type="AdamW", lr=1e-4, weight_decay=0.05)),
    "by epochs": put(epochs=2),
    "two classes": Case(classes=("background", "cat"), views="scale"),
    "two classes by sigmoid": Case({f"{HEAD}.loss_decode": SIGMOID}, classes=("background", "cat")),
    "one class by sigmoid": Case(
        {f"{HEAD}.loss_decode": SIGMOID, f"{HEAD}.out_channels": 1, f"{HEAD}.threshold": 0.4}, classes=("background", "cat")
    ),
    "zero label reduced": Case({"reduce_zero_label": True}, classes=("c0", "c1", "c2")),
    "keep_ratio=False": resized(scale=(512, 320), keep_ratio=False, views="scale"),
    "keep_ratio absent": resized(scale=(512, 512)),
    "scale of one number": resized(scale=480),
    "scale of one number, keep_ratio=True": resized(scale=480, keep_ratio=True),
    "scale_factor": resized(scale_factor=0.75, keep_ratio=True),
    "no resize": Case(resize=None, views="own"),
    "short edge": Case(resize=dict(type="ResizeShortestEdge", scale=320, max_size=2560)),
    "short edge and longest": Case(resize=dict(type="ResizeShortestEdge", scale=320, max_size=431)),
    "ResizeToMultiple": Case(after=(dict(type="ResizeToMultiple", size_divisor=32, interpolation=None),)),
    "Pad": Case(after=(dict(type="Pad", size_divisor=32),)),
    "CLAHE": Case(after=(dict(type="CLAHE"),)),
    "backend='pillow'": resized(scale=(256, 256), keep_ratio=True, backend="pillow"),
    "interpolation='area'": resized(scale=(256, 256), keep_ratio=True, interpolation="area"),
    "imdecode_backend='pillow'": Case({"test_pipeline.0.imdecode_backend": "pillow"}),
    "types with a module": resized(type="mmcv.transforms.processing.Resize", scale=(300, 200), keep_ratio=True),
    "padding by 32": Case({f"{PREPROCESSOR}.test_cfg": dict(size_divisor=32)}, views="scale"),
    "padding by 32, slide": Case({f"{PREPROCESSOR}.test_cfg": dict(size_divisor=32), "model.test_cfg": SLIDE}, views="scale"),
    "padding by 32, no resize": Case({f"{PREPROCESSOR}.test_cfg": dict(size_divisor=32)}, resize=None, views="own"),
    "padding by 32, pad_val": Case({f"{PREPROCESSOR}.test_cfg": dict(size_divisor=32), f"{PREPROCESSOR}.pad_val": 1}),
    "padding to a size": Case({f"{PREPROCESSOR}.test_cfg": dict(size=(600, 900))}),
    "rgb_to_bgr": Case({f"{PREPROCESSOR}.bgr_to_rgb": False, f"{PREPROCESSOR}.rgb_to_bgr": True}),
    "BGR": Case({f"{PREPROCESSOR}.bgr_to_rgb": False, f"{PREPROCESSOR}.mean": [103.53, 116.28, 123.675]}),
    "mean of one number": Case({f"{PREPROCESSOR}.mean": [127.5], f"{PREPROCESSOR}.std": [127.5]}),
    "no mean": Case({f"{PREPROCESSOR}.mean": None, f"{PREPROCESSOR}.std": None}),
    "slide, windows not square": Case({"model.test_cfg": SLIDE}, views="scale"),
    "slide, windows higher than the picture": Case({"model.test_cfg": dict(mode="slide", crop_size=(2000, 300), stride=(133, 200))}),
    "plain ResNet": Case({f"{BACKBONE}.type": "ResNet"}),
    "ResNet-V1d": Case({f"{BACKBONE}.type": "ResNetV1d"}),
    "R-34, other pool scales": Case({f"{BACKBONE}.depth": 34, f"{HEAD}.pool_scales": (1, 2, 4, 8)}),
    "dilated": Case({f"{BACKBONE}.strides": (1, 2, 1, 1), f"{BACKBONE}.dilations": (1, 1, 2, 4)}),
    "align_corners and pool_scales absent": Case({f"{HEAD}.align_corners": ..., f"{HEAD}.pool_scales": ...}),
    "act_cfg=None": Case({f"{HEAD}.act_cfg": None}),
    "LeakyReLU": Case({f"{HEAD}.act_cfg": dict(type="LeakyReLU")}),
    "norm_cfg=None": Case({f"{HEAD}.norm_cfg": None}),
    "group norm": Case({f"{HEAD}.norm_cfg": dict(type="GN", num_groups=4)}),
    "batch norm with another eps": Case({f"{HEAD}.norm_cfg": dict(type="BN", eps=1e-3)}),
    "no auxiliary head": Case({AUXILIARY: None}),
    "auxiliary head of two convolutions": Case({f"{AUXILIARY}.num_convs": 2}),
    "auxiliary head on the second feature": Case({f"{AUXILIARY}.in_index": 1}),
    "two auxiliary heads": Case({f"{AUXILIARY}s": 2}),
}


def slug(name):
    """The case's folder."""
    return "".join(letter if letter.isalnum() else "_" for letter in name)


def write_data(folder, cases):
    """Six crops of a photo for each of the data sets, with masks made of its colors."""
    photo = np.asarray(Image.open(PHOTOS[0]).convert("RGB"))
    layouts = {
        "cityscapes": ("leftImg8bit/train/a/{}_leftImg8bit.png", "gtFine/train/a/{}_gtFine_labelTrainIds.png", 19),
        "ade20k": ("images/training/{}.jpg", "annotations/training/{}.png", 151),
        "voc12aug": ("JPEGImages/{}.jpg", "SegmentationClass/{}.png", 21),
        "own": ("img/{}.jpg", "ann/{}.png", 2),
    }
    rng = np.random.default_rng(0)
    for name, (picture, mask, count) in layouts.items():
        for i in range(6):
            y, x = rng.integers(0, photo.shape[0] - 128), rng.integers(0, photo.shape[1] - 192)
            crop = photo[y : y + 128, x : x + 192]
            paths = [folder / name / path.format(i) for path in (picture, mask)]
            for path, pixels in zip(paths, (crop, (crop[..., 0].astype(int) * 7 // 9 % count).astype(np.uint8))):
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    voc = folder / "voc12aug"
    (voc / "ImageSets" / "Segmentation").mkdir(parents=True, exist_ok=True)
    for name in ("train", "aug"):
        (voc / "ImageSets" / "Segmentation" / f"{name}.txt").write_text("\n".join(map(str, range(6))))
    shutil.copytree(voc / "SegmentationClass", voc / "SegmentationClassAug", dirs_exist_ok=True)


def build(case, data, out):
    """The config of a case, small enough to be trained in a second."""
    config = Config.fromfile(CONFIGS / f"{case.base}.py")
    config.model.pretrained = None
    config.model.backbone.update(base_channels=4, stem_channels=4)
    config.model.decode_head.channels, config.model.auxiliary_head.channels = 8, 4
    config.model.data_preprocessor.size = (96, 96)
    for step in config.train_pipeline:
        step.update(crop_size=(96, 96)) if "crop_size" in step else None
        step.update(scale=(192, 128)) if step["type"] == "RandomResize" else None
    steps = config.test_pipeline
    place = next(i for i, step in enumerate(steps) if step["type"] == "Resize")
    if case.resize != ():
        steps[place : place + 1] = [] if case.resize is None else [case.resize]
    for step in reversed(case.after):
        steps.insert(place + 1, step)
    if case.classes:
        metainfo = dict(classes=case.classes, palette=[[0, 90 * i, 40 * i] for i in range(len(case.classes))])
        prefix = dict(img_path="img", seg_map_path="ann")
        for loader in (config.train_dataloader, config.test_dataloader):
            loader.dataset = dict(type="BaseSegDataset", data_prefix=prefix, metainfo=metainfo)
        for head in (config.model.decode_head, config.model.auxiliary_head):
            head.num_classes = len(case.classes)
    root = "own" if case.classes else case.base.split("k_")[1].split("-")[0]
    settings = dict(case.settings)
    epochs, heads = settings.pop("epochs", None), settings.pop(f"{AUXILIARY}s", 1)
    if settings.pop("reduce_zero_label", False):
        for loader in (config.train_dataloader, config.test_dataloader):
            loader.dataset.reduce_zero_label = True
    for path, value in settings.items():
        *above, last = path.split(".")
        holder = config
        for key in above:
            holder = holder[int(key) if key.isdigit() else key]
        holder.pop(last) if value is ... else holder.__setitem__(last, value)
    widths = [4 * (1 if config.model.backbone.depth in (18, 34) else 4) * 2**i for i in range(4)]
    config.model.decode_head.in_channels = widths
    if config.model.auxiliary_head:
        config.model.auxiliary_head.in_channels = widths[config.model.auxiliary_head.in_index]
        if heads == 2:
            config.model.auxiliary_head = [config.model.auxiliary_head, copy.deepcopy(config.model.auxiliary_head)]
            config.model.auxiliary_head[1].update(in_index=1, in_channels=widths[1])
    for loader, pipeline in ((config.train_dataloader, config.train_pipeline), (config.test_dataloader, steps)):
        loader.update(batch_size=2, num_workers=0, persistent_workers=False)
        for part in loader.dataset.get("datasets") or [loader.dataset]:
            part.update(data_root=str(data / root), pipeline=pipeline)
    config.train_cfg = dict(type="IterBasedTrainLoop", max_iters=2, val_interval=1000)
    if epochs:
        config.train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=epochs, val_interval=100)
        config.train_dataloader.sampler = dict(type="DefaultSampler", shuffle=True)
        config.log_processor = dict(by_epoch=True)
    config.default_hooks.checkpoint.update(by_epoch=bool(epochs), interval=1 if epochs else 2)
    config.val_cfg = config.val_dataloader = config.val_evaluator = None
    config.optim_wrapper.optimizer.lr = 1e-3
    config.update(work_dir=str(out), log_level="ERROR", randomness=dict(seed=3), experiment_name=out.name)
    return config


@torch.no_grad()
def enliven(model, seed):
    """Batch norms and classifiers far from their initial values, which would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.weight.uniform_(0.6, 1.4, generator=generator)
            module.bias.normal_(0, 0.2, generator=generator)
            module.running_mean.normal_(0, 0.2, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
        if isinstance(module, torch.nn.Conv2d) and module.bias is not None and module.kernel_size == (1, 1):
            module.weight.normal_(0, 0.5, generator=generator)
            module.bias.normal_(0, 0.1, generator=generator)


class Average(SegTTAModel):
    """Keeps the average of the views' probabilities."""

    def merge_preds(self, lists):
        parts = [sample.seg_logits.data for sample in lists[0]]
        self.average = sum(part.softmax(0) for part in parts) / len(parts)
        return super().merge_preds(lists)


def in_views(model, case, photo):
    """Average over `RATIOS` of the case's resize, each flipped too, by TestTimeAug and SegTTAModel."""
    pipeline = model.cfg.test_pipeline
    step = next((step for step in pipeline if step["type"].endswith("Resize")), {"type": "Resize", "keep_ratio": True})
    own = case.views == "own"
    scales = [{"scale_factor": ratio} if own else {"scale": tuple(int(v * ratio) for v in step["scale"])} for ratio in RATIOS]
    resizes = [{"type": "Resize", "keep_ratio": step.get("keep_ratio", False), **scale} for scale in scales]
    flips = [dict(type="RandomFlip", prob=prob, direction="horizontal") for prob in (0.0, 1.0)]
    views = dict(type="TestTimeAug", transforms=[resizes, flips, [dict(type="PackSegInputs")]])
    spy = Average(module=model)
    with torch.no_grad():
        spy.test_step(pseudo_collate([Compose([dict(type="LoadImageFromFile"), views])(dict(img_path=str(photo)))]))
    return spy.average.numpy()


def answers(model, case=None):
    """Labels, and probabilities at some pixels, of each photo."""
    found = {}
    for i, photo in enumerate(PHOTOS):
        result = inference_model(model, str(photo))
        logits = result.seg_logits.data
        found |= chosen(str(i), logits.softmax(0).numpy() if len(logits) > 1 else logits.numpy())
    if case is not None and case.views:
        found |= chosen("_views", in_views(model, case, PHOTOS[0]))
    return found


def chosen(name, values):
    """Labels of probabilities (N, H, W), and some of them: (N, PIXELS) at rows and columns."""
    rng = np.random.default_rng(5)
    rows, columns = (rng.integers(0, side, PIXELS) for side in values.shape[1:])
    found = {"labels": values.argmax(0).astype(np.uint8), "values": values[:, rows, columns], "rows": rows, "columns": columns}
    return {key + name: value for key, value in found.items()}


def load(config, checkpoint):
    return revert_sync_batchnorm(init_model(config, str(checkpoint), device="cpu"))


def train(folder):
    """Train the cases whose answers are not there yet."""
    write_data(folder / "data", CASES)
    for number, (name, case) in enumerate(CASES.items()):
        out = folder / slug(name)
        if (out / "expected.npz").exists():
            continue
        config = build(case, folder / "data", out)
        runner = Runner.from_cfg(copy.deepcopy(config))
        runner.model = revert_sync_batchnorm(runner.model)
        runner.model.init_weights = lambda: None  # it would undo `enliven`
        enliven(runner.model, number)
        runner.train()
        next(out.glob("iter_2.pth"), out / "epoch_2.pth").replace(out / "checkpoint.pth")
        (out / "case.json").write_text(json.dumps({"name": name, "ratios": RATIOS if case.views else []}))
        np.savez_compressed(out / "expected.npz", **answers(load(config, out / "checkpoint.pth"), case))
        print("trained", name, flush=True)


def run(folder):
    """What was written for 1.x."""
    for path in sorted(folder.glob("*/back.pth")):
        np.savez_compressed(path.with_suffix(".npz"), **answers(load(str(path.with_suffix(".py")), path)))


if __name__ == "__main__":
    register_all_modules()
    torch.set_num_threads(1)
    {"train": train, "run": run}[sys.argv[1]](Path(sys.argv[2]).resolve())
