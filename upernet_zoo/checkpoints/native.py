"""Native checkpoints: safetensors files with the model's description in their header."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..description import Description
from ..errors import CheckpointError, ConfigError
from ..files import Content
from ..tables import name_list
from . import safe_load

__all__ = ["FORM_KEY", "HEADER_KEY", "check_finite", "read_safetensors", "write_safetensors"]

HEADER_KEY = "upernet_zoo"  # of the description in a safetensors file's header
FORM_KEY = "form"  # in the origin of a fused model (`optimized`), whose tensors are not those of a UPerNet
_ALIGNMENT = 64  # bytes; of torch's own allocations on the CPU
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
}  # safetensors' names
_INFINITY = {torch.float64: 0x7FF0 << 48, torch.float32: 0x7F80 << 16, torch.float16: 0x7C00, torch.bfloat16: 0x7F80}  # its bits
_WHOLE = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # numbers of so many bytes


def check_finite(state_dict: Mapping[str, Tensor], owner: str) -> None:
    """Refuse NaN and infinity, and types that no model has.

    Raises:
        CheckpointError: names the tensors.
    """
    if other := [f"{key} ({str(value.dtype).removeprefix('torch.')})" for key, value in state_dict.items() if value.dtype not in _DTYPES]:
        raise CheckpointError(f"{owner}: numbers of types that no UPerNet has: {name_list(other)}. Save the model again as float32.")
    if bad := [key for key, value in state_dict.items() if value.is_floating_point() and not _is_finite(value)]:
        raise CheckpointError(f"{owner}: NaN or infinite weights in {name_list(bad)}. The file is damaged, or its training diverged.")


def _is_finite(tensor: Tensor) -> bool:
    """Whether all values are: as whole numbers, the bits of infinity and NaN are the largest, of either sign.

    NumPy looks, in one thread: at each of some hundred tensors, torch's threads would wait for each other (1 s where a machine is busy).
    """
    if not tensor.numel():
        return True
    width, infinity = tensor.element_size(), _INFINITY[tensor.dtype]
    bits = tensor.detach().view(_WHOLE[width]).numpy()
    return int(bits.max()) < infinity and int(bits.view(f"u{width}").max()) < infinity + (1 << (8 * width - 1))


def write_safetensors(path: Path, description: Description, state_dict: Mapping[str, Tensor]) -> None:
    """Write tensors and, in the header, their description. Not atomic: see `files.write_atomically`.

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
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for key in order:
            file.write(tensors[key].reshape(-1).view(torch.uint8).numpy().data)


def read_safetensors(source: Path | Content) -> tuple[dict[str, Tensor], Description | None]:
    """Tensors of a native safetensors file, and the description in its header if there is one. A path is mapped and not copied.

    Raises:
        CheckpointError: not a safetensors file.
        ConfigError: a description that cannot be used.
    """
    tensors, metadata = safe_load.read_safetensors(source)
    path = source.path if isinstance(source, Content) else source
    if HEADER_KEY not in metadata:
        return tensors, None
    try:
        data = json.loads(metadata[HEADER_KEY])
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: the description in the header is not JSON: {error}.") from None
    return tensors, Description.from_dict(data, str(path))
