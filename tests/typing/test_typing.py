"""The types that the package ships, held by mypy against the wheel, as a user's program meets them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.fixture import ROOT
from support.packages import environment

USE = Path(__file__).with_name("use.py")


@pytest.mark.slow  # mypy reads torch
def test_right_calls_pass_and_each_wrong_one_is_refused(built, tmp_path):
    target = environment(tmp_path / "venv", next(built.glob("*.whl")))
    use = tmp_path / USE.name  # where no configuration and no source of the package is near
    use.write_text(USE.read_text(encoding="utf-8"), encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--python-executable", target / "bin" / "python", "--cache-dir", ROOT / ".mypy_cache"]
    done = subprocess.run([*command, "--no-error-summary", use.name], capture_output=True, text=True, cwd=tmp_path)
    refused = {int(line) for line in re.findall(rf"^{USE.name}:(\d+): error", done.stdout, re.M)}
    lines = enumerate(USE.read_text(encoding="utf-8").splitlines(), 1)
    wrong = {number for number, line in lines if line.endswith("# wrong")}
    assert len(wrong) == 10
    assert refused == wrong, done.stdout + done.stderr
    assert "untyped" not in done.stdout
