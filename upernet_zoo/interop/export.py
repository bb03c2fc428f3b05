"""A model as one file for another runtime: ONNX, or a program of torch.export.

Batch, height and width stay free, but for a backbone that takes one size alone, and where a size is asked for. Sides begin where every map
has two rows, as torch would take one row for a constant: at 33 pixels for a ResNet or a Swin Transformer, at 64 for a ConvNeXt. The file
is compared with the model before it appears under its name.

A graph has one of three forms:

- "fused": the algebra of the fused model, a quarter of the multiplications of the plain one, with Winograd's convolutions; all of it in
  ordinary operators. For CPUs.
- "direct": the same algebra with the runtime's own 3x3 convolutions, for GPUs, whose tensor cores have no use for Winograd's.
- "plain": the layers as they are.
"""

from __future__ import annotations

import functools
import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor

from .. import files
from ..description import Description
from ..errors import ArgumentError, IntegrityError, MissingPackageError, shown
from ..models.upernet import UPerNet
from ..provenance import fingerprint
from ..version import install_line
from ..wording import option
from ..written import PROGRAM_FILE, require_replaceable
from . import formats
from .portable.graphs import MAX_SIDE, Labels, Logits, StrideLogits, program, smallest_side
from .portable.lowering import lower
from .portable.network import PortableUPerNet, default_form

if TYPE_CHECKING:
    import onnx

_P = ParamSpec("_P")
_T = TypeVar("_T")

__all__ = [
    "CHECKED_SHAPES",
    "HALF_TOLERANCE",
    "TOLERANCE",
    "checked_shapes",
    "export",
    "fitted",
    "require_options",
    "to_onnx",
    "to_torch",
    "write_network",
]

# (batch, height, width) at which a written file is compared with the model, and by how much of the largest logit it may differ
CHECKED_SHAPES = ((1, 64, 96), (3, 97, 131), (2, 160, 128))
TOLERANCE = 1e-4
HALF_TOLERANCE = 1e-2  # of float16: by how much the float32 logit of its label may fall short of the largest, likewise
_LARGEST = (1 << 31) - (16 << 20)  # bytes of weights in an ONNX file: protobuf's limit, and room for the graph
_BATCHED_PIXELS = 1 << 20  # of the largest pictures that a file of one size is compared at three at a time


def export(
    model: UPerNet,
    path: str | os.PathLike[str],
    *,
    labels: bool = False,
    form: str | None = None,
    size: tuple[int, int] | None = None,
    half: bool = False,
    check: Sequence[str] = (),
    overwrite: bool = False,
) -> Path:
    """Write a model in the format of the name: ONNX (.onnx) or a program of torch.export (.pt2).

    Args, returns and raises: as `to_onnx`, where `half` and `check` are for ONNX alone; ArgumentError also for another ending.

    Examples:
        >>> import upernet_zoo as uz
        >>> from upernet_zoo.interop.export import export
        >>> export(uz.create_model("demo"), "model.pt2", size=(128, 256)).name
        'model.pt2'
    """
    if formats.format_of(Path(path)) == "onnx":
        return to_onnx(model, path, labels=labels, form=form, size=size, half=half, check=check, overwrite=overwrite)
    require_options(path, form=form, size=size, half=half, check=check, overwrite=overwrite)
    return to_torch(model, path, labels=labels, form=form, size=size, overwrite=overwrite)


