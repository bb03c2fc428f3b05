"""A run of the command line that hangs before its n-th picture, so that it can be killed half-way on a machine of any speed."""

import contextlib
import os
import signal
import subprocess
from pathlib import Path

from support.waiting import until

# A script: LOG N ARGUMENTS OF upernet-zoo. Each picture is noted as it is run, by its path or the digest of its pixels. N = -1: no hang
WATCHED = """
import hashlib, os, sys, time
from upernet_zoo import Segmenter
from upernet_zoo.cli.main import main

log, left, call = sys.argv[1], int(sys.argv[2]), Segmenter.__call__

def watched(self, image, **options):
    global left
    left -= 1
    name = image if isinstance(image, (str, os.PathLike)) else hashlib.sha256(image.tobytes()).hexdigest()
    with open(log, "a") as file:
        file.write(f"{os.getpid()} {'hung' if left == 0 else name}\\n")
    if left == 0:
        time.sleep(3600)
    return call(self, image, **options)

Segmenter.__call__ = watched
sys.exit(main(sys.argv[3:]))
"""


def kill_half_way(run, log, processes, environment):
    """Start a run of WATCHED, wait until each of its processes hangs, and kill -9 them all."""
    with Path(f"{log}.errors").open("w+") as errors_of_run:
        launched = subprocess.Popen(run, env=environment, stdout=subprocess.DEVNULL, stderr=errors_of_run)

        def noted():
            return [line.split() for line in log.read_text().splitlines()] if log.exists() else []

        def said():
            errors_of_run.seek(0)
            return errors_of_run.read()

        try:
            until(lambda: launched.poll() is not None or len({pid for pid, *what in noted() if what == ["hung"]}) == processes, what=said)
            assert launched.poll() is None, said()
        finally:
            for pid in {launched.pid, *(int(pid) for pid, *_ in noted())}:  # torchrun gives its processes a session of their own
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            launched.wait()
