"""Picture in, label map out: preparation, the network whole or in windows, views, and the result in the picture's own size."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import numbers
import os
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from . import cpu, memory, optimized
from .config import Recipe
from .errors import ArgumentError, ConfigError, ImageError, NotEnoughMemoryError
from .factory import check_device, create_model
from .files import size_text
from .images import frames, preprocess, resample
from .models.fused.model import FusedUPerNet, optimize_for_inference
from .models.upernet import UPerNet
from .onnx_backend import OnnxNetwork, require_onnxruntime
from .progress import counter
from .reference import Reference
from .segmentation import Segmentation, SegmentedFrame
from .window_logits import Cut, WindowLogits, most_rows
from .wording import option, worded

__all__ = ["Segmenter", "network_bytes", "read_ahead"]


_BACKENDS = ("torch", "onnxruntime")
_In = TypeVar("_In")
_Out = TypeVar("_Out")


def read_ahead(load: Callable[[_In], _Out], items: Iterable[_In]) -> Generator[_Out, None, None]:
    """`load(item)` of each item, in order; the next one is loaded in a thread while one is worked on."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        waiting = None
        for item in items:
            following = pool.submit(load, item)
            if waiting is not None:
                yield waiting.result()
            waiting = following
        if waiting is not None:
            yield waiting.result()


