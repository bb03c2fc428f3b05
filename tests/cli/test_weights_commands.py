"""download, where, verify, cache, mirror, push, info --digests: sixteen stand-in checkpoints, servers of the tests' own."""

import hashlib
import http.server
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from support.fixture import NAMES, Fixture
from support.hub_process import Forker, environment
from support.hub_server import Blob, Commit, Hub
from support.servers import Fault, Server, nobody

import upernet_zoo as uz
from upernet_zoo import errors, files, index, mirror
from upernet_zoo.cli import main
from upernet_zoo.weights import cache, sources

REAL = list(index.load(Path(uz.__file__).parent.parent / "model_index.yml"))[:16]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Sixteen files under the names of the sixteen models: name -> (path, the stand-in that it was made from)."""
    folder = tmp_path_factory.mktemp("checkpoints")
    found = {}
    for number, name in enumerate(REAL):
        stand_in = Fixture(NAMES[number % len(NAMES)])
        content = torch.load(stand_in.checkpoint, weights_only=True)
        content["meta"]["number"] = number
        content["state_dict"]["decode_head.conv_seg.bias"] += number
        torch.save(content, folder / "file")
        digest = hashlib.sha256((folder / "file").read_bytes()).hexdigest()
        found[name] = ((folder / "file").rename(folder / f"{name}_20200101_000000-{digest[:8]}.pth"), stand_in)
    return found


@pytest.fixture
def origin(checkpoints):
    with Server({f"/v0.5/{name}/{path.name}": path.read_bytes() for name, (path, _) in checkpoints.items()}) as server:
        yield server


@pytest.fixture(autouse=True)
def sixteen(checkpoints, origin, small_index, tmp_path, monkeypatch):
    """The index of the sixteen, whose first mirror is `origin`."""
    small = {model["Name"]: model for model in yaml.safe_load(small_index.read_text())["Models"]}
    models = []
    for name, (path, stand_in) in checkpoints.items():
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        url = f"{origin.url}/v0.5/{name}/{path.name}"
        models.append({**small[stand_in.name], "Name": name, "Weights": url, "SHA256": digest[:8]})
    small_index.write_text(yaml.safe_dump({"Collections": [{"Name": "small"}], "Models": models}))
    return uz.index.load(small_index)


@pytest.fixture(scope="module")
def forker():
    with Forker() as running:
        yield running


def run(capsys, *arguments):
    status = main.main(list(map(str, arguments)))
    said = capsys.readouterr()
    return status, said.out, said.err


ONE, TWO = REAL[:2]


def test_download_prefetches_and_sums_up(sixteen, checkpoints, origin, own_cache, capsys):
    status, out, _ = run(capsys, "download", "--dataset", "voc12aug")
    chosen = [entry for entry in sixteen.values() if entry.labels == "voc12aug"]
    total = sum(checkpoints[entry.name][0].stat().st_size for entry in chosen)
    assert status == 0 and f"{len(chosen)} of {len(chosen)} checkpoints are on this machine and verified" in out
    assert files.size_text(total) in out and out.count("downloaded") == len(chosen) == len(origin.paths())
    status, out, _ = run(capsys, "download", "--all")
    assert status == 0 and "16 of 16" in out and out.count("there already") == len(chosen)
    for name, (path, _) in checkpoints.items():
        assert (own_cache / "checkpoints" / path.name).read_bytes() == path.read_bytes(), name
    assert len(origin.paths()) == 16
    status, _, err = run(capsys, "download")
    assert status == 1 and "--all" in err
    status, _, err = run(capsys, "download", ONE[:-1])
    assert status == 1 and f"Did you mean {ONE}" in err


def test_one_that_fails_does_not_stop_the_others(sixteen, origin, capsys):
    del origin.files[f"/v0.5/{ONE}/{sixteen[ONE].file_name}"]
    status, out, err = run(capsys, "download", "*r50*512x1024*")
    lines = {line.split()[0]: line for line in out.splitlines() if line.startswith("upernet_")}
    assert status == 1 and len(lines) > 1 and " failed " in lines.pop(ONE) and all("downloaded" in line for line in lines.values())
    assert f"{len(lines)} of {len(lines) + 1} checkpoints" in out
    assert f"{ONE}: no source has" in err and "Next:" in err


def test_where_shows_each_source_and_asks_nobody(sixteen, origin, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("UPERNET_ZOO_MIRRORS", str(tmp_path / "nothing"))
    monkeypatch.setenv("UPERNET_ZOO_HUB_ORG", "org")
    status, out, _ = run(capsys, "where", ONE, "--mirror", "https://mirror.example")
    assert status == 0 and not origin.requests
    for source in sources.plan(sixteen[ONE], mirrors=["https://mirror.example"]):
        assert any(all(part in line for part in (source.location, source.state_text, source.kind.value)) for line in out.splitlines())
    run(capsys, "download", ONE)
    asked = len(origin.requests)
    status, out, _ = run(capsys, "where", ONE)
    assert "verified (" in out and len(origin.requests) == asked
    assert hashlib.sha256(cache.cached_path(sixteen[ONE]).read_bytes()).hexdigest() in out  # pinned in full


def test_where_names_a_lapsed_domain_and_says_when_no_living_source_is_known(small_index, origin, capsys):
    data = yaml.safe_load(small_index.read_text())
    data["Models"][0]["Weights"] = data["Models"][0]["Weights"].replace(origin.url, "https://download.openmmlab.com")
    small_index.write_text(yaml.safe_dump(data))
    status, out, _ = run(capsys, "where", ONE)
    assert status == 0 and "a lapsed domain" in out and "--mirror" in out and "mirrors=" not in out and f"{ONE}: no living source" in out
    data["Collections"][0]["Mirrors"] = [origin.url]
    small_index.write_text(yaml.safe_dump(data))
    status, out, _ = run(capsys, "where", ONE)
    assert status == 0 and "a lapsed domain" in out and "no living source" not in out
    data["Models"][0]["Absent From"] = [origin.url]
    small_index.write_text(yaml.safe_dump(data))
    assert f"{ONE}: no living source" in run(capsys, "where", ONE)[1] and origin.url not in run(capsys, "where", ONE)[1]
    assert origin.url in run(capsys, "where", TWO)[1] and not origin.requests


def test_where_probe_asks_every_source_of_every_model(sixteen, checkpoints, origin, capsys):
    del origin.files[f"/v0.5/{ONE}/{sixteen[ONE].file_name}"]
    status, out, err = run(capsys, "where", "--all", "--probe")
    assert status == 1 and f"{ONE}: no source has the file" in err and err.count("no source has the file") == 1
    assert len(origin.paths("HEAD")) == len(sixteen) and not origin.paths("GET") and not origin.sent
    blocks = {block.split(":")[0]: block for block in out.strip().split("\n\n")}
    assert list(blocks) == list(sixteen) and "no (HTTP 404)" in blocks[ONE]
    for name, (path, _) in checkpoints.items():
        line = blocks[name].splitlines()[-1].split()
        assert line[0] == "origin" and line[-1].endswith(path.name)
        assert name == ONE or line[1:3] == ["yes", str(path.stat().st_size)]
    with Server({"/" + sixteen[ONE].file_name: b"x"}) as second:
        status, out, _ = run(capsys, "where", ONE, "--probe", "--mirror", second.url)
    assert status == 0 and out.count("no (HTTP 404)") == 2


def test_verify_is_cheap_and_deep(sixteen, own_cache, capsys):
    run(capsys, "download", ONE, TWO)
    uz.create_model(ONE)
    status, out, _ = run(capsys, "verify")
    assert status == 0 and out.count("unchanged since it was verified") == 3
    status, out, _ = run(capsys, "verify", "--deep")
    assert status == 0 and out.count("verified") == 3 and "unchanged" not in out
    path = cache.cached_path(sixteen[ONE])
    stat, data = path.stat(), bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # what only a deep look can find
    assert run(capsys, "verify")[0] == 0
    status, out, err = run(capsys, "verify", "--deep")
    assert status == 1 and "DAMAGED" in out and "1 of 3 files are damaged" in err and str(path) in err
    assert path.read_bytes() == data
    os.utime(path)  # any other change is seen by a cheap look
    assert run(capsys, "verify", ONE)[0] == 1
    assert run(capsys, "verify", TWO)[0] == 0
    status, out, _ = run(capsys, "verify", list(sixteen)[5])
    assert status == 1 and "not on this machine" in out


def test_digests_go_back_into_an_index(sixteen, checkpoints, small_index, capsys):
    status, _, err = run(capsys, "info", ONE, "--digests")
    assert status == 1 and "upernet-zoo download" in err
    run(capsys, "download", ONE, TWO)
    status, out, err = run(capsys, "info", "--digests")
    assert status == 1 and err.count("upernet_") == 14
    pins = {pin["Name"]: pin["SHA256"] for pin in yaml.safe_load(out)}
    assert pins == {name: hashlib.sha256(checkpoints[name][0].read_bytes()).hexdigest() for name in (ONE, TWO)}
    assert f"# {checkpoints[ONE][0].stat().st_size} bytes" in out
    data = yaml.safe_load(small_index.read_text())
    for model in data["Models"]:
        model["SHA256"] = pins.get(model["Name"], model["SHA256"])
    small_index.write_text(yaml.safe_dump(data))
    assert uz.index.load(small_index)[ONE].sha256 == pins[ONE]
    assert run(capsys, "info", ONE, "--digests")[:2] == (
        0,
        f'  - Name: {ONE}\n    SHA256: "{pins[ONE]}" # {checkpoints[ONE][0].stat().st_size} bytes\n',
    )
    assert run(capsys, "info")[0] == 1


def test_cache_lists_and_prunes_but_keeps_the_pins(sixteen, origin, own_cache, capsys):
    assert "0 files" in run(capsys, "cache")[1]
    run(capsys, "download", ONE, TWO)
    uz.create_model(ONE)
    folder = own_cache / "checkpoints"
    for leftover in ("x.pth.partial", "x.pth.partial.state", "y.pth.bad-01234567", ".y.pth.1-01234567.tmp"):
        (folder / leftover).write_bytes(b"123")
    status, out, _ = run(capsys, "cache")
    kinds = {line.split()[0]: line for line in out.splitlines()}
    assert (
        status == 0 and "2 pinned digests" in out and "unfinished" in kinds["x.pth.partial"] and "kept aside" in kinds["y.pth.bad-01234567"]
    )
    total = sum(p.stat().st_size for p in own_cache.rglob("*") if p.is_file() and p.parent.name != "locks")
    assert files.size_text(total) in out
    run(capsys, "cache", "--prune")
    left = {p.name for p in folder.iterdir()}
    wanted = {f for name in (ONE, TWO) for f in (sixteen[name].file_name, sixteen[name].file_name + ".json")}
    assert left == wanted | {".y.pth.1-01234567.tmp"}  # a young temporary file may be a process's that is at work
    os.utime(folder / ".y.pth.1-01234567.tmp", (0, 0))
    status, out, _ = run(capsys, "cache", "--prune", ONE)
    assert status == 0 and "the pinned digests stay" in out
    assert {p.name for p in folder.iterdir()} == wanted - {sixteen[ONE].file_name}
    assert not list((own_cache / "converted").iterdir())
    path = origin.files[f"/v0.5/{ONE}/{sixteen[ONE].file_name}"]
    assert cache.expected_digest(sixteen[ONE]) == hashlib.sha256(path.data).hexdigest()  # still pinned in full
    status, _, err = run(capsys, "cache", ONE)
    assert status == 1 and "--prune" in err


# mirror to a folder


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def whole(folder, checkpoints):
    """Names of the checkpoints that a folder has; each must be whole."""
    found = set()
    for name, (path, _) in checkpoints.items():
        if (folder / path.name).exists():
            assert (folder / path.name).read_bytes() == path.read_bytes()
            found.add(name)
    return found


def command(*arguments):
    return [sys.executable, "-m", "upernet_zoo", *map(str, arguments)]


def test_mirror_to_a_folder_interrupted_and_resumed(sixteen, checkpoints, origin, tmp_path, capsys, monkeypatch):
    target = tmp_path / "new mirror"
    status, out, _ = run(capsys, "mirror", target, "--all", "--dry-run")
    assert status == 0 and out.count("would be copied") == 16 and not target.exists() and not origin.requests

    seventh = list(sixteen.values())[6]
    keep = {**os.environ, "PYTHONPATH": str(Path(uz.__file__).parent.parent)}
    origin.faults[f"/v0.5/{seventh.name}/{seventh.file_name}"] = [Fault(pause=(100_000, 30.0))]
    process = subprocess.Popen(command("mirror", target, "--all"), env=keep, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    partial_file = cache.cached_path(seventh).with_name(seventh.file_name + ".partial")
    try:
        while process.poll() is None and not (partial_file.exists() and partial_file.stat().st_size):
            pass
    finally:
        process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert whole(target, checkpoints) == set(list(sixteen)[:6])
    asked = len(origin.requests)

    status, out, _ = run(capsys, "mirror", target, "--all")
    assert status == 0 and out.count("there already") == 6 and out.count("copied") == 10
    assert whole(target, checkpoints) == set(sixteen) and len(list(target.iterdir())) == 16
    again = [r for r in origin.requests[asked:]]
    assert len(again) == 10 and "Range" in again[0].headers  # the seventh was resumed, the first six not asked for
    assert f"{sources.MIRRORS_ENVIRONMENT}={target}" in out

    times = {p: p.stat().st_mtime_ns for p in target.iterdir()}
    status, out, _ = run(capsys, "mirror", target, "--all")
    assert status == 0 and out.count("there already") == 16 and times == {p: p.stat().st_mtime_ns for p in target.iterdir()}

    # a mirror at once, as a folder and served by any web server, to a machine that knows nothing and reaches nobody else
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(target))) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        origin.files.clear()
        for place in (target, f"http://127.0.0.1:{web.server_port}"):
            shutil.rmtree(cache.cache_root())
            for entry in sixteen.values():
                found = sources.fetch(entry, mirrors=[place], progress=False)
                assert str(place) in found.source
        web.shutdown()
    monkeypatch.setenv("UPERNET_ZOO_MIRRORS", target.as_uri())
    shutil.rmtree(cache.cache_root())
    assert uz.create_model(ONE).origin["model"] == ONE


def test_a_wrong_file_in_a_mirror_is_kept_aside(sixteen, checkpoints, tmp_path, capsys):
    target = tmp_path / "mirror"
    target.mkdir()
    path = target / sixteen[ONE].file_name
    path.write_bytes(b"cut short")
    status, out, _ = run(capsys, "mirror", target, ONE)
    digest = hashlib.sha256(b"cut short").hexdigest()[:8]
    assert status == 0 and "copied" in out and whole(target, checkpoints) == {ONE}
    assert path.with_name(f"{path.name}.bad-{digest}").read_bytes() == b"cut short"
    entry = sixteen[TWO]
    sources.fetch(entry, progress=False)
    (target / entry.file_name).write_bytes(b"x")
    with pytest.raises(errors.WriteError):
        mirror.mirror(entry, tmp_path / "mirror" / entry.file_name / "below a file", progress=False)
    assert (target / entry.file_name).read_bytes() == b"x"


# mirror to the Hub, push


USERS = {"writes": ("ann", ("org",)), "reads": ("bob", ())}


def test_mirror_to_the_hub_interrupted_and_resumed(sixteen, checkpoints, origin, forker, tmp_path):
    with Hub(USERS) as hub:

        def call(code, home, token="writes", **more):
            status, out, err = forker.run(code, environment(hub.url, tmp_path / home, token, **more), tmp_path)
            assert status == 0, err
            return out

        mirror_all = "from upernet_zoo.cli import main\nassert main.main({!r}) == 0"
        out = call(mirror_all.format(["mirror", "hf-hub:org", "--all", "--dry-run"]), "home")
        assert out.count("would be uploaded") == 16 and not hub.repos and not origin.requests

        # killed while the Hub answers the sixth commit, before the client hears of it
        process = None
        sent = threading.Event()

        def kill(request):
            if hub.count("POST", "/commit/main") == 6 and not sent.is_set():
                sent.set()
                process.send_signal(signal.SIGKILL)

        hub.on_request = kill
        keep = environment(hub.url, tmp_path / "home", "writes")
        with (tmp_path / "log").open("w") as log:
            process = subprocess.Popen(command("mirror", "hf-hub:org", "--all"), env=keep, stdout=log, stderr=log)
            assert process.wait(timeout=200) == -signal.SIGKILL, (tmp_path / "log").read_text()
        assert len(hub.repos) == 6
        out = call(mirror_all.format(["mirror", "hf-hub:org", "--all", "--private"]), "home")
        assert out.count("there already") == 6 and out.count("uploaded") == 10
        assert hub.count("POST", "/commit/main") == 16 and "UPERNET_ZOO_HUB_ORG=org" in out
        assert sorted(hub.repos) == sorted(f"org/{name}" for name in sixteen)
        assert sum(repo.private for repo in hub.repos.values()) == 10
        for name, (path, _) in checkpoints.items():
            files = hub.repos[f"org/{name}"].head().files
            assert sorted(files) == sorted([".gitattributes", "README.md", "config.json", "model.safetensors", path.name])
            assert files[path.name].data == path.read_bytes() and path.name.encode() in files["README.md"].data
            assert json.loads(files["config.json"].data)["weights_sha256"] == files["model.safetensors"].sha256

        # a third time, from another machine: nothing is uploaded, and nothing fetched from the origin
        puts, asked = hub.count("PUT", "."), len(origin.requests)
        out = call(mirror_all.format(["mirror", "hf-hub:org", "--all"]), "elsewhere", UPERNET_ZOO_CACHE=str(tmp_path / "elsewhere"))
        assert out.count("there already") == 16 and hub.count("PUT", ".") == puts and len(origin.requests) == asked

        # one repository that is not right any more is made right
        repo = hub.repos[f"org/{ONE}"]
        files = dict(repo.head().files)
        files["model.safetensors"] = Blob(b"other", True)
        repo.add("main", Commit(repo.refs["main"], "spoilt", files))
        out = call(mirror_all.format(["mirror", "hf-hub:org", ONE, TWO]), "home")
        assert out.count("there already") == 1 and out.count("uploaded") == 1

        # the new mirror: a model by hf-hub:, and the original for create_model, where the first mirror is gone
        origin.files.clear()
        code = f"""
