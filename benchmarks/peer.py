"""One system that runs UPerNet, in a process of its own: started by systems.py with the Python of that system's environment.

    python peer.py SYSTEM WEIGHTS

It loads WEIGHTS (a checkpoint in the published format, with mmsegmentation's config beside it; segmentation_models.pytorch cannot take it
and uses random weights of the same architecture), says so in a line of JSON, and then answers each line of JSON on standard input with
one on standard output: {"shape": [N, 3, H, W]} runs a forward pass to full-size logits; {"gmacs": shape} counts its multiplications.
{"shape": [H, W]} segments an RGB picture of that size, from uint8 to label map, as the 769x769 models do: in windows of 769x769 every 513
pixels.
"""

import dataclasses
import json
import os
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

HERE = str(Path(__file__).resolve().parent)
PACKAGES = {  # whose versions matter
    "mmsegmentation": ("torch", "mmcv", "mmsegmentation"),
    "plain": ("torch", "upernet-zoo"),
    "fused": ("torch", "upernet-zoo"),
    "torch.compile": ("torch", "upernet-zoo"),
    "onnxruntime": ("torch", "onnxruntime"),
    "openvino": ("torch", "openvino"),
    "transformers": ("torch", "transformers", "timm"),
    "segmentation_models.pytorch": ("torch", "segmentation-models-pytorch", "timm"),
    **{f"{runtime} {form}": (runtime,) for runtime in ("onnxruntime", "openvino") for form in ("plain", "fused")},
}
TAKES_WEIGHTS = {"mmsegmentation", "transformers", "plain", "fused", "torch.compile", "onnxruntime", "openvino"} | {
    f"{runtime} {form}" for runtime in ("onnxruntime", "openvino") for form in ("plain", "fused")
}


def load_mmsegmentation(weights):
    import mmcv
    import torch
    from mmseg.apis import inference_segmentor, init_segmentor

    model = init_segmentor(mmcv.Config.fromfile(str(Path(weights).with_suffix(".py"))), weights, device="cpu")
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


def load_plain(weights):
    import upernet_zoo

    return run_ours(upernet_zoo.load_checkpoint(weights))


def load_fused(weights):
    import upernet_zoo

    return run_ours(upernet_zoo.optimize_for_inference(upernet_zoo.load_checkpoint(weights)))


def load_compiled(weights):
    import torch

    import upernet_zoo

    model = torch.compile(upernet_zoo.load_checkpoint(weights), dynamic=False)
    return lambda x: model(torch.from_numpy(x))


def load_transformers(weights):
    import torch

    import upernet_zoo

    model, _ = upernet_zoo.interop.transformers.to_transformers(upernet_zoo.load_checkpoint(weights))
    return lambda x: model(torch.from_numpy(x)).logits


def load_smp(weights):
    import segmentation_models_pytorch as smp
    import torch

    import upernet_zoo

    config = upernet_zoo.load_checkpoint(weights).config
    model = smp.UPerNet(f"resnet{config.backbone.depth}", encoder_weights=None, decoder_channels=512, classes=config.num_classes).eval()
    return lambda x: model(torch.from_numpy(x))


def onnx_file(weights, shape):
    """The plain model exported for one shape, by another process so that this one's memory is the runtime's own."""
    path = f"{weights}.{'x'.join(map(str, shape))}.onnx"
    if not Path(path).exists():
        subprocess.run(
            [sys.executable, str(Path(__file__).resolve()), "export", weights, path, *map(str, shape)], check=True, stdout=sys.stderr
        )
    return path


def export(weights, path, *shape):
    import torch

    import upernet_zoo

    model = upernet_zoo.load_checkpoint(weights)
    torch.onnx.export(model, (torch.randn(*map(int, shape)),), path, dynamo=True, external_data=False)


def load_onnxruntime(weights):
    import onnxruntime

    sessions = {}

    def run(x):
        if x.shape not in sessions:
            sessions.clear()
            sessions[x.shape] = onnxruntime.InferenceSession(onnx_file(weights, x.shape), providers=["CPUExecutionProvider"])
        session = sessions[x.shape]
        return session.run(None, {session.get_inputs()[0].name: x})[0]

    return run


def load_openvino(weights):
    import openvino

    models = {}

    def run(x):
        if x.shape not in models:
            models.clear()
            options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
            models[x.shape] = openvino.Core().compile_model(onnx_file(weights, x.shape), "CPU", options)
        return models[x.shape](x)[0]

    return run


def load_exported(runtime, form):
    """A file that portable.py has exported beside the weights."""

    def load(weights):
        path = f"{weights}.{form}.onnx"
        if runtime == "openvino":
            import openvino

            options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
            model = openvino.Core().compile_model(path, "CPU", options)
            return lambda x: model(x)[0]
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return lambda x: session.run(None, {"pictures": x})[0]

    return load


LOADERS = {
    **{f"{runtime} {form}": load_exported(runtime, form) for runtime in ("onnxruntime", "openvino") for form in ("plain", "fused")},
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
    with Path("/proc/self/status").open() as lines:
        return next(round(int(line.split()[1]) / 1024) for line in lines if line.startswith("VmHWM:"))


def main():
    if sys.argv[1] == "export":
        return export(*sys.argv[2:])
    system, weights = sys.argv[1:]
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
    run = LOADERS[system](weights)
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
                    assert (len(logits), *logits.shape[2:]) == (len(x), *x.shape[2:]), logits.shape
                    probe = logits[:, :, ::61, ::67]
                answer(seconds=seconds, peak_mb=megabytes(), probe=probe.flatten().tolist())
                del logits


if __name__ == "__main__":
    main()
