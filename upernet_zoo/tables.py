"""Entries of the index as a table to read, as Markdown, CSV or JSON."""

from __future__ import annotations

import csv
import io
import json
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .errors import shown
from .licenses import NOT_STATED

if TYPE_CHECKING:
    from .index import ModelEntry

__all__ = ["FORMATS", "decimals", "fields", "markdown", "name_list", "plain", "render", "render_licenses", "render_one"]

FORMATS = ("table", "json", "csv", "md")

# heading, key in ModelEntry.to_dict(), how a number is written (None: with one decimal, or two where it has them)
_COLUMNS = (
    ("Model", "name", "{}"),
    ("Data set", "dataset", "{}"),
    ("Backbone", "backbone", "{}"),
    ("Crop", "crop_size", "{}"),
    ("Iterations", "schedule", "{}"),
    ("Mem (GB)", "memory_gb", None),
    ("fps", "fps", "{:.2f}"),
    ("mIoU", "mIoU", "{:.2f}"),
    ("ms+flip", "mIoU(ms+flip)", "{:.2f}"),
)
_LICENSE_COLUMNS = ("Model", "Backbone", "Weights", "Started from", "Data")
_WIDEST = 120  # characters of a line of prose
_TEXT_COLUMNS = 4  # the first ones are flush left, numbers flush right


def decimals(value: float) -> str:
    """A number with one decimal, or with two where the second is not zero."""
    text = f"{value:.2f}"
    return text.removesuffix("0") if text.endswith("0") else text


def _cells(entries: Iterable[ModelEntry]) -> list[list[str]]:
    rows = []
    for entry in entries:
        data = entry.to_dict()
        rows.append(
            ["-" if data.get(key) is None else (form.format(data[key]) if form else decimals(data[key])) for _, key, form in _COLUMNS]
        )
    return rows


def _aligned(headings: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> list[list[str]]:
    widths = [max(map(len, column)) for column in zip(headings, *rows)]
    return [[cell.ljust(w) if i < left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths))] for row in (headings, *rows)]


def plain(headings: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> str:
    """Rows of text under headings, columns aligned; the first `left` columns flush left, the others flush right. Cells are made safe."""
    rows = [[shown(cell, "text") for cell in row] for row in rows]
    head, *body = ("  ".join(row).rstrip() for row in _aligned(headings, rows, left))
    return "\n".join((head, "-" * max(map(len, (head, *body))), *body))


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> str:
    """The same as a Markdown table."""
    head, *body = _aligned(headings, rows, left)
    rule = ["-" * len(cell) if i < left else "-" * (len(cell) - 1) + ":" for i, cell in enumerate(head)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *body))


def render(entries: Sequence[ModelEntry], format: str) -> str:
    """Entries in one of `FORMATS`; a number that was not published is "-" in a table, null in JSON and empty in CSV."""
    if format == "json":
        return json.dumps([entry.to_dict() for entry in entries], indent=2)
    if format == "csv":
        keys = [key for _, key, _ in _COLUMNS] + ["labels", "weights", "sha256", "log"]
        return _csv([keys, *([entry.to_dict().get(key) for key in keys] for entry in entries)])
    headings, rows = [heading for heading, _, _ in _COLUMNS], _cells(entries)
    if format == "md":
        return markdown(headings, [[shown(cell, "markdown") for cell in row] for row in rows], _TEXT_COLUMNS)
    return plain(headings, rows, _TEXT_COLUMNS)


def _csv(rows: Iterable[Sequence[Any]]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue().rstrip("\n")


def render_licenses(entries: Sequence[ModelEntry], format: str) -> str:
    """What is stated of each model's weights, of the pretrained backbone it started from and of its data, in one of `FORMATS`."""
    if format == "json":
        return json.dumps([{"name": entry.name, "licenses": entry.licenses.to_dict()} for entry in entries], indent=2)
    rows = []
    for entry in entries:
        known = entry.licenses
        data = "; ".join(str(terms) if terms.licenses else f"{terms.name}: {NOT_STATED}" for terms in known.data) or NOT_STATED
        rows.append([entry.name, entry.backbone, str(known.weights), str(known.backbone or NOT_STATED), data])
    if format == "csv":
        return _csv([_LICENSE_COLUMNS, *rows])
    if format == "md":
        return markdown(_LICENSE_COLUMNS, [[shown(cell, "markdown") for cell in row] for row in rows], len(_LICENSE_COLUMNS))
    return plain(_LICENSE_COLUMNS, rows, len(_LICENSE_COLUMNS))


def render_one(entry: ModelEntry, format: str) -> str:
    """One entry: every field on a line of its own in a table, one object in JSON, a row in CSV and Markdown."""
    if format == "json":
        return json.dumps(entry.to_dict(), indent=2)
    if format != "table":
        return render([entry], format)
    stated = {key: [part for line in lines for part in _wrapped(line)] for key, lines in entry.licenses.lines().items()}
    return fields({key: value for key, value in entry.to_dict().items() if key != "licenses"} | stated)


def _wrapped(line: str) -> list[str]:
    return textwrap.wrap(line, _WIDEST, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def fields(data: Mapping[str, Any]) -> str:
    """Each value on a line of its own after its key; one of a list on the lines below it."""
    lines = []
    for key, value in data.items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{inner}={one}" for inner, one in value.items())
        many = value if isinstance(value, (list, tuple)) else [value]
        text = ("\n" + " " * 16).join(shown("-" if one in (None, "") else str(one), "text") for one in many)
        lines.append(f"{key:<16}{text or '-'}")
    return "\n".join(lines)


def name_list(keys: Iterable[str], limit: int = 6) -> str:
    """Names with commas between them, at most `limit`, and how many more there are."""
    keys = list(keys)
    return ", ".join(keys[:limit]) + (f" and {len(keys) - limit} more" if len(keys) > limit else "")
