"""The index: every cell of the published tables, validation, listing."""

import gzip
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from support.fixture import FIXTURES, ROOT

import upernet_zoo as uz
from upernet_zoo import index
from upernet_zoo.checkpoints.infer import infer
from upernet_zoo.checkpoints.names import to_native, to_published
from upernet_zoo.checkpoints.read import Checkpoint
from upernet_zoo.errors import ArgumentError, ModelNotFoundError
from upernet_zoo.weights import sources

PUBLISHED = json.loads((FIXTURES / "published_configs.json").read_text())
FAMILY = json.loads((FIXTURES / "family_configs.json").read_text())  # of the later tables
SHAPES = json.loads(gzip.decompress((FIXTURES / "family_shapes.json.gz").read_bytes()))  # as mmsegmentation 0.30 builds them
LABELS = {"CityscapesDataset": "cityscapes", "ADE20KDataset": "ade20k", "PascalVOCDataset": "voc12aug"}


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
    assert (len(names), len(FAMILY)) == (16, 44)
    assert uz.list_models()[:16] == names
    assert sorted(uz.list_models(collection="OpenMMLab")) == sorted([*names, *FAMILY])


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
    # the same paths at the maintained fork's host, and on the two bucket hosts that the READMEs linked until September 2020
    hosts = ("mmassets.onedl.ai", "openmmlab.oss-cn-hangzhou.aliyuncs.com", "openmmlab.oss-accelerate.aliyuncs.com")
    assert entry.mirrors == tuple(weights.replace("download.openmmlab.com", host) for host in hosts)
    assert [entry.link(url) for url in (weights, log)] == [url.replace("download.openmmlab.com", hosts[0]) for url in (weights, log)]


@pytest.mark.parametrize("name", PUBLISHED)
def test_configs_equal_the_published_ones(name):
    published, entry = PUBLISHED[name], uz.model_info(name)
    config, recipe = entry.config, entry.recipe
    assert config.backbone == uz.ResNetConfig(depth=published["depth"])
    assert config.num_classes == published["num_classes"]
    assert config.align_corners == published["align_corners"] == published["aux_align_corners"]
    assert (config.channels, config.auxiliary.channels) == (published["channels"], published["aux_channels"])
    assert list(config.pool_scales) == published["pool_scales"]
    assert list(recipe.scale) == published["img_scale"]
    test = {"mode": recipe.mode}
    if recipe.mode == "slide":
        test |= {"crop_size": list(recipe.crop), "stride": list(recipe.stride)}
    assert test == published["test_cfg"]
    assert LABELS[published["dataset"]] == entry.labels


@pytest.mark.parametrize("name", FAMILY)
def test_every_cell_equals_the_later_table(name):
    entry, row = uz.model_info(name), FAMILY[name]
    cells, recipe = row["published"], row["recipe"]
    assert entry.labels == LABELS[row["dataset"]] and entry.method == ("K-Net + UPerNet" if name.startswith("knet") else "UPerNet")
    assert (entry.backbone, str(entry.crop_size).replace(" ", "")) == (cells["backbone"], cells["crop_size"])
    assert (entry.schedule, entry.memory_gb, entry.fps) == (cells["lr_schd"], cells["mem_gb"], cells["fps"])
    assert dict(entry.metrics) == {"mIoU": cells["mIoU"], "mIoU(ms+flip)": cells["mIoU_ms_flip"]}
    assert entry.weights == cells["weights"] and entry.sha256[:8] == cells["digest8"]
    assert entry.log == (None if cells["log_source"].startswith("derived") else cells["log"])
    assert (list(entry.recipe.scale), entry.recipe.mode) == (recipe["img_scale"], recipe["mode"])
    assert (list(entry.recipe.mean), list(entry.recipe.std)) == (recipe["mean"], recipe["std"])
    windows = [entry.recipe.crop, entry.recipe.stride]
    assert windows == ([tuple(recipe[key]) for key in ("crop_size", "stride")] if recipe["mode"] == "slide" else [None, None])
    assert entry.recipe.min_size == recipe.get("ms_min_size")


