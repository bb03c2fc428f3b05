"""A real browser for the tests of pages: Chromium, driven by Playwright, that reaches nothing but files and 127.0.0.1."""

import contextlib
import os
import shutil
from urllib.parse import urlsplit

import pytest

# the switches from --disable-quic on keep Chromium from asking its maker's hosts at every start
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def executable():
    """Where Chromium is, from UPERNET_ZOO_CHROMIUM or PATH; skips without it."""
    names = (os.environ.get("UPERNET_ZOO_CHROMIUM"), "chromium", "chromium-browser", "google-chrome")
    found = next((path for name in names if name and (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("needs Chromium (on Debian: apt-get install chromium), or UPERNET_ZOO_CHROMIUM=PATH")
    return found


class Watched:
    """What a page asked for and complained of."""

    def __init__(self, page):
        self.errors, self.outside = [], []
        page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.context.route("**/*", self._allow)

    def _allow(self, route):
        url = urlsplit(route.request.url)
        if url.scheme in ("file", "data", "blob") or url.hostname in ("127.0.0.1", "localhost"):
            route.continue_()
        else:
            self.outside.append(route.request.url)
            route.abort()


@contextlib.contextmanager
def chromium():
    """A started browser."""
    sync_api = pytest.importorskip("playwright.sync_api")
    path = executable()
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


@contextlib.contextmanager
def new_page(browser, **options):
    """A page of its own visitor; `page.watched` has its `errors` and the URLs `outside` that it asked for (none were reached).

    Options are those of Playwright's `new_context`: `viewport={"width": 390, "height": 844}`, `color_scheme="dark"`, ...
    """
    context = browser.new_context(accept_downloads=True, **options)
    context.set_default_timeout(120_000)  # the machine may be busy
    page = context.new_page()
    page.watched = Watched(page)
    try:
        yield page
    finally:
        context.close()
