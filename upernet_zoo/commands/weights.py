"""upernet-zoo download, where, verify, cache, mirror, push: the files behind the names."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from .. import index, sources, tables
from ..errors import ArgumentError, IntegrityError, UPerNetZooError
from ..transfer import size_text
from .common import Commands, add_model, load_model

_MADE_HERE = ("converted", "optimised")  # kinds of files that can be made again
_LEFTOVERS = (".partial", ".partial.state", ".incoming", ".tmp")
_AT_WORK = 3600.0  # seconds; a temporary file that is younger may be some process's, which holds no lock for it


def _add_names(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"models {what}; wildcards such as '*r101*' too")
    parser.add_argument("--all", action="store_true", help="every model of the list")
    parser.add_argument("--dataset", help="the models of one data set: cityscapes, ade20k or voc12aug")


def _chosen(args: argparse.Namespace) -> list[index.ModelEntry]:
    """The entries of NAME ..., --all and --dataset; none twice, in the index's order.

    Raises:
        ArgumentError: nothing was named.
        ModelNotFoundError: a name that no model has.
    """
    if not (args.names or args.all or args.dataset):
        raise ArgumentError("Name one or more models (upernet-zoo list shows them), or give --all or --dataset.")
    names = set(index.list_models(dataset=args.dataset)) if args.all or args.dataset else set()
    for name in args.names:
        names.update(index.list_models(name) or [index.model_info(name).name])
    return [index.model_info(name) for name in index.list_models() if name in names]


def _each(entries: Iterable[index.ModelEntry], work: Callable[[index.ModelEntry], list[str]], headings: tuple[str, ...], left: int) -> int:
    """Do the work for each entry, whatever becomes of the others; then a table of all, and what went wrong."""
    rows, failed = [], []
    for entry in entries:
        try:
            rows.append(work(entry))
        except UPerNetZooError as error:
            rows.append([entry.name, "failed", *("-" for _ in headings[2:])])
            failed.append(error)
    print(tables.plain(headings, rows, left))
    for error in failed:
        print(f"upernet-zoo: {error}", file=sys.stderr)
    return 1 if failed else 0


# download, where


def _download(args: argparse.Namespace) -> int:
    total = [0, 0]

    def work(entry: index.ModelEntry) -> list[str]:
        found = sources.fetch(entry, mirrors=args.mirror)
        total[0] += 1
        total[1] += found.size
        local = found.source in ("cache", "torch hub cache")
        return [entry.name, "there already" if local else "downloaded", found.source, str(found.path), size_text(found.size)]

    entries = _chosen(args)
    status = _each(entries, work, ("Model", "State", "Source", "File", "Size"), left=4)
    print(f"{total[0]} of {len(entries)} checkpoints are on this machine and verified, {size_text(total[1])}")
    return status


def _where(args: argparse.Namespace) -> int:
    entry = index.model_info(args.model)
    plan, digest = sources.plan(entry, mirrors=args.mirror), sources.expected_digest(entry)
    rows = [[str(number), source.kind, source.state, source.location] for number, source in enumerate(plan, 1)]
    print(f"{entry.name}: {entry.file_name}, SHA-256 {digest}" + ("" if len(digest) == 64 else "..."))
    print(tables.plain(("", "Source", "State", "Location"), rows, left=4))
    return 0


# verify, cache


def _kept(folder: str) -> list[Path]:
    """The files in a folder of the cache, without receipts, leftovers and what was kept aside."""
    found = sorted((sources.cache_root() / folder).glob("*"))
    return [p for p in found if p.is_file() and not p.name.startswith(".") and _kind(p) in ("checkpoint", *_MADE_HERE)]


def _kind(path: Path) -> str:
    """What a file in the cache is."""
    if path.parent.name == "locks":
        return "lock"
    if path.name.endswith(_LEFTOVERS) or ".hub" in path.parts:
        return "unfinished"
    if ".bad-" in path.name:
        return "kept aside"
    if path.name.endswith(".json"):
        return "receipt"
    if path.name.endswith("-fused.safetensors"):
        return "optimised"
    return {"checkpoints": "checkpoint", "converted": "converted"}.get(path.parent.name, "other")


def _verify(args: argparse.Namespace) -> int:
    by_file = {entry.file_name: entry for entry in index.default().values()}
    if args.names or args.all or args.dataset:
        entries = _chosen(args)
        paths = [path for entry in entries for path in _files_of(entry)]
        missing = [entry for entry in entries if not any(p.name == entry.file_name for p in paths)]
    else:
        paths, missing = [*_kept("checkpoints"), *_kept("converted")], []
    rows, bad = [], 0
    for path in paths:
        try:
            state = _check(path, by_file.get(path.name), args.deep)
        except UPerNetZooError as error:
            bad += 1
            state = "DAMAGED" if isinstance(error, IntegrityError) else "cannot be read"
            if state == "DAMAGED" and sources.cache_root() in path.parents:
                with contextlib.suppress(OSError):
                    os.utime(path)  # with another mtime than its receipt's it is read in full when it is used next, and found out
            print(f"upernet-zoo: {error}", file=sys.stderr)
        rows.append([path.name, state, size_text(path.stat().st_size)])
    rows += [[entry.file_name, "not on this machine", "-"] for entry in missing]
    print(tables.plain(("File", "State", "Size"), rows, left=2) if rows else f"No checkpoints in {sources.cache_root()}.")
    if bad:
        print(f"upernet-zoo: {bad} of {len(paths)} files are damaged. The next use gets them again and keeps them aside.", file=sys.stderr)
    return 1 if bad or missing else 0


def _files_of(entry: index.ModelEntry) -> list[Path]:
    """The files on this machine that the library would use for a model."""
    converted = [path for path in _kept("converted") if path.name.startswith(f"{entry.name}-")]
    originals = [sources.cached_path(entry), sources.torch_hub_folder() / entry.file_name]
    return [path for path in (*originals, *converted) if path.is_file()]


def _check(path: Path, entry: index.ModelEntry | None, deep: bool) -> str:
    """How a file was found to be right.

    Raises:
        IntegrityError: it is not.
    """
    receipt = sources.read_receipt(path)
    if receipt is not None and not deep and sources.trusted(path):
        return "unchanged since it was verified"
    expected = receipt.sha256 if receipt is not None else sources.expected_digest(entry) if entry is not None else None
    if expected is None:
        return "unknown: no receipt, and no such file in the index"
    if _kind(path) in _MADE_HERE:
        found, _ = sources.file_digest(path)
        if found != expected:
            raise IntegrityError(f"{path}: SHA-256 {found[:16]}..., written with {expected[:16]}...; it is made again when it is needed.")
        return "verified"
    sources.verify_file(path, expected, what=entry.name if entry is not None else path.name)
    return "verified" if len(expected) == 64 else f"verified by {len(expected)} hex digits"


def _cached_files() -> Iterator[Path]:
    root = sources.cache_root()
    yield from sorted(path for path in root.rglob("*") if path.is_file() and _kind(path) not in ("lock", "other"))


def _cache(args: argparse.Namespace) -> int:
    files = list(_cached_files())
    if args.prune:
        return _prune(args, files)
    if args.names or args.all or args.dataset:
        raise ArgumentError("upernet-zoo cache takes NAME, --all and --dataset together with --prune only.")
    root, shown = sources.cache_root(), [path for path in files if _kind(path) != "receipt"]
    print(f"cache: {root}")
    if shown:
        print(tables.plain(("File", "Kind", "Size"), [[p.name, _kind(p), size_text(p.stat().st_size)] for p in shown], left=2))
    pins = sum(_kind(path) == "receipt" and path.parent.name == "checkpoints" for path in files)
    print(f"{len(shown)} files, {size_text(sum(path.stat().st_size for path in files))}; {pins} pinned digests")
    return 0


def _prune(args: argparse.Namespace, files: list[Path]) -> int:
    """Remove leftovers; and the files of the models named, but never the receipts of checkpoints: those pin the digests."""
    now = time.time()
    remove = [path for path in files if _kind(path) in ("unfinished", "kept aside")]
    remove = [path for path in remove if not path.name.endswith(".tmp") or now - path.stat().st_mtime > _AT_WORK]
    if args.names or args.all or args.dataset:
        folders = (sources.cache_root() / "checkpoints", sources.cache_root() / "converted")
        remove += [path for entry in _chosen(args) for path in _files_of(entry) if path.parent in folders]
    freed = 0
    for path in remove:
        owner = re.sub(r"\.(partial|partial\.state|incoming)$|\.bad-[0-9a-f]+$", "", path.name)
        with sources.lock(path.with_name(owner)):  # a process that is at work with it comes first
            if not path.exists():
                continue
            size = path.stat().st_size
            if _kind(path) in _MADE_HERE:
                sources.receipt_path(path).unlink(missing_ok=True)
            path.unlink()
        freed += size
        print(f"removed {path} ({size_text(size)})")
    print(f"{size_text(freed)} freed; the pinned digests stay")
    return 0


# mirror, push


def _mirror(args: argparse.Namespace) -> int:
    from ..mirror import mirror

    entries = _chosen(args)

    def work(entry: index.ModelEntry) -> list[str]:
        done = mirror(entry, args.target, dry_run=args.dry_run, private=args.private or None, mirrors=args.mirror)
        return [done.name, done.state, done.source, done.target, "-" if done.size is None else size_text(done.size)]

    status = _each(entries, work, ("Model", "State", "From", "To", "Size"), left=4)
    if not args.dry_run and not status:
        if args.target.startswith("hf-hub:"):
            print(f"Use it: export {sources.HUB_ENVIRONMENT}={args.target.removeprefix('hf-hub:')}")
        else:
            print(f"Use it: export {sources.MIRRORS_ENVIRONMENT}={Path(args.target).expanduser().absolute()} (or the URL it is served at)")
    return status


def _push(args: argparse.Namespace) -> int:
    url = load_model(args).push_to_hub(
        args.repository, private=args.private or None, revision=args.revision, commit_message=args.message, create_pr=args.create_pr
    )
    print(f"pushed: {url}")
    return 0


def register(commands: Commands) -> None:
    sub = commands.add("download", _download, "fetch and verify checkpoints ahead of their use")
    _add_names(sub, "to fetch")
    _add_mirror(sub)

    sub = commands.add("where", _where, "show each source of a model's checkpoint, in order, without asking the network")
    sub.add_argument("model")
    _add_mirror(sub)

    sub = commands.add("verify", _verify, "check the files in the cache against their digests")
    _add_names(sub, "to check (default: all that is in the cache)")
    sub.add_argument("--deep", action="store_true", help="read every byte, also where size and time have not changed")

    sub = commands.add("cache", _cache, "list what the cache holds, and remove it")
    sub.add_argument("--prune", action="store_true", help="remove what is unfinished or kept aside, and the files of the models named")
    _add_names(sub, "whose files to remove")

    sub = commands.add("mirror", _mirror, "copy checkpoints to a folder to be served, or to the Hugging Face Hub")
    sub.add_argument("target", help="a folder, or hf-hub:ORGANISATION (a repository for each model)")
    _add_names(sub, "to copy")
    _add_mirror(sub)
    sub.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    sub.add_argument("--private", action="store_true", help="make new repositories private")

    sub = commands.add("push", _push, "write a model to a repository on the Hugging Face Hub")
    add_model(sub)
    sub.set_defaults(device="cpu")
    sub.add_argument("repository", help="ORGANISATION/NAME, made if there is none; log in with hf auth login or HF_TOKEN")
    sub.add_argument("--private", action="store_true", help="make a new repository private")
    sub.add_argument("--revision", help="the branch to write to, made if there is none")
    sub.add_argument("--message", help="of the commit")
    sub.add_argument("--create-pr", action="store_true", help="propose it as a pull request")


def _add_mirror(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--mirror", action="append", default=[], metavar="URL", help="a further URL or folder to look in first")
