"""Models in the formats of other libraries: files, folders and repositories, and names of the index that have copies in them."""

import hashlib
import json
import warnings

import numpy as np
import pytest
import torch
import yaml
from support.copies import write_smp, write_transformers
from support.fixture import FIXTURES, ROOT, Fixture
from support.hub_process import Forker, environment
from support.hub_server import Blob, Commit, Hub

import upernet_zoo as uz
from upernet_zoo import errors, index, provenance
from upernet_zoo.weights import sources

CONVNEXT = Fixture("family/upernet_convnext_tiny_fp16_512x512_160k_ade20k")
SWIN = Fixture("family/upernet_swin_tiny_patch4_window7_512x512_160k_ade20k_pretrain_224x224_1K")
NAME = "convnext_of_the_index"


@pytest.fixture(scope="module", params=(CONVNEXT, SWIN), ids=("convnext", "swin"))
def original(request):
    return uz.load_checkpoint(request.param.checkpoint)


def same(a, b):
    """Whether all tensors of `b` are those of `a`, bit for bit; `b` may lack the auxiliary head."""
    a, b = a.state_dict(), b.state_dict()
    return {k for k in a if not k.startswith("auxiliary_head.")} <= b.keys() <= a.keys() and all(torch.equal(a[k], b[k]) for k in b)


def picture():
    return torch.arange(3 * 128 * 128, dtype=torch.float64).mul(0.37).sin().float().view(1, 3, 128, 128)


def test_transformers_reads_the_same_tensors(original, tmp_path):
    """The names and the order of elements are right: transformers computes the same with them."""
    transformers = pytest.importorskip("transformers")
    theirs = transformers.UperNetForSemanticSegmentation.from_pretrained(write_transformers(original, tmp_path / "copy")).eval()
    for name, module in theirs.named_modules():
        if "downsampling_layer" in name and hasattr(module, "eps"):
            module.eps = 1e-5  # as trained
    with torch.inference_mode():
        found, expected = theirs(picture()).logits, original(picture())
    assert (found - expected).abs().max() < 2e-5 * expected.abs().max()
    theirs.save_pretrained(tmp_path / "saved")  # as it writes files today
    with pytest.warns(UserWarning, match="assumed"):
        assert same(original, uz.create_model(tmp_path / "saved"))


@pytest.mark.parametrize("write", (write_transformers, write_smp))
def test_a_folder_and_its_file_load_bit_for_bit(original, write, tmp_path):
    folder = write(original, tmp_path / "copy")
    weights = next(path for path in folder.iterdir() if path.suffix in (".bin", ".safetensors"))
    for load in (uz.load_checkpoint, uz.create_model):
        for ref in (folder, weights):
            with pytest.warns(UserWarning, match=r"assumed .*scale=\(2048, 512\)"):
                model = load(ref)
            assert same(original, model)
            assert (model.auxiliary_head is None) == (write is write_smp)
            if write is write_transformers:
                assert model.label_set.classes == original.label_set.classes
    with pytest.warns(UserWarning):
        assert same(original, uz.create_model(f"local-dir:{folder}"))


@pytest.mark.parametrize("name", ("smp_convnext", "smp_swin"))
def test_as_segmentation_models_pytorch_computes(name):
    folder = FIXTURES / "copies" / name
    with pytest.warns(UserWarning, match="class names 'class 0' to 'class 3'") as said:
        model = uz.load_checkpoint(folder)
    # multiples of the last stage's windows: for other sides, timm's shifts give other logits
    assert ("multiples of 64, and something else for others" in str(said[0].message)) == (name == "smp_swin")
    expected = np.load(folder / "logits.npz")["logits"]
    with torch.inference_mode():
        found = model.logits(picture()).numpy()
    assert np.abs(found - expected).max() < 2e-5 * np.abs(expected).max()


