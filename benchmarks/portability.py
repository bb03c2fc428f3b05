"""Models taken elsewhere, and what is computed there: mmsegmentation 0.30, transformers, ONNX Runtime, on models of full width.

    python benchmarks/portability.py mmsegmentation transformers onnx --mmsegmentation-python=PYTHON
    python benchmarks/portability.py family --mmsegmentation-python=PYTHON --mmsegmentation-1x-python=PYTHON

Random weights, batch norms and classifiers far from their initial values; for label maps the classifier is fitted to the brightness of
the photo, in five steps, so that there are regions and margins. mmsegmentation runs in an environment of its own, whose Python is
given; it loads what `to_mmsegmentation` wrote with strict=True. `family` does so with a narrow model of every kind of backbone, neck and
head, in mmsegmentation 0.30 and in 1.x. Writes results/portability_*.json.
"""

import argparse
import dataclasses
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from machine import record
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from support.lively import fit_classifier, lively

import upernet_zoo as uz
from upernet_zoo.interop import export

PHOTOS = ROOT / "tests" / "fixtures" / "photos"
FIXTURES = ROOT / "tests" / "fixtures"
PACKAGES = {"mmsegmentation": (), "family": (), "transformers": ("transformers", "timm"), "onnx": ("onnx", "onnxscript", "onnxruntime")}
MMSEGMENTATION = """
import sys, warnings; warnings.filterwarnings("ignore")
import mmcv, numpy as np, torch
from mmcv.runner import load_checkpoint
from mmseg.models import build_segmentor
torch.set_num_threads(1)
path, source, target = sys.argv[1:]
model = build_segmentor(mmcv.Config.fromfile(path.replace(".pth", ".py")).model).eval()
load_checkpoint(model, path, map_location="cpu", strict=True)
with torch.no_grad():
    x = torch.from_numpy(np.load(source))
    np.save(target, model.encode_decode(x, [{}] * len(x)).numpy())
"""

# Python of 0.x and of 1.x: each `model.pth` in a folder, with `x.npy` beside it, to `y.npy`
FAMILY = (
    """
import sys, warnings; warnings.filterwarnings("ignore")
from pathlib import Path
import mmcv, mmseg, numpy as np, torch
from mmcv.runner import load_checkpoint
from mmseg.models import build_segmentor
torch.set_num_threads(1)
for path in sorted(Path(sys.argv[1]).glob("*/model.pth")):
    model = build_segmentor(mmcv.Config.fromfile(str(path.with_suffix(".py"))).model).eval()
    load_checkpoint(model, str(path), map_location="cpu", strict=True)
    with torch.no_grad():
        x = torch.from_numpy(np.load(path.with_name("x.npy")))
        np.save(path.with_name("y.npy"), model.encode_decode(x, [{}] * len(x)).numpy())
print("mmsegmentation", mmseg.__version__)
""",
    """
import sys, warnings; warnings.filterwarnings("ignore")
from pathlib import Path
import mmseg, numpy as np, torch
from mmengine.config import Config
from mmengine.runner import load_checkpoint
from mmseg.registry import MODELS
from mmseg.utils import register_all_modules
register_all_modules()
torch.set_num_threads(1)
for path in sorted(Path(sys.argv[1]).glob("*/model.pth")):
    model = MODELS.build(Config.fromfile(str(path.with_suffix(".py"))).model).eval()
    load_checkpoint(model, str(path), map_location="cpu", strict=True)
    with torch.no_grad():
        x = torch.from_numpy(np.load(path.with_name("x.npy")))
        metas = [{"img_shape": x.shape[2:], "pad_shape": x.shape[2:], "ori_shape": x.shape[2:]}] * len(x)
        np.save(path.with_name("y.npy"), model.encode_decode(x, metas).numpy())
print("mmsegmentation", mmseg.__version__)
""",
)


