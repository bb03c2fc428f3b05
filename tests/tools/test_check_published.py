"""The check of the published files, against a server that has one right, one wrong, and one not at all."""

import hashlib
import json
from datetime import UTC, datetime, timedelta

import pytest
import yaml
from PIL import Image
from support import tools
from support.fixture import NAMES, ROOT, Fixture
from support.servers import Server

from upernet_zoo import index
from upernet_zoo.weights import cache

RIGHT, WRONG, ABSENT, BROKEN = NAMES


@pytest.fixture(scope="module")
def tool():
    return tools.load("check_published")


@pytest.fixture
def server(small_index):
    """A host of the collection; the file of BROKEN is right by its digest, and no checkpoint."""
    data = yaml.safe_load(small_index.read_text())
    contents = {name: Fixture(name).checkpoint.read_bytes() for name in NAMES} | {BROKEN: b"no checkpoint at all"}
    with Server() as running:
        for model in data["Models"]:
            content = contents[model["Name"]]
            model["SHA256"] = hashlib.sha256(content).hexdigest()[:8]
            model["Weights"] = f"{running.url}/v0.5/{model['Weights'].rsplit('/', 1)[1]}"
            if model["Name"] != ABSENT:
                running.put(model["Weights"].removeprefix(running.url), content[::-1] if model["Name"] == WRONG else content)
        small_index.write_text("# a comment that stays\n" + yaml.safe_dump(data, sort_keys=False))
        yield running


def test_one_right_one_wrong_one_absent_one_broken(tool, server, small_index, tmp_path, capsys):
    out = tmp_path / "out"
    before = small_index.read_text()
    assert tool.main(["--out", str(out), "--picture", str(Fixture(RIGHT).photo)]) == 1
    report = json.loads((out / "weights.json").read_text())
    assert report["format"] == 1 and [model["name"] for model in report["models"]] == NAMES
    right, wrong, absent, broken = report["models"]
    content = Fixture(RIGHT).checkpoint.read_bytes()
    entry = index.load(small_index)[RIGHT]
    assert right | {"date": ""} == {
        "name": RIGHT,
        "file": entry.file_name,
        "state": "good",
        "source": entry.weights,
        "size": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "date": "",
        "detail": "",
    }
    assert timedelta() <= datetime.now(UTC) - datetime.fromisoformat(right["date"]) < timedelta(minutes=5)
    for model, state, said in ((wrong, "wrong", "SHA-256 is not the expected one"), (absent, "absent", "HTTP 404")):
        assert (model["state"], model["source"], model["size"], model["sha256"]) == (state, None, None, None) and said in model["detail"]
    assert broken["state"] == "broken" and broken["size"] == len(b"no checkpoint at all") and broken["detail"]

    assert sorted(path.name for path in out.iterdir()) == sorted([f"{RIGHT}.png", "model_index.yml", "weights.json", "weights.md"])
    with Image.open(out / f"{RIGHT}.png") as picture, Image.open(Fixture(RIGHT).photo) as photo:
        assert picture.width == photo.width and picture.height >= photo.height  # a legend below it
    table = [line.split("|") for line in (out / "weights.md").read_text().splitlines() if line.startswith("|")]
    assert [row[2].strip() for row in table[2:]] == ["good", "wrong", "absent", "broken"]
    printed = capsys.readouterr().out
    assert all(f"{model['name']}: {model['state']}" in printed for model in report["models"])

    # the index, ready to be committed: the good one's digest and size, and nothing else
    completed = index.load(out / "model_index.yml")
    assert (completed[RIGHT].sha256, completed[RIGHT].size) == (right["sha256"], right["size"])
    for name in (WRONG, ABSENT, BROKEN):
        assert (completed[name].sha256, completed[name].size) == (index.load(small_index)[name].sha256, None)
    assert small_index.read_text() == before
    changed = set((out / "model_index.yml").read_text().splitlines()) - set(before.splitlines())
    assert {line.strip() for line in changed} == {f'SHA256: "{right["sha256"]}"', f"Size: {right['size']}"}


def test_a_second_run_over_its_own_index_changes_nothing(tool, server, small_index, tmp_path, monkeypatch):
    for number in range(2):
        out = tmp_path / f"out{number}"
        assert tool.main(["--out", str(out), "--picture", str(Fixture(RIGHT).photo), RIGHT]) == 0
        monkeypatch.setenv("UPERNET_ZOO_INDEX", str(out / "model_index.yml"))
    assert (tmp_path / "out0" / "model_index.yml").read_text() == (tmp_path / "out1" / "model_index.yml").read_text()
    second = json.loads((tmp_path / "out1" / "weights.json").read_text())["models"]
    assert [(model["state"], model["source"]) for model in second] == [("good", "cache")]


