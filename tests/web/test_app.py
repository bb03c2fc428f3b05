"""The app as a visitor meets it: its own process, and a real browser."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path

import numpy as np
import pytest
import requests
from PIL import Image
from support.browser import ARGUMENTS, executable, new_page
from support.fixture import FIXTURES, ROOT
from support.waiting import until

from upernet_zoo import Segmenter
from upernet_zoo.demo import scenes
from upernet_zoo.demo.run import FIRST_UNSEEN_SEED
from upernet_zoo.errors import UPerNetZooError
from upernet_zoo.images.save import save_picture
from upernet_zoo.web.app_models import Studio
from upernet_zoo.wording import command_line

PHOTOS = sorted((FIXTURES / "photos").glob("*.png"))
CANVAS = """() => {
    const canvas = document.querySelector(".uz-stage canvas");
    const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    return [canvas.height, canvas.width, btoa(Array.from(pixels.data, (one) => String.fromCharCode(one)).join(""))];
}"""


class Server:
    """`upernet-zoo app` with a cache and a folder for temporary files of its own, and no network."""

    def __init__(self, folder, *arguments):
        self.cache, self.temporary = folder / "cache", folder / "temporary"
        self.temporary.mkdir(parents=True)
        (folder / "secret.txt").write_text("of the working directory")
        self.folder = folder
        environment = {**os.environ, "UPERNET_ZOO_CACHE": str(self.cache), "TMPDIR": str(self.temporary), "TORCH_HOME": str(folder)}
        command = [sys.executable, "-u", "-m", "upernet_zoo", "app", "--port", "0", "--local-files-only", *arguments]
        self.process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)
        line = self.process.stdout.readline()
        self.url = re.search(r"http://\S+", line)[0]

    def end(self):
        """What it leaves behind in its folder for temporary files."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(120) == 0
        self.process.stdout.close()
        return list(self.temporary.glob("upernet_zoo_app_*"))


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    pytest.importorskip("gradio")
    running = Server(tmp_path_factory.mktemp("app"))
    yield running
    assert not running.end()


