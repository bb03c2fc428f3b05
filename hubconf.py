"""torch.hub entry points: one for each model of the index, made from the index.

model = torch.hub.load("upernet-zoo/upernet_zoo", "upernet_r50_512x512_160k_ade20k")
"""

from __future__ import annotations as _annotations

from collections.abc import Callable as _Callable
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

from upernet_zoo import index as _index

if _TYPE_CHECKING:
    from upernet_zoo import UPerNet as _UPerNet

dependencies = ["torch", "torchvision", "numpy", "PIL", "yaml", "requests", "tqdm", "safetensors", "huggingface_hub"]

_DOC = """{name}: UPerNet with a {backbone} backbone, trained on {dataset} at {crop} for {schedule} iterations.

mIoU {metrics}; {count} classes ({classes}, ...).

    import torch
    model = torch.hub.load("path/to/a/clone", "{name}", source="local")   # UPerNet in eval mode

    from upernet_zoo import Segmenter
    segmentation = Segmenter(model)("street.jpg")   # path, PIL image, array or tensor
    segmentation.labels                             # (H, W) uint8 label map in the picture's own size
    segmentation.overlay().save("overlay.png")

    from upernet_zoo.images.preprocess import load_image, prepare   # or the network by hand
    logits = model(prepare(load_image("street.jpg"), model.recipe))
    labels = logits.argmax(1)

Args:
    pretrained: False gives freshly initialized weights and downloads nothing.
    progress: show a progress bar while downloading.
    keywords: as for upernet_zoo.create_model, such as checkpoint, num_classes, device, cache_dir.
"""


def _entry_point(entry: _index.ModelEntry) -> _Callable[..., _UPerNet]:
    def load(pretrained: bool = True, progress: bool = True, **keywords: _Any) -> _UPerNet:
        from upernet_zoo.factory import create_model

        return create_model(entry.name, pretrained, progress=progress, **keywords)

    load.__name__ = load.__qualname__ = entry.name
    load.__doc__ = _DOC.format(
        name=entry.name,
        backbone=entry.backbone,
        dataset=entry.dataset,
        crop="x".join(map(str, entry.crop_size)),
        schedule=entry.schedule,
        metrics=", ".join(f"{value:.2f} ({key})" if key != "mIoU" else f"{value:.2f}" for key, value in entry.metrics.items()),
        count=entry.config.num_classes,
        classes=", ".join(entry.label_set.classes[:4]),
    )
    return load


globals().update({_name: _entry_point(_entry) for _name, _entry in _index.default().items()})
