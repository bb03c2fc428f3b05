"""How a model of mmsegmentation wants its pictures: from its config's test pipeline, preprocessor and `test_cfg` to a `Recipe`.

Each step and each setting is followed; one that this library does not do, or that could not be read, goes by name to the recipe's
`unsupported`, with which nothing is predicted; what is silent is assumed, and the report says so. 0.x and 1.x differ: in the default of
`keep_ratio` (True, False), in where pictures are normalized (a step, the preprocessor) and in which padding is taken off again.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..config import Recipe
from ..errors import ConfigError, shown
from . import mmseg_config
from .mmseg_config import find, type_name
from .mmseg_source import blemish

__all__ = ["infer_recipe"]

_SCALE = (2048, 512)  # where nothing says one
_PIPELINES = (  # of 0.x and 1.x, in the order in which their evaluation looks
    ("data", "test", "pipeline"),
    ("test_dataloader", "dataset", "pipeline"),
    ("test_pipeline",),
)
_ANY = None
# step -> option -> the values of it that are followed, or change no picture here
_STEPS: dict[str, dict[str, tuple[Any, ...] | None]] = {
    "LoadImageFromFile": {
        "to_float32": (False,),
        "color_type": ("color",),
        "imdecode_backend": ("cv2", "pillow"),
        **dict.fromkeys(("backend_args", "file_client_args", "ignore_empty"), _ANY),
    },
    "LoadAnnotations": dict.fromkeys(("reduce_zero_label", "imdecode_backend", "backend_args", "file_client_args", "with_bbox"), _ANY),
    "MultiScaleFlipAug": dict.fromkeys(("img_scale", "img_ratios", "flip", "flip_direction", "transforms"), _ANY),
    "Resize": {
        "keep_ratio": (True, False),
        "interpolation": ("bilinear",),
        "backend": ("cv2", None),
        "ratio_range": (None,),
        "scale_factor": (None,),
        **dict.fromkeys(("scale", "img_scale", "min_size", "multiscale_mode", "clip_object_border"), _ANY),
    },
    "ResizeShortestEdge": dict.fromkeys(("scale", "max_size"), _ANY),
    "RandomFlip": dict.fromkeys(("prob", "direction"), _ANY),
    "Normalize": {"mean": _ANY, "std": _ANY, "to_rgb": (True, False)},
    "Pad": {"size": (None,), "pad_val": (0,), "size_divisor": _ANY, "seg_pad_val": _ANY, "padding_mode": ("constant",)},
    **{
        name: dict.fromkeys(("keys", "meta_keys"), _ANY)
        for name in ("ImageToTensor", "ToTensor", "Collect", "DefaultFormatBundle", "PackSegInputs")
    },
}
_STEPS["LoadImageFromNDArray"] = _STEPS["LoadImageFromFile"]
_RESIZES = ("Resize", "ResizeShortestEdge")
_PREPROCESSOR: dict[str, tuple[Any, ...] | None] = {
    "type": ("SegDataPreProcessor",),
    "pad_val": (0,),
    **dict.fromkeys(("mean", "std", "bgr_to_rgb", "rgb_to_bgr", "test_cfg"), _ANY),
    **dict.fromkeys(("size", "size_divisor", "seg_pad_val", "batch_augments", "non_blocking"), _ANY),  # in training
}
_PADDING: dict[str, tuple[Any, ...] | None] = {"size_divisor": _ANY, "size": (None,)}
_TEST: dict[str, tuple[Any, ...] | None] = {"mode": _ANY, "crop_size": _ANY, "stride": _ANY}


@dataclass
class _Found:
    """What was made of a config so far.

    Attributes:
        fields: of the recipe.
        is_bgr: whether the network takes BGR.
        guessed: which of them nothing says.
        unsupported, assumed: in words.
    """

    fields: dict[str, Any] = field(default_factory=dict)
    is_bgr: bool = False
    guessed: set[str] = field(default_factory=set)
    unsupported: list[str] = field(default_factory=list)
    assumed: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Step:
    """A step of a test pipeline.

    Attributes:
        name: its class.
        options: the rest.
        is_v0: of mmsegmentation 0.x.
        in_view: inside a `MultiScaleFlipAug`, which says whether pictures are flipped.
    """

    name: str
    options: Mapping[str, Any]
    is_v0: bool
    in_view: bool


def infer_recipe(
    text: Mapping[str, Any], normalization: Mapping[str, Tensor], in_channels: int
) -> tuple[Recipe, bool, list[str], list[str]]:
    """The recipe of a config's values.

    Args:
        text: as `mmseg_config` reads them.
        normalization: `mean` and `std` among the checkpoint's tensors, which go first.
        in_channels: of the network.

    Returns:
        The recipe, with mean and std in RGB; whether the network takes BGR; what was read, and what was assumed, in words.

    Raises:
        ConfigError: values that cannot be used.
    """
    found = _follow_pipelines(text)
    _follow_preprocessor(text, found, in_channels)
    for key in normalization.keys() & {"mean", "std"}:
        found.fields[key] = normalization[key].flatten().tolist()
    _complete_normalization(found, in_channels)
    _follow_test_cfg(text, found)
    found.fields["unsupported"] = tuple(found.unsupported)
    recipe = Recipe.from_dict(found.fields, "the config text's recipe")
    if len(recipe.mean) != in_channels:
        raise ConfigError(f"the model has {in_channels} input channels, and its config a mean of {len(recipe.mean)}.")
    is_bgr = found.is_bgr and in_channels == 3
    if is_bgr:
        recipe = dataclasses.replace(recipe, mean=recipe.mean[::-1], std=recipe.std[::-1])
    fields = recipe.to_dict().items()
    read = [f"from the config: {key}={value}" for key, value in fields if key not in found.guessed and key != "unsupported"]
    refused = [f"no recipe that predicts, as this library does not do all that the config asks for ({one})" for one in found.unsupported]
    return recipe, is_bgr, read, found.assumed + refused


def _allowed(what: str, options: Mapping[Any, Any], known: Mapping[str, tuple[Any, ...] | None], found: _Found) -> bool:
    """Whether all options are followed; those that are not go to `found.unsupported`."""
    cause = blemish(options)
    bad = [f"{what} is not read: line {cause.line}, `{cause.text}`"] if cause is not None else []
    for key, value in options.items():
        if (isinstance(value, str) and key == "_scope_") or (blemish(value) is cause and cause is not None):
            continue
        values = known.get(key, ())
        plain = type_name(value) if key == "type" else value
        if (blemish(value) is not None and key != "type") or (values is not None and not any(plain is v or plain == v for v in values)):
            bad.append(f"{what} with {key}={shown(value)}")
    found.unsupported += bad
    return not bad


# the test pipeline


def _follow_pipelines(text: Mapping[str, Any]) -> _Found:
    """What the first pipeline asks for; another one that asks for something else is said."""
    followed: dict[str, _Found] = {}
    for path in _PIPELINES:
        name = ".".join(path)
        steps = find(text, *path, kind=(list, tuple))
        causes = mmseg_config.unread(text, *path) if steps is None else {}
        if causes:
            where, cause = next(iter(causes.items()))
            followed[name] = _Found({"scale": None}, unsupported=[f"{where} is not read: line {cause.line}, `{cause.text}`"])
        elif steps:
            followed[name] = _follow_steps(steps, text)
    if not followed:
        return _Found({"scale": _SCALE}, guessed={"scale"}, assumed=[f"scale={_SCALE}"])
    first, *others = followed
    for other in others:
        if followed[other] != followed[first]:
            followed[first].assumed.append(f"pictures prepared as {first} says, and not as {other}, which differs")
    return followed[first]


def _follow_steps(steps: list[Any] | tuple[Any, ...], text: Mapping[str, Any]) -> _Found:
    found = _Found()
    kinds = {type_name(step.get("type")) for step in steps if isinstance(step, dict)}
    is_v0 = "PackSegInputs" not in kinds and bool(kinds & {"MultiScaleFlipAug", "Collect", "DefaultFormatBundle"})
    done: set[str] = set()
    for step in _flattened(steps, is_v0, False, found):
        if step.name not in _STEPS:
            found.unsupported.append(f"the step {shown(step.name)} of the test pipeline")
        elif _allowed(step.name, step.options, _STEPS[step.name], found):
            _follow_step(step, done, found)
        done.add(step.name)
    found.fields.setdefault("scale", None)  # without a step that resizes, pictures keep their size
    return found


def _flattened(steps: Any, is_v0: bool, in_view: bool, found: _Found) -> Iterator[_Step]:
    """Steps in their order, those inside a `MultiScaleFlipAug` with its scale as an option of their `Resize`."""
    for step in steps:
        name = type_name(step.get("type")) if isinstance(step, dict) else None
        if name is None:
            found.unsupported.append(f"the step {shown(step)} of the test pipeline")
            continue
        options = {key: value for key, value in step.items() if key != "type"}
        inner = options.get("transforms")
        if name != "MultiScaleFlipAug" or not isinstance(inner, (list, tuple)):
            yield _Step(name, options, is_v0, in_view)
        elif _allowed(name, {key: value for key, value in options.items() if key != "transforms"}, _STEPS[name], found):
            scale = _single_view(options, found)
            inner = [{**s, "img_scale": scale} if isinstance(s, dict) and type_name(s.get("type")) == "Resize" else s for s in inner]
            yield from _flattened(inner, True, True, found)


def _single_view(view: Mapping[str, Any], found: _Found) -> Any:
    """The scale of a `MultiScaleFlipAug`; of several views the first, and that is said."""
    scale, ratios = view.get("img_scale"), view.get("img_ratios")
    scales = scale if isinstance(scale, list) and scale and isinstance(scale[0], (list, tuple)) else [scale]
    ratios = ratios if isinstance(ratios, (list, tuple)) and ratios else [1.0 if ratios is None else ratios]
    if len(scales) > 1 or len(ratios) > 1 or view.get("flip"):
        found.assumed.append("one view of a picture, where the config's test pipeline has several (scales and flips)")
    ratio = 1.0 if 1.0 in ratios else ratios[0]
    if ratio != 1.0:
        found.unsupported.append(f"MultiScaleFlipAug with img_ratios={shown(view.get('img_ratios'))}")
    return scales[0]


def _follow_step(step: _Step, done: set[str], found: _Found) -> None:
    if step.name in _RESIZES and done & {*_RESIZES, "Normalize", "Pad"}:
        found.unsupported.append(f"{step.name} after {' and '.join(sorted(done & {*_RESIZES, 'Normalize', 'Pad'}))}")
    elif step.name == "Resize":
        found.fields.update(_resize_of_v0(step.options) if step.is_v0 else _resize_of_v1(step.options, found))
    elif step.name == "ResizeShortestEdge":
        _follow_shortest_edge(step.options, found)
    elif step.name == "RandomFlip" and not step.in_view and step.options.get("prob") != 0:
        found.unsupported.append("RandomFlip, which flips some pictures")
    elif step.name == "Normalize":
        found.fields.update(mean=step.options.get("mean"), std=step.options.get("std"))
        found.is_bgr = step.options.get("to_rgb") is False
    elif step.name == "Pad" and step.options.get("size_divisor") != 1:
        if step.is_v0 and "Normalize" in done and "Pad" not in done:
            found.fields["size_divisor"] = step.options.get("size_divisor")
        else:
            found.unsupported.append("Pad, whose margin is part of the picture at the end" if not step.is_v0 else "Pad before Normalize")


def _resize_of_v0(options: Mapping[str, Any]) -> dict[str, Any]:
    """0.x takes the view's scale, or its own `img_scale`, and keeps the ratio by default."""
    scale = options.get("img_scale")
    if isinstance(scale, list) and scale and isinstance(scale[0], (list, tuple)):
        scale = scale[0]
    return _resized(scale, options.get("keep_ratio", True), options.get("min_size"))


