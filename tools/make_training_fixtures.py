"""Make tests/fixtures/training/*/: checkpoints as OpenMMLab's own runners write them while training, and what their models compute.

    python tools/make_training_fixtures.py tests/fixtures/training

Needs an environment of its own with mmcv 1.7.2 and mmsegmentation 0.30 (MMCV_WITH_OPS=0), for the 1.x layout mmengine 0.10 too. The
0.x ones are trained by `mmseg.apis.train_segmentor`. In the 1.x one mmengine's `Runner`, `EMAHook` and `CheckpointHook` train the
modules of mmsegmentation 0.30, whose tensor names are those of 1.x. All are narrow, and see four drawn pictures.
"""

import argparse
import copy
import json
import logging
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import ClassVar

warnings.filterwarnings("ignore")
import mmcv
import numpy as np
import torch
from mmseg import __version__
from mmseg.apis import train_segmentor
from mmseg.datasets import build_dataset
from mmseg.models import build_segmentor
from PIL import Image

CLASSES, PALETTE = ["ground", "box", "disc"], [[10, 20, 30], [200, 100, 0], [0, 120, 240]]
STEPS = 6


def draw_pictures(folder):
    """Four pictures with a box each, and their label maps."""
    rng = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (folder / kind).mkdir()
    for i in range(4):
        picture, label = rng.integers(0, 80, (72, 72, 3), np.uint8), np.zeros((72, 72), np.uint8)
        top, left = rng.integers(0, 40, 2)
        picture[top : top + 30, left : left + 30] += np.uint8(90)
        label[top : top + 30, left : left + 30] = 1 + i % 2
        Image.fromarray(picture).save(folder / "images" / f"{i}.png")
        Image.fromarray(label).save(folder / "labels" / f"{i}.png")


def model_config(backbone, depth, align_corners, test_cfg, base=4, channels=8):
    widths = [base * (1 if depth < 50 else 4) * 2**i for i in range(4)]
    norm = dict(type="BN", requires_grad=True)
    head = dict(num_classes=len(CLASSES), norm_cfg=norm, align_corners=align_corners, dropout_ratio=0.1)
    loss = dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0)
    return dict(
        type="EncoderDecoder",
        pretrained=None,
        backbone=dict(
            type=backbone,
            depth=depth,
            stem_channels=2 * base,
            base_channels=base,
            num_stages=4,
            out_indices=(0, 1, 2, 3),
            dilations=(1, 1, 1, 1),
            strides=(1, 2, 2, 2),
            norm_cfg=norm,
            norm_eval=False,
            style="pytorch",
            contract_dilation=True,
        ),
        decode_head=dict(
            type="UPerHead", in_channels=widths, in_index=[0, 1, 2, 3], pool_scales=(1, 2, 4), channels=channels, loss_decode=loss, **head
        ),
        auxiliary_head=dict(
            type="FCNHead", in_channels=widths[2], in_index=2, channels=channels, num_convs=1, concat_input=False, loss_decode=loss, **head
        ),
        train_cfg=dict(),
        test_cfg=test_cfg,
    )


def write(out, name, checkpoint, model, average):
    """Copy the checkpoint, and compute the logits of its weights and of the averaged ones."""
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(checkpoint, folder / "checkpoint.pth")
    x = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    arrays = {"input": x.numpy()}
    for key, state in (("logits", None), ("ema_logits", average)):
        if key == "logits" or state:
            one = copy.deepcopy(model).eval()
            if state:
                one.load_state_dict(state, strict=False)
            with torch.no_grad():
                arrays[key] = one.encode_decode(x, [{}] * 2).numpy()
    np.savez_compressed(folder / "logits.npz", **arrays)
    print(folder, (folder / "checkpoint.pth").stat().st_size, {k: v.shape for k, v in arrays.items()})


def keep_runners():
    """A list that gets the runners that mmcv makes from now on."""
    runners = []
    run = mmcv.runner.IterBasedRunner.run

    def keeping(self, *args, **kwargs):
        runners.append(self)
        return run(self, *args, **kwargs)

    mmcv.runner.IterBasedRunner.run = keeping
    return runners


