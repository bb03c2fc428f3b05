"""README and documentation: what they say to type can be typed, what they link is there, and the site builds."""

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from support.fixture import ROOT

from upernet_zoo.cli.main import all_commands
from upernet_zoo.errors import MissingPackageError

PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")] + sorted((ROOT / "docs").rglob("*.md"))
BLOCK = re.compile(r"^(?:<!-- not run: (?P<reason>.+) -->\n)?```(?P<language>\w+)\n(?P<code>.*?)^```$", re.M | re.S)
# what stands in a snippet for something of the reader's, and what the test puts in its place
STANDS_FOR = {r"(?<!model_info\(\")\bupernet_r\d+_\w+": "demo", r"steps=2000, batch_size=8": "steps=2, batch_size=2"}


def _name(path):
    return path.relative_to(ROOT).as_posix()


def _blocks(path, language):
    return [match for match in BLOCK.finditer(path.read_text(encoding="utf-8")) if match["language"] == language]


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_and_pictures_are_there(page):
    prose = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    here = "https://github.com/upernet-zoo/upernet_zoo/(?:blob|tree)/main/"
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if own := re.match(here, target):
            assert (ROOT / target[own.end() :].partition("#")[0]).exists(), target
        elif "://" not in target and not target.startswith(("#", "mailto:")):
            assert (page.parent / target.partition("#")[0]).exists(), target


RUN = [page for page in PAGES if any(not block["reason"] for block in _blocks(page, "python"))]


@pytest.mark.parametrize("page", RUN, ids=_name)
def test_snippets_run(page, things, tmp_path, monkeypatch):
    shutil.copytree(things, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    names = {"__name__": "__snippet__"}
    for block in _blocks(page, "python"):
        code = block["code"]
        ast.parse(code)
        for pattern, there in STANDS_FOR.items():
            code = re.sub(pattern, there, code)
        if block["reason"]:
            continue
        try:
            exec(compile(code, f"{_name(page)}", "exec"), names)
        except MissingPackageError as error:
            pytest.skip(f"needs a package: {error}")


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_commands_are_understood(page):
    parser = all_commands()
    for block in _blocks(page, "bash"):
        for line in block["code"].splitlines():
            words = shlex.split(line, comments=True)
            while "&&" in words:
                words = words[words.index("&&") + 1 :]
            if words[:1] == ["upernet-zoo"]:
                args, unknown = parser.parse_known_args(words[1:])
                assert not unknown and args.run, line
            elif words[:1] == ["python"] and words[1].endswith(".py"):
                assert (ROOT / words[1]).is_file(), line


def test_the_site_builds(tmp_path):
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    # without --quiet, under which --strict counts no warning
    line = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(line, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "create_model" in (tmp_path / "site" / "api" / "models" / "index.html").read_text(encoding="utf-8")
    assert "upernet_r50_512x512_160k_ade20k" in (tmp_path / "site" / "zoo" / "index.html").read_text(encoding="utf-8")
    for page in (tmp_path / "site").rglob("*.html"):  # nothing is asked of another host
        text = page.read_text(encoding="utf-8")
        assert not re.findall(r"<(?:script|img|iframe)[^>]+src=\"(?:https?:)?//", text), page
        assert 'data-md-component="source"' not in text, page  # whose script asks GitHub for the number of stars
