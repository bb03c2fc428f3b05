"""The model index: `model_index.yml` read, validated and frozen. No torch, no network.

The format is that of the `model-index` package (Collections; Models with Name, Metadata, Results, Config, Weights), with
`Training Log`, `SHA256` (8 to 64 hex digits of the checkpoint file's SHA-256) and `Mirrors` (further homes of the file) besides.
"""

from __future__ import annotations

import difflib
import fnmatch
import functools
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import unquote, urlsplit

from . import labels
from .config import Recipe, UPerNetConfig
from .errors import ArgumentError, ConfigError, IndexFormatError, MissingFileError, ModelNotFoundError, shown

ENVIRONMENT = "UPERNET_ZOO_INDEX"
TASK = "Semantic Segmentation"
_DEEPEST = 50  # libyaml's nested structures end in a stack overflow
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,250}")
_HUB_ORG = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,95}")
_RECIPE_KEYS = ("scale", "mode", "crop", "stride", "mean", "std")
_METADATA_KEYS = ("Method", "Backbone", "Crop Size", "Lr schd", "Training Data", "Training Memory (GB)", "Inference Speed (fps)")
_MODEL_KEYS = ("Name", "In Collection", "Metadata", "Results", "Config", "Weights", "SHA256", "Mirrors", "Training Log")


@dataclass(frozen=True)
class ModelEntry:
    """One model of the index.

    Attributes:
        name: what `create_model` takes.
        method: "UPerNet".
        backbone: as published, such as "R-50".
        crop_size: (height, width) of the training crops in pixels.
        schedule: training iterations.
        memory_gb: memory of the training in GB per GPU, None if not published.
        fps: inference speed as published (pictures per second on a V100), None if not published.
        dataset: as published, such as "Pascal VOC 2012 + Aug".
        metrics: in percent; keys "mIoU" and "mIoU(ms+flip)" where published.
        config: the architecture.
        recipe: how pictures are prepared and the model is run.
        label_set: classes and colours.
        weights: URL of the checkpoint.
        sha256: the known first digits (8 to 64) of the checkpoint file's SHA-256, lower case.
        mirrors: URLs of further homes of the same file.
        log: URL of the training log, None if not published.
        hub_org: Hugging Face organisation that holds a converted copy, None if there is none.
    """

    name: str
    method: str
    backbone: str
    crop_size: tuple[int, int]
    schedule: int
    memory_gb: float | None
    fps: float | None
    dataset: str
    metrics: Mapping[str, float]
    config: UPerNetConfig
    recipe: Recipe
    label_set: labels.LabelSet
    weights: str
    sha256: str
    mirrors: tuple[str, ...] = ()
    log: str | None = None
    hub_org: str | None = None

    @property
    def file_name(self) -> str:
        """Plain name of the checkpoint file, the last part of its URL."""
        return _file_name(self.weights)

    @property
    def labels(self) -> str:
        """Name of the label set, such as "voc12aug"."""
        return self.label_set.name

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON and tables."""
        return {
            "name": self.name,
            "method": self.method,
            "backbone": self.backbone,
            "dataset": self.dataset,
            "crop_size": f"{self.crop_size[0]}x{self.crop_size[1]}",
            "schedule": self.schedule,
            "memory_gb": self.memory_gb,
            "fps": self.fps,
            **self.metrics,
            "config": self.config.to_dict(),
            "recipe": self.recipe.to_dict(),
            "labels": self.labels,
            "weights": self.weights,
            "sha256": self.sha256,
            "mirrors": list(self.mirrors),
            "log": self.log,
        }


@dataclass(frozen=True)
class Index(Mapping):
    """The entries of one index file, by name, in the file's order."""

    path: Path
    entries: Mapping[str, ModelEntry] = field(repr=False)

    def __getitem__(self, name: str) -> ModelEntry:
        return self.entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __hash__(self) -> int:
        return hash(self.path)

    def info(self, name: str) -> ModelEntry:
        """The entry of that name.

        Raises:
            ModelNotFoundError: no such name; the message has the nearest ones.
        """
        if name in self.entries:
            return self.entries[name]
        near = difflib.get_close_matches(str(name), self.entries, n=3, cutoff=0.5)
        hint = f"Did you mean {' or '.join(near)}?" if near else f"The {len(self)} names: upernet_zoo.list_models()."
        raise ModelNotFoundError(f"No model named {name!r} in {self.path}. {hint}")


