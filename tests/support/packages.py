"""The package as users get it, built and installed."""

import subprocess
import sys
import venv
from importlib import metadata

from packaging.requirements import Requirement

from .fixture import ROOT


def build(folder):
    """sdist and wheel, the wheel built from the sdist, with the setuptools that is installed here."""
    subprocess.run([sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT], check=True, capture_output=True)
    return folder


def environment(folder, *install):
    """A virtual environment that has `install` and sees the packages installed here."""
    venv.create(folder, with_pip=False, system_site_packages=False)
    # the dependencies of the running environment, after the new one's own packages
    site = next(folder.glob("lib/python*/site-packages"))
    others = [p for p in sys.path if p.endswith("site-packages")]
    (site / "dependencies.pth").write_text("\n".join(others) + "\n")
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--ignore-installed", *install], check=True, capture_output=True)
    return folder


def bare_environment(folder, wheel, names):
    """A virtual environment that has the wheel without what it requires, `names` with all that these require, and nothing else.

    What pip would bring from PyPI is linked from the running environment, file by file, so that no network is needed.

    Returns:
        (folder, bytes of all that was installed).
    """
    venv.create(folder, with_pip=False, system_site_packages=False)
    site = next(folder.glob("lib/python*/site-packages"))
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install", "-q", "--no-deps", wheel]
    subprocess.run(pip, check=True, capture_output=True)
    todo, done = list(names), set()
    while todo:
        distribution = metadata.distribution(todo.pop())
        if distribution.name in done:
            continue
        done.add(distribution.name)
        wanted = [Requirement(text) for text in distribution.requires or ()]
        todo += [one.name for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})]
        for file in distribution.files:
            if ".." not in file.parts and "__pycache__" not in file.parts:
                (site / file).parent.mkdir(parents=True, exist_ok=True)
                (site / file).symlink_to(file.locate().resolve())
    return folder, sum(path.stat().st_size for path in site.rglob("*") if path.is_file())
