"""The command line, run as a user runs it."""

import csv
import errno
import io
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from support import mixed_pictures
from support.fixture import Fixture

import upernet_zoo as uz
from upernet_zoo import memory, segmenter, tables
from upernet_zoo.cli import main

TINY = Fixture("upernet_r50_512x512_20k_voc12aug")


def run(*arguments, **options):
    return subprocess.run([sys.executable, "-m", "upernet_zoo", *map(str, arguments)], capture_output=True, text=True, **options)


def test_list_as_a_table(capsys):
    assert main.main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 60
    assert lines[0].split() == ["Model", "Data", "set", "Backbone", "Crop", "Iterations", "Mem", "(GB)", "fps", "mIoU", "ms+flip"]
    assert lines[2].split() == [
        "upernet_r50_512x1024_40k_cityscapes",
        "Cityscapes",
        "R-50",
        "512x1024",
        "40000",
        "6.4",
        "4.25",
        "77.10",
        "78.37",
    ]
    assert lines[6].split()[-4:] == ["-", "-", "78.19", "79.19"]


def test_list_and_help_start_without_torch():
    code = (
        "import sys; from upernet_zoo.cli.main import all_commands, main; all_commands().format_help(); main(['list']);"
        "assert not {'torch', 'torchvision', 'requests', 'huggingface_hub'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_list_for_other_programs(capsys):
    main.main(["list", "upernet_r*ade20k", "--format", "json"])
    entries = json.loads(capsys.readouterr().out)
    assert [e["mIoU"] for e in entries] == [40.70, 42.91, 42.05, 43.82, 38.76, 39.23]
    assert entries[2]["memory_gb"] is None
    main.main(["list", "--dataset", "voc12aug", "--sort", "mIoU", "--format", "csv"])
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["mIoU"] for row in rows] == ["77.43", "77.1", "75.92", "74.82", "73.71", "72.9"]
    assert rows[0]["fps"] == "" and rows[0]["weights"].endswith("-e26476ac.pth")
    main.main(["list", "--backbone", "r-50", "--format", "md"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 8 and all(line.count("|") == 10 for line in lines)


def test_info_shows_every_field(capsys):
    name = "upernet_r101_769x769_40k_cityscapes"
    main.main(["info", name])
    text = capsys.readouterr().out
    for word in (name, "79.03", "80.77", "769", "513", "83c95d01", "align_corners=True", "log.json", "oss-accelerate"):
        assert word in text
    main.main(["info", name, "--format", "json"])
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(uz.model_info(name).to_dict()))


def test_listing_starts_no_torch():
    code = "import sys; from upernet_zoo.cli.main import main; main(['list']); main(['info', 'upernet_r50_512x512_80k_ade20k'])\n"
    code += "assert 'torch' not in sys.modules and 'requests' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_errors_are_one_line_on_stderr_and_status_1(capsys):
    assert main.main(["info", "upernet_r50_512x512_80k_ade20"]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("upernet-zoo: ") and "upernet_r50_512x512_80k_ade20k" in err and err.count("\n") == 1
    assert main.main(["list", "nothing*"]) == 1
    assert "No model matches" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        main.main(["lst"])
    assert caught.value.code == 2


def test_a_reader_that_has_enough_is_no_error():
    done = subprocess.run(f"{sys.executable} -m upernet_zoo list --format json | head -1", shell=True, capture_output=True, text=True)
    assert done.stdout == "[\n" and done.stderr == ""


def test_predict_one_picture(tmp_path, capsys):
    assert main.main(["predict", str(TINY.checkpoint), str(TINY.photo), "--out", str(tmp_path / "out"), "--device", "cpu"]) == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["chelsea_labels.png", "chelsea_overlay.png"]
    labels = np.array(Image.open(tmp_path / "out" / "chelsea_labels.png"))
    assert (labels == TINY.labels("whole")).mean() >= 0.9999
    printed = capsys.readouterr().out
    assert "%" in printed and "chelsea_overlay.png" in printed


def test_predict_without_the_fused_model(tmp_path, monkeypatch):
    arguments = ["predict", str(TINY.checkpoint), str(TINY.photo), "--out", str(tmp_path), "--device", "cpu"]
    assert main.main(arguments) == 0
    expected = (tmp_path / f"{TINY.photo.stem}_labels.png").read_bytes()
    monkeypatch.setattr(segmenter, "optimize_for_inference", lambda model: pytest.fail("fused all the same"))
    assert main.main([*arguments, "--no-optimize"]) == 0
    assert (tmp_path / f"{TINY.photo.stem}_labels.png").read_bytes() == expected


def test_predict_by_name_with_a_checkpoint_on_disk(small_index, tmp_path, capsys):
    arguments = ["predict", TINY.name, str(TINY.photo), "--checkpoint", str(TINY.checkpoint), "--out", str(tmp_path)]
    assert main.main(arguments) == 0
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
    assert main.main(["predict", str(TINY.checkpoint), str(folder.parent), "--out", str(out)]) == 1
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
        assert main.main(["predict", "no_such_model", *map(str, pictures)]) == 1
        assert message in capsys.readouterr().err
    assert main.main(["predict", "no_such_model", str(TINY.photo), "--alpha", "2"]) == 1
    assert "from 0 to 1" in capsys.readouterr().err
    assert main.main(["predict", str(TINY.checkpoint), str(TINY.photo), "--device", "cuda:99"]) == 1
    assert "Try 'cpu'" in capsys.readouterr().err


def test_predict_writes_into_the_folder_above_its_pictures(tmp_path, capsys):
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.open(TINY.photo).resize((60, 40)).save(folder / "a.png")
    for _ in range(2):  # what is written is there, and not below the folder
        assert main.main(["predict", str(TINY.checkpoint), str(folder), "--out", str(tmp_path)]) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a_labels.png", "a_overlay.png", "pictures"]


def test_predict_never_overwrites_a_picture_and_never_segments_its_own_output(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "pictures"
    folder.mkdir()
    small = Image.open(TINY.photo).resize((60, 40))
    small.save(folder / "a.png")
    small.save(folder / "a_labels.png")  # the user's own
    before = (folder / "a_labels.png").read_bytes()
    assert main.main(["predict", str(TINY.checkpoint), str(folder), "--out", str(folder)]) == 1
    assert "would be overwritten" in capsys.readouterr().err
    assert (folder / "a_labels.png").read_bytes() == before
    monkeypatch.chdir(folder)
    for _ in range(2):
        assert main.main(["predict", str(TINY.checkpoint), "."]) == 0
        assert "2 of 2 pictures" in capsys.readouterr().out


def test_predict_in_windows_of_a_given_size(tmp_path, capsys):
    arguments = ["predict", str(TINY.checkpoint), str(TINY.photo), "--out", str(tmp_path), "--scales", "0.5"]
    assert main.main([*arguments, "--mode", "slide", "--crop", "200x300", "--stride", "150x200"]) == 0
    for bad in (["--crop", "200"], ["--scales", "big"]):
        with pytest.raises(SystemExit):
            main.main([*arguments, *bad])
        assert "such as" in capsys.readouterr().err


def test_the_console_script_is_this_module():
    done = run("--version")
    assert done.stdout == f"upernet-zoo {uz.__version__}\n"


def test_tables_show_what_was_not_published_as_a_dash():
    entries = [uz.model_info(name) for name in uz.list_models("*80k_cityscapes")]
    assert all(row.split()[-4:-2] == ["-", "-"] for row in tables.render(entries, "table").splitlines()[2:])


def test_benchmark_times_both_forms(capsys):
    assert main.main(["benchmark", str(TINY.checkpoint), "--size", "64x96", "--repeats", "2", "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["shape"] == [1, 3, 64, 96] and found["largest_difference"] < 5e-5 and found["equal_labels"] >= 0.9999
    assert all(0 < times["min"] <= times["median"] <= times["max"] for times in found["seconds"].values())
    assert main.main(["benchmark", str(TINY.checkpoint), "--size", "64x64", "--repeats", "1", "--batch-size", "2"]) == 0
    assert re.search(r"input 2x3x64x64\n.*\n.*Median.*\n.*\nplain .*\nfused .*\nthe fused form is", capsys.readouterr().out)
    for arguments, message in (
        (["--size", "31x64"], "--size 31x64"),
        (["--repeats", "0"], "--repeats 0"),
        (["--batch-size", "0"], "--batch-size"),
    ):
        assert main.main(["benchmark", "no_such_model", *arguments]) == 1
        assert message in capsys.readouterr().err


def test_benchmark_refuses_what_cannot_fit(capsys, monkeypatch):
    monkeypatch.setattr(memory, "available", lambda device: 300_000_000)
    assert main.main(["benchmark", str(TINY.checkpoint), "--size", "64x64", "--repeats", "1"]) == 0
    assert main.main(["benchmark", str(TINY.checkpoint), "--size", "6400x6400"]) == 1
    assert re.search(r"1 x 6400x6400 pixels need about .* GB of memory and cpu has 300 MB free. Give", capsys.readouterr().err)


def test_predict_survives_its_worst_pictures(tmp_path, capsys, monkeypatch):
    folder, out = tmp_path / "pictures", tmp_path / "out"
    folder.mkdir()
    small = Image.open(TINY.photo).resize((60, 40))
    for name in ("a", "z", "m" * 236, "n" * 250):
        small.save(folder / f"{name}.png")
    (folder / "cut.png").write_bytes((folder / "a.png").read_bytes()[:500])
    (folder / "._a.png").write_bytes(b"what macOS writes beside a file on other disks")
    Image.new("1", (13000, 4000)).save(folder / "huge.png")
    monkeypatch.setattr(memory, "available", lambda device: 60_000_000)
    assert main.main(["predict", str(TINY.checkpoint), str(folder), "--out", str(out), "--device", "cpu"]) == 1
    stdout, stderr = capsys.readouterr()
    assert "3 of 6 pictures segmented" in stdout and "3 of 6 pictures failed:" in stderr
    told = stderr.partition("3 of 6 pictures failed:")[2]
    for name, cause in (("cut.png", "damaged or cut off"), ("huge.png", "13000x4000 pixels"), ("n" * 250, "File name too long")):
        assert re.search(f"{name}.*{cause}", told), (name, told)
    assert sorted(p.name[0] for p in out.iterdir()) == ["a", "a", "m", "m", "z", "z"]


def test_predict_replaces_its_own_files_and_no_others(tmp_path, capsys, monkeypatch):
    Image.open(TINY.photo).resize((60, 40)).save(tmp_path / "street.png")
    arguments = ["predict", str(TINY.checkpoint), str(tmp_path / "street.png"), "--out", str(tmp_path), "--device", "cpu"]
    for name in ("street_labels.png", "street_overlay.png"):
        (tmp_path / name).write_bytes(b"hand-made ground truth")
        with monkeypatch.context() as patch:
            patch.setattr(segmenter, "Segmenter", lambda *_, **__: pytest.fail("loaded a model first"))
            assert main.main(arguments) == 1
        assert re.search(f"{name} is there already.*--overwrite", capsys.readouterr().err)
        assert (tmp_path / name).read_bytes() == b"hand-made ground truth"
        (tmp_path / name).unlink()
    (tmp_path / "street_labels.png").write_bytes(b"hand-made ground truth")
    assert main.main([*arguments, "--overwrite"]) == 0
    for _ in range(2):
        assert main.main(arguments) == 0
    assert main.main(["predict", str(TINY.checkpoint), str(tmp_path), "--out", str(tmp_path), "--device", "cpu"]) == 0


def test_predict_stops_where_the_disk_is_full(tmp_path, capsys, monkeypatch):
    for name in ("a", "b"):
        Image.open(TINY.photo).resize((60, 40)).save(tmp_path / f"{name}.png")

    def full(source, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert main.main(["predict", str(TINY.checkpoint), str(tmp_path), "--out", str(tmp_path / "out"), "--device", "cpu"]) == 1
    told = capsys.readouterr().err
    assert "the disk or the quota is full" in told and "pictures failed" not in told


def test_predict_marks_its_labels_as_train_ids(tmp_path):
    assert main.main(["predict", str(TINY.checkpoint), str(TINY.photo), "--out", str(tmp_path), "--device", "cpu"]) == 0
    with Image.open(tmp_path / "chelsea_labels.png") as image:
        assert image.info[uz.labels.IDS_KEY] == uz.labels.TRAIN_IDS


def test_a_url_is_no_picture(capsys):
    assert main.main(["predict", "no_such_model", "https://example.com/street.jpg"]) == 1
    assert "is a URL" in capsys.readouterr().err


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_text_meets_every_console(encoding, tmp_path):
    code = "import sys; from upernet_zoo.cli import main, listing\n"
    code += "listing._list = lambda args: print('straße небо 道路 \\udcff')\nsys.exit(main.main(['list']))"
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode(encoding).startswith("straße" if encoding != "ascii" else "stra\\xdfe") and b"\\udcff" in done.stdout


def test_a_folder_of_mixed_pictures_is_done_but_for_the_bad_ones(tmp_path, capsys, monkeypatch):
    """A small form of benchmarks/mixed_folder.py: every kind of good and bad pictures."""
    bad = mixed_pictures.write(tmp_path / "pictures", 30, 1, large=3000)
    monkeypatch.setattr(memory, "available", lambda device: 50_000_000)
    arguments = ["predict", "demo", str(tmp_path / "pictures"), "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert main.main([*arguments, "--scales", "0.2"]) == 1
    stdout, stderr = capsys.readouterr()
    assert "30 of 40 pictures segmented" in stdout
    told = stderr.partition("10 of 40 pictures failed:\n")[2]
    assert len(told.splitlines()) == len(bad) == len(mixed_pictures.BAD) == 10
    for line, name in zip(told.splitlines(), bad):
        assert name in line
    for kind, cause in (
        ("bomb", "decompression bomb"),
        ("too_large", "3000x3000 pixels needs about 90 MB"),
        ("empty", "the file is empty"),
    ):
        assert re.search(f"_{kind}.*{cause}", told), kind
    for ending in ("labels", "overlay"):
        assert len(list((tmp_path / "out").glob(f"*_{ending}.png"))) == 30


def test_the_demo_keeps_a_file_of_someone_else_unless_told(tmp_path, capsys):
    from upernet_zoo.demo import run as demo_run
    from upernet_zoo.images import save

    out = tmp_path / "demo.png"
    out.write_text("mine")
    assert main.main(["demo", "--out", str(out)]) == 1 and out.read_text() == "mine"
    with pytest.raises(uz.errors.ExistingFileError, match="demo.png is there already"):
        demo_run.run(out, say=lambda _: pytest.fail("refused before the model is loaded"))
    assert main.main(["demo", "--out", str(out), "--overwrite"]) == 0 and save.is_own(out)
