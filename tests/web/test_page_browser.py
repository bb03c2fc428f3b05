"""The zoo's page in a real browser, from a file: nothing is asked for, and filters, sorting, copying, keys, themes and a phone work."""

import re

import pytest
from support import browser
from support.fixture import ROOT

from upernet_zoo import index
from upernet_zoo.web import page as zoo

ENTRIES = index.load(ROOT / "model_index.yml")
MAE = "upernet_mae-base_fp16_8x2_512x512_160k_ade20k"


@pytest.fixture(scope="module")
def running():
    with browser.chromium() as running:
        yield running


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "zoo.html"
    zoo.write(path, zoo.render(ENTRIES, measured=zoo.read_results(ROOT / "results", ENTRIES.values())))
    return path.as_uri()


@pytest.fixture
def visit(running, address):
    """Opens the page with options of a context; afterwards nothing was complained of, and nothing asked of others."""
    opened = []

    def visit(**options):
        context = browser.new_page(running, **{"viewport": {"width": 1360, "height": 900}, **options})
        page = context.__enter__()
        opened.append((context, page))
        page.goto(address)
        return page

    yield visit
    for context, page in opened:
        assert page.watched.errors == [] and page.watched.outside == []
        context.__exit__(None, None, None)


def visible(page):
    return page.locator("tbody").evaluate_all("rows => rows.filter(row => !row.hidden).map(row => row.dataset.name)")


def numbers(page, key):
    values = page.locator("tbody").evaluate_all(f"rows => rows.filter(row => !row.hidden).map(row => row.dataset.{key})")
    return [None if value == "" else float(value) for value in values]


def test_it_opens_from_a_file_and_draws_every_model(visit):
    page = visit()
    assert sorted(visible(page)) == sorted(ENTRIES)
    points = page.locator("#panels .point")
    assert sorted(points.evaluate_all("points => points.map(point => point.dataset.name)")) == sorted(ENTRIES)
    assert page.locator("#panels h3").all_inner_texts() == [
        "ADE20K · 44 models",
        "Cityscapes · 10 models",
        "Pascal VOC 2012 + Aug · 6 models",
    ]
    # a point lies where its numbers say: further right with more GMACs, higher with more mIoU
    where = page.locator("#panels .panel:first-child .point").evaluate_all(
        "points => points.map(p => [p.dataset.name, ...p.getAttribute('transform').match(/[0-9.]+/g).map(Number)])"
    )
    by_cost = sorted(where, key=lambda point: (ENTRIES[point[0]].gmacs, point[1]))
    assert [x for _, x, _ in by_cost] == sorted(x for _, x, _ in where)
    by_accuracy = sorted(where, key=lambda point: (-ENTRIES[point[0]].metrics["mIoU"], point[2]))
    assert [y for _, _, y in by_accuracy] == sorted(y for _, _, y in where)
    page.locator("#x-axis").select_option("seconds")
    measured = page.locator("#panels .point").evaluate_all("points => points.map(point => point.dataset.name)")
    assert sorted(measured) == sorted(zoo.read_results(ROOT / "results", ENTRIES.values()))


def test_filters_and_search(visit):
    page = visit()
    page.get_by_label("Search").fill("swin 22k")
    assert set(visible(page)) == {n for n, e in ENTRIES.items() if "Swin" in e.backbone and e.pretraining == "ImageNet-22K"}
    page.get_by_label("Search").fill("nothing at all")
    assert visible(page) == [] and page.get_by_text("No model fits these filters.").is_visible()
    assert page.locator("#panels .point").count() == 0
    page.get_by_role("button", name="Reset").click()
    page.wait_for_function("document.getElementById('count').textContent === '60 models'")
    page.get_by_label("License", exact=True).select_option("CC-BY-NC-4.0")
    assert visible(page) == [MAE] and page.locator("#count").inner_text() == "1 of 60 models"
    page.get_by_label("License", exact=True).select_option("")
    page.get_by_role("checkbox", name="Cityscapes").check()
    assert {ENTRIES[name].dataset for name in visible(page)} == {"Cityscapes"}
    page.get_by_role("checkbox", name="ADE20K").check()
    page.get_by_role("checkbox", name="Twins").check()
    assert set(visible(page)) == {name for name in ENTRIES if name.startswith("twins")}


