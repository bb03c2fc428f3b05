"""What the configs of other libraries say of a UPerNet, in the terms of mmsegmentation's, which `infer` reads.

What they do not say, such as the size of pictures, stays unsaid: transformers' image processor squashes every picture to 512x512, which
is not how these models were trained.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..description import Description
from ..errors import ConfigError, shown
from ..hub import copies
from ..models.backbones._base import require_settings

__all__ = ["DESCRIPTION_KEYS", "assumptions", "description", "settings"]

# library -> the key of its config under which this library leaves what that has no place for; smp keeps those that begin with "_"
DESCRIPTION_KEYS = {"transformers": "upernet_zoo", "smp": "_upernet_zoo"}

_STAGES = tuple(f"stage{i}" for i in range(1, 5))
# settings over there that change what is computed, and the values that this library computes
_TRANSFORMERS: dict[tuple[str, ...], tuple[Any, ...]] = {
    ("auxiliary_concat_input",): (False,),
    ("backbone_config", "hidden_act"): ("gelu",),
    ("backbone_config", "out_features"): (_STAGES, None),
    ("backbone_config", "qkv_bias"): (True,),
    ("backbone_config", "use_absolute_embeddings"): (False,),
}
# of transformers' BeitForSemanticSegmentation
_BEIT: dict[tuple[str, ...], tuple[Any, ...]] = {
    ("auxiliary_concat_input",): (False,),
    ("hidden_act",): ("gelu",),
    ("use_absolute_position_embeddings",): (False,),
    ("use_relative_position_bias",): (True,),
    ("use_shared_relative_position_bias",): (False,),
}
# Repositories with conversions of the authors' files (transformers' convert_beit_unilm_to_pytorch.py), and how these were trained: in
# github.com/microsoft/unilm, beit/semantic_segmentation/configs/beit/upernet/upernet_beit_*_640_slide_160k_ade20k_pt2ft.py
_OF_BEITS_AUTHORS = ("hf-hub:microsoft/beit-base-finetuned-ade-640-640", "hf-hub:microsoft/beit-large-finetuned-ade-640-640")
_STEPS_OF_BEITS_AUTHORS = [
    {"type": "LoadImageFromFile"},
    {
        "type": "MultiScaleFlipAug",
        "img_scale": (2560, 640),
        "flip": False,
        "transforms": [
            {"type": "Resize", "keep_ratio": True},
            {"type": "RandomFlip"},
            {"type": "Normalize", "mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375], "to_rgb": True},
            {"type": "ImageToTensor", "keys": ["img"]},
            {"type": "Collect", "keys": ["img"]},
        ],
    },
]
_SMP: dict[tuple[str, ...], tuple[Any, ...]] = {
    ("encoder_depth",): (5,),
    ("decoder_use_norm",): ("batchnorm", True),
    ("aux_params",): (None,),
}


def description(config: Mapping[str, Any], library: str, owner: str) -> Description | None:
    """What this library left in the config of another, where it wrote the model for that one; None: nothing.

    Args:
        config, library: as for `settings`.
        owner: the file or model, for errors.

    Raises:
        ConfigError: it is no description.
    """
    left = config.get(DESCRIPTION_KEYS[library])
    return Description.from_dict(left, owner) if isinstance(left, Mapping) else None


def settings(config: Mapping[str, Any], library: str, place: str = "") -> dict[str, Any]:
    """The values of a config of mmsegmentation for that of another library.

    Args:
        config: what `config.json` says.
        library: that wrote it; see `copies.library_of`.
        place: the folder or repository; of some repositories more is known than their config says.

    Raises:
        ConfigError: a variant that this library does not compute.
    """
    is_beit = config.get("model_type") == "beit"
    known, translate = (_BEIT, _from_beit) if is_beit else _LIBRARIES[library]
    require_settings(config, known, copies.CONFIG_NAME)
    return _from_beits_authors(config) if is_beit and _is_of_beits_authors(place) else translate(config)


def assumptions(config: Mapping[str, Any], place: str) -> list[str]:
    """What `settings` takes of a config in one way of two, in words."""
    if config.get("model_type") != "beit":
        return []
    blocks = ", ".join(str(block) for block in _blocks(config))
    if _is_of_beits_authors(place):
        trained = ", ".join(str(block) for block in _out_indices(config))
        return [f"features of blocks {trained} and the pictures' preparation as in its training (transformers takes blocks {blocks})"]
    return [
        f"features of blocks {blocks}, counted from 0, as transformers takes them (files of BEiT's authors were trained with those two "
        f"blocks further on: of {' and '.join(_OF_BEITS_AUTHORS)} they are taken so)"
    ]


def _from_transformers(config: Mapping[str, Any]) -> dict[str, Any]:
    names, backbone = config.get("id2label"), config.get("backbone_config", {})
    classes = None
    if isinstance(names, Mapping) and all(str(key).isdecimal() for key in names):
        classes = [names[key] for key in sorted(names, key=int)]
    eps = backbone.get("layer_norm_eps")
    said = {"drop_path_rate": backbone.get("drop_path_rate"), "norm_cfg": None if eps is None else {"eps": eps}}
    head = {"pool_scales": config.get("pool_scales"), "align_corners": False}
    return {"model": {"backbone": _given(said), "decode_head": _given(head)}, "metainfo": _given({"classes": classes})}


def _out_indices(config: Mapping[str, Any]) -> list[int]:
    found = config.get("out_indices") or config.get("segmentation_indices") or ()
    if len(found) != 4 or not all(type(i) is int and i > 1 for i in found):
        raise ConfigError(f"{copies.CONFIG_NAME}: 'out_indices' must be four whole numbers from 2, found {shown(found)}.")
    return list(found)


def _blocks(config: Mapping[str, Any]) -> list[int]:
    """The blocks whose features transformers takes: it counts the embedding as 1, and the first block as 2."""
    return [i - 2 for i in _out_indices(config)]


def _is_of_beits_authors(place: str) -> bool:
    return place.partition("@")[0] in _OF_BEITS_AUTHORS


def _from_beit(config: Mapping[str, Any]) -> dict[str, Any]:
    backbone = {key: config.get(name) for key, name in (("img_size", "image_size"), ("drop_path_rate", "drop_path_rate"))}
    backbone |= {"out_indices": _blocks(config), "norm_cfg": {"eps": config.get("layer_norm_eps", 1e-12)}}
    found = _from_transformers(config)
    return {**found, "model": {**found["model"], "backbone": _given(backbone)}}


def _from_beits_authors(config: Mapping[str, Any]) -> dict[str, Any]:
    found = _from_beit(config)
    backbone = {**found["model"]["backbone"], "out_indices": _out_indices(config), "norm_cfg": {"eps": 1e-6}}
    test = {"mode": "slide", "crop_size": (640, 640), "stride": (426, 426)}
    model = {**found["model"], "backbone": backbone, "test_cfg": test}
    return {"model": model, "test_pipeline": _STEPS_OF_BEITS_AUTHORS, "dataset_type": "ADE20KDataset"}


def _from_smp(config: Mapping[str, Any]) -> dict[str, Any]:
    return {"model": {"decode_head": {"pool_scales": (1, 2, 3, 6), "align_corners": False}}, "metainfo": {}}


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


_LIBRARIES: dict[str, tuple[dict[tuple[str, ...], tuple[Any, ...]], Callable[[Mapping[str, Any]], dict[str, Any]]]] = {
    "transformers": (_TRANSFORMERS, _from_transformers),
    "smp": (_SMP, _from_smp),
}
