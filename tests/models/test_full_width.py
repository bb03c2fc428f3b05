"""A forward pass at full width with random weights: the largest of each kind at the size of its training, in at most 12 GB; and of every
Swin and ConvNeXt with a small picture."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import upernet_zoo as uz

LARGEST = (
    "upernet_beit-large_fp16_8x1_640x640_160k_ade20k",
    "upernet_mae-base_fp16_8x2_512x512_160k_ade20k",
    "upernet_vit-b16_ln_mln_512x512_160k_ade20k",
    "upernet_deit-b16_512x512_160k_ade20k",
    "upernet_swin_large_patch4_window12_512x512_pretrain_384x384_22K_160k_ade20k",
    "upernet_convnext_xlarge_fp16_640x640_160k_ade20k",
    "twins_pcpvt-l_uperhead_8x2_512x512_160k_ade20k",
    "twins_svt-l_uperhead_8x2_512x512_160k_ade20k",
    "knet_s3_upernet_swin-l_8x2_640x640_adamw_80k_ade20k",
)
# weights of zeros would hide a NaN, and the original's initialization takes longer than the pass
CODE = """
import json, sys, time, torch
from upernet_zoo import model_info
from upernet_zoo.models import UPerNet
entry = model_info(sys.argv[1])
with torch.device("meta"):
    model = UPerNet(entry.config, entry.recipe, entry.label_set)
model = model.to_empty(device="cpu").eval()
with torch.no_grad():
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point():
            tensor.zero_()
        elif tensor.dim() > 1:
            bound = (3 / max(tensor[0].numel(), 1)) ** 0.5
            tensor.uniform_(-bound, bound)
        else:
            tensor.fill_(1.0 if name.endswith(("weight", "running_var")) else 0.1)
x = torch.randn(1, 3, *(json.loads(sys.argv[2]) or entry.crop_size), generator=torch.Generator().manual_seed(0))
start = time.perf_counter()
with torch.inference_mode():
    logits = model(x)
seconds = time.perf_counter() - start
peak = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
spread = (logits.amax() - logits.amin()).item()
said = dict(shape=list(logits.shape), finite=bool(logits.isfinite().all()), spread=spread)
print(json.dumps(said | dict(gb=round(peak / 1e9, 2), seconds=round(seconds, 1))))
"""


@pytest.mark.large
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="measures with Linux's /proc")
@pytest.mark.parametrize("name", LARGEST)
def test_a_forward_pass_fits_in_12_gb(name, record_property):
    entry = uz.model_info(name)
    done = subprocess.run([sys.executable, "-c", CODE, name, "null"], capture_output=True, text=True, check=True)
    said = json.loads(done.stdout)
    print(name, said)
    assert said["shape"] == [1, entry.config.num_classes, *entry.crop_size]
    assert said["finite"] and said["spread"] > 0 and said["gb"] <= 12


WINDOWED = [name for kind in ("upernet_swin", "upernet_convnext") for name in uz.list_models(f"{kind}*")]


@pytest.mark.large
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="measures with Linux's /proc")
@pytest.mark.parametrize("name", {str(uz.model_info(name).config): name for name in WINDOWED}.values())
def test_every_swin_and_convnext_at_full_width(name):
    """Fourteen models of eleven architectures; neither windows nor patches divide the picture."""
    assert len(WINDOWED) == 14
    done = subprocess.run([sys.executable, "-c", CODE, name, "[97, 129]"], capture_output=True, text=True, check=True)
    said = json.loads(done.stdout)
    assert said["shape"] == [1, 150, 97, 129] and said["finite"] and said["spread"] > 0
