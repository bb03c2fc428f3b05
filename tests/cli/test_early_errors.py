"""What needs no torch answers before torch is imported, and says what was most likely meant. What --help tells of each command."""

import argparse
import shlex
import subprocess
import sys

import pytest

import upernet_zoo as uz
from upernet_zoo import errors
from upernet_zoo.cli import benchmark, evaluate, listing, main, page, portable, segment, train, weights
from upernet_zoo.cli.common import Commands, Parser

NAME = "upernet_r50_512x512_80k_ade20k"
CASES = (
    (["predict", "demo", "missing.png"], 1, "missing.png: no such picture or folder"),
    (["predict", f"{NAME}x", "here.png"], 1, f"Did you mean {NAME}"),
    (["predict", NAME.upper(), "here.png"], 1, f"Did you mean {NAME}"),
    (["predict", "local-dir:", "here.png"], 1, "expected a folder"),
    (["predict", NAME, "here.png", "--checkpoint", "missing.pth"], 1, "No checkpoint file at missing.pth"),
    (["predict", NAME, "here.png", "--alpha", "2"], 1, "from 0 to 1"),
    (["predict", NAME, "here.png", "--every", "0"], 1, "each tenth frame"),
    (["predict", NAME, "here.png", "--every", "2"], 1, "--every is for videos, and no video is given"),
    (["predict", NAME, "film.mp4", "--tile", "64"], 1, "film.mp4 is a video"),
    (["predict", NAME, "films"], 1, "It has 1 video: give each by its own name"),
    (["predict", NAME, "here.png", "--mode", "Slide"], 2, "Did you mean 'slide'?"),
    (["predict", NAME, "here.png", "--Out", "x"], 2, "Did you mean '--out'?"),
    (["evaluate", "demo", "voc", "."], 1, "Did you mean 'voc12aug'?"),
    (["evaluate", "demo", "Cityscapes", "."], 1, "Did you mean 'cityscapes'?"),
    (["evaluate", "demo", "cityscapes", "missing"], 1, "missing: no such folder"),
    (["evaluate", "missing.pth", "cityscapes", "."], 1, "missing.pth"),
    (["train", "folder", "missing", "--model", "demo", "--out", "x"], 1, "missing: no such folder"),
    (["train", "folder", ".", "--model", "dmo", "--out", "x"], 1, "dmo"),
    (["convert", "missing.pth", "--out", "x"], 1, "missing.pth"),
    (["export", "missing.pth", "--out", "x.onnx"], 1, "missing.pth"),
    (["export", "demo", "--out", "x.pth"], 1, "the endings are .onnx"),
    (["benchmark", "missing.pth"], 1, "missing.pth"),
    (["push", "missing.pth", "a/b"], 1, "missing.pth"),
    (["demo", "--out", "x.xyz"], 1, "no picture format is known"),
    (["demo", "--seed", "-1"], 1, "from 0 up"),
    (["list", "--sort", "iou"], 1, "there are mIoU"),
    (["list", "--dataset", "voc"], 1, "Did you mean 'voc12aug'?"),
    (["list", "--backbone", "r10"], 1, "Did you mean 'R-101'?"),
    (["list", "--datset", "voc"], 2, "Did you mean '--dataset'?"),
    (["lst"], 2, "Did you mean 'list'?"),
)


@pytest.fixture
def here(tmp_path, monkeypatch):
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("here.png")
    (tmp_path / "film.mp4").touch()
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / "film.mp4").touch()


@pytest.mark.parametrize("arguments, status, message", CASES, ids=[" ".join(case[0]) for case in CASES])
def test_a_mistake_is_told_with_what_was_meant(here, capsys, arguments, status, message):
    try:
        assert main.main(arguments) == status
    except SystemExit as caught:
        assert caught.code == status
    assert message in capsys.readouterr().err


def test_no_mistake_waits_for_torch(here):
    code = """
import sys
sys.modules["torch"] = None  # an import of it fails
from upernet_zoo.cli.main import main
for arguments, status, message in eval(sys.argv[1]):
    try:
        found = main(arguments)
    except SystemExit as caught:
        found = caught.code
    assert found == status, (arguments, found)
"""
    done = subprocess.run([sys.executable, "-c", code, repr(CASES)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_names_are_taken_in_any_case():
    assert uz.list_models(sort="miou") == uz.list_models(sort="mIoU")
    assert uz.list_models(sort="MIOU(MS+FLIP)") == uz.list_models(sort="mIoU(ms+flip)")
    assert uz.list_models(backbone="r101") == uz.list_models(backbone="R-101") != []
    assert uz.list_models(dataset="VOC12Aug") == uz.list_models(dataset="voc12aug") != []
    for name in ("Cityscapes", "city", "VOC"):
        with pytest.raises(errors.UnknownLabelSetError, match="Did you mean '(cityscapes|voc12aug)'"):
            uz.labels.get(name)


def commands():
    found = {}

    class Collected(Commands):
        def add(self, name, run, help):
            found[name] = super().add(name, run, help)
            return found[name]

    collected = Collected(Parser())
    for module in (listing, page, weights, segment, evaluate, train, portable, benchmark):
        module.register(collected)
    return found


@pytest.mark.parametrize("name, parser", commands().items())
def test_help_has_an_example_that_parses_and_every_default(name, parser):
    text = parser.format_help()
    example = parser.epilog.removeprefix("example: upernet-zoo ")
    assert text.count("example: ") == 1 and example.startswith(name)
    assert parser.parse_args(shlex.split(example)[1:])
    for action in parser._actions:
        assert action.help, action
        if action.default not in (None, False, [], argparse.SUPPRESS) and action.option_strings and action.nargs != 0:
            assert "default" in action.help, action.option_strings
