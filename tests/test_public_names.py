"""What the package offers under which names: loaded when they are used, and known to type checkers."""

import ast
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import upernet_zoo as uz
from upernet_zoo import evaluation

PACKAGES = {"upernet_zoo": uz, "upernet_zoo.evaluation": evaluation}
MODULES = [
    "upernet_zoo",
    *(found.name for found in pkgutil.walk_packages(uz.__path__, "upernet_zoo.") if not found.name.endswith("__main__")),
]


def imported(name):
    """A module; the test is skipped where it needs an extra package that is not here."""
    try:
        return importlib.import_module(name)
    except uz.errors.MissingPackageError as error:
        pytest.skip(f"needs a package: {error}")


def static_names(module):
    """Name -> module, as the block for type checkers has it; None for a module that is public as a whole."""
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    return {alias.asname or alias.name: node.module for node in block.body for alias in node.names}


@pytest.mark.parametrize("name, lazy", [("upernet_zoo", "_NAMES"), ("upernet_zoo.evaluation", "_MODULES")])
def test_lazy_names_and_those_for_type_checkers_agree(name, lazy):
    module = PACKAGES[name]
    assert static_names(module) == getattr(module, lazy)
    assert set(getattr(module, lazy)) <= set(module.__all__)


@pytest.mark.parametrize("name", MODULES)
def test_every_module_says_what_it_offers(name):
    module = imported(name)
    assert len(set(module.__all__)) == len(module.__all__)
    for offered in module.__all__:
        assert getattr(module, offered) is not None or offered in vars(module), offered


@pytest.mark.parametrize("name", MODULES)
def test_no_name_of_a_package_is_a_module_and_something_else_too(name):
    package = imported(name)
    inner = {found.name for found in pkgutil.iter_modules(getattr(package, "__path__", []))}
    names = {n for n in {*package.__all__, *vars(package)} if n in inner}
    assert not [n for n in sorted(names) if not isinstance(getattr(package, n), ModuleType)]


@pytest.mark.parametrize("first", ["upernet_zoo.evaluate", "upernet_zoo.evaluation.runner", "upernet_zoo.cli.main", "upernet_zoo.errors"])
def test_names_mean_the_same_whatever_is_loaded_first(first):
    module, _, name = first.rpartition(".")
    code = f"""
from {module} import {name}
import types, upernet_zoo as uz, upernet_zoo.evaluation, upernet_zoo.cli.main
assert isinstance(uz.evaluate, types.FunctionType) and uz.evaluate is uz.evaluation.evaluate
assert isinstance(uz.evaluation, types.ModuleType) and isinstance(uz.cli.main, types.ModuleType)
assert issubclass(uz.errors.ModelNotFoundError, uz.UPerNetZooError)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
