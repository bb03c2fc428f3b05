"""The examples in the docstrings of the public names run, and each public class and function has one."""

import doctest
import inspect
import shutil

import pytest

import upernet_zoo as uz
from upernet_zoo import registry

PUBLIC = {name: value for name in uz.__all__ if inspect.isclass(value := getattr(uz, name)) or inspect.isroutine(value)}


def _own_examples(name):
    value = PUBLIC[name]
    finder = doctest.DocTestFinder(recurse=False)
    return [test for test in finder.find(inspect.unwrap(value), name, globs={}) if test.examples]


NEEDS = {"segment_raster": "rasterio"}


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_examples_run(name, things, tmp_path, monkeypatch):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    tests = _own_examples(name)
    assert tests, f"the docstring of {name} has no example"
    shutil.copytree(things, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(registry.BACKBONES, "_classes", dict(registry.BACKBONES._classes))  # the example of register is not kept
    said = []
    for test in tests:
        doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test, out=said.append)
    assert not said, "".join(said)
