"""The model index: `model_index.yml` read, validated and frozen. No torch, no network.

The format is that of the `model-index` package (Collections; Models with Name, Metadata, Results, Config, Weights), with these keys
besides. A collection: `Mirrors`, base URLs of hosts that have its files under the path of `Weights`; `Licenses`, a mapping of `Code`,
`Weights` and `Backbones`, each a list of what is stated by whom (`licenses.Statement`). A model: `Training Log`; `SHA256`, 8 to 64 hex
digits of the checkpoint file's SHA-256; `Size`, its bytes; `Absent From`, the mirrors of the collection that do not hold it; `Mirrors`,
whole URLs of the same file; `Copies`, repositories that have it in another library's format, each a reference or a mapping of `Reference`
and `SHA256` (of the weights there).
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import fnmatch
import functools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn
from urllib.parse import unquote, urlsplit

from . import labels, licenses
from .config import BackboneConfig, Recipe, UPerNetConfig
from .errors import ArgumentError, ConfigError, IndexFormatError, MissingFileError, ModelNotFoundError, shown
from .files import expanded
from .licenses import Licenses, Statement, Terms
from .wording import did_you_mean, same_name, worded

__all__ = [
    "ENVIRONMENT",
    "TASK",
    "Index",
    "ModelEntry",
    "PublishedCopy",
    "Standing",
    "default",
    "default_path",
    "list_models",
    "load",
    "model_info",
    "standing",
]

ENVIRONMENT = "UPERNET_ZOO_INDEX"
TASK = "Semantic Segmentation"
_DEEPEST = 50  # libyaml's nested structures end in a stack overflow
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,250}")
_HUB_ORG = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,95}")
_RECIPE_KEYS = tuple(field.name for field in dataclasses.fields(Recipe))
_COPY = re.compile(r"hf-hub:([\w.-]{1,96}/[\w.-]{1,96})(@[\w./-]{1,250})?")
_LARGEST = 1 << 40  # bytes; a size beyond is a mistake
_METADATA_KEYS = (
    "Method",
    "Backbone",
    "Pretraining",
    "Crop Size",
    "Lr schd",
    "Training Data",
    "Training Memory (GB)",
    "Inference Speed (fps)",
    "Parameters",
    "GMACs",
    "GMACs At",
)
_MODEL_KEYS = (
    *("Name", "In Collection", "Metadata", "Results", "Config"),
    *("Weights", "SHA256", "Fingerprint", "Size", "Absent From", "Mirrors", "Copies", "Training Log"),
)


class Standing(enum.IntEnum):
    """What is known of a host. Places that have the same file are asked in this order."""

    LIVING = 0  # nothing speaks against it
    LAPSED = 1  # its domain was let go: whoever buys it can serve other bytes under the old names
    UNCERTAIN = 2  # it may have been closed


_STANDINGS = {
    "openmmlab.com": Standing.LAPSED,
    "openmmlab.oss-cn-hangzhou.aliyuncs.com": Standing.UNCERTAIN,
    "openmmlab.oss-accelerate.aliyuncs.com": Standing.UNCERTAIN,
}


def standing(url: str) -> Standing:
    """What is known of a URL's host, which may be any host of a domain; a host that nothing is known of counts as living."""
    host = (urlsplit(url).hostname or "").rstrip(".")
    return next((known for domain, known in _STANDINGS.items() if f".{host}".endswith(f".{domain}")), Standing.LIVING)


@dataclass(frozen=True)
class PublishedCopy:
    """A conversion of the very file that an entry names, in another library's format.

    Attributes:
        reference: of the repository, such as "hf-hub:openmmlab/upernet-swin-tiny".
        sha256: of its weights, 64 hex digits; None if it is not known.
    """

    reference: str
    sha256: str | None = None

    @property
    def repository(self) -> str:
        """Such as "openmmlab/upernet-swin-tiny"; without the revision."""
        return self.reference.removeprefix("hf-hub:").partition("@")[0]


