"""Write the model tables of README.md and docs/models.md from model_index.yml. With --check only compare; exit with 1 if they differ.

The tables are between `<!-- models: begin -->` and `<!-- models: end -->`. The README has those of the original table, and the
best of each further kind; the other page has all, with links to the files.
"""

import argparse
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from upernet_zoo import index, tables

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- models: begin -->", "<!-- models: end -->"
HEADINGS = ("Model", "Backbone", "Pretraining", "Crop", "Iterations", "Mem (GB)", "fps", "mIoU", "mIoU(ms+flip)", "Download")
# heading -> how names of its models begin, and whether the published table says what the backbone was trained on before
FAMILIES = {
    "Swin": ("upernet_swin", True),
    "ConvNeXt": ("upernet_convnext", False),
    "ViT": ("upernet_vit", False),
    "DeiT": ("upernet_deit", False),
    "MAE": ("upernet_mae", True),
    "BEiT": ("upernet_beit", True),
    "Twins": ("twins", False),
    "K-Net": ("knet", False),
}


def links(entry: index.ModelEntry) -> str:
    """The files of a model, at a host that is thought to be alive."""
    found = {"model": entry.link(entry.weights), "log": entry.log and entry.link(entry.log)}
    return " &#124; ".join(f"[{word}]({url})" for word, url in found.items() if url) or "no living source is known"


def table(entries: Iterable[index.ModelEntry], pretraining: bool = False, download: bool = True) -> str:
    """A Markdown table, in the index's order, with or without what the backbone was trained on before, and links to the files."""
    rows = []
    for entry in entries:
        numbers = entry.fps, entry.metrics.get("mIoU"), entry.metrics.get("mIoU(ms+flip)")
        rows.append(
            [
                f"`{entry.name}`",
                entry.backbone,
                entry.pretraining or "-",
                "x".join(map(str, entry.crop_size)),
                str(entry.schedule),
                "-" if entry.memory_gb is None else tables.decimals(entry.memory_gb),
                *("-" if value is None else f"{value:.2f}" for value in numbers),
                links(entry),
            ]
        )
    shown = {"Pretraining": pretraining, "Download": download}
    columns = [column for column, heading in enumerate(HEADINGS) if shown.get(heading, True)]
    rows = [[row[column] for column in columns] for row in rows]
    return tables.markdown([HEADINGS[column] for column in columns], rows, left=4 if pretraining else 3)


def by_dataset(entries: Iterable[index.ModelEntry], download: bool = True) -> str:
    """A table for each data set."""
    entries = list(entries)
    sets = dict.fromkeys(entry.dataset for entry in entries)
    return "\n\n".join(f"### {dataset}\n\n{table((e for e in entries if e.dataset == dataset), download=download)}" for dataset in sets)


def overview(entries: index.Index) -> str:
    """The sixteen models of the original table, and a row for each further kind."""
    original = [entry for entry in entries.values() if entry.backbone in ("R-50", "R-101") and entry.name.startswith("upernet_r")]
    kinds = {"ResNet-18": "upernet_r18"} | {heading: start for heading, (start, _) in FAMILIES.items()}
    rows = []
    for kind, start in kinds.items():
        models = [entry for entry in entries.values() if entry.name.startswith(start)]
        best = max((entry for entry in models if entry.dataset == "ADE20K"), key=lambda entry: entry.metrics["mIoU"])
        numbers = (best.metrics.get("mIoU"), best.metrics.get("mIoU(ms+flip)"))
        rows.append([kind, f"`{best.name}`", str(len(models)), *("-" if value is None else f"{value:.2f}" for value in numbers)])
    further = tables.markdown(("Kind", "Best on ADE20K", "Models", "mIoU", "mIoU(ms+flip)"), rows, left=2)
    return f"{by_dataset(original, download=False)}\n\n### Further kinds\n\n{further}"


def everything(entries: index.Index) -> str:
    """All models: ResNets by data set, then each further family, all of which were trained on ADE20K."""
    parts = ["## ResNet", by_dataset(entry for entry in entries.values() if entry.name.startswith("upernet_r"))]
    for heading, (start, pretraining) in FAMILIES.items():
        parts += [f"## {heading}", table((e for e in entries.values() if e.name.startswith(start)), pretraining)]
    return "\n\n".join(parts)


PAGES: dict[str, Callable[[index.Index], str]] = {"README.md": overview, "docs/models.md": everything}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if a page differs")
    args = parser.parse_args()
    entries = index.load(ROOT / "model_index.yml")
    status = 0
    for name, render in PAGES.items():
        path = ROOT / name
        text = path.read_text(encoding="utf-8")
        before, rest = text.split(BEGIN)
        wanted = f"{before}{BEGIN}\n{render(entries)}\n{END}{rest.split(END)[1]}"
        if text != wanted and args.check:
            print(f"{name}: the tables differ from model_index.yml; run python tools/render_tables.py", file=sys.stderr)
            status = 1
        elif text != wanted:
            path.write_text(wanted, encoding="utf-8")
    return status


if __name__ == "__main__":
    sys.exit(main())
