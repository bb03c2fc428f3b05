"""The zoo as one page for a browser: rendered from an index, measured times and the report of a check of the weights. No torch.

The page is one file that asks for nothing else, so it works from `file://` and from any web server. Style and script stand in it, and its
own policy allows them alone by their digests. All text from data is escaped; a link is made of an http or https URL alone.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import urlsplit

from .. import index
from ..errors import ArgumentError, ExistingFileError, MissingFileError, shown
from ..files import expanded, write_atomically
from ..licenses import Statement, Terms
from ..version import __version__, install_line

__all__ = ["Measured", "Seen", "read_results", "read_weights", "render", "results_folder", "write"]

_HERE = Path(__file__).resolve().parent
_GENERATOR = "upernet_zoo page"  # what marks a file as ours to replace
_COLORS = 8
_NONE = "-"
_KINDS = {"resnet": "ResNet", "swin": "Swin", "convnext": "ConvNeXt", "vit": "ViT, DeiT", "beit": "BEiT, MAE", "twins": "Twins"}
_SHAPES = ("circle", "square", "diamond", "triangle")
# key in the rows' data, heading, whether it is a number, which way is sorted first
_COLUMNS = (
    ("name", "Model", False, "ascending"),
    ("dataset", "Data set", False, "ascending"),
    ("backbone", "Backbone", False, "ascending"),
    ("crop", "Crop", True, "descending"),
    ("miou", "mIoU", True, "descending"),
    ("ms", "ms+flip", True, "descending"),
    ("gmacs", "GMACs", True, "ascending"),
    ("params", "Params (M)", True, "ascending"),
    ("seconds", "CPU (s)", True, "ascending"),
    ("weights", "License", False, "ascending"),
    ("seen", "Weights", False, "ascending"),
)
_STATES = {  # of weights.json, docs/weights.md
    "good": ("seen", "good"),
    "wrong": ("other bytes", "bad"),
    "absent": ("not found", "bad"),
    "broken": ("broken", "bad"),
    "unchecked": ("not checked", ""),
}


@dataclass(frozen=True)
class Seen:
    """What a check of a model's weights found (`weights.json` of tools/check_published.py).

    Attributes:
        state: "good", "wrong", "absent", "broken" or "unchecked".
        date: of the check, ISO 8601.
        source: the URL that the file came from, or "cache"; None where none came.
        detail: what went wrong.
    """

    state: str
    date: str
    source: str | None = None
    detail: str = ""


@dataclass(frozen=True)
class Measured:
    """Seconds of one forward pass of the fused model, and where they were measured."""

    seconds: float
    where: str


def results_folder() -> Path:
    """Where the measured times are that came with the package (in a checkout: the top level's)."""
    package = _HERE.parent
    inside = package / "results"
    return inside if inside.is_dir() else package.parent / "results"


def _json_of(path: Path, what: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingFileError(f"No {what} at {path}. Check the path.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ArgumentError(f"{path}: cannot be read as {what}: {shown(str(error), 'text')}.") from None


def read_weights(path: str | os.PathLike) -> dict[str, Seen]:
    """The report of a check of the weights, by model.

    Args:
        path: of `weights.json`, which tools/check_published.py writes and the weekly workflow keeps.

    Raises:
        MissingFileError: no such file.
        ArgumentError: it is no such report.
    """
    path = expanded(path)
    data = _json_of(path, "a report of tools/check_published.py (weights.json)")
    try:
        if data["format"] != 1:
            raise ArgumentError(f"{path}: a report of format {shown(data['format'])}; this version reads format 1. Update upernet_zoo.")
        found = {}
        for record in data["models"]:
            name, state, date, source, detail = (record[key] for key in ("name", "state", "date", "source", "detail"))
            if state not in _STATES or not all(isinstance(text, str) for text in (name, date, source or "", detail)):
                raise ValueError(f"the record of {shown(name)}")
            found[name] = Seen(state, date, source, detail)
        return found
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, ArgumentError):
            raise
        raise ArgumentError(f"{path}: no report of tools/check_published.py: {shown(str(error), 'text')}. Check the path.") from None


def read_results(folder: str | os.PathLike, entries: Iterable[index.ModelEntry]) -> dict[str, Measured]:
    """Measured times of the models, by name: those of benchmarks/inference.py at the size that a model's multiplications are counted at.

    A time holds for every model of the same architecture: weights have no part in it.

    Args:
        folder: with files `inference_*.json`.
        entries: the models.

    Raises:
        MissingFileError: no such folder.
        ArgumentError: a file that is none of benchmarks/inference.py.
    """
    folder = expanded(folder)
    if not folder.is_dir():
        raise MissingFileError(f"No folder of results at {folder}. Check the path.")
    entries = list(entries)
    found: dict[str, Measured] = {}
    for path in sorted(folder.glob("inference_*.json")):
        data = _json_of(path, "results of benchmarks/inference.py")
        try:
            machine, torch, day = data["machine"], data["versions"]["torch"], str(data["date"])[:10]
            where = f"{machine['cpu']}, {machine['cores']} cores, torch {torch}, {day}"
            for entry in entries:
                pixels = f"1x3x{entry.gmacs_at[0]}x{entry.gmacs_at[1]}"
                systems = data["results"].get(pixels, {}).get("systems", {})
                if "fused" in systems and _measures(data["settings"], entry, entries):
                    found.setdefault(entry.name, Measured(float(systems["fused"]["median_s"]), where))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ArgumentError(f"{path}: no results of benchmarks/inference.py: {shown(str(error), 'text')}. Check the folder.") from None
    return found


def _measures(settings: Mapping[str, Any], entry: index.ModelEntry, entries: Sequence[index.ModelEntry]) -> bool:
    """Whether the architecture of a measurement, a model's or a ResNet's of a depth, is that of an entry."""
    if "model" in settings:
        return any(other.name == settings["model"] and other.architecture == entry.architecture for other in entries)
    resnet = {"backbone": {"kind": "resnet", "depth": settings["depth"]}, "num_classes": settings["classes"]}
    return dict(entry.architecture) == {**resnet, "align_corners": settings["align_corners"]}


def _e(text: object) -> str:
    """Text as HTML, in an element or in a quoted attribute; what steers a terminal or the direction of text is shown as its code."""
    escaped = "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in str(text))
    return html.escape(escaped, quote=True)


def _link(url: str | None, text: str) -> str:
    """A link, where it is one of the web; else the text alone."""
    if url is None or not re.match(r"https?://", url):
        return _e(text)
    return f'<a href="{_e(url)}" rel="noopener noreferrer">{_e(text)}</a>'


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or url
    except ValueError:  # no URL, though it begins as one
        return url


def _number(value: float | None, form: str) -> str:
    return _NONE if value is None else form.format(value)


def _seconds(value: float) -> str:
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}" if 0 < value < 100 else f"{value:.0f}"


def _anchor(name: str) -> str:
    return "terms-" + re.sub(r"[^a-z0-9]+", "-", name.lower())


def _statement(one: Statement) -> str:
    note = f" <span>{_e(one.note)}</span>" if one.note else ""
    return f"<li><strong>{_e(one.license or 'not stated')}</strong>: {_link(one.source, one.by)}.{note}</li>"


def _stated(terms: Terms) -> str:
    lines = "".join(map(_statement, terms.stated)) or "<li><strong>not stated</strong></li>"
    split = f'<li class="split">The sources disagree: {_e(" and ".join(terms.licenses))}.</li>' if terms.disagree else ""
    return f"<ul>{lines}{split}</ul>"


def _snippet(text: str, what: str) -> str:
    button = f'<button type="button" class="copy" aria-label="Copy {_e(what)}">Copy</button>'
    return f'<div class="snippet"><pre><code>{_e(text)}</code></pre>{button}</div>'


def snippet(name: str) -> str:
    """The lines of Python that a row has to copy."""
    called = json.dumps(name, ensure_ascii=False)
    return f'import upernet_zoo as uz\n\nsegmenter = uz.Segmenter({called})\nsegmenter("picture.jpg").overlay().save("overlay.png")'


def _cells(entry: index.ModelEntry, measured: Measured | None, seen: Seen | None, color: int) -> dict[str, str]:
    """HTML of each column."""
    metrics, weights = entry.metrics, entry.licenses.weights
    split = f'<span class="split">{_e(weights)}<span class="hidden"> (the sources disagree)</span></span>'
    breakable = _e(entry.name).replace("_", "_<wbr>")
    return {
        "name": f'<div class="line"><span class="dot k{color}" aria-hidden="true"></span>'
        f'<button type="button" class="open" aria-expanded="false"><span>{breakable}</span></button>'
        f'<button type="button" class="copy quick" aria-label="Copy the Python lines of {_e(entry.name)}">Copy</button></div>',
        "dataset": _e(entry.dataset),
        "backbone": _e(entry.backbone),
        "crop": _e("x".join(map(str, entry.crop_size))),
        "miou": _number(metrics.get("mIoU"), "{:.2f}"),
        "ms": _number(metrics.get("mIoU(ms+flip)"), "{:.2f}"),
        "gmacs": _number(entry.gmacs, "{:.1f}"),
        "params": _number(None if entry.parameters is None else entry.parameters / 1e6, "{:.1f}"),
        "seconds": _NONE if measured is None else _seconds(measured.seconds),
        "weights": split if weights.disagree else _e(weights),
        "seen": _badge(seen),
    }


def _badge(seen: Seen | None) -> str:
    if seen is None:
        return '<span class="badge">not checked</span>'
    words, style = _STATES[seen.state]
    return f'<span class="badge {style}">{words} {_e(seen.date[:10])}</span>'


def _details(entry: index.ModelEntry, measured: Measured | None, seen: Seen | None) -> str:
    """What a row opens: how to use the model, its weights, its licenses."""
    use = [
        "<h3>Python</h3>" + _snippet(snippet(entry.name), f"the Python lines of {entry.name}"),
        "<h3>Command line</h3>" + _snippet(f"upernet-zoo predict {entry.name} picture.jpg", f"the command of {entry.name}"),
    ]
    if measured is not None:
        use.append(
            f"<p>{_seconds(measured.seconds)} s for one picture of {entry.gmacs_at[0]}x{entry.gmacs_at[1]}: {_e(measured.where)}.</p>"
        )
    if seen is None:
        found = "not checked"
    elif seen.state == "good":
        found = f"{_link(seen.source, _host(seen.source or ''))}, {_e(seen.date)}"
    else:
        found = f"{_STATES[seen.state][0]}, {_e(seen.date)}: {_e(shown(seen.detail, 'text'))}"
    published = f"<li>published as {_link(entry.weights, entry.file_name)}"
    if index.standing(entry.weights) is index.Standing.LAPSED:
        published += " (the domain lapsed: upernet_zoo takes only bytes of the known digest from it)"
    weights = [f"<li>last seen: {found}</li>", f"{published}</li>", f"<li>SHA-256: <code>{_e(entry.sha256)}</code></li>"]
    if (living := entry.link(entry.weights)) and living != entry.weights:
        weights.insert(1, f"<li>{_link(living, 'the same file at a living host')}</li>")
    if entry.log and (log := entry.link(entry.log)):
        weights.append(f"<li>{_link(log, 'training log')}</li>")
    known = entry.licenses
    backbone = f"<h3>Pretrained backbone: {_e(known.backbone.name)}</h3>{_stated(known.backbone)}" if known.backbone else ""
    data = "".join(f'<li><a href="#{_anchor(terms.name)}">{_e(terms.name)}</a>: {_e(terms)}</li>' for terms in known.data)
    return (
        f'<div class="columns"><div>{"".join(use)}</div><div><h3>Weights</h3><ul>{"".join(weights)}</ul>'
        f"<h3>Data: training, then pretraining of the backbone</h3><ul>{data}</ul></div>"
        f"<div><h3>License of the weights</h3>{_stated(known.weights)}{backbone}</div></div>"
    )


def _row(entry: index.ModelEntry, measured: Measured | None, seen: Seen | None, color: int, shape: int) -> str:
    """A model: a body of the table of its own, with its row and the one that it opens."""
    metrics = entry.metrics
    state = "" if seen is None else f"{list(_STATES).index(seen.state)} {seen.date}"
    words = [entry.dataset, entry.backbone, entry.method, entry.pretraining or "", entry.collection, "x".join(map(str, entry.crop_size))]
    data = {
        "name": entry.name,
        "dataset": entry.dataset,
        "backbone": entry.backbone,
        "kind": entry.architecture["backbone"]["kind"],
        "color": color,
        "shape": shape,
        "crop": entry.crop_size[0] * entry.crop_size[1],
        "miou": metrics.get("mIoU", ""),
        "ms": metrics.get("mIoU(ms+flip)", ""),
        "gmacs": "" if entry.gmacs is None else entry.gmacs,
        "at": "x".join(map(str, entry.gmacs_at)),
        "params": "" if entry.parameters is None else entry.parameters / 1e6,
        "seconds": "" if measured is None else measured.seconds,
        "weights": entry.licenses.weights,
        "seen": state,
        "licenses": "\n".join(entry.licenses.names()),
        "words": " ".join(words),
    }
    attributes = "".join(f' data-{key}="{_e(value)}"' for key, value in data.items())
    cells = _cells(entry, measured, seen, color)
    columns = []
    for key, heading, number, _ in _COLUMNS:
        style = ("number" if number else "name" if key == "name" else "text") + (" none" if cells[key] == _NONE else "")
        columns.append(f'<td class="{style}" data-label="{_e(heading)}">{cells[key]}</td>')
    more = f'<tr class="more" hidden><td colspan="{len(_COLUMNS)}">{_details(entry, measured, seen)}</td></tr>'
    return f"<tbody{attributes}><tr>{''.join(columns)}</tr>{more}</tbody>"


def _chips(name: str, values: Mapping[str, str]) -> str:
    """Check boxes: value -> HTML of the label."""
    return "".join(f'<label><input type="checkbox" name="{name}" value="{_e(value)}">{label}</label>' for value, label in values.items())


def _facts(models: Sequence[index.ModelEntry], datasets: Sequence[str], kinds: Sequence[str]) -> str:
    """Large numbers, with the best result on the data set that most models are for."""
    facts = {"models": len(models), "data sets": len(datasets), "kinds of backbone": len(kinds)}
    best = max((entry.metrics.get("mIoU", 0.0) for entry in models if entry.dataset == datasets[0]), default=0.0) if datasets else 0.0
    values = {name: str(value) for name, value in facts.items()} | ({f"best mIoU on {datasets[0]}": f"{best:.2f}"} if best else {})
    return "".join(f'<div class="k{n}"><dt>{_e(name)}</dt><dd>{value}</dd></div>' for n, (name, value) in enumerate(values.items()))


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def render(entries: index.Index, *, weights: Mapping[str, Seen] | None = None, measured: Mapping[str, Measured] | None = None) -> str:
    """The page's text.

    Args:
        entries: the models.
        weights: what a check of their weights found, as `read_weights` gives it; without it the page says "not checked".
        measured: seconds, as `read_results` gives them.
    """
    weights, measured = weights or {}, measured or {}
    models = list(entries.values())
    kinds = list(dict.fromkeys(entry.architecture["backbone"]["kind"] for entry in models))
    methods = list(dict.fromkeys(entry.method for entry in models))
    counts = {dataset: sum(entry.dataset == dataset for entry in models) for dataset in dict.fromkeys(entry.dataset for entry in models)}
    datasets = sorted(counts, key=lambda dataset: -counts[dataset])
    models.sort(key=lambda entry: (datasets.index(entry.dataset), -entry.metrics.get("mIoU", -1.0)))
    colors = {kind: min(number, _COLORS - 1) for number, kind in enumerate(kinds)}
    rows = []
    for entry in models:
        color, shape = colors[entry.architecture["backbone"]["kind"]], methods.index(entry.method)
        rows.append(_row(entry, measured.get(entry.name), weights.get(entry.name), color, shape))
    heads = [
        f'<th scope="col" data-key="{key}" data-first="{first}"{" class=" + chr(34) + "number" + chr(34) if number else ""}>'
        f'<button type="button">{_e(heading)}</button></th>'
        for key, heading, number, first in _COLUMNS
    ]
    orders = ['<option value="">data set, then mIoU</option>']
    orders += [f'<option value="{key} {first}">{_e(heading)}</option>' for key, heading, _, first in _COLUMNS]
    names = sorted({name for entry in models for name in entry.licenses.names()}, key=str.lower)
    data = dict.fromkeys(terms for entry in models for terms in entry.licenses.data)
    backbones = dict.fromkeys(entry.licenses.backbone for entry in models if entry.licenses.backbone)
    code = dict.fromkeys(entry.licenses.code for entry in models)
    articles = [f'<article class="card" id="{_anchor(terms.name)}"><h3>{_e(terms.name)}</h3>{_stated(terms)}</article>' for terms in data]
    articles += [f'<article class="card"><h3>Original code</h3>{_stated(terms)}</article>' for terms in code]
    articles += [f'<article class="card"><h3>Backbone: {_e(terms.name)}</h3>{_stated(terms)}</article>' for terms in backbones]
    style, script = ((_HERE / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    checked = max((seen.date for seen in weights.values()), default="")
    method_shapes = ", ".join(f"{_SHAPES[number % len(_SHAPES)]} {_e(method)}" for number, method in enumerate(methods))
    listed = " and ".join(filter(None, [", ".join(datasets[:-1]), datasets[-1]])) if datasets else "no data set"
    values = {
        "generator": f"{_GENERATOR} {__version__}",
        "policy": "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; "
        f"style-src {_digest(style)}; script-src {_digest(script)}",
        "description": _e(f"{len(models)} pretrained UPerNet models: accuracy, cost, licenses, and where their weights are."),
        "style": style,
        "script": script,
        "version": _e(__version__),
        "lead": _e(f"{len(models)} models for {listed}: verified weights, no mmcv to build, and the same answer as the original code."),
        "facts": _facts(models, datasets, kinds),
        "install": _e(install_line()),
        "license_options": "".join(f'<option value="{_e(name)}">{_e(name)}</option>' for name in names),
        "order_options": "".join(orders),
        "dataset_chips": _chips("dataset", {dataset: _e(dataset) for dataset in datasets}),
        "kind_chips": _chips(
            "kind", {kind: f'<span class="dot k{colors[kind]}" aria-hidden="true"></span>{_e(_KINDS.get(kind, kind))}' for kind in kinds}
        ),
        "shapes": f"Shape: {method_shapes}." if len(methods) > 1 else "",
        "measures": "GMACs are multiplications of one picture of 512x512 pixels (BEiT takes 640x640 alone), counted without the auxiliary "
        f"head; seconds are of the fused model, measured for {len(measured)} of {len(models)} models.",
        "count": f"{len(models)} models",
        "heads": "".join(heads),
        "rows": "\n".join(rows),
        "terms": f'<div class="grid">{"".join(articles)}</div>',
        "footer": _e(
            f"Rendered by upernet_zoo {__version__} from its model index. Published numbers are those of the original tables. "
            + (f"Weights last checked {checked}." if checked else "Weights: not checked.")
        ),
    }
    return Template((_HERE / "page.html").read_text(encoding="utf-8")).substitute(values)


def write(out: str | os.PathLike, text: str) -> Path:
    """Write the page, whole or not at all.

    Args:
        out: a file whose name ends in ".html", or a folder, in which it is `index.html`.
        text: the page, as `render` gives it.

    Returns:
        The file.

    Raises:
        ExistingFileError: another file is there that is no page of ours.
        WriteError: it cannot be written.
    """
    out = expanded(out)
    path = out if out.suffix.lower() in (".html", ".htm") else out / "index.html"
    if path.exists():
        try:
            start = path.read_bytes()[:4096].decode(errors="replace")
        except OSError:
            start = ""
        if f'name="generator" content="{_GENERATOR}' not in start:
            raise ExistingFileError(f"{path} is there already, and is no page that upernet-zoo wrote. Move it away, or give another name.")
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8") and None)
    return path
