"""The order of floors that docs/design.md draws, held against the imports of every module."""

import ast
import re
from pathlib import Path

import pytest
from support.fixture import ROOT

PACKAGE = ROOT / "upernet_zoo"
TORCH_FREE = ("index", "config", "labels", "weights", "segmentation", "runtime")


def floors():
    """Name of each floor -> the modules and packages on it, from the ground up, as the design page draws them."""
    drawn = re.search(r"^```floors\n(.*?)^```", (ROOT / "docs" / "design.md").read_text(encoding="utf-8"), re.M | re.S)[1]
    lines = (line.split(":") for line in drawn.splitlines())
    return {name: modules.split() for name, modules in lines}


def modules(package):
    """Name of each module of a package, without the package's own -> its file."""
    paths = {".".join(path.relative_to(package).with_suffix("").parts): path for path in sorted(package.rglob("*.py"))}
    return {name.removesuffix(".__init__"): path for name, path in paths.items()}


def imports(name, path, known):
    """The package's own modules that a module imports, wherever in it: at its top, in a function, or for type checkers alone."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    package = ["upernet_zoo", *package] if name != "__init__" else ["upernet_zoo"]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) - node.level + 1], *filter(None, [node.module])] if node.level else node.module.split(".")
            found |= {".".join([*base, alias.name]) for alias in node.names}
    own = {other.removeprefix("upernet_zoo.") if other != "upernet_zoo" else "__init__" for other in found if is_own(other)}
    # what is no module is a name in one: `from .config import Recipe`
    inner = {other if other in known else other.rpartition(".")[0] or "__init__" for other in own}
    return inner - {name}


def is_own(name):
    return name.split(".")[0] == "upernet_zoo"


def graph(package):
    known = modules(package)
    return {name: imports(name, path, known) for name, path in known.items()}


def floor_of(name, drawn):
    """Number of the floor that a module is on: that of its own name, or of the nearest package around it; None if there is none."""
    numbers = {module: number for number, (_, names) in enumerate(drawn.items()) for module in names}
    parts = name.split(".")
    return next((numbers[part] for n in range(len(parts), 0, -1) if (part := ".".join(parts[:n])) in numbers), None)


def faults(edges, drawn):
    found = [f"{name} is on no floor: put it on one in docs/design.md" for name in edges if floor_of(name, drawn) is None]
    for name, others in edges.items():
        for other in sorted(others):
            above, below = floor_of(name, drawn), floor_of(other, drawn)
            if None not in (above, below) and below > above:
                found.append(f"{name} imports {other}, which is on a higher floor")
    return found + [f"a circle: {', '.join(circle)}" for circle in circles(edges)]


def circles(edges):
    """What is left when modules that import none of those left are taken away again and again, and likewise those that none imports."""
    left = {name: set(others) for name, others in edges.items()}
    while True:
        imported = set().union(*left.values())
        free = {name for name, others in left.items() if not others & left.keys() or name not in imported}
        if not free:
            return [sorted(left)] if left else []
        left = {name: others - free for name, others in left.items() if name not in free}


def test_every_module_imports_from_its_own_floor_and_lower_ones_alone():
    assert not faults(graph(PACKAGE), floors())


def test_what_is_drawn_is_there():
    known = modules(PACKAGE)
    drawn = [name for names in floors().values() for name in names]
    assert len(drawn) == len(set(drawn))
    assert not [name for name in drawn if name not in known]


def test_no_module_that_must_do_without_torch_imports_it_or_one_that_does():
    edges, known = graph(PACKAGE), modules(PACKAGE)
    todo = [name for name in edges if name.split(".")[0] in TORCH_FREE]
    reached = set()
    while todo:
        name = todo.pop()
        if name not in reached:
            reached.add(name)
            todo += edges[name]
    assert {"registry", "errors"} <= reached
    for name in sorted(reached - {"memory", "images.preprocess"}):  # which import it in functions that give or take tensors
        tree = ast.parse(known[name].read_text(encoding="utf-8"))
        names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
        names += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and not node.level]
        assert not [module for module in names if module.split(".")[0] in ("torch", "torchvision")], name


HOUSES = {
    "up": ({"low": "from . import high"}, ["low imports high, which is on a higher floor"]),
    "up, in a function": ({"low": "def f():\n    from .high import x"}, ["low imports high, which is on a higher floor"]),
    "up, for type checkers": ({"low": "if TYPE_CHECKING:\n    from .high import X"}, ["low imports high, which is on a higher floor"]),
    "up, by its whole name": ({"low": "import upernet_zoo.high"}, ["low imports high, which is on a higher floor"]),
    "up, from a package": ({"wing.inner": "from ..high import x"}, ["wing.inner imports high, which is on a higher floor"]),
    "a circle on one floor": ({"low": "from . import other", "other": "from .low import x"}, ["a circle: low, other"]),
    "a circle in a package": ({"wing.a": "from .b import x", "wing.b": "from . import a"}, ["a circle: wing.a, wing.b"]),
    "on no floor": ({"new": ""}, ["new is on no floor: put it on one in docs/design.md"]),
    "none": ({"high": "from . import low\nfrom .wing.inner import x\nfrom .wing import inner", "low": "import json"}, []),
}


@pytest.mark.parametrize("files, expected", HOUSES.values(), ids=HOUSES)
def test_each_fault_is_found(files, expected, tmp_path):
    everything = {"low": "", "other": "", "high": "", "wing.__init__": "", "wing.inner": ""} | files
    for name, text in everything.items():
        path = (tmp_path / Path(*name.split("."))).with_suffix(".py")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert faults(graph(tmp_path), {"ground": ["low", "other", "wing"], "roof": ["high"]}) == expected
