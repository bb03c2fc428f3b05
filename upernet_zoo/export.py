"""A model as one file for another runtime: ONNX, or a program of torch.export.

Batch, height and width stay free (sides from 33 pixels: at 32 the last feature is 1x1, which torch would take for a constant). The
file is compared with the model before it appears under its name.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import sources
from .checkpoint import Description
from .errors import ArgumentError, IntegrityError
from .hub import fingerprint
from .models import UPerNet
from .models.heads import resize

MIN_SIDE = 33
MAX_SIDE = 1 << 14
MAX_BATCH = 1 << 10
METADATA_FILE = "upernet_zoo.json"  # in a program of torch.export
# (batch, height, width) at which a written file is compared with the model, and by how much of the largest logit it may differ
CHECKED_SHAPES = ((1, 64, 96), (3, 97, 131), (2, 160, 128))
TOLERANCE = 1e-4


class Logits(nn.Module):
    """What is exported without `labels`: normalised pictures (N, C, H, W) float32 -> logits (N, num_classes, H, W) float32."""

    input_name, output_name = "pictures", "logits"
    spatial = (2, 3)  # dimensions of height and width

    def __init__(self, model: UPerNet):
        super().__init__()
        self.model = model

    def forward(self, pictures: Tensor) -> Tensor:
        return self.model(pictures)

    def example(self, batch: int, height: int, width: int) -> Tensor:
        """Random input."""
        return torch.randn(batch, self.model.config.in_channels, height, width, generator=torch.Generator().manual_seed(0))

    def error(self, pictures: Tensor, found: Tensor) -> float:
        """Largest difference from what the model gives, as a part of the largest logit."""
        expected = self.model(pictures)
        return ((found - expected).abs().max() / expected.abs().max()).item()


class Labels(nn.Module):
    """What is exported with `labels`: pictures (N, H, W, C) uint8, RGB -> train ids (N, H, W) uint8, or int16 above 255 classes.

    `Segmenter` in one graph, for one view in whole mode: the same resize on 8-bit values, normalisation, network and two resizes of
    the logits.
    """

    input_name, output_name = "pictures", "labels"
    spatial = (1, 2)

    def __init__(self, model: UPerNet):
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(model.recipe.mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(model.recipe.std)[:, None, None], persistent=False)

    def logits(self, pictures: Tensor) -> Tensor:
        """(N, num_classes, H, W) float32, at the pictures' own size."""
        size = pictures.shape[1:3]
        resized = _resize_uint8(pictures, *_fit(*size, self.model.recipe.scale))
        x = (resized.permute(0, 3, 1, 2).float() - self.mean) / self.std
        return resize(self.model(x), size, self.model.config.align_corners)

    def forward(self, pictures: Tensor) -> Tensor:
        return self.logits(pictures).argmax(1).to(torch.uint8 if self.model.config.num_classes <= 255 else torch.int16)

    def example(self, batch: int, height: int, width: int) -> Tensor:
        """Random input, smooth as pictures are."""
        noise = torch.rand(batch, self.model.config.in_channels, 8, 8, generator=torch.Generator().manual_seed(0)) * 255
        return F.interpolate(noise, (height, width), mode="bicubic").clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()

    def error(self, pictures: Tensor, found: Tensor) -> float:
        """By how much the logit of a label falls short of the largest at its pixel, at most, as a part of the largest of all."""
        expected = self.logits(pictures)
        chosen = expected.gather(1, found[:, None].long())[:, 0]
        return ((expected.amax(1) - chosen).max() / expected.abs().max()).item()