def _file_name(url: str) -> str:
    return unquote(urlsplit(url).path).rsplit("/", 1)[-1]


class _Reader:
    """Looks values up in one entry and refuses with the entry's name, the key and what was expected."""

    def __init__(self, path: Path, owner: str, data: Any, allowed: tuple[str, ...] | None = None):
        self.path, self.owner = path, owner
        if not isinstance(data, Mapping):
            raise IndexFormatError(f"{path}: {owner}: expected a mapping, found {shown(data)}.")
        self.data = data
        for key in data:
            if allowed is not None and key not in allowed:
                raise IndexFormatError(f"{path}: {owner}: unknown key {shown(key)}; known keys are {', '.join(allowed)}.")

    def fail(self, key: str, expected: str, found: Any) -> None:
        what = "is missing" if found is None else f"is {shown(found)}"
        raise IndexFormatError(f"{self.path}: {self.owner}: key '{key}' {what}; expected {expected}.")

    def text(self, key: str, pattern: re.Pattern | None = None, expected: str = "text") -> str:
        value = self.data.get(key)
        if not isinstance(value, str) or not value or (pattern is not None and not pattern.fullmatch(value)):
            self.fail(key, expected, value)
        return value

    def number(self, key: str, required: bool = True) -> float | None:
        value = self.data.get(key)
        if value is None and not required:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1e9:
            self.fail(key, "a number of at least 0" + ("" if required else ", or no such key"), value)
        return value

    def url(self, key: str, required: bool = True) -> str | None:
        value = self.data.get(key)
        if value is None and not required:
            return None
        return self.as_url(key, value)

    def as_url(self, key: str, value: Any) -> str:
        if not isinstance(value, str) or not value.isprintable() or any(c.isspace() for c in value):
            self.fail(key, "a http, https or file URL", value)
        try:
            parts = urlsplit(value)
        except ValueError:
            self.fail(key, "a http, https or file URL", value)
        if parts.scheme not in ("http", "https", "file") or (parts.scheme != "file" and not parts.netloc):
            self.fail(key, "a http, https or file URL", value)
        return value

    def inner(self, key: str, allowed: tuple[str, ...] | None = None) -> _Reader:
        if self.data.get(key) is None:
            self.fail(key, "a mapping", None)
        return _Reader(self.path, f"{self.owner}, {key}", self.data[key], allowed)


def _crop_size(reader: _Reader) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", reader.text("Crop Size", expected="height and width such as '512x1024'"))
    if not match:
        reader.fail("Crop Size", "height and width such as '512x1024'", reader.data["Crop Size"])
    return int(match[1]), int(match[2])


def _metrics(reader: _Reader) -> tuple[str, Mapping[str, float]]:
    results = reader.data.get("Results")
    if not isinstance(results, list) or len(results) != 1:
        reader.fail("Results", "a list of one result (Task, Dataset, Metrics)", results)
    result = _Reader(reader.path, f"{reader.owner}, Results", results[0], ("Task", "Dataset", "Metrics"))
    if result.text("Task") != TASK:
        result.fail("Task", f"'{TASK}'", result.data["Task"])
    metrics = result.inner("Metrics")
    values = {}
    for key in metrics.data:
        value = metrics.number(key)
        if value > 100:
            metrics.fail(key, "a percentage", value)
        values[str(key)] = float(value)
    return result.text("Dataset"), MappingProxyType(values)


def _label_set(config: _Reader) -> labels.LabelSet:
    """A known label set's name, or a mapping with a set of the index's own (name, classes, and what else `LabelSet` takes)."""
    value = config.data.get("labels")
    if isinstance(value, Mapping):
        try:
            return labels.LabelSet.from_dict(value)
        except ConfigError as error:
            raise IndexFormatError(f"{config.path}: {config.owner}: key 'labels': {error}") from None
    if value not in labels.names():
        config.fail("labels", f"one of {', '.join(labels.names())}, or a mapping with name and classes", value)
    return labels.get(value)


