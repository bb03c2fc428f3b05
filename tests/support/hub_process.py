"""Fresh processes for the tests of the Hub, without torch's seconds of import for each.

`Forker` starts this file as a program, which imports torch and this library and forks a process for every order. None of them has
imported huggingface_hub, which reads its settings from the environment when it is imported.
"""

import json
import os
import subprocess
import sys
import traceback
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]  # run as a script too
PRELUDE = """
import hashlib, json, os, sys, warnings
import torch
warnings.simplefilter("ignore")
import upernet_zoo as uz

def logits(model):
    with torch.inference_mode():
        out = model(torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0)))
    return hashlib.sha256(out.numpy().tobytes()).hexdigest()

def attempt(function, *args, **keywords):
    try:
        out = function(*args, **keywords)
        return logits(out) if isinstance(out, uz.UPerNet) else out
    except uz.UPerNetZooError as error:
        return type(error).__name__, str(error)

def say(*values):
    print("SAID " + json.dumps(values))
"""


def environment(url, hf_home, token=None, **more):
    """For a process that talks to the Hub at `url`, with a cache of its own."""
    keep = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and not k.upper().endswith("_PROXY")}
    keep |= {"HF_ENDPOINT": url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(hf_home), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    keep |= {"PYTHONPATH": str(_ROOT)}
    return keep | ({"HF_TOKEN": token} if token else {}) | more


class Forker:
    """Runs Python code in processes of its own; a context manager."""

    def __enter__(self):
        keep = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "UPERNET_ZOO_"))}
        keep["PYTHONPATH"] = str(_ROOT)
        self.program = subprocess.Popen([sys.executable, __file__], env=keep, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, *_):
        self.program.stdin.close()
        self.program.stdout.close()
        self.program.wait()

    def run(self, code, env, folder):
        """Exit status, output and errors of the code; they go through files in `folder`."""
        out, err = folder / "stdout", folder / "stderr"
        self.program.stdin.write(json.dumps({"code": PRELUDE + code, "env": env, "out": str(out), "err": str(err)}) + "\n")
        self.program.stdin.flush()
        status = json.loads(self.program.stdout.readline())
        return status, out.read_text(), err.read_text()


def _obey(order):
    for stream, path in ((1, order["out"]), (2, order["err"])):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    os.environ.clear()
    os.environ.update(order["env"])
    status = 0
    try:
        exec(compile(order["code"], "<order>", "exec"), {"__name__": "__main__"})
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _main():
    import torch

    torch.set_num_threads(1)
    import safetensors.torch  # noqa: F401

    import upernet_zoo.cli.main
    import upernet_zoo.factory
    import upernet_zoo.mirror  # noqa: F401

    assert "huggingface_hub" not in sys.modules
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            _obey(json.loads(line))
        print(json.dumps(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    _main()