@dataclass(frozen=True)
class ModelEntry:
    """One model of the index.

    Attributes:
        name: what `create_model` takes.
        method: "UPerNet".
        backbone: as published, such as "R-50".
        pretraining: what the backbone was trained on before, such as "ImageNet-1K", None if it is not known.
        crop_size: (height, width) of the training crops in pixels.
        schedule: training iterations.
        memory_gb: memory of the training in GB per GPU, None if not published.
        fps: inference speed as published (pictures per second on a V100), None if not published.
        dataset: as published, such as "Pascal VOC 2012 + Aug".
        metrics: in percent; keys "mIoU" and "mIoU(ms+flip)" where published.
        architecture: plain values of the architecture, as `UPerNetConfig.from_dict` takes them; the backbone's options are unchecked.
        recipe: how pictures are prepared and the model is run.
        label_set: classes and colors.
        weights: URL of the checkpoint, as published.
        sha256: the known first digits (8 to 64) of the checkpoint file's SHA-256, lower case.
        mirrors: URLs of the same file on other hosts.
        fingerprint: SHA-256 of the checkpoint's tensors (`provenance.fingerprint`), None if it is not known.
        log: URL of the training log, None if not published.
        hub_org: Hugging Face organization that holds a converted copy, None if there is none.
        size: of the checkpoint file in bytes, None if it is not known.
        collection: that the model is in, such as "OpenMMLab".
        copies: conversions of the very file.
        licenses: what is stated of its code, weights and data, and by whom.
        parameters: of the whole model, with the auxiliary head; None if not counted.
        gmacs: multiplications, in 1e9, of one picture without the auxiliary head, as tools/count_cost.py counts them; None if not counted.
        gmacs_at: (height, width) in pixels of that picture.

    Examples:
        >>> import upernet_zoo as uz
        >>> entry = uz.model_info("upernet_r50_512x512_160k_ade20k")
        >>> entry.backbone, entry.dataset, entry.metrics["mIoU"], entry.crop_size
        ('R-50', 'ADE20K', 42.05, (512, 512))
        >>> entry.config.num_classes, entry.recipe.scale
        (150, (2048, 512))
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
    architecture: Mapping[str, Any]
    recipe: Recipe
    label_set: labels.LabelSet
    weights: str
    sha256: str
    fingerprint: str | None = None
    mirrors: tuple[str, ...] = ()
    log: str | None = None
    hub_org: str | None = None
    size: int | None = None
    pretraining: str | None = None
    collection: str = ""
    copies: tuple[PublishedCopy, ...] = ()
    licenses: Licenses = field(default_factory=Licenses)
    parameters: int | None = None
    gmacs: float | None = None
    gmacs_at: tuple[int, int] = (512, 512)

    @property
    def config(self) -> UPerNetConfig:
        """The architecture; its backbone's module is imported, and torch with it.

        Raises:
            ConfigError: options that the backbone does not take.
        """
        return UPerNetConfig.from_dict(self.architecture, f"model {self.name!r}")

    @property
    def file_name(self) -> str:
        """Plain name of the checkpoint file, the last part of its URL."""
        return _file_name(self.weights)

    @property
    def labels(self) -> str:
        """Name of the label set, such as "voc12aug"."""
        return self.label_set.name

    def has_digest(self, sha256: str) -> bool:
        """Whether the index knows a digest as that of the checkpoint file, or of a copy of it."""
        return sha256.startswith(self.sha256) or any(sha256 == copy.sha256 for copy in self.copies)

    def link(self, url: str) -> str | None:
        """Where to point people who ask for a published URL of this model (`weights` or `log`).

        Returns:
            The URL itself, or its path on the first mirror, whose host is thought to be alive; None if no such host is known.
        """
        if standing(url) is Standing.LIVING:
            return url
        path = urlsplit(self.weights).path
        bases = (mirror.removesuffix(path) for mirror in self.mirrors if mirror.endswith(path) and standing(mirror) is Standing.LIVING)
        base = next(bases, None)
        return None if base is None else base + urlsplit(url).path

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON and tables."""
        return {
            "name": self.name,
            "method": self.method,
            "backbone": self.backbone,
            "pretraining": self.pretraining,
            "dataset": self.dataset,
            "crop_size": f"{self.crop_size[0]}x{self.crop_size[1]}",
            "schedule": self.schedule,
            "memory_gb": self.memory_gb,
            "fps": self.fps,
            **self.metrics,
            "parameters": self.parameters,
            "gmacs": self.gmacs,
            "gmacs_at": f"{self.gmacs_at[0]}x{self.gmacs_at[1]}",
            "config": dict(self.architecture),
            "recipe": self.recipe.to_dict(),
            "labels": self.labels,
            "weights": self.weights,
            "sha256": self.sha256,
            "size": self.size,
            "mirrors": list(self.mirrors),
            "log": self.log,
            "licenses": self.licenses.to_dict(),
        }


