"""Save, push, load: the real client of huggingface_hub, in fresh processes, against a Hub of the tests' own on 127.0.0.1."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from support.fixture import NAMES, Fixture
from support.hub_process import PRELUDE, Forker, environment
from support.hub_server import Blob, Commit, Hub
from support.models import small_model
from support.servers import nobody

import upernet_zoo as uz
from upernet_zoo import errors
from upernet_zoo.hub import client, folder

ONE = Fixture(NAMES[0])
USERS = {"writes": ("ann", ("org",)), "reads": ("bob", ()), "guest": ("eve", ())}


@pytest.fixture(autouse=True)
def metrics(small_index):
    """Published numbers and a label set's data set for the stand-ins; made up, and different for each."""
    data = yaml.safe_load(small_index.read_text())
    for number, model in enumerate(data["Models"]):
        model["Results"][0] |= {"Dataset": "Stand-in", "Metrics": {"mIoU": 40.25 + number, "mIoU(ms+flip)": 41.5 + number}}
    small_index.write_text(yaml.safe_dump(data))


@pytest.fixture
def server():
    with Hub(USERS) as running:
        yield running


@pytest.fixture(scope="module", autouse=True)
def unreachable(tmp_path_factory):
    """A process that asks a Hub which is not there; the client's own five retries take half a minute, so it starts first."""
    code = PRELUDE + "say(attempt(uz.create_model, 'hf-hub:org/model'))"
    with nobody() as url:
        keep = environment(url, tmp_path_factory.mktemp("hf_home"))
        started = subprocess.Popen([sys.executable, "-c", code], env=keep, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        yield started
        started.kill()
        started.communicate()


@pytest.fixture(scope="module")
def forker():
    with Forker() as running:
        yield running


@pytest.fixture
def run(forker, server, tmp_path):
    """Call with code, the name of a home (with the Hub's cache) and a token; gives what the code said, as one list."""

    def call(code, home, token=None, url=server.url, **more):
        status, out, err = forker.run(code, environment(url, tmp_path / home, token, **more), tmp_path)
        assert status == 0, err
        assert "Retrying" not in err
        return heard(out)

    return call


def heard(out):
    return [value for line in out.splitlines() if line.startswith("SAID ") for value in json.loads(line[5:])]


def saved(tmp_path, fixture=ONE):
    return uz.create_model(fixture.name, checkpoint=fixture.checkpoint).save_pretrained(tmp_path / "saved")


def put(server, repo_id, folder, **options):
    """A repository with a folder's files, as the Hub has it after somebody's push."""
    repo = server.create(repo_id, **options)
    files = {p.name: Blob(p.read_bytes(), p.suffix == ".safetensors") for p in Path(folder).iterdir()}
    server.storage.update({blob.sha256: blob.data for blob in files.values() if blob.lfs})
    repo.add("main", Commit(repo.refs["main"], "by hand", {**repo.head().files, **files}))
    return repo


PUSH = """
model = uz.create_model({name!r}, checkpoint={checkpoint!r})
first = logits(model)
url = model.push_to_hub("org/model", private=True, commit_message="First")
from huggingface_hub import HfApi
HfApi().create_tag("org/model", tag="v1")
with torch.no_grad():
    model.decode_head.classifier.bias += 1
model.push_to_hub("org/model")
model.push_to_hub("org/model", revision="better/branch")
with torch.no_grad():
    model.decode_head.classifier.bias += 1
proposed = model.push_to_hub("org/model", create_pr=True)
say(first, logits(model), url, proposed)
"""


def test_pushed_then_loaded_bit_for_bit(server, run, tmp_path):
    first, third, url, proposed = run(PUSH.format(name=ONE.name, checkpoint=str(ONE.checkpoint)), "writer", "writes")
    repo = server.repos["org/model"]
    assert repo.private and url == f"{server.url}/org/model/commit/{repo.tags['v1']}" and proposed.endswith("/org/model/discussions/1")
    assert sorted(repo.head("v1").files) == [".gitattributes", "README.md", "config.json", "model.safetensors"]
    assert repo.head("v1").message == "First"
    # fresh processes, empty caches: by revision, by commit, by pull request, with a token of the environment and one of the call
    code = f"""
from hashlib import sha256
say(*(attempt(uz.create_model, ref) for ref in (
    "hf-hub:org/model@v1", "hf-hub:org/model@{repo.tags["v1"]}", "hf-hub:org/model", "hf-hub:org/model@better/branch",
    "hf-hub:org/model@refs/pr/1")))
model = uz.create_model("hf-hub:org/model@v1", num_classes=3)
say(model.training, model.config.num_classes, uz.create_model("hf-hub:org/model@v1", pretrained=False).config.num_classes)
"""
    v1, by_commit, main, branch, pr, training, classes, unchanged = run(code, "reader", "writes")
    assert v1 == by_commit == first and main == branch and pr == third and len({first, main, third}) == 3
    assert not training and classes == 3 and unchanged == ONE.expected["config"]["num_classes"]
    with_token = 'say(attempt(uz.UPerNet.from_pretrained, "org/model", revision="v1", token="writes", cache_dir={!r}))'.format(
        str(tmp_path / "of the call")
    )
    without = 'say(attempt(uz.UPerNet.from_pretrained, "org/model", token=False), attempt(uz.create_model, "hf-hub:org/model"))'
    logits, *refused = run(with_token + "\n" + without, "nobody")
    assert logits == first and not (tmp_path / "nobody" / "hub").exists()
    assert all(kind == "ModelNotFoundError" and "private" in message and "HF_TOKEN" in message for kind, message in refused)
    assert not [r for r in server.requests if r.host.startswith("localhost") and r.authorized]  # no token to another host
    # offline after that, in three ways: no socket is opened, and the same comes out
    asked = len(server.requests)
    guard = """
import socket
def refuse(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        raise SystemExit(f"{event} {args}")
sys.addaudithook(refuse)
for ref in ("hf-hub:org/model@v1", "hf-hub:org/model", "hf-hub:org/other"):
    say(attempt(uz.create_model, ref, local_files_only=LOCAL))
"""
    for local, settings in ((True, {}), (False, {"HF_HUB_OFFLINE": "1"}), (False, {"UPERNET_ZOO_OFFLINE": "1"})):
        again, newest, (kind, message) = run(guard.replace("LOCAL", str(local)), "reader", "writes", **settings)
        assert (again, newest) == (first, main) and kind == "OfflineError" and "Load the model once" in message
    assert len(server.requests) == asked


def test_what_is_in_the_cache_needs_no_hub(server, run, tmp_path):
    put(server, "org/model", saved(tmp_path))
    code = "say(attempt(uz.create_model, 'hf-hub:org/model'))"
    before = run(code, "home")
    with nobody() as url:
        assert run(code, "home", url=url) == before  # and the client did not retry


def test_the_card_is_read_back_by_huggingface_hub(server, run, tmp_path):
    push = f"uz.create_model({ONE.name!r}, checkpoint={str(ONE.checkpoint)!r}).push_to_hub('org/model')"
    code = (
        push
        + """
from huggingface_hub import ModelCard
card = ModelCard.load("org/model")
say(card.data.to_dict(), [vars(result) for result in card.data.eval_results], card.data.model_name, card.text)
"""
    )
    data, results, name, text = run(code, "home", "writes")
    entry = uz.model_info(ONE.name)
    assert {k: data[k] for k in ("library_name", "pipeline_tag", "license")} == {
        "library_name": "upernet_zoo",
        "pipeline_tag": "image-segmentation",
        "license": "apache-2.0",
    }
    assert data["datasets"] == ["cityscapes"] and "upernet" in data["tags"] and name == "model"
    assert [(r["metric_name"], r["metric_value"]) for r in results] == [
        ("mIoU", entry.metrics["mIoU"]),
        ("mIoU (multi-scale and flip)", entry.metrics["mIoU(ms+flip)"]),
    ]
    assert {(r["task_type"], r["metric_type"], r["dataset_name"]) for r in results} == {("image-segmentation", "mean_iou", "Stand-in")}
    weights = server.repos["org/model"].head().files["model.safetensors"]
    for what in (ONE.expected["sha256"], weights.sha256, 'uz.Segmenter("hf-hub:org/model")', "cityscapes-dataset.com/license", "@inproc"):
        assert what in text
    assert "- Weights: Apache-2.0 ([127.0.0.1](https://example.org/LICENSE))" in text and "any derivative work" in text
    config = json.loads(server.repos["org/model"].head().files["config.json"].data)
    assert config["weights_sha256"] == weights.sha256 and config["origin"]["sha256"] == ONE.expected["sha256"]
    assert {"architecture", "recipe", "labels"} <= config.keys() and config["labels"]["palette"]


def test_only_the_published_weights_claim_the_published_numbers(tmp_path):
    model = uz.create_model(ONE.name, checkpoint=ONE.checkpoint)

    def card(name):
        return ModelCard((model.save_pretrained(tmp_path / name) / "README.md").read_text())

    entry = uz.model_info(ONE.name)
    assert len(card("published").data.eval_results) == 2 and f"<{entry.link(entry.weights)}>" in card("published").text
    model = uz.create_model(f"local-dir:{tmp_path / 'published'}")
    assert len(card("saved again").data.eval_results) == 2
    with torch.no_grad():
        model.decode_head.classifier.bias[0] += 1e-3
    tuned = card("tuned")
    assert tuned.data.eval_results is None and "and differ from them" in tuned.text and tuned.data.license == "apache-2.0"
    model = uz.create_model(ONE.name, checkpoint=ONE.checkpoint, dtype=torch.float16)
    assert card("half").data.eval_results is None
    model = small_model(num_classes=2)
    assert card("own").data.license is None and "MMSegmentation" not in card("own").text
    assert "License and terms" not in card("own").text


def test_the_fingerprint_is_of_names_types_shapes_and_bytes():
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(3)}
    same = {"b": torch.tensor(3), "a": torch.arange(6.0).reshape(3, 2).t().contiguous().t().reshape(2, 3)}
    assert folder.fingerprint(same) == folder.fingerprint(tensors)
    a, b = tensors["a"], tensors["b"]
    others = [{"a": a}, {"a": a, "c": b}, {"a": a.reshape(3, 2), "b": b}, {"a": a.view(torch.int32), "b": b}, {"a": a + 1, "b": b}]
    assert len({folder.fingerprint(t) for t in (tensors, *others)}) == 6