def test_columns_sort_both_ways_with_what_is_missing_last(visit):
    page = visit()
    head = page.locator("th", has_text="mIoU").first
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    assert numbers(page, "miou") == sorted((e.metrics["mIoU"] for e in ENTRIES.values()), reverse=True)
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert numbers(page, "miou") == sorted(e.metrics["mIoU"] for e in ENTRIES.values())
    cpu = page.locator("th", has_text="CPU")
    for way, reverse in (("ascending", False), ("descending", True)):
        cpu.get_by_role("button").click()
        assert cpu.get_attribute("aria-sort") == way and head.get_attribute("aria-sort") is None
        found = numbers(page, "seconds")
        known = [value for value in found if value is not None]
        assert known == sorted(known, reverse=reverse) and found == [*known, *[None] * (60 - len(known))]
    page.locator("th", has_text="Model").get_by_role("button").click()
    assert visible(page) == page.evaluate("names => names.sort((a, b) => a.localeCompare(b, 'en', { numeric: true }))", list(ENTRIES))


def test_the_lines_of_a_row_are_copied(visit):
    page = visit(permissions=["clipboard-read", "clipboard-write"])
    page.evaluate("() => { window.setTimeout = (then) => { window.later = then; }; }")  # the label lasts until it has been seen
    page.get_by_role("button", name=f"Copy the Python lines of {MAE}").first.click()
    shown = "([label, text]) => document.querySelector(`[aria-label='${label}']`).textContent === text"
    page.wait_for_function(shown, arg=[f"Copy the Python lines of {MAE}", "Copied"])
    page.evaluate("later()")
    page.wait_for_function(shown, arg=[f"Copy the Python lines of {MAE}", "Copy"])
    assert page.evaluate("navigator.clipboard.readText()") == zoo.snippet(MAE)
    page.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject(new Error('no')); }")  # the older way
    page.get_by_role("button", name="Copy the install command").click()
    page.wait_for_selector(".install .copy:text-is('Copied')")
    assert page.evaluate("navigator.clipboard.readText()").startswith("pip install ")


def test_a_row_opens_and_says_what_is_stated(visit):
    page = visit()
    name = next(name for name, entry in ENTRIES.items() if entry.licenses.weights.disagree)
    row = page.locator(f"tbody[data-name='{name}']")
    button = row.locator(".open")
    assert button.get_attribute("aria-expanded") == "false" and row.locator(".more").is_hidden()
    button.click()
    assert button.get_attribute("aria-expanded") == "true"
    said = row.locator(".more").inner_text()
    assert "The sources disagree: Apache-2.0 and MIT." in said and "last seen: not checked" in said
    row.get_by_role("link", name="ADE20K", exact=True).click()
    assert page.locator("#terms-ade20k").evaluate("e => e.matches(':target')")


def test_it_is_used_by_keyboard_alone(visit):
    page = visit()
    order = []
    for _ in range(12):
        page.keyboard.press("Tab")
        order.append(page.evaluate("document.activeElement.id || document.activeElement.value || document.activeElement.textContent"))
    assert order[:5] == ["Skip to the table", "theme", "Copy", "search", "license"] and order[5:8] == [
        "ADE20K",
        "Cityscapes",
        "Pascal VOC 2012 + Aug",
    ]
    page.keyboard.press("Space")  # the chip that the focus is on
    assert {ENTRIES[name].architecture["backbone"]["kind"] for name in visible(page)} == {order[11]}
    page.keyboard.press("Space")
    point = page.locator("#panels .point[tabindex='0']").first
    point.focus()
    first = page.evaluate("document.activeElement.dataset.name")
    tip = page.locator("#tip")
    assert first in tip.inner_text() and f"{ENTRIES[first].metrics['mIoU']:.2f} mIoU" in tip.inner_text()
    page.keyboard.press("ArrowRight")
    second = page.evaluate("document.activeElement.dataset.name")
    assert second != first and ENTRIES[second].gmacs >= ENTRIES[first].gmacs and second in tip.inner_text()
    assert page.locator("#panels .panel:first-child .point[tabindex='0']").count() == 1
    page.keyboard.press("End")
    assert page.evaluate("document.activeElement.dataset.name") == "upernet_beit-large_fp16_8x1_640x640_160k_ade20k"
    page.keyboard.press("Escape")
    assert tip.is_hidden()
    page.keyboard.press("Enter")
    row = page.locator("tbody[data-name='upernet_beit-large_fp16_8x1_640x640_160k_ade20k']")
    assert row.locator(".more").is_visible() and row.locator(".open").evaluate("e => e === document.activeElement")
    page.locator("th button").first.focus()
    page.keyboard.press("Enter")
    assert page.locator("th").first.get_attribute("aria-sort") == "ascending"