_SIZES = {"t": "tiny", "s": "small", "b": "base", "l": "large", "xl": "xlarge"}


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


def _spellings(backbone: str) -> set[str]:
    """How people write a backbone of the published tables, such as "Swin-T" or "ViT-B + MLN", without what is no letter or digit."""
    kind, _, size = backbone.lower().split(" ")[0].partition("-")
    return {_plain(backbone), _plain(kind + size), _plain(kind + _SIZES.get(size, size))}


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

    def _by_words(self, text: str) -> list[str]:
        """Names of the models that are meant by a short word: a backbone, such as "swin-t" or "convnext_small", or a part of a name."""
        wanted = re.sub("resnet", "r", _plain(text)).removeprefix("upernet")
        if not 3 <= len(wanted) <= 100:
            return []
        spelled = {name: _spellings(entry.backbone) for name, entry in self.entries.items()}
        exact = [name for name, words in spelled.items() if wanted in words]
        begun = [name for name, words in spelled.items() if any(word.startswith(wanted) for word in words)]
        return exact or begun or [name for name in self.entries if wanted in _plain(name)]

    def info(self, name: str) -> ModelEntry:
        """The entry of that name.

        Raises:
            ModelNotFoundError: no such name; the message has the nearest ones.
        """
        if name in self.entries:
            return self.entries[name]
        by_case = {known.lower(): known for known in self.entries}
        near = self._by_words(str(name))
        if not near:
            near = [by_case[known] for known in difflib.get_close_matches(str(name).lower(), by_case, n=3, cutoff=0.5)]
        names = worded("upernet_zoo.list_models()", "upernet-zoo list")
        hint = f"Did you mean {' or '.join(near[:3])}?" if near else f"The {len(self)} names: {names}."
        if len(near) > 3:
            hint += f" {len(near) - 3} more are like it: {names}."
        raise ModelNotFoundError(f"No model named {shown(name)} in {self.path}. {hint}")


def _file_name(url: str) -> str:
    return unquote(urlsplit(url).path).rsplit("/", 1)[-1]