def test_a_card_that_is_there_stays(server, run, tmp_path, caplog):
    model = uz.create_model(ONE.name, checkpoint=ONE.checkpoint)
    folder = tmp_path / "saved"
    folder.mkdir()
    (folder / "README.md").write_text("mine")
    model.save_pretrained(folder)
    assert (folder / "README.md").read_text() == "mine" and "stays as it is" in caplog.text
    caplog.clear()
    for _ in range(2):  # the same card again is no news
        model.save_pretrained(tmp_path / "other")
    assert not caplog.text

    repo = server.create("org/model")
    repo.add("main", Commit(repo.refs["main"], "a card", {**repo.head().files, "README.md": Blob(b"theirs", False)}))
    late = server.create("org/late")

    def meanwhile(request):
        """Somebody adds a card to org/late while a push to it is on its way."""
        if request.path.startswith("/org/late.git") and "README.md" not in late.head().files:
            late.add("main", Commit(late.refs["main"], "a card", {**late.head().files, "README.md": Blob(b"theirs", False)}))

    server.on_request = meanwhile
    code = f"""
model = uz.create_model({ONE.name!r}, checkpoint={str(ONE.checkpoint)!r})
say(attempt(model.push_to_hub, "org/model"), attempt(model.push_to_hub, "org/late"))
"""
    _, (kind, message) = run(code, "home", "writes")
    assert repo.head().files["README.md"].data == b"theirs" and "model.safetensors" in repo.head().files
    assert kind == "DownloadError" and "somebody else has pushed" in message
    assert sorted(late.head().files) == [".gitattributes", "README.md"] and late.head().files["README.md"].data == b"theirs"


