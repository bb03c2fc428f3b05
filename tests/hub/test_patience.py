"""The Hub's client, which has no end of its own where a server drips: it is given up within the stall limit."""

import json
import subprocess
import sys

import pytest
from support.endless import endless
from support.stand_in import process_environment

SCRIPT = """
import dataclasses, json, sys, time
import upernet_zoo as uz
from upernet_zoo.weights import download
download.SETTINGS = dataclasses.replace(download.SETTINGS, stall_seconds=1.0, stall_bytes=4096)
started = time.monotonic()
try:
    uz.create_model("hf-hub:org/model", progress=False)
except uz.UPerNetZooError as error:
    print(json.dumps([type(error).__name__, str(error), time.monotonic() - started]))
"""
HEAD = b"HTTP/1.1 200 OK\r\nX-Repo-Commit: " + b"0" * 40 + b'\r\nETag: "abc"\r\nContent-Length: 262144\r\n'


@pytest.mark.parametrize("first", [b"HTTP/1.1 200 OK\r\nX: ", HEAD + b"\r\n"], ids=["header", "body"])
def test_a_hub_that_drips_is_given_up(tmp_path, first):
    with endless(first, lambda n: b"a", 0.2) as (url, taken):
        environment = process_environment() | {"HF_ENDPOINT": url, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_TELEMETRY": "1"}
        done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    kind, message, seconds = json.loads(done.stdout)
    assert kind == "DownloadError" and "hf-hub:org/model" in message and taken
    assert seconds < 120  # the server never ends