def test_a_cached_file_is_read_in_full(tool, server, tmp_path):
    """Its receipt is trusted elsewhere; here a byte that was changed behind its back is found."""
    import os

    entry = index.model_info(RIGHT)
    arguments = ["--picture", str(Fixture(RIGHT).photo), RIGHT, "--out", str(tmp_path / "out")]
    assert tool.main(arguments) == 0
    path = cache.cached_path(entry)
    stat, data = path.stat(), bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert tool.main(arguments) == 1
    assert json.loads((tmp_path / "out" / "weights.json").read_text())["models"][0]["state"] == "wrong"


def test_a_size_that_the_index_has_wrong_is_said(tool, server, small_index, tmp_path):
    size = Fixture(RIGHT).checkpoint.stat().st_size
    small_index.write_text(small_index.read_text().replace(f"  Name: {RIGHT}\n", f"  Name: {RIGHT}\n  Size: {size + 1}\n"))
    assert tool.main(["--out", str(tmp_path / "out"), "--picture", str(Fixture(RIGHT).photo), RIGHT]) == 1
    (model,) = json.loads((tmp_path / "out" / "weights.json").read_text())["models"]
    assert model["state"] == "wrong" and f"{size} bytes have the right digest, and the index says {size + 1}" in model["detail"]


def test_an_index_of_another_layout_is_not_completed_wrongly(tool, server, small_index, tmp_path, capsys):
    data = yaml.safe_load(small_index.read_text())
    data["Models"] = [{"SHA256": model["SHA256"], **model} for model in data["Models"]]
    small_index.write_text(yaml.safe_dump(data, sort_keys=False))
    assert tool.main(["--out", str(tmp_path / "out"), "--picture", str(Fixture(RIGHT).photo), RIGHT]) == 1
    assert f"{small_index}: its layout" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"{RIGHT}.png", "weights.json", "weights.md"]


def test_a_file_that_no_living_host_is_known_to_have_is_no_failure(tool, server, small_index, tmp_path):
    data = yaml.safe_load(small_index.read_text())
    for model in data["Models"]:
        model["Weights"] = model["Weights"].replace(server.url, "https://download.openmmlab.com")
    small_index.write_text(yaml.safe_dump(data))
    assert tool.main(["--out", str(tmp_path / "out"), "--picture", str(Fixture(RIGHT).photo), ABSENT]) == 0
    (model,) = json.loads((tmp_path / "out" / "weights.json").read_text())["models"]
    assert model["state"] == "absent" and "no living source" in model["detail"]


def test_the_weekly_workflow_runs_the_script_alone_and_keeps_what_it_writes():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "weights.yml").read_text())
    (job,) = workflow["jobs"].values()
    commands = [step["run"] for step in job["steps"] if "run" in step]
    (command,) = (command.split() for command in commands if not command.startswith("pip install "))
    assert command[:4] == ["python", "tools/check_published.py", "--out", "published_check"]
    assert command[4] == "--picture" and (ROOT / command[5]).is_file() and len(command) == 6
    (kept,) = (step for step in job["steps"] if "upload-artifact" in step.get("uses", ""))
    assert kept["if"] == "always()" and kept["with"]["path"] == "published_check/"
    assert workflow[True]["schedule"]  # YAML 1.1 reads the key `on` as true


def test_the_best_model_of_all_classes_is_shown(tool, server, small_index, tmp_path):
    out = tmp_path / "out"
    data = yaml.safe_load(small_index.read_text())
    (row,) = (row for row in data["Models"] if row["Name"] == RIGHT)
    row["Results"][0]["Dataset"] = "ADE20K"
    small_index.write_text(yaml.safe_dump(data, sort_keys=False))
    assert tool.main([RIGHT, "--out", str(out)]) == 0
    assert (out / "best.png").read_bytes() == (out / f"{RIGHT}.png").read_bytes()


def test_every_field_and_state_is_documented(tool):
    text = (ROOT / "docs" / "weights.md").read_text()
    assert all(f"| `{word}` |" in text for word in (*tool.Record.__dataclass_fields__, *tool.State))