def test_a_variant_that_is_not_computed_is_refused(tmp_path):
    model = uz.load_checkpoint(SWIN.checkpoint)
    folder = write_transformers(model, tmp_path / "copy")
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"hidden_act": "gelu"', '"hidden_act": "relu"'))
    for load in (uz.load_checkpoint, uz.create_model):
        with pytest.raises(errors.UPerNetZooError, match="backbone_config.hidden_act='relu'"):
            load(folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(errors.MissingFileError, match=r"neither model\.safetensors nor pytorch_model\.bin is there"):
        uz.create_model(folder)


# a Hub, and an index of one model whose own file no host has


@pytest.fixture
def server():
    with Hub({}) as running:
        yield running


@pytest.fixture(scope="module")
def forker():
    with Forker() as running:
        yield running


@pytest.fixture
def convnext():
    return uz.load_checkpoint(CONVNEXT.checkpoint)


def put(server, repo_id, folder, large=(".bin", ".safetensors")):
    repo = server.create(repo_id)
    files = {p.name: Blob(p.read_bytes(), p.suffix in large) for p in folder.iterdir()}
    server.storage.update({blob.sha256: blob.data for blob in files.values() if blob.lfs})
    repo.add("main", Commit(repo.refs["main"], "by hand", {**repo.head().files, **files}))
    return repo


def write_index(path, model, *copies):
    entry = {
        "Name": NAME,
        "In Collection": "small",
        "Metadata": {"Method": "UPerNet", "Backbone": "ConvNeXt-T", "Crop Size": "64x64", "Lr schd": 1},
        "Results": [{"Task": "Semantic Segmentation", "Dataset": "none", "Metrics": {"mIoU": 41.5}}],
        "Config": {**_architecture(model), "scale": [96, 64], "mode": "slide", "crop": [64, 64], "stride": [42, 42]},
        "Weights": f"http://127.0.0.1:9/{CONVNEXT.expected['checkpoint']}",
        "SHA256": CONVNEXT.expected["sha256"][:8],
        "Copies": list(copies),
    }
    entry["Config"]["labels"] = {"name": "three", "classes": list(model.label_set.classes)}
    path.write_text(yaml.safe_dump({"Collections": [{"Name": "small"}], "Models": [entry]}))
    return path


def _architecture(model):
    plain = model.config.to_dict()
    return yaml.safe_load(yaml.safe_dump({key: value for key, value in _listed(plain).items()}))


def _listed(value):
    if isinstance(value, dict):
        return {key: _listed(inner) for key, inner in value.items()}
    return list(value) if isinstance(value, tuple) else value


CREATE = """
def told(ref, **options):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        out = attempt(lambda: loaded.append(uz.create_model(ref, **options)))
    if out is not None:
        return [out, None, None]
    model = loaded.pop()
    return [logits(model), model.origin, [str(w.message) for w in caught], model.recipe.to_dict()["mode"], model.label_set.name,
            model.config.backbone.to_dict()["downsample_eps"]]
loaded = []
"""


@pytest.fixture
def run(forker, server, tmp_path):
    def call(code, home="home", **more):
        more |= {"UPERNET_ZOO_CACHE": str(tmp_path / home / "cache"), "UPERNET_ZOO_INDEX": str(tmp_path / "index.yml")}
        status, out, err = forker.run(CREATE + code, environment(server.url, tmp_path / home, **more), tmp_path)
        assert status == 0, err
        return [value for line in out.splitlines() if line.startswith("SAID ") for value in json.loads(line[5:])]

    return call


@pytest.mark.parametrize("weights", ("pytorch_model.bin", "model.safetensors"))
def test_a_repository_laid_out_as_on_the_hub(server, run, convnext, tmp_path, weights):
    write_index(tmp_path / "index.yml", convnext, "hf-hub:openmmlab/upernet-convnext-small")
    repo = put(server, "openmmlab/upernet-convnext-small", write_transformers(convnext, tmp_path / "copy", weights))
    put(server, "somebody/else", tmp_path / "copy")
    known, unknown = run("say(told('hf-hub:openmmlab/upernet-convnext-small'), told('hf-hub:somebody/else'))")
    digest = repo.head().files[weights].sha256
    words, origin, said, mode, labels, eps = known
    assert (mode, labels, eps) == ("slide", "three", 1e-5) and not said
    assert origin["copy"] == f"hf-hub:openmmlab/upernet-convnext-small@{repo.refs['main']}" and origin["sha256"] == digest
    assert origin["model"] == NAME and origin["verified"] == "against its host's digest, not the index's"
    assert words == run(f"say(attempt(uz.load_checkpoint, {str(CONVNEXT.checkpoint)!r}))")[0]
    _, origin, said, mode, _, eps = unknown
    assert (mode, eps) == ("whole", 1e-6) and "model" not in origin and "assumed" in said[0]
    asked = len(server.requests)
    assert run("say(told('hf-hub:openmmlab/upernet-convnext-small'))", HF_HUB_OFFLINE="1")[0] == known
    assert len(server.requests) == asked


def test_a_name_whose_hosts_are_gone_is_loaded_from_a_copy(server, run, convnext, tmp_path):
    write_index(tmp_path / "index.yml", convnext, "hf-hub:org/gone", "hf-hub:smp-hub/copy", "hf-hub:org/copy")
    put(server, "smp-hub/copy", write_smp(convnext, tmp_path / "smp"))
    repo = put(server, "org/copy", write_transformers(convnext, tmp_path / "transformers"))
    code = f"say(told({NAME!r}))"
    ((words, origin, said, mode, labels, eps),) = run(code)
    assert (mode, labels, eps) == ("slide", "three", 1e-5)
    assert origin["copy"].startswith("hf-hub:smp-hub/copy@") and origin["file"] == "model.safetensors"
    assert len(said) == 1 and "hf-hub:smp-hub/copy@" in said[0] and "went without the auxiliary head" in said[0]
    asked = len(server.requests)
    assert run(code)[0] == [words, origin, said, mode, labels, eps] and len(server.requests) == asked  # from what was converted
    repo = server.repos.pop("smp-hub/copy") and repo
    ((again, origin, said, *_),) = run(code, "other")
    assert again == words and origin["copy"] == f"hf-hub:org/copy@{repo.refs['main']}" and "auxiliary" not in said[0]
    receipts = list((tmp_path / "other").rglob("converted/*.json"))
    assert repo.head().files["pytorch_model.bin"].sha256 in receipts[0].read_text() and len(receipts) == 1
    claims = f"from upernet_zoo import provenance; say(provenance.claim_of(uz.create_model({NAME!r})) is None)"
    assert run(claims, "other") == [True]
    server.repos.clear()
    (((kind, message), *_),) = run(code, "third")
    assert kind == "DownloadError" and all(f"copy hf-hub:{name}" in message for name in ("org/gone", "smp-hub/copy", "org/copy"))


def test_the_own_file_goes_first(server, run, convnext, tmp_path):
    write_index(tmp_path / "index.yml", convnext, "hf-hub:org/copy")
    put(server, "org/copy", write_transformers(convnext, tmp_path / "copy"))
    assert "copy" in run(f"say(told({NAME!r}))")[0][1]
    mirror = str(CONVNEXT.checkpoint.parent)
    for more in ({"UPERNET_ZOO_MIRRORS": mirror}, {}):
        _, origin, said, *_ = run(f"say(told({NAME!r}))", **more)[0]
        assert "copy" not in origin and origin["sha256"] == CONVNEXT.expected["sha256"] and not said


def test_digests_of_hosts(server, run, convnext, tmp_path):
    """Right: the tests above. Wrong, none, one that was given, and the index's own."""
    folder = write_transformers(convnext, tmp_path / "copy")
    digest = hashlib.sha256((folder / "pytorch_model.bin").read_bytes()).hexdigest()
    write_index(tmp_path / "index.yml", convnext, "hf-hub:org/copy")
    code = f"say(told({NAME!r}), told('hf-hub:org/copy'))"
    put(server, "org/copy", folder)
    server.damage = lambda oid, data: data[:-1] + bytes([data[-1] ^ 1])
    for (problem, *_), kind in zip(run(code), ("DownloadError", "IntegrityError")):
        assert problem[0] == kind and "its host states" in problem[1] and "kept aside" in problem[1]
    server.damage = None
    put(server, "org/copy", folder, large=())
    for (problem, *_), kind in zip(run(code, "none"), ("DownloadError", "IntegrityError")):
        assert problem[0] == kind and "states no SHA-256" in problem[1] and "sha256=" in problem[1]
    given, other = run(f"say(told({NAME!r}, sha256={digest!r}), told({NAME!r}, sha256={'0' * 64!r}))", "given")
    assert given[1]["sha256"] == digest and "verified" not in given[1]
    assert other[0][0] in ("DownloadError", "IntegrityError")
    write_index(tmp_path / "index.yml", convnext, {"Reference": "hf-hub:org/copy", "SHA256": digest})
    code = f"""
from upernet_zoo import provenance
for ref in ({NAME!r}, 'hf-hub:org/copy'):
    say(provenance.published_entry(uz.create_model(ref)).name)
"""
    assert run(code, "index") == [NAME, NAME]


def test_a_file_that_the_index_knows_has_its_recipe(convnext, tmp_path, monkeypatch):
    folder = write_transformers(convnext, tmp_path / "copy")
    digest = hashlib.sha256((folder / "pytorch_model.bin").read_bytes()).hexdigest()
    path = write_index(tmp_path / "index.yml", convnext, {"Reference": "hf-hub:org/copy", "SHA256": digest})
    monkeypatch.setenv("UPERNET_ZOO_INDEX", str(path))
    for load in (uz.load_checkpoint, uz.create_model):
        for ref in (folder, folder / "pytorch_model.bin"):
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                model = load(ref)
            assert model.recipe.mode == "slide" and model.config == convnext.config and model.origin["model"] == NAME
            assert provenance.published_entry(model).name == NAME


def test_the_weekly_check_prints_the_digests(server, run, convnext, tmp_path):
    right, wrong = write_transformers(convnext, tmp_path / "copy"), None
    with torch.no_grad():
        convnext.decode_head.classifier.bias += 1
    wrong = write_smp(convnext, tmp_path / "smp")
    write_index(tmp_path / "index.yml", convnext, "hf-hub:org/copy", "hf-hub:smp-hub/other", "hf-hub:org/gone")
    repo = put(server, "org/copy", right)
    put(server, "smp-hub/other", wrong)
    code = "import check_published\nsay(check_published.missing_digests(uz.model_info({NAME!r})))".replace("{NAME!r}", repr(NAME))
    code = f"import sys; sys.path.insert(0, {str(ROOT / 'tools')!r})\n{code}"
    (lines,) = run(code, UPERNET_ZOO_MIRRORS=str(CONVNEXT.checkpoint.parent))
    assert lines[0] == f'- {{Reference: hf-hub:org/copy, SHA256: "{repo.head().files["pytorch_model.bin"].sha256}"}}'
    assert "no auxiliary head" in lines[1] and "has other tensors" in lines[2] and "org/gone" in lines[3] and len(lines) == 4


def test_a_probe_asks_copies_for_their_config(server, run, convnext, tmp_path):
    write_index(tmp_path / "index.yml", convnext, "hf-hub:org/copy", "hf-hub:org/gone")
    put(server, "org/copy", write_transformers(convnext, tmp_path / "copy"))
    code = f"""
from upernet_zoo.weights import probe
*_, copy, gone = probe.probe([uz.model_info({NAME!r})])[{NAME!r}]
say(*((one.source.kind.value, one.answer.value, one.size) for one in (copy, gone)))
"""
    copy, (kind, answer, size) = run(code)
    assert copy == ["copy", "yes", None] and (kind, size) == ("copy", None) and answer != "yes"
    assert server.count("HEAD", "^/org/copy/resolve/main/config.json$") == 1 and not server.count("GET", "/org/copy/")


def test_copies_in_the_index_and_in_the_plan(convnext, tmp_path, monkeypatch):
    path = write_index(tmp_path / "index.yml", convnext, "hf-hub:org/copy@v1", {"Reference": "hf-hub:org/pinned", "SHA256": "ab" * 32})
    entry = index.load(path)[NAME]
    assert entry.copies == (index.PublishedCopy("hf-hub:org/copy@v1"), index.PublishedCopy("hf-hub:org/pinned", "ab" * 32))
    assert [copy.repository for copy in entry.copies] == ["org/copy", "org/pinned"]
    *_, last, pinned = sources.plan(entry)
    assert last.location == "hf-hub:org/copy@v1" and last.state_text.endswith("(verified against its host's digest, not the index's)")
    assert pinned.state_text.endswith("(verified against the index's digest)")
    for bad in ("org/copy", {"Reference": "hf-hub:org/copy", "SHA256": "ab"}, {"Repository": "hf-hub:org/copy"}, 3):
        with pytest.raises(errors.IndexFormatError, match="Copies"):
            index.load(write_index(path, convnext, bad))
