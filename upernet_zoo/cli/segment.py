"""upernet-zoo predict, demo: pictures in, label maps and overlays out."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from .. import files, progress, tables
from ..errors import ArgumentError, ImageError, MissingFileError
from ..failures import Failures
from ..files import expanded
from ..images import frames, reading
from . import jobs
from .common import Commands, add_model, add_views, loading, require_model, views

if TYPE_CHECKING:
    from ..segmenter import Segmenter

__all__ = ["register"]

_DEMO_OUT = "upernet_zoo_demo.png"


def _inside(folder: Path, out: Path) -> list[Path]:
    """The pictures in a folder and those below it, without what an earlier run wrote.

    Raises:
        ImageError: there are none.
    """
    from ..images.save import is_own

    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in reading.SUFFIXES and not p.name.startswith("._") and p.is_file())
    if folder.resolve() in out.resolve().parents:
        pictures = [p for p in found if out.resolve() not in p.resolve().parents]
    else:
        pictures = [p for p in found if not (p.name.endswith(jobs.PICTURES) and is_own(p))]
    if not pictures:
        videos = sum(p.suffix.lower() in frames.SUFFIXES for p in folder.rglob("*"))
        hint = f" It has {videos} video{'s' * (videos > 1)}: give each by its own name." if videos else ""
        raise ImageError(f"{folder}: no pictures in this folder; looked for names ending in {', '.join(reading.SUFFIXES)}.{hint}")
    return pictures


def _jobs(args: argparse.Namespace) -> list[jobs.Job]:
    """What is to be done with each file, and with each picture in each folder.

    Raises:
        ArgumentError: two would be written to the same files, or one over another.
        ExistingFileError: files that are there already would be replaced, and none of ours.
        ImageError, MissingFileError: an input that is no picture or folder.
    """
    out = Path(args.out)
    found: list[jobs.Job] = []
    for item in map(Path, args.pictures):
        if reading.is_url(item):
            raise ImageError(f"{item} is a URL, and pictures are read from files. Download it, and give the file's path.")
        if item.is_dir():
            found += [jobs.job(p, out / p.relative_to(item).with_suffix(""), args) for p in _inside(item, out)]
        elif item.exists():
            found.append(jobs.job(item, out / item.stem, args))
        else:
            raise MissingFileError(f"{item}: no such picture or folder. Check the path.")
    taken: dict[Path, Path] = {}
    resolved = {job.source.resolve() for job in found}
    for job in found:
        for path in job.written:
            if path in taken:
                raise ArgumentError(f"{taken[path]} and {job.source} would both be written to {path}. Give another --out for one of them.")
            taken[path] = job.source
            if path.resolve() in resolved:
                raise ArgumentError(f"{path} is one of the pictures to segment and would be overwritten. Give another --out.")
            files.require_replaceable(path, job.is_own, args.overwrite)
    return found


def _print_areas(areas: Mapping[str, float]) -> None:
    rows = [[name.strip(), f"{area:.1%}"] for name, area in areas.items()]
    print(tables.plain(("class", "area"), rows, left=1))


def _predict(args: argparse.Namespace) -> int:
    _require_options(args)  # before a model is loaded
    found = _jobs(args)
    jobs.require_fitting(found, args)
    require_model(args)
    from ..distributed import default_device, is_first_process, is_shared
    from ..segmenter import Segmenter

    jobs.require_packages(found)
    options = {"own_size": args.own_size, **views(args), **loading(args)}
    if args.tile is not None:
        options["stride"] = None  # of the tiles
    options["device"] = args.device or ("cpu" if args.backend == "onnxruntime" else default_device())
    segmenter = Segmenter(args.model, optimize=None if args.optimize else False, backend=args.backend, **options)
    if len(found) == 1 and not is_shared():
        failures = Failures()
        with failures.survived(found[0].source):
            _print_areas(found[0].run(segmenter, args, progress.on_terminal(), ""))
            print(f"wrote {' and '.join(map(str, found[0].written))}")
    else:
        failures = _run_all(segmenter, found, args)
    if failures and is_first_process():
        print("upernet-zoo:", failures.report(len(found)), file=sys.stderr)
        return 1  # the first process alone: when one fails, torchrun ends the others, and the first may not have printed this
    return 0


def _run_all(segmenter: Segmenter, found: list[jobs.Job], args: argparse.Namespace) -> Failures:
    """Do each job once, in one of the processes; the failures of all.

    What an earlier run of the same model and settings has written is left as it is, so a run that was killed goes on.
    """
    from ..distributed import exchange, process_group

    with process_group(segmenter.device) as (rank, processes):
        found = exchange(found, processes)[0]  # one list, whatever a process that began first has written since
        run = jobs.run_digest(segmenter, args)
        failures, kept = Failures(), 0
        for job in progress.bar(found[rank::processes], unit="picture", show=rank == 0):
            if not args.overwrite and job.is_done(run):
                kept += 1
                continue
            with failures.survived(job.source):
                job.run(segmenter, args, False, run)
        everyone = exchange((failures.found, kept), processes)
    wrong = {name: message for errors, _ in everyone for name, message in errors.items()}
    failures.found = {str(job.source): wrong[str(job.source)] for job in found if str(job.source) in wrong}
    if rank == 0:
        before = sum(one for _, one in everyone)
        already = f", {before} of them by an earlier run" if before else ""
        print(f"{len(found) - len(failures)} of {len(found)} pictures segmented into {args.out}{already}")
    return failures


def _require_options(args: argparse.Namespace) -> None:
    """Refuse values out of their range, options of rasters without --tile, and those that --tile stands for.

    Raises:
        ArgumentError: names them.
    """
    if not 0 <= args.alpha <= 1:
        raise ArgumentError(f"--alpha {args.alpha}: an opacity is from 0 to 1.")
    if args.every is not None and args.every < 1:
        raise ArgumentError(f"--every {args.every}: give a number from 1, such as 10 for each tenth frame.")
    if args.tile is None:
        given = [
            name for name, value in (("--bands", args.bands), ("--value-range", args.value_range), ("--geojson", args.geojson)) if value
        ]
        if given:
            raise ArgumentError(f"{given[0]} is for rasters, which are segmented in tiles: give --tile 1024 with it.")
    elif args.crop is not None or args.mode is not None:
        raise ArgumentError("--tile 1024 stands for --own-size --mode slide --crop 1024x1024. Leave out --mode and --crop.")


def _numbers(text: str) -> tuple[float, ...]:
    """The type of an argument such as 4,3,2."""
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError("give numbers with commas between them, such as 4,3,2") from None
    return tuple(int(number) if number.is_integer() else number for number in found)


def _demo(args: argparse.Namespace) -> int:
    from ..images.save import is_own, picture_format

    if args.seed < 0:  # refuse before torch is imported
        raise ArgumentError(f"--seed {args.seed}: unseen scenes are numbered from 0 up.")
    out = expanded(args.out)
    picture_format(out)
    files.require_replaceable(out, is_own, args.overwrite)
    from ..demo.run import run

    _print_areas(run(out, args.seed, say=print, overwrite=args.overwrite).areas())
    return 0


def register(commands: Commands) -> None:
    """Add the commands of this module."""
    sub = commands.add("predict", _predict, "segment pictures: label maps (indexed PNG) and overlays; videos; rasters")
    add_model(sub)
    sub.add_argument("pictures", nargs="+", help="picture or video files, or folders of pictures")
    sub.add_argument("--out", default="predictions", metavar="FOLDER", help="where to write (default: predictions)")
    add_views(sub)
    sub.add_argument(
        "--own-size",
        action="store_true",
        help="leave pictures at their own size, in place of the recipe's scale",
    )
    sub.add_argument(
        "--no-optimize", dest="optimize", action="store_false", help="run the plain modules, not the fused model, on the CPU too"
    )
    sub.add_argument(
        "--backend",
        choices=("torch", "onnxruntime"),
        default="torch",
        help="what computes the network (default: torch); onnxruntime, on the CPU, exports the model the first time, about a minute",
    )
    sub.add_argument("--alpha", type=float, default=0.5, metavar="X", help="opacity of the overlay, 0 to 1 (default: 0.5)")

    sub.add_argument("--overwrite", action="store_true", help="replace files that are there and that no earlier run wrote")
    sub.add_argument("--every", type=int, metavar="N", help="of a video, take every n-th frame (default: 1)")
    group = sub.add_argument_group("rasters", "georeferenced files of any size, read and written in parts (needs rasterio)")
    group.add_argument(
        "--tile",
        type=int,
        metavar="N",
        help="take the files as rasters: run those larger than NxN pixels at their own size in overlapping windows of NxN, and write a "
        "GeoTIFF of labels in the same place, NAME_labels.tif (--stride HxW: in place of two thirds of N)",
    )
    group.add_argument(
        "--bands",
        type=_numbers,
        metavar="R,G,B",
        help="numbers, from 1, of the bands that are red, green and blue (default: those named so, else 1,2,3)",
    )
    group.add_argument(
        "--value-range",
        type=_numbers,
        metavar="LOW,HIGH",
        help="values that become 0 and 255, where they are not uint8 (below zero: --value-range=-30,0)",
    )
    group.add_argument("--geojson", action="store_true", help="also write a polygon of each region of a class, NAME_polygons.geojson")

    sub = commands.add("demo", _demo, "segment a drawn street scene with the small demo model in the package; no network")
    sub.add_argument("--out", default=_DEMO_OUT, metavar="FILE", help=f"the picture to write, .png or .jpg (default: {_DEMO_OUT})")
    sub.add_argument("--seed", type=int, default=0, metavar="N", help="which unseen scene, from 0 up (default: 0)")
    sub.add_argument("--overwrite", action="store_true", help="replace a file that is there and that the demo did not write")