def _fit(height: int, width: int, scale: tuple[int, int]) -> list[int]:
    """`preprocess.fit` for sizes that torch.export keeps free, in whole numbers: floor(side * factor + 1/2)."""
    long, short = scale
    longest, shortest = torch.sym_max(height, width), torch.sym_min(height, width)
    fitted = []
    for side in (height, width):
        size = torch.sym_min((2 * side * long + longest) // (2 * longest), (2 * side * short + shortest) // (2 * shortest))
        # through a tensor the size becomes a new symbol: the network's sizes follow from it, and not from the formula above
        size = torch.scalar_tensor(size, dtype=torch.int64).item()
        torch._check(size >= MIN_SIDE)
        torch._check(size <= long)
        fitted.append(size)
    return fitted


def _resize_uint8(pictures: Tensor, height: int, width: int) -> Tensor:
    """`preprocess.resize_uint8` of (N, H, W, C) uint8 to (N, height, width, C) int32, equal in every value."""
    x = pictures.int()
    first, second, weight, other = _taps(x.shape[2], width, zero_outside=True)
    x = (x[:, :, first] * weight[:, None] + x[:, :, second] * other[:, None]) >> 4
    first, second, weight, other = _taps(x.shape[1], height, zero_outside=False)
    return ((x[:, first] * weight[:, None, None] >> 16) + (x[:, second] * other[:, None, None] >> 16) + 2) >> 2


def _taps(source: int, target: int, zero_outside: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`preprocess._taps`: both positions, int64, and their weights times 2048, int32."""
    lengths = [torch.scalar_tensor(length, dtype=torch.float64) for length in (target, source)]  # ONNX would divide numbers in float32
    coordinate = ((torch.arange(target, dtype=torch.float64) + 0.5) * (1.0 / (lengths[0] / lengths[1])) - 0.5).float()
    floor = coordinate.floor()
    first, fraction = floor.long(), coordinate - floor
    if zero_outside:
        fraction = torch.where((first < 0) | (first >= source - 1), 0.0, fraction)
    weights = ((part * 2048).round().int() for part in (1 - fraction, fraction))
    return first.clamp(0, source - 1), (first + 1).clamp(0, source - 1), *weights


def to_onnx(model: UPerNet, path: str | os.PathLike, *, labels: bool = False) -> Path:
    """Write an ONNX file that runs the model; it takes about a minute. Needs the extra `onnx`.

    Its metadata (`metadata_props`) has classes, palette, architecture and recipe as JSON, the origin of the weights, and their digest.

    Args:
        model: in float32, on the CPU.
        path: of the file, such as "model.onnx".
        labels: pictures (N, H, W, C) uint8 in, labels (N, H, W) out, in place of normalised pictures in and logits out.

    Returns:
        The path.

    Raises:
        ArgumentError: a model that cannot be exported so, or onnx, onnxscript or onnxruntime is not installed.
        IntegrityError: ONNX Runtime computed something else from what was written; no file was left.
        CacheError: the file cannot be written.
    """
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  torch.onnx needs it
    except ImportError as error:
        raise ArgumentError(f"Export to ONNX needs the package {error.name}: pip install 'upernet-zoo[onnx]'.") from None
    graph = _graph(model, labels)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of torch's exporter about itself
        program = torch.onnx.export(
            _program(graph), input_names=[graph.input_name], output_names=[graph.output_name], dynamo=True, verbose=False
        )
    proto = program.model_proto
    for value in (proto.graph.input[0], proto.graph.output[0]):
        free = [dimension for dimension in value.type.tensor_type.shape.dim if not dimension.HasField("dim_value")]
        for dimension, name in zip(free, ("batch", "height", "width")):
            dimension.dim_param = name
    del proto.graph.value_info[:]  # shapes between, under torch's names of these three
    onnx.helper.set_model_props(proto, _metadata(model))
    proto.producer_name, proto.graph.name = "upernet_zoo", "UPerNet"

    def write(temporary: Path) -> None:
        onnx.save(proto, str(temporary))
        session = onnxruntime.InferenceSession(str(temporary), providers=["CPUExecutionProvider"])
        _check(graph, lambda x: torch.from_numpy(session.run(None, {graph.input_name: x.numpy()})[0]), path)

    return _write(Path(path), write)


def to_torch(model: UPerNet, path: str | os.PathLike, *, labels: bool = False) -> Path:
    """Write a program of torch.export: `torch.export.load(path).module()` runs it without this library.

    The same as ONNX's metadata is in its extra file `upernet_zoo.json`.

    Args:
        model, labels: as for `to_onnx`.
        path: of the file, such as "model.pt2".

    Returns:
        The path.

    Raises:
        ArgumentError: a model that cannot be exported so.
        IntegrityError: what was written computed something else; no file was left.
        CacheError: the file cannot be written.
    """
    graph = _graph(model, labels)
    program = _program(graph)

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            torch.export.save(program, file, extra_files={METADATA_FILE: json.dumps(_metadata(model))})
        with temporary.open("rb") as file:
            _check(graph, torch.export.load(file).module(), path)

    return _write(Path(path), write)


def _graph(model: UPerNet, labels: bool) -> Logits | Labels:
    if not isinstance(model, UPerNet):
        raise ArgumentError(f"Export takes a UPerNet, found {type(model).__name__}. create_model and load_checkpoint make one.")
    weight = model.decode_head.classifier.weight
    if weight.dtype != torch.float32 or weight.device.type != "cpu":
        raise ArgumentError(f"Export takes a model in float32 on the CPU, found {weight.dtype} on {weight.device}: model.float().cpu().")
    if labels and model.recipe.mode != "whole":
        raise ArgumentError(
            "Export with labels runs the whole picture at once, and this model's recipe has sliding windows, which no graph of free "
            "sizes has. Export the logits, and run the windows around them; or give the model a recipe whose mode is 'whole'."
        )
    return (Labels(model) if labels else Logits(model)).eval()


def _program(graph: Logits | Labels) -> torch.export.ExportedProgram:
    height, width = (torch.export.Dim(name, min=MIN_SIDE, max=MAX_SIDE) for name in ("height", "width"))
    shapes = {0: torch.export.Dim("batch", max=MAX_BATCH), **dict(zip(graph.spatial, (height, width)))}
    with torch.no_grad():
        return torch.export.export(graph, (graph.example(2, 64, 96),), dynamic_shapes=(shapes,))


def _metadata(model: UPerNet) -> dict[str, str]:
    """Text for each key, JSON where it is more than a word."""
    description = Description.of(model).to_dict()
    values = {**description, "classes": description["labels"]["classes"], "palette": description["labels"]["palette"]}
    return {"library": "upernet_zoo", "tensors_sha256": fingerprint(model.state_dict()), **{k: json.dumps(v) for k, v in values.items()}}


@torch.no_grad()
def _check(graph: Logits | Labels, run: Callable[[Tensor], Tensor], path: str | os.PathLike) -> None:
    for shape in CHECKED_SHAPES:
        pictures = graph.example(*shape)
        error = graph.error(pictures, run(pictures))
        if not error <= TOLERANCE:  # NaN too
            raise IntegrityError(
                f"{path}: not written: at {shape[1]}x{shape[2]}, batch {shape[0]}, the exported graph differs from the model by "
                f"{error:.1e} of the largest logit, more than {TOLERANCE:.0e}. Try other versions of torch and onnxruntime, and report it."
            )


def _write(path: Path, write: Callable[[Path], None]) -> Path:
    path = path.expanduser()
    sources.write_atomically(path, write)
    return path
