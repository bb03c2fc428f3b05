"""torch.hub through its own directory layout: a clone in the hub directory, and source="local"; the package is not installed there."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.fixture import NAMES, ROOT, Fixture

import upernet_zoo as uz

# Everything that is installed beside the project, and not the project: an editable install is a path entry or a finder of its own.
PRELUDE = """
import sys
sys.path = [p for p in sys.path if p != {root!r}]
sys.meta_path = [f for f in sys.meta_path if "__editable__" not in repr(f)]
try:
    import upernet_zoo
    raise SystemExit("upernet_zoo is importable before torch.hub has brought it")
except ImportError:
    pass
import torch
"""


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A clone where torch.hub keeps it, and an index of small checkpoints that lie in torch's hub directory."""
    hub = Path(os.environ["TORCH_HOME"]) / "hub"
    target = hub / "someone_upernet_zoo_main"
    ignore = shutil.ignore_patterns("__pycache__", "tests", ".venv", ".git", "results", "*.egg-info")
    shutil.copytree(ROOT, target, ignore=ignore)
    return target


def run(code, folder, clone):
    """Run Python in another folder with no installed upernet_zoo."""
    script = PRELUDE.format(root=str(ROOT)) + code
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


REMOTE = '"someone/upernet_zoo:main", {}skip_validation=True, trust_repo=True'


def test_list_shows_the_names_and_nothing_else(clone, tmp_path):
    found = run(f"print(torch.hub.list({REMOTE.format('')}))", tmp_path, clone)
    assert eval(found) == sorted(uz.list_models())  # torch.hub.list goes through dir()


def test_help_shows_data_set_numbers_and_a_snippet(clone, tmp_path):
    name = "upernet_r101_769x769_80k_cityscapes"
    text = run(f"print(torch.hub.help({REMOTE.format(repr(name) + ', ')}))", tmp_path, clone)
    for word in (name, "Cityscapes", "769x769", "80000", "80.10", "81.49", "torch.hub.load", "Segmenter", "prepare", "19 classes"):
        assert word in text


@pytest.mark.parametrize("source", ("hub directory", "local"))
def test_load_from_a_process_started_elsewhere(clone, tmp_path, small_index, source):
    one = Fixture(NAMES[0])
    checkpoints = Path(os.environ["TORCH_HOME"]) / "hub" / "checkpoints"
    checkpoints.mkdir()
    shutil.copy(one.checkpoint, checkpoints)
    # beside another project that has top-level modules of the usual names
    project = tmp_path / "project"
    for module in ("models", "utils", "index", "config"):
        (project / module).mkdir(parents=True)
        (project / module / "__init__.py").write_text("mine = True\n")
    arguments = REMOTE.format(repr(one.name) + ", ") if source != "local" else f"{str(clone)!r}, {one.name!r}, source='local'"
    code = f"""
import models, utils
model = torch.hub.load({arguments})
assert models.mine and utils.mine
assert not any("someone_upernet_zoo" in p for p in sys.path)
from upernet_zoo import Segmenter          # lazy imports after the call has returned
from upernet_zoo.images.preprocess import load_image, prepare
import upernet_zoo
assert {str(clone)!r} in upernet_zoo.__file__
segmentation = Segmenter(model)({str(one.photo)!r})
with torch.inference_mode():
    logits = model(prepare(load_image({str(one.photo)!r})[:64, :96], model.recipe)[:, :, :64, :64])
print(model.config.backbone.depth, segmentation.labels.shape, tuple(logits.shape))
segmentation.overlay().save("overlay.png")
"""
    printed = run(code, project, clone)
    config = one.expected["config"]
    assert (
        printed.split("\n")[-2] == f"{config['depth']} {one.labels(config['test_cfg']['mode']).shape} (1, {config['num_classes']}, 64, 64)"
    )
    assert (project / "overlay.png").stat().st_size > 0


def test_not_pretrained_and_keywords(clone, tmp_path):
    name = uz.list_models()[0]
    code = f"""
model = torch.hub.load({REMOTE.format(repr(name) + ", ")}, pretrained=False, num_classes=3)
print(model.config.num_classes)
try:
    torch.hub.load({REMOTE.format(repr(name) + ", ")}, pretrained=False, clases=3)
except TypeError as error:
    print(error)
"""
    printed = run(code, tmp_path, clone)
    assert "3\n" in printed and "no argument 'clases'" in printed
