"""Who may claim to be the published model: cards, `info` and `evaluate`, of honest, changed, forged and fused weights."""

import dataclasses
import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import save_file
from support.fixture import NAMES, Fixture

import upernet_zoo as uz
from upernet_zoo import factory, index, provenance
from upernet_zoo.cli import main
from upernet_zoo.description import Description
from upernet_zoo.evaluation import runner
from upernet_zoo.hub import card
from upernet_zoo.provenance import Evidence, claim_of, fingerprint, published_entry

ONE = Fixture(NAMES[0])


@pytest.fixture(autouse=True)
def published_numbers(small_index, monkeypatch):
    data = yaml.safe_load(small_index.read_text())
    for model in data["Models"]:
        model["Results"][0] |= {"Dataset": "Stand-in", "Metrics": {"mIoU": 40.25}}
    small_index.write_text(yaml.safe_dump(data))
    monkeypatch.setattr(provenance, "_CONVERTED", {})
    monkeypatch.setattr(provenance, "_FOLDERS", set())
    return small_index


@pytest.fixture
def model():
    return uz.create_model(ONE.name, checkpoint=ONE.checkpoint)


@pytest.fixture
def forged(model, tmp_path):
    """A folder with weights of anybody's whose record is right in every word, and has their own fingerprint."""
    folder = model.save_pretrained(tmp_path / "forged")
    state = {key: torch.zeros_like(value) for key, value in model.state_dict().items()}
    save_file(state, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config["origin"]["tensors"] = fingerprint(state)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def claims(text):
    return [word for word in ("trained by", "bit for bit", "40.25", "mean_iou", "apache-2.0", "mmseg2020") if word in text]


def saved_card(model, folder):
    return (model.save_pretrained(folder) / "README.md").read_text()


def test_converted_here_is_published(model, tmp_path):
    assert published_entry(model).name == ONE.name
    assert len(claims(saved_card(model, tmp_path / "saved"))) == 6
    again = uz.create_model(tmp_path / "saved")
    assert published_entry(again).name == ONE.name and len(claims(saved_card(again, tmp_path / "again"))) == 6


def test_a_record_alone_claims_nothing(forged, tmp_path, capsys):
    found = uz.create_model(forged)
    assert found.origin["model"] == ONE.name and claim_of(found).evidence is Evidence.UNCONFIRMED
    text = saved_card(found, tmp_path / "again")
    assert claims(text) == [] and "was not checked" in text and ModelCard(text).data.eval_results is None
    assert main.main(["info", str(forged)]) == 0
    assert "40.25" not in (out := capsys.readouterr().out) and "nothing on this machine says" in out
    assert main.main(["info", str(forged), "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"] is None
    assert main.main(["info", str(forged / "model.safetensors")]) == 0  # the same record, in a file's header
    assert "40.25" not in capsys.readouterr().out


def test_without_a_word_of_its_tensors_a_record_claims_nothing(forged):
    config = json.loads((forged / "config.json").read_text())
    del config["origin"]["tensors"]
    (forged / "config.json").write_text(json.dumps(config))
    assert claim_of(uz.create_model(forged)).evidence is Evidence.UNCONFIRMED


def test_a_changed_model_says_so(model, tmp_path):
    with torch.no_grad():
        model.decode_head.classifier.bias[0] += 1e-3
    assert claim_of(model).evidence is Evidence.CHANGED and published_entry(model) is None
    text = saved_card(model, tmp_path / "changed")
    assert claims(text) == ["apache-2.0", "mmseg2020"] and "and differ from them" in text
    assert claim_of(uz.create_model(ONE.name, dtype=torch.float16)).evidence is Evidence.CHANGED


def test_another_process_knows_it_by_the_cache_and_another_machine_by_the_index(model, tmp_path, published_numbers, capsys, monkeypatch):
    folder = model.save_pretrained(tmp_path / "saved")
    code = (
        f"import upernet_zoo as uz; from upernet_zoo import provenance\nprint(provenance.published_entry(uz.create_model({str(folder)!r})))"
    )

    def fresh():
        return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout

    assert ONE.name in fresh()
    assert main.main(["info", str(folder)]) == 0 and "40.25" in capsys.readouterr().out
    monkeypatch.setenv("UPERNET_ZOO_CACHE", str(tmp_path / "empty"))
    assert fresh() == "None\n"
    data = yaml.safe_load(published_numbers.read_text())
    next(one for one in data["Models"] if one["Name"] == ONE.name)["Fingerprint"] = fingerprint(model.state_dict())
    published_numbers.write_text(yaml.safe_dump(data))
    assert ONE.name in fresh()


def test_a_planted_file_in_the_cache_is_no_evidence(model, forged, own_cache):
    (converted,) = (own_cache / "converted").glob("*.safetensors")
    provenance._CONVERTED.clear()
    bad = uz.create_model(forged)
    converted.unlink()  # the first model is mapped from it
    shutil.copy(forged / "model.safetensors", converted)
    assert claim_of(bad).evidence is Evidence.UNCONFIRMED  # its receipt is of other bytes


def test_other_weights_by_a_digest_of_ones_own_claim_nothing(tmp_path):
    content = torch.load(ONE.checkpoint, weights_only=True)
    path = tmp_path / "mine.pth"
    torch.save(content, path)
    digest = uz.index.model_info(ONE.name).sha256
    mine = hashlib.sha256(path.read_bytes()).hexdigest()
    assert not mine.startswith(digest)
    assert claim_of(uz.create_model(ONE.name, checkpoint=path, sha256=mine)) is None


def test_a_fused_model_is_compared_with_what_the_checkpoint_gives(model):
    fused = uz.Segmenter(ONE.name, device="cpu").model
    assert published_entry(fused).name == published_entry(uz.optimize_for_inference(model)).name == ONE.name
    fused = uz.optimize_for_inference(model)
    with torch.no_grad():
        fused.decode_head.classifier.bias[0] += 1
    assert published_entry(fused) is None


def test_only_published_weights_get_the_published_number_beside_what_is_measured(model, forged, tmp_path):
    dataset = SimpleNamespace(name=model.label_set.name, label_set=model.label_set)

    def published(ref, **options):
        return runner._published(uz.Segmenter(ref, device="cpu", **options), dataset)

    saved = model.save_pretrained(tmp_path / "saved")
    assert published(ONE.name) == published(ONE.name, optimize=False) == published(saved) == 0.4025
    assert published(forged) is None and published(forged, optimize=False) is None


def test_nothing_is_hashed_while_a_model_is_loaded(model, tmp_path, monkeypatch):
    folder = model.save_pretrained(tmp_path / "saved")
    uz.optimized.load(ONE.name)
    for module in (provenance, factory):
        monkeypatch.setattr(module, "fingerprint", lambda tensors: pytest.fail("hashed"))
    uz.create_model(folder), uz.create_model(ONE.name), uz.optimized.load(ONE.name), uz.Segmenter(folder, device="cpu")


HOSTILE = 'x"\n---\n# <script>alert(1)</script> [click](https://evil.example) `rm -rf` | a | ![i](//e) \x1b[2J \u202e @someone'


def test_text_of_strangers_is_text_in_a_card(model, tmp_path):
    label_set = dataclasses.replace(model.label_set, name="own", title=HOSTILE * 50)
    model.label_set = label_set
    model.origin = {"model": "none", "file": HOSTILE, "sha256": HOSTILE, "url": "https://bob:hunter2@evil.example/`|"}
    text = saved_card(model, tmp_path / "saved")
    assert len(text) < 8000 and "hunter2" not in text
    body = ModelCard(text).text
    assert ModelCard(text).data.to_dict().keys() == {"library_name", "pipeline_tag", "tags"}
    for raw in ("<script", "](", "`rm", "\x1b", "\u202e", "://evil", "@someone", "\n# <", "| a |"):
        assert raw not in body, raw


def test_an_entry_and_a_name_of_strangers_too(model, tmp_path):
    entry = dataclasses.replace(index.default().info(ONE.name), dataset=HOSTILE)
    claim = provenance.Claim(entry, Evidence.PUBLISHED)
    text = card.render(Description.of(model), reference=HOSTILE, name=HOSTILE, weights_sha256="0" * 64, claim=claim)
    found = ModelCard(text)
    assert found.data.eval_results[0].metric_value == 40.25 and "\x1b" not in found.data.eval_results[0].dataset_name
    assert not any(raw in found.text for raw in ("\x1b", "\u202e", "\n# <", "\n---\n#"))
    prose = found.text.replace(found.text[found.text.index("```python") : found.text.index("## Results")], "")
    assert not any(raw in prose for raw in ("<script", "](https://evil", "`rm"))


def test_the_card_installs_the_projects_own_source(model, tmp_path):
    text = saved_card(model, tmp_path / "saved")
    assert "pip install git+https://github.com/upernet-zoo/upernet_zoo" in text


def test_no_text_of_the_project_installs_a_name_of_pypi():
    root = Path(uz.__file__).parent
    for path in [*root.rglob("*.py"), *root.parent.glob("*.md"), *(root.parent / "docs").rglob("*.md")]:
        for line in path.read_text(encoding="utf-8").splitlines():
            if re.search(r"pip install [^&]*upernet[-_]zoo", line):
                assert "git+https://github.com/upernet-zoo/upernet_zoo" in line or "{SOURCE}" in line, f"{path}: {line}"
