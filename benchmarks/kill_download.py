"""Kill -9 at random moments of a download, and many processes at once: is a file ever wrong, and how often is it downloaded?

A 64 MB file comes from a server on 127.0.0.1 at a limited rate. 200 times a process that fetches it is killed at a random moment; after
each kill the file under its name must be absent or whole, the receipt absent or right, and the partial a true part of the file. A
process that came to its end before the kill counts as a completion, and its file is removed, so that the kills meet every phase again.
Then one run is left alone and must complete by resuming. Last, 16 processes start at once in an empty cache, first with `fetch` alone,
then with `create_model` and a small checkpoint; the weights of each must be, bit for bit, those of the file loaded directly.

    python benchmarks/kill_download.py [--kills 200] [--output results/kill_download.json]
"""

import argparse
import datetime
import hashlib
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]

from support.servers import Server
from support.stand_in import command, listing, process_environment

SIZE = 64_000_000
RATE = 40_000_000  # bytes per second


def start(line):
    return subprocess.Popen(line, env=process_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process):
    """The path of the verified file."""
    out, err = process.communicate()
    answer = json.loads(out)
    assert answer["error"] is None, (answer, err)
    return Path(answer["message"])


def kills(server, url, content, cache, count, seed):
    digest = hashlib.sha256(content).hexdigest()
    target = cache / "checkpoints" / url.rsplit("/", 1)[-1]
    partial = target.with_name(target.name + ".partial")
    line = command(url=url, sha256=digest[:8], cache_dir=cache, quick=False)
    moments = random.Random(seed)
    seen = {"kills": 0, "completions": 0, "corrupt_files": 0, "wrong_receipts": 0, "wrong_partials": 0, "kills_with_bytes_on_disk": 0}

    def check():
        if target.exists():
            seen["corrupt_files"] += hashlib.sha256(target.read_bytes()).hexdigest() != digest
        receipt = cache.read_receipt(target)
        seen["wrong_receipts"] += cache.receipt_path(target).exists() and (receipt is None or receipt.sha256 != digest)
        if partial.exists():
            data = partial.read_bytes()
            seen["wrong_partials"] += data != content[: len(data)]
            seen["kills_with_bytes_on_disk"] += len(data) > 0

    while seen["kills"] < count:
        process = start(line)
        time.sleep(moments.uniform(0.0, 1.5))
        done = process.poll() is not None
        process.kill()
        process.communicate()
        seen["kills"] += not done
        check()
        if target.exists():
            seen["completions"] += 1
            target.unlink()
            cache.receipt_path(target).unlink(missing_ok=True)
    while not partial.exists() or not 1_000_000 < partial.stat().st_size < SIZE:  # so that there is something to resume
        process = start(line)
        time.sleep(0.8)
        process.kill()
        process.communicate()
        target.unlink(missing_ok=True)
    before, requests = partial.stat().st_size, len(server.requests)
    path = finish(start(line))
    seen["last_run"] = {
        "bytes_on_disk_before": before,
        "statuses": [r.status for r in server.requests[requests:]],
        "ranges": [r.headers.get("Range") for r in server.requests[requests:]],
        "file_is_right": hashlib.sha256(path.read_bytes()).hexdigest() == digest,
        "left_in_the_cache": [name.replace(path.name, "<file>") for name in listing(path.parent)],
    }
    return seen


def at_once(server, url, content, cache, count):
    digest = hashlib.sha256(content).hexdigest()
    requests, sent = len(server.requests), server.sent
    line = command(url=url, sha256=digest[:8], cache_dir=cache, quick=False)
    started = time.monotonic()
    paths = [finish(process) for process in [start(line) for _ in range(count)]]
    return {
        "processes": count,
        "seconds": round(time.monotonic() - started, 2),
        "requests": len(server.requests) - requests,
        "bytes_sent": server.sent - sent,
        "right_files": sum(hashlib.sha256(path.read_bytes()).hexdigest() == digest for path in paths),
    }


MODEL = """
import hashlib, sys, torch, upernet_zoo
torch.set_num_threads(1)
model = eval(sys.argv[1])
weights = hashlib.sha256()
for name, tensor in sorted(model.state_dict().items()):
    weights.update(name.encode() + tensor.numpy().tobytes())
with torch.no_grad():
    logits = model(torch.linspace(-2, 2, 3 * 64 * 64).reshape(1, 3, 64, 64))
print(weights.hexdigest(), hashlib.sha256(logits.numpy().tobytes()).hexdigest(), bool(logits.isfinite().all()))
"""


