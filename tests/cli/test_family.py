"""Every kind of backbone, narrow, through the commands: predict, evaluate what was predicted, and train."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import upernet_zoo as uz
from upernet_zoo.cli import main
from upernet_zoo.demo import scenes

FAMILY = Path(__file__).parents[1] / "fixtures" / "family"
KINDS = (
    "upernet_convnext_tiny",
    "upernet_swin_tiny",
    "twins_svt",
    "upernet_vit-b16_mln",
    "upernet_beit",
    "upernet_mae",
    "knet_s3_upernet_swin",
)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Three small scenes of three classes."""
    root = tmp_path_factory.mktemp("scenes")
    for name in ("images", "masks"):
        (root / name).mkdir()
    for seed in range(3):
        image, target = scenes.draw(seed, (32, 48))
        Image.fromarray(image).save(root / "images" / f"{seed}.png")
        Image.fromarray((target % 3).astype(np.uint8)).save(root / "masks" / f"{seed}.png")
    (root / "classes.txt").write_text("a\nb\nc\n")
    return root


@pytest.mark.filterwarnings("ignore:.*the file does not say all")
@pytest.mark.parametrize("name", KINDS)
def test_predict_evaluate_and_train(root, tmp_path, capsys, name):
    checkpoint = next(FAMILY.glob(f"{name}*/*.pth"))
    one = ["predict", str(checkpoint), str(root / "images/0.png"), "--device", "cpu", "--no-optimize", "--out"]
    assert main.main([*one, str(tmp_path / "published"), "--scales", "0.25"]) == 0, capsys.readouterr().err
    model = uz.load_checkpoint(checkpoint)
    size = model.config.backbone.input_size
    if size is None:  # smaller pictures than published, to be quick
        model.recipe = uz.Recipe(scale=(96, 64))
    reference = f"local-dir:{model.save_pretrained(tmp_path / 'model')}"

    (tmp_path / "data").mkdir()
    (tmp_path / "data/images").symlink_to(root / "images")
    line = ["predict", reference, str(root / "images"), "--out", str(tmp_path / "data/masks"), "--no-optimize", "--device", "cpu"]
    assert main.main(line) == 0, capsys.readouterr().err
    line = ["evaluate", reference, "folder", str(tmp_path / "data"), "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert main.main(line) == 0, capsys.readouterr().err
    assert json.loads((tmp_path / "out/metrics.json").read_text())["mIoU"] == 1.0

    line = ["train", "folder", str(root), "--model", reference, "--out", str(tmp_path / "run"), "--device", "cpu"]
    line += ["--steps", "1", "--batch-size", "2", "--optimizer", "adamw", "--layer-decay", "0.9"]
    capsys.readouterr()
    if size is not None:
        assert main.main([*line, "--crop", "64x64"]) == 1
        assert "takes pictures of 128x128 pixels only, and the crops are 64x64: --crop 128x128." in capsys.readouterr().err
        assert not (tmp_path / "run").exists()
    assert main.main(line) == 0, capsys.readouterr().err
    one[1] = f"local-dir:{tmp_path / 'run/best'}"
    assert main.main([*one, str(tmp_path / "again")]) == 0, capsys.readouterr().err
    assert set(np.unique(np.array(Image.open(tmp_path / "again/0_labels.png")))) <= {0, 1, 2}


@pytest.mark.filterwarnings("ignore:.*the file does not say all")
def test_benchmark_takes_the_one_size_that_a_model_takes(capsys):
    line = ["benchmark", str(next(FAMILY.glob("upernet_beit*/*.pth"))), "--repeats", "1", "--device", "cpu"]
    assert main.main([*line, "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["shape"] == [1, 3, 128, 128] and found["largest_difference"] < 5e-5
    assert main.main([*line, "--size", "64x96"]) == 1
    assert "--size 64x96: BEiT (width 18, depth 12) takes pictures of 128x128 pixels alone. Leave --size out." in capsys.readouterr().err