def train_0x(out, name, model, to_rgb, img_scale, ema):
    """mmsegmentation 0.30's own `train_segmentor`: IterBasedRunner, CheckpointHook, and EMAHook where asked for."""
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        draw_pictures(folder)
        norm = dict(mean=[101.5, 111.25, 121.125], std=[51.5, 61.25, 71.125], to_rgb=to_rgb)
        train = [
            dict(type="LoadImageFromFile"),
            dict(type="LoadAnnotations"),
            dict(type="Resize", img_scale=(72, 72)),
            dict(type="RandomFlip", prob=0.5),
            dict(type="Normalize", **norm),
            dict(type="DefaultFormatBundle"),
            dict(type="Collect", keys=["img", "gt_semantic_seg"]),
        ]
        inner = [dict(type="Resize", keep_ratio=True), dict(type="RandomFlip"), dict(type="Normalize", **norm)]
        inner += [dict(type="ImageToTensor", keys=["img"]), dict(type="Collect", keys=["img"])]
        view = dict(type="MultiScaleFlipAug", img_scale=img_scale, flip=False, transforms=inner)
        test = [dict(type="LoadImageFromFile"), view]
        data = dict(type="CustomDataset", img_dir="images", ann_dir="labels", img_suffix=".png", data_root=str(folder))
        data.update(classes=CLASSES, palette=PALETTE)
        loader = dict(samples_per_gpu=2, workers_per_gpu=0, persistent_workers=False)
        hooks = [dict(type="EMAHook", momentum=0.3, warm_up=1)] if ema else []
        cfg = mmcv.Config(
            dict(
                model=model,
                dataset_type="CustomDataset",
                data=dict(train_dataloader=loader, train=dict(pipeline=train, **data), test=dict(pipeline=test, **data)),
                optimizer=dict(type="SGD", lr=0.05, momentum=0.9, weight_decay=5e-4),
                optimizer_config=dict(),
                lr_config=dict(policy="poly", power=0.9, min_lr=1e-4, by_epoch=False),
                runner=dict(type="IterBasedRunner", max_iters=STEPS),
                checkpoint_config=dict(by_epoch=False, interval=STEPS),
                custom_hooks=hooks,
                log_config=dict(interval=2, hooks=[]),
                log_level="ERROR",
                workflow=[("train", 1)],
                dist_params=dict(backend="gloo"),
                load_from=None,
                resume_from=None,
                gpu_ids=[0],
                device="cpu",
                seed=0,
                work_dir=str(folder / "work"),
            )
        )
        torch.manual_seed(0)
        segmentor = build_segmentor(cfg.model)
        segmentor.init_weights()
        dataset = build_dataset(cfg.data.train)
        text = cfg.pretty_text.replace(str(folder), "data")
        cfg.checkpoint_config.meta = dict(mmseg_version=__version__, config=text, CLASSES=dataset.CLASSES, PALETTE=dataset.PALETTE)
        segmentor.CLASSES = dataset.CLASSES
        meta = dict(env_info="fixture", seed=0, exp_name=f"{name}.py")
        runners = keep_runners()
        train_segmentor(segmentor, [dataset], cfg, distributed=False, validate=False, meta=meta)
        checkpoint = folder / "work" / f"iter_{STEPS}.pth"
        saved = torch.load(checkpoint, weights_only=False)["state_dict"]
        buffers = next((hook.param_ema_buffer for hook in runners[0].hooks if type(hook).__name__ == "EMAHook"), {})
        write(out, name, checkpoint, segmentor, {key: saved[buffer] for key, buffer in buffers.items()})


