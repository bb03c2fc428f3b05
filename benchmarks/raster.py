"""Peak memory and time of GeoTIFFs in tiles of 1024x1024 with the demo model, and whether the result lies where the raster lies.

    python benchmarks/raster.py [--threads 2] [--sides 4000 8000 20000]

Each raster is made first, in a temporary folder: blocks of random colors, in tiles, compressed, with overviews. Each is segmented by a
process of its own. Peak is the kernel's high-water mark of resident memory (VmHWM), above that of the process with the model loaded. The
result is read back with rasterio: size, CRS, transform and overviews must be the raster's. Writes results/raster.json.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from machine import memory_and_time, record

TILE = 1024


def make(path: Path, side: int) -> None:
    """A raster of that side, written in rows of blocks."""
    import numpy as np
    import rasterio
    from rasterio.transform import Affine
    from rasterio.windows import Window

    random = np.random.default_rng(0)
    place = {"crs": "EPSG:32633", "transform": Affine(0.25, 0, 400000, 0, -0.25, 5000000)}
    size = {"height": side, "width": side, "count": 3, "dtype": "uint8"}
    blocks = {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "deflate", "photometric": "RGB"}
    with rasterio.open(path, "w", driver="GTiff", **size, **place, **blocks) as out:
        for top in range(0, side, 512):
            height = min(512, side - top)
            coarse = random.integers(0, 256, (3, -(-height // 32), -(-side // 32)), dtype=np.uint8)
            out.write(coarse.repeat(32, 1).repeat(32, 2)[:, :height, :side], window=Window(0, top, side, height))
    with rasterio.open(path, "r+") as out:
        out.build_overviews([2, 4, 8])


def child(folder: Path, side: int, threads: int) -> None:
    import rasterio
    import torch

    import upernet_zoo as uz

    torch.set_num_threads(threads)
    segmenter = uz.Segmenter("demo")
    uz.segment_raster  # noqa: B018 (imported before the memory is read)
    with memory_and_time(side**2) as measured:
        uz.segment_raster(segmenter, folder / "raster.tif", folder / "labels.tif", tile=TILE, progress=sys.stderr.isatty())
    with rasterio.open(folder / "raster.tif") as source, rasterio.open(folder / "labels.tif") as found:
        for key in ("shape", "crs", "transform"):
            assert getattr(source, key) == getattr(found, key), key
        assert source.overviews(1) == found.overviews(1)
    print(json.dumps({**measured, "file_MB": round((folder / "labels.tif").stat().st_size / 1e6, 1)}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sides", type=int, nargs="+", default=(4000, 8000, 20000))
    parser.add_argument("--no-record", action="store_true", help="only show")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(Path(args.child), args.sides[0], args.threads)
        return
    results = {}
    for side in args.sides:
        with tempfile.TemporaryDirectory() as folder:
            make(Path(folder, "raster.tif"), side)
            line = [sys.executable, __file__, "--threads", str(args.threads), "--child", folder, "--sides", str(side)]
            done = subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True)
        results[f"{side}x{side}"] = json.loads(done.stdout)
        print(side, results[f"{side}x{side}"], flush=True)
    if not args.no_record:
        record("raster", results, threads=args.threads, tile=TILE)


if __name__ == "__main__":
    main()
