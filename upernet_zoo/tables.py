"""Entries of the index as a table to read, as Markdown, CSV or JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence

from .index import ModelEntry

FORMATS = ("table", "json", "csv", "md")

# heading, key in ModelEntry.to_dict(), how a number is written
_COLUMNS = (
    ("Model", "name", "{}"),
    ("Data set", "dataset", "{}"),
    ("Backbone", "backbone", "{}"),
    ("Crop", "crop_size", "{}"),
    ("Iterations", "schedule", "{}"),
    ("Mem (GB)", "memory_gb", "{:.1f}"),
    ("fps", "fps", "{:.2f}"),
    ("mIoU", "mIoU", "{:.2f}"),
    ("ms+flip", "mIoU(ms+flip)", "{:.2f}"),
)
_TEXT_COLUMNS = 4  # the first ones are flush left, numbers flush right


def _cells(entries: Iterable[ModelEntry]) -> list[list[str]]:
    rows = []
    for entry in entries:
        data = entry.to_dict()
        rows.append(["-" if data.get(key) is None else form.format(data[key]) for _, key, form in _COLUMNS])
    return rows


def _aligned(headings: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> list[list[str]]:
    widths = [max(map(len, column)) for column in zip(headings, *rows)]
    return [[cell.ljust(w) if i < left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths))] for row in (headings, *rows)]


def plain(headings: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> str:
    """Rows of text under headings, columns aligned; the first `left` columns flush left, the others flush right."""
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
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        keys = [key for _, key, _ in _COLUMNS] + ["labels", "weights", "sha256", "log"]
        writer.writerow(keys)
        writer.writerows([entry.to_dict().get(key) for key in keys] for entry in entries)
        return out.getvalue().rstrip("\n")
    return (markdown if format == "md" else plain)([h for h, _, _ in _COLUMNS], _cells(entries), _TEXT_COLUMNS)


def render_one(entry: ModelEntry, format: str) -> str:
    """One entry: every field on a line of its own in a table, one object in JSON, a row in CSV and Markdown."""
    if format == "json":
        return json.dumps(entry.to_dict(), indent=2)
    if format != "table":
        return render([entry], format)
    lines = []
    for key, value in entry.to_dict().items():
        if isinstance(value, dict):
            value = ", ".join(f"{k}={v}" for k, v in value.items())
        elif isinstance(value, list):
            value = ("\n" + " " * 16).join(map(str, value))
        lines.append(f"{key:<16}{'-' if value in (None, '') else value}")
    return "\n".join(lines)
