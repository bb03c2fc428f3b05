"""upernet-zoo download, where, verify, cache, mirror, push: the files behind the names."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable

from .. import files, index, tables
from ..errors import ArgumentError, UPerNetZooError
from ..files import size_text
from ..reference import Kind, Reference
from ..weights import cache, probe, sources
from .common import Commands, add_model, add_places, load_model, require_model

__all__ = ["register"]


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
        names.update(index.list_models(name) or [_of_the_list(name)])
    return [index.model_info(name) for name in index.list_models() if name in names]


def _of_the_list(text: str) -> str:
    """The name that a reference is; what has no file of the list behind it is refused."""
    reference = Reference.parse(text)
    if reference.kind is not Kind.NAME:
        raise ArgumentError(f"{text} is {reference.kind.value}. Here models go by names of the list (upernet-zoo list).")
    return reference.text


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
    for problem in failed:
        print(f"upernet-zoo: {problem}", file=sys.stderr)
    return 1 if failed else 0


# download, where


def _download(args: argparse.Namespace) -> int:
    total = [0, 0]

    def work(entry: index.ModelEntry) -> list[str]:
        found = sources.fetch(entry, mirrors=args.mirrors, cache_dir=args.cache_dir)
        total[0] += 1
        total[1] += found.size
        return [entry.name, "downloaded" if found.brought else "there already", found.source, str(found.path), size_text(found.size)]

    entries = _chosen(args)
    status = _each(entries, work, ("Model", "State", "Source", "File", "Size"), left=4)
    print(f"{total[0]} of {len(entries)} checkpoints are on this machine and verified, {size_text(total[1])}")
    return status


def _where(args: argparse.Namespace) -> int:
    entries = _chosen(args)
    if args.probe:
        return _probe(entries, args)
    for position, entry in enumerate(entries):
        plan = sources.plan(entry, mirrors=args.mirrors, cache_dir=args.cache_dir)
        digest = cache.expected_digest(entry, cache_dir=args.cache_dir)
        rows = [[str(number), source.kind.value, source.state_text, source.shown] for number, source in enumerate(plan, 1)]
        print("\n" * (position > 0) + _title(entry, digest))
        print(tables.plain(("", "Source", "State", "Location"), rows, left=4))
        for source in plan:
            if source.state is sources.State.FORGEABLE:
                print(f"Not asked: {sources.lapsed_note(source, digest)}.")
        if not any(source.promising for source in plan):
            print(f"{entry.name}: {sources.NO_LIVING_SOURCE}. A place that has it is asked with --mirror URL.")
    return 0


def _title(entry: index.ModelEntry, digest: str) -> str:
    return f"{entry.name}: {entry.file_name}, SHA-256 {digest}" + ("" if len(digest) == 64 else "...")


def _probe(entries: list[index.ModelEntry], args: argparse.Namespace) -> int:
    """Ask every source of the models; 1 if a model has none that answers with the file."""
    without = []
    answers = probe.probe(entries, mirrors=args.mirrors, cache_dir=args.cache_dir)
    for position, (entry, found) in enumerate(zip(entries, answers.values())):
        rows = [
            [one.source.kind.value, one.text, _number(one.size, "{}"), _number(one.seconds, "{:.2f}"), one.source.shown] for one in found
        ]
        print("\n" * (position > 0) + _title(entry, cache.expected_digest(entry, cache_dir=args.cache_dir)))
        print(tables.plain(("Source", "Answer", "Size (bytes)", "Seconds", "Location"), rows, left=5))
        if not any(one.answer is probe.Answer.THERE and one.source.kind is not sources.Kind.COPY for one in found):
            without.append(entry.name)
    for name in without:
        print(f"upernet-zoo: {name}: no source has the file. A further place is asked with --mirror URL.", file=sys.stderr)
    return 1 if without else 0


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


# verify, cache


def _verify(args: argparse.Namespace) -> int:
    named = args.names or args.all or args.dataset
    checked = cache.verify(_chosen(args) if named else None, deep=args.deep)
    for one in checked:
        if one.error is not None:
            print(f"upernet-zoo: {one.error}", file=sys.stderr)
    rows = [[one.path.name, one.text, "-" if one.size is None else size_text(one.size)] for one in checked]
    print(tables.plain(("File", "State", "Size"), rows, left=2) if rows else f"No checkpoints in {cache.cache_root()}.")
    bad = sum(one.error is not None for one in checked)
    there = [one for one in checked if one.state is not cache.State.ABSENT]
    if bad:
        print(f"upernet-zoo: {bad} of {len(there)} files are damaged. The next use gets them again and keeps them aside.", file=sys.stderr)
    return 1 if bad or len(there) < len(checked) else 0


def _cache(args: argparse.Namespace) -> int:
    named = args.names or args.all or args.dataset
    if args.prune:
        return _prune(_chosen(args) if named else [])
    if named:
        raise ArgumentError("upernet-zoo cache takes NAME, --all and --dataset together with --prune only.")
    held = cache.held()
    listed = [one for one in held if one.kind is not cache.Kind.RECEIPT]
    print(f"cache: {cache.cache_root()}")
    if listed:
        print(tables.plain(("File", "Kind", "Size"), [[one.path.name, one.kind.value, size_text(one.size)] for one in listed], left=2))
    pins = sum(one.kind is cache.Kind.RECEIPT and one.path.parent.name == "checkpoints" for one in held)
    print(f"{len(listed)} files, {size_text(sum(one.size for one in held))}; {pins} pinned digests")
    return 0


def _prune(entries: list[index.ModelEntry]) -> int:
    removed = cache.prune(entries)
    for one in removed:
        print(f"removed {one.path} ({size_text(one.size)})")
    print(f"{size_text(sum(one.size for one in removed))} freed; the pinned digests stay")
    return 0


# mirror, push


def _mirror(args: argparse.Namespace) -> int:
    from ..mirror import mirror

    entries = _chosen(args)

    def work(entry: index.ModelEntry) -> list[str]:
        done = mirror(
            entry, args.target, dry_run=args.dry_run, private=args.private or None, mirrors=args.mirrors, cache_dir=args.cache_dir
        )
        return [done.name, done.state, done.source, done.target, "-" if done.size is None else size_text(done.size)]

    status = _each(entries, work, ("Model", "State", "From", "To", "Size"), left=4)
    if not args.dry_run and not status:
        if args.target.startswith("hf-hub:"):
            print(f"Use it: export {sources.HUB_ENVIRONMENT}={args.target.removeprefix('hf-hub:')}")
        else:
            print(f"Use it: export {sources.MIRRORS_ENVIRONMENT}={files.expanded(args.target).absolute()} (or the URL it is served at)")
    return status


def _push(args: argparse.Namespace) -> int:
    require_model(args)
    url = load_model(args).push_to_hub(
        args.repository, private=args.private or None, revision=args.revision, commit_message=args.message, create_pr=args.create_pr
    )
    print(f"pushed: {url}")
    return 0


def register(commands: Commands) -> None:
    """Add the commands of this module."""
    sub = commands.add("download", _download, "fetch and verify checkpoints ahead of their use")
    _add_names(sub, "to fetch")
    add_places(sub)

    sub = commands.add("where", _where, "show each source of a model's checkpoint, in order, without asking the network")
    _add_names(sub, "to look for")
    sub.add_argument("--probe", action="store_true", help="ask every source whether it has the file, and of what size; fetch nothing")
    add_places(sub)

    sub = commands.add("verify", _verify, "check the files in the cache against their digests")
    _add_names(sub, "to check (default: all that is in the cache)")
    sub.add_argument("--deep", action="store_true", help="read every byte, also where size and time have not changed")

    sub = commands.add("cache", _cache, "list what the cache holds, and remove it")
    sub.add_argument(
        "--prune", action="store_true", help="remove what is unfinished, kept aside or of nameless models, and the files of those named"
    )
    _add_names(sub, "whose files to remove")

    sub = commands.add("mirror", _mirror, "copy checkpoints to a folder to be served, or to the Hugging Face Hub")
    sub.add_argument("target", help="a folder, or hf-hub:ORGANIZATION (a repository for each model)")
    _add_names(sub, "to copy")
    add_places(sub)
    sub.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    sub.add_argument("--private", action="store_true", help="make new repositories private")

    sub = commands.add("push", _push, "write a model to a repository on the Hugging Face Hub")
    add_model(sub, device=False)
    sub.add_argument("repository", help="ORGANIZATION/NAME, made if there is none; log in with hf auth login or HF_TOKEN")
    sub.add_argument("--private", action="store_true", help="make a new repository private")
    sub.add_argument("--revision", help="the branch to write to, made if there is none")
    sub.add_argument("--message", help="of the commit")
    sub.add_argument("--create-pr", action="store_true", help="propose it as a pull request")
