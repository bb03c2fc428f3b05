"""predict of folders: shared by the processes of torchrun, gone on with after a kill; and of videos."""

import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from support.killed import WATCHED, kill_half_way
from support.stand_in import process_environment

from upernet_zoo import Segmenter
from upernet_zoo.cli import jobs
from upernet_zoo.cli.main import main

COUNT = 14
ENVIRONMENT = {**process_environment(), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shared") / "pictures"
    (folder / "more").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(COUNT):
        tiles = rng.integers(0, 256, (4, 6, 3), dtype=np.uint8)
        Image.fromarray(tiles).resize((60 + number, 40)).save(folder / ("more" if number % 2 else ".") / f"{number:02d}.png")
    (folder / "05_broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(30))
    return folder


def launched(processes, *arguments):
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    return [sys.executable, *launcher, "-m", "upernet_zoo", "predict", *map(str, arguments)]


def run(processes, *arguments):
    return subprocess.run(launched(processes, *arguments), env=ENVIRONMENT, capture_output=True, text=True, timeout=600)


def written(out):
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def alone(pictures, tmp_path_factory):
    """What one process writes."""
    out = tmp_path_factory.mktemp("alone")
    done = run(1, "demo", pictures, "--out", out)
    assert done.returncode == 1 and "1 of 15 pictures failed:" in done.stderr and "05_broken.png" in done.stderr
    assert f"14 of 15 pictures segmented into {out}\n" in done.stdout
    return written(out)


def test_two_processes_write_what_one_does(pictures, alone, tmp_path):
    done = run(2, "demo", pictures, "--out", tmp_path)
    assert done.returncode == 1
    assert done.stdout.count("pictures segmented into") == 1 and "14 of 15" in done.stdout
    assert len(re.findall(r"^upernet-zoo: 1 of 15 pictures failed:\n  \S*05_broken\.png", done.stderr, re.M)) == 1
    assert written(tmp_path) == alone


# A script: ARGUMENTS OF upernet-zoo. The first process is late with what it says at the end.
LATE = """
import sys, time
from upernet_zoo.cli.main import main
from upernet_zoo.failures import Failures

report = Failures.report
Failures.report = lambda self, count: time.sleep(4) or report(self, count)
sys.exit(main(sys.argv[1:]))
"""


def test_a_late_first_process_is_not_ended_by_the_others_failures(pictures, tmp_path):
    """torchrun ends all processes as soon as one has failed."""
    script = tmp_path / "late.py"
    script.write_text(LATE)
    command = [*launched(2)[:-3], str(script), "predict", "demo", str(pictures), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 1 and "14 of 15" in done.stdout
    assert "upernet-zoo: 1 of 15 pictures failed:\n" in done.stderr


def test_killed_and_started_again(pictures, alone, tmp_path):
    """Two processes are killed when some pictures are done; those are not run again, and all is as if nothing had been."""
    out, script = tmp_path / "out", tmp_path / "watched.py"
    script.write_text(WATCHED)
    watched = [*launched(2)[:-3], str(script), str(tmp_path / "log"), "4", "predict", "demo", str(pictures), "--out", str(out)]
    kill_half_way(watched, tmp_path / "log", 2, ENVIRONMENT)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*_labels.png")}
    assert 3 <= len(before) < COUNT
    done = run(2, "demo", pictures, "--out", out)
    assert done.returncode == 1 and f"14 of 15 pictures segmented into {out}, {len(before)} of them by an earlier run" in done.stdout
    assert written(out) == alone
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_what_changed_is_run_again(pictures, tmp_path, capsys):
    shutil.copytree(pictures, tmp_path / "pictures")
    (tmp_path / "pictures" / "05_broken.png").unlink()
    command = ["predict", "demo", str(tmp_path / "pictures"), "--out", str(tmp_path / "out")]

    def kept(*more):
        assert main([*command, *more]) == 0
        found = re.search(r"14 of 14 pictures segmented into \S+?(?:, (\d+) of them by an earlier run)?\n", capsys.readouterr().out)
        return int(found[1] or 0)

    assert kept() == 0 and kept() == COUNT
    Image.new("RGB", (70, 40)).save(tmp_path / "pictures" / "00.png")  # another picture
    (tmp_path / "out" / "02_overlay.png").unlink()
    Image.new("P", (64, 40)).save(tmp_path / "out" / "04_labels.png")  # somebody's own, in the place of ours
    (tmp_path / "out" / "04_labels.png").unlink()
    assert kept() == COUNT - 3
    assert kept("--alpha", "0.4") == 0 and kept("--alpha", "0.4", "--flip") == 0 and kept("--alpha", "0.4", "--flip") == COUNT
    assert kept("--alpha", "0.4", "--flip", "--overwrite") == 0


def test_pictures_that_change_or_vanish_during_a_run(pictures, tmp_path, capsys, monkeypatch):
    folder, out = tmp_path / "pictures", tmp_path / "out"
    folder.mkdir()
    for name in ("00.png", "02.png", "04.png"):
        shutil.copy(pictures / name, folder)
    command, digest, call = ["predict", "demo", str(folder), "--out", str(out)], jobs.run_digest, Segmenter.__call__

    def changed_when_read(self, source, **options):
        result = call(self, source, **options)
        if source.name == "02.png":
            os.utime(source, (1, 1))
        return result

    def vanished(*arguments):
        (folder / "04.png").unlink()
        return digest(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Segmenter, "__call__", changed_when_read)
        assert main(command) == 0
    capsys.readouterr()
    monkeypatch.setattr(jobs, "run_digest", vanished)
    assert main(command) == 1
    said = capsys.readouterr()
    assert "2 of 3 pictures segmented" in said.out and "1 of them by an earlier run" in said.out and "04.png" in said.err


def test_a_video(tmp_path, capsys):
    pytest.importorskip("av")
    from support.films import spoil, write_video

    film = write_video(tmp_path / "film.mp4")
    command = ["predict", "demo", str(film), "--out", str(tmp_path / "out"), "--every", "2"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert f"wrote {tmp_path / 'out' / 'film_overlay.mp4'} and {tmp_path / 'out' / 'film_areas.csv'}" in said and "%" in said
    assert len((tmp_path / "out" / "film_areas.csv").read_text().splitlines()) == 1 + 4
    spoil(film, 2)
    assert main([*command[:-1], "1"]) == 1
    said = capsys.readouterr().err
    assert "1 of 8 frames could not be segmented" in said and "film_areas.csv has why" in said
    assert main([*command[:-1], "0"]) == 1 and "each tenth frame" in capsys.readouterr().err