def _resize_of_v1(options: Mapping[str, Any], found: _Found) -> dict[str, Any]:
    """1.x takes `scale`, one number for both sides, and does not keep the ratio by default."""
    scale = options.get("scale")
    for key in options.keys() & {"img_scale", "min_size", "multiscale_mode"}:
        found.unsupported.append(f"Resize with {key}={shown(options[key])}, which 1.x does not have")
    return _resized((scale, scale) if isinstance(scale, int) else scale, options.get("keep_ratio", False), None)


def _resized(scale: Any, keep_ratio: bool, min_size: Any) -> dict[str, Any]:
    if scale is None:
        return {"scale": None}
    fields = {"scale": scale, "keep_ratio": keep_ratio}
    return {**fields, "min_size": min_size} if keep_ratio and min_size is not None else fields


def _follow_shortest_edge(options: Mapping[str, Any], found: _Found) -> None:
    short, longest = options.get("scale"), options.get("max_size")
    short = min(short) if isinstance(short, tuple) and all(isinstance(side, int) for side in short) and short else short
    if not isinstance(short, int) or not isinstance(longest, int) or longest < short:
        found.unsupported.append(f"ResizeShortestEdge with scale={shown(options.get('scale'))} and max_size={shown(longest)}")
        return
    found.fields.update(scale=(longest, short), short_edge=True)