def test_hovering_a_point_says_which_model_it_is(visit):
    page = visit()
    name = "upernet_beit-large_fp16_8x1_640x640_160k_ade20k"
    page.locator(f".point[data-name='{name}']").hover()
    said = page.locator("#tip").inner_text()
    assert name in said and "1992.5 GMACs at 640x640" in said
    page.mouse.move(5, 5)
    assert page.locator("#tip").is_hidden()


def test_dark_and_light_follow_the_system_and_the_button(visit):
    def background(page):
        return sum(map(int, re.findall(r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor"))[:3]))

    dark, light = visit(color_scheme="dark"), visit(color_scheme="light")
    assert background(dark) < 100 < 600 < background(light)
    dark.emulate_media(color_scheme="light")
    assert background(dark) > 600
    light.get_by_role("button", name="Switch between light and dark").click()
    assert background(light) < 100
    light.reload()
    assert background(light) < 100  # remembered


CONTRAST = """
() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => [r, g, b].map((v) => v / 255).map((v) => (v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const behind = (e) => {
    const color = parse(getComputedStyle(e).backgroundColor);
    return color.length < 4 || color[3] === 1 ? color : behind(e.parentElement);
  };
  return [...document.querySelectorAll("p, td, th button, label, legend, a, h1, h2, h3, .badge, button, dt, dd, li, code")]
    .filter((e) => e.offsetParent && e.textContent.trim())
    .map((e) => {
      const [a, b] = [luminance(parse(getComputedStyle(e).color)), luminance(behind(e))];
      return [(Math.max(a, b) + .05) / (Math.min(a, b) + .05), e.tagName + "." + e.className];
    }).sort((x, y) => x[0] - y[0])[0];
}
"""


@pytest.mark.parametrize("scheme", ("light", "dark"))
def test_text_stands_out_enough(visit, scheme):
    """WCAG AA: 4.5 to 1."""
    page = visit(color_scheme=scheme)
    page.locator(".open").first.click()
    worst, where = page.evaluate(CONTRAST)
    assert worst >= 4.5, where


def test_it_fits_a_phone(visit):
    page = visit(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    page.locator(".open").first.click()
    assert page.evaluate("document.documentElement.scrollWidth") == page.evaluate("document.documentElement.clientWidth") == 390
    beyond = page.locator("body *:not(.snippet *)").evaluate_all(
        "elements => elements.filter(e => e.offsetParent && e.getBoundingClientRect().right > 391).map(e => e.className)"
    )
    assert beyond == []
    page.get_by_label("Sort by").select_option("gmacs ascending")
    assert numbers(page, "gmacs") == sorted(entry.gmacs for entry in ENTRIES.values())


def test_without_scripts_the_table_is_whole(running, address):
    with browser.new_page(running, java_script_enabled=False) as page:
        page.goto(address)
        assert page.locator("tbody:visible").count() == 60
        assert page.locator("#filters").is_hidden() and page.locator(".plot").is_hidden()


def test_hostile_data_run_nothing(running, tmp_path):
    name = next(iter(ENTRIES))
    hostile = "</script><img src=x onerror=alert(1)>"
    path = zoo.write(tmp_path / "zoo.html", zoo.render(ENTRIES, weights={name: zoo.Seen("broken", hostile, None, hostile)}))
    with browser.new_page(running) as page:
        asked = []
        page.on("dialog", lambda dialog: (asked.append(dialog.message), dialog.dismiss()))
        page.goto(path.as_uri())
        page.evaluate("document.body.append(document.createElement('p'))")
        assert page.locator("img").count() == 0 and asked == []
        # the policy itself: a script that is not the page's own does not run
        page.evaluate("const s = document.createElement('script'); s.textContent = 'window.ran = 1'; document.body.append(s)")
        assert page.evaluate("window.ran") is None
