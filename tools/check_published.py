"""Check every published checkpoint file that can be had: digest, strict load, and a picture to look at.

    python tools/check_published.py --out published_check [NAME ...] [--picture street.jpg]

OUT/weights.json says what came of each model (its fields: docs/weights.md), OUT/weights.md is the same as a table, OUT/NAME.png is a
picture with the classes that the model sees (best.png that of the best model of ADE20K), and OUT/model_index.yml is the index in use with
the full SHA-256 and the size of every file that is good, ready to be committed. Digests of copies that the index lacks are printed in its
form, where all tensors of a copy are those of the good file. The exit status is 1 if a file is not good, other than one that no living
host is known to have.
"""

import argparse
import datetime
import enum
import json
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import upernet_zoo as uz
from upernet_zoo import copied, errors, files, index, tables
from upernet_zoo.hub import copies
from upernet_zoo.images.save import save_picture
from upernet_zoo.reference import Repository
from upernet_zoo.weights import cache, sources

FORMAT = 1  # of weights.json


class State(enum.StrEnum):
    """What was found; see docs/weights.md."""

    GOOD = "good"
    WRONG = "wrong"
    ABSENT = "absent"
    BROKEN = "broken"
    UNCHECKED = "unchecked"


@dataclass(frozen=True)
class Record:
    """What came of one model; see docs/weights.md."""

    name: str
    file: str
    state: State
    source: str | None
    size: int | None
    sha256: str | None
    date: str
    detail: str


def check(entry: index.ModelEntry, look: Callable[[uz.UPerNet], None]) -> Record:
    """Find the file of a model, read every byte of it, load it strictly, and have `look` use the model."""
    found = None
    try:
        found = sources.fetch(entry, progress=False)
        cache.verify_file(found.path, found.sha256, what=entry.name)  # a cached one is otherwise trusted by its receipt
        if entry.size not in (None, found.size):
            raise errors.IntegrityError(f"{entry.name}: {found.size} bytes have the right digest, and the index says {entry.size}.")
        look(uz.create_model(entry.name, progress=False))
        state, detail = State.GOOD, ""
    except errors.UPerNetZooError as error:
        state, detail = _state_of(error, found), str(error)
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    known = (None, None, None) if found is None or state == State.WRONG else (found.source, found.size, found.sha256)
    return Record(entry.name, entry.file_name, state, *known, date, detail)


def missing_digests(entry: index.ModelEntry) -> list[str]:
    """Lines of the index for the copies of a model whose digest it lacks; of one that cannot be had, or has other tensors, the cause."""
    lines, own = [], uz.create_model(entry.name, progress=False).state_dict()
    for published in entry.copies:
        if published.sha256 is not None:
            continue
        try:
            copy = copies.in_repository(Repository.parse(published.reference), progress=False)
            if copy is None:
                raise errors.CheckpointError(f"{published.reference}: in no format that is known.")
            found = copied.load(copy, entry)[0]
        except errors.UPerNetZooError as error:
            lines.append(f"# {error}")
            continue
        if "auxiliary_head" in {key.partition(".")[0] for key in own.keys() - found.state_dict().keys()}:
            lines.append(f"# {published.reference} has no auxiliary head")
        same = all(torch.equal(own[key], value) for key, value in found.state_dict().items())
        digest = found.origin["sha256"]
        row = f'- {{Reference: {published.reference}, SHA256: "{digest}"}}'
        lines.append(row if same else f"# {published.reference} ({digest}) has other tensors: no copy of this file")
    return lines


def _state_of(error: errors.UPerNetZooError, found: cache.Found | None) -> State:
    if isinstance(error, errors.IntegrityError):
        return State.WRONG
    if isinstance(error, (errors.OfflineError, errors.WriteError, errors.NotEnoughMemoryError)):
        return State.UNCHECKED
    return State.ABSENT if found is None else State.BROKEN