def test_each_refusal_says_what_to_do(server, run, tmp_path):
    folder = saved(tmp_path)
    put(server, "org/gated", folder, gated=True, allowed={"bob"})
    put(server, "org/open", folder)
    for name, config in (("transformers", {"model_type": "upernet", "architectures": ["X"]}), ("timm", {"architecture": "resnet50"})):
        other = put(server, f"org/{name}", folder)
        other.head().files["config.json"] = Blob(json.dumps(config).encode(), False)
    del put(server, "org/half", folder).head().files["model.safetensors"]
    server.create("org/empty")
    code = """
refs = "org/gated org/none org/open@v9 org/transformers org/timm org/half org/empty".split()
say(*(attempt(uz.create_model, "hf-hub:" + ref) for ref in refs))
model = uz.UPerNet.from_pretrained("org/open", token=False)
say(attempt(model.push_to_hub, "org/new"), attempt(model.push_to_hub, "org/open"), attempt(model.push_to_hub, "a b"))
"""
    gated, none, revision, transformers, timm, half, empty, *pushes = run(code, "eve", "guest")
    for (kind, message), expected, words in (
        (gated, "DownloadError", ("org/gated is gated", f"Ask for access at {server.url}/org/gated")),
        (none, "ModelNotFoundError", ("no such repository", "Check the name", "hf auth login")),
        (revision, "ModelNotFoundError", ("no revision 'v9'", "branches and tags")),
        (transformers, "ConfigError", ("org/transformers: config.json: a model of transformers", "transformers' from_pretrained")),
        (timm, "ConfigError", ("timm", "'resnet50'")),
        (half, "FileMissing", ("org/half has no model.safetensors", "push_to_hub")),
        (empty, "FileMissing", ("org/empty has no config.json",)),
        (pushes[0], "DownloadError", ("refused", "Check the token")),
        (pushes[1], "DownloadError", ("refused", "Check the token")),
        (pushes[2], "ArgumentError", ("no name of a Hub repository",)),
    ):
        assert kind == expected.replace("FileMissing", "MissingFileError"), message
        assert all(word in message for word in words), message
    assert not server.count("GET", "/org/transformers/resolve/.*safetensors")  # refused before the weights come
    assert "org/new" not in server.repos and server.repos["org/open"].head().message == "by hand"
    code = "say(attempt(uz.create_model, 'hf-hub:org/gated'), attempt(uz.UPerNet.from_pretrained, 'org/gated', token='wrong'))"
    allowed, _ = run(code, "bob", "reads")
    assert len(allowed) == 64
    nobody_in, (kind, message) = run(code, "anonymous")
    assert nobody_in[0] == "DownloadError" and "gated" in nobody_in[1]
    assert kind == "DownloadError" and "Invalid credentials" in message and "Check the token" in message


