"""The example notebook runs, and the copy in the repository holds what it gives."""

import nbformat
from nbclient import NotebookClient
from support.fixture import ROOT

PATH = ROOT / "examples" / "finetune.ipynb"


def printed(cell):
    return "".join(output.get("text") or output["data"].get("text/plain", "") for output in cell.outputs)


def test_the_example_runs_from_top_to_bottom():
    kept = nbformat.read(PATH, 4)
    notebook = nbformat.read(PATH, 4)
    NotebookClient(notebook, timeout=900, startup_timeout=600, kernel_name="python3").execute()
    for cell, stored in zip(notebook.cells, kept.cells):
        if cell.cell_type == "code":
            assert bool(stored.outputs) == bool(cell.outputs), cell.source  # stored as executed
    assert float(printed(notebook.cells[-1]).rpartition(":")[2]) < 1e-3  # ONNX Runtime and the model
    assert "mIoU" in printed(notebook.cells[-4])