def largest(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference as a part of the largest value."""
    return float(f"{((found - expected).abs().max() / expected.abs().max()).item():.2e}")


@torch.no_grad()
def mmsegmentation(python: str, folder: Path) -> dict[str, float]:
    """Logits there of models written for it, against ours: every fixture, and one of full width."""
    models = {path.parent.name: uz.load_checkpoint(path) for path in sorted(FIXTURES.glob("upernet_*/*.pth"))}
    for path in sorted((FIXTURES / "training").glob("*/checkpoint.pth")):
        models[path.parent.name] = uz.load_checkpoint(path)
    models["full width, upernet_r101_512x512_160k_ade20k"] = lively(uz.model_info("upernet_r101_512x512_160k_ade20k").config)
    found = {}
    x = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    np.save(folder / "x.npy", x.numpy())
    for name, model in models.items():
        uz.interop.mmsegmentation.to_mmsegmentation(model, folder / "model.pth")
        command = [python, "-c", MMSEGMENTATION, folder / "model.pth", folder / "x.npy", folder / "y.npy"]
        subprocess.run(command, check=True, capture_output=True)
        found[name] = largest(torch.from_numpy(np.load(folder / "y.npy")), model(x))
        print("mmsegmentation", name, found[name], flush=True)
    return found


@torch.no_grad()
def family(pythons: tuple[str, str], folder: Path) -> dict[str, dict[str, float | str]]:
    """Logits in both versions of narrow models that were written for them, against ours.

    1.x has no step for the recipe of BEiT and MAE: that is said, and their network is held against it with a recipe that it has.
    """
    models = {path.parent.name: uz.load_checkpoint(path) for path in sorted((FIXTURES / "family").glob("*/*.pth"))}
    found: dict[str, dict[str, float | str]] = {name: {} for name in models}
    for version, python in enumerate(pythons):
        refused = set()
        for name, model in models.items():
            place = folder / str(version) / name
            place.mkdir(parents=True)
            x = torch.randn(2, 3, *(model.config.backbone.input_size or (75, 97)), generator=torch.Generator().manual_seed(0))
            np.save(place / "x.npy", x.numpy())
            try:
                uz.interop.mmsegmentation.to_mmsegmentation(model, place / "model.pth", version=version)
            except uz.errors.ArgumentError as error:
                found[name][f"{version}.x"] = f"refused: {error}"
                refused.add(name)
                plain = uz.UPerNet(model.config, uz.Recipe(scale=model.recipe.scale), model.label_set).eval()
                plain.load_state_dict(model.state_dict())
                uz.interop.mmsegmentation.to_mmsegmentation(plain, place / "model.pth", version=version)
        done = subprocess.run([python, "-c", FAMILY[version], str(folder / str(version))], check=True, stdout=subprocess.PIPE, text=True)
        print(done.stdout.strip().splitlines()[-1], flush=True)
        for name, model in models.items():
            place = folder / str(version) / name
            difference = largest(torch.from_numpy(np.load(place / "y.npy")), model(torch.from_numpy(np.load(place / "x.npy"))))
            found[name][f"{version}.x, another recipe" if name in refused else f"{version}.x"] = difference
            print(name, version, difference, flush=True)
    return found


@torch.no_grad()
def transformers(folder: Path) -> dict[str, dict]:
    """Logits and label maps there, and whether the model that comes back is the same."""
    from transformers import pipeline

    found = {}
    for name in ("upernet_r50_512x512_160k_ade20k", "upernet_r101_512x512_160k_ade20k"):
        entry = uz.model_info(name)
        model = lively(entry.config, entry.recipe, entry.label_set)
        theirs, _ = uz.interop.transformers.to_transformers(model)
        x = torch.randn(2, 3, 97, 131, generator=torch.Generator().manual_seed(0))
        result = {"logits": largest(theirs(x).logits, model(x))}
        uz.interop.transformers.save_transformers(model, folder / name)
        back = uz.interop.transformers.load_transformers(folder / name)
        result["back_bit_for_bit"] = all(torch.equal(back.state_dict()[k], v) for k, v in model.state_dict().items())
        result["back_same_description"] = (back.config, back.recipe, back.label_set) == (model.config, model.recipe, model.label_set)
        found[name] = result
        print("transformers", name, result, flush=True)
    entry = uz.model_info("upernet_r50_512x512_20k_voc12aug")
    config = dataclasses.replace(entry.config, num_classes=5)
    for photo in ("coffee.png", "chelsea.png"):
        image = Image.open(PHOTOS / photo).convert("RGB")
        model = fit_classifier(lively(config, entry.recipe), np.array(image))
        theirs, processor = uz.interop.transformers.to_transformers(model)
        labels = np.full((image.height, image.width), 255)
        for segment in pipeline("image-segmentation", model=theirs, image_processor=processor)(image):
            labels[np.array(segment["mask"]) > 0] = model.label_set.classes.index(segment["label"])
        found[f"pipeline, {photo}, {image.width}x{image.height}"] = round(float((labels == uz.Segmenter(model)(image).labels).mean()), 5)
        print(photo, found[f"pipeline, {photo}, {image.width}x{image.height}"], flush=True)
    return found


@torch.no_grad()
def onnx(folder: Path) -> dict[str, dict]:
    """Logits of one file at sizes and batches, and labels of another against `Segmenter`."""
    import onnxruntime

    def session(path):
        return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    entry = uz.model_info("upernet_r50_512x512_20k_voc12aug")
    config = dataclasses.replace(entry.config, num_classes=5)
    image = np.array(Image.open(PHOTOS / "coffee.png").convert("RGB"))
    model = fit_classifier(lively(config, entry.recipe), image)
    run = session(export.to_onnx(model, folder / "logits.onnx"))
    found = {}
    for batch in (1, 3):
        for size in ((64, 96), (97, 131), (512, 512)):
            x = torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(0))
            key = f"logits, {batch}x{size[0]}x{size[1]}"
            found[key] = largest(torch.from_numpy(run.run(None, {"pictures": x.numpy()})[0]), model(x))
            print("onnx", key, found[key], flush=True)
    run = session(export.to_onnx(model, folder / "labels.onnx", labels=True))
    segmenter = uz.Segmenter(model)
    for photo in ("coffee.png", "chelsea.png"):
        image = np.array(Image.open(PHOTOS / photo).convert("RGB"))
        labels = run.run(None, {"pictures": image[None]})[0][0]
        key = f"labels, {photo}, {image.shape[1]}x{image.shape[0]}"
        found[key] = round(float((labels == segmenter(image).labels).mean()), 6)
        print("onnx", key, found[key], flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=("mmsegmentation", "family", "transformers", "onnx"))
    parser.add_argument("--mmsegmentation-python", metavar="PYTHON", help="of an environment with mmsegmentation 0.30")
    parser.add_argument("--mmsegmentation-1x-python", metavar="PYTHON", help="of an environment with mmsegmentation 1.x")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for part in args.parts:
        with tempfile.TemporaryDirectory() as folder:
            if part == "family":
                results = family((args.mmsegmentation_python, args.mmsegmentation_1x_python), Path(folder))
            elif part == "mmsegmentation":
                results = mmsegmentation(args.mmsegmentation_python, Path(folder))
            else:
                results = {"transformers": transformers, "onnx": onnx}[part](Path(folder))
        packages = {name: metadata.version(name) for name in PACKAGES[part]}
        print(record(f"portability_{part}", results, packages=packages))


if __name__ == "__main__":
    main()
