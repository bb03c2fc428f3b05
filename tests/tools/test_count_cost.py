"""Parameters and multiplications in the index: those of mmsegmentation's own models, and what the tool counts today."""

import gzip
import json

import pytest
from support import tools
from support.fixture import FIXTURES, ROOT

import upernet_zoo as uz
from upernet_zoo import errors, index

SHAPES = json.loads(gzip.decompress((FIXTURES / "family_shapes.json.gz").read_bytes()))  # as mmsegmentation 0.30 builds them


@pytest.fixture(scope="module")
def tool():
    return tools.load("count_cost")


@pytest.mark.parametrize("name", SHAPES["models"])
def test_parameters_and_multiplications_are_those_of_the_original_model(name):
    """Counted in mmsegmentation 0.30, multiplications by a count of its own."""
    entry, cost = uz.model_info(name), SHAPES["cost"][name]
    assert (entry.parameters, list(entry.gmacs_at)) == (cost["params"], cost["input"])
    assert entry.gmacs == pytest.approx(cost["gmacs"], rel=3e-3)  # SVT: padded windows are multiplied too


def test_multiplications_are_those_that_were_counted_in_the_original_code():
    seen = []
    for path in sorted((ROOT / "results").glob("inference_ade20k_*.json")):
        data = json.loads(path.read_text())
        settings = data["settings"]
        name = settings.get("model", f"upernet_r{settings.get('depth')}_512x512_160k_ade20k")
        entry = uz.model_info(name)
        found = data["results"].get("1x3x{}x{}".format(*entry.gmacs_at))
        if found and "gmacs" in found["systems"]["mmsegmentation"]:
            assert entry.gmacs == pytest.approx(found["systems"]["mmsegmentation"]["gmacs"], rel=2e-3)
            seen.append(name)
    assert len(seen) >= 5


def test_every_model_has_both_and_its_size():
    entries = [uz.model_info(name) for name in uz.list_models()]
    assert all(entry.parameters and entry.gmacs for entry in entries), "run python tools/count_cost.py"
    assert {entry.gmacs_at for entry in entries if entry.backbone.startswith("BEiT")} == {(640, 640)}
    assert {entry.gmacs_at for entry in entries if not entry.backbone.startswith("BEiT")} == {(512, 512)}
    assert uz.list_models(sort="gmacs")[0] == "upernet_beit-large_fp16_8x1_640x640_160k_ade20k"
    assert uz.list_models(sort="parameters")[-1].startswith("upernet_r18")


@pytest.mark.parametrize(
    "name",
    (
        "upernet_r18_512x512_20k_voc12aug",
        "upernet_deit-s16_512x512_80k_ade20k",
        "knet_s3_upernet_r50-d8_8x2_512x512_adamw_80k_ade20k",
        "upernet_beit-base_8x2_640x640_160k_ade20k",
    ),
)
def test_the_tool_counts_the_same_today(tool, name):
    entry = uz.model_info(name)
    expected = {"Parameters": entry.parameters, "GMACs": entry.gmacs}
    if entry.gmacs_at != (512, 512):
        expected["GMACs At"] = "x".join(map(str, entry.gmacs_at))
    assert tool.count(entry) == expected


def test_the_tool_changes_nothing_else(tool):
    text = (ROOT / "model_index.yml").read_text()
    entries = index.load(ROOT / "model_index.yml")
    name = "upernet_beit-base_8x2_640x640_160k_ade20k"
    same = {"Parameters": entries[name].parameters, "GMACs": entries[name].gmacs, "GMACs At": "640x640"}
    assert tool.written(text, {name: same}) == text
    other = tool.written(text, {name: {**same, "GMACs": 1.5}})
    changed = [(a, b) for a, b in zip(text.splitlines(), other.splitlines(), strict=True) if a != b]
    assert changed == [(f"      GMACs: {entries[name].gmacs}", "      GMACs: 1.5")]


@pytest.mark.parametrize(
    "line, message",
    [("Parameters: -5", "'Parameters'"), ("Parameters: 1.5", "'Parameters'"), ("GMACs: many", "'GMACs'"), ("GMACs At: 512", "'GMACs At'")],
)
def test_wrong_counts_are_refused(tmp_path, line, message):
    key = line.partition(":")[0]
    text = (ROOT / "model_index.yml").read_text()
    lines = [row for row in text.splitlines() if not row.strip().startswith(f"{key}:")]
    at = next(number for number, row in enumerate(lines) if "Lr schd:" in row)
    lines.insert(at, f"      {line}")
    (tmp_path / "index.yml").write_text("\n".join(lines))
    with pytest.raises(errors.IndexFormatError, match=message):
        index.load(tmp_path / "index.yml")
