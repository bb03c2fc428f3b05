"""The package as users get it: sdist, wheel and editable install each carry the index and start the command."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from support.fixture import ROOT
from support.packages import environment

import upernet_zoo as uz
from upernet_zoo.web.page import read_results

INDEX = (ROOT / "model_index.yml").read_bytes()


def command_in(tmp_path, *install):
    """Output of `upernet-zoo list` from a virtual environment that has `install`, and where the package and its index are."""
    target = environment(tmp_path / "venv", *install)
    done = subprocess.run([target / "bin" / "upernet-zoo", "list"], check=True, capture_output=True, text=True, cwd=tmp_path)
    where = "import upernet_zoo, upernet_zoo.index as i; print(upernet_zoo.__file__); print(i.default_path())"
    paths = subprocess.run([target / "bin" / "python", "-c", where], check=True, capture_output=True, text=True, cwd=tmp_path)
    return done.stdout, paths.stdout.split()


def test_the_index_travels_in_sdist_and_wheel(built):
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
        assert file.read("upernet_zoo/model_index.yml") == INDEX
    for name in (
        "upernet_zoo/py.typed",
        "upernet_zoo/labels.json",
        "upernet_zoo/licenses.json",
        "upernet_zoo/web/page.css",
        "upernet_zoo/web/page.html",
        "upernet_zoo/web/page.js",
        "upernet_zoo/results/inference_ade20k_r50.json",
        "upernet_zoo/models/backbones/resnet.py",
        "upernet_zoo/demo/model_index.yml",
        "upernet_zoo/web/app.css",
        "upernet_zoo/web/viewer.html",
        "upernet_zoo/web/viewer.js",
    ):
        assert name in names
    assert any(n.startswith("upernet_zoo/demo/upernet_demo_") for n in names)
    assert not any(n.startswith(("tests/", "tools/")) for n in names)
    assert any(n.endswith("licenses/NOTICE") or n.endswith("dist-info/NOTICE") for n in names)
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as file:
        base = f"upernet_zoo-{uz.__version__}"
        assert file.extractfile(f"{base}/model_index.yml").read() == INDEX
        assert {f"{base}/{n}" for n in ("hubconf.py", "LICENSE", "NOTICE", "README.md", "setup.py")} <= set(file.getnames())


@pytest.mark.parametrize("kind", ("sdist", "wheel", "editable"))
def test_the_command_runs_from_each(built, tmp_path, kind):
    what = {"sdist": next(built.glob("*.tar.gz")), "wheel": next(built.glob("*.whl")), "editable": ROOT}[kind]
    listing, (package, index) = command_in(tmp_path, *(["-e"] if kind == "editable" else []), what)
    assert all(name in listing for name in uz.list_models())
    venv = tmp_path / "venv" / "bin" / "upernet-zoo"
    page = subprocess.run([venv, "page", "zoo.html"], check=True, capture_output=True, text=True, cwd=tmp_path).stdout
    measured = len(read_results(ROOT / "results", uz.index.default().values()))
    assert page == f"zoo.html: 60 models, {measured} of them with measured seconds\n" and measured > 5
    inside = str(ROOT) if kind == "editable" else str(tmp_path)
    assert package.startswith(inside) and index.startswith(inside)
    assert Path(index).samefile(ROOT / "model_index.yml") == (kind == "editable")


def test_what_the_readmes_test_command_does_not_install_is_skipped():
    """`pip install -e ".[test]"` brings none of these: a test that wants one says so, and nothing fails."""
    gone = ("av", "fastapi", "gradio", "mkdocs", "openvino", "playwright", "pyarrow", "pycocotools", "rasterio", "ray", "uvicorn")
    asked = (
        "tests/test_public_names.py",
        "tests/docs",
        "tests/test_raster.py",
        "tests/test_video.py",
        "tests/web",
        "tests/images/test_shapes.py",
    )
    code = f"import sys, pytest; sys.modules.update(dict.fromkeys({gone!r})); sys.exit(pytest.main({[*asked, '-q', '-n', '0', '-rs']!r}))"
    environment = {key: value for key, value in os.environ.items() if key != "UPERNET_ZOO_TEST_ALL" and not key.startswith("PYTEST_")}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "needs a package: " in done.stdout and "could not import 'av'" in done.stdout
