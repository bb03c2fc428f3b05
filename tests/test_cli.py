"""The command line, run as a user runs it."""

import csv
import io
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import Fixture
from PIL import Image

import upernet_zoo as uz
from upernet_zoo import cli, memory, segmenter, tables

TINY = Fixture("upernet_r50_512x512_20k_voc12aug")


def run(*arguments, **options):
    return subprocess.run([sys.executable, "-m", "upernet_zoo.cli", *map(str, arguments)], capture_output=True, text=True, **options)


def test_list_as_a_table(capsys):
    assert cli.main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 16
    assert lines[0].split() == ["Model", "Data", "set", "Backbone", "Crop", "Iterations", "Mem", "(GB)", "fps", "mIoU", "ms+flip"]
    assert lines[2].split() == "upernet_r50_512x1024_40k_cityscapes Cityscapes R-50 512x1024 40000 6.4 4.25 77.10 78.37".split()
    assert lines[6].split()[-4:] == ["-", "-", "78.19", "79.19"]


def test_list_for_other_programs(capsys):
    cli.main(["list", "*ade20k", "--format", "json"])
    entries = json.loads(capsys.readouterr().out)
    assert [e["mIoU"] for e in entries] == [40.70, 42.91, 42.05, 43.82]
    assert entries[2]["memory_gb"] is None
    cli.main(["list", "--dataset", "voc12aug", "--sort", "mIoU", "--format", "csv"])
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["mIoU"] for row in rows] == ["77.43", "77.1", "75.92", "74.82"]
    assert rows[0]["fps"] == "" and rows[0]["weights"].endswith("-e26476ac.pth")
    cli.main(["list", "--backbone", "r-50", "--format", "md"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 8 and all(line.count("|") == 10 for line in lines)


def test_info_shows_every_field(capsys):
    name = "upernet_r101_769x769_40k_cityscapes"
    cli.main(["info", name])
    text = capsys.readouterr().out
    for word in (name, "79.03", "80.77", "769", "513", "83c95d01", "align_corners=True", "log.json", "oss-accelerate"):
        assert word in text
    cli.main(["info", name, "--format", "json"])
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(uz.model_info(name).to_dict()))


def test_listing_starts_no_torch():
    code = "import sys; from upernet_zoo import cli; cli.main(['list']); cli.main(['info', 'upernet_r50_512x512_80k_ade20k'])\n"
    code += "assert 'torch' not in sys.modules and 'requests' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_errors_are_one_line_on_stderr_and_status_1(capsys):
    assert cli.main(["info", "upernet_r50_512x512_80k_ade20"]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("upernet-zoo: ") and "upernet_r50_512x512_80k_ade20k" in err and err.count("\n") == 1
    assert cli.main(["list", "nothing*"]) == 1
    assert "No model matches" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        cli.main(["lst"])
    assert caught.value.code == 2


def test_a_reader_that_has_enough_is_no_error():
    done = subprocess.run(f"{sys.executable} -m upernet_zoo.cli list --format json | head -1", shell=True, capture_output=True, text=True)
    assert done.stdout == "[\n" and done.stderr == ""


def test_predict_one_picture(tmp_path, capsys):
    assert cli.main(["predict", str(TINY.checkpoint), str(TINY.photo), "--out", str(tmp_path / "out"), "--device", "cpu"]) == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["chelsea_labels.png", "chelsea_overlay.png"]
    labels = np.array(Image.open(tmp_path / "out" / "chelsea_labels.png"))
    assert (labels == TINY.labels("whole")).mean() >= 0.9999
    printed = capsys.readouterr().out
    assert "%" in printed and "chelsea_overlay.png" in printed


def test_predict_without_the_fused_twin(tmp_path, monkeypatch):
    arguments = ["predict", str(TINY.checkpoint), str(TINY.photo), "--out", str(tmp_path), "--device", "cpu"]
    assert cli.main(arguments) == 0
    expected = (tmp_path / f"{TINY.photo.stem}_labels.png").read_bytes()
    monkeypatch.setattr(segmenter, "optimize_for_inference", lambda model: pytest.fail("fused all the same"))
    assert cli.main([*arguments, "--no-optimize"]) == 0
    assert (tmp_path / f"{TINY.photo.stem}_labels.png").read_bytes() == expected


def test_predict_by_name_with_a_checkpoint_on_disk(small_index, tmp_path, capsys):
    arguments = ["predict", TINY.name, str(TINY.photo), "--checkpoint", str(TINY.checkpoint), "--out", str(tmp_path)]
    assert cli.main(arguments) == 0
    assert (np.array(Image.open(tmp_path / "chelsea_labels.png")) == TINY.labels("whole")).mean() >= 0.9999


def test_predict_folders_keeps_going_past_a_bad_picture(tmp_path, capsys):
    folder = tmp_path / "pictures" / "inner"
    folder.mkdir(parents=True)
    small = Image.open(TINY.photo).resize((60, 40))
    small.save(folder / "one.png")
    small.save(folder.parent / "one.jpg")
    (folder / "bad.png").write_text("not a picture")
    (folder / "notes.txt").write_text("not looked at")
    out = tmp_path / "out"
    assert cli.main(["predict", str(TINY.checkpoint), str(folder.parent), "--out", str(out)]) == 1
    stdout, stderr = capsys.readouterr()
    assert "2 of 3 pictures" in stdout
    assert "bad.png" in stderr
    found = sorted(str(p.relative_to(out)) for p in out.rglob("*.png"))
    assert found == ["inner/one_labels.png", "inner/one_overlay.png", "one_labels.png", "one_overlay.png"]


def test_predict_refuses_before_it_loads_a_model(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        shutil.copy(TINY.photo, tmp_path / name / "same.png")
    cases = (
        ([tmp_path / "missing.png"], "no such picture or folder"),
        ([tmp_path / "empty"], "no pictures in this folder"),
        ([tmp_path / "a" / "same.png", tmp_path / "b" / "same.png"], "would both be written to"),
    )
    for pictures, message in cases:
        assert cli.main(["predict", "no_such_model", *map(str, pictures)]) == 1
        assert message in capsys.readouterr().err
    assert cli.main(["predict", "no_such_model", str(TINY.photo), "--alpha", "2"]) == 1
    assert "from 0 to 1" in capsys.readouterr().err
    assert cli.main(["predict", str(TINY.checkpoint), str(TINY.photo), "--device", "cuda:99"]) == 1
    assert "Try 'cpu'" in capsys.readouterr().err


def test_predict_never_overwrites_a_picture_and_never_segments_its_own_output(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "pictures"
    folder.mkdir()
    small = Image.open(TINY.photo).resize((60, 40))
    small.save(folder / "a.png")
    small.save(folder / "a_labels.png")  # the user's own
    before = (folder / "a_labels.png").read_bytes()
    assert cli.main(["predict", str(TINY.checkpoint), str(folder), "--out", str(folder)]) == 1
    assert "would be overwritten" in capsys.readouterr().err
    assert (folder / "a_labels.png").read_bytes() == before
    monkeypatch.chdir(folder)
    for _ in range(2):
        assert cli.main(["predict", str(TINY.checkpoint), "."]) == 0
        assert "2 of 2 pictures" in capsys.readouterr().out


def test_predict_in_windows_of_a_given_size(tmp_path, capsys):
    arguments = ["predict", str(TINY.checkpoint), str(TINY.photo), "--out", str(tmp_path), "--scales", "0.5"]
    assert cli.main([*arguments, "--mode", "slide", "--crop", "200x300", "--stride", "150x200"]) == 0
    for bad in (["--crop", "200"], ["--scales", "big"]):
        with pytest.raises(SystemExit):
            cli.main([*arguments, *bad])
        assert "such as" in capsys.readouterr().err


def test_the_console_script_is_this_module():
    done = run("--version")
    assert done.stdout == f"upernet-zoo {uz.__version__}\n"


def test_tables_show_what_was_not_published_as_a_dash():
    entries = [uz.model_info(name) for name in uz.list_models("*80k_cityscapes")]
    assert all(row.split()[-4:-2] == ["-", "-"] for row in tables.render(entries, "table").splitlines()[2:])


def test_benchmark_times_both_forms(capsys):
    assert cli.main(["benchmark", str(TINY.checkpoint), "--size", "64x96", "--repeats", "2", "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["shape"] == [1, 3, 64, 96] and found["largest_difference"] < 5e-5 and found["equal_labels"] >= 0.9999
    assert all(0 < times["min"] <= times["median"] <= times["max"] for times in found["seconds"].values())
    assert cli.main(["benchmark", str(TINY.checkpoint), "--size", "64x64", "--repeats", "1", "--batch-size", "2"]) == 0
    assert re.search(r"input 2x3x64x64\n.*\n.*Median.*\n.*\nplain .*\nfused .*\nthe fused form is", capsys.readouterr().out)
    for arguments, message in (
        (["--size", "31x64"], "--size 31x64"),
        (["--repeats", "0"], "--repeats 0"),
        (["--batch-size", "0"], "--batch-size"),
    ):
        assert cli.main(["benchmark", "no_such_model", *arguments]) == 1
        assert message in capsys.readouterr().err


def test_benchmark_refuses_what_cannot_fit(capsys, monkeypatch):
    monkeypatch.setattr(memory, "available", lambda device: 300_000_000)
    assert cli.main(["benchmark", str(TINY.checkpoint), "--size", "64x64", "--repeats", "1"]) == 0
    assert cli.main(["benchmark", str(TINY.checkpoint), "--size", "6400x6400"]) == 1
    assert re.search(r"1 x 6400x6400 pixels need about .* GB of memory and cpu has 300 MB free. Give", capsys.readouterr().err)
