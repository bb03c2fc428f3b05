"""Shared by all tests: two threads at most, a cache of the test's own, no network but 127.0.0.1."""

import json
from pathlib import Path

import pytest

FIXTURES = Path(__file__).parent / "fixtures"
NAMES = sorted(p.parent.name for p in FIXTURES.glob("*/expected.json"))


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


@pytest.fixture(params=NAMES)
def fixture(request):
    return Fixture(request.param)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """No test reads or writes the user's caches, or sees the user's settings."""
    for name in ("INDEX", "MIRRORS", "HUB_ORG", "OFFLINE"):
        monkeypatch.delenv(f"UPERNET_ZOO_{name}", raising=False)
    monkeypatch.setenv("UPERNET_ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch_home"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf_home"))
    return tmp_path / "cache"


@pytest.fixture
def small_index(tmp_path, monkeypatch):
    """An index, in place of the public one, of the fixtures' checkpoints; their first home answers nothing."""
    import yaml

    models = []
    for name in NAMES:
        one = Fixture(name)
        config = one.expected["config"]
        test = config["test_cfg"]
        recipe = {"scale": config["img_scale"], "mode": test["mode"]}
        if test["mode"] == "slide":
            recipe |= {"crop": test["crop_size"], "stride": test["stride"]}
        architecture = {key: config[key] for key in ("depth", "base_channels", "channels", "aux_channels", "num_classes", "align_corners")}
        models.append(
            {
                "Name": name,
                "In Collection": "small",
                "Metadata": {"Method": "UPerNet", "Backbone": f"R-{config['depth']}", "Crop Size": "64x96", "Lr schd": 1},
                "Results": [{"Task": "Semantic Segmentation", "Dataset": "none", "Metrics": {}}],
                "Config": {**architecture, **recipe, "stem_channels": config["base_channels"], "labels": name.rsplit("_", 1)[1]},
                "Weights": f"http://127.0.0.1:9/{one.expected['checkpoint']}",
                "SHA256": one.expected["sha256"][:8],
            }
        )
    path = tmp_path / "small_index.yml"
    path.write_text(yaml.safe_dump({"Collections": [{"Name": "small"}], "Models": models}))
    monkeypatch.setenv("UPERNET_ZOO_INDEX", str(path))
    return path
