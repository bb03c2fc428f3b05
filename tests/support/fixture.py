"""The small checkpoints in tests/fixtures."""

import json
import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "tests" / "fixtures"
NAMES = sorted(p.parent.name for p in FIXTURES.glob("*/expected.json"))
FAMILY = sorted(f"family/{p.parent.name}" for p in FIXTURES.glob("family/*/expected.json"))  # other backbones than ResNet-50 and 101


def shared_folder(tmp_path_factory):
    """A folder for what is made once for all processes of a test run, under a lock."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


class Fixture:
    """A small checkpoint in the published format and what mmsegmentation 0.30 computes with it."""

    def __init__(self, name):
        self.name, self.folder = name, FIXTURES / name
        self.expected = json.loads((self.folder / "expected.json").read_text())
        self.checkpoint = self.folder / self.expected["checkpoint"]
        self.photo = FIXTURES / self.expected["photo"]

    def arrays(self, name):
        import numpy as np

        return np.load(self.folder / name)

    def labels(self, what):
        import numpy as np
        from PIL import Image

        return np.array(Image.open(self.folder / f"labels_{what}.png"))