def _entry(path: Path, number: int, data: Any, hub_orgs: Mapping[str, str | None]) -> ModelEntry:
    name = data.get("Name") if isinstance(data, Mapping) else None
    reader = _Reader(path, f"model {shown(name)}" if name else f"model number {number + 1}", data, _MODEL_KEYS)
    name = reader.text("Name", _NAME, "a plain name of letters, digits, '_', '-' and '.'")
    collection = reader.text("In Collection")
    if collection not in hub_orgs:
        reader.fail("In Collection", f"one of the collections ({', '.join(map(str, hub_orgs))})", collection)
    meta = reader.inner("Metadata", _METADATA_KEYS)
    dataset, metrics = _metrics(reader)
    config = reader.inner("Config")
    label_set = _label_set(config)
    architecture = {k: v for k, v in config.data.items() if k not in (*_RECIPE_KEYS, "labels")}
    recipe = {k: v for k, v in config.data.items() if k in _RECIPE_KEYS}
    try:
        architecture = UPerNetConfig.from_dict(architecture, f"{path}: {config.owner}")
        recipe = Recipe.from_dict(recipe, f"{path}: {config.owner}")
    except ConfigError as error:
        raise IndexFormatError(str(error)) from None
    if architecture.num_classes != len(label_set):
        config.fail("num_classes", f"{len(label_set)}, the classes of label set '{label_set.name}'", architecture.num_classes)
    if architecture.in_channels != len(recipe.mean):
        config.fail("in_channels", f"the number of channels in mean and std ({len(recipe.mean)})", architecture.in_channels)
    weights = reader.url("Weights")
    if not _FILE_NAME.fullmatch(_file_name(weights)):
        reader.fail("Weights", "a URL that ends in a plain file name", weights)
    mirrors = reader.data.get("Mirrors", [])
    if not isinstance(mirrors, list):
        reader.fail("Mirrors", "a list of URLs", mirrors)
    schedule = meta.number("Lr schd")
    if not isinstance(schedule, int):
        meta.fail("Lr schd", "a whole number of iterations", schedule)
    return ModelEntry(
        name=name,
        method=meta.text("Method"),
        backbone=meta.text("Backbone"),
        crop_size=_crop_size(meta),
        schedule=schedule,
        memory_gb=meta.number("Training Memory (GB)", required=False),
        fps=meta.number("Inference Speed (fps)", required=False),
        dataset=dataset,
        metrics=metrics,
        config=architecture,
        recipe=recipe,
        label_set=label_set,
        weights=weights,
        sha256=reader.text("SHA256", re.compile("[0-9a-fA-F]{8,64}"), "8 to 64 hex digits, as quoted text").lower(),
        mirrors=tuple(reader.as_url("Mirrors", url) for url in mirrors),
        log=reader.url("Training Log", required=False),
        hub_org=hub_orgs[collection],
    )


def _collections(path: Path, data: Any) -> dict[str, str | None]:
    """Name of each collection -> the Hub organisation that holds its models, or None."""
    if not isinstance(data, list) or not data:
        raise IndexFormatError(f"{path}: key 'Collections' must be a list of at least one collection with a Name.")
    found = {}
    for number, item in enumerate(data):
        reader = _Reader(path, f"collection number {number + 1}", item)
        org = reader.text("Hub Organization", _HUB_ORG, "an organisation's plain name") if "Hub Organization" in item else None
        found[reader.text("Name")] = org
    return found


def _check_structure(path: Path, events: Iterable[Any]) -> None:
    """Refuse what PyYAML would take in silence (a key that stands twice), or crash on (lists in lists without end)."""
    import yaml

    around: list[list | None] = []  # of each mapping around: its keys, and whether a key comes next; of a list: None
    for event in events:
        if isinstance(event, yaml.CollectionEndEvent):
            around.pop()
        elif isinstance(event, yaml.NodeEvent):
            if around and around[-1] is not None:
                keys, is_key = around[-1]
                around[-1][1] = not is_key
                if is_key and isinstance(event, yaml.ScalarEvent):
                    if event.value in keys:
                        line = event.start_mark.line + 1
                        raise IndexFormatError(f"{path}: line {line}: key {shown(event.value)} stands twice; keep one.")
                    keys.add(event.value)
            if isinstance(event, yaml.CollectionStartEvent):
                around.append([set(), True] if isinstance(event, yaml.MappingStartEvent) else None)
                if len(around) > _DEEPEST:
                    raise IndexFormatError(f"{path}: line {event.start_mark.line + 1}: nested more than {_DEEPEST} deep; an index needs 6.")


