"""A model's network in ONNX Runtime, for `Segmenter`: exported once, then loaded from the cache."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import index, memory
from .description import Description
from .errors import CheckpointError, ImageError, MissingPackageError, NotEnoughMemoryError, WriteError
from .interop import export
from .models.upernet import UPerNet
from .progress import counter
from .provenance import fingerprint
from .version import install_line
from .weights import cache
from .wording import option

__all__ = ["OnnxNetwork", "require_onnxruntime"]

_PACKAGE = Path(__file__).parent
_SOURCES = ("models", "interop/portable", "interop/export.py")  # what makes a graph, within the package


class OnnxNetwork:
    """`model.logits` of a model in float32 on the CPU, in ONNX Runtime with as many threads as torch has at the moment.

    The exported file is kept in the cache under the digest of tensors, architecture and the code of this package that makes graphs. Where
    the cache cannot be written, or the model has modules of somebody else's (`register_backbone`), whose code may change, it is exported
    again each time, which takes about a minute of a model of the zoo and is shown on stderr.

    Args:
        model: with the weights that it has now; later changes are not seen.
        cache_dir: as for `create_model`.

    Raises:
        ArgumentError, IntegrityError: as `interop.export.to_onnx`.
        MissingPackageError: onnxruntime is not installed; nor, where the file is not there yet, onnx or onnxscript.
        CheckpointError: ONNX Runtime cannot load what was exported.
    """

    def __init__(self, model: UPerNet, cache_dir: str | os.PathLike[str] | None = None) -> None:
        self._backbone = model.config.backbone
        self.session = _session(model, cache_dir)
        self._input = self.session.get_inputs()[0].name

    def logits(self, x: Tensor) -> Tensor:
        """Normalized pictures (N, 3, H, W) float32 -> logits (N, num_classes, h, w) float32 at the first feature's stride.

        Raises:
            ImageError: ONNX Runtime could not run it, as where a side is too short for the backbone.
            NotEnoughMemoryError: the memory of this process ran out.
        """
        height, width = x.shape[2:]
        try:
            return torch.from_numpy(self.session.run(None, {self._input: x.contiguous().numpy()})[0])
        except Exception as error:  # ONNX Runtime's own derive from nothing else
            if memory.ran_out_in_onnxruntime(error):
                raise NotEnoughMemoryError(
                    f"The memory of this process ran out in ONNX Runtime for {len(x)} x {width}x{height} pixels. Give it more, or smaller "
                    "pictures, windows or batches."
                ) from None
            small = min(height, width) < 2 * self._backbone.reductions[-1]  # convolutions whose kernel is larger than the map
            why = f", which may be too few or too thin for {self._backbone.title}" if small else ""
            others = "Take a larger or less thin picture, larger scales, or" if small else "Take"
            raise ImageError(
                f"ONNX Runtime could not run {len(x)} x {width}x{height} pixels{why}. {others} {option('backend', 'torch')}. "
                f"It says: {error}"
            ) from error


def require_onnxruntime() -> Any:
    """The package onnxruntime.

    Raises:
        MissingPackageError: it is not installed.
    """
    try:
        return importlib.import_module("onnxruntime")
    except ImportError:
        raise MissingPackageError(f"{option('backend', 'onnxruntime')} needs the package onnxruntime: {install_line('onnx')}.") from None


def _session(model: UPerNet, cache_dir: str | os.PathLike[str] | None) -> Any:
    """An `onnxruntime.InferenceSession` of the model."""
    if _is_of_known_code(model):
        with contextlib.suppress(WriteError):
            return _kept(model, cache_dir)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        _export(model, path, "each time", {})
        return _loaded(path)


def _is_of_known_code(model: UPerNet) -> bool:
    """Whether all modules are of this package or of torch, so that `_sources` has what they compute."""
    return all(type(module).__module__.partition(".")[0] in (__package__, "torch") for module in model.modules())


def _kept(model: UPerNet, cache_dir: str | os.PathLike[str] | None) -> Any:
    """The session of the file in the cache, which is written where it is not there."""
    tensors = fingerprint(model.state_dict())
    parts = [_sources(), tensors, Description.of(model).to_dict()["architecture"]]
    key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    entry = index.default().get(model.origin.get("model", ""))
    target = cache.cache_root(cache_dir) / "converted" / f"{cache.NAMELESS if entry is None else entry.name}-{key[:16]}.onnx"
    if found := _cached(target, key):
        return found
    cache.make_folder(target.parent)
    with cache.lock(target, cache_dir=cache_dir):  # many processes: one exports, the others find it done
        if found := _cached(target, key):
            return found
        cache.write_receipt(target, _export(model, target, "once", {"key": key}), f"exported from tensors {tensors}")
        return _loaded(target)


def _sources() -> dict[str, str]:
    """Path within the package -> SHA-256 in hex, of each module that has a part in what a graph computes."""
    places = [_PACKAGE / name for name in _SOURCES]
    modules = [module for place in places for module in ([place] if place.is_file() else place.rglob("*.py"))]
    return {module.relative_to(_PACKAGE).as_posix(): hashlib.sha256(module.read_bytes()).hexdigest() for module in modules}


def _export(model: UPerNet, path: Path, often: str, details: dict[str, str]) -> Any:
    with counter(show=True, total=1, desc=f"Exporting {path.name}, about a minute, {often}", bar_format="{desc} [{elapsed}]"):
        return export.write_network(model, path, details)


def _cached(path: Path, key: str) -> Any:
    """The session of the file in the cache; None if there is none, it is another model's, or it was changed."""
    try:
        session = cache.read_trusted(path, _loaded)
    except CheckpointError:  # it was made here, and can be made again
        return None
    return session if session is not None and session.get_modelmeta().custom_metadata_map.get("key") == key else None


def _loaded(path: Path) -> Any:
    onnxruntime = require_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # what fails is raised, and need not be on stderr before
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own derive from nothing else
        raise CheckpointError(f"{path}: ONNX Runtime cannot load it: {error}. Update onnxruntime.") from None
