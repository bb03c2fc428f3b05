"""Where in a file's content the model is: under which key, behind which prefix, and what is beside it.

Whoever trains a model saves it in a way of their own: under `state_dict`, `model`, `net` or `params_ema`, alone or beside an optimizer, as
an attribute of a LightningModule beside its loss, inside DistributedDataParallel, FSDP, `torch.compile` or an average. None of those keys
and prefixes is looked for by name: the model is where names of tensors go on with `decode_head.`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..tables import name_list
from ..wording import option

__all__ = ["Candidate", "Found", "find"]

_MAX_DEPTH = 4  # of dicts in dicts
# modules that wrap another one, wherever they are in a name; nothing in a UPerNet has such a name
_WRAPPERS = {"module", "_orig_mod", "_forward_module", "_fsdp_wrapped_module", "_fpw_module", "_checkpoint_wrapped_module"}
_PARTS = ("backbone", "neck", "decode_head", "auxiliary_head", "data_preprocessor")
_PREFIX = re.compile(rf"((?:[^.]+\.)*?)({'|'.join(_PARTS)})\.")
_PROFILER = re.compile(r"(?:.*\.)?total_(?:ops|params)")  # of thop, in every module
_AVERAGE = re.compile(r"(?:^|[._])(?:ema|swa|averaged?)(?:$|[._])")
# what training keeps beside a model or in it, and no picture is computed with
_TRAINING = re.compile(
    r"(?:criteri(?:on|a|ons)|\w*loss(?:es)?(?:_\w+)?|\w*metrics?|n_averaged|steps|(?:\w+_)?(?:m?iou|acc|accuracy|confmat|dice|f1)(?:_\w+)?)"
    r"(?:\.|$)",
    re.IGNORECASE,
)
_LAST_STEP = "ema_state_dict"
# what else a training checkpoint holds, where its name does not say what it is
_WORDS = {"message_hub": "message_hub (mmengine's logs)"}


@dataclass(frozen=True, eq=False)
class Candidate:
    """Tensors that may be a model's.

    Attributes:
        tensors: by name, without wrappers and prefix.
        path: the keys under which they are, outermost first.
        prefix: what their names begin with in the file.
        rest: tensors of no model, beside them.
    """

    tensors: Mapping[str, Tensor]
    path: tuple[str, ...]
    prefix: str = ""
    rest: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def is_model(self) -> bool:
        """Is there a decode head?"""
        return any(name.startswith("decode_head.") for name in self.tensors)

    @property
    def is_average(self) -> bool:
        """Do its keys, its prefix or its wrapper say that these are averaged weights?"""
        wrappers = (name.removesuffix("n_averaged") for name in self.rest if name.endswith("n_averaged"))  # of torch's AveragedModel
        return bool(_AVERAGE.search(".".join((*self.path, self.prefix)).lower())) or any(map(self.prefix.startswith, wrappers))

    def __str__(self) -> str:
        where = f"under {'.'.join(self.path)!r}" if self.path else "at the top of the file"
        return f"{where}, names with {self.prefix!r}" if self.prefix else where


class Found(NamedTuple):
    """The model in a file's content.

    Attributes:
        tensors: by name, without wrappers and prefix.
        meta: the nearest `meta` above them.
        is_average: are they averaged weights?
        where: in the file, in words; empty for the usual places.
        dropped: what else is in the file, in words.
        lost: of `dropped`, what may be weights of a module that computes something.
    """

    tensors: dict[str, Tensor]
    meta: Mapping[str, Any]
    is_average: bool
    where: tuple[str, ...]
    dropped: tuple[str, ...]
    lost: tuple[str, ...]


def find(content: Mapping[Any, Any], *, ema: bool, owner: str) -> Found:
    """The one model in a file's content.

    Args:
        content: the file's top-level dict.
        ema: take averaged weights where there are others too. Averages that mmcv keeps inside a state dict stay there.
        owner: of the file, in errors.

    Raises:
        CheckpointError: no named tensors, or several models.
    """
    found = list(_candidates(content, (), owner))
    if not found:
        raise CheckpointError(f"{owner}: holds no state dict (named tensors). Pass the checkpoint file of a trained model.")
    models = [candidate for candidate in found if candidate.is_model]
    if not models:  # what else it is, will be told from the tensors
        models = [max(found, key=lambda candidate: len(candidate.tensors))]
    exchanged = _exchanged(content)
    eligible = [model for model in models if model.path != (_LAST_STEP,)] if exchanged else models
    averages = [model for model in eligible if model.is_average]
    plain = [model for model in eligible if not model.is_average]
    wanted = averages if averages and (ema or not plain) else plain
    chosen, *others = wanted
    if others := [model for model in others if not _are_same(model.tensors, chosen.tensors)]:
        raise CheckpointError(
            f"{owner}: holds several models: {name_list(map(str, (chosen, *others)))}. Load it with torch.load(path, weights_only=True) "
            "and save the state dict of the one that you mean alone: torch.save(state_dict, other_path)."
        )
    is_average = chosen.is_average or exchanged
    words = {model: _words(model, chosen, exchanged) for model in models if model is not chosen}
    meta, dropped = _beside(content, chosen, words)
    rest, lost = _rest(chosen)
    where = str(chosen) + (": averaged weights" if chosen.is_average else "")
    usual = chosen.path in ((), ("state_dict",)) and not chosen.prefix and not chosen.is_average
    return Found(dict(chosen.tensors), meta, is_average, () if usual else (where,), (*dropped, *rest), lost)


def _candidates(content: Mapping[Any, Any], path: tuple[str, ...], owner: str) -> Iterator[Candidate]:
    tensors = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    prefixes: dict[str, set[str]] = {}
    for name in tensors:
        if match := _PREFIX.match(name):
            prefixes.setdefault(match[1], set()).add(match[2])
    models = [prefix for prefix, parts in prefixes.items() if "decode_head" in parts] or list(prefixes)
    if models:
        yield from _groups(tensors, models, path, owner)
        return
    if tensors:
        yield Candidate(_unwrapped(tensors, owner), path)
    if len(path) < _MAX_DEPTH:
        for key, value in content.items():
            if isinstance(key, str) and isinstance(value, Mapping):
                yield from _candidates(value, (*path, key), owner)


def _groups(tensors: Mapping[str, Tensor], prefixes: list[str], path: tuple[str, ...], owner: str) -> list[Candidate]:
    """A candidate for each prefix: a tensor belongs to the longest that fits, and what is of training alone to none."""
    groups: dict[str, dict[str, Tensor]] = {prefix: {} for prefix in prefixes}
    rest: dict[str, Tensor] = {}
    for name, value in tensors.items():
        prefix = max((prefix for prefix in groups if name.startswith(prefix)), key=len, default=None)
        inner = name if prefix is None else name.removeprefix(prefix)
        if prefix is None or _TRAINING.match(inner) or _PROFILER.fullmatch(inner):
            rest[name] = value
        else:
            groups[prefix][inner] = value
    return [Candidate(_unwrapped(group, owner), path, prefix, rest) for prefix, group in groups.items()]


def _unwrapped(tensors: Mapping[str, Tensor], owner: str) -> dict[str, Tensor]:
    """Tensors by name without the names of wrapping modules."""
    plain: dict[str, Tensor] = {}
    for key, value in tensors.items():
        name = ".".join(part for part in key.split(".") if part not in _WRAPPERS)
        if name in plain and not _is_same(plain[name], value):
            raise CheckpointError(f"{owner}: two different tensors are {name}, inside a wrapping module and without. Save one of them.")
        plain[name] = value
    return plain


def _exchanged(content: Mapping[Any, Any]) -> bool:
    """Did mmengine write this, with the averages in the place of the weights, and the other way round?"""
    meta = content.get("meta")
    is_of_mmengine = "message_hub" in content or (isinstance(meta, Mapping) and "mmengine_version" in meta)
    return is_of_mmengine and isinstance(content.get(_LAST_STEP), Mapping) and isinstance(content.get("state_dict"), Mapping)


def _are_same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(_is_same(a[key], b[key]) for key in a)


def _is_same(a: Tensor, b: Tensor) -> bool:
    """The same bytes, of whatever dtype."""
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    a, b = (tensor.detach().reshape(-1).contiguous().view(torch.uint8) for tensor in (a, b))
    return torch.equal(a, b)


def _words(model: Candidate, chosen: Candidate, exchanged: bool) -> str:
    """What a model that was not chosen is."""
    name = model.prefix if model.path == chosen.path else ".".join(model.path)
    if exchanged and model.path == (_LAST_STEP,):
        return f"{name} (the weights of the last step: mmengine saves the averages as state_dict)"
    if model.is_average and not chosen.is_average:
        return f"{name} (averaged weights; {option('ema', True)} takes them)"
    if chosen.is_average and not model.is_average:
        return f"{name} (the weights of the last step; the averages were asked for)"
    return f"{name} (the same weights again)"


def _beside(content: Mapping[Any, Any], chosen: Candidate, words: Mapping[Candidate, str]) -> tuple[Mapping[str, Any], list[str]]:
    """The nearest `meta`, and what is beside the chosen model on the way down to it."""
    meta: Mapping[str, Any] = {}
    dropped = []
    for depth in range(len(chosen.path) + 1):
        here = chosen.path[:depth]
        if isinstance(content.get("meta"), Mapping):
            meta = content["meta"]
        for key, value in content.items():
            if not isinstance(key, str) or isinstance(value, Tensor) or value is meta or (*here, key) == chosen.path[: depth + 1]:
                continue
            models = [text for model, text in words.items() if model.path[: depth + 1] == (*here, key)]
            dropped += models or [_WORDS.get(key, key)]
        if depth < len(chosen.path):
            content = content[chosen.path[depth]]
    return meta, dropped + [text for model, text in words.items() if model.path == chosen.path]


def _rest(chosen: Candidate) -> tuple[list[str], tuple[str, ...]]:
    """The tensors beside the model, in words, and which of them may be lost."""
    dropped = []
    profiler = [name for name in chosen.rest if _PROFILER.fullmatch(name)]
    others = [name for name in chosen.rest if name not in profiler]
    training = [name for name in others if _TRAINING.match(name.removeprefix(chosen.prefix))]
    unknown = [name for name in others if name not in training]
    if profiler:
        dropped.append("a profiler's counters (total_ops, total_params)")
    if training:
        dropped.append(f"of training: {name_list(training)}")
    lost = (f"beside the model: {name_list(unknown)}",) if unknown else ()
    return [*dropped, *lost], lost
