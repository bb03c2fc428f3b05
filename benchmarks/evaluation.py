"""How many pictures a second `evaluate` measures, on one process and on two, with the demo model.

    python benchmarks/evaluation.py [--pictures 100]

Demo scenes of 512x256 pixels that the model has not seen are written in Cityscapes' layout. Each run is a process (or `torchrun` with two
of them) of its own; imports and loading do not count, decoding does. All must give one mIoU. Writes results/evaluation.json.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from machine import record
from PIL import Image

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
# name: launcher, threads of each process
RUNS: dict[str, tuple[list[str], int]] = {
    "one process, 1 thread": ([], 1),
    "one process, 2 threads": ([], 2),
    "torchrun, 2 processes of 1 thread": (TORCHRUN, 1),
}


def write_scenes(root: Path, count: int) -> None:
    from upernet_zoo import labels
    from upernet_zoo.demo import run, scenes

    label_set = labels.get("cityscapes")
    for kind in ("leftImg8bit", "gtFine"):
        (root / kind / "val" / "toytown").mkdir(parents=True)
    for number in range(count):
        image, train_ids = scenes.draw(run.FIRST_UNSEEN_SEED + number)
        ids = label_set.to_dataset_ids(train_ids).astype(np.uint8)
        Image.fromarray(image).save(root / "leftImg8bit" / "val" / "toytown" / f"toytown_{number:06d}_leftImg8bit.png")
        Image.fromarray(ids).save(root / "gtFine" / "val" / "toytown" / f"toytown_{number:06d}_gtFine_labelIds.png")


def child(root: str) -> None:
    """Measure, in a process group if `torchrun` set the scene for one; the first process prints."""
    import torch

    import upernet_zoo as uz
    from upernet_zoo.demo.run import load

    if torch.distributed.is_torchelastic_launched():
        torch.distributed.init_process_group("gloo")
        torch.distributed.barrier()
    model = load()
    uz.Segmenter(model)(np.zeros((256, 512, 3), np.uint8))  # warm
    start = time.perf_counter()
    result = uz.evaluate(model, "cityscapes", root, progress=False)
    seconds = time.perf_counter() - start
    if os.environ.get("RANK", "0") == "0":
        print(json.dumps({"seconds": round(seconds, 2), "pictures_per_second": round(result.of / seconds, 2), "mIoU": result.mIoU}))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=100)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child)
        return
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        write_scenes(Path(folder), args.pictures)
        for name, (launcher, threads) in RUNS.items():
            command = [sys.executable, *launcher, __file__, "--child", folder]
            environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
            results[name] = json.loads(done.stdout)
            print(name, results[name], flush=True)
    one = results["one process, 1 thread"]["mIoU"]
    if results["torchrun, 2 processes of 1 thread"]["mIoU"] != one:
        sys.exit("two processes have another mIoU than one")
    record("evaluation", results, pictures=args.pictures, size="512x256")


if __name__ == "__main__":
    main()