@pytest.mark.parametrize("name", FAMILY)
def test_the_architecture_is_what_shapes_and_config_of_the_original_say(name):
    """Every published name and shape at full width, and the row is the config that our own reading of the two finds."""
    row = FAMILY[name]
    published = {key: torch.empty(shape, device="meta") for key, shape in SHAPES["shapes"][SHAPES["models"][name]].items()}
    model = {"type": "EncoderDecoder", **row["architecture"], "test_cfg": {"mode": "whole"}}
    checkpoint = Checkpoint(Path(name), to_native(published), library="mmsegmentation")
    found = infer(checkpoint, {}, {"model": model})[0].config
    entry = uz.model_info(name)
    assert found == entry.config
    with torch.device("meta"):
        shapes = {key: tensor.shape for key, tensor in to_published(uz.UPerNet(entry.config, entry.recipe).state_dict()).items()}
    assert shapes == {key: tensor.shape for key, tensor in published.items() if not key.endswith("relative_position_index")}


def test_pretraining_is_said_for_all():
    assert {uz.model_info(name).pretraining for name in uz.list_models()} == {"ImageNet-1K", "ImageNet-22K"}
    assert len(uz.list_models(pretrained_on="imagenet-22k", backbone="swin*")) == 6
    assert uz.list_models(backbone="BEiT*", sort="mIoU")[0] == "upernet_beit-large_fp16_8x1_640x640_160k_ade20k"
    with pytest.raises(ArgumentError, match="No model has pretraining 'JFT'; there are ImageNet-1K, ImageNet-22K"):
        uz.list_models(pretrained_on="JFT")


def test_what_the_maintained_fork_does_not_hold_has_no_living_source():
    without = [name for name in FAMILY if uz.model_info(name).link(uz.model_info(name).weights) is None]
    assert all(not any("onedl" in mirror for mirror in uz.model_info(name).mirrors) for name in without)
    assert len([name for name in without if "r18" in name]) == 6 and len(without) == 9


# of other files under names of the index: six of Swin of June 2021, and an earlier training of K-Net
SUPERSEDED = ("b0d75c08", "1721882d", "b786336e", "7e559c24", "3794a3a4", "791f358b", "8787fc71")


def test_superseded_files_are_named_and_no_source():
    said = (ROOT / "docs" / "models.md").read_text()
    for digest in SUPERSEDED:
        assert f"`{digest}`" in said
        for name in uz.list_models():
            entry = uz.model_info(name)
            assert not entry.has_digest(digest + "0" * 56)
            assert not any(digest in source.location for source in sources.plan(entry))


def test_what_is_kept_of_beit_l_is_492_mb_smaller_than_what_was_published():
    """All of it the index of the bias tables, which follows from the size of the pictures."""
    name = "upernet_beit-large_fp16_8x1_640x640_160k_ade20k"
    published = {key: torch.empty(shape, device="meta") for key, shape in SHAPES["shapes"][SHAPES["models"][name]].items()}
    left_out = [value for key, value in published.items() if key.endswith("relative_position_index")]
    with torch.device("meta"):
        kept = uz.UPerNet(uz.model_info(name).config).state_dict()
    assert to_published(kept).keys() == {key for key in published if not key.endswith("relative_position_index")}
    assert len(left_out) == 24 and sum(value.numel() * torch.int64.itemsize for value in left_out) == 492_134_592
    assert abs(sum(value.numel() * value.itemsize for value in kept.values()) / 1e9 - 1.766) < 0.001


def test_the_public_model_index_package_accepts_the_file():
    from modelindex.load_model_index import load as load_model_index

    model_index = load_model_index(str(ROOT / "model_index.yml"))
    errors = model_index.check(silent=True)
    assert not errors
    assert len(model_index.models) == 60


