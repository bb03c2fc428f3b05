"""To segmentation_models_pytorch and back: its own UPerNet's logits, its own loading of the folder, and what it cannot represent."""

import dataclasses
import functools
import re
import sys
import warnings

import pytest
import torch
from support.fixture import FAMILY, FIXTURES, Fixture
from support.models import small_config

import upernet_zoo as uz
from upernet_zoo.cli import main
from upernet_zoo.config import KernelUpdateConfig
from upernet_zoo.errors import ArgumentError, ExistingFileError, MissingPackageError
from upernet_zoo.interop.smp import save_smp, to_smp
from upernet_zoo.models.backbones.convnext import ConvNeXtConfig

smp = pytest.importorskip("segmentation_models_pytorch")
NARROW = {kind: next(name for name in FAMILY if f"/upernet_{kind}" in name) for kind in ("convnext", "swin")}
NOTES = {
    "convnext": ("an epsilon of 1e-05 where .* 1e-06", "sliding windows of 512x512", "no auxiliary head"),
    "swin": ("an epsilon of 1e-05 where .* 1e-06", "sides are multiples of 224, and something else", "no auxiliary head"),
}


@functools.cache
def narrow(kind):
    return uz.load_checkpoint(Fixture(NARROW[kind]).checkpoint)


@pytest.fixture(params=NARROW)
def kind(request):
    return request.param