class _Reader:
    """Looks values up in one entry and refuses with the entry's name, the key and what was expected."""

    def __init__(self, path: Path, owner: str, data: Any, allowed: tuple[str, ...] | None = None) -> None:
        self.path, self.owner = path, owner
        if not isinstance(data, Mapping):
            raise IndexFormatError(f"{path}: {owner}: expected a mapping, found {shown(data)}.")
        self.data = data
        for key in data:
            if allowed is not None and key not in allowed:
                raise IndexFormatError(f"{path}: {owner}: unknown key {shown(key)}; known keys are {', '.join(allowed)}.")

    def fail(self, key: str, expected: str, found: Any) -> NoReturn:
        what = "is missing" if found is None else f"is {shown(found)}"
        raise IndexFormatError(f"{self.path}: {self.owner}: key '{key}' {what}; expected {expected}.")

    def text(self, key: str, pattern: re.Pattern | None = None, expected: str = "text") -> str:
        value = self.data.get(key)
        if not isinstance(value, str) or not value or (pattern is not None and not pattern.fullmatch(value)):
            self.fail(key, expected, value)
        if not value.isprintable():
            self.fail(key, "text of one line without control characters", value)
        return value

    def number(self, key: str, expected: str = "a number of at least 0") -> float:
        value: Any = self.data.get(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1e9:
            self.fail(key, expected, value)
        return value

    def number_or_none(self, key: str) -> float | None:
        return None if self.data.get(key) is None else self.number(key, "a number of at least 0, or no such key")

    def url(self, key: str) -> str:
        return self.as_url(key, self.data.get(key))

    def url_or_none(self, key: str) -> str | None:
        return None if self.data.get(key) is None else self.url(key)

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

    def urls(self, key: str) -> list[str]:
        """A list of URLs, empty where there is no such key."""
        value = self.data.get(key, [])
        if not isinstance(value, list):
            self.fail(key, "a list of URLs", value)
        return [self.as_url(key, url) for url in value]

    def inner(self, key: str, allowed: tuple[str, ...] | None = None) -> _Reader:
        if self.data.get(key) is None:
            self.fail(key, "a mapping", None)
        return _Reader(self.path, f"{self.owner}, {key}", self.data[key], allowed)


@dataclass(frozen=True)
class _Collection:
    """What the models of a collection have in common.

    Attributes:
        hub_org: Hugging Face organization that holds copies, or None.
        mirrors: base URLs.
        code: what is stated of the code.
        weights: what is stated of the weights at places of a pattern.
        backbones: what is stated of the pretrained backbones of models whose name fits one of the patterns.
    """

    hub_org: str | None
    mirrors: tuple[str, ...]
    code: Terms
    weights: tuple[tuple[str, Statement], ...]
    backbones: tuple[tuple[tuple[str, ...], Terms], ...]

    def licenses_of(self, entry: ModelEntry) -> Licenses:
        """What is stated of a model, with the terms of the data that it names."""
        places = dict.fromkeys(_host(url) for url in (entry.weights, *entry.mirrors))
        places |= dict.fromkeys(copy.reference.partition("@")[0] for copy in entry.copies)
        stated = Terms("weights", tuple(licenses.fitting(place, self.weights) for place in places))
        started = next((terms for names, terms in self.backbones if any(fnmatch.fnmatchcase(entry.name, name) for name in names)), None)
        return Licenses(self.code, stated, started, licenses.of_data(entry.dataset), licenses.of_data(entry.pretraining))


def _host(url: str) -> str:
    return urlsplit(url).hostname or "file"


def _pixels(reader: _Reader, key: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", reader.text(key, expected="height and width such as '512x1024'"))
    if not match:
        reader.fail(key, "height and width such as '512x1024'", reader.data[key])
    return int(match[1]), int(match[2])


def _count(reader: _Reader, key: str) -> int | None:
    value = reader.data.get(key)
    if value is not None and (type(value) is not int or not 0 < value < 1 << 40):
        reader.fail(key, "a whole number, or no such key", value)
    return value


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


def _mirrors(reader: _Reader, collection: _Collection, weights: str) -> tuple[str, ...]:
    """URLs of the file on the mirrors of the collection that hold it, then those of the model's own."""
    absent = [url.rstrip("/") for url in reader.urls("Absent From")]
    for base in absent:
        if base not in collection.mirrors:
            reader.fail("Absent From", f"a list of mirrors of the collection ({', '.join(collection.mirrors) or 'it has none'})", base)
    path = urlsplit(weights).path
    return (*(base + path for base in collection.mirrors if base not in absent), *reader.urls("Mirrors"))


def _copies(reader: _Reader) -> tuple[PublishedCopy, ...]:
    """References, and mappings of `Reference` and `SHA256` where the digest of the weights there is known."""
    value, found = reader.data.get("Copies", []), []
    if not isinstance(value, list):
        reader.fail("Copies", "a list of references such as hf-hub:organization/repository@revision", value)
    for item in value:
        data = {"Reference": item} if isinstance(item, str) else item
        one = _Reader(reader.path, f"{reader.owner}, Copies", data, ("Reference", "SHA256"))
        digest = one.text("SHA256", re.compile("[0-9a-f]{64}"), "64 hex digits, as quoted text") if "SHA256" in data else None
        found.append(PublishedCopy(one.text("Reference", _COPY, "a reference such as hf-hub:organization/repository@revision"), digest))
    return tuple(found)


def _items(reader: _Reader, key: str, allowed: tuple[str, ...]) -> list[_Reader]:
    """A list of mappings, empty where there is no such key."""
    value = reader.data.get(key, [])
    if not isinstance(value, list):
        reader.fail(key, f"a list of mappings with the keys {', '.join(allowed)}", value)
    return [_Reader(reader.path, f"{reader.owner}, {key}", item, allowed) for item in value]


def _statement(reader: _Reader, by: str) -> Statement:
    """What is stated; without `License`, that nothing is."""
    license, note = (reader.text(key) if key in reader.data else None for key in ("License", "Note"))
    return Statement(reader.text(by), license, reader.url("Source"), note or "")


def _stated(reader: _Reader) -> tuple[Terms, tuple[tuple[str, Statement], ...], tuple[tuple[tuple[str, ...], Terms], ...]]:
    """`Licenses` of a collection: of its code, of weights by place, of pretrained backbones by the names of models."""
    if "Licenses" not in reader.data:
        return Terms("code"), (), ()
    inner = reader.inner("Licenses", ("Code", "Weights", "Backbones"))
    keys = ("License", "Source", "Note")
    code = Terms("code", tuple(_statement(item, "By") for item in _items(inner, "Code", ("By", *keys))))
    weights = tuple((item.text("At"), _statement(item, "At")) for item in _items(inner, "Weights", ("At", *keys)))
    backbones = []
    for item in _items(inner, "Backbones", ("Name", "Models", "Stated")):
        names = item.data.get("Models")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            item.fail("Models", "a list of names of models, with wildcards", names)
        stated = tuple(_statement(one, "By") for one in _items(item, "Stated", ("By", *keys)))
        backbones.append((tuple(names), Terms(item.text("Name"), stated)))
    return code, weights, tuple(backbones)


def _size(reader: _Reader) -> int | None:
    size = reader.data.get("Size")
    if size is not None and (type(size) is not int or not 0 < size <= _LARGEST):
        reader.fail("Size", "a whole number of bytes, or no such key", size)
    return size


def _entry(path: Path, number: int, data: Any, collections: Mapping[str, _Collection]) -> ModelEntry:
    name = data.get("Name") if isinstance(data, Mapping) else None
    reader = _Reader(path, f"model {shown(name)}" if name else f"model number {number + 1}", data, _MODEL_KEYS)
    name = reader.text("Name", _NAME, "a plain name of letters, digits, '_', '-' and '.'")
    collection = collections.get(reader.text("In Collection"))
    if collection is None:
        reader.fail("In Collection", f"one of the collections ({', '.join(collections)})", reader.data["In Collection"])
    meta = reader.inner("Metadata", _METADATA_KEYS)
    dataset, metrics = _metrics(reader)
    config = reader.inner("Config")
    label_set = _label_set(config)
    architecture = {k: v for k, v in config.data.items() if k not in (*_RECIPE_KEYS, "labels")}
    try:
        UPerNetConfig.check(architecture, f"{path}: {config.owner}")
        recipe = Recipe.from_dict({k: v for k, v in config.data.items() if k in _RECIPE_KEYS}, f"{path}: {config.owner}")
    except ConfigError as error:
        raise IndexFormatError(str(error)) from None
    if architecture["num_classes"] != len(label_set):
        config.fail("num_classes", f"{len(label_set)}, the classes of label set '{label_set.name}'", architecture["num_classes"])
    in_channels = architecture["backbone"].get("in_channels", BackboneConfig.in_channels)
    if in_channels != len(recipe.mean):
        config.fail("backbone", f"'in_channels' as many as mean and std have ({len(recipe.mean)})", in_channels)
    weights = reader.url("Weights")
    if not _FILE_NAME.fullmatch(_file_name(weights)):
        reader.fail("Weights", "a URL that ends in a plain file name", weights)
    schedule = meta.number("Lr schd")
    if not isinstance(schedule, int):
        meta.fail("Lr schd", "a whole number of iterations", schedule)
    entry = ModelEntry(
        name=name,
        method=meta.text("Method"),
        backbone=meta.text("Backbone"),
        crop_size=_pixels(meta, "Crop Size"),
        schedule=schedule,
        memory_gb=meta.number_or_none("Training Memory (GB)"),
        fps=meta.number_or_none("Inference Speed (fps)"),
        dataset=dataset,
        metrics=metrics,
        architecture=MappingProxyType(architecture),
        recipe=recipe,
        label_set=label_set,
        weights=weights,
        sha256=reader.text("SHA256", re.compile("[0-9a-fA-F]{8,64}"), "8 to 64 hex digits, as quoted text").lower(),
        fingerprint=reader.text("Fingerprint", re.compile("[0-9a-f]{64}"), "64 hex digits") if "Fingerprint" in reader.data else None,
        mirrors=_mirrors(reader, collection, weights),
        log=reader.url_or_none("Training Log"),
        hub_org=collection.hub_org,
        size=_size(reader),
        pretraining=meta.text("Pretraining") if "Pretraining" in meta.data else None,
        collection=reader.text("In Collection"),
        copies=_copies(reader),
        parameters=_count(meta, "Parameters"),
        gmacs=meta.number_or_none("GMACs"),
        gmacs_at=_pixels(meta, "GMACs At") if "GMACs At" in meta.data else ModelEntry.gmacs_at,
    )
    return dataclasses.replace(entry, licenses=collection.licenses_of(entry))


def _collections(path: Path, data: Any) -> dict[str, _Collection]:
    """The collections by name."""
    if not isinstance(data, list) or not data:
        raise IndexFormatError(f"{path}: key 'Collections' must be a list of at least one collection with a Name.")
    found = {}
    for number, item in enumerate(data):
        reader = _Reader(path, f"collection number {number + 1}", item)
        org = reader.text("Hub Organization", _HUB_ORG, "an organization's plain name") if "Hub Organization" in item else None
        mirrors = reader.urls("Mirrors")
        for url in mirrors:
            if set("?#") & set(url):  # the path of the weights comes behind it
                reader.fail("Mirrors", "base URLs without a query or a fragment", url)
        found[reader.text("Name")] = _Collection(org, tuple(url.rstrip("/") for url in mirrors), *_stated(reader))
    return found


def _line(event: Any) -> int:
    return int(event.start_mark.line) + 1


def _check_structure(path: Path, events: Iterable[Any]) -> None:
    """Refuse what PyYAML would take in silence (a key that is there twice), or crash on (lists in lists without end)."""
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
                        raise IndexFormatError(f"{path}: line {_line(event)}: key {shown(event.value)} is there twice; keep one.")
                    keys.add(event.value)
            if isinstance(event, yaml.CollectionStartEvent):
                around.append([set(), True] if isinstance(event, yaml.MappingStartEvent) else None)
                if len(around) > _DEEPEST:
                    raise IndexFormatError(f"{path}: line {_line(event)}: nested more than {_DEEPEST} deep; an index needs 6.")


def load(path: str | os.PathLike) -> Index:
    """Read and validate an index file.

    Raises:
        MissingFileError: no such file.
        IndexFormatError: not YAML, or an entry that is not valid: the message names the entry, the key and what was expected.
    """
    import yaml

    path = expanded(path)
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
    collections = _collections(path, data.get("Collections"))
    entries: dict[str, ModelEntry] = {}
    files: dict[str, ModelEntry] = {}
    for number, item in enumerate(data["Models"]):
        entry = _entry(path, number, item, collections)
        if entry.name in entries:
            raise IndexFormatError(f"{path}: model {entry.name!r}: the Name is there twice.")
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
        return expanded(named)
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
    pretrained_on: str | None = None,
    collection: str | None = None,
    license: str | None = None,
    sort: str | None = None,
    index: Index | None = None,
) -> list[str]:
    """Names of the models that fit, in the index's order, or best first by a metric.

    Args:
        pattern: shell wildcards, such as `*r101*`; case does not matter.
        dataset: label set ("cityscapes", "ade20k", "voc12aug") or the published name of the data set; case does not matter.
        backbone: as published, such as "R-101", or shell wildcards, such as "swin*"; case does not matter.
        pretrained_on: what the backbone was trained on before, such as "ImageNet-22K"; case does not matter.
        collection: such as "OpenMMLab"; case does not matter.
        license: one that somebody states of a part of the model (`ModelEntry.licenses`: code, weights, pretrained backbone, data), such as
            "CC-BY-NC-4.0", or shell wildcards, such as `*non-commercial*`; "not stated"; case does not matter.
        sort: a metric ("mIoU", "mIoU(ms+flip)"), "fps", "memory_gb", "parameters", "gmacs" or "schedule"; highest first, models without
            the number last.
        index: another index; by default the one in use.

    Raises:
        ArgumentError: a dataset, backbone, pretraining, collection, license or sort key that no model has.

    Examples:
        >>> import upernet_zoo as uz
        >>> uz.list_models("*r101*", dataset="cityscapes", sort="mIoU")[:2]
        ['upernet_r101_769x769_80k_cityscapes', 'upernet_r101_512x1024_80k_cityscapes']
        >>> len(uz.list_models(collection="OpenMMLab"))
        60
    """
    entries = list((index or default()).values())
    chosen = [e for e in entries if fnmatch.fnmatchcase(e.name.lower(), pattern.lower())]
    filters: tuple[tuple[str, str | None, Callable[[ModelEntry], tuple[str | None, ...]]], ...] = (
        ("dataset", dataset, lambda e: (e.labels, e.dataset)),
        ("backbone", backbone, lambda e: (e.backbone,)),
        ("pretraining", pretrained_on, lambda e: (e.pretraining,)),
        ("collection", collection, lambda e: (e.collection,)),
        ("license", license, lambda e: e.licenses.names()),
    )
    for what, wanted, values_of in filters:
        if wanted is not None:
            there = list(dict.fromkeys(value for e in entries for value in values_of(e) if value))
            like = (same_name(wanted, there) or wanted).lower()
            fitting = {e.name for e in entries if any(value and fnmatch.fnmatchcase(value.lower(), like) for value in values_of(e))}
            if not fitting:
                raise ArgumentError(f"No model has {what} {wanted!r}; there are {', '.join(there)}.{did_you_mean(wanted, there)}")
            chosen = [e for e in chosen if e.name in fitting]
    if sort is not None:
        others = ("fps", "memory_gb", "parameters", "gmacs", "schedule")
        numbers = [{**e.metrics, **{key: getattr(e, key) for key in others}} for e in entries]
        keys = list(dict.fromkeys(key for n in numbers for key in n))
        key = same_name(sort, keys)
        if key is None:
            raise ArgumentError(f"Cannot sort by {sort!r}; there are {', '.join(keys)}.{did_you_mean(sort, keys)}")
        values = {e.name: n.get(key) for e, n in zip(entries, numbers)}

        def highest_first(entry: ModelEntry) -> float:
            value = values[entry.name]
            return float("inf") if value is None else -value

        chosen.sort(key=highest_first)
    return [e.name for e in chosen]


def model_info(name: str, *, index: Index | None = None) -> ModelEntry:
    """The index's entry of a model.

    Raises:
        ModelNotFoundError: no such name; the message has the nearest ones.

    Examples:
        >>> import upernet_zoo as uz
        >>> uz.model_info("upernet_r101_512x512_160k_ade20k").metrics["mIoU"]
        43.82
    """
    return (index or default()).info(name)
