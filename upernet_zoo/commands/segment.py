"""upernet-zoo predict, demo: pictures in, label maps and overlays out."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .. import tables
from ..errors import ArgumentError, ImageError, MissingFileError
from .common import Commands, add_model, add_views, load_model, views

PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")


def _pictures(inputs: list[str], out: Path) -> list[tuple[Path, Path]]:
    """(picture, output path without suffix) of each file, and of each picture in each folder; refused where two would be one."""
    found: list[tuple[Path, Path]] = []
    for item in map(Path, inputs):
        if item.is_dir():
            inside = sorted(p for p in item.rglob("*") if p.suffix.lower() in PICTURES and p.is_file())
            if out.resolve() != item.resolve():  # what an earlier run wrote into a folder inside this one is no input
                inside = [p for p in inside if out.resolve() not in p.resolve().parents]
            if not inside:
                raise ImageError(f"{item}: no pictures in this folder; looked for names ending in {', '.join(PICTURES)}.")
            found += [(p, out / p.relative_to(item).with_suffix("")) for p in inside]
        elif item.is_file():
            found.append((item, out / item.stem))
        else:
            raise MissingFileError(f"{item}: no such picture or folder. Check the path.")
    taken: dict[Path, Path] = {}
    for picture, target in found:
        if target in taken:
            raise ArgumentError(f"{taken[target]} and {picture} would both be written to {target}_*. Give another --out for one of them.")
        taken[target] = picture
    inputs = {picture.resolve() for picture, _ in found}
    for _, target in found:
        for written in (target.with_name(target.name + "_labels.png"), target.with_name(target.name + "_overlay.png")):
            if written.resolve() in inputs:
                raise ArgumentError(f"{written} is one of the pictures to segment and would be overwritten. Give another --out.")
    return found


def _print_areas(segmentation) -> None:
    rows = [[name.strip(), f"{area:.1%}"] for name, area in segmentation.areas().items()]
    print(tables.plain(("class", "area"), rows, left=1))


def _predict(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    if not 0 <= args.alpha <= 1:  # refuse before a model is loaded
        raise ArgumentError(f"--alpha {args.alpha}: an opacity is from 0 to 1.")
    pictures = _pictures(args.pictures, Path(args.out))
    from ..segmenter import Segmenter, save_picture

    segmenter = Segmenter(load_model(args, fused=args.optimize), optimize=None if args.optimize else False, **views(args))
    failed = []
    bar = tqdm(pictures, unit="picture", disable=len(pictures) == 1)
    for picture, target in bar:
        try:
            segmentation = segmenter(picture)
        except (ImageError, MissingFileError) as error:
            failed.append(str(error))
            continue
        labels = segmentation.save(target.with_name(target.name + "_labels.png"))
        overlay = target.with_name(target.name + "_overlay.png")
        save_picture(segmentation.overlay(args.alpha), overlay)
        if len(pictures) == 1:
            _print_areas(segmentation)
            print(f"wrote {labels} and {overlay}")
    if len(pictures) > 1:
        print(f"{len(pictures) - len(failed)} of {len(pictures)} pictures segmented into {args.out}")
    for message in failed:
        print(f"upernet-zoo: {message}", file=sys.stderr)
    return 1 if failed else 0


def _demo(args: argparse.Namespace) -> int:
    from ..demo.run import run

    _print_areas(run(Path(args.out), args.seed, say=print))
    return 0


def register(commands: Commands) -> None:
    sub = commands.add("predict", _predict, "segment pictures: label maps (indexed PNG) and overlays")
    add_model(sub)
    sub.add_argument("pictures", nargs="+", help="picture files, or folders of them")
    sub.add_argument("--out", default="predictions", metavar="FOLDER", help="where to write (default: predictions)")
    add_views(sub)
    sub.add_argument(
        "--no-optimize", dest="optimize", action="store_false", help="run the plain modules, not their fused twin, on the CPU too"
    )
    sub.add_argument("--alpha", type=float, default=0.5, help="opacity of the overlay, 0 to 1")

    sub = commands.add("demo", _demo, "segment a drawn street scene with the small demo model in the package; no network")
    sub.add_argument("--out", default="upernet_zoo_demo.png", metavar="FILE", help="the picture to write")
    sub.add_argument("--seed", type=int, default=0, help="which unseen scene, from 0 up")