def models_at_once(folder, count):
    """`create_model` in many processes, of a small checkpoint of the tests under an index of its own."""
    fixture = sorted((ROOT / "tests" / "fixtures").glob("upernet_*/expected.json"))[0]
    expected = json.loads(fixture.read_text())
    name, config, checkpoint = fixture.parent.name, expected["config"], fixture.parent / expected["checkpoint"]
    architecture = {key: config[key] for key in ("channels", "num_classes", "align_corners")}
    widths = {"base_channels": config["base_channels"], "stem_channels": config["base_channels"]}
    architecture["backbone"] = {"kind": "resnet", "depth": config["depth"], **widths}
    architecture["auxiliary"] = {"channels": config["aux_channels"]}
    recipe = {"scale": config["img_scale"], "mode": config["test_cfg"]["mode"]}
    if recipe["mode"] == "slide":
        recipe |= {"crop": config["test_cfg"]["crop_size"], "stride": config["test_cfg"]["stride"]}
    labels = name.rsplit("_", 1)[1]
    with Server({f"/{checkpoint.name}": checkpoint.read_bytes()}, rate=100_000) as server:
        model = {
            "Name": name,
            "In Collection": "small",
            "Metadata": {"Method": "UPerNet", "Backbone": f"R-{config['depth']}", "Crop Size": "64x96", "Lr schd": 1},
            "Results": [{"Task": "Semantic Segmentation", "Dataset": "none", "Metrics": {}}],
            "Config": architecture | recipe | {"labels": labels},
            "Weights": f"{server.url}/{checkpoint.name}",
            "SHA256": expected["sha256"][:8],
        }
        folder.mkdir()
        (folder / "index.yml").write_text(json.dumps({"Collections": [{"Name": "small"}], "Models": [model]}))  # JSON is YAML
        environment = process_environment() | {"UPERNET_ZOO_INDEX": str(folder / "index.yml"), "UPERNET_ZOO_CACHE": str(folder)}

        def begin(expression):
            line = [sys.executable, "-c", MODEL, expression]
            return subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

        started = time.monotonic()
        running = [begin(f"upernet_zoo.create_model({name!r}, progress=False)") for _ in range(count)]
        answers = [process.communicate()[0].split() for process in running]
        seconds = time.monotonic() - started
        reference = begin(f"upernet_zoo.load_checkpoint({str(checkpoint)!r})").communicate()[0].split()
        return {
            "processes": count,
            "model": name,
            "file_bytes": checkpoint.stat().st_size,
            "seconds": round(seconds, 2),
            "requests": len(server.requests),
            "bytes_sent": server.sent,
            "models_with_the_right_weights": sum(answer[:1] == reference[:1] for answer in answers),
            "models_that_work": sum(answer[2:] == ["True"] for answer in answers),
            "different_logits": len({tuple(answer[1:2]) for answer in answers}),
        }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--processes", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    for name in list(os.environ):
        if name.startswith(("UPERNET_ZOO_", "HF_")) or name.lower().endswith("_proxy"):
            del os.environ[name]
    content = random.Random(options.seed).randbytes(SIZE)
    name = f"upernet_stand_in-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, Server({f"/{name}": content}, rate=RATE) as server:
        os.environ["HOME"] = folder
        url = f"{server.url}/{name}"
        killed = kills(server, url, content, Path(folder) / "kills", options.kills, options.seed)
        together = at_once(server, url, content, Path(folder) / "at once", options.processes)
        models = models_at_once(Path(folder) / "models", options.processes)
    result = {
        "what": "kill -9 at random moments of a download, then many processes at once",
        "date": datetime.date.today().isoformat(),
        "command": " ".join(["python", "benchmarks/kill_download.py", *sys.argv[1:]]),
        "machine": f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}",
        "versions": {"python": platform.python_version()} | {n: metadata.version(n) for n in ("requests", "urllib3", "torch")},
        "file_bytes": SIZE,
        "server_bytes_per_second": RATE,
        "seed": options.seed,
        "seconds": round(time.monotonic() - started, 1),
        "kill": killed,
        "at_once": together,
        "models_at_once": models,
    }
    text = json.dumps(result, indent=1)
    print(text)
    if options.output:
        options.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
