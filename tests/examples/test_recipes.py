"""The recipes in examples/, each run on the demo model as its first lines say; of those that cannot be run here, the syntax."""

import base64
import functools
import http.server
import json
import py_compile
import re
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest
from PIL import Image
from support.browser import new_page
from support.exports import demo_onnx  # noqa: F401  a fixture
from support.fixture import FIXTURES, ROOT, Fixture

import upernet_zoo as uz
from upernet_zoo.cli import main

EXAMPLES = ROOT / "examples"
PHOTOS = [FIXTURES / "photos" / name for name in ("chelsea.png", "coffee.png")]
NOT_RUN = ("tensorrt_runtime.py", "docker/Dockerfile")


def run(name, *arguments, cwd):
    """What a recipe prints."""
    done = subprocess.run([sys.executable, EXAMPLES / name, *arguments], capture_output=True, text=True, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


def npm(folder, *packages):
    """Install packages of npm's registry, or those of the folder's package.json."""
    if shutil.which("npm") is None:
        pytest.skip("needs npm")
    quiet = ["--no-audit", "--no-fund", "--ignore-scripts", "--no-update-notifier", "--fetch-retries=5"]
    done = subprocess.run(["npm", "install", *quiet, *packages], cwd=folder, capture_output=True, text=True)
    if re.search(r"ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ETIMEDOUT", done.stderr):
        pytest.skip("needs the registry of npm")
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def expected():
    """Name of each photo -> the demo model's segmentation."""
    segmenter = uz.Segmenter("demo")
    return {photo.name: segmenter(photo) for photo in PHOTOS}


def test_transformers_pipeline(tmp_path):
    import torch
    import transformers

    model = Fixture("family/upernet_convnext_tiny_fp16_512x512_160k_ade20k").checkpoint  # the demo model is too narrow for transformers
    assert main.main(["convert", str(model), "--to", "transformers", "--out", str(tmp_path / "theirs")]) == 0
    text = run("transformers_pipeline.py", "theirs", PHOTOS[1], "labels.png", cwd=tmp_path)
    found = np.array(Image.open(tmp_path / "labels.png"))
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "theirs")
    network = transformers.UperNetForSemanticSegmentation.from_pretrained(tmp_path / "theirs")
    photo = Image.open(PHOTOS[1]).convert("RGB")
    with torch.no_grad():
        outputs = network(**processor(photo, return_tensors="pt"))
    (labels,) = processor.post_process_semantic_segmentation(outputs, target_sizes=[photo.size[::-1]])
    assert np.array_equal(found, labels.numpy())
    names = [line.rpartition(":")[0] for line in text.splitlines()]
    assert sorted(names) == sorted(network.config.id2label[i] for i in np.unique(found))


def test_controlnet(expected, tmp_path):
    run("controlnet.py", "demo", PHOTOS[0], "control.png", cwd=tmp_path)
    with Image.open(tmp_path / "control.png") as control:
        assert control.mode == "RGB" and control.size == (451, 300)  # a PIL image in RGB is what diffusers takes
        wanted = expected[PHOTOS[0].name]
        assert np.array_equal(np.array(control), np.array(wanted.palette, np.uint8)[wanted.labels])


@pytest.mark.parametrize("photo", PHOTOS, ids=lambda path: path.stem)
def test_onnx_runtime(photo, expected, demo_onnx, tmp_path):  # noqa: F811
    text = run("onnx_runtime.py", demo_onnx("labels"), photo, "labels.png", "overlay.png", cwd=tmp_path)
    wanted = expected[photo.name]
    with Image.open(tmp_path / "labels.png") as found, Image.open(tmp_path / "overlay.png") as overlay:
        assert found.mode == "P" and (np.array(found) == wanted.labels).mean() >= 0.9999
        assert overlay.width >= found.width and overlay.height > found.height
    assert all(name.strip() in text for name in wanted.areas()) and "Segmentation(" in text


@pytest.mark.parametrize("photo", PHOTOS, ids=lambda path: path.stem)
def test_openvino(photo, expected, demo_onnx, tmp_path):  # noqa: F811
    pytest.importorskip("openvino")
    run("openvino_runtime.py", demo_onnx("labels"), photo, "labels.png", cwd=tmp_path)
    assert (np.array(Image.open(tmp_path / "labels.png")) == expected[photo.name].labels).mean() >= 0.999


@pytest.fixture
def site(demo_onnx, tmp_path):  # noqa: F811
    """URL of the page, made and served as its README says."""
    folder = shutil.copytree(EXAMPLES / "browser", tmp_path / "browser", ignore=shutil.ignore_patterns("node_modules"))
    npm(folder)
    shutil.copy(demo_onnx("labels"), folder / "model.onnx")
    subprocess.run([sys.executable, "classes.py", "model.onnx"], cwd=folder, check=True)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


DROP = """([name, content]) => {
  const transfer = new DataTransfer();
  transfer.items.add(new File([Uint8Array.from(atob(content), (c) => c.charCodeAt(0))], name));
  document.querySelector("label").dispatchEvent(new DragEvent("drop", {dataTransfer: transfer, cancelable: true}));
}"""


def test_the_page_in_chromium(site, browser, expected):
    with new_page(browser) as page:
        page.goto(site)
        for photo in PHOTOS:
            if photo is PHOTOS[0]:
                page.evaluate(DROP, [photo.name, base64.b64encode(photo.read_bytes()).decode()])
            else:
                page.set_input_files("input", photo)
            wanted = expected[photo.name]
            height, width = wanted.labels.shape
            page.get_by_role("status").filter(has_text=f"{width}x{height} pixels in").wait_for(timeout=300_000)
            found = np.array(page.evaluate("Array.from(document.querySelector('canvas').labels)")).reshape(height, width)
            assert (found == wanted.labels).mean() >= 0.999
            first = page.locator("li").first.inner_text()
            name, share = next(iter(wanted.areas().items()))
            assert first.startswith(name) and abs(float(first.split()[-2]) - 100 * share) <= 0.2
        page.set_input_files("input", EXAMPLES / "README.md")
        page.get_by_role("status").filter(has_text="That did not work").wait_for()
        assert not page.watched.errors and not page.watched.outside


def test_what_is_not_run_says_so_and_has_good_syntax(tmp_path):
    """Python by its compiler, the Dockerfile by the linter of Visual Studio Code's Docker extension."""
    for name in NOT_RUN:
        assert "NOT RUN" in (EXAMPLES / name).read_text(encoding="utf-8")
    for name in ("tensorrt_runtime.py", "docker/segment.py"):
        py_compile.compile(str(EXAMPLES / name), cfile=str(tmp_path / "compiled"), doraise=True)
    npm(tmp_path, "dockerfile-utils@0.16.3")
    check = [
        "node",
        "-e",
        "process.stdout.write(JSON.stringify(require('dockerfile-utils').validate(require('fs').readFileSync(0, 'utf8'))))",
    ]

    def faults(text):
        return json.loads(subprocess.run(check, input=text, cwd=tmp_path, check=True, capture_output=True, text=True).stdout)

    text = (EXAMPLES / "docker" / "Dockerfile").read_text(encoding="utf-8")
    assert faults(text.replace("WORKDIR", "WORKDIRECTORY")) and not faults(text)


def test_every_recipe_is_listed_and_tested():
    listed = set(re.findall(r"\]\(([^)/]+)/?\)", (EXAMPLES / "README.md").read_text(encoding="utf-8")))
    assert listed >= {path.name for path in EXAMPLES.glob("*.py")} | {"browser", "docker"}
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    assert not [name for name in listed if name not in tests]