def to_onnx(
    model: UPerNet,
    path: str | os.PathLike[str],
    *,
    labels: bool = False,
    form: str | None = None,
    size: tuple[int, int] | None = None,
    half: bool = False,
    check: Sequence[str] = (),
    overwrite: bool = False,
) -> Path:
    """Write an ONNX file that runs the model; it takes about a minute. Needs the extra `onnx`.

    Its metadata (`metadata_props`) has classes, palette, architecture and recipe as JSON, the origin of the weights, their digest, the
    form, the opset, and what it was compared with the model in and at.

    Args:
        model: in float32, on the CPU. It is exported as in eval mode, and comes back in the mode that it was in.
        path: of the file, such as "model.onnx".
        labels: pictures (N, H, W, C) uint8 in, labels (N, H, W) out, in place of normalized pictures in and logits out. Of a model that
            runs in windows it is one window, of the recipe's crop, of the resized picture.
        form: "fused", "direct" or "plain", see the module; None takes the fastest on a CPU: "fused", or "plain" of a head that is narrower
            than 256 channels.
        size: (height, width) of the only pictures that it takes; None leaves both free.
        half: weights and products in float16, which GPUs are made for; pictures and logits stay float32, and so do averages and
            the last resize. The form is "direct". The file's labels are compared with those of float32.
        check: "openvino": also compare it with the model there, which needs the extra `openvino`. ONNX Runtime is asked in any case.
        overwrite: replace a file that is there and was not exported by this library.

    Returns:
        The path.

    Raises:
        ArgumentError: arguments that do not fit together or the model, a model that cannot be exported so, weights of more than 2 GB, a
            folder in place of a file, or onnx, onnxscript or onnxruntime is not installed.
        IntegrityError: a runtime computed something else from what was written; no file was left.
        ExistingFileError: a file of that name is there, and was not exported by this library.
        WriteError: the file cannot be written.

    Examples:
        >>> import onnxruntime
        >>> import upernet_zoo as uz
        >>> from upernet_zoo.interop.export import to_onnx
        >>> session = onnxruntime.InferenceSession(to_onnx(uz.create_model("demo"), "model.onnx"))
        >>> session.get_inputs()[0].shape
        ['batch', 3, 'height', 'width']
    """
    path = require_options(path, format="onnx", form=form, size=size, half=half, check=check, overwrite=overwrite)
    _require_model(model)
    form, size = fitted(model, path, labels=labels, form=form, size=size, half=half)
    _write_onnx(model, path, _kind(labels), form, size, half, _runtimes(check))
    return path


def write_network(model: UPerNet, path: Path, details: Mapping[str, str]) -> files.Hashed:
    """Write the ONNX file that `Segmenter` runs: logits at the first feature's stride, which are resized outside. A file is replaced.

    Args:
        model: as for `to_onnx`.
        path: of the file.
        details: to be put into its metadata.

    Returns:
        What was written.

    Raises:
        UPerNetZooError: as `to_onnx`.
    """
    runtimes = _runtimes(())
    _require_model(model)
    form, size = fitted(model, path)
    return _write_onnx(model, path, StrideLogits, form, size, False, runtimes, details)


def _runtimes(check: Sequence[str]) -> dict[str, Callable[[Path], Callable[[Tensor], Tensor]]]:
    """Name of each runtime that an ONNX file is compared with the model in -> what starts it on a file.

    Raises:
        ArgumentError: an unknown one, or a package is not installed.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401  the check needs it
        import onnxscript  # noqa: F401  torch.onnx needs it
    except ImportError as error:
        raise MissingPackageError(f"Export to ONNX needs the package {error.name}: {install_line('onnx')}.") from None
    return {"onnxruntime": _onnxruntime} | {name: _runtime(name) for name in check}


def _keeps_modes(write: Callable[Concatenate[UPerNet, _P], _T]) -> Callable[Concatenate[UPerNet, _P], _T]:
    """Have a function that sets a model to eval mode put each module's mode back: a part may be in another than the whole."""

    @functools.wraps(write)
    def writing(model: UPerNet, *args: _P.args, **keywords: _P.kwargs) -> _T:
        modes = {module: module.training for module in model.modules()}
        try:
            return write(model, *args, **keywords)
        finally:
            for module, mode in modes.items():
                module.training = mode

    return writing


