"""Write the README's model tables from model_index.yml. With --check only compare, and exit with 1 if they differ.

The tables stand between the two marks `<!-- models: begin -->` and `<!-- models: end -->`.
"""

import argparse
import sys
from pathlib import Path

from upernet_zoo import index, tables

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- models: begin -->", "<!-- models: end -->"
HEADINGS = ("Model", "Backbone", "Crop", "Iterations", "Mem (GB)", "fps", "mIoU", "mIoU(ms+flip)", "Download")


def rendered(entries: index.Index) -> str:
    """One Markdown table for each data set, in the index's order."""
    parts = []
    for dataset in dict.fromkeys(entry.dataset for entry in entries.values()):
        rows = []
        for entry in (e for e in entries.values() if e.dataset == dataset):
            numbers = (entry.memory_gb, 1), (entry.fps, 2), (entry.metrics.get("mIoU"), 2), (entry.metrics.get("mIoU(ms+flip)"), 2)
            rows.append(
                [
                    f"`{entry.name}`",
                    entry.backbone,
                    "x".join(map(str, entry.crop_size)),
                    str(entry.schedule),
                    *("-" if value is None else f"{value:.{digits}f}" for value, digits in numbers),
                    f"[model]({entry.weights}) &#124; [log]({entry.log})",
                ]
            )
        parts += [f"### {dataset}", tables.markdown(HEADINGS, rows, left=3)]
    return "\n\n".join(parts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if the README differs")
    args = parser.parse_args()
    path = ROOT / "README.md"
    text = path.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    wanted = f"{before}{BEGIN}\n{rendered(index.load(ROOT / 'model_index.yml'))}\n{END}{after}"
    if text == wanted:
        return 0
    if args.check:
        print("README.md: the tables differ from model_index.yml; run python tools/render_readme.py", file=sys.stderr)
        return 1
    path.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
