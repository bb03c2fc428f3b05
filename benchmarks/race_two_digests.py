"""Two processes, one model name, two `sha256=` values, one cache: does either ever get the other's weights?

Two versions of the demo's checkpoint are in a mirror each. In every round two processes start together in an empty cache and load the
model, each by the digest of its version, twice. What each got is compared with the version that it asked for. Afterwards one process
loads both again, alone, and every receipt and every converted file that is left is compared with what it speaks of.

    python benchmarks/race_two_digests.py [--rounds 100] [--output results/race_two_digests.json]
"""

import argparse
import datetime
import hashlib
import json
import multiprocessing
import platform
import random
import shutil
import sys
import tempfile
import time
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch

from upernet_zoo import errors, factory, index
from upernet_zoo.checkpoints import native
from upernet_zoo.weights import cache

DEMO = Path(index.__file__).resolve().parent / "demo"
WATCHED = "decode_head.classifier.weight"


def entry():
    return next(iter(index.load(DEMO / "model_index.yml").values()))


def versions(folder):
    """Two files under the published name in a folder each: digest, folder, and the watched weights of each."""
    name, made = entry().file_name, []
    original = torch.load(DEMO / name, weights_only=True)
    changed = {key: value * 0 + 1 if value.is_floating_point() else value for key, value in original["state_dict"].items()}
    for number, content in enumerate((original, {**original, "state_dict": changed})):
        path = folder / str(number) / name
        path.parent.mkdir()
        torch.save(content, path)
        made.append((hashlib.sha256(path.read_bytes()).hexdigest(), path.parent, content["state_dict"]["decode_head.conv_seg.weight"]))
    return made


def load(version, cache_dir):
    """ "right", "wrong weights", "wrong origin" or the name of the library's error."""
    digest, mirror, expected = version
    try:
        model = factory.load_entry(entry(), sha256=digest, mirrors=[mirror], cache_dir=cache_dir, local_files_only=True, progress=False)
    except errors.UPerNetZooError as error:
        return type(error).__name__
    if not torch.equal(model.state_dict()[WATCHED], expected):
        return "wrong weights"
    return "right" if model.origin["sha256"] == digest else "wrong origin"


def worker(version, orders, answers):
    """Load whenever a cache is named; None ends it."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of a file of another digest in the cache, which is what this is about
    while (cache_dir := orders.get()) is not None:
        found = []
        for _ in range(2):
            time.sleep(random.uniform(0, 0.01))
            found.append(load(version, cache_dir))
        answers.put(found)


def wrong_receipts(root):
    """Receipts that do not describe the file that they are beside."""
    beside = [path for folder in ("checkpoints", "converted") for path in (root / folder).glob("*") if cache.receipt_path(path).exists()]
    wrong = 0
    for path in beside:
        receipt = cache.read_receipt(path)
        wrong += receipt is None or receipt.sha256 != hashlib.sha256(path.read_bytes()).hexdigest()
    return wrong


def wrong_conversions(root, made):
    """Converted files whose header names one version and whose tensors are the other's."""
    by_digest = {digest: expected for digest, _, expected in made}
    wrong = 0
    for path in (root / "converted").glob("*.safetensors"):
        tensors, description = native.read_safetensors(path)
        wrong += not torch.equal(tensors[WATCHED], by_digest[description.origin["sha256"]])
    return wrong


def race(rounds, folder):
    made = versions(folder)
    context = multiprocessing.get_context("spawn")
    answers, orders = context.Queue(), [context.Queue() for _ in made]
    workers = [context.Process(target=worker, args=(version, order, answers)) for version, order in zip(made, orders)]
    for process in workers:
        process.start()
    seen = {"loads": 0, "wrong_weights": 0, "wrong_origins": 0, "errors": {}, "wrong_receipts": 0, "wrong_conversions": 0}

    def count(result):
        seen["loads"] += 1
        seen["wrong_weights"] += result == "wrong weights"
        seen["wrong_origins"] += result == "wrong origin"
        if result.endswith("Error"):
            seen["errors"][result] = seen["errors"].get(result, 0) + 1

    for _ in range(rounds):
        root = folder / "cache"
        for order in orders:
            order.put(root)
        for result in (result for _ in workers for result in answers.get(timeout=300)):
            count(result)
        for version in made:  # later, alone
            count(load(version, root))
        seen["wrong_receipts"] += wrong_receipts(root)
        seen["wrong_conversions"] += wrong_conversions(root, made)
        shutil.rmtree(root)
    for process, order in zip(workers, orders):
        order.put(None)
        process.join()
    return seen


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "race_two_digests.json")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        seen = race(args.rounds, Path(folder))
    record = {
        "what": "two processes, one name, two digests, one cache",
        "date": datetime.date.today().isoformat(),
        "command": f"python benchmarks/race_two_digests.py --rounds {args.rounds}",
        "machine": f"{platform.system()} {platform.machine()}",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "rounds": args.rounds,
        "processes": 2,
        "seconds": round(time.monotonic() - started, 1),
        **seen,
    }
    args.output.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))
    return 1 if seen["wrong_weights"] or seen["wrong_origins"] or seen["wrong_receipts"] or seen["wrong_conversions"] else 0


if __name__ == "__main__":
    sys.exit(main())