def test_weights_damaged_on_the_way_are_kept_aside(server, run, tmp_path):
    put(server, "org/model", saved(tmp_path))
    server.damage = lambda oid, data: data[:-1] + bytes([data[-1] ^ 1])
    code = "say(attempt(uz.create_model, 'hf-hub:org/model'))"
    ((kind, message),) = run(code, "home")
    assert kind == "IntegrityError" and "kept aside" in message and "Try again" in message
    assert len(list((tmp_path / "home").rglob("*.bad-*"))) == 1 and not list((tmp_path / "home").rglob("model.safetensors"))
    ((kind, _),) = run(code, "home", HF_HUB_OFFLINE="1")
    assert kind == "OfflineError"  # what is aside is not used
    server.damage = None
    assert len(run(code, "home")[0]) == 64


def test_names_of_repositories():
    parse = client.Repository.parse
    assert parse("hf-hub:org/name@refs/pr/1") == client.Repository("org/name", "refs/pr/1") == parse("org/name", "refs/pr/1")
    assert str(parse("org/name@v1")) == "hf-hub:org/name@v1" and parse("org/name").revision is None
    for bad in ("hf-hub:org", "hf-hub:a/b/c", "hf-hub:/b", "hf-hub:a/", "hf-hub:a/b@", "hf-hub:"):
        with pytest.raises(errors.ArgumentError, match="expected a Hub repository"):
            parse(bad)
    with pytest.raises(errors.ArgumentError, match="give one of them"):
        parse("a/b@v1", "v2")
    with pytest.raises(errors.ModelNotFoundError, match="create_model"):
        uz.UPerNet.from_pretrained("upernet_r50_512x512_160k_ade20k")
    with pytest.raises(errors.ArgumentError, match="go with a name of the index"):
        uz.create_model("hf-hub:a/b", mirrors=["x"])


def test_a_folder_goes_in_by_its_path(tmp_path):
    folder = saved(tmp_path)
    models = [uz.UPerNet.from_pretrained(ref) for ref in (folder, str(folder), f"local-dir:{folder}")]
    weights = uz.create_model(ONE.name, checkpoint=ONE.checkpoint).state_dict()
    for model in models:
        assert not model.training and all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())


def test_a_hub_that_is_not_there_is_named(unreachable, run):
    with nobody() as url:
        code = f"model = uz.create_model({ONE.name!r}, checkpoint={str(ONE.checkpoint)!r})\nsay(attempt(model.push_to_hub, 'org/model'))"
        ((kind, message),) = run(code, "home", "writes", url=url)
    assert kind == "DownloadError" and url in message and "nothing was committed" in message
    ((kind, message),) = heard(unreachable.communicate(timeout=300)[0])
    assert kind == "DownloadError" and "could not be reached" in message and "HF_ENDPOINT" in message