mirrored = uz.create_model("hf-hub:org/{TWO}")
named = uz.create_model({TWO!r})
say(logits(mirrored), logits(named), mirrored.origin == named.origin, named.origin["sha256"])
"""
        fresh = dict(UPERNET_ZOO_CACHE=str(tmp_path / "fresh"), UPERNET_ZOO_HUB_ORG="org")
        a, b, same, digest = json.loads(call(code, "fresh home", **fresh).removeprefix("SAID "))
        assert a == b and same and digest == hashlib.sha256(checkpoints[TWO][0].read_bytes()).hexdigest()


def test_mirror_without_rights_says_so(sixteen, forker, tmp_path):
    code = f"""
from upernet_zoo.cli import main
assert main.main(["mirror", "hf-hub:org", {ONE!r}]) == 1
assert main.main(["mirror", "hf-hub:a/b", {ONE!r}]) == 1
"""
    with Hub(USERS) as hub:
        status, out, err = forker.run(code, environment(hub.url, tmp_path / "home", "reads"), tmp_path)
        assert status == 0 and " failed " in out and "refused" in err and "Check the token" in err and not hub.repos
        assert "hf-hub:ORGANIZATION alone" in err


def test_push_command(sixteen, forker, tmp_path):
    code = f"""
from upernet_zoo.cli import main
assert main.main(["push", {ONE!r}, "org/mine", "--private", "--message", "Mine"]) == 0
assert main.main(["push", {str(Fixture(NAMES[1]).checkpoint)!r}, "own", "--revision", "dev"]) == 0
assert main.main(["push", {ONE!r}, "org/mine"]) == 0  # the same once more is no commit
assert main.main(["push", {TWO!r}, "org/mine", "--create-pr"]) == 0
"""
    with Hub(USERS) as hub:
        status, out, err = forker.run(code, environment(hub.url, tmp_path / "home", "writes"), tmp_path)
        assert status == 0, err
        assert len(hub.repos["org/mine"].commits) == 3  # the first, a push, a proposal
        assert hub.repos["org/mine"].private and hub.repos["org/mine"].head().message == "Mine"
        assert (
            "model.safetensors" in hub.repos["ann/own"].head("dev").files and "model.safetensors" not in hub.repos["ann/own"].head().files
        )
        assert f"pushed: {hub.url}/org/mine/commit/" in out and "/org/mine/discussions/1" in out
        with nobody() as url:
            status, _, err = forker.run(
                f"from upernet_zoo.cli import main\nassert main.main(['push', {ONE!r}, 'org/m']) == 1",
                environment(url, tmp_path / "home", "writes"),
                tmp_path,
            )
        assert status == 0 and url in err
