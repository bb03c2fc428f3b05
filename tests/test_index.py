"""The index: every cell of the published tables, validation, listing."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import upernet_zoo as uz
from upernet_zoo import index

ROOT = Path(__file__).resolve().parent.parent
FIXTURES = Path(__file__).parent / "fixtures"
PUBLISHED = json.loads((FIXTURES / "published_configs.json").read_text())


def published_rows():
    """Cells of the tables in the README of the original release, as printed there."""
    dataset = None
    for line in (FIXTURES / "upernet_README.md").read_text().splitlines():
        if line.startswith("### "):
            dataset = line[4:].strip()
        if line.startswith("| UPerNet"):
            yield dataset, [cell.strip() for cell in line.strip("|").split("|")]


ROWS = list(published_rows())


def number(cell):
    return None if cell == "-" else float(cell)


def test_the_index_has_the_models_of_the_tables_and_no_others():
    names = [re.findall(r"/([^/]+)/[^/]+\.pth", cells[8])[0] for _, cells in ROWS]
    assert len(names) == 16
    assert uz.list_models() == names


@pytest.mark.parametrize("dataset, cells", ROWS, ids=[c[8].split("/")[-2] for _, c in ROWS])
def test_every_cell_equals_the_published_table(dataset, cells):
    method, backbone, crop, schedule, memory, fps, miou, ms_flip, links = cells
    weights, log = re.findall(r"\((https://[^)]+)\)", links)
    entry = uz.model_info(weights.split("/")[-2])
    assert entry.dataset == dataset
    assert entry.method == method
    assert entry.backbone == backbone
    assert entry.crop_size == tuple(map(int, crop.split("x")))
    assert entry.schedule == int(schedule)
    assert entry.memory_gb == number(memory)
    assert entry.fps == number(fps)
    assert dict(entry.metrics) == {"mIoU": float(miou), "mIoU(ms+flip)": float(ms_flip)}
    assert (entry.weights, entry.log) == (weights, log)
    assert entry.sha256 == re.search(r"-([0-9a-f]{8})\.pth$", weights)[1]
    assert entry.file_name == weights.rsplit("/", 1)[1]
    # the same paths on the two bucket hosts that the READMEs linked until September 2020
    path = weights.removeprefix("https://download.openmmlab.com/")
    assert entry.mirrors == tuple(f"https://openmmlab.{host}.aliyuncs.com/{path}" for host in ("oss-cn-hangzhou", "oss-accelerate"))


@pytest.mark.parametrize("name", PUBLISHED)
def test_configs_equal_the_published_ones(name):
    published, entry = PUBLISHED[name], uz.model_info(name)
    config, recipe = entry.config, entry.recipe
    assert config.depth == published["depth"]
    assert config.num_classes == published["num_classes"]
    assert config.align_corners == published["align_corners"] == published["aux_align_corners"]
    assert (config.channels, config.aux_channels) == (published["channels"], published["aux_channels"])
    assert list(config.pool_scales) == published["pool_scales"]
    assert list(recipe.scale) == published["img_scale"]
    test = {"mode": recipe.mode}
    if recipe.mode == "slide":
        test |= {"crop_size": list(recipe.crop), "stride": list(recipe.stride)}
    assert test == published["test_cfg"]
    assert {"CityscapesDataset": "cityscapes", "ADE20KDataset": "ade20k", "PascalVOCDataset": "voc12aug"}[
        published["dataset"]
    ] == entry.labels


def test_the_public_model_index_package_accepts_the_file():
    from modelindex.load_model_index import load as load_model_index

    model_index = load_model_index(str(ROOT / "model_index.yml"))
    errors = model_index.check(silent=True)
    assert not errors
    assert len(model_index.models) == 16


def test_listing_filters_and_sorts():
    assert uz.list_models("*R101*", dataset="cityscapes", sort="mIoU")[0] == "upernet_r101_769x769_80k_cityscapes"
    assert uz.list_models(dataset="Pascal VOC 2012 + aug", backbone="r-50") == [
        "upernet_r50_512x512_20k_voc12aug",
        "upernet_r50_512x512_40k_voc12aug",
    ]
    by_fps = uz.list_models(sort="fps")
    assert by_fps[0] == "upernet_r50_512x512_80k_ade20k" and uz.model_info(by_fps[-1]).fps is None
    assert uz.list_models("nothing*") == []


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(uz.UPerNetZooError, match="upernet_r50_512x512_160k_ade20k") as caught:
        uz.model_info("upernet_r50_512x512_160k_ade20")
    assert isinstance(caught.value, LookupError)
    for keywords in ({"dataset": "coco"}, {"backbone": "R-152"}, {"sort": "accuracy"}):
        with pytest.raises(ValueError, match="; there are "):
            uz.list_models(**keywords)


def test_listing_imports_no_torch_and_no_network_client():
    code = (
        "import sys, upernet_zoo as uz; assert len(uz.list_models()) == 16; uz.model_info(uz.list_models()[0]);"
        "assert not {'torch', 'torchvision', 'requests', 'huggingface_hub', 'numpy', 'PIL'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def broken(change):
    data = yaml.safe_load((ROOT / "model_index.yml").read_text())
    change(data["Models"][2], data)
    return data


def _set(*path):
    *keys, last, value = path

    def change(model, _):
        for key in keys:
            model = model[key]
        if value is None:
            del model[last]
        else:
            model[last] = value

    return change


BROKEN = {
    "a name with a slash": (_set("Name", "../evil"), "model '../evil'.*'Name'.*plain name"),
    "no name": (_set("Name", None), "model number 3.*'Name' is missing"),
    "unknown key": (_set("Weight", "x"), "unknown key 'Weight'"),
    "unknown collection": (_set("In Collection", "PSPNet"), "'In Collection'.*one of the collections"),
    "weights are no URL": (_set("Weights", "weights.pth"), "'Weights'.*URL"),
    "weights without a file": (_set("Weights", "https://example.org/"), "'Weights'.*plain file name"),
    "weights with an encoded path": (_set("Weights", "https://example.org/%2e%2e"), "'Weights'.*plain file name"),
    "a digest of seven digits": (_set("SHA256", "aa54cb5"), "'SHA256'.*8 to 64 hex"),
    "a digest read as a number": (_set("SHA256", 12345678), "'SHA256'.*quoted text"),
    "no digest": (_set("SHA256", None), "'SHA256' is missing"),
    "mirrors not a list": (_set("Mirrors", "https://example.org/x.pth"), "'Mirrors'.*list of URLs"),
    "a mirror that is no URL": (_set("Mirrors", ["ftp://example.org/x.pth"]), "'Mirrors'.*URL"),
    "unknown depth": (_set("Config", "depth", 152), "Config.*'depth'.*18, 34, 50, 101"),
    "unknown config key": (_set("Config", "widht", 3), "Config.*unknown key 'widht'"),
    "class count of another set": (_set("Config", "num_classes", 20), "'num_classes'.*19"),
    "unknown labels": (_set("Config", "labels", "coco"), "'labels'.*cityscapes, ade20k, voc12aug"),
    "slide without crop": (_set("Config", "crop", None), "slide mode needs 'crop'"),
    "align_corners as text": (_set("Config", "align_corners", "yes"), "'align_corners'.*true or false"),
    "mIoU above 100": (_set("Results", 0, "Metrics", "mIoU", 770), "'mIoU'.*percentage"),
    "mIoU as text": (_set("Results", 0, "Metrics", "mIoU", "-"), "'mIoU'.*number"),
    "no results": (_set("Results", []), "'Results'.*list of one result"),
    "crop size": (_set("Metadata", "Crop Size", 769), "'Crop Size'.*512x1024"),
    "no schedule": (_set("Metadata", "Lr schd", None), "'Lr schd' is missing"),
    "a name twice": (lambda m, d: m.update(Name=d["Models"][0]["Name"]), "stands twice"),
    "another file of the same name": (lambda m, d: m.update(Weights=d["Models"][0]["Weights"]), "two files named .*; rename one"),
    "no models": (lambda m, d: d.pop("Models"), "'Models'"),
    "no collections": (lambda m, d: d.pop("Collections"), "'Collections'"),
    "a model that is text": (lambda m, d: d["Models"].append("upernet"), "model number 17.*mapping"),
}


@pytest.mark.parametrize("change, message", BROKEN.values(), ids=BROKEN)
def test_a_broken_index_names_the_entry_the_key_and_what_was_expected(tmp_path, change, message):
    path = tmp_path / "index.yml"
    path.write_text(yaml.safe_dump(broken(change)))
    with pytest.raises(uz.UPerNetZooError, match=message) as caught:
        index.load(path)
    assert isinstance(caught.value, ValueError)
    assert str(path) in str(caught.value)


def test_an_index_that_is_no_index(tmp_path):
    path = tmp_path / "index.yml"
    with pytest.raises(FileNotFoundError, match="UPERNET_ZOO_INDEX"):
        index.load(path)
    for text in ("{", "- 1\n- 2\n", "\x00", "[" * 5000, "a: &a [*a]", "[" * 200_000, "- " * 200_000, "{a: " * 200_000):
        path.write_text(text)
        with pytest.raises(uz.UPerNetZooError, match=re.escape(str(path))):
            index.load(path)


def test_a_key_that_stands_twice_is_refused(tmp_path):
    path = tmp_path / "index.yml"
    text = index.default_path().read_text()
    path.write_text(text.replace("mIoU: 77.10\n", "mIoU: 77.10\n          mIoU: 78.10\n", 1))
    assert path.read_text() != text
    with pytest.raises(uz.UPerNetZooError, match=r"line \d+: key 'mIoU' stands twice"):
        index.load(path)


def test_another_index_takes_the_place_of_the_own(tmp_path, monkeypatch):
    data = broken(_set("Name", "private"))
    data["Models"] = data["Models"][2:3]
    data["Models"][0]["Config"] |= {"labels": {"name": "mine", "classes": ["a", "b"]}, "num_classes": 2}
    path = tmp_path / "private.yml"
    path.write_text(yaml.safe_dump(data))
    monkeypatch.setenv("UPERNET_ZOO_INDEX", str(path))
    assert uz.list_models() == ["private"]
    assert uz.model_info("private").label_set.classes == ("a", "b")
    monkeypatch.delenv("UPERNET_ZOO_INDEX")
    assert len(uz.list_models()) == 16
