"""upernet-zoo page: the zoo as one page for a browser, without torch."""

from __future__ import annotations

import argparse

from .. import index
from .common import Commands

__all__ = ["register"]


def _page(args: argparse.Namespace) -> int:
    from ..web import page

    entries = index.default()
    weights = page.read_weights(args.weights) if args.weights else None
    folder = page.results_folder() if args.results is None else args.results
    measured = page.read_results(folder, entries.values())
    path = page.write(args.out, page.render(entries, weights=weights, measured=measured))
    print(f"{path}: {len(entries)} models, {len(measured)} of them with measured seconds")
    return 0


def register(commands: Commands) -> None:
    """Add the command of this module."""
    sub = commands.add("page", _page, "write the zoo as one HTML page, which needs no server and no network")
    sub.add_argument("out", metavar="OUT", help="a file whose name ends in .html, or a folder for its index.html")
    sub.add_argument(
        "--weights", metavar="FILE", help="weights.json of tools/check_published.py: where the weights were last seen (else: not checked)"
    )
    sub.add_argument(
        "--results", metavar="FOLDER", help="with inference_*.json of benchmarks/inference.py (default: what came with the package)"
    )
