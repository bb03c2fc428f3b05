"""From what a checkpoint file holds to a native model: unwrap, rename, infer, check, convert.

Published names are mmsegmentation's; native names are those of `upernet_zoo.models`. `_KEY_TABLE` is the one place that knows both.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import config_text, labels, safe_load
from .config import RESNET_STAGES, Recipe, UPerNetConfig
from .errors import CheckpointError, ConfigError
from .models import UPerNet

# published name <-> native name; {i} is a whole number, and what follows the prefix stays
_KEY_TABLE = (
    ("decode_head.psp_modules.{i}.1.", "decode_head.pyramid_pooling.branches.{i}."),
    ("decode_head.bottleneck.", "decode_head.pyramid_pooling.bottleneck."),
    ("decode_head.conv_seg.", "decode_head.classifier."),
    ("auxiliary_head.convs.0.", "auxiliary_head.conv."),
    ("auxiliary_head.conv_seg.", "auxiliary_head.classifier."),
)
HEADER_KEY = "upernet_zoo"  # of the description in a safetensors file's header
_DEFAULT_SCALES = (1, 2, 3, 6)
_ALIGNMENT = 64  # bytes; of torch's own allocations on the CPU
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
}  # safetensors' names


def _anchored(source: str, target: str) -> tuple[re.Pattern, str]:
    return re.compile("^" + re.escape(source).replace(re.escape("{i}"), r"(\d+)")), target.replace("{i}", r"\g<1>")


_TO_NATIVE = [_anchored(published, native) for published, native in _KEY_TABLE]
_TO_PUBLISHED = [_anchored(native, published) for published, native in _KEY_TABLE]


def _rename(key: str, table: list[tuple[re.Pattern, str]]) -> str:
    for pattern, target in table:
        renamed, count = pattern.subn(target, key)
        if count:
            return renamed
    return key


def to_native(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with published names -> the same tensors under native names; native names stay."""
    return {_rename(key, _TO_NATIVE): value for key, value in state_dict.items()}