@_keeps_modes
def _write_onnx(
    model: UPerNet,
    path: Path,
    kind: type[Logits | Labels],
    form: str,
    size: tuple[int, int] | None,
    half: bool,
    runtimes: Mapping[str, Callable[[Path], Callable[[Tensor], Tensor]]],
    more: Mapping[str, str] | None = None,
) -> files.Hashed:
    import onnx

    network = model if form == "plain" else PortableUPerNet(model, form, opaque=True)
    graph = kind(network.halved() if half and isinstance(network, PortableUPerNet) else network).eval()
    weights = sum(tensor.numel() * tensor.element_size() for tensor in graph.state_dict().values())
    if weights > _LARGEST:
        smaller = option("form", "direct") if form == "fused" else option("half", True)
        raise ArgumentError(
            f"{path}: the weights take {files.size_text(weights)} in the form '{form}', and an ONNX file holds "
            f"{files.size_text(_LARGEST)} at most. Use {smaller}, or write .pt2."
        )
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of torch's exporter about itself
        exported = torch.onnx.export(
            program(graph, size), input_names=[graph.input_name], output_names=[graph.output_name], dynamo=True, verbose=False
        )
    assert exported is not None  # as torch says of dynamo=True
    proto = exported.model_proto
    lower(proto)
    for value, axes in ((proto.graph.input[0], ("batch", "height", "width")), (proto.graph.output[0], graph.output_axes)):
        free = [dimension for dimension in value.type.tensor_type.shape.dim if not dimension.HasField("dim_value")]
        for dimension, name in zip(free, axes):
            dimension.dim_param = name
    del proto.graph.value_info[:]  # shapes between, under torch's names of these three
    details = {"form": form, "opset": _opset(proto), "checked": _checked(size, list(runtimes), half)}
    details["dtype"] = "float16" if half else "float32"
    onnx.helper.set_model_props(proto, {**_metadata(model), **details, **(more or {})})
    proto.producer_name, proto.graph.name = "upernet_zoo", "UPerNet"
    reference = kind(model).eval()

    def write(temporary: Path) -> None:
        onnx.save(proto, str(temporary))
        for name, start in runtimes.items():
            _check(reference, size, start(temporary), path, name, half)

    return files.write_hashed(path, write)