class Segmenter:
    """Segments pictures as the published evaluation does.

    Args:
        model: a `UPerNet`, a fused model, or what `create_model` takes: a name, "demo", a file, a folder or a repository.
        checkpoint, sha256, mirrors, cache_dir, local_files_only: as for `create_model`.
        device: where to run; by default the model's own for a model object, and else CUDA if there is one, or the CPU.
        dtype: float32, float16 or bfloat16; by default that of the model.
        recipe: in place of the model's.
        mode, crop, stride: in place of the recipe's: "whole", or "slide" with windows of `crop` (height, width) every `stride` pixels.
        own_size: leave pictures at their own size, in place of the recipe's scale: for large ones, in slide mode.
        scales: ratios to the recipe's scale; more than one averages the softmax over all. The published multi-scale numbers
            use (0.5, 0.75, 1.0, 1.25, 1.5, 1.75).
        flip: also run every view mirrored left-right, and average.
        batch_size: windows and views of equal size that the network takes at once.
        amp: run the network in half precision (float16 on CUDA, bfloat16 elsewhere). A CPU without bfloat16 is several times slower by it,
            and a warning says so.
        backend: "torch", or "onnxruntime": the exported network in ONNX Runtime, on the CPU in float32; exported the first time, about
            a minute, and kept in the cache.
        optimize: run the fused model (`optimize_for_inference`) with the weights that the model has now; later changes of the model are
            not seen, so pass False while training it. By default on the CPU in float32, where it was measured to win from 128x128
            pixels up (and to lose a few ms below); that of a name of the index is kept in the cache.

    A process that was forked after a model ran in its parent may hang, as torch's threads are not forked with it: start processes with
    `multiprocessing.get_context("spawn")`, or make the segmenter in each of them.

    On CUDA the network runs in the channels-last layout. No part of this has been tried on a GPU.

    Raises:
        ArgumentError: a value that cannot be used; also what `create_model` raises.
        ConfigError: a recipe with steps that this library does not do (`Recipe.unsupported`).

    Examples:
        >>> import upernet_zoo as uz
        >>> segmenter = uz.Segmenter("demo")
        >>> "road" in segmenter("street.jpg").areas()
        True
        >>> [segmentation.labels.shape for segmentation in segmenter.map(["street.jpg"] * 2)]
        [(256, 512), (256, 512)]
    """

    def __init__(
        self,
        model: UPerNet | FusedUPerNet | str | os.PathLike[str],
        *,
        checkpoint: str | os.PathLike[str] | None = None,
        sha256: str | None = None,
        mirrors: Sequence[str | os.PathLike[str]] = (),
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        recipe: Recipe | None = None,
        mode: str | None = None,
        crop: tuple[int, int] | None = None,
        stride: tuple[int, int] | None = None,
        own_size: bool = False,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        batch_size: int = 1,
        amp: bool = False,
        optimize: bool | None = None,
        backend: str = "torch",
    ) -> None:
        check_device(device, dtype)
        ratios = _ratios(scales)
        _require_options(own_size, flip, batch_size, amp, optimize)
        _require_backend(backend, model, device, dtype, amp, optimize)
        if backend == "onnxruntime":
            optimize = False
            if isinstance(model, (str, os.PathLike)):
                device = "cpu"
        loading = dict(checkpoint=checkpoint, sha256=sha256, mirrors=mirrors, cache_dir=cache_dir, local_files_only=local_files_only)
        self.model = model = _ready(model, device, dtype, optimize, amp, loading)
        if model.config.in_channels != 3:
            raise ArgumentError(f"Segmenter: takes RGB pictures, and the model has {model.config.in_channels} input channels.")
        self.recipe = _override(model.recipe if recipe is None else recipe, mode, crop, stride, own_size)
        self.recipe.require_supported()
        only = model.config.backbone.input_size
        if only is not None and self.recipe.crop not in (None, only):
            raise ArgumentError(
                f"Segmenter: {model.config.backbone.title} takes windows of {_by(only)} (height x width) alone: "
                f"{worded(f'crop={only}', f'--crop {_by(only)}')}."
            )
        if len(self.recipe.mean) != 3:
            raise ArgumentError(f"Segmenter: takes RGB pictures, and the recipe has a mean of {len(self.recipe.mean)} channels.")
        self.scales, self.flip, self.batch_size, self.amp = ratios, flip, batch_size, amp
        self.backend, self.cache_dir = backend, cache_dir
        self._network_logits: Callable[[Tensor], Tensor] = model.logits
        if backend == "onnxruntime" and isinstance(model, UPerNet):
            self._network_logits = OnnxNetwork(model, cache_dir).logits
        if amp and self.device.type == "cpu" and cpu.lacks_bfloat16():
            warnings.warn(
                f"{option('amp', True)}: this CPU has no instructions for bfloat16 (no avx512_bf16, amx_bf16 or bf16 in /proc/cpuinfo), so "
                "it makes the network slower here, not faster: 15 times where only AVX2 was there. Leave it out, or run on a GPU.",
                stacklevel=2,
            )

    @property
    def device(self) -> torch.device:
        """Where the network runs."""
        return self.model.decode_head.classifier.weight.device

    @property
    def settings(self) -> dict[str, Any]:
        """How the model is run, as plain values: with the same settings and weights a picture has the same labels."""
        return {
            "recipe": self.recipe.to_dict(),
            "scales": list(self.scales),
            "flip": self.flip,
            "amp": self.amp,
            "dtype": str(self.model.decode_head.classifier.weight.dtype).removeprefix("torch."),
            "device": self.device.type,
        }

    def __call__(self, image: Any, *, progress: bool = False) -> Segmentation:
        """Segment a picture.

        In slide mode windows are cut and normalized one batch at a time, and of their logits those are kept that later windows still touch:
        a picture at its own size (`own_size=True`) takes little more than itself, its labels, and two rows of windows.

        Args:
            image: a path, a PIL image, an (H, W, 3) uint8 RGB array or a tensor: what `preprocess.load_image` takes.
            progress: show a bar of the windows that are done, where there are several.

        Raises:
            MissingFileError, ImageError: it cannot be read.
            NotEnoughMemoryError: more memory is needed than there is.
        """
        return self._segment(preprocess.load_image(image), progress)

    def map(self, images: Iterable[Any]) -> Iterator[Segmentation]:
        """Segment any number of pictures, in order; the next one is read and decoded while one is computed.

        Raises:
            MissingFileError, ImageError: one cannot be read; those before it have been given back.
            NotEnoughMemoryError: one needs more memory than there is.
        """
        for pixels in read_ahead(preprocess.load_image, images):
            yield self._segment(pixels)

    def video(self, path: str | os.PathLike[str], every: int = 1) -> Iterator[SegmentedFrame]:
        """Segment a video frame by frame, in constant memory; a frame that is damaged is given with its error, and the next one follows.

        Args:
            path: a file that FFmpeg reads, or a camera of Linux (`/dev/video0`), which never ends.
            every: take every n-th frame, from the first.

        Raises:
            MissingFileError: no such file.
            ImageError: no video.
            ArgumentError: `every` is no whole number from 1.
            MissingPackageError: the package av is not installed.
        """
        return self.frames(frames.Video(path, every))

    def frames(self, video: frames.Video) -> Iterator[SegmentedFrame]:
        """Segment the frames of a video that is open, and close it; the next one is decoded while one is computed."""
        decoded = iter(video)
        # the thread that decodes has ended before the file is closed
        with video, contextlib.closing(read_ahead(lambda _: next(decoded, None), itertools.count())) as ahead:
            for frame in ahead:
                if frame is None:  # the end
                    break
                segmentation, error = None, frame.error
                if frame.pixels is not None:
                    try:
                        segmentation = self._segment(frame.pixels)
                    except (ImageError, NotEnoughMemoryError) as found:
                        error = str(found)
                yield SegmentedFrame(frame.number, frame.seconds, segmentation, error)

    @torch.inference_mode()
    def probabilities(self, image: Any) -> Tensor:
        """(num_classes, H, W) float32 softmax on the CPU at the picture's own size, averaged over the views.

        Raises:
            MissingFileError, ImageError: the picture cannot be read.
            NotEnoughMemoryError: more memory is needed than there is.
        """
        pixels = preprocess.load_image(image)
        size = pixels.shape[:2]
        self._require_memory(size, self.model.config.num_classes * 4)
        with self._computing(size) as done:
            return resample.probabilities(self._views(size, self._cut(pixels), done), size).cpu()

    @torch.inference_mode()
    def _segment(self, pixels: np.ndarray, progress: bool = False) -> Segmentation:
        size = pixels.shape[:2]
        self._require_memory(size, 1)
        with self._computing(size, progress) as done:
            labels = resample.labels(self._views(size, self._cut(pixels), done), size)
        return Segmentation(labels.cpu().numpy(), pixels, self.model.label_set)

    @torch.inference_mode()
    def stream(self, size: tuple[int, int], cut: Cut, write: Callable[[slice, np.ndarray], object], *, progress: bool = False) -> None:
        """Segment a picture at its own size that is read, and whose labels are written, in parts.

        Args:
            size: (height, width) of the picture in pixels.
            cut: rows and columns -> those of the picture, (rows, columns, 3) uint8 RGB; None where labels may be anything. In slide mode it
                is called for one window after the other, from the top down; a row of windows begins at a new row of the picture.
            write: takes rows of the picture, from the top down, and their labels.
            progress: show a bar of the windows that are done.

        Raises:
            ArgumentError: the recipe, or the scales, would have the picture resized.
            NotEnoughMemoryError: more memory is needed than there is.
        """
        if any(preprocess.target_size(size, self.recipe, scale) != size for scale in self.scales):
            raise ArgumentError(f"Segmenter.stream: takes pictures at their own size: {option('own_size', True)}, and a scale of 1.")
        self._require_memory(size, 0)
        with self._computing(size, progress) as done:
            for rows, labels in resample.label_bands(self._views(size, lambda _: cut, done), size):
                write(rows, labels.cpu().numpy())

    @contextlib.contextmanager
    def _computing(self, size: tuple[int, int], show: bool = False) -> Iterator[Callable[[int], object]]:
        """Say which picture memory ran out for; and compute as the published evaluation, whatever autocast is around the call.

        Yields:
            What is told of the number of windows that are done.
        """
        layouts = [self._layout(size, scale)[1] for scale in self.scales]
        total = sum((1 + self.flip) * len(rows) * len(columns) for rows, columns in layouts)
        with (
            memory.refused(f"A picture of {size[1]}x{size[0]} pixels"),
            torch.autocast(self.device.type, enabled=False),
            counter(show=show and total > 1, total=total, unit="window") as bar,
        ):
            yield bar.update

    def _require_size(self, size: tuple[int, int]) -> None:
        """Refuse a picture of `size` (height, width) that would come to a backbone of one size in another."""
        only, backbone = self.model.config.backbone.input_size, self.model.config.backbone.title
        if only is None:
            return
        for scale in self.scales:
            height, width = preprocess.padded_size(preprocess.target_size(size, self.recipe, scale), self.recipe)
            if self.recipe.crop is None and (height, width) != only:
                step = only[0] * 2 // 3, only[1] * 2 // 3
                python, command = f"mode='slide', crop={only}, stride={step}", f"--mode slide --crop {_by(only)} --stride {_by(step)}"
                way = f"Run it in windows of that size: {worded(python, command)}"
            elif height < only[0] or width < only[1]:
                way = f"Take larger scales, or a recipe with min_size={max(only)}, which makes no side shorter"
            else:
                continue
            raise ImageError(
                f"A picture of {size[1]}x{size[0]} pixels becomes {width}x{height}, and {backbone} takes {only[1]}x{only[0]} alone. {way}."
            )

    def _require_memory(self, size: tuple[int, int], bytes_per_pixel: int) -> None:
        """Refuse a picture of `size` (height, width) that cannot fit, where that can be known, before anything is computed."""
        self._require_size(size)
        free = memory.available(self.device)
        if free is None:
            return
        views, stored, network = 1 + self.flip, 0, 0
        stride = self.model.config.feature_reductions[0]
        for scale in self.scales:
            content, (rows, columns) = self._layout(size, scale)
            high, wide = (axis[0].stop - axis[0].start for axis in (rows, columns))
            stored += views * -(-most_rows(rows) // stride) * len(columns) * -(-wide // stride) * self.model.config.num_classes * 4
            if content != size and len(rows) > 1:  # the resized picture stays until its last row of windows
                stored += content[0] * content[1] * 3
            network = max(network, network_bytes(self.model, min(views * len(rows) * len(columns), self.batch_size) * high * wide))
        result = size[0] * size[1] * bytes_per_pixel
        if network + stored + result > free:
            raise NotEnoughMemoryError(
                f"A picture of {size[1]}x{size[0]} pixels needs about {size_text(network + stored + result)} of memory: "
                f"{size_text(network)} for the network, {size_text(stored)} for the logits that are kept, {size_text(result)} for the "
                f"result; {self.device} has {size_text(free)} free. Smaller or fewer scales, "
                f"{option('batch_size', 1)}, {option('mode', 'slide')} with a crop, and labels in place of probabilities need less."
            )

    def _layout(self, size: tuple[int, int], scale: float) -> tuple[tuple[int, int], tuple[list[slice], list[slice]]]:
        """A picture of `size` in a scale: its (height, width), and rows and columns of the windows over it and its padding.

        In whole mode there is one window.
        """
        content = preprocess.target_size(size, self.recipe, scale)
        height, width = preprocess.padded_size(content, self.recipe)
        crop, stride = self.recipe.crop, self.recipe.stride
        if crop is None or stride is None:
            return content, ([slice(0, height)], [slice(0, width)])
        return content, (preprocess.windows(height, crop[0], stride[0]), preprocess.windows(width, crop[1], stride[1]))

    def _views(self, size: tuple[int, int], cut: Callable[[tuple[int, int]], Cut], done: Callable[[int], object]) -> list[resample.View]:
        """Logits of each scale of a picture of `size`, plain and mirrored; those of the first row of windows are computed.

        Args:
            cut: (height, width) -> what gives parts of the picture resized to that.
            done: told of the number of windows that were computed.
        """
        views = []
        for scale in self.scales:
            content, (rows, columns) = self._layout(size, scale)
            logits = WindowLogits(
                self._network, cut(content), content, self.recipe, rows, columns, flip=self.flip, batch_size=self.batch_size, done=done
            )
            via = rows[-1].stop, columns[-1].stop
            align_corners = self.model.config.align_corners
            views += [resample.View(one, via, align_corners, (rows, columns), i > 0, content) for i, one in enumerate(logits.views)]
        return views

    @staticmethod
    def _cut(pixels: np.ndarray) -> Callable[[tuple[int, int]], Cut]:
        """Parts of a picture resized to a size; one that has the size already is not copied."""

        def resized(size: tuple[int, int]) -> Cut:
            whole = pixels if pixels.shape[:2] == size else preprocess.resize_uint8(pixels, size)
            return lambda rows, columns: whole[rows, columns]

        return resized

    def _network(self, x: Tensor) -> Tensor:
        """Logits at the first feature's stride, at most `batch_size` at once."""
        weight = self.model.decode_head.classifier.weight
        parts = []
        for part in x.split(self.batch_size):
            part = part.to(weight.device, weight.dtype)
            if weight.device.type == "cuda":
                part = part.contiguous(memory_format=torch.channels_last)
            half = torch.float16 if weight.device.type == "cuda" else torch.bfloat16
            with torch.autocast(weight.device.type, dtype=half, enabled=self.amp):
                parts.append(self._logits(part).float())
        return torch.cat(parts)

    def _logits(self, x: Tensor) -> Tensor:
        try:
            return self._network_logits(x)
        except RuntimeError as error:  # what torch says of a convolution over less than its kernel
            (height, width), backbone = x.shape[2:], self.model.config.backbone
            if min(height, width) >= backbone.reductions[-1]:
                raise
            raise ImageError(
                f"Resized, the picture is {width}x{height} pixels, which is too small for {backbone.title}. Take a larger or less thin "
                "one, or larger scales."
            ) from error


def _ratios(scales: Sequence[float]) -> tuple[float, ...]:
    ratios = tuple(scales) if isinstance(scales, Iterable) else ()
    if not ratios or not all(isinstance(ratio, numbers.Real) and 0 < ratio <= 16 for ratio in ratios):
        raise ArgumentError(f"{worded('Segmenter: scales', '--scales')} must be a list of ratios above 0 and up to 16, found {scales!r}.")
    return tuple(map(float, ratios))


def _require_options(own_size: Any, flip: Any, batch_size: Any, amp: Any, optimize: Any) -> None:
    for name, value in (("own_size", own_size), ("flip", flip), ("amp", amp), ("optimize", False if optimize is None else optimize)):
        if not isinstance(value, bool):
            raise ArgumentError(f"Segmenter: {name} must be True or False, found {value!r}.")
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ArgumentError(f"{worded('Segmenter: batch_size', '--batch-size')} must be a whole number from 1, found {batch_size!r}.")
    if optimize and amp:
        raise ArgumentError("Segmenter: amp=True goes with a plain model. For a fused one in half precision, convert the model first.")


def _require_backend(
    backend: Any, model: Any, device: torch.device | str | None, dtype: torch.dtype | None, amp: bool, optimize: bool | None
) -> None:
    if backend not in _BACKENDS:
        raise ArgumentError(f"{option('backend', str(backend))}: the backends are {', '.join(_BACKENDS)}.")
    if backend == "torch":
        return
    wrong = [
        option(name, value)
        for name, value, refused in (
            ("amp", True, amp),
            ("optimize", True, optimize),
            ("device", str(device), device is not None and torch.device(device).type != "cpu"),
            ("dtype", str(dtype).removeprefix("torch."), dtype not in (None, torch.float32)),
        )
        if refused
    ]
    if wrong:
        raise ArgumentError(
            f"{option('backend', backend)} runs on the CPU in float32, by a graph of its own, and goes without {wrong[0]}. Leave that out, "
            f"or take {option('backend', 'torch')}."
        )
    if isinstance(model, FusedUPerNet):
        raise ArgumentError(
            f"{option('backend', backend)} takes a plain UPerNet, and this one is fused. Pass the one that it was made from."
        )
    require_onnxruntime()


def _ready(
    model: Any, device: torch.device | str | None, dtype: torch.dtype | None, optimize: bool | None, amp: bool, loading: dict[str, Any]
) -> UPerNet | FusedUPerNet:
    """The network that runs: found by reference, brought to its device, and fused where that is asked for or wins."""
    if isinstance(getattr(model, "_orig_mod", None), (UPerNet, FusedUPerNet)):
        raise ArgumentError(
            "Segmenter: found what torch.compile returned, which it would not use, as it runs backbone and head on their own. Pass the "
            "UPerNet itself; to compile its parts in place: model.backbone.compile(), model.decode_head.compile()."
        )
    if not isinstance(model, (str, os.PathLike, UPerNet, FusedUPerNet)):
        raise ArgumentError(f"Segmenter: expected a UPerNet or a model's name or path, found {type(model).__name__}.")
    if isinstance(model, (str, os.PathLike)):
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if device.type == "cpu" and dtype in (None, torch.float32) and optimize is not False and not amp:
            return optimized.load(model, **loading)
        model = create_model(model, device=device, dtype=dtype, **loading)
    else:
        Reference.parse(model).require_options(**{name: loading[name] for name in ("checkpoint", "sha256", "mirrors")})
        if device is not None and torch.device(device).type == "meta":
            raise ArgumentError("Segmenter: device 'meta' holds no weights and computes nothing. Try 'cpu'.")
        if device is not None or dtype is not None:
            model = model.to(device=device, dtype=dtype)
    if isinstance(model, FusedUPerNet):
        if optimize is False or amp:
            raise ArgumentError("Segmenter: optimize=False and amp=True go with a plain UPerNet, and this one is fused.")
        return model
    weight = model.decode_head.classifier.weight
    wins = weight.device.type == "cpu" and weight.dtype == torch.float32 and not amp
    return optimize_for_inference(model) if optimize or (optimize is None and wins) else model.eval()


def network_bytes(model: UPerNet | FusedUPerNet, pixels: int) -> int:
    """Memory that a network takes at its peak for so many pixels of input, as measured with `resource` on the CPU, logits left out."""
    return round(model.peak_values(pixels) * model.decode_head.classifier.weight.element_size())


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _override(recipe: Recipe, mode: str | None, crop: Any, stride: Any, own_size: bool) -> Recipe:
    if own_size:
        recipe = dataclasses.replace(recipe, scale=None, keep_ratio=True, short_edge=False, min_size=None)
    mode = recipe.mode if mode is None else mode
    if mode == "whole":
        if crop is not None or stride is not None:
            raise ArgumentError(
                worded(
                    "Segmenter: crop and stride belong to slide mode; pass mode='slide' with them.",
                    "--crop and --stride belong to slide mode; give --mode slide with them.",
                )
            )
    else:
        crop, stride = recipe.crop if crop is None else crop, recipe.stride if stride is None else stride
    try:
        return dataclasses.replace(recipe, mode=mode, crop=crop, stride=stride)
    except ConfigError as error:
        raise ArgumentError(f"{worded('Segmenter: ', '')}{error}") from None
