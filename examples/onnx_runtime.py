"""An exported model in ONNX Runtime, in two ways. Neither imports torch.

upernet-zoo export MODEL --labels --out model.onnx
pip install --no-deps git+https://github.com/upernet-zoo/upernet_zoo
pip install numpy pillow onnxruntime
python onnx_runtime.py model.onnx street.jpg labels.png overlay.png
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

from upernet_zoo.runtime import OnnxSegmenter

model, picture, labels_out, overlay_out = sys.argv[1:]

# 1. The file alone: with --labels all that is done to a picture is inside. (N, H, W, 3) uint8 in, (N, H, W) train ids out.
session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
image = ImageOps.exif_transpose(Image.open(picture)).convert("RGB")
(labels,) = session.run(None, {"pictures": np.asarray(image)[None]})
metadata = session.get_modelmeta().custom_metadata_map
result = Image.fromarray(labels[0])
result.putpalette([value for color in json.loads(metadata["palette"]) for value in color])
result.save(labels_out)
classes = json.loads(metadata["classes"])
print("classes:", ", ".join(classes[i].strip() for i in np.unique(labels)))

# 2. OnnxSegmenter: also models that run in windows, exported without --labels; with areas, masks and overlays.
segmentation = OnnxSegmenter(model)(picture)
segmentation.overlay().save(overlay_out)
print(segmentation)