def to_torch(
    model: UPerNet,
    path: str | os.PathLike[str],
    *,
    labels: bool = False,
    form: str | None = None,
    size: tuple[int, int] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a program of torch.export: `torch.export.load(path).module()` runs it without this library.

    The same as ONNX's metadata is in its extra file `upernet_zoo.json`. Arguments are as for `to_onnx`, and the path is such as
    "model.pt2". Without a size the form is "plain": torch.export cannot prove the other two for sizes that are free, and operators of
    this library's own would tie the file to it.

    Returns:
        The path.

    Raises:
        ArgumentError: arguments that do not fit together or the model, a model that cannot be exported so, or a folder in place of a file.
        IntegrityError: what was written computed something else; no file was left.
        ExistingFileError: a file of that name is there, and was not exported by this library.
        WriteError: the file cannot be written.

    Examples:
        >>> import torch
        >>> import upernet_zoo as uz
        >>> from upernet_zoo.interop.export import to_torch
        >>> program = torch.export.load(to_torch(uz.create_model("demo"), "model.pt2", size=(128, 256))).module()
        >>> program(torch.zeros(1, 3, 128, 256)).shape
        torch.Size([1, 19, 128, 256])
    """
    path = require_options(path, format="torch", form=form, size=size, overwrite=overwrite)
    _require_model(model)
    form, size = fitted(model, path, labels=labels, form=form, size=size)
    _write_torch(model, path, labels, form, size)
    return path


@_keeps_modes
def _write_torch(model: UPerNet, path: Path, labels: bool, form: str, size: tuple[int, int] | None) -> None:
    graph = _kind(labels)(model if form == "plain" else PortableUPerNet(model, form, opaque=False)).eval()
    traced, reference = program(graph, size), _kind(labels)(model).eval()
    details = {"form": form, "checked": _checked(size, ["torch"])}

    def write(temporary: Path) -> None:
        with files.writing(temporary) as file:
            torch.export.save(traced, file, extra_files={PROGRAM_FILE: json.dumps(_metadata(model) | details)})
        with temporary.open("rb") as file:
            _check(reference, size, torch.export.load(file).module(), path, "torch")

    files.write_atomically(path, write)


def require_options(
    path: str | os.PathLike[str],
    *,
    format: str | None = None,
    form: str | None = None,
    size: tuple[int, int] | None = None,
    half: bool = False,
    check: Sequence[str] = (),
    overwrite: bool = False,
) -> Path:
    """Refuse what can be refused before there is a model. Arguments are as for `to_onnx`.

    Args:
        path: of the file.
        format: "onnx" or "torch", what the path's ending must say.

    Returns:
        The path.

    Raises:
        ArgumentError: arguments that do not fit together, a folder in place of a file, or a package is not installed.
        ExistingFileError: a file of that name is there, and was not exported by this library.
    """
    path = files.expanded(path)
    format = formats.format_of(path, format)
    require_replaceable(path, overwrite)
    if form is not None and form not in formats.FORMS:
        raise ArgumentError(f"{option('form', form)}: the forms are {', '.join(formats.FORMS)}.")
    if size is not None:
        _sides(size, 1)
    if not isinstance(check, (list, tuple)) or not all(isinstance(name, str) for name in check):
        raise ArgumentError(f"{option('check')} takes a list of runtimes, such as {list(_RUNTIMES)}, found {shown(check)}.")
    if format == "torch" and (half or check):
        unknown = option("half", True) if half else option("check", check[0])
        raise ArgumentError(f"{path}: {unknown} is for ONNX files, and this is a program of torch.export. Leave it out, or write .onnx.")
    if half and form not in (None, "direct"):
        raise ArgumentError(f"{option('half', True)}: float16 goes with {option('form', 'direct')}, found {option('form', form)}.")
    if format == "onnx":
        _runtimes(check)
    return path


def _sides(size: Sequence[int], smallest: int) -> tuple[int, int]:
    is_pair = isinstance(size, (list, tuple)) and len(size) == 2
    if not is_pair or not all(type(side) is int and smallest <= side <= MAX_SIDE for side in size):
        raise ArgumentError(f"{option('size')} is (height, width), from {smallest} to {MAX_SIDE} pixels each, found {shown(size)}.")
    return size[0], size[1]


def _require_model(model: UPerNet) -> None:
    if not isinstance(model, UPerNet):
        raise ArgumentError(f"Export takes a UPerNet, found {type(model).__name__}. create_model and load_checkpoint make one.")
    weight = model.decode_head.classifier.weight
    if weight.dtype != torch.float32 or weight.device.type != "cpu":
        raise ArgumentError(f"Export takes a model in float32 on the CPU, found {weight.dtype} on {weight.device}: model.float().cpu().")


def fitted(
    model: UPerNet,
    path: Path,
    *,
    labels: bool = False,
    form: str | None = None,
    size: tuple[int, int] | None = None,
    half: bool = False,
) -> tuple[str, tuple[int, int] | None]:
    """The form of a file, and the (height, width) of the only pictures that it takes, or None. Weights are not looked at.

    Args:
        model: on any device.
        path, labels, form, size, half: as for `to_onnx`, and as `require_options` lets them pass.

    Raises:
        ArgumentError: a model that cannot be exported so.
    """
    size = _only_size(model, labels, size)
    if size is None and formats.format_of(path) == "torch":
        form = form or "plain"
        if form != "plain":
            raise ArgumentError(
                f"{path}: {option('form', form)} in a program of torch.export takes pictures of one size alone: add "
                f"{option('size')}, or write ONNX, whose sides stay free."
            )
    if form is None:
        form = "direct" if half else default_form(model)
    return form, size


def _only_size(model: UPerNet, labels: bool, size: tuple[int, int] | None) -> tuple[int, int] | None:
    """The (height, width) of the only pictures that a file takes, or None: asked for, or the only ones that the model takes.

    Raises:
        ArgumentError: a model that cannot be exported so, or another size.
    """
    backbone, recipe = model.config.backbone, model.recipe
    only, whose = backbone.input_size, f"its backbone, {backbone.title},"
    if labels:
        recipe.require_supported()
        if not recipe.fits and recipe.mode == "whole":
            raise ArgumentError(
                f"Export with labels makes pictures fit a scale, and with this model's recipe they are {recipe.resizing}. Export the "
                "logits, and prepare the pictures outside (images.preprocess.prepare)."
            )
        if only is not None and only != recipe.crop:
            raise ArgumentError(
                f"Export with labels takes pictures of any size, and this model's backbone, {backbone.title}, {only[0]}x{only[1]} "
                "alone. Export the logits, and bring pictures to that size."
            )
        if recipe.mode == "slide":
            only, whose = recipe.crop, "with labels a model that runs in windows"
    if only is not None and size is not None and tuple(size) != only:
        raise ArgumentError(f"{option('size')}: {whose} takes {only[0]}x{only[1]} alone, found {size[0]}x{size[1]}. Leave the size out.")
    if only is not None:
        return _sides(only, 1)
    return None if size is None else _sides(size, smallest_side(model))


def _kind(labels: bool) -> type[Logits | Labels]:
    return Labels if labels else Logits


def _opset(proto: onnx.ModelProto) -> str:
    return str(next(opset.version for opset in proto.opset_import if opset.domain == ""))


def _metadata(model: UPerNet) -> dict[str, str]:
    """Text for each key, JSON where it is more than a word."""
    description = Description.of(model).to_dict()
    values = {**description, "classes": description["labels"]["classes"], "palette": description["labels"]["palette"]}
    return {"library": "upernet_zoo", "tensors_sha256": fingerprint(model.state_dict()), **{k: json.dumps(v) for k, v in values.items()}}


def _checked(size: tuple[int, int] | None, runtimes: Sequence[str], half: bool = False) -> str:
    """JSON: the runtimes with their versions, the shapes, and how much of the largest logit the file differs from the model by at most."""
    versions = {name: metadata.version(name) for name in runtimes}
    tolerance = {"label_tolerance": HALF_TOLERANCE} if half else {"tolerance": TOLERANCE}
    return json.dumps({"runtimes": versions, "shapes": checked_shapes(size), **tolerance})


def checked_shapes(size: tuple[int, int] | None) -> tuple[tuple[int, int, int], ...]:
    """(batch, height, width) at which a file that takes one size, or any, is compared with the model."""
    if size is None:
        return CHECKED_SHAPES
    return tuple((batch, *size) for batch in ((1, 3) if size[0] * size[1] <= _BATCHED_PIXELS else (1,)))


@torch.no_grad()
def _check(
    reference: Logits | Labels,
    size: tuple[int, int] | None,
    run: Callable[[Tensor], Tensor],
    path: str | os.PathLike,
    runtime: str,
    half: bool = False,
) -> None:
    tolerance = HALF_TOLERANCE if half else TOLERANCE
    for shape in checked_shapes(size):
        pictures = reference.example(*shape)
        error = (reference.label_error if half else reference.error)(pictures, run(pictures))
        if not error <= tolerance:  # NaN too
            raise IntegrityError(
                f"{path}: not written: at {shape[1]}x{shape[2]}, batch {shape[0]}, the exported graph differs from the model by "
                f"{error:.1e} of the largest logit in {runtime}, more than {tolerance:.0e}. Try other versions of torch and {runtime}, "
                "and report it."
            )


def _onnxruntime(path: Path) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])


def _openvino(path: Path) -> Callable[[Tensor], Tensor]:
    import openvino

    options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}  # its default rounds to bfloat16 where the CPU has it
    compiled: Any = openvino.Core().compile_model(path, "CPU", options)
    return lambda x: torch.from_numpy(compiled(x.numpy())[0])


_RUNTIMES = {"openvino": _openvino}


def _runtime(name: str) -> Callable[[Path], Callable[[Tensor], Tensor]]:
    """What starts a runtime on a file, refused before anything is computed."""
    if name not in _RUNTIMES:
        raise ArgumentError(f"{option('check', name)}: a file is also checked in {', '.join(_RUNTIMES)}, and in ONNX Runtime in any case.")
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        raise MissingPackageError(f"{option('check', name)} needs the package {name}: {install_line(name)}.") from None
    return _RUNTIMES[name]
