"""How soon things are ready, each in a fresh process: a cached model, the import, the command line; and mmsegmentation beside them.

    python benchmarks/load.py [--repeats 9] [--folders] [--mmsegmentation /path/to/the/python/of/its/environment]

Full-width R-50 and R-101 checkpoints with random weights are written in the published (pre-zip) format, with an index of their own. The
first run verifies and converts; each repeat then times, after `import torch`, the import of the package together with
`create_model(name)` or `Segmenter(name)` (optimized for inference), the index and the check of the cached file included.
mmsegmentation's import, build and load of the same files are timed in the same way. All take turns. Writes results/load.json; with
--folders the same models from folders that `save_pretrained` wrote are timed beside those by name, into results/load_folder.json.
"""

import argparse
import hashlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import record

NAMES = {"R-50": "upernet_r50_512x512_160k_ade20k", "R-101": "upernet_r101_512x512_160k_ade20k"}
CHILD = """
import sys, time, torch
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
start = time.perf_counter()
import upernet_zoo
ready = upernet_zoo.{call}(sys.argv[1])
print(time.perf_counter() - start, sum(name.endswith(".pth") for name in opened))
"""
MMSEGMENTATION = """
import os, sys, time, torch
start = time.perf_counter()
import mmcv, mmseg
from mmseg.apis import init_segmentor
path = os.path.join(os.path.dirname(mmseg.__file__), ".mim", "configs", "upernet", sys.argv[1] + ".py")
init_segmentor(mmcv.Config.fromfile(path), sys.argv[2], device="cpu")
print(time.perf_counter() - start, 1)
"""
COMMANDS = {
    "import upernet_zoo": ["-c", "import upernet_zoo"],
    "upernet-zoo list": ["-m", "upernet_zoo", "list"],
    "upernet-zoo info": ["-m", "upernet_zoo", "info", NAMES["R-50"]],
    "python -c pass": ["-c", "pass"],
}


def write_zoo(folder: Path) -> dict[str, Path]:
    """The two checkpoints where torch.hub would keep them, and an index that names them; {name: file}."""
    import torch
    import yaml

    import upernet_zoo as uz
    from upernet_zoo.checkpoints.names import to_published
    from upernet_zoo.models import UPerNet

    checkpoints = folder / "torch" / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    data = yaml.safe_load(uz.index.default_path().read_text())
    data["Models"] = [m for m in data["Models"] if m["Name"] in NAMES.values()]
    files = {}
    for model in data["Models"]:
        torch.manual_seed(0)
        entry = uz.model_info(model["Name"])
        state = to_published(UPerNet(entry.config).state_dict())
        meta = {"CLASSES": list(entry.label_set.classes), "PALETTE": [list(c) for c in entry.label_set.palette]}
        path = checkpoints / "new.pth"
        torch.save({"meta": meta, "state_dict": state}, path, _use_new_zipfile_serialization=False)
        model["SHA256"] = hashlib.sha256(path.read_bytes()).hexdigest()
        files[model["Name"]] = path.rename(checkpoints / model["Weights"].rsplit("/", 1)[1])
    (folder / "index.yml").write_text(yaml.safe_dump(data))
    return files


def write_folders(folder: Path, environment: dict[str, str]) -> dict[str, tuple[str, list[str]]]:
    """Write the two models as `save_pretrained` does; {task: Python and arguments that load it}."""
    save = "import sys, upernet_zoo; upernet_zoo.create_model(sys.argv[1]).save_pretrained(sys.argv[2])"
    tasks = {}
    for kind, name in NAMES.items():
        saved = folder / "saved" / kind
        subprocess.run([sys.executable, "-c", save, name, str(saved)], env=environment, check=True)
        tasks[f"create_model, {kind} in a folder"] = (sys.executable, ["-c", CHILD.format(call="create_model"), f"local-dir:{saved}"])
    return tasks


def child(python: str, arguments: list[str], environment: dict[str, str]) -> tuple[float, int]:
    """Seconds that a child printed, and how many original files it opened."""
    done = subprocess.run([python, *arguments], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    seconds, opened = done.stdout.split()[-2:]
    return float(seconds), int(opened)


def wall(arguments: list[str], environment: dict[str, str]) -> float:
    """Seconds of a whole process."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], env=environment, check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--folders", action="store_true", help="time models saved in folders beside those by name, and no Segmenter")
    parser.add_argument("--mmsegmentation", metavar="PYTHON", help="the Python of an environment that has it")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        files = write_zoo(folder)
        environment = dict(
            os.environ,
            UPERNET_ZOO_INDEX=str(folder / "index.yml"),
            UPERNET_ZOO_CACHE=str(folder / "cache"),
            TORCH_HOME=str(folder / "torch"),
        )
        environment.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package has its bytecode
        shipped = {key: value for key, value in environment.items() if key != "UPERNET_ZOO_INDEX"}  # the whole index, for the commands
        tasks = write_folders(folder, environment) if args.folders else {}
        for kind, name in NAMES.items():
            for call in ("create_model",) if args.folders else ("create_model", "Segmenter"):
                tasks[f"{call}, {kind}"] = (sys.executable, ["-c", CHILD.format(call=call), name])
            if args.mmsegmentation:
                tasks[f"mmsegmentation, {kind}"] = (args.mmsegmentation, ["-c", MMSEGMENTATION, name, str(files[name])])
        runs = {task: [child(*what, environment)] for task, what in tasks.items()}
        processes: dict[str, list[float]] = {name: [] for name in COMMANDS}
        for _ in range(args.repeats):
            for task, what in tasks.items():
                runs[task].append(child(*what, environment))
            for name, arguments in COMMANDS.items():
                processes[name].append(wall(arguments, shipped))
    results = {}
    for task, (first, *cached) in runs.items():
        seconds = [value for value, _ in cached]
        results[task] = {
            "first_run_s": round(first[0], 3),
            "median_s": round(statistics.median(seconds), 4),
            "min_s": round(min(seconds), 4),
            "max_s": round(max(seconds), 4),
        }
        if not task.startswith("mmsegmentation"):
            results[task]["original_files_opened"] = max(opened for _, opened in cached)
        print(task, results[task])
    for kind in NAMES if args.mmsegmentation else ():
        times = results[f"mmsegmentation, {kind}"]["median_s"] / results[f"Segmenter, {kind}"]["median_s"]
        results[f"times as fast to be ready as mmsegmentation, {kind}"] = round(times, 1)
    for name, seconds in processes.items():
        results[name] = {"median_s": round(statistics.median(seconds), 4), "min_s": round(min(seconds), 4), "max_s": round(max(seconds), 4)}
        print(name, results[name])
    record("load_folder" if args.folders else "load", results, repeats=args.repeats)


if __name__ == "__main__":
    main()
