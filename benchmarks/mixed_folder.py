"""A folder of 1000 mixed pictures, of which 20 of ten kinds cannot be segmented: what predict does with it, and in how much memory.

    python benchmarks/mixed_folder.py [--pictures 1000]

The command runs in a process of its own, whose limit on data (`ulimit -d`) is 800 MB above what it has taken with the model loaded: too
little for two of the pictures. Peaks are the kernel's high-water mark of resident memory (VmHWM), reset before the first and in the
middle. Writes results/mixed_folder.json.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import record, status

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from support.mixed_pictures import BAD, write

LIMIT = 800_000_000


def child(folder: str, out: str, half: int, report: str) -> int:
    """Run predict, and note the peaks of both halves."""
    import resource

    from upernet_zoo.cli import main as command
    from upernet_zoo.segmenter import Segmenter

    peaks, calls, segment = [], 0, Segmenter.__call__

    def counted(self: Segmenter, picture: object) -> object:
        nonlocal calls
        if calls == 0:
            resource.setrlimit(resource.RLIMIT_DATA, (status("VmData") + LIMIT, resource.RLIM_INFINITY))
        if calls in (0, half):
            peaks.append(status("VmHWM"))
            Path("/proc/self/clear_refs").write_text("5")
        calls += 1
        return segment(self, picture)

    Segmenter.__call__ = counted
    code = command.main(["predict", "demo", folder, "--out", out, "--device", "cpu"])
    Path(report).write_text(json.dumps({"loaded": peaks[0], "first_half": peaks[1], "second_half": status("VmHWM")}))
    return code


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=1000, help="in all; one in fifty is bad (default: 1000)")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        folder, out, half, report = args.child
        return child(folder, out, int(half), report)
    bad_of_each = max(1, args.pictures // 50 // len(BAD))
    with tempfile.TemporaryDirectory() as temporary:
        folder, out, report = (Path(temporary) / name for name in ("pictures", "out", "report.json"))
        bad = write(folder, args.pictures - bad_of_each * len(BAD), bad_of_each)
        start = time.perf_counter()
        command = [sys.executable, __file__, "--child", str(folder), str(out), str(args.pictures // 2), str(report)]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        seconds = time.perf_counter() - start
        told = done.stderr.rpartition("pictures failed:")[2]
        results = {
            "exit": done.returncode,
            "segmented": len(list(out.glob("*_labels.png"))),
            "overlays": len(list(out.glob("*_overlay.png"))),
            "failed": len(bad),
            "named": sum(name in told for name in bad),
            "lines": len(re.findall(r"^  \S", told, re.MULTILINE)),
            "causes": {kind: re.sub(r"^.*?: ", "", next(line for line in told.splitlines() if kind in line).strip())[:160] for kind in BAD},
            "peak_MB": {key: round(value / 1e6, 1) for key, value in json.loads(report.read_text()).items()},
            "seconds": round(seconds, 1),
        }
    for key, value in results.items():
        print(key, value)
    record("mixed_folder", results, pictures=args.pictures, limit_MB=LIMIT // 10**6)
    return 0


if __name__ == "__main__":
    sys.exit(main())
