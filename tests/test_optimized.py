"""The fused model by name, in the cache, and where the Segmenter takes it."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from support.fixture import NAMES, Fixture
from support.models import small_model

import upernet_zoo as uz
from upernet_zoo import optimized, segmenter
from upernet_zoo.cli import main
from upernet_zoo.demo import folder, run, scenes
from upernet_zoo.errors import ArgumentError, ExistingFileError
from upernet_zoo.models.fused import winograd
from upernet_zoo.models.fused.model import FusedUPerNet

NAME = NAMES[1]


@pytest.fixture
def converted(small_index, own_cache):
    """The cache's folder of converted files; the checkpoint of NAME is where torch.hub keeps it."""
    folder = Path(os.environ["TORCH_HOME"]) / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    shutil.copy(Fixture(NAME).checkpoint, folder)
    return own_cache / "converted"


def fail(*_, **__):
    raise AssertionError("done again")


def test_is_made_once_and_mapped_from_then_on(converted, monkeypatch):
    expected = uz.optimize_for_inference(uz.create_model(NAME))
    first = optimized.load(NAME)
    (path,) = converted.glob("*-fused.safetensors")
    monkeypatch.setattr(optimized, "optimize_for_inference", fail)
    monkeypatch.setattr(optimized, "create_model", fail)
    second = optimized.load(NAME)
    x = torch.randn(1, 3, 64, 96)
    assert torch.equal(first(x), expected(x)) and torch.equal(second(x), expected(x))
    assert second.origin == uz.create_model(NAME).origin and second.config == expected.config
    with Path("/proc/self/maps").open() as maps:
        assert path.name in maps.read()


@pytest.mark.parametrize("change", ["bytes", "form", "checkpoint"])
def test_of_something_else_is_made_anew(converted, monkeypatch, change):
    x = torch.randn(1, 3, 64, 64)
    expected = optimized.load(NAME)(x)
    (path,) = converted.glob("*-fused.safetensors")
    if change == "bytes":
        content = bytearray(path.read_bytes())
        content[-8:] = b"\xff" * 8
        path.unlink()  # the first model is mapped from it
        path.write_bytes(content)
        os.utime(path, (1, 1))
    elif change == "form":
        monkeypatch.setattr(optimized, "_FORM", "another")
    else:
        plain = next(p for p in converted.glob("*.safetensors") if p != path)
        path.unlink()
        shutil.copy(plain, path)
    assert torch.equal(optimized.load(NAME)(x), expected)
    monkeypatch.setattr(optimized, "create_model", fail)
    assert torch.equal(optimized.load(NAME)(x), expected)


def test_of_a_folder_and_where_the_cache_cannot_be_written(converted, tmp_path, monkeypatch):
    model = uz.create_model(NAME)
    model.save_pretrained(tmp_path / "folder")
    x = torch.randn(1, 3, 64, 64)
    expected = uz.optimize_for_inference(model)(x)
    assert torch.equal(optimized.load(f"local-dir:{tmp_path / 'folder'}")(x), expected)

    def full(*_):
        raise uz.errors.CacheError("no space")

    monkeypatch.setattr(optimized.files, "write_atomically", full)
    assert torch.equal(optimized.load(NAME)(x), expected)
    assert not list(converted.glob("*-fused*"))


def test_a_checkpoint_of_ones_own_choice_is_verified(converted, tmp_path):
    other = tmp_path / "other.pth"
    other.write_bytes(b"no checkpoint")
    optimized.load(NAME)
    with pytest.raises(uz.UPerNetZooError, match=r"other\.pth"):
        optimized.load(NAME, checkpoint=other)


def test_the_segmenter_takes_the_twin_where_it_wins(converted, monkeypatch):
    model = uz.create_model(NAME)
    assert isinstance(uz.Segmenter(NAME).model, FusedUPerNet)
    assert isinstance(uz.Segmenter(model).model, FusedUPerNet)
    assert uz.Segmenter(model, optimize=False).model is model
    assert uz.Segmenter(model, amp=True).model is model
    half = uz.create_model(NAME, dtype=torch.bfloat16)
    assert uz.Segmenter(half).model is half
    assert isinstance(uz.Segmenter(half, optimize=True).model, FusedUPerNet)
    fused = uz.optimize_for_inference(model)
    assert uz.Segmenter(fused).model is fused
    monkeypatch.setattr(segmenter, "_ready", fail)
    with pytest.raises(ArgumentError, match="amp=True goes with a plain model"):
        uz.Segmenter(NAME, optimize=True, amp=True)
    with pytest.raises(ArgumentError, match="optimize must be True or False, found 1"):
        uz.Segmenter(NAME, optimize=1)
    monkeypatch.undo()
    for options in ({"optimize": False}, {"amp": True}):
        with pytest.raises(ArgumentError, match="this one is fused"):
            uz.Segmenter(fused, **options)


