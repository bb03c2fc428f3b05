"""A disk that is full, simulated by the system's limit on the size of a file: every writer says so, and what was there is still there."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

WRITERS = {
    "save_pretrained": "model.save_pretrained(folder)",
    "to_mmsegmentation": "to_mmsegmentation(model, folder / 'model.pth')",
    "optimized.save": "optimized.save(uz.optimize_for_inference(model), folder / 'fused.safetensors')",
    "training state": "state.write(folder, {'run': 1}, state.Progress(), {'model': model.state_dict()})",
    "write_atomically": "files.write_atomically(folder / 'file', lambda path: path.write_bytes(bytes(100_000)))",
}
SCRIPT = """
import json, pathlib, resource, sys, torch
import upernet_zoo as uz
from support.models import small_model
from upernet_zoo import files, optimized
from upernet_zoo.interop.mmsegmentation import to_mmsegmentation
from upernet_zoo.training import state

folder, writers = pathlib.Path(sys.argv[1]), json.loads(sys.argv[2])
model = small_model()

def content():
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

def run(code):
    exec(code, globals() | {"model": model, "folder": folder})

answers = {}
for code in writers.values():
    run(code)
before = content()
model = small_model(seed=1)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
for name, code in writers.items():
    try:
        run(code)
        answers[name] = "no error"
    except uz.UPerNetZooError as error:
        answers[name] = f"{type(error).__name__} {error}"
    except BaseException as error:
        answers[name] = f"FOREIGN {type(error).__name__} {error}"
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(json.dumps({"answers": answers, "same": content() == before}))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits of POSIX")
def test_every_writer_says_that_the_disk_is_full_and_loses_nothing(tmp_path):
    from support.stand_in import process_environment

    environment = process_environment()
    environment["PYTHONPATH"] += ":" + str(__file__).rsplit("/", 1)[0]
    line = [sys.executable, "-c", SCRIPT, str(tmp_path), json.dumps(WRITERS)]
    done = subprocess.run(line, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    for name, said in answer["answers"].items():
        assert said.startswith("WriteError") and "the disk or the quota is full" in said, (name, said)
    assert answer["same"]


COMMANDS = {
    "predict": ["predict", "demo", "data/images", "--device", "cpu", "--out", "out"],
    "evaluate": ["evaluate", "demo", "folder", "data", "--ids", "train", "--optimize", "--device", "cpu", "--out", "out"],
}
BATCHES = """
import contextlib, io, json, resource, sys
import upernet_zoo as uz
from upernet_zoo.cli import main

uz.Segmenter("demo", device="cpu")  # so that what the cache has of it is there
resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
answers = {}
for name, line in json.loads(sys.argv[1]).items():
    with contextlib.redirect_stderr(io.StringIO()) as said:
        answers[name] = main.main(line), said.getvalue()
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(json.dumps(answers))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits of POSIX")
def test_a_full_disk_stops_a_batch_at_once(tmp_path):
    """No other picture would fare better, so the rest are not run, and the reason is said once."""
    from support.stand_in import process_environment

    for folder in ("images", "masks"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    for i in range(3):
        noise = np.random.default_rng(i).integers(0, 19, (24, 32, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / f"data/images/{i}.png")
        Image.fromarray(noise[..., 0]).save(tmp_path / f"data/masks/{i}.png")
    line = [sys.executable, "-c", BATCHES, json.dumps(COMMANDS)]
    done = subprocess.run(line, env=process_environment(), cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name, (code, said) in json.loads(done.stdout.splitlines()[-1]).items():
        assert code == 1 and said.count("the disk or the quota is full") == 1, (name, said)
        assert said.splitlines()[-1].startswith("upernet-zoo: out") and "pictures failed" not in said, (name, said)
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
