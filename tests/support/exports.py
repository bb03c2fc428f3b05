"""The demo model as ONNX files, exported once for all processes of a test run, as it takes a while."""

import pytest
from filelock import FileLock

import upernet_zoo as uz
from upernet_zoo.interop import export

from .fixture import shared_folder


@pytest.fixture(scope="session")
def demo_onnx(tmp_path_factory):
    """ "logits" or "labels" -> the path of the demo model, exported so."""
    folder = shared_folder(tmp_path_factory)

    def exported(kind):
        path = folder / f"demo_{kind}.onnx"
        with FileLock(f"{path}.lock"):
            return path if path.exists() else export.to_onnx(uz.create_model("demo"), path, labels=kind == "labels")

    return exported
