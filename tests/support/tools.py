"""The scripts of tools/, which are no package."""

import importlib.util

from support.fixture import ROOT


def load(name):
    """tools/NAME.py as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