def train_1x(out, name, model):
    """mmengine's own Runner, EMAHook and CheckpointHook, the config in the style of mmsegmentation 1.x."""
    import mmengine
    from mmengine.model import BaseModel, ImgDataPreprocessor
    from mmengine.runner import Runner

    segmentor = build_segmentor(mmcv.ConfigDict(model))
    segmentor.init_weights()
    norm = dict(mean=[101.5, 111.25, 121.125], std=[51.5, 61.25, 71.125], bgr_to_rgb=True)

    class Model(BaseModel):
        def __init__(self):
            super().__init__(data_preprocessor=ImgDataPreprocessor(**norm))
            self.backbone, self.decode_head, self.auxiliary_head = segmentor.backbone, segmentor.decode_head, segmentor.auxiliary_head

        def forward(self, inputs, data_samples=None, mode="tensor"):
            inputs = torch.stack(list(inputs)) if isinstance(inputs, (list, tuple)) else inputs
            losses = segmentor.forward_train(inputs.float(), [{}] * len(inputs), torch.stack(list(data_samples)))
            return {key: value for key, value in losses.items() if "loss" in key}

    class Boxes(torch.utils.data.Dataset):
        metainfo: ClassVar[dict] = dict(classes=tuple(CLASSES), palette=PALETTE, reduce_zero_label=False)

        def __len__(self):
            return 4

        def __getitem__(self, i):
            generator = torch.Generator().manual_seed(i)
            picture = torch.randint(0, 255, (3, 64, 64), dtype=torch.uint8, generator=generator)
            return dict(inputs=picture, data_samples=(picture[:1] > 128).long())

    config = copy.deepcopy(model)
    config["data_preprocessor"] = dict(type="SegDataPreProcessor", size=(64, 64), pad_val=0, seg_pad_val=255, **norm)
    resize = dict(type="Resize", scale=(256, 128), keep_ratio=True)
    test = [dict(type="LoadImageFromFile"), resize, dict(type="LoadAnnotations"), dict(type="PackSegInputs")]
    cfg = mmengine.Config(
        dict(
            default_scope="mmseg",
            model=config,
            dataset_type="BaseSegDataset",
            test_pipeline=test,
            test_dataloader=dict(batch_size=1, dataset=dict(type="BaseSegDataset", pipeline=test)),
        )
    )
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as work:
        runner = Runner(
            model=Model(),
            work_dir=work,
            train_dataloader=dict(batch_size=2, dataset=Boxes(), sampler=dict(type="DefaultSampler", shuffle=False), num_workers=0),
            train_cfg=dict(type="IterBasedTrainLoop", max_iters=STEPS),
            optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.05, momentum=0.9)),
            param_scheduler=[dict(type="PolyLR", eta_min=1e-4, power=0.9, begin=0, end=STEPS, by_epoch=False)],
            default_hooks=dict(
                checkpoint=dict(type="CheckpointHook", by_epoch=False, interval=STEPS), logger=dict(type="LoggerHook", interval=1)
            ),
            custom_hooks=[dict(type="EMAHook", momentum=0.3)],
            default_scope="mmengine",
            cfg=cfg,
            experiment_name=name,
            log_level="ERROR",
        )
        hook = next(h for h in runner._hooks if type(h).__name__ == "EMAHook")
        runner.train()
        # mmengine saves the averages as the model's own
        last = {key: value.clone() for key, value in segmentor.state_dict().items()}
        segmentor.load_state_dict({k: v for k, v in hook.ema_model.module.state_dict().items() if not k.startswith("data_preprocessor")})
        write(out, name, Path(work) / f"iter_{STEPS}.pth", segmentor, {})
        assert any(not torch.equal(last[key], value) for key, value in segmentor.state_dict().items())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    torch.set_num_threads(1)
    logging.disable(logging.INFO)
    slide = dict(mode="slide", crop_size=(64, 64), stride=(40, 40))
    train_0x(out, "v0_resnet18_ema", model_config("ResNet", 18, True, slide), True, (256, 128), True)
    train_0x(out, "v0_resnet50c_bgr", model_config("ResNetV1c", 50, False, dict(mode="whole"), 2), False, (512, 96), False)
    try:
        train_1x(out, "v1_resnet34c_ema", model_config("ResNetV1c", 34, False, dict(mode="whole")))
    except ImportError as error:
        print(json.dumps({"left out": "v1_resnet34c_ema", "because": str(error)}))


if __name__ == "__main__":
    main()
