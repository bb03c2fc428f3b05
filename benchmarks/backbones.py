"""Backbones alone: the plain one and its form for inference, beside timm's and transformers', in one process.

    python benchmarks/backbones.py [CASE ...] [--size 512] [--repeats 7]

All of one architecture, with random weights: time does not depend on them (transformers' Swin and ConvNeXt have ours, and the largest
difference of a feature is recorded). The others run the fastest attention that they have, `F.scaled_dot_product_attention`. They take
turns; the medians are compared. Writes results/backbones.json.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from importlib import metadata

import torch
from machine import record
from systems import sgemm_peak
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import upernet_zoo as uz
from upernet_zoo.config import BackboneConfig
from upernet_zoo.interop.transformers import to_transformers
from upernet_zoo.models.backbones.convnext import ConvNeXtConfig
from upernet_zoo.models.backbones.resnet import ResNetConfig
from upernet_zoo.models.backbones.swin import SwinConfig
from upernet_zoo.models.backbones.vit import ViTConfig

Run = Callable[[Tensor], object]
# name: our config, timm's model
CASES: dict[str, tuple[BackboneConfig, str]] = {
    "swin_t": (SwinConfig(), "swin_tiny_patch4_window7_224"),
    "convnext_s": (ConvNeXtConfig(depths=(3, 3, 27, 3), downsample_eps=1e-6), "convnext_small"),
    "vit_b": (ViTConfig(), "vit_base_patch16_224"),
    "r50": (ResNetConfig(depth=50, deep_stem=False), "resnet50"),
}


def timms(name: str, size: int) -> Run:
    import timm

    sized = {"img_size": size} if name.startswith(("swin", "vit")) else {}
    model = timm.create_model(name, pretrained=False, features_only=True, **sized).eval()
    run: Run = model
    return run


def transformers_own(config: BackboneConfig, model: uz.UPerNet, size: int) -> Run:
    import transformers

    if isinstance(config, ViTConfig):
        options = dict(image_size=size, attn_implementation="sdpa", output_hidden_states=True)
        vit = transformers.ViTModel(transformers.ViTConfig(**options), add_pooling_layer=False).eval()
        return lambda x: vit(x).hidden_states
    if isinstance(config, ResNetConfig):
        stages = [f"stage{i}" for i in range(1, 5)]
        resnet = transformers.ResNetBackbone(transformers.ResNetConfig(out_features=stages)).eval()
        return lambda x: resnet(x).feature_maps
    backbone = to_transformers(model)[0].backbone.eval()
    if "swin" in type(backbone).__name__.lower():
        backbone.set_attn_implementation("sdpa")
    return lambda x: backbone(x).feature_maps


def measure(config: BackboneConfig, name: str, size: int, repeats: int) -> dict:
    """Median seconds of each, for one picture."""
    torch.manual_seed(0)
    model = uz.UPerNet(uz.UPerNetConfig(backbone=config, num_classes=150)).eval()
    runs: dict[str, Run] = {
        "transformers": transformers_own(config, model, size),
        "timm": timms(name, size),
        "plain": model.backbone,
        "fused": uz.optimize_for_inference(model).backbone,
    }
    x = torch.randn(1, 3, size, size)
    first = {key: run(x) for key, run in runs.items()}  # also to warm up
    seconds: dict[str, list[float]] = {key: [] for key in runs}
    peaks = [sgemm_peak()]
    for _ in range(repeats):
        for key, run in runs.items():
            start = time.perf_counter()
            run(x)
            seconds[key].append(time.perf_counter() - start)
        peaks.append(sgemm_peak())
    with FlopCounterMode(display=False) as counter:
        model.backbone(x)
    gmacs = counter.get_total_flops() / 2e9
    medians = {key: statistics.median(values) for key, values in seconds.items()}
    faster = min(medians["transformers"], medians["timm"])
    same = ["fused"] if isinstance(config, (ViTConfig, ResNetConfig)) else ["fused", "transformers"]
    return {
        "gmacs": round(gmacs, 1),
        "systems": {
            key: {
                "median_s": round(medians[key], 4),
                "min_s": round(min(values), 4),
                "max_s": round(max(values), 4),
                "gmacs_per_s": round(gmacs / medians[key], 1),
            }
            for key, values in seconds.items()
        },
        "times_as_fast_as_the_faster_of_the_others": {key: round(faster / medians[key], 2) for key in ("plain", "fused")},
        "largest_difference_from_plain": {key: float(f"{difference(first[key], first['plain']):.1e}") for key in same},
        "sgemm_peak_gmacs_per_s": round(max(peaks), 1),
    }


def difference(found, expected) -> float:
    """The largest of a feature, as a part of its largest value."""
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, expected, strict=True))


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=" ".join(CASES))
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    if unknown := set(args.cases) - CASES.keys():
        parser.error(f"unknown case {', '.join(sorted(unknown))}; known are {', '.join(CASES)}")
    results = {}
    for case in args.cases or CASES:
        results[case] = measure(*CASES[case], args.size, args.repeats)
        print(case, results[case], flush=True)
    others = {name: metadata.version(name) for name in ("timm", "transformers")}
    record("backbones", results, size=args.size, repeats=args.repeats, threads=torch.get_num_threads(), others=others)


if __name__ == "__main__":
    main()
