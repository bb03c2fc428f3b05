"""A model in transformers' pipeline for segmentation.

    pip install 'upernet-zoo[transformers] @ git+https://github.com/upernet-zoo/upernet_zoo'
    upernet-zoo convert MODEL --to transformers --out theirs
    python transformers_pipeline.py theirs street.jpg labels.png

From `theirs` on nothing of this library is needed: the folder is transformers' own. Its image processor resizes with another filter than
`Segmenter`, so some pixels at borders differ, and sliding windows are not run.
"""

import sys

import numpy as np
from PIL import Image
from transformers import pipeline

folder, picture, out = sys.argv[1:]
segment = pipeline("image-segmentation", model=folder, device="cpu")

masks = segment(picture, subtask="semantic")  # for each class that occurs: {"label": name, "mask": PIL image, "score": None}
label2id = segment.model.config.label2id
labels = np.zeros(np.array(masks[0]["mask"]).shape, np.uint8)
for mask in masks:
    labels[np.array(mask["mask"]) > 0] = label2id[mask["label"]]
    print(f"{mask['label']}: {(np.array(mask['mask']) > 0).mean():.1%}")
Image.fromarray(labels).save(out)
