"""What is stated of licenses, for every model of the index: in data, on the command line, and with a source for each statement."""

import csv
import io
import json
import re
from urllib.parse import urlsplit

import pytest
import yaml
from support.fixture import ROOT

import upernet_zoo as uz
from upernet_zoo import index, licenses
from upernet_zoo.cli import main

ALL = [uz.model_info(name) for name in uz.list_models()]
SWIN = "upernet_swin_tiny_patch4_window7_512x512_160k_ade20k_pretrain_224x224_1K"


def statements(entry):
    known = entry.licenses
    return [one for terms in (known.code, known.weights, known.backbone, *known.data) for one in terms.stated]


@pytest.mark.parametrize("entry", ALL, ids=lambda entry: entry.name)
def test_each_part_of_every_model_has_statements_with_a_source(entry):
    known = entry.licenses
    assert known.code.licenses == ("Apache-2.0",)
    assert known.backbone.stated and all(terms.stated for terms in known.data)
    for one in statements(entry):
        assert one.source is None or urlsplit(one.source).scheme in ("http", "https")
        assert one.license is None or one.source  # nothing is stated by nobody
    places = {urlsplit(url).hostname for url in (entry.weights, *entry.mirrors)} | {copy.reference for copy in entry.copies}
    assert known.weights.stated[0].by == "download.openmmlab.com"
    assert {one.by for one in known.weights.stated} == places
    assert not re.search(r"commercial( use)?:? (yes|allowed)", json.dumps(known.to_dict()), re.IGNORECASE)


def test_hosts_that_disagree_are_shown_side_by_side():
    with_copies = [entry for entry in ALL if any("openmmlab/" in copy.reference for copy in entry.copies)]
    assert len(with_copies) == 9
    assert [entry for entry in ALL if entry.licenses.weights.disagree] == with_copies
    weights = uz.model_info(SWIN).licenses.weights
    assert weights.licenses == ("Apache-2.0", "MIT") and str(weights) == "Apache-2.0 | MIT"
    assert weights.lines()[-1] == "sources disagree: Apache-2.0 and MIT"
    stated = {one.by: one.license for one in weights.stated}
    assert stated["hf-hub:openmmlab/upernet-swin-tiny"] == "MIT"
    assert stated["hf-hub:smp-hub/upernet-swin-tiny"] is stated["mmassets.onedl.ai"] is None


# what the repositories of the authors state, by the pretrained file that each config of mmsegmentation 0.30 starts from
BACKBONES = {
    "upernet_r*": (None,),
    "*swin*": ("MIT",),
    "*convnext*": ("MIT",),
    "*_vit-*": ("Apache-2.0", None),
    "*_deit-*": ("Apache-2.0",),
    "*_mae-*": ("CC-BY-NC-4.0",),
    "*_beit-*": ("MIT",),
    "twins_*": ("Apache-2.0",),
    "knet*r50*": (None,),
}


def test_the_pretrained_backbone_of_each_family():
    seen = set()
    for pattern, stated in BACKBONES.items():
        names = set(uz.list_models(pattern))
        assert names and not names & seen
        seen |= names
        assert {tuple(one.license for one in uz.model_info(name).licenses.backbone.stated) for name in names} == {stated}
    assert seen == set(uz.list_models())


def test_the_terms_of_the_data():
    data = {entry.dataset: entry.licenses.training for entry in ALL}
    assert {dataset: [terms.name for terms in sets] for dataset, sets in data.items()} == {
        "Cityscapes": ["Cityscapes"],
        "ADE20K": ["ADE20K"],
        "Pascal VOC 2012 + Aug": ["Pascal VOC 2012", "Semantic Boundaries Dataset"],
    }
    (clause,) = data["Cityscapes"][0].stated
    assert "'or any derivative work'" in clause.note and "'such as models trained on it'" in clause.note
    assert {terms.name for entry in ALL for terms in entry.licenses.pretraining} == {"ImageNet"}
    assert licenses.of_data("cityscapes") == data["Cityscapes"]
    assert str(*licenses.of_data("own pictures")) == "not stated" and licenses.of_data(None) == ()


