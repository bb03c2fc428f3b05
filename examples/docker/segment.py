"""What the container runs: python segment.py model.onnx PICTURE LABELS.png."""

import sys

from upernet_zoo.runtime import OnnxSegmenter

model, picture, out = sys.argv[1:]
segmentation = OnnxSegmenter(model)(picture)
segmentation.save(out)
print(segmentation)