def converted(kind, convert, *args, **options):
    """What a conversion gives, and that it says what is not the same over there."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        result = convert(narrow(kind), *args, **options)
    said = [str(one.message) for one in found if one.category is UserWarning]
    assert len(said) == len(NOTES[kind]) and all(re.search(pattern, text) for pattern, text in zip(NOTES[kind], said))
    return result


def difference(ours, theirs, size):
    x = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected, found = ours.logits(x), theirs(x)
        assert found.shape == expected.shape
        return float((found - expected).abs().max() / expected.abs().max())


def test_logits_equal_smps(kind):
    theirs = converted(kind, to_smp)
    assert isinstance(theirs, smp.UPerNet) and not theirs.training
    assert difference(narrow(kind), theirs, (224, 448)) <= 1e-5
    other = difference(narrow(kind), theirs, (64, 96))
    assert other > 1e-2 if kind == "swin" else other <= 1e-5  # as the note says
    theirs.segmentation_head[0].requires_grad_(False).weight.zero_()
    assert narrow(kind).decode_head.classifier.weight.abs().max() > 0  # the tensors are copies


def test_a_folder_is_loaded_by_smp_and_by_us(kind, tmp_path):
    folder = converted(kind, save_smp, tmp_path / "theirs")
    theirs = smp.from_pretrained(folder).eval()
    assert 1e-8 < difference(narrow(kind), theirs, (224, 224)) < 1e-4  # the epsilons, which it has no place for
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        models = uz.create_model(folder), uz.load_checkpoint(folder / "model.safetensors")
    for model in models:
        assert model.config == dataclasses.replace(narrow(kind).config, auxiliary=None)
        assert (model.recipe, model.label_set, model.origin) == (narrow(kind).recipe, narrow(kind).label_set, narrow(kind).origin)
        assert all(torch.equal(value, narrow(kind).state_dict()[key]) for key, value in model.state_dict().items())


def test_what_smp_made_of_it_since_is_read_from_its_own_config(tmp_path):
    folder = converted("convnext", save_smp, tmp_path / "theirs")
    theirs = smp.from_pretrained(folder)
    theirs.segmentation_head[0] = torch.nn.Conv2d(16, 2, 1)
    theirs.config["classes"] = 2
    theirs.save_pretrained(tmp_path / "again")
    with pytest.warns(UserWarning, match="class names 'class 0' to 'class 1'"):
        model = uz.create_model(tmp_path / "again")
    assert model.config.num_classes == 2 and model.config.backbone.downsample_eps == 1e-6
    assert difference(model, theirs.eval(), (64, 64)) <= 1e-5


def test_the_card_says_how_and_one_that_is_there_stays(tmp_path):
    folder = converted("convnext", save_smp, tmp_path / "theirs")
    card = (folder / "README.md").read_text()
    assert "license" not in card and "library_name: segmentation-models-pytorch" in card and "align_corners=False" in card
    assert all(re.search(pattern, card) for pattern in NOTES["convnext"]) and "123.675, 116.28, 103.53" in card
    with pytest.raises(ExistingFileError, match=r"config\.json"):
        save_smp(narrow("convnext"), folder)
    (folder / "README.md").write_text("mine")
    converted("convnext", save_smp, folder, overwrite=True)
    assert (folder / "README.md").read_text() == "mine"


def test_the_models_that_smp_writes_have_its_epsilons():
    """In float64, where it shows: 1e-6 in the norms that its head begins with."""
    for kind in NARROW:
        folder = FIXTURES / "copies" / f"smp_{kind}"
        with pytest.warns(UserWarning, match="assumed"):
            ours = uz.load_checkpoint(folder).double()
        theirs = smp.from_pretrained(folder).double().eval()
        theirs.segmentation_head[1] = torch.nn.Identity()
        x = torch.randn(1, 3, 128, 128, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            expected = theirs(x)
            assert (ours.logits(x) - expected).abs().max() <= 1e-9 * expected.abs().max()


REFUSED = {
    "align_corners": (dict(align_corners=True), "align_corners=True, and smp's head always with False"),
    "pooling": (dict(pool_scales=(1, 2)), r"its pooling scales are \(1, 2\), and smp's \(1, 2, 3, 6\)"),
    "K-Net": (dict(kernel_updates=KernelUpdateConfig(channels=32)), "its head is K-Net's, and smp has UPerNet's alone"),
}


@pytest.mark.parametrize("change, message", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_represented_is_refused_saying_why(change, message):
    with torch.device("meta"):
        model = uz.UPerNet(uz.UPerNetConfig(**{"backbone": ConvNeXtConfig(), "num_classes": 3, "channels": 64, **change}))
    with pytest.raises(ArgumentError, match=f"segmentation_models_pytorch cannot represent this model: .*{message}"):
        to_smp(model)


def test_other_backbones_and_necks_are_refused():
    with torch.device("meta"):
        models = [uz.UPerNet(small_config()), uz.create_model("upernet_vit-b16_mln_512x512_80k_ade20k", pretrained=False)]
    with pytest.raises(ArgumentError, match="a layer norm for each feature, and those of ResNet-V1c.* have none"):
        to_smp(models[0])
    with pytest.raises(ArgumentError, match="it has a neck, and smp's has none; .*those of ViT"):
        to_smp(models[1])
    with pytest.raises(ArgumentError, match="to_smp takes a UPerNet, found Linear"):
        to_smp(torch.nn.Linear(1, 1))


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    with pytest.raises(MissingPackageError, match=r"needs the package segmentation_models_pytorch: pip install 'upernet-zoo\[smp\]"):
        to_smp(narrow("convnext"))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_convert_on_the_command_line(tmp_path, capsys):
    checkpoint, out = str(Fixture(NARROW["convnext"]).checkpoint), tmp_path / "theirs"
    assert main.main(["convert", checkpoint, "--to", "smp", "--out", str(out)]) == 0
    assert "segmentation_models_pytorch.from_pretrained(" in capsys.readouterr().out
    assert main.main(["convert", str(out), "--out", str(tmp_path / "back")]) == 0
    assert uz.create_model(f"local-dir:{tmp_path / 'back'}").recipe == narrow("convnext").recipe
    assert main.main(["convert", checkpoint, "--to", "smp", "--out", str(out)]) == 1
    assert "--overwrite" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main.main(["convert", checkpoint, "--to", "smp", "--out", str(tmp_path / "file")]) == 1
    assert "is a file, and a folder is written" in capsys.readouterr().err
    assert main.main(["convert", checkpoint, "--to", "smp", "--mmseg-version", "1", "--out", str(tmp_path / "other")]) == 1
    assert "goes with --to mmseg, and this is --to smp" in capsys.readouterr().err
    r50 = next(path for path in FIXTURES.glob("upernet_r50_512x512_160k*/*.pth"))
    assert main.main(["convert", str(r50), "--to", "smp", "--out", str(tmp_path / "other")]) == 1
    assert "cannot represent this model" in capsys.readouterr().err and not (tmp_path / "other").exists()