# 1.x's preprocessor, which every picture passes after the pipeline


def _follow_preprocessor(text: Mapping[str, Any], found: _Found, in_channels: int) -> None:
    places = (("model", "data_preprocessor"), ("data_preprocessor",))
    options = next((o for o in (find(text, *path, kind=dict) for path in places) if o is not None), None)
    for path in places if options is None else ():
        for where, cause in mmseg_config.unread(text, *path).items():
            if ".".join(path).startswith(where):
                found.unsupported.append(f"{where} is not read: line {cause.line}, `{cause.text}`")
    if options is None or not _allowed("data_preprocessor", options, _PREPROCESSOR, found):
        return
    if "mean" in found.fields:
        found.unsupported.append("Normalize in the test pipeline and a data_preprocessor after it")
    # without a mean it leaves pixels as they are
    found.fields["mean"] = options.get("mean") or [0.0] * in_channels
    found.fields["std"] = options.get("std") or [1.0] * in_channels
    found.is_bgr = not (options.get("bgr_to_rgb", False) or options.get("rgb_to_bgr", False))  # either exchanges the channels
    padding = options.get("test_cfg") or {}
    if not isinstance(padding, dict):
        found.unsupported.append(f"data_preprocessor with test_cfg={shown(padding)}")
    elif _allowed("data_preprocessor.test_cfg", padding, _PADDING, found) and padding.get("size_divisor") is not None:
        found.fields["size_divisor"] = padding["size_divisor"]


