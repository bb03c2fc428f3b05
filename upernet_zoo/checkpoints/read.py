"""From what a checkpoint file holds to tensors under native names: find the state dict, take off the wrappers, set aside, rename.

Published names are mmsegmentation's; native names are those of `upernet_zoo.models`. `names` knows both.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..description import Description
from ..errors import CheckpointError
from ..files import Content
from ..tables import name_list
from ..wording import option, worded
from . import safe_load, wrappers
from .names import OWN, library_of, to_native
from .native import FORM_KEY, read_safetensors

__all__ = ["Checkpoint", "read"]

_PREPROCESSOR = "data_preprocessor."
_COUNTER = "num_batches_tracked"
_MAX_VALUES = 1 << 20  # of an array in `meta`
_FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint file's tensors under native names, and what the file says about them.

    Attributes:
        path: of the file.
        state_dict: floating-point tensors in float32, whole numbers in int64.
        meta: the file's `meta`, empty if it has none.
        description: of a file that this library wrote; such a file says all itself.
        normalization: `mean` and `std` that a `data_preprocessor` left among the tensors.
        found: what was done to find the tensors, in words.
        dropped: what else is in the file, in words.
        lost: of `dropped`, what may be weights of a module that computes something.
        library: whose names the file has, such as "mmsegmentation"; see `names.library_of`.
    """

    path: Path
    state_dict: dict[str, Tensor]
    meta: Mapping[str, Any] = field(default_factory=dict)
    description: Description | None = None
    normalization: Mapping[str, Tensor] = field(default_factory=dict)
    found: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    library: str = OWN


def read(source: str | os.PathLike | Content, *, ema: bool = False) -> Checkpoint:
    """Read a `.pth` (either format of `torch.save`) or `.safetensors` file safely, and unwrap it.

    A training checkpoint may hold averaged (EMA) weights beside those of the last step, under a key or a prefix that says so. mmcv
    1.x keeps the averages as buffers `ema_<name with underscores>` of the model. mmengine exchanges the two when it saves, so that
    `state_dict` has the averages, and `ema_state_dict` the weights of the last step.

    Args:
        source: the path of the file, or the bytes of it that were verified (`safe_load.read_content`).
        ema: take the averaged weights.

    Raises:
        MissingFileError: no such file.
        UnsafeCheckpointError: something executable is in it, or it asks for more memory than its size allows.
        CheckpointError: it cannot be read, holds no state dict or several models, or has no averaged weights when they were asked for.
    """
    source = source if isinstance(source, Content) else Path(source)
    path = source.path if isinstance(source, Content) else source
    content, description = _content(source)
    model = wrappers.find(content, ema=ema, owner=str(path))
    tensors = model.tensors
    normalization = {key.removeprefix(_PREPROCESSOR): tensors.pop(key) for key in list(tensors) if key.startswith(_PREPROCESSOR)}
    tensors, dropped = _averages(tensors, ema, model.is_average, str(path))
    try:
        native = to_native(tensors)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    native = {key: _plain(key, value, str(path)) for key, value in native.items()}
    return Checkpoint(
        path,
        native,
        meta=_plain_values(model.meta),
        description=description,
        normalization=normalization,
        found=(*model.where, *_add_batch_counters(native)),
        dropped=(*model.dropped, *dropped),
        lost=model.lost,
        library=library_of(tensors),
    )


def _content(source: Path | Content) -> tuple[Mapping[str, Any], Description | None]:
    """All that the file holds, and the description of a file that this library wrote."""
    path = source.path if isinstance(source, Content) else source
    if path.suffix != ".safetensors":
        return safe_load.read(source), None
    content, description = read_safetensors(source)
    if description is not None and FORM_KEY in description.origin:
        instead = worded("Read it with upernet_zoo.optimized.read", "Name the model that it was made from")
        raise CheckpointError(f"{path}: optimized for inference, so no longer a checkpoint. {instead}.")
    return content, description


def _averages(tensors: dict[str, Tensor], ema: bool, is_average: bool, owner: str) -> tuple[dict[str, Tensor], list[str]]:
    """The weights that were asked for where mmcv 1.x keeps the averages as buffers beside the others, and what these are."""
    averages = {key: value for key, value in tensors.items() if key.startswith("ema_")}
    tensors = {key: value for key, value in tensors.items() if key not in averages}
    if not ema:
        return tensors, [f"averaged weights, ema_* ({option('ema', True)} takes them)"] if averages else []
    if not averages:
        if not is_average:
            raise CheckpointError(f"{owner}: has no averaged (EMA) weights. Take its weights as they are.")
        return tensors, []
    tensors = {key: averages.pop(f"ema_{key.replace('.', '_')}", value) for key, value in tensors.items()}
    if averages:
        raise CheckpointError(f"{owner}: averaged weights of no tensor: {name_list(averages)}. Take the weights as they are.")
    return tensors, ["the weights of the last step (the averages were asked for)"]


def _plain_values(value: Any) -> Any:
    """Python's own numbers and lists in place of NumPy's and torch's, inside dicts and lists; None for those that are no palette's size."""
    if isinstance(value, Mapping):
        return {key: _plain_values(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(_plain_values, value)) if type(value) in (list, tuple) else tuple(value)
    if isinstance(value, (np.ndarray, np.generic, Tensor)):
        return value.tolist() if math.prod(value.shape) <= _MAX_VALUES else None
    return value


def _plain(key: str, value: Tensor, owner: str) -> Tensor:
    """A tensor as models have it: float32, or int64 for counters."""
    if value.dtype in _FLOATS:
        return value.detach().float()
    if value.is_floating_point() or value.is_complex():
        raise CheckpointError(f"{owner}: {key} is of {value.dtype}, which no weights of a UPerNet are. Save them as torch.float32.")
    return value.long()


def _add_batch_counters(tensors: dict[str, Tensor]) -> list[str]:
    """Put in zeros for the counters of batch norms that have none (torch before 0.4.1, and stripped files), as torch itself does."""
    norms = [key.removesuffix("running_var") for key in tensors if key.endswith(".running_var")]
    bare = [norm for norm in norms if f"{norm}{_COUNTER}" not in tensors]
    for norm in bare:
        tensors[f"{norm}{_COUNTER}"] = torch.zeros((), dtype=torch.int64, device="cpu")
    return [f"{_COUNTER}=0 for {len(bare)} batch norms without it: nothing is computed from it"] if bare else []