def completed(text: str, records: list[Record]) -> str:
    """An index file's text with the digests and sizes of the files that are good, and not another character changed."""
    good = {record.name: record for record in records if record.state == State.GOOD}
    lines, current = [], None
    for line in text.splitlines():
        if match := re.fullmatch(r"\s*-?\s*Name:\s*(\S+)\s*", line):
            current = good.get(match[1])
        key = re.match(r"(\s*)(SHA256|Size):", line)
        if current is None or not key:
            lines.append(line)
        elif key[2] == "SHA256":
            lines += [f'{key[1]}SHA256: "{current.sha256}"', f"{key[1]}Size: {current.size}"]
    return "\n".join(lines) + "\n"


def write(out: Path, records: list[Record]) -> None:
    """The report: weights.json, weights.md, model_index.yml.

    Raises:
        IndexFormatError: as `_write_index`; the other two are written.
    """
    report = {"format": FORMAT, "upernet_zoo": uz.__version__, "models": [asdict(record) for record in records]}
    rows = [
        [record.name, record.state, record.source or "-", str(record.size or "-"), record.sha256 or "-", record.date] for record in records
    ]
    table = tables.markdown(("Model", "State", "Source", "Size (bytes)", "SHA-256", "Date"), rows, left=3)
    details = "".join(f"\n{record.name}:\n\n```\n{record.detail}\n```\n" for record in records if record.detail)
    texts = {"weights.json": json.dumps(report, indent=1) + "\n", "weights.md": f"{table}\n{details}"}
    for name, text in texts.items():
        files.write_atomically(out / name, lambda temporary, text=text: temporary.write_text(text, encoding="utf-8") and None)
    files.write_atomically(out / "model_index.yml", lambda temporary: _write_index(temporary, records))


def _write_index(path: Path, records: list[Record]) -> None:
    """The completed index, read back: a digest under another model's name would be worse than none.

    Raises:
        IndexFormatError: the index in use is not written line by line, `Name` before `SHA256`, as the public one is.
    """
    now = index.default()
    path.write_text(completed(now.path.read_text(encoding="utf-8"), records), encoding="utf-8")
    good = {record.name: (record.sha256, record.size) for record in records if record.state == State.GOOD}
    wanted = {name: good.get(name, (entry.sha256, entry.size)) for name, entry in now.items()}
    if {name: (entry.sha256, entry.size) for name, entry in index.load(path).items()} != wanted:
        raise errors.IndexFormatError(f"{now.path}: its layout is not the public index's; take the digests from weights.json by hand.")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="models (default: all)")
    parser.add_argument("--out", type=Path, default=Path("published_check"))
    parser.add_argument("--picture", help="a picture to segment (default: a drawn street scene)")
    args = parser.parse_args(arguments)
    entries = [uz.model_info(name) for name in args.names or uz.list_models()]
    args.out.mkdir(parents=True, exist_ok=True)
    picture: Any = args.picture
    if picture is None:
        from upernet_zoo.demo import scenes

        picture = scenes.draw(0)[0]
    records, bad = [], False
    for entry in entries:

        def look(model: uz.UPerNet, name: str = entry.name) -> None:
            save_picture(uz.Segmenter(model)(picture).overlay(), args.out / f"{name}.png")

        record = check(entry, look)
        records.append(record)
        try:
            write(args.out, records)  # after each, so that a run that is cut says what it found
        except errors.IndexFormatError as error:
            print(error, file=sys.stderr)
            bad = True
        hopeless = not any(source.promising for source in sources.plan(entry))
        bad |= record.state != State.GOOD and not (record.state == State.ABSENT and hopeless)
        print(f"{record.name}: {record.state} {record.detail or record.sha256}", flush=True)
        if record.state == State.GOOD and (lines := missing_digests(entry)):
            print("\n".join((f"{record.name}: Copies:", *lines)), flush=True)
    # of ADE20K, whose classes are of everything
    good = {record.name for record in records if record.state == State.GOOD}
    best = max(
        (entry for entry in entries if entry.name in good and entry.dataset == "ADE20K"),
        key=lambda entry: entry.metrics.get("mIoU", 0),
        default=None,
    )
    if best is not None:
        shutil.copyfile(args.out / f"{best.name}.png", args.out / "best.png")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