def test_listing_filters_and_sorts():
    assert uz.list_models("*R101*", dataset="cityscapes", sort="mIoU")[0] == "upernet_r101_769x769_80k_cityscapes"
    assert uz.list_models(dataset="Pascal VOC 2012 + aug", backbone="r-50") == [
        "upernet_r50_512x512_20k_voc12aug",
        "upernet_r50_512x512_40k_voc12aug",
    ]
    by_fps = uz.list_models(sort="fps")
    assert by_fps[0] == "upernet_deit-s16_512x512_80k_ade20k" and uz.model_info(by_fps[-1]).fps is None
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
        "import sys, upernet_zoo as uz; assert len(uz.list_models()) == 60; uz.model_info(uz.list_models()[0]);"
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
    "collection mirrors not a list": (lambda m, d: d["Collections"][0].update(Mirrors="https://a"), "collection.*'Mirrors'.*list of URLs"),
    "a collection mirror that is no URL": (lambda m, d: d["Collections"][0].update(Mirrors=["a/b"]), "collection.*'Mirrors'.*URL"),
    "a collection mirror with a query": (lambda m, d: d["Collections"][0].update(Mirrors=["https://a/?b"]), "'Mirrors'.*base URLs"),
    "absent from a mirror that there is not": (_set("Absent From", ["https://a"]), "'Absent From'.*mmassets"),
    "a size as text": (_set("Size", "255 MB"), "'Size'.*whole number of bytes"),
    "a size of nothing": (_set("Size", 0), "'Size'.*whole number of bytes"),
    "a size that is true": (_set("Size", True), "'Size'.*whole number of bytes"),
    "a mirror that is no URL": (_set("Mirrors", ["ftp://example.org/x.pth"]), "'Mirrors'.*URL"),
    "no backbone": (_set("Config", "backbone", None), "Config.*'backbone' is missing"),
    "a backbone without a kind": (_set("Config", "backbone", {"depth": 50}), "Config.*'backbone'.*the key 'kind'"),
    "unknown kind of backbone": (_set("Config", "backbone", "kind", "resnest"), "Config.*no backbone of kind 'resnest'.*resnet"),
    "a kind that is a path": (_set("Config", "backbone", "kind", "../factory"), "Config.*no backbone of kind '../factory'"),
    "gray pictures": (_set("Config", "backbone", "in_channels", 1), "Config.*'in_channels' as many as mean and std have .3."),
    "a wide auxiliary head": (_set("Config", "auxiliary", {"channels": -1}), "Config.*auxiliary.*'channels'.*whole number"),
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
    "a name twice": (lambda m, d: m.update(Name=d["Models"][0]["Name"]), "is there twice"),
    "another file of the same name": (lambda m, d: m.update(Weights=d["Models"][0]["Weights"]), "two files named .*; rename one"),
    "no models": (lambda m, d: d.pop("Models"), "'Models'"),
    "no collections": (lambda m, d: d.pop("Collections"), "'Collections'"),
    "a model that is text": (lambda m, d: d["Models"].append("upernet"), "model number 61.*mapping"),
}


@pytest.mark.parametrize("change, message", BROKEN.values(), ids=BROKEN)
def test_a_broken_index_names_the_entry_the_key_and_what_was_expected(tmp_path, change, message):
    path = tmp_path / "index.yml"
    path.write_text(yaml.safe_dump(broken(change)))
    with pytest.raises(uz.UPerNetZooError, match=message) as caught:
        index.load(path)
    assert isinstance(caught.value, ValueError)
    assert str(path) in str(caught.value)


def test_options_that_a_backbone_does_not_take_are_refused_when_the_model_is_described(tmp_path):
    path = tmp_path / "index.yml"
    path.write_text(yaml.safe_dump(broken(_set("Config", "backbone", "depth", 152))))
    entry = index.load(path).info(uz.list_models()[2])
    with pytest.raises(uz.UPerNetZooError, match=f"{entry.name}.*backbone.*'depth'.*18, 34, 50, 101"):
        entry.config  # noqa: B018


