"""The zoo's page as text: well-formed, every number that of the index, everything escaped, nothing overwritten that is not its own."""

import html
import html.parser
import json
import re
import subprocess
import sys

import pytest
import yaml
from support.fixture import ROOT

import upernet_zoo as uz
from upernet_zoo import errors, index
from upernet_zoo.cli import main
from upernet_zoo.web import page

VOID = {"meta", "link", "br", "input", "wbr"}
ENTRIES = index.load(ROOT / "model_index.yml")
SWIN = "upernet_swin_tiny_patch4_window7_512x512_160k_ade20k_pretrain_224x224_1K"


class Document(html.parser.HTMLParser):
    """Checks that what is opened is closed, in order, and keeps elements: (tag, attributes, text)."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.elements = [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        assert len(dict(attributes)) == len(attributes), f"<{tag}> has an attribute twice"
        element = [tag, dict(attributes), ""]
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag):
        assert self.open and self.open[-1][0] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data):
        for element in self.open:
            element[2] += data

    def all(self, tag, **attributes):
        return [e for e in self.elements if e[0] == tag and all(e[1].get(key.rstrip("_")) == value for key, value in attributes.items())]


@pytest.fixture(scope="module")
def text():
    return page.render(ENTRIES, measured=page.read_results(ROOT / "results", ENTRIES.values()))


@pytest.fixture(scope="module")
def document(text):
    return Document(text)


def test_it_is_whole_and_asks_for_nothing(text, document):
    assert text.startswith("<!doctype html>")
    ids = [attributes["id"] for _, attributes, _ in document.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes, _ in document.elements:
        assert not attributes.keys() & {"src", "srcset", "style", "onclick", "action"}
        for target in (attributes.get("href", ""), attributes.get("data-copy", "")):
            assert not target.startswith("#") or target[1:] in ids
    assert [e[1]["href"][:10] for e in document.all("link")] == ["data:image"]
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest|innerHTML|\beval\(", text)
    labels = {attributes["for"] for _, attributes, _ in document.all("label") if "for" in attributes}
    assert {"search", "license", "order"} <= labels & set(ids)
    assert len(text) < 400_000


def test_the_numbers_of_every_row_equal_the_index(document):
    rows = [e[1] for e in document.all("tbody")]
    assert sorted(row["data-name"] for row in rows) == sorted(ENTRIES)
    shown = document.all("tbody")
    for row, (_, _, said) in zip(rows, shown):
        entry = ENTRIES[row["data-name"]]
        numbers = {"data-miou": entry.metrics["mIoU"], "data-ms": entry.metrics["mIoU(ms+flip)"], "data-gmacs": entry.gmacs}
        assert {key: float(row[key]) for key in numbers} == numbers
        assert float(row["data-params"]) == entry.parameters / 1e6
        assert (row["data-dataset"], row["data-backbone"], row["data-kind"]) == (
            entry.dataset,
            entry.backbone,
            entry.architecture["backbone"]["kind"],
        )
        assert row["data-licenses"].split("\n") == list(entry.licenses.names())
        for part in (f"{entry.metrics['mIoU']:.2f}", f"{entry.gmacs:.1f}", f'uz.Segmenter("{entry.name}")', entry.sha256, "not checked"):
            assert part in said
        for statement in entry.licenses.weights.stated:
            assert statement.by in said
        assert ("The sources disagree: Apache-2.0 and MIT." in said) == entry.licenses.weights.disagree
    order = [(row["data-dataset"], -float(row["data-miou"])) for row in rows]
    assert order == sorted(order, key=lambda key: (["ADE20K", "Cityscapes", "Pascal VOC 2012 + Aug"].index(key[0]), key[1]))


def test_the_terms_of_every_data_set_are_there(document):
    articles = {e[2]: e for e in document.all("article")}
    for terms in {terms for entry in ENTRIES.values() for terms in entry.licenses.data}:
        (said,) = [said for said in articles if said.startswith(terms.name)]
        assert all(one.note in said for one in terms.stated)
    assert any("'or any derivative work' may be used for commercial purposes" in said for said in articles)


def test_seconds_are_those_of_the_same_architecture():
    measured = page.read_results(ROOT / "results", ENTRIES.values())
    r50 = json.loads((ROOT / "results" / "inference_ade20k_r50.json").read_text())["results"]["1x3x512x512"]["systems"]["fused"]["median_s"]
    for name in uz.list_models("upernet_r50*ade20k"):
        assert measured[name].seconds == r50
    beit = json.loads((ROOT / "results" / "inference_ade20k_beit_b.json").read_text())["results"]["1x3x640x640"]["systems"]["fused"]
    assert measured["upernet_beit-base_8x2_640x640_160k_ade20k"].seconds == beit["median_s"]
    assert not any("voc12aug" in name or "769x769" in name or name.startswith("knet") for name in measured)
    assert re.fullmatch(r".+, 2 cores, torch 2\.\S+, \d{4}-\d\d-\d\d", measured[SWIN].where)


HOSTILE = "</script><script>alert(1)</script>\"'><img src=x onerror=alert(1)>&amp;"


def test_everything_from_data_is_escaped(tmp_path):
    data = yaml.safe_load((ROOT / "model_index.yml").read_text())
    model = data["Models"][0]
    model["Metadata"] |= {"Backbone": HOSTILE, "Pretraining": HOSTILE, "Method": HOSTILE}
    model["Results"][0]["Dataset"] = HOSTILE
    data["Collections"][0]["Name"] = HOSTILE
    for one in data["Models"]:
        one["In Collection"] = HOSTILE
    data["Collections"][0]["Licenses"]["Code"] = [{"By": HOSTILE, "License": HOSTILE, "Source": 'https://a/?"><b>', "Note": HOSTILE}]
    (tmp_path / "index.yml").write_text(yaml.safe_dump(data))
    entries = index.load(tmp_path / "index.yml")
    seen = {
        model["Name"]: page.Seen("good", HOSTILE, "javascript:alert(1)"),
        data["Models"][1]["Name"]: page.Seen("wrong", "", None, HOSTILE),
    }
    measured = {model["Name"]: page.Measured(1.5, HOSTILE)}
    document = Document(page.render(entries, weights=seen, measured=measured))
    assert len(document.all("script")) == 1 and not document.all("img") and not document.all("b")
    assert all(not e[1]["href"].startswith("javascript") for e in document.all("a"))
    row = next(e for e in document.all("tbody") if e[1]["data-name"] == model["Name"])
    assert row[1]["data-backbone"] == HOSTILE and HOSTILE in row[2]
    assert "http://[no" in page.render(entries, weights={model["Name"]: page.Seen("good", "", "http://[no")})


def test_an_index_of_one_model_without_numbers_and_one_of_none(tmp_path):
    data = yaml.safe_load((ROOT / "upernet_zoo" / "demo" / "model_index.yml").read_text())
    (tmp_path / "index.yml").write_text(yaml.safe_dump(data))
    document = Document(page.render(index.load(tmp_path / "index.yml")))
    (row,) = document.all("tbody")
    assert row[1]["data-miou"] == row[1]["data-gmacs"] == row[1]["data-seconds"] == ""
    (tmp_path / "index.yml").write_text(yaml.safe_dump({**data, "Models": []}))
    assert not Document(page.render(index.load(tmp_path / "index.yml"))).all("tbody")


def report(**record):
    record = {"name": SWIN, "state": "good", "source": "https://mmassets.onedl.ai/x.pth", "date": "2026-11-23T04:30:00+00:00", **record}
    return {"format": 1, "upernet_zoo": "0.1.0", "models": [{"file": "x.pth", "size": 1, "sha256": "00", "detail": "", **record}]}


def test_where_the_weights_were_last_seen(tmp_path):
    path = tmp_path / "weights.json"
    path.write_text(json.dumps(report()))
    document = Document(page.render(ENTRIES, weights=page.read_weights(path)))
    said = {e[1]["data-name"]: e[2] for e in document.all("tbody")}
    assert "seen 2026-11-23" in said[SWIN] and "mmassets.onedl.ai, 2026-11-23T04:30" in said[SWIN]
    assert all("not checked" in text for name, text in said.items() if name != SWIN)
    path.write_text(json.dumps(report(state="absent", source=None, detail="no host has it")))
    document = Document(page.render(ENTRIES, weights=page.read_weights(path)))
    said = {e[1]["data-name"]: e[2] for e in document.all("tbody")}
    assert "not found 2026-11-23" in said[SWIN] and "no host has it" in said[SWIN]


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "cannot be read"),
        ("[]", "no report"),
        ('{"format": 2, "models": []}', "format 2.*Update"),
        ('{"format": 1}', "no report.*models"),
        (json.dumps(report(state="fine")), "no report.*record of"),
        (json.dumps(report(date=5)), "no report.*record of"),
        ("[" * 100_000, "cannot be read"),
    ],
)
def test_what_is_no_report_is_refused(tmp_path, text, message):
    path = tmp_path / "weights.json"
    path.write_text(text)
    with pytest.raises(errors.ArgumentError, match=f"(?s){re.escape(str(path))}.*{message}"):
        page.read_weights(path)


def test_results_that_are_none_are_refused(tmp_path):
    with pytest.raises(errors.MissingFileError, match="No folder of results"):
        page.read_results(tmp_path / "missing", ENTRIES.values())
    (tmp_path / "inference_x.json").write_text('{"machine": {}}')
    with pytest.raises(errors.ArgumentError, match="inference_x.json: no results of benchmarks/inference.py"):
        page.read_results(tmp_path, ENTRIES.values())


def test_the_command_writes_a_file_or_a_folder_and_overwrites_its_own_alone(tmp_path, capsys):
    assert main.main(["page", str(tmp_path / "site")]) == 0
    path = tmp_path / "site" / "index.html"
    assert str(path) in capsys.readouterr().out and "60 models" in path.read_text()
    (tmp_path / "weights.json").write_text(json.dumps(report()))
    assert main.main(["page", str(path), "--weights", str(tmp_path / "weights.json")]) == 0
    assert "seen 2026-11-23" in path.read_text()
    for content in ("<html>my own page</html>", ""):
        path.write_text(content)
        assert main.main(["page", str(tmp_path / "site")]) == 1
        assert "no page that upernet-zoo wrote" in capsys.readouterr().err and path.read_text() == content
    folder = tmp_path / "folder.html"
    folder.mkdir()
    assert main.main(["page", str(folder)]) == 1
    assert main.main(["page", str(tmp_path / "x.html"), "--weights", str(tmp_path / "missing.json")]) == 1
    assert "missing.json" in capsys.readouterr().err and not (tmp_path / "x.html").exists()


def test_it_needs_no_torch_and_is_quick_to_make(tmp_path):
    code = (
        "import sys; from upernet_zoo.cli.main import main; assert main(['page', sys.argv[1]]) == 0;"
        "assert not {'torch', 'torchvision', 'requests', 'huggingface_hub', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "zoo.html")], check=True)
