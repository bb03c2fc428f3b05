"""Count parameters and multiplications of every model of the index and write them into model_index.yml, as `Parameters` and `GMACs`.

    python tools/count_cost.py [NAME ...]

`Parameters` are those of the whole published model, with the auxiliary head. `GMACs` are the multiplications, in 1e9, of one picture from
normalized pixels to logits, without the auxiliary head, which inference does not run: of convolutions, linear layers and attention, as
torch's `FlopCounterMode` counts them on the meta device. The picture has 512x512 pixels, or the one size that the
backbone takes, which `GMACs At` says (BEiT: 640x640).
"""

import argparse
import json
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from upernet_zoo import UPerNet, files, index

INDEX = Path(__file__).resolve().parent.parent / "model_index.yml"
KEYS = ("Parameters", "GMACs", "GMACs At")


def count(entry: index.ModelEntry) -> dict[str, int | float | str]:
    """What is written of a model of the index: `GMACs` have one decimal."""
    size = entry.config.backbone.input_size or index.ModelEntry.gmacs_at
    with torch.device("meta"):
        model = UPerNet(entry.config, entry.recipe).eval().requires_grad_(False)
        picture = torch.empty(1, entry.config.in_channels, *size)
    with FlopCounterMode(display=False) as counter:
        model.logits(picture)
    values = sum(parameter.numel() for parameter in model.parameters()), round(counter.get_total_flops() / 2e9, 1)
    at = {} if size == index.ModelEntry.gmacs_at else {KEYS[2]: f"{size[0]}x{size[1]}"}
    return dict(zip(KEYS, values)) | at


def written(text: str, costs: dict[str, dict[str, int | float | str]]) -> str:
    """An index file's text with the counts below each model's `Lr schd`, and nothing else changed."""
    lines, cost = [], None
    for line in text.splitlines():
        key, _, value = line.strip().removeprefix("- ").partition(": ")
        if key == "Name":
            cost = costs.get(value)
        if cost is None or key not in KEYS:
            lines.append(line)
        if cost is not None and key == "Lr schd":
            indent = line[: len(line) - len(line.lstrip())]
            lines += [f"{indent}{name}: {number}" for name, number in cost.items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="models (default: all)")
    args = parser.parse_args()
    entries, costs, known = index.load(INDEX), {}, {}
    for name in args.names or entries:
        entry = entries.info(name)
        architecture = json.dumps(dict(entry.architecture), sort_keys=True)
        if architecture not in known:
            known[architecture] = count(entry)
        costs[name] = known[architecture]
        print(name, *costs[name].values(), flush=True)
    text = written(INDEX.read_text(encoding="utf-8"), costs)
    files.write_atomically(INDEX, lambda temporary: temporary.write_text(text, encoding="utf-8") and None)


if __name__ == "__main__":
    main()