@pytest.fixture(scope="module")
def browser():
    """With a camera that shows a test picture."""
    sync_api = pytest.importorskip("playwright.sync_api")
    camera = ["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=executable(), args=[*ARGUMENTS, *camera])
        yield running
        running.close()


@pytest.fixture
def page(server, browser):
    with new_page(browser, viewport={"width": 1280, "height": 1000}) as one:
        opened(one, server)
        yield one
        assert not one.watched.errors and not one.watched.outside


def opened(page, server):
    page.goto(server.url)
    page.wait_for_selector("#uz-examples img")
    page.wait_for_function("typeof window.upernetZooSave === 'function'")


def give(page, path):
    """Drop a picture, in place of one that is there, and wait for its result."""
    page.locator("#uz-picture input[type=file]").set_input_files(path)
    result_of(page, Path(path).stem)


def result_of(page, stem):
    page.wait_for_function("(stem) => document.querySelector('.uz-caption').textContent.startsWith(stem + ' · ')", arg=stem)
    page.wait_for_selector(".uz-result:not([hidden])")


def canvas(page):
    """What the canvas shows, (H, W, 3) whole numbers."""
    import base64

    height, width, content = page.evaluate(CANVAS)
    return np.frombuffer(base64.b64decode(content), np.uint8).reshape(height, width, 4)[..., :3].astype(int)


def table(page):
    """Name -> area and pixels, as the page lists them."""
    rows = page.locator(".uz-classes tbody tr").all()
    return {
        row.locator(".uz-name").inner_text().strip(): tuple(row.locator("td").nth(k).inner_text().strip() for k in (1, 2)) for row in rows
    }


def expected_table(segmentation):
    values = segmentation.to_dict()["classes"]
    areas = {one["name"]: (one["area"], round(one["area"] * segmentation.labels.size)) for one in values}
    return {
        name: (f"{area:.1%}".replace("%", " %") if area >= 0.0005 else "< 0.1 %", f"{count:,}") for name, (area, count) in areas.items()
    }


def saved(page, what, path):
    with page.expect_download() as download:
        page.click(f"[data-save={what}]")
    download.value.save_as(path)
    return download.value.suggested_filename


def error_of(page):
    page.wait_for_selector(".toast-body")
    return page.locator(".toast-messages").inner_text()


def test_a_picture_in_an_overlay_out(page, tmp_path):
    segmentation = Segmenter("demo")(PHOTOS[0])
    give(page, PHOTOS[0])
    mixed = np.array(segmentation.overlay(0.5, legend=False), int)
    assert canvas(page).shape == mixed.shape and np.abs(canvas(page) - mixed).mean() < 1.5  # the page's picture is a JPEG
    assert table(page) == expected_table(segmentation)
    assert saved(page, "labels", tmp_path / "labels.png") == f"{PHOTOS[0].stem}_labels.png"
    segmentation.save(tmp_path / "expected.png")
    assert (tmp_path / "labels.png").read_bytes() == (tmp_path / "expected.png").read_bytes()
    page.locator(".uz-bar input").fill("30")
    assert np.abs(canvas(page) - np.array(segmentation.overlay(0.3, legend=False), int)).mean() < 1.5
    assert saved(page, "overlay", tmp_path / "overlay.png") == f"{PHOTOS[0].stem}_overlay.png"
    save_picture(segmentation.overlay(0.3), tmp_path / "expected_overlay.png")
    assert (tmp_path / "overlay.png").read_bytes() == (tmp_path / "expected_overlay.png").read_bytes()


def test_a_class_is_lit_up_by_its_row_its_key_and_in_the_picture(page):
    segmentation = Segmenter("demo")(PHOTOS[0])
    give(page, PHOTOS[0])
    whole = canvas(page)
    second = list(segmentation.areas())[1]
    button = page.locator(".uz-name button").nth(1)
    button.click()
    lit, mask = canvas(page), segmentation.mask(second)
    assert np.array_equal(lit[mask], whole[mask])
    assert np.ptp(lit[~mask], axis=1).max() == 0 and lit[~mask].mean() < 0.5 * whole[~mask].mean()  # gray, and darker
    assert button.get_attribute("aria-pressed") == "true" and page.locator("tr.uz-dim").count() == len(segmentation.areas()) - 1
    button.press("Enter")
    assert np.array_equal(canvas(page), whole) and page.locator("tr.uz-dim").count() == 0
    y, x = np.argwhere(mask)[mask.sum() // 2]
    box = page.locator(".uz-stage canvas").bounding_box()
    place = {"x": (x + 0.5) * box["width"] / mask.shape[1], "y": (y + 0.5) * box["height"] / mask.shape[0]}
    page.locator(".uz-stage canvas").hover(position=place)
    assert page.locator(".uz-tip").inner_text() == second
    page.locator(".uz-stage canvas").click(position=place)
    assert np.array_equal(canvas(page), lit)


def test_scales_and_flip(page, tmp_path):
    page.get_by_text("Scales and flip").click()
    page.get_by_label("0.75").check()
    page.get_by_label("average with the mirrored picture").check()
    give(page, PHOTOS[0])
    saved(page, "labels", tmp_path / "labels.png")
    expected = Segmenter("demo", scales=(0.75, 1.0), flip=True)(PHOTOS[0])
    assert np.array_equal(np.array(Image.open(tmp_path / "labels.png")), expected.labels)


def test_an_example(page, tmp_path):
    page.locator("#uz-examples img").first.click()
    result_of(page, "drawn_street_1")
    saved(page, "labels", tmp_path / "labels.png")
    expected = Segmenter("demo")(scenes.draw(FIRST_UNSEEN_SEED)[0])
    assert np.array_equal(np.array(Image.open(tmp_path / "labels.png")), expected.labels)


def test_the_camera(page):
    page.get_by_label("Capture from camera").click()
    page.locator("#uz-picture").get_by_text("Click to Access Webcam").click()
    page.wait_for_function("document.querySelector('#uz-picture video').videoWidth > 0")  # before it shows something, nothing is captured
    page.get_by_label("capture photo").click()
    page.wait_for_selector(".uz-result:not([hidden])")
    assert re.match(r".* · \d+x\d+ pixels · demo · ", page.locator(".uz-caption").inner_text())


def test_a_broken_file_is_told_and_leaves_no_result(page, tmp_path):
    give(page, PHOTOS[0])
    path = tmp_path / "broken <b>picture.jpg"
    path.write_bytes(b"\xff\xd8\xff" + b"x" * 100)
    page.locator("#uz-picture input[type=file]").set_input_files(path)
    message = error_of(page)
    assert re.match(r"broken .*picture.jpg: a JPEG file that is damaged or cut off", message) and "/" not in message.split(":")[0]
    page.wait_for_selector(".uz-empty:not([hidden])")
    page.watched.errors.clear()  # the browser cannot show it either


def test_weights_that_cannot_be_had(page, server):
    give(page, PHOTOS[0])
    name = "upernet_r101_769x769_80k_cityscapes"
    field, options = page.locator("#uz-model input"), page.get_by_role("option")
    field.click()

    def narrowed():
        """The list follows the keys, not at once; and it is whole again when the page's list of models comes later."""
        field.press("ControlOrMeta+a")
        page.keyboard.type("r101_769x769_80k")
        page.wait_for_timeout(500)
        return options.count() == 1

    until(narrowed)
    page.get_by_role("option", name=name).click()
    page.wait_for_function("document.querySelector('#uz-facts').textContent.includes('published mIoU 80.10 %')")
    page.click("#uz-run")
    with pytest.raises(UPerNetZooError) as expected, command_line():  # which the server was started from
        Studio(local_files_only=True, cache_dir=server.cache).segment(PHOTOS[0], name)
    plain = [re.sub(r"\s+|/\S+", "", text) for text in (error_of(page), str(expected.value))]
    assert plain[0] == plain[1]


def test_two_visitors_at_once(server, browser, tmp_path):
    with new_page(browser) as first, new_page(browser) as second:
        visitors = list(zip((first, second), PHOTOS))
        for page, _ in visitors:
            opened(page, server)
        for page, photo in visitors:
            page.locator("#uz-picture input[type=file]").set_input_files(photo)
        for page, photo in visitors:
            result_of(page, photo.stem)
        for page, photo in visitors:  # each asks for the result after both are there
            saved(page, "labels", tmp_path / photo.name)
            expected = Segmenter("demo")(photo)
            assert np.array_equal(np.array(Image.open(tmp_path / photo.name)), expected.labels)
            assert table(page) == expected_table(expected)


@pytest.mark.parametrize("width, scheme", [(390, "light"), (390, "dark"), (1280, "dark")])
def test_it_fits_and_can_be_read(server, browser, width, scheme):
    with new_page(browser, viewport={"width": width, "height": 844}, color_scheme=scheme) as page:
        opened(page, server)
        page.locator("#uz-examples img").first.click()
        result_of(page, "drawn_street_1")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
        assert dark == (scheme == "dark")
        page.wait_for_function("document.querySelector('.uz-stage').getBoundingClientRect().top < window.innerHeight")


@pytest.mark.parametrize("seconds", [0.0, 0.5, 2.0])
def test_it_may_end_while_it_starts(tmp_path, seconds):
    """torch is imported meanwhile, in a thread of its own."""
    pytest.importorskip("gradio")
    running = Server(tmp_path)
    time.sleep(seconds)
    assert not running.end()


def test_no_other_file_is_served(server):
    own = next(server.temporary.glob("upernet_zoo_app_*"))
    example = own / "drawn_street_1.png"
    get = f"{server.url}/gradio_api/file="
    assert requests.get(get + str(example)).content == example.read_bytes()
    package = ROOT / "upernet_zoo"
    for path in (
        "/etc/passwd",
        f"{own}/../../secret.txt",
        f"{own}/%2e%2e/%2e%2e/secret.txt",
        server.folder / "secret.txt",
        "secret.txt",
        package / "version.py",
        package / "demo" / "model_index.yml",
        "http://127.0.0.1:9/",
        "file:///etc/passwd",
    ):
        answer = requests.get(f"{get}{path}")
        assert answer.status_code in (403, 404) and b"root:" not in answer.content and b"of the working" not in answer.content
    for path in ("/gradio_api/proxy=http://127.0.0.1:9/", "/monitoring", "/docs", "/openapi.json", "/gradio_api/runs"):
        assert requests.get(server.url + path).status_code == 404


def asked(server, picture, model="demo"):
    """What a visitor without a browser is answered, by Gradio's queue."""
    config = requests.get(f"{server.url}/config").json()
    button = next(one["id"] for one in config["components"] if one["props"].get("elem_id") == "uz-run")
    number = next(one["id"] for one in config["dependencies"] if [button, "click"] in one["targets"])
    visitor = uuid.uuid4().hex
    data = {"data": [picture, model, [1.0], False], "fn_index": number, "session_hash": visitor}
    assert requests.post(f"{server.url}/gradio_api/queue/join", json=data).ok
    with requests.get(f"{server.url}/gradio_api/queue/data", params={"session_hash": visitor}, stream=True, timeout=300) as lines:
        return next(line for line in lines.iter_lines(decode_unicode=True) if "process_completed" in line)


def test_a_visitor_names_no_file_url_or_model_of_this_machine(server):
    own = next(server.temporary.glob("upernet_zoo_app_*"))
    file = {"meta": {"_type": "gradio.FileData"}, "orig_name": "a.png"}
    example = {**file, "path": str(own / "drawn_street_1.png")}
    assert '"success":true' in asked(server, example)
    for picture in ({**file, "path": "/etc/passwd"}, {**file, "path": "secret.txt"}, {**file, "path": "http://127.0.0.1:9/a.png"}):
        assert '"success":false' in asked(server, picture)
    for model in ("hf-hub:somebody/model", str(FIXTURES), "/etc/passwd"):
        assert '"success":false' in asked(server, example, model)
    assert not [path for path in own.rglob("*") if path.name in ("passwd", "secret.txt", "a.png")]


def test_a_file_that_is_too_large_is_not_kept(server):
    before = sum(path.stat().st_size for path in server.temporary.rglob("*") if path.is_file())
    answer = requests.post(f"{server.url}/gradio_api/upload", files={"files": ("large.png", bytes(51_000_000))})
    assert answer.status_code == 413
    assert sum(path.stat().st_size for path in server.temporary.rglob("*") if path.is_file()) == before


def test_it_listens_on_this_machine_alone(server):
    port = int(server.url.rpartition(":")[2])
    assert server.url == f"http://127.0.0.1:{port}"
    with pytest.raises(OSError):  # an address of this machine too, and not the one it listens on
        socket.create_connection(("127.0.0.2", port), timeout=5).close()
    assert "default-src 'self'" in requests.get(server.url).headers["Content-Security-Policy"]


def test_a_port_that_is_taken(server):
    port = server.url.rpartition(":")[2]
    run = subprocess.run([sys.executable, "-m", "upernet_zoo", "app", "--port", port], capture_output=True, text=True, timeout=300)
    assert run.returncode == 1
    assert re.fullmatch(rf"upernet-zoo: 127.0.0.1:{port} cannot be listened on \(.*\). Give another --host or --port; .*\n", run.stderr)


@pytest.mark.parametrize("gone", [("gradio",), ("uvicorn", "fastapi", "gradio")], ids=" ".join)
def test_without_gradio_the_message_has_the_line_to_install_it(gone):
    code = f"import sys; sys.modules.update(dict.fromkeys({gone!r})); from upernet_zoo.cli.main import main; sys.exit(main(['app']))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert run.returncode == 1
    assert re.match(r"upernet-zoo: The app needs the package (gradio|fastapi): pip install 'upernet-zoo\[app\] @ git\+https://", run.stderr)
