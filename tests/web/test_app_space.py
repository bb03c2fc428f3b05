"""The Space in examples/space, which cannot be run here as the Hub runs it."""

import re
import runpy

import yaml
from support.fixture import ROOT

from upernet_zoo import index
from upernet_zoo.version import install_line
from upernet_zoo.web import app_server

SPACE = ROOT / "examples" / "space"


def test_it_serves_a_model_of_the_index_to_everyone(monkeypatch):
    calls = []
    monkeypatch.setattr(app_server, "serve", lambda model, **options: calls.append((model, options)))
    runpy.run_path(str(SPACE / "app.py"))
    ((model, options),) = calls
    assert model in index.default() and options == {"host": "0.0.0.0", "port": 7860}  # where a Space is looked for


def test_its_requirements_are_the_line_that_installs_the_app():
    *options, requirement = (SPACE / "requirements.txt").read_text().splitlines()
    assert install_line("app") == f"pip install '{requirement}'"
    assert options == ["--extra-index-url https://download.pytorch.org/whl/cpu"]
    assert install_line("app") in (SPACE / "README.md").read_text()


def test_its_card_says_how_it_is_run():
    card = yaml.safe_load((SPACE / "README.md").read_text(encoding="utf-8").split("---")[1])
    assert (card["sdk"], card["app_file"], card["license"]) == ("gradio", "app.py", "apache-2.0")
    setup = (ROOT / "setup.cfg").read_text()
    least = re.search(r"gradio>=(\d+)", setup)[1], re.search(r"python_requires = >=3\.(\d+)", setup)[1]
    assert int(card["sdk_version"].split(".")[0]) >= int(least[0])
    assert int(card["python_version"].split(".")[1]) >= int(least[1])
    assert len(card["short_description"]) <= 60  # the Hub refuses longer ones
