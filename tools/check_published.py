"""Check every published checkpoint file, for whoever has a network: digest, strict load, and a picture to look at.

    python tools/check_published.py --out published_check [NAME ...] [--picture street.jpg]

For each model the file is found or downloaded, its SHA-256 compared with the index, converted and loaded strictly, and run on a
picture. A table of full digests is written to OUT/digests.csv, an overlay for each model beside it.
"""

import argparse
import csv
import sys
from pathlib import Path

import upernet_zoo as uz
from upernet_zoo.segmenter import save_picture


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="models (default: all)")
    parser.add_argument("--out", type=Path, default=Path("published_check"))
    parser.add_argument("--picture", help="a picture to segment (default: a drawn street scene)")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    picture = args.picture
    if picture is None:
        from upernet_zoo.demo import scenes

        picture = scenes.draw(0)[0]
    failed = 0
    with open(args.out / "digests.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("model", "file", "sha256", "result"))
        for name in args.names or uz.list_models():
            entry = uz.model_info(name)
            try:
                model = uz.create_model(name)
                segmentation = uz.Segmenter(model)(picture)
                save_picture(segmentation.overlay(), args.out / f"{name}.png")
                digest, result = model.origin["sha256"], "good"
            except uz.UPerNetZooError as error:
                digest, result = "", str(error)
                failed += 1
            print(f"{name}: {result} {digest}", flush=True)
            table.writerow((name, entry.file_name, digest, result))
            file.flush()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
