"""The package as users get it: sdist, wheel and editable install each carry the index and start the command."""

import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import upernet_zoo as uz

ROOT = Path(__file__).resolve().parent.parent
INDEX = (ROOT / "model_index.yml").read_bytes()


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """sdist and wheel, the wheel built from the sdist, with the setuptools that is installed here."""
    out = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT], check=True, capture_output=True)
    return out


def command_in(tmp_path, *install):
    """Output of `upernet-zoo list` from a virtual environment that has `install` and sees the packages installed here."""
    target = tmp_path / "venv"
    venv.create(target, with_pip=False, system_site_packages=False)
    # the dependencies of the running environment, after the new one's own packages
    site = next(target.glob("lib/python*/site-packages"))
    others = [p for p in sys.path if p.endswith("site-packages")]
    (site / "dependencies.pth").write_text("\n".join(others) + "\n")
    pip = [sys.executable, "-m", "pip", "--python", target / "bin" / "python", "install", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--ignore-installed", *install], check=True, capture_output=True)
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
        "upernet_zoo/models/backbones/resnet.py",
        "upernet_zoo/demo/model_index.yml",
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
    assert listing.count("upernet_r") == 16
    inside = str(ROOT) if kind == "editable" else str(tmp_path)
    assert package.startswith(inside) and index.startswith(inside)
    assert os.path.samefile(index, ROOT / "model_index.yml") == (kind == "editable")