def _complete_normalization(found: _Found, in_channels: int) -> None:
    """ImageNet's mean and std where there is none; one number for all channels is repeated."""
    if found.fields.get("mean") is None or found.fields.get("std") is None:
        usual = Recipe(scale=None)
        repeats = math.ceil(in_channels / 3)
        found.fields.update(mean=(usual.mean * repeats)[:in_channels], std=(usual.std * repeats)[:in_channels])
        found.guessed |= {"mean", "std"}
        found.assumed.append("mean and std of ImageNet")
    for key in ("mean", "std"):
        value = found.fields[key]
        if isinstance(value, (list, tuple)) and len(value) == 1:
            found.fields[key] = list(value) * in_channels


# how the network is run


def _follow_test_cfg(text: Mapping[str, Any], found: _Found) -> None:
    test = find(text, "model", "test_cfg", kind=dict) or find(text, "test_cfg", kind=dict)
    causes = mmseg_config.unread(text, "model", "test_cfg") if isinstance(text.get("model"), dict) else {}
    if test is None and "model.test_cfg" in causes:
        found.unsupported.append(f"model.test_cfg is not read: line {causes['model.test_cfg'].line}, `{causes['model.test_cfg'].text}`")
    if test is None or "mode" not in test:
        found.guessed.add("mode")
        found.assumed.append("mode='whole'")
        return
    if not _allowed("test_cfg", test, _TEST, found):
        return
    found.fields["mode"] = test["mode"]
    if test["mode"] == "slide":
        found.fields.update(crop=test.get("crop_size"), stride=test.get("stride"))
