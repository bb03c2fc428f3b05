"""One system that runs UPerNet, in a process of its own: started by systems.py with the Python of that system's environment.

    python peer.py SYSTEM WEIGHTS DEPTH CLASSES ALIGN_CORNERS

It loads WEIGHTS (a checkpoint in the published format; transformers and segmentation_models.pytorch cannot take it and use random weights
of the same architecture), says so in a line of JSON, and then answers each line of JSON on standard input with one on standard output:
{"shape": [N, 3, H, W]} runs a forward pass to full-size logits; {"gmacs": shape} counts its multiplications. {"shape": [H, W]} segments an
RGB picture of that size, from uint8 to label map, as the 769x769 models do: in windows of 769x769 every 513 pixels.
"""

import dataclasses
import json
import os
import subprocess
import sys
import time
from importlib import metadata

HERE = os.path.dirname(os.path.abspath(__file__))
PACKAGES = {  # whose versions matter
    "mmsegmentation": ("torch", "mmcv", "mmsegmentation"),
    "plain": ("torch", "upernet-zoo"),
    "fused": ("torch", "upernet-zoo"),
    "torch.compile": ("torch", "upernet-zoo"),
    "onnxruntime": ("torch", "onnxruntime"),
    "openvino": ("torch", "openvino"),
    "transformers": ("torch", "transformers", "timm"),
    "segmentation_models.pytorch": ("torch", "segmentation-models-pytorch", "timm"),
}
TAKES_WEIGHTS = {"mmsegmentation", "plain", "fused", "torch.compile", "onnxruntime", "openvino"}


def load_mmsegmentation(weights, depth, classes, align_corners):
    import mmcv
    import mmseg
    import torch
    from mmseg.apis import inference_segmentor, init_segmentor

    configs = os.path.join(os.path.dirname(mmseg.__file__), ".mim", "configs", "upernet")
    name = "769x769_40k_cityscapes" if align_corners else "512x512_80k_ade20k"
    config = mmcv.Config.fromfile(os.path.join(configs, f"upernet_r{depth}_{name}.py"))
    for head in (config.model.decode_head, config.model.auxiliary_head):
        head.num_classes = classes
    model = init_segmentor(config, weights, device="cpu")
    metas = [{}]

    def run(x):
        if x.ndim == 3:
            return inference_segmentor(model, x[:, :, ::-1])[0]
        return model.encode_decode(torch.from_numpy(x), metas)

    return run


def run_ours(model):
    import torch

    import upernet_zoo

    model.recipe = dataclasses.replace(model.recipe, scale=(2049, 1025), mode="slide", crop=(769, 769), stride=(513, 513))
    segmenter = upernet_zoo.Segmenter(model, optimize=not isinstance(model, upernet_zoo.UPerNet))
    return lambda x: segmenter(x).labels if x.ndim == 3 else model(torch.from_numpy(x))


def load_plain(weights, *_):
    import upernet_zoo

    return run_ours(upernet_zoo.load_checkpoint(weights))


def load_fused(weights, *_):
    import upernet_zoo

    return run_ours(upernet_zoo.optimize_for_inference(upernet_zoo.load_checkpoint(weights)))


def load_compiled(weights, *_):
    import torch

    import upernet_zoo

    model = torch.compile(upernet_zoo.load_checkpoint(weights), dynamic=False)
    return lambda x: model(torch.from_numpy(x))


def load_transformers(weights, depth, classes, align_corners):
    import torch
    from transformers import TimmBackboneConfig, UperNetConfig, UperNetForSemanticSegmentation

    backbone = TimmBackboneConfig(backbone=f"resnet{depth}c", out_indices=(1, 2, 3, 4), use_pretrained_backbone=False)
    model = UperNetForSemanticSegmentation(UperNetConfig(backbone_config=backbone, num_labels=classes)).eval()
    return lambda x: model(torch.from_numpy(x)).logits


def load_smp(weights, depth, classes, align_corners):
    import segmentation_models_pytorch as smp
    import torch

    model = smp.UPerNet(f"resnet{depth}", encoder_weights=None, decoder_channels=512, classes=classes).eval()
    return lambda x: model(torch.from_numpy(x))


def onnx_file(weights, shape):
    """The plain model exported for one shape, by another process so that this one's memory is the runtime's own."""
    path = f"{weights}.{'x'.join(map(str, shape))}.onnx"
    if not os.path.exists(path):
        subprocess.run(
            [sys.executable, os.path.abspath(__file__), "export", weights, path, *map(str, shape)], check=True, stdout=sys.stderr
        )
    return path


def export(weights, path, *shape):
    import torch

    import upernet_zoo

    model = upernet_zoo.load_checkpoint(weights)
    torch.onnx.export(model, (torch.randn(*map(int, shape)),), path, dynamo=True, external_data=False)


def load_onnxruntime(weights, *_):
    import onnxruntime

    sessions = {}

    def run(x):
        if x.shape not in sessions:
            sessions.clear()
            sessions[x.shape] = onnxruntime.InferenceSession(onnx_file(weights, x.shape), providers=["CPUExecutionProvider"])
        session = sessions[x.shape]
        return session.run(None, {session.get_inputs()[0].name: x})[0]

    return run


def load_openvino(weights, *_):
    import openvino

    models = {}

    def run(x):
        if x.shape not in models:
            models.clear()
            options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
            models[x.shape] = openvino.Core().compile_model(onnx_file(weights, x.shape), "CPU", options)
        return models[x.shape](x)[0]

    return run


LOADERS = {
    "mmsegmentation": load_mmsegmentation,
    "plain": load_plain,
    "fused": load_fused,
    "torch.compile": load_compiled,
    "onnxruntime": load_onnxruntime,
    "openvino": load_openvino,
    "transformers": load_transformers,
    "segmentation_models.pytorch": load_smp,
}


def megabytes():
    """Peak resident memory of this process so far (getrusage counts what the parent had when it forked)."""
    with open("/proc/self/status") as lines:
        return next(round(int(line.split()[1]) / 1024) for line in lines if line.startswith("VmHWM:"))


def main():
    if sys.argv[1] == "export":
        return export(*sys.argv[2:])
    system, weights, depth, classes, align_corners = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to standard error

    def answer(**values):
        print(json.dumps(values), file=answers, flush=True)

    import numpy as np
    import torch

    def picture(shape):
        if len(shape) == 2:
            return np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
        return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)

    before = megabytes()
    run = LOADERS[system](weights, int(depth), int(classes), align_corners == "True")
    answer(
        versions={name: metadata.version(name) for name in PACKAGES[system]},
        takes_weights=system in TAKES_WEIGHTS,
        start_mb=before,
        loaded_mb=megabytes(),
    )
    for line in sys.stdin:
        request = json.loads(line)
        with torch.inference_mode():
            if "gmacs" in request:
                from torch.utils.flop_counter import FlopCounterMode

                with FlopCounterMode(display=False) as counter:
                    run(picture(request["gmacs"]))
                answer(gmacs=round(counter.get_total_flops() / 2e9, 1))
            else:
                x = picture(request["shape"])
                start = time.perf_counter()
                logits = run(x)
                seconds = time.perf_counter() - start
                logits = torch.as_tensor(logits)
                if x.ndim == 3:
                    assert logits.shape == x.shape[:2], logits.shape
                    probe = logits[::15, ::15]
                else:
                    assert logits.shape == (len(x), int(classes), *x.shape[2:]), logits.shape
                    probe = logits[:, :, ::61, ::67]
                answer(seconds=seconds, peak_mb=megabytes(), probe=probe.flatten().tolist())
                del logits


if __name__ == "__main__":
    main()