def test_an_index_that_is_no_index(tmp_path):
    path = tmp_path / "index.yml"
    with pytest.raises(FileNotFoundError, match="UPERNET_ZOO_INDEX"):
        index.load(path)
    for text in ("{", "- 1\n- 2\n", "\x00", "[" * 5000, "a: &a [*a]", "[" * 200_000, "- " * 200_000, "{a: " * 200_000):
        path.write_text(text)
        with pytest.raises(uz.UPerNetZooError, match=re.escape(str(path))):
            index.load(path)


def test_a_model_that_a_mirror_does_not_hold_says_so(tmp_path):
    path = tmp_path / "index.yml"

    def change(model, data):
        model |= {"Absent From": ["https://mmassets.onedl.ai/"], "Mirrors": ["https://own.example/x.pth"], "Size": 266_000_000}

    path.write_text(yaml.safe_dump(broken(change)))
    entry, other = list(index.load(path).values())[2:4]
    hosts = ["openmmlab.oss-cn-hangzhou.aliyuncs.com", "openmmlab.oss-accelerate.aliyuncs.com"]
    assert entry.mirrors == (*(entry.weights.replace("download.openmmlab.com", host) for host in hosts), "https://own.example/x.pth")
    assert (entry.size, other.size) == (266_000_000, None)
    assert len(other.mirrors) == 3
    assert entry.link(entry.weights) is None  # the model's own mirror is no host of the other files
    assert other.link(other.log).startswith("https://mmassets.onedl.ai/")


@pytest.mark.parametrize(
    "url, known",
    [
        ("https://download.openmmlab.com/a", "LAPSED"),
        ("http://user@DOWNLOAD.openmmlab.com.:8080/a", "LAPSED"),
        ("https://openmmlab.com", "LAPSED"),
        ("https://notopenmmlab.com/openmmlab.com", "LIVING"),
        ("https://openmmlab.com.example.org", "LIVING"),
        ("https://openmmlab.oss-accelerate.aliyuncs.com/a", "UNCERTAIN"),
        ("https://mmassets.onedl.ai/a", "LIVING"),
        ("file:///srv/a", "LIVING"),
    ],
)
def test_what_is_known_of_a_host(url, known):
    assert index.standing(url).name == known


def test_a_key_that_stands_twice_is_refused(tmp_path):
    path = tmp_path / "index.yml"
    text = index.default_path().read_text()
    path.write_text(text.replace("mIoU: 77.10\n", "mIoU: 77.10\n          mIoU: 78.10\n", 1))
    assert path.read_text() != text
    with pytest.raises(uz.UPerNetZooError, match=r"line \d+: key 'mIoU' is there twice"):
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
    assert len(uz.list_models()) == 60


@pytest.mark.parametrize(
    "word, message",
    (
        ("swin-t", "Did you mean upernet_swin_tiny_patch4_window7_512x512_.* or knet_s3_upernet_swin-t_"),
        ("Swin_Tiny", "Did you mean upernet_swin_tiny_patch4_window7_512x512_"),
        ("convnext-small", r"Did you mean upernet_convnext_small_fp16_512x512_160k_ade20k\?$"),
        ("upernet-convnext-xl", r"Did you mean upernet_convnext_xlarge_fp16_640x640_160k_ade20k\?$"),
        ("r50", r"Did you mean upernet_r50_.* or upernet_r50_.* or upernet_r50_.*\? 5 more are like it: "),
        ("resnet-101", r"Did you mean upernet_r101_"),
        ("vit-b", "Did you mean upernet_vit-b16_"),
        ("svt-l", r"Did you mean twins_svt-l_uperhead_8x2_512x512_160k_ade20k\?$"),
        ("patch4_window12", "Did you mean upernet_swin_base_patch4_window12_"),
        ("convnext", r"Did you mean upernet_convnext_.*\? 3 more are like it"),
    ),
)
def test_short_words_are_answered_and_are_no_names(word, message):
    with pytest.raises(ModelNotFoundError, match=message):
        uz.model_info(word)
    assert word not in uz.list_models()
