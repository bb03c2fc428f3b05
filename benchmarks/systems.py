"""Start the systems to compare, each in a process and environment of its own, on the same weights, and ask them in turn."""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_REST = 0.2  # seconds; after a run the threads of ONNX Runtime spin for 40 ms, which a system that started at once would be without
HERE = Path(__file__).resolve().parent
SYSTEMS = (
    "mmsegmentation",
    "transformers",
    "segmentation_models.pytorch",
    "openvino",
    "onnxruntime",
    "torch.compile",
    "plain",
    "fused",
)
PORTABLE = ("onnxruntime plain", "onnxruntime fused", "openvino plain", "openvino fused")  # files that portable.py has exported


def add_options(parser: argparse.ArgumentParser, systems=SYSTEMS) -> None:
    """Which systems, and the Python of each one's environment."""
    parser.add_argument(
        "--systems", nargs="+", choices=(*SYSTEMS, *PORTABLE), default=list(systems), metavar="SYSTEM", help=" ".join(systems)
    )
    parser.add_argument(
        "--python",
        action="append",
        default=[],
        metavar="SYSTEM=PATH",
        help="the Python of a system's environment; this one's own if not given",
    )


def pythons(args: argparse.Namespace) -> dict[str, str]:
    """{system: Python} of the `--python` options."""
    found = dict(option.split("=", 1) for option in args.python)
    if unknown := set(found) - set(args.systems):
        raise SystemExit(f"--python: {', '.join(sorted(unknown))} is none of the systems that run: {', '.join(args.systems)}.")
    return found


class System:
    """A running peer.py."""

    def __init__(self, name: str, python: str, weights: Path):
        self.name = name
        environment = dict(os.environ, PYTHONPATH=str(HERE.parent), PYTHONWARNINGS="ignore")
        command = [python, str(HERE / "peer.py"), name, str(weights)]
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (open as long as this is)
        self.process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True)
        self.about = self._answer()

    def _answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            self.log.seek(0)
            raise RuntimeError(f"{self.name}: ended with {self.process.returncode}:\n{self.log.read()[-2000:]}")
        return json.loads(line)

    def ask(self, **request) -> dict:
        """One request of peer.py and its answer, once the threads of the system that ran before are at rest."""
        time.sleep(_REST)
        with contextlib.suppress(BrokenPipeError):  # it has ended; reading its answer tells how
            print(json.dumps(request), file=self.process.stdin, flush=True)
        return self._answer()

    def close(self) -> None:
        """End the process."""
        self.process.stdin.close()
        self.process.wait()
        self.log.close()


def start(args, weights: Path) -> list[System]:
    """The systems that can run here; says which cannot and why."""
    running = []
    python = pythons(args)
    for name in args.systems:
        try:
            running.append(System(name, python.get(name, sys.executable), weights))
        except (RuntimeError, OSError) as error:
            print(f"left out: {str(error).strip().splitlines()[0]} {str(error).strip().splitlines()[-1]}", file=sys.stderr)
    return running


def write_weights(folder: Path, name: str) -> Path:
    """A checkpoint with random weights of seed 0 of a model of the index at full width, and mmsegmentation's config beside it."""
    import torch

    import upernet_zoo as uz

    torch.manual_seed(0)
    model = uz.create_model(name, pretrained=False)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.data.uniform_(0.6, 1.4)
            module.bias.data.normal_(0, 0.2)
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    with torch.no_grad():  # else one class would have the largest logit nearly everywhere, whatever the picture
        logits = model.logits(torch.randn(1, 3, *(model.config.backbone.input_size or (256, 256))))
        spread, mean = torch.std_mean(logits, (0, 2, 3))
        classifier = model.decode_head.classifier
        classifier.bias.sub_(mean).div_(spread)
        classifier.weight.div_(spread[:, None, None, None])
    return uz.interop.mmsegmentation.to_mmsegmentation(model, folder / f"{name}.pth")


def sgemm_peak(repeats: int = 5) -> float:
    """GMAC/s of torch's float32 matrix product with all cores, the best of three shapes: a square, and two as convolutions have them."""
    import torch

    found = []
    for m, k, n in ((2048, 2048, 2048), (16384, 512, 512), (4096, 4608, 512)):
        a, b = torch.randn(m, k), torch.randn(k, n)
        out = torch.empty(m, n)
        for _ in range(repeats):
            begin = time.perf_counter()
            torch.mm(a, b, out=out)
            found.append(m * k * n / (time.perf_counter() - begin) / 1e9)
    return max(found)


def summary(seconds: list[float]) -> dict[str, float]:
    """Median and range."""
    return {
        "median_s": round(statistics.median(seconds), 4),
        "min_s": round(min(seconds), 4),
        "max_s": round(max(seconds), 4),
    }


def ratios(medians: dict[str, float]) -> dict[str, float]:
    """How many times the fused model's median each other system takes."""
    return {name: round(value / medians["fused"], 2) for name, value in medians.items() if name != "fused"} if "fused" in medians else {}


def difference(probes: dict[str, list[float]], names: list[str]) -> dict[str, float]:
    """Largest difference of each system's logits from the first one's, as a part of the largest logit."""
    first = probes[names[0]]
    largest = max(map(abs, first))
    return {name: max(abs(a - b) for a, b in zip(probes[name], first)) / largest for name in names[1:]}
