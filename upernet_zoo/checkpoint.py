"""From what a checkpoint file holds to a native model: unwrap, rename, check, build, write.

Published names are mmsegmentation's; native names are those of `upernet_zoo.models`. `PUBLISHED` is the one place that knows both.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import labels, safe_load
from .config import Recipe, UPerNetConfig
from .errors import CheckpointError, ConfigError
from .models import UPerNet


class KeyTable:
    """Names of tensors on two sides: pairs of prefixes, of which the first that fits is exchanged.

    Args:
        pairs: (ours, theirs); `{i}` is a whole number, and what follows the prefix stays. A name that no pair fits is the same on both.
    """

    def __init__(self, *pairs: tuple[str, str]):
        self._to_theirs = [self._rule(ours, theirs) for ours, theirs in pairs]
        self._to_ours = [self._rule(theirs, ours) for ours, theirs in pairs]

    @staticmethod
    def _rule(source: str, target: str) -> tuple[re.Pattern, str]:
        return re.compile("^" + re.escape(source).replace(re.escape("{i}"), r"(\d+)")), target.replace("{i}", r"\g<1>")

    @staticmethod
    def _rename(key: str, rules: list[tuple[re.Pattern, str]]) -> str:
        for pattern, target in rules:
            renamed, count = pattern.subn(target, key)
            if count:
                return renamed
        return key

    def to_theirs(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The same tensors under their names."""
        return {self._rename(key, self._to_theirs): value for key, value in state_dict.items()}

    def to_ours(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The same tensors under our names; those that have our names already keep them."""
        return {self._rename(key, self._to_ours): value for key, value in state_dict.items()}


_PUBLISHED = (
    ("decode_head.pyramid_pooling.branches.{i}.", "decode_head.psp_modules.{i}.1."),
    ("decode_head.pyramid_pooling.bottleneck.", "decode_head.bottleneck."),
    ("decode_head.classifier.", "decode_head.conv_seg."),
    ("auxiliary_head.conv.", "auxiliary_head.convs.0."),
    ("auxiliary_head.classifier.", "auxiliary_head.conv_seg."),
)
# deep stem? -> the table; a plain stem's two modules stand for themselves over there
PUBLISHED = {
    True: KeyTable(*_PUBLISHED),
    False: KeyTable(*_PUBLISHED, ("backbone.stem.0.", "backbone.conv1."), ("backbone.stem.1.", "backbone.bn1.")),
}
HEADER_KEY = "upernet_zoo"  # of the description in a safetensors file's header
FORM_KEY = "form"  # in the origin of a fused twin (`optimized`), whose tensors are not those of a UPerNet
_PREPROCESSOR = "data_preprocessor."
# what else a training checkpoint holds, where its name does not say what it is
_WORDS = {
    "message_hub": "message_hub (mmengine's logs)",
    "ema_state_dict": "ema_state_dict (the weights of the last step: mmengine saves the averages as state_dict)",
}
_ALIGNMENT = 64  # bytes; of torch's own allocations on the CPU
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
}  # safetensors' names


def to_native(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with published names -> the same tensors under native names; native names stay."""
    return PUBLISHED["backbone.conv1.weight" not in state_dict].to_ours(state_dict)


def to_published(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A native state dict -> the same tensors under the names that mmsegmentation uses."""
    return PUBLISHED["backbone.stem.3.weight" in state_dict].to_theirs(state_dict)


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
    """A checkpoint file's tensors under native names, and what the file says about them.

    Attributes:
        path: of the file.
        state_dict: floating-point tensors in float32.
        meta: the file's `meta`, empty if it has none.
        description: of a file that this library wrote; such a file says all itself.
        normalisation: `mean` and `std` that a `data_preprocessor` left among the tensors.
        dropped: what else is in the file, in words.
    """

    path: Path
    state_dict: dict[str, Tensor]
    meta: Mapping[str, Any] = field(default_factory=dict)
    description: Description | None = None
    normalisation: Mapping[str, Tensor] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()


def read(path: str | os.PathLike, *, ema: bool = False) -> Checkpoint:
    """Read a `.pth` (either format of `torch.save`) or `.safetensors` file safely, and unwrap it.

    A training checkpoint may hold averaged (EMA) weights beside those of the last step. mmcv 1.x keeps the averages as buffers
    `ema_<name with underscores>` of the model. mmengine exchanges the two when it saves, so that `state_dict` has the averages, and
    `ema_state_dict` the weights of the last step.

    Args:
        path: of the file.
        ema: take the averaged weights.

    Raises:
        MissingFileError: no such file.
        UnsafeCheckpointError: something executable is in it, or it asks for more memory than its size allows.
        CheckpointError: it cannot be read, holds no state dict, or has no averaged weights when they were asked for.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        content, description = read_safetensors(path)
        if description is not None and FORM_KEY in description.origin:
            raise CheckpointError(f"{path}: optimised for inference, so no checkpoint any more. Read it with upernet_zoo.optimized.read.")
    else:
        content, description = safe_load.read(path), None
    meta: Mapping[str, Any] = {}
    dropped: list[str] = []
    has_ema = False
    for _ in range(4):  # published: {'meta', 'state_dict'}; others wrap in 'model' or 'module', now and then twice
        if not isinstance(content, Mapping):
            break
        if isinstance(content.get("meta"), Mapping):
            meta = content["meta"]
        inner = next((key for key in ("state_dict", "model", "module") if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        has_ema = has_ema or isinstance(content.get("ema_state_dict"), Mapping)
        dropped += [_WORDS.get(key, key) for key in content if isinstance(key, str) and key not in ("meta", inner)]
        content = content[inner]
    tensors = {}
    if isinstance(content, Mapping):
        tensors = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if not tensors:
        raise CheckpointError(f"{path}: holds no state dict (named tensors). Pass the checkpoint file of a trained model.")
    while prefix := next((p for p in ("module.", "model.") if all(key.startswith(p) for key in tensors)), None):
        tensors = {key[len(prefix) :]: value for key, value in tensors.items()}
    normalisation = {key[len(_PREPROCESSOR) :]: tensors.pop(key) for key in list(tensors) if key.startswith(_PREPROCESSOR)}
    averages = {key: tensors.pop(key) for key in list(tensors) if key.startswith("ema_")}
    if averages:
        has_ema = True
        dropped.append(
            "the weights of the last step (the averages were asked for)" if ema else "averaged weights, ema_* (--ema takes them)"
        )
    if ema:
        if not has_ema:
            raise CheckpointError(f"{path}: has no averaged (EMA) weights. Take its weights as they are.")
        tensors = {key: averages.pop(f"ema_{key.replace('.', '_')}", value) for key, value in tensors.items()}
        if averages:
            raise CheckpointError(f"{path}: averaged weights of no tensor: {name_list(averages)}. Take the weights as they are.")
    native = to_native(tensors)
    if len(native) != len(tensors):
        raise CheckpointError(f"{path}: the same tensor stands under a published and a native name. Save the state dict anew.")
    native = {key: value.float() if value.is_floating_point() else value for key, value in native.items()}
    return Checkpoint(path, native, meta, description, normalisation, tuple(dropped))


def name_list(keys: Iterable[str], limit: int = 6) -> str:
    """Names with commas between them, at most `limit`, and how many more there are."""
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
        faults.append(f"missing: {name_list(missing)}")
    if unexpected := [key for key in state_dict if key not in expected]:
        faults.append(f"unexpected: {name_list(unexpected)}")
    wrong = [k for k in expected if k in state_dict and state_dict[k].shape != expected[k].shape]
    if wrong:
        shapes = (f"{k} is {tuple(state_dict[k].shape)} instead of {tuple(expected[k].shape)}" for k in wrong)
        faults.append(f"wrong shape: {name_list(shapes)}")
    kind = [k for k in expected if k in state_dict and state_dict[k].is_floating_point() != expected[k].is_floating_point()]
    if kind:
        faults.append(f"wrong dtype: {name_list(f'{k} is {state_dict[k].dtype}' for k in kind)}")
    if faults:
        config = model.config
        what = f"UPerNet with {config.backbone_name} and {config.num_classes} classes"
        raise CheckpointError(f"{owner}: does not fit {what}. {'; '.join(faults)}. Check that the file belongs to this model.")


def check_finite(state_dict: Mapping[str, Tensor], owner: str) -> None:
    """Refuse NaN and infinity.

    Raises:
        CheckpointError: names the tensors.
    """
    if bad := [key for key, value in state_dict.items() if value.is_floating_point() and not torch.isfinite(value).all()]:
        raise CheckpointError(f"{owner}: NaN or infinite weights in {name_list(bad)}. The file is damaged, or its training diverged.")


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