def test_listing_filters_by_license():
    assert uz.list_models(license="cc-by-nc*") == uz.list_models("*mae*")
    assert set(uz.list_models(license="mit")) == {*uz.list_models("*swin*"), *uz.list_models("*convnext*"), *uz.list_models("*beit*")}
    assert uz.list_models(license="*non-commercial*") == uz.list_models()
    assert set(uz.list_models(license="not stated")) == {
        *uz.list_models("*_r*cityscapes"),
        *uz.list_models("*r50*"),
        *uz.list_models("*_r1*"),
    }
    with pytest.raises(uz.UPerNetZooError, match="No model has license 'GPL-3.0'; there are Apache-2.0, "):
        uz.list_models(license="GPL-3.0")


def test_the_command_lists_licenses_as_a_table_csv_and_json(capsys):
    assert main.main(["list", SWIN, "--license"]) == 0
    heading, _, row = capsys.readouterr().out.strip().splitlines()
    assert re.split(r"  +", heading) == ["Model", "Backbone", "Weights", "Started from", "Data"]
    data = "ADE20K terms (non-commercial) | BSD-3-Clause; ImageNet terms (non-commercial)"
    assert re.split(r"  +", row) == [SWIN, "Swin-T", "Apache-2.0 | MIT", "MIT", data]
    assert main.main(["list", "--license", "CC-BY-NC-4.0", "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["Model"] for row in rows] == uz.list_models("*mae*")
    assert main.main(["list", "--license", "--format", "json", "*voc*"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == uz.list_models("*voc*")
    assert rows[0]["licenses"] == json.loads(json.dumps(uz.model_info(rows[0]["name"]).licenses.to_dict()))
    assert main.main(["list", "--license", "--format", "md", SWIN]) == 0
    assert capsys.readouterr().out.count("\n") == 3


def test_info_says_all_of_it(capsys):
    assert main.main(["info", SWIN]) == 0
    said = " ".join(capsys.readouterr().out.split())
    for one in statements(uz.model_info(SWIN)):
        assert " ".join(str(one).split()) in said
    assert "sources disagree: Apache-2.0 and MIT" in said


def test_the_demo_is_free_of_others_terms():
    demo = index.load(ROOT / "upernet_zoo" / "demo" / "model_index.yml").info("upernet_demo_r18_street")
    assert demo.licenses.weights.licenses == demo.licenses.training[0].licenses == ("Apache-2.0",)


def test_an_index_that_states_nothing_says_so(tmp_path):
    data = yaml.safe_load((ROOT / "model_index.yml").read_text())
    del data["Collections"][0]["Licenses"]
    path = tmp_path / "index.yml"
    path.write_text(yaml.safe_dump(data))
    known = index.load(path).info(SWIN).licenses
    assert known.code.lines() == ["not stated"] and known.backbone is None and not known.weights.licenses
    assert known.lines()["started from"] == ["not stated"]
    assert known.training  # what is known of data sets comes with the package


BROKEN = {
    "not a mapping": (["MIT"], "Licenses: expected a mapping"),
    "an unknown part": ({"Photos": []}, "Licenses: unknown key 'Photos'"),
    "code that is no list": ({"Code": {"By": "x"}}, "'Code'.*a list of mappings with the keys By, License, Source, Note"),
    "a statement without a source": ({"Code": [{"By": "x", "License": "MIT"}]}, "'Source'.*URL"),
    "a statement by nobody": ({"Weights": [{"License": "MIT", "Source": "https://a/"}]}, "'At' is missing"),
    "a source that runs": ({"Code": [{"By": "x", "Source": "javascript:alert(1)"}]}, "'Source'.*http"),
    "a name of two lines": ({"Code": [{"By": "x\ny", "Source": "https://a/"}]}, "'By'.*one line"),
    "models that are no list": ({"Backbones": [{"Name": "x", "Models": "a*", "Stated": []}]}, "'Models'.*names of models"),
}


@pytest.mark.parametrize("stated, message", BROKEN.values(), ids=BROKEN)
def test_a_broken_statement_is_refused_by_name(tmp_path, stated, message):
    data = yaml.safe_load((ROOT / "model_index.yml").read_text())
    data["Collections"][0]["Licenses"] = stated
    path = tmp_path / "index.yml"
    path.write_text(yaml.safe_dump(data))
    with pytest.raises(uz.UPerNetZooError, match=f"collection number 1.*{message}"):
        index.load(path)
