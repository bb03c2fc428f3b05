"""Shared by all tests: one thread for each process, a cache of the test's own, no network but 127.0.0.1."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch reads it: two processes share two cores

import pytest
from filelock import FileLock
from hypothesis import HealthCheck, settings
from support import packages
from support.browser import chromium
from support.fixture import NAMES, ROOT, Fixture, shared_folder

from upernet_zoo.weights import connect

# a busy machine is no fault of a test
settings.register_profile("shared", deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.differing_executors])
settings.load_profile("shared")

SLOW = {line for line in (ROOT / "tests" / "slow_tests.txt").read_text().splitlines() if line and not line.startswith("#")}


def pytest_collection_modifyitems(items):
    """Mark what tests/slow_tests.txt lists as slow, and what is neither slow nor large as quick."""
    for item in items:
        name = f"{item.path.relative_to(ROOT / 'tests').as_posix()}::{item.originalname}"
        if name in SLOW:
            item.add_marker(pytest.mark.slow)
        if not any(item.iter_markers("slow")) and not any(item.iter_markers("large")):
            item.add_marker(pytest.mark.quick)


def _missing(report):
    """Fail in place of a skip for want of a package, a browser or a command where all of them should be there."""
    if report.skipped and os.environ.get("UPERNET_ZOO_TEST_ALL") and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if "could not import" in reason or "needs " in reason:
            report.outcome, report.longrepr = "failed", f"UPERNET_ZOO_TEST_ALL is set, and a test was skipped. {reason}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    return _missing((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    return _missing((yield))


@pytest.fixture(scope="module")  # while it runs, so does Playwright's event loop, in which others cannot start theirs
def browser():
    """Chromium; `with support.browser.new_page(browser) as page:` is a visitor."""
    with chromium() as started:
        yield started


@pytest.fixture(params=NAMES)
def fixture(request):
    return Fixture(request.param)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """No test reads or writes the user's caches, sees the user's settings, or knows the hosts that another could not reach."""
    connect.forget()
    for name in ("INDEX", "MIRRORS", "HUB_ORG", "OFFLINE"):
        monkeypatch.delenv(f"UPERNET_ZOO_{name}", raising=False)
    monkeypatch.setenv("UPERNET_ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch_home"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf_home"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """A folder with the sdist and the wheel, built once for all processes of a test run: two builds are in each other's way."""
    folder = shared_folder(tmp_path_factory) / "dist"
    with FileLock(f"{folder}.lock"):
        return folder if any(folder.glob("*.whl")) else packages.build(folder)


@pytest.fixture
def small_index(tmp_path, monkeypatch):
    """An index, in place of the public one, of the fixtures' checkpoints; their first mirror answers nothing."""
    import yaml

    models = []
    for name in NAMES:
        one = Fixture(name)
        config = one.expected["config"]
        test = config["test_cfg"]
        recipe = {"scale": config["img_scale"], "mode": test["mode"]}
        if test["mode"] == "slide":
            recipe |= {"crop": test["crop_size"], "stride": test["stride"]}
        architecture = {key: config[key] for key in ("channels", "num_classes", "align_corners")}
        widths = {"base_channels": config["base_channels"], "stem_channels": config["base_channels"]}
        architecture["backbone"] = {"kind": "resnet", "depth": config["depth"], **widths}
        architecture["auxiliary"] = {"channels": config["aux_channels"]}
        models.append(
            {
                "Name": name,
                "In Collection": "small",
                "Metadata": {"Method": "UPerNet", "Backbone": f"R-{config['depth']}", "Crop Size": "64x96", "Lr schd": 1},
                "Results": [{"Task": "Semantic Segmentation", "Dataset": "none", "Metrics": {}}],
                "Config": {**architecture, **recipe, "labels": name.rsplit("_", 1)[1]},
                "Weights": f"http://127.0.0.1:9/{one.expected['checkpoint']}",
                "SHA256": one.expected["sha256"][:8],
            }
        )
    stated = {"License": "Apache-2.0", "Source": "https://example.org/LICENSE"}
    collection = {"Name": "small", "Licenses": {"Weights": [{"At": "127.0.0.1", **stated}]}}
    path = tmp_path / "small_index.yml"
    path.write_text(yaml.safe_dump({"Collections": [collection], "Models": models}))
    monkeypatch.setenv("UPERNET_ZOO_INDEX", str(path))
    return path
