"""The examples in the docstrings of the public names run, and each public class and function has one: all that the API reference shows."""

import doctest
import inspect
import pkgutil
import re
import shutil

import pytest
from support.fixture import ROOT

import upernet_zoo as uz
from upernet_zoo import registry
from upernet_zoo.interop.export import to_onnx

_SHOWN = re.compile(r"^::: (\S+)$(?:\n    options:\n(?:      .*\n)*?      members: \[(.*)\])?", re.MULTILINE)


def _of_the_reference():
    """Dotted name -> class or function, of every page of docs/api; of the errors the base, as one example says it of all."""
    for page in sorted((ROOT / "docs" / "api").glob("*.md")):
        for name, members in _SHOWN.findall(page.read_text(encoding="utf-8")):
            value = pkgutil.resolve_name(name)
            if not inspect.ismodule(value):
                yield name, value
                continue
            for member in members.split(", ") if members else value.__all__:
                found = getattr(value, member)
                if (inspect.isclass(found) and not issubclass(found, Exception)) or inspect.isroutine(found):
                    yield f"{name}.{member}", found


def _public():
    shown = dict(_of_the_reference())
    own = {name: getattr(uz, name) for name in uz.__all__}
    known = list(map(id, shown.values()))
    return shown | {name: value for name, value in own.items() if callable(value) and id(value) not in known}


PUBLIC = _public()


def _own_examples(name):
    value = PUBLIC[name]
    finder = doctest.DocTestFinder(recurse=False)
    return [test for test in finder.find(inspect.unwrap(value), name, globs={}) if test.examples]


NEEDS = {
    "segment_raster": "rasterio",
    "SegmentedFrame": "av",
    "label_video": "av",
    "VideoReport": "av",
    "transformers": "transformers",
    "smp": "segmentation_models_pytorch",
    "to_onnx": "onnxscript",
    "OnnxSegmenter": "onnxruntime",
}


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_examples_run(name, things, tmp_path, monkeypatch):
    for part in NEEDS.keys() & set(name.split(".")):
        pytest.importorskip(NEEDS[part])
    tests = _own_examples(name)
    assert tests, f"the docstring of {name} has no example"
    shutil.copytree(things, tmp_path / "work")
    if name.endswith(".OnnxSegmenter"):
        to_onnx(uz.create_model("demo"), tmp_path / "work" / "model.onnx", size=(256, 512))
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(registry.BACKBONES, "_classes", dict(registry.BACKBONES._classes))  # the example of register is not kept
    said = []
    for test in tests:
        doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test, out=said.append)
    assert not said, "".join(said)
