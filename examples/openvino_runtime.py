"""An exported model in OpenVINO: on Intel's CPUs, and on its GPUs and NPUs by another device name (not tried).

upernet-zoo export MODEL --labels --out model.onnx
pip install openvino numpy pillow
python openvino_runtime.py model.onnx street.jpg labels.png
"""

import sys

import numpy as np
import openvino
from PIL import Image, ImageOps

model, picture, out = sys.argv[1:]
# float32, as the labels were computed with; CPUs that have bfloat16 would use it
compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
image = ImageOps.exif_transpose(Image.open(picture)).convert("RGB")
labels = compiled({"pictures": np.asarray(image)[None]})["labels"]  # (N, H, W, 3) uint8 -> (N, H, W) train ids
Image.fromarray(labels[0]).save(out)
print(f"{len(np.unique(labels))} classes in {image.width}x{image.height} pixels")