def test_saves_and_reads_a_twin_of_any_model(tmp_path):
    model = uz.load_checkpoint(Fixture(NAME).checkpoint)
    fused = uz.optimize_for_inference(model)
    found = optimized.read(optimized.save(fused, tmp_path / "fused.safetensors"))
    x = torch.randn(1, 3, 64, 96)
    assert torch.equal(found(x), fused(x))
    assert (found.config, found.recipe, found.label_set, found.origin) == (model.config, model.recipe, model.label_set, model.origin)
    with pytest.raises(uz.UPerNetZooError, match=r"No fused model at .*missing\.safetensors"):
        optimized.read(tmp_path / "missing.safetensors")
    with pytest.raises(uz.UPerNetZooError, match=r"model\.safetensors: not a fused model of this version"):
        optimized.read(model.save_pretrained(tmp_path / "plain") / "model.safetensors")
    with pytest.raises(uz.UPerNetZooError, match=r"fused\.safetensors: optimized for inference, .* with upernet_zoo.optimized.read"):
        uz.load_checkpoint(tmp_path / "fused.safetensors")
    with pytest.raises(ArgumentError, match="takes what optimize_for_inference returns, found UPerNet"):
        optimized.save(model, tmp_path / "new.safetensors")
    assert not (tmp_path / "new.safetensors").exists()
    with pytest.raises(ArgumentError, match="is a folder. Give the name of a file in it"):
        optimized.save(fused, tmp_path)
    assert optimized.load(fused) is fused and torch.equal(optimized.load(model)(x), fused(x))


def test_a_file_of_someone_else_is_kept(tmp_path):
    fused, path = uz.optimize_for_inference(small_model()), tmp_path / "fused.safetensors"
    path.write_bytes(b"mine")
    with pytest.raises(ExistingFileError, match="fused.safetensors is there already and is not marked"):
        optimized.save(fused, path)
    assert path.read_bytes() == b"mine" and optimized.save(fused, path, overwrite=True) == path and optimized.save(fused, path) == path


def test_a_model_in_training_stays_so():
    model = uz.load_checkpoint(Fixture(NAME).checkpoint).train()
    uz.Segmenter(model)
    assert model.training
    uz.Segmenter(model, optimize=False)
    assert not model.training


@pytest.mark.parametrize("which", ["fused", "plain"])
def test_what_verify_finds_damaged_is_not_used_again(converted, capsys, which):
    """Damage that changed neither size nor mtime; only a deep look finds it."""
    x = torch.randn(1, 3, 64, 64)
    expected = optimized.load(NAME)(x)
    kept = {"fused": next(converted.glob("*-fused.safetensors"))}
    kept["plain"] = next(p for p in converted.glob("*.safetensors") if p != kept["fused"])
    path = kept[which]
    stat, content = path.stat(), bytearray(path.read_bytes())
    content[-4000:] = bytes(b ^ 255 for b in content[-4000:])
    path.unlink()  # the first model is mapped from it
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert main.main(["verify"]) == 0
    assert main.main(["verify", "--deep"]) == 1
    assert "it is made again when it is needed" in capsys.readouterr().err
    if which == "plain":
        kept["fused"].unlink()
    assert torch.equal(optimized.load(NAME)(x), expected)
    assert main.main(["verify", "--deep"]) == 0


@pytest.mark.parametrize("which", ["fused", "plain"])
def test_what_cannot_be_read_is_made_again(converted, which):
    x = torch.randn(1, 3, 64, 64)
    expected = optimized.load(NAME)(x)
    for path in list(converted.glob("*.safetensors")):
        if which == "plain" or path.name.endswith("-fused.safetensors"):
            stat = path.stat()
            path.unlink()
            path.write_bytes(b"\xff" * stat.st_size)
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert torch.equal(optimized.load(NAME)(x), expected)


def test_plain_and_fused_segment_alike(converted, monkeypatch):
    monkeypatch.setattr(winograd, "WINOGRAD_CHANNELS", 1)
    photo = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    plain, fused = (uz.Segmenter(uz.create_model(NAME), flip=True, optimize=o) for o in (False, True))
    assert isinstance(fused.model.decode_head.fpn_bottleneck, winograd.WinogradConv3x3)
    assert (plain(photo).labels == fused(photo).labels).mean() >= 0.9999
    assert (plain.probabilities(photo) - fused.probabilities(photo)).abs().max() < 1e-5


def test_alike_on_what_a_model_has_learned(tmp_path, monkeypatch):
    """The demo's model, which tells many classes apart: with Winograd, which its own width would not use, and by evaluate's numbers."""
    monkeypatch.setattr(winograd, "WINOGRAD_CHANNELS", 1)
    plain = run.load(cache_dir=tmp_path / "cache")
    fused = uz.optimize_for_inference(plain)
    for seed in range(3):
        picture = scenes.draw(1_000_000 + seed)[0]
        found, expected = (uz.Segmenter(model, optimize=o)(picture).labels for model, o in ((fused, None), (plain, False)))
        assert (found == expected).mean() >= 0.9999 and len(np.unique(expected)) > 8
        x = uz.images.preprocess.prepare(picture, plain.recipe)
        with torch.inference_mode():
            logits = plain(x)
            assert (fused(x) - logits).abs().max() <= 5e-5 * logits.abs().max()
    folder.write(tmp_path / "data", range(300_000, 300_002))
    label_set = uz.labels.LabelSet("four", tuple(folder.MERGED))
    plain.reset_classifier(label_set)
    fused = uz.optimize_for_inference(plain)
    runs = ((plain, False), (plain, True), (fused, False))
    results = [uz.evaluate(model, "folder", tmp_path / "data", optimize=o, progress=False) for model, o in runs]
    assert np.allclose(results[0].IoU, results[1].IoU, atol=1e-3) and results[1].IoU == results[2].IoU