def to_published(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A native state dict -> the same tensors under the names that mmsegmentation uses."""
    return {_rename(key, _TO_PUBLISHED): value for key, value in state_dict.items()}


@dataclass(frozen=True)
class Description:
    """All that a model is beside its tensors; goes to `config.json` and into a safetensors header, and back."""

    config: UPerNetConfig
    recipe: Recipe
    label_set: labels.LabelSet
    origin: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, model: UPerNet) -> Description:
        """The description of a model."""
        return cls(model.config, model.recipe, model.label_set, model.origin)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "architecture": self.config.to_dict(),
            "recipe": self.recipe.to_dict(),
            "labels": self.label_set.to_dict(),
            "origin": dict(self.origin),
        }

    @classmethod
    def from_dict(cls, data: Any, owner: str) -> Description:
        """The description in plain values; `owner` names the file in errors.

        Raises:
            ConfigError: not such a description, or a value that cannot be used.
        """
        if not isinstance(data, Mapping) or "architecture" not in data:
            raise ConfigError(f"{owner}: not a description of a UPerNet model (no key 'architecture'). Save one with save_pretrained.")
        config = UPerNetConfig.from_dict(data["architecture"], f"{owner}: architecture")
        recipe = Recipe.from_dict(data.get("recipe"), f"{owner}: recipe")
        try:
            label_set = labels.LabelSet.from_dict(data.get("labels"))
        except ConfigError as error:
            raise ConfigError(f"{owner}: labels: {error}") from None
        origin = data.get("origin", {})
        if not isinstance(origin, Mapping) or not all(isinstance(v, str) for pair in origin.items() for v in pair):
            raise ConfigError(f"{owner}: 'origin' must map text to text, found {origin!r}.")
        if len(label_set) != config.num_classes:
            raise ConfigError(f"{owner}: the model has {config.num_classes} classes, and its labels {len(label_set)}.")
        if len(recipe.mean) != config.in_channels:
            raise ConfigError(f"{owner}: the model has {config.in_channels} input channels, and its recipe a mean of {len(recipe.mean)}.")
        return cls(config, recipe, label_set, dict(origin))


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint file's tensors under native names, and what the file says about them."""

    path: Path
    state_dict: dict[str, Tensor]
    meta: Mapping[str, Any]
    description: Description | None = None


def read(path: str | os.PathLike) -> Checkpoint:
    """Read a `.pth` (either format of `torch.save`) or `.safetensors` file safely, and unwrap it.

    Raises:
        MissingFileError: no such file.
        UnsafeCheckpointError: something executable is in it, or it asks for more memory than its size allows.
        CheckpointError: it cannot be read, or holds no state dict.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        content, description = read_safetensors(path)
    else:
        content, description = safe_load.read(path), None
    meta: Mapping[str, Any] = {}
    for _ in range(4):  # published: {'meta', 'state_dict'}; others wrap in 'model' or 'module', now and then twice
        if not isinstance(content, Mapping):
            break
        if isinstance(content.get("meta"), Mapping):
            meta = content["meta"]
        inner = next((content[key] for key in ("state_dict", "model", "module") if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        content = inner
    tensors = {}
    if isinstance(content, Mapping):
        tensors = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if not tensors:
        raise CheckpointError(f"{path}: holds no state dict (named tensors). Pass the checkpoint file of a trained model.")
    while prefix := next((p for p in ("module.", "model.") if all(key.startswith(p) for key in tensors)), None):
        tensors = {key[len(prefix) :]: value for key, value in tensors.items()}
    native = to_native(tensors)
    if len(native) != len(tensors):
        raise CheckpointError(f"{path}: the same tensor stands under a published and a native name. Save the state dict anew.")
    return Checkpoint(path, {k: v.float() if v.is_floating_point() else v for k, v in native.items()}, meta, description)


def _names(keys: Iterable[str], limit: int = 6) -> str:
    keys = list(keys)
    return ", ".join(keys[:limit]) + (f" and {len(keys) - limit} more" if len(keys) > limit else "")


def check_keys(state_dict: Mapping[str, Tensor], model: UPerNet, owner: str) -> None:
    """Compare names and shapes with a model's, strictly.

    Raises:
        CheckpointError: a missing, unexpected or wrongly shaped tensor; each is named.
    """
    expected = model.state_dict()
    faults = []
    if missing := [key for key in expected if key not in state_dict]:
        faults.append(f"missing: {_names(missing)}")
    if unexpected := [key for key in state_dict if key not in expected]:
        faults.append(f"unexpected: {_names(unexpected)}")
    wrong = [k for k in expected if k in state_dict and state_dict[k].shape != expected[k].shape]
    if wrong:
        shapes = (f"{k} is {tuple(state_dict[k].shape)} instead of {tuple(expected[k].shape)}" for k in wrong)
        faults.append(f"wrong shape: {_names(shapes)}")
    kind = [k for k in expected if k in state_dict and state_dict[k].is_floating_point() != expected[k].is_floating_point()]
    if kind:
        faults.append(f"wrong dtype: {_names(f'{k} is {state_dict[k].dtype}' for k in kind)}")
    if faults:
        config = model.config
        what = f"UPerNet with ResNet-{config.depth} and {config.num_classes} classes"
        raise CheckpointError(f"{owner}: does not fit {what}. {'; '.join(faults)}. Check that the file belongs to this model.")


def check_finite(state_dict: Mapping[str, Tensor], owner: str) -> None:
    """Refuse NaN and infinity.

    Raises:
        CheckpointError: names the tensors.
    """
    if bad := [key for key, value in state_dict.items() if value.is_floating_point() and not torch.isfinite(value).all()]:
        raise CheckpointError(f"{owner}: NaN or infinite weights in {_names(bad)}. The file is damaged, or its training diverged.")


def build(description: Description, state_dict: Mapping[str, Tensor], owner: str) -> UPerNet:
    """A model in eval mode that takes the given tensors as they are, without a copy and without initialising any of its own.

    Raises:
        CheckpointError: names or shapes that do not fit.
    """
    with torch.device("meta"):
        model = UPerNet(description.config, description.recipe, description.label_set)
    check_keys(state_dict, model, owner)
    model.load_state_dict(state_dict, assign=True)
    model.origin = dict(description.origin)
    return model.eval()


def _infer_config(state_dict: Mapping[str, Tensor], text: dict[str, Any], owner: str) -> tuple[UPerNetConfig, list[str]]:
    """Architecture from shapes; what shapes cannot tell comes from the config text, or is assumed and listed."""

    def shape(key: str) -> tuple[int, ...]:
        if key not in state_dict or state_dict[key].dim() != 4:
            heads = sorted({".".join(k.split(".")[:2]) for k in state_dict})
            raise CheckpointError(
                f"{owner}: not a UPerNet with a ResNet-V1c backbone: it has no convolution '{key}'. Its tensors are in {_names(heads, 12)}."
            )
        return tuple(state_dict[key].shape)

    fpn = shape("decode_head.fpn_bottleneck.conv.weight")
    stem = shape("backbone.stem.6.weight")
    first = shape("backbone.layer1.0.conv1.weight")
    bottleneck = "backbone.layer1.0.conv3.weight" in state_dict
    blocks = tuple(len({k.split(".")[2] for k in state_dict if k.startswith(f"backbone.layer{i}.")}) for i in range(1, 5))
    depth = next((d for d, stages in RESNET_STAGES.items() if stages == (bottleneck, blocks)), None)
    if depth is None:
        kind = "bottleneck" if bottleneck else "basic"
        raise CheckpointError(
            f"{owner}: a ResNet with {blocks} {kind} blocks is not known; depths are {', '.join(map(str, RESNET_STAGES))}."
        )
    assumed = []
    head = config_text.find(text, "model", "decode_head", kind=dict) or {}
    branches = sum(bool(re.fullmatch(r"decode_head\.pyramid_pooling\.branches\.\d+\.conv\.weight", k)) for k in state_dict)
    scales = config_text.find(head, "pool_scales", kind=(list, tuple))
    if scales is None:
        scales = _DEFAULT_SCALES
        assumed.append(f"pool_scales={scales}")
    if len(scales) != branches:
        raise CheckpointError(f"{owner}: {branches} pyramid pooling branches, but pool_scales is {tuple(scales)}.")
    align_corners = config_text.find(head, "align_corners", kind=bool)
    if align_corners is None:
        align_corners = False
        assumed.append("align_corners=False (the 769x769 Cityscapes models need True)")
    config = UPerNetConfig(
        depth=depth,
        num_classes=shape("decode_head.classifier.weight")[0],
        align_corners=align_corners,
        base_channels=first[0],
        stem_channels=stem[0],
        channels=fpn[0],
        aux_channels=shape("auxiliary_head.conv.conv.weight")[0],
        pool_scales=tuple(scales),
        in_channels=shape("backbone.stem.0.weight")[1],
    )
    return config, assumed


def _infer_recipe(text: dict[str, Any], in_channels: int) -> tuple[Recipe, list[str]]:
    pipeline = config_text.find(text, "test_pipeline", kind=(list, tuple))
    pipeline = pipeline or config_text.find(text, "data", "test", "pipeline", kind=(list, tuple)) or ()
    found: dict[str, Any] = {}
    for step in pipeline:
        if isinstance(step, dict) and "img_scale" in step:
            scale = step["img_scale"]
            if isinstance(scale, list) and scale and isinstance(scale[0], (list, tuple)):
                scale = scale[0]  # of several, the first
            if scale is not None:
                found["scale"] = scale
            for inner in config_text.find(step, "transforms", kind=(list, tuple)) or ():
                if config_text.find(inner, "type", kind=str) == "Normalize":
                    found["mean"], found["std"] = inner.get("mean"), inner.get("std")
    assumed = []
    if "scale" not in found:
        found["scale"] = (2048, 512)
        assumed.append("scale=(2048, 512)")
    if found.get("mean") is None or found.get("std") is None:
        mean, std = Recipe.__dataclass_fields__["mean"].default, Recipe.__dataclass_fields__["std"].default
        repeats = -(-in_channels // 3)
        found["mean"], found["std"] = (mean * repeats)[:in_channels], (std * repeats)[:in_channels]
        assumed.append("mean and std of ImageNet")
    test = config_text.find(text, "model", "test_cfg", kind=dict) or config_text.find(text, "test_cfg", kind=dict)
    if test is None:
        assumed.append("mode='whole'")
    elif test.get("mode") == "slide":
        found.update(mode="slide", crop=test.get("crop_size"), stride=test.get("stride"))
    return Recipe.from_dict(found, "the config text's recipe"), assumed


def _infer_labels(meta: Mapping[str, Any], num_classes: int) -> tuple[labels.LabelSet, list[str]]:
    dataset = config_text.find(meta, "dataset_meta", kind=dict) or {}  # mmsegmentation 1.x
    classes, palette = meta.get("CLASSES") or dataset.get("classes"), meta.get("PALETTE") or dataset.get("palette")
    if not isinstance(classes, (list, tuple)) or len(classes) != num_classes:
        return labels.generic(num_classes), [f"class names 'class 0' to 'class {num_classes - 1}'"]
    for name in labels.names():
        if labels.get(name).classes == tuple(classes):
            return labels.get(name), []
    if not isinstance(palette, (list, tuple)) or len(palette) != num_classes:
        palette = ()
    return labels.LabelSet(name=f"{num_classes} classes", classes=tuple(classes), palette=tuple(palette)), []


def describe(checkpoint: Checkpoint, origin: Mapping[str, str]) -> Description:
    """Infer what model a checkpoint holds; warns with what had to be assumed.

    Depth, widths, class count and input channels come from the tensors; `align_corners`, pooling scales, test mode, scale and class
    names from `meta` where it has them (its config text is parsed, never executed).

    Raises:
        CheckpointError: not a UPerNet with a ResNet-V1c backbone.
    """
    if checkpoint.description is not None:  # a file that this library wrote says all itself
        return replace(checkpoint.description, origin=checkpoint.description.origin or origin)
    owner = str(checkpoint.path)
    text = config_text.parse(checkpoint.meta.get("config") or checkpoint.meta.get("cfg"))
    try:
        config, assumed = _infer_config(checkpoint.state_dict, text, owner)
        recipe, more = _infer_recipe(text, config.in_channels)
        label_set, yet_more = _infer_labels(checkpoint.meta, config.num_classes)
    except ConfigError as error:
        raise CheckpointError(f"{owner}: {error}") from None
    if assumed := assumed + more + yet_more:
        warnings.warn(f"{owner}: the file does not say all; assumed {', '.join(assumed)}.", stacklevel=3)
    return Description(config, recipe, label_set, origin)


def write_safetensors(path: Path, description: Description, state_dict: Mapping[str, Tensor]) -> None:
    """Write tensors and, in the header, their description. Not atomic: see `sources.write_atomically`.

    The format leaves the order of tensors free, and safetensors' own writer aligns them to 8 bytes only. Mapped into memory, such
    tensors send oneDNN down other paths than those that torch allocates: other rounding, some slower. Here the data starts at a
    multiple of 64 bytes and tensors whose size is one come first, so that all but a few small ones are aligned as torch's own.
    """
    tensors = {key: value.detach().cpu().contiguous() for key, value in state_dict.items()}
    order = sorted(tensors, key=lambda key: (tensors[key].nbytes % _ALIGNMENT != 0, -tensors[key].element_size(), key))
    header: dict[str, Any] = {"__metadata__": {"format": "pt", HEADER_KEY: json.dumps(description.to_dict())}}
    end = 0
    for key in order:
        start, end = end, end + tensors[key].nbytes
        header[key] = {"dtype": _DTYPES[tensors[key].dtype], "shape": list(tensors[key].shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for key in order:
            file.write(memoryview(tensors[key].reshape(-1).view(torch.uint8).numpy()))


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], Description | None]:
    """Tensors of a native safetensors file, mapped into memory and not copied, and the description in its header if there is one.

    Raises:
        CheckpointError: not a safetensors file.
        ConfigError: a description that cannot be used.
    """
    tensors, metadata = safe_load.read_safetensors(path)
    if HEADER_KEY not in metadata:
        return tensors, None
    try:
        data = json.loads(metadata[HEADER_KEY])
    except ValueError as error:
        raise ConfigError(f"{path}: the description in the header is not JSON: {error}.") from None
    return tensors, Description.from_dict(data, str(path))
