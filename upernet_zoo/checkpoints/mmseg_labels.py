"""What the classes of a model of mmsegmentation are called, and which ids its masks have, from a checkpoint's `meta` and its config."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from .. import labels
from ..errors import shown
from . import mmseg_config
from .mmseg_config import find, type_name

__all__ = ["infer_labels"]

_DATASETS = {
    "CityscapesDataset": "cityscapes",
    "ADE20KDataset": "ade20k",
    "PascalVOCDataset": "voc12aug",
}
# data sets that take 0 for no label where nothing says otherwise (`__init__` of their classes)
_REDUCED = ("ADE20KDataset", "ISPRSDataset", "LoveDADataset", "PascalContextDataset59", "PotsdamDataset")
_NO_CLASS = (255, -1)  # what a label map of 1.x and of 0.x has for no class
_SETS = (("data", "train"), ("train_dataloader", "dataset"), ("data", "test"), ("test_dataloader", "dataset"))
_TRAINING = ("train_pipeline",)
_CLASSES = (
    ("data", "test"),
    ("data", "train"),
    ("test_dataloader", "dataset", "metainfo"),
    ("train_dataloader", "dataset", "metainfo"),
    ("metainfo",),
    (),
)
_READ = ("classes", "palette", "metainfo", "reduce_zero_label", "dataset_type")


def infer_labels(meta: Mapping[str, Any], text: Mapping[str, Any], num_classes: int) -> tuple[labels.LabelSet, list[str], list[str]]:
    """The label set, what was read for it, and what was assumed, in words.

    Args:
        meta: of the checkpoint.
        text: the config's values.
        num_classes: of the network.

    Raises:
        ConfigError: classes, palette or ids that make no label set.
    """
    label_set, read, assumed = _named(meta, text, num_classes)
    causes = {
        where: cause
        for path in (*_SETS, ("metainfo",), ("dataset_type",))
        for where, cause in mmseg_config.unread(text, *path).items()
        if where.rsplit(".", 1)[-1] in _READ or ".".join(path).startswith(where)
    }
    assumed += [f"nothing for {where} (line {cause.line}, `{cause.text}`, is not read)" for where, cause in causes.items()]
    is_reduced, label_map = _is_reduced(meta, text), _label_map(meta, text, label_set)
    if not label_map and (is_reduced is None or is_reduced == (label_set.name == "ade20k")):
        return label_set, read, assumed
    said = " and ".join(f"{key}={shown(value)}" for key, value in (("reduce_zero_label", is_reduced), ("label_map", label_map)) if value)
    ids = _file_ids(label_map, num_classes)
    if ids is None or (label_map and is_reduced and isinstance(text.get("data"), dict)):
        assumed.append(f"mask ids as if nothing were said of them ({said} in the config give classes no ids of their own)")
        return label_set, read, assumed
    shift = int(is_reduced is True)
    others = [old for old, new in (label_map or {}).items() if new in _NO_CLASS and isinstance(old, int)]
    void = ([0] if is_reduced else []) + [old + shift for old in others] + [255]
    label_set = dataclasses.replace(
        label_set,
        name=f"{num_classes} classes" if label_set.name in labels.names() else label_set.name,
        dataset_ids=tuple(i + shift for i in ids),
        void_ids=tuple(void),
        void_id=0 if is_reduced else 255,
    )
    read.append(f"from the config: {said or 'reduce_zero_label=False'}, so masks have the ids {shown(label_set.dataset_ids)}")
    return label_set, read, assumed


def _named(meta: Mapping[str, Any], text: Mapping[str, Any], num_classes: int) -> tuple[labels.LabelSet, list[str], list[str]]:
    """Names and colors, and what was read and assumed for them."""
    in_config = (find(text, *path, kind=dict) or {} for path in _CLASSES)
    described = (find(meta, "dataset_meta", kind=dict) or {}, *in_config)
    places = [(meta.get("CLASSES"), meta.get("PALETTE")), *((place.get("classes"), place.get("palette")) for place in described)]
    for classes, palette in places:
        if isinstance(classes, (list, tuple)) and len(classes) == num_classes:
            label_set = labels.named(classes, palette if isinstance(palette, (list, tuple)) else ())
            return label_set, [f"classes and palette of {label_set.title}" if label_set.name in labels.names() else "class names"], []
    known = _DATASETS.get(type_name(text.get("dataset_type")) or "")
    if known is not None and len(labels.get(known)) == num_classes:
        return labels.get(known), [f"from the config: dataset_type={text['dataset_type']!r}, with its classes and palette"], []
    return labels.generic(num_classes), [], [f"class names 'class 0' to 'class {num_classes - 1}'"]


def _data_sets(text: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The data sets of a config, those inside wrappers too."""
    for path in _SETS:
        held = find(text, *path, kind=dict)
        while held is not None:
            yield held
            several = held.get("datasets")
            inner = several[0] if isinstance(several, (list, tuple)) and several else held.get("dataset")
            held = inner if isinstance(inner, dict) and inner is not held else None


def _is_reduced(meta: Mapping[str, Any], text: Mapping[str, Any]) -> bool | None:
    """Whether 0 in a mask is no label and 1, 2, ... are the classes; None where nothing says."""
    sets = [find(meta, "dataset_meta", kind=dict) or {}, *_data_sets(text)]
    pipelines = [find(text, *_TRAINING, kind=(list, tuple)), *(find(one, "pipeline", kind=(list, tuple)) for one in sets)]
    steps = [step for pipeline in pipelines for step in pipeline or () if isinstance(step, dict)]
    steps = [step for step in steps if type_name(step.get("type")) == "LoadAnnotations"]
    said = [place.get("reduce_zero_label") for place in (*sets, *steps)]
    known = next((value for value in said if isinstance(value, bool)), None)
    types = {type_name(one.get("type")) for one in sets} | {type_name(text.get("dataset_type"))}
    return True if known is None and types & set(_REDUCED) else known


def _label_map(meta: Mapping[str, Any], text: Mapping[str, Any], label_set: labels.LabelSet) -> Mapping[Any, Any] | None:
    """Old id -> train id, as `meta` has it or as mmsegmentation makes it where only some classes of a data set are asked for."""
    said: Mapping[Any, Any] | None = find(meta, "dataset_meta", "label_map", kind=dict)
    if said is not None or find(meta, "dataset_meta", kind=dict) is not None:
        return said
    types = [type_name(one.get("type")) for one in _data_sets(text)] + [type_name(text.get("dataset_type"))]
    known = next((_DATASETS[kind] for kind in types if kind in _DATASETS), None)
    classes = () if known is None else labels.get(known).classes
    if label_set.classes == classes or not set(label_set.classes) <= set(classes):
        return None
    return {old: label_set.classes.index(name) if name in label_set.classes else -1 for old, name in enumerate(classes)}


def _file_ids(label_map: Mapping[Any, Any] | None, num_classes: int) -> tuple[int, ...] | None:
    """The id of each class before the zero label is reduced; None unless each has just one."""
    if not label_map:
        return tuple(range(num_classes))
    old = {train: [i for i, j in label_map.items() if j == train and type(i) is int] for train in range(num_classes)}
    return tuple(ids[0] for ids in old.values()) if all(len(ids) == 1 for ids in old.values()) else None
