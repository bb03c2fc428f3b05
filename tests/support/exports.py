"""The demo model as ONNX files, exported once for all processes of a test run, as it takes a while."""

import os

import pytest
from filelock import FileLock

import upernet_zoo as uz
from upernet_zoo.interop import export


@pytest.fixture(scope="session")
def demo_onnx(tmp_path_factory):
    """ "logits" or "labels" -> the path of the demo model, exported so."""
    own = tmp_path_factory.getbasetemp()
    folder = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own

    def exported(kind):
        path = folder / f"demo_{kind}.onnx"
        with FileLock(f"{path}.lock"):
            return path if path.exists() else export.to_onnx(uz.create_model("demo"), path, labels=kind == "labels")

    return exported
