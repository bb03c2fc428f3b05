"""How soon a cached model is ready: create_model(name) in a fresh process, after `import torch`.

    python benchmarks/create_model.py [--repeats 9]

Full-width R-50 and R-101 checkpoints with random weights are written in the published (pre-zip) format, with an index of their own. Each
repeat is a new process: it imports torch, and then times `import upernet_zoo; upernet_zoo.create_model(name)`, the index and the
verification of the cached file included. The first run converts; the others map the converted file. Writes results/create_model.json.
"""

import argparse
import hashlib
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from machine import record

CHILD = """
import sys, time, torch
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
start = time.perf_counter()
import upernet_zoo
model = upernet_zoo.create_model(sys.argv[1])
print(time.perf_counter() - start, sum(name.endswith(".pth") for name in opened))
"""


def write_zoo(folder: Path) -> None:
    """Two checkpoints with random weights where torch.hub would keep them, and an index that names them."""
    import torch
    import yaml

    import upernet_zoo as uz
    from upernet_zoo.checkpoint import to_published
    from upernet_zoo.models import UPerNet

    checkpoints = folder / "torch" / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    data = yaml.safe_load(uz.index.default_path().read_text())
    data["Models"] = [m for m in data["Models"] if m["Name"].endswith("160k_ade20k")]
    for model in data["Models"]:
        torch.manual_seed(0)
        state = to_published(UPerNet(uz.model_info(model["Name"]).config).state_dict())
        path = checkpoints / "new.pth"
        torch.save({"meta": {}, "state_dict": state}, path, _use_new_zipfile_serialization=False)
        model["SHA256"] = hashlib.sha256(path.read_bytes()).hexdigest()
        path.rename(checkpoints / model["Weights"].rsplit("/", 1)[1])
    (folder / "index.yml").write_text(yaml.safe_dump(data))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        write_zoo(folder)
        environment = dict(
            os.environ,
            UPERNET_ZOO_INDEX=str(folder / "index.yml"),
            UPERNET_ZOO_CACHE=str(folder / "cache"),
            TORCH_HOME=str(folder / "torch"),
        )
        environment.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package has its bytecode
        names = ("upernet_r50_512x512_160k_ade20k", "upernet_r101_512x512_160k_ade20k")
        seconds: dict[str, list[float]] = {name: [] for name in names}
        originals: dict[str, list[int]] = {name: [] for name in names}
        for _ in range(args.repeats + 1):
            for name in names:
                done = subprocess.run([sys.executable, "-c", CHILD, name], env=environment, check=True, capture_output=True, text=True)
                time, read = done.stdout.split()
                seconds[name].append(float(time))
                originals[name].append(int(read))
    results = {}
    for name in names:
        first, *cached = seconds[name]
        results[name] = {
            "first_run_verify_and_convert_s": round(first, 3),
            "cached_median_s": round(statistics.median(cached), 4),
            "cached_min_s": round(min(cached), 4),
            "cached_max_s": round(max(cached), 4),
            "original_files_opened_when_cached": max(originals[name][1:]),
        }
        print(name, results[name])
    record("create_model", results, repeats=args.repeats)


if __name__ == "__main__":
    main()