def load(path: str | os.PathLike) -> Index:
    """Read and validate an index file.

    Raises:
        MissingFileError: no such file.
        IndexFormatError: not YAML, or an entry that is not valid: the message names the entry, the key and what was expected.
    """
    import yaml

    path = Path(path).expanduser()
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise MissingFileError(f"No model index at {path}. {ENVIRONMENT} and index.load(path) take the path of a YAML file.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise IndexFormatError(f"{path}: cannot be read as a model index: {error}.") from None
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        _check_structure(path, yaml.parse(text, loader))
        data = yaml.load(text, loader)
    except IndexFormatError:
        raise
    except Exception as error:  # beside YAMLError, whatever PyYAML's constructors do with an explicit tag (`!!bool x`: KeyError)
        raise IndexFormatError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(data, Mapping) or not isinstance(data.get("Models"), list):
        raise IndexFormatError(f"{path}: not a model index: expected the keys 'Collections' and 'Models', each a list.")
    hub_orgs = _collections(path, data.get("Collections"))
    entries: dict[str, ModelEntry] = {}
    files: dict[str, ModelEntry] = {}
    for number, item in enumerate(data["Models"]):
        entry = _entry(path, number, item, hub_orgs)
        if entry.name in entries:
            raise IndexFormatError(f"{path}: model {entry.name!r}: the Name stands twice.")
        other = files.setdefault(entry.file_name, entry)  # the cache keeps files by name
        if other.sha256 != entry.sha256:
            raise IndexFormatError(
                f"{path}: models {other.name!r} and {entry.name!r}: two files named {entry.file_name} with another SHA256; rename one."
            )
        entries[entry.name] = entry
    return Index(path, MappingProxyType(entries))


def default_path() -> Path:
    """The index in use: `UPERNET_ZOO_INDEX`, or the one that came with the package (in a checkout: the top level's)."""
    if named := os.environ.get(ENVIRONMENT):
        return Path(named).expanduser()
    package = Path(__file__).resolve().parent
    inside = package / "model_index.yml"
    return inside if inside.exists() else package.parent / "model_index.yml"


@functools.lru_cache(maxsize=8)
def _load_once(path: Path, mtime_ns: int) -> Index:
    return load(path)


def default() -> Index:
    """The index in use, read once per process for as long as its file stays the same."""
    path = default_path()
    try:
        mtime_ns = path.stat().st_mtime_ns
    except OSError:
        mtime_ns = 0
    return _load_once(path, mtime_ns)


def list_models(
    pattern: str = "*",
    *,
    dataset: str | None = None,
    backbone: str | None = None,
    sort: str | None = None,
    index: Index | None = None,
) -> list[str]:
    """Names of the models that fit, in the index's order, or best first by a metric.

    Args:
        pattern: shell wildcards, such as "*r101*"; case does not matter.
        dataset: label set ("cityscapes", "ade20k", "voc12aug") or the published name of the data set; case does not matter.
        backbone: as published, such as "R-101"; case does not matter.
        sort: a metric ("mIoU", "mIoU(ms+flip)"), "fps", "memory_gb" or "schedule"; highest first, models without the number last.
        index: another index; by default the one in use.

    Raises:
        ArgumentError: a dataset, backbone or sort key that no model has.
    """
    entries = list((index or default()).values())

    def known(kind: str, value: str, choices: list[str]) -> str:
        if value.lower() not in {c.lower() for c in choices}:
            raise ArgumentError(f"No model has {kind} {value!r}; there are {', '.join(dict.fromkeys(choices))}.")
        return value.lower()

    chosen = [e for e in entries if fnmatch.fnmatchcase(e.name.lower(), pattern.lower())]
    if dataset is not None:
        dataset = known("dataset", dataset, [e.labels for e in entries] + [e.dataset for e in entries])
        chosen = [e for e in chosen if dataset in (e.labels.lower(), e.dataset.lower())]
    if backbone is not None:
        backbone = known("backbone", backbone, [e.backbone for e in entries])
        chosen = [e for e in chosen if e.backbone.lower() == backbone]
    if sort is not None:
        numbers = [{**e.metrics, "fps": e.fps, "memory_gb": e.memory_gb, "schedule": e.schedule} for e in entries]
        if not any(sort in n for n in numbers):
            raise ArgumentError(f"Cannot sort by {sort!r}; there are {', '.join(dict.fromkeys(k for n in numbers for k in n))}.")
        value = {e.name: n.get(sort) for e, n in zip(entries, numbers)}
        chosen.sort(key=lambda e: -value[e.name] if value[e.name] is not None else float("inf"))
    return [e.name for e in chosen]


def model_info(name: str, *, index: Index | None = None) -> ModelEntry:
    """The index's entry of a model.

    Raises:
        ModelNotFoundError: no such name; the message has the nearest ones.
    """
    return (index or default()).info(name)
