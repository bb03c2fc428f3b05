"""create_model and saved folders: sources, conversion, replaced classifiers, errors. Small checkpoints, an index of the tests' own."""

import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from support.fixture import NAMES, Fixture

import upernet_zoo as uz
from upernet_zoo import errors

ONE = Fixture(NAMES[0])


@pytest.fixture
def one(small_index):
    return ONE


@pytest.fixture
def in_torch_hub(one):
    """Where other tools leave these very files."""
    folder = Path(os.environ["TORCH_HOME"]) / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return Path(shutil.copy(one.checkpoint, folder))


def same_weights(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()} if Path(folder).exists() else {}


def test_an_explicit_checkpoint(small_index, fixture):
    model = uz.create_model(fixture.name, checkpoint=fixture.checkpoint)
    assert same_weights(model, uz.load_checkpoint(fixture.checkpoint))
    assert not model.training
    assert model.origin["sha256"] == fixture.expected["sha256"]
    assert model.origin["model"] == fixture.name
    assert model.label_set == uz.labels.get(fixture.name.rsplit("_", 1)[1])


def test_torchs_hub_directory_is_used_in_place(one, in_torch_hub, own_cache):
    before = in_torch_hub.read_bytes()
    model = uz.create_model(one.name, local_files_only=True)
    assert same_weights(model, uz.load_checkpoint(one.checkpoint))
    assert in_torch_hub.read_bytes() == before
    assert not list(own_cache.rglob("*.pth"))


def test_the_second_time_only_the_converted_file_is_read(one, in_torch_hub, small_index, own_cache):
    uz.create_model(one.name)
    code = f"""
import sys, torch, safetensors.torch, yaml
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
import upernet_zoo as uz
uz.create_model({one.name!r})
print("\\n".join(opened))
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    opened = [Path(line) for line in done.stdout.splitlines()]
    assert not [p for p in opened if p.suffix == ".pth"]
    assert {p.suffix for p in opened if own_cache in p.parents} == {".safetensors", ".json"} or {
        p.suffix for p in opened if own_cache in p.parents
    } == {".json"}  # the mapping itself raises no audit event
    in_torch_hub.unlink()
    assert same_weights(uz.create_model(one.name), uz.load_checkpoint(one.checkpoint))


def test_weights_are_mapped_and_still_private(one, in_torch_hub, own_cache):
    model = uz.create_model(one.name)
    (converted,) = own_cache.rglob("*.safetensors")
    before = converted.read_bytes()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert converted.read_bytes() == before
    assert not same_weights(model, uz.create_model(one.name))


def test_a_changed_converted_file_is_not_trusted(one, in_torch_hub, own_cache):
    uz.create_model(one.name)
    (converted,) = own_cache.rglob("*.safetensors")
    data = bytearray(converted.read_bytes())
    data[-1] ^= 0xFF
    converted.write_bytes(data)
    assert same_weights(uz.create_model(one.name), uz.load_checkpoint(one.checkpoint))


def test_num_classes_replaces_exactly_the_two_classifiers_and_says_so(one, in_torch_hub):
    with pytest.warns(UserWarning, match="decode_head.classifier and auxiliary_head.classifier are new and untrained, for 7 classes"):
        model = uz.create_model(one.name, num_classes=7)
    old, new = uz.create_model(one.name).state_dict(), model.state_dict()
    changed = {k for k in old if old[k].shape != new[k].shape or not torch.equal(old[k], new[k])}
    assert changed == {f"{head}_head.classifier.{kind}" for head in ("decode", "auxiliary") for kind in ("weight", "bias")}
    assert model.config.num_classes == 7 and len(model.label_set) == 7
    with torch.inference_mode():
        assert model(torch.randn(1, 3, 64, 64)).shape == (1, 7, 64, 64)


def test_labels_rename_or_replace(one, in_torch_hub):
    count = one.expected["config"]["num_classes"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = uz.create_model(one.name, labels=[f"thing {i}" for i in range(count)])
    assert model.label_set.classes[0] == "thing 0"
    assert same_weights(model, uz.load_checkpoint(one.checkpoint))
    with pytest.warns(UserWarning, match="for 2 classes"):
        model = uz.create_model(one.name, labels=["cat", "dog"])
    assert model.label_set.classes == ("cat", "dog")
    with pytest.raises(errors.ConfigError, match="has 2 classes, and the model 3"):
        uz.create_model(one.name, num_classes=3, labels=["cat", "dog"], pretrained=False)
    with pytest.raises(errors.ConfigError, match="2 classes.*3"):
        uz.create_model(one.name, num_classes=3, labels=["cat", "dog"])


def test_not_pretrained_reads_nothing(one, own_cache):
    model = uz.create_model(one.name, pretrained=False, num_classes=3, dtype=torch.bfloat16)
    assert model.config.num_classes == 3 and not model.training
    assert model.decode_head.classifier.weight.dtype == torch.bfloat16
    assert not own_cache.exists()


def test_saved_and_loaded_bit_for_bit(small_index, fixture, tmp_path):
    model = uz.create_model(fixture.name, checkpoint=fixture.checkpoint)
    folder = tmp_path / "saved"
    model.save_pretrained(folder)
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    loaded = uz.create_model(f"local-dir:{folder}")
    assert same_weights(loaded, model)
    assert (loaded.config, loaded.recipe, loaded.label_set, loaded.origin) == (model.config, model.recipe, model.label_set, model.origin)
    assert not loaded.training
    assert uz.create_model(f"local-dir:{folder}", pretrained=False).config == model.config
    with pytest.warns(UserWarning, match="for 4 classes"):
        uz.create_model(f"local-dir:{folder}", num_classes=4).save_pretrained(folder)
    assert uz.create_model(f"local-dir:{folder}").config.num_classes == 4


def test_a_saved_folder_that_is_not_one(small_index, fixture, tmp_path):
    with pytest.raises(FileNotFoundError, match="config.json"):
        uz.create_model(f"local-dir:{tmp_path / 'nothing'}")
    folder = uz.create_model(fixture.name, checkpoint=fixture.checkpoint).save_pretrained(tmp_path / "saved")
    weights = folder / "model.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(good[:1000])
    with pytest.raises(errors.CheckpointError, match="model.safetensors"):
        uz.create_model(f"local-dir:{folder}")
    weights.write_bytes(good)
    config = json.loads((folder / "config.json").read_text())
    for change, message in (
        (lambda c: c["architecture"]["backbone"].update(depth=18), "does not fit UPerNet with ResNet-V1c-18"),
        (lambda c: c["architecture"].update(color=1), "unknown key 'color'"),
        (lambda c: c.pop("architecture"), "no key 'architecture'"),
        (lambda c: c.update(library_name="timm"), "written by 'timm'"),
    ):
        other = json.loads(json.dumps(config))
        change(other)
        (folder / "config.json").write_text(json.dumps(other))
        with pytest.raises(uz.UPerNetZooError, match=message):
            uz.create_model(f"local-dir:{folder}")
    (folder / "config.json").write_text("{")
    with pytest.raises(errors.ConfigError, match="not valid JSON"):
        uz.create_model(f"local-dir:{folder}")
    (folder / "config.json").write_text(json.dumps(config))
    weights.unlink()
    with pytest.raises(FileNotFoundError, match="model.safetensors"):
        uz.create_model(f"local-dir:{folder}")


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16, torch.bfloat16))
@pytest.mark.parametrize("value", ("nan", "inf", "-inf"))
def test_a_saved_folder_with_a_number_that_is_none(tmp_path, dtype, value):
    model = uz.create_model("demo", dtype=dtype)
    with torch.no_grad():
        model.decode_head.classifier.bias[3] = float(value)
    folder = model.save_pretrained(tmp_path / "saved")
    with pytest.raises(errors.CheckpointError, match="NaN or infinite weights in decode_head.classifier.bias"):
        uz.create_model(folder)


def test_a_wrong_digest_is_refused_and_nothing_is_lost(one, own_cache, tmp_path):
    path = tmp_path / one.checkpoint.name
    data = bytearray(one.checkpoint.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(errors.IntegrityError) as caught:
        uz.create_model(one.name, checkpoint=path)
    for word in (str(path), one.expected["sha256"][:8], "sha256="):
        assert word in str(caught.value)
    assert path.read_bytes() == data
    assert not list(own_cache.rglob("*.safetensors"))


def test_a_digest_of_ones_own_is_accepted(one, tmp_path):
    import hashlib

    path = tmp_path / "mine.pth"
    content = torch.load(one.checkpoint, weights_only=True)
    torch.save(content, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    model = uz.create_model(one.name, checkpoint=path, sha256=digest)
    assert model.origin["sha256"] == digest
    assert same_weights(model, uz.create_model(one.name, sha256=digest))


def test_a_file_of_another_model_is_refused(small_index, tmp_path):
    import hashlib

    other = Fixture(NAMES[1])
    digest = hashlib.sha256(other.checkpoint.read_bytes()).hexdigest()
    with pytest.raises(errors.CheckpointError, match=f"{ONE.name}.*wrong shape|{ONE.name}.*missing"):
        uz.create_model(ONE.name, checkpoint=other.checkpoint, sha256=digest)


def test_offline_without_the_file_says_what_to_do(one):
    with pytest.raises(errors.OfflineError, match=one.name):
        uz.create_model(one.name, local_files_only=True)


def test_an_unwritable_cache_is_named(one, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.raises(errors.CacheError, match="UPERNET_ZOO_CACHE") as caught:
        uz.create_model(one.name, checkpoint=one.checkpoint, cache_dir=blocked / "cache")
    assert isinstance(caught.value, OSError)
    assert blocked.read_text() == "not a folder"


def test_unknown_names_and_keywords(small_index, fixture):
    with pytest.raises(LookupError, match=f"Did you mean.*{fixture.name}"):
        uz.create_model(fixture.name[:-1])
    with pytest.raises(TypeError, match="no argument 'num_class'. Did you mean 'num_classes'"):
        uz.create_model(fixture.name, num_class=3)
    with pytest.raises(FileNotFoundError, match="has no config.json. Save a model there with save_pretrained"):
        uz.create_model(str(fixture.folder))
    with pytest.raises(ValueError, match="expected a name"):
        uz.create_model(3)
    with pytest.raises(ValueError, match="go with a name of the index"):
        uz.create_model("local-dir:x", checkpoint="y")


def test_bad_arguments_are_refused_before_anything_is_looked_for(small_index):
    for keywords, message in (
        ({"num_classes": -1}, "'num_classes'"),
        ({"labels": 5}, "labels= takes"),
        ({"checkpoint": 123}, "checkpoint= takes"),
        ({"dtype": torch.int32}, "torch.float16"),
        ({"device": "nowhere"}, "not usable here"),
        ({"sha256": ""}, "is no SHA-256"),
        ({"pretrained": False, "checkpoint": "x.pth"}, "go with pretrained=True"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            uz.create_model(ONE.name, local_files_only=True, **keywords)
        assert isinstance(caught.value, uz.UPerNetZooError)
    with pytest.raises(errors.ArgumentError, match="is no SHA-256"):
        uz.load_checkpoint(ONE.checkpoint, sha256="")


def test_a_saved_half_precision_model_takes_new_classes(small_index, tmp_path):
    uz.load_checkpoint(ONE.checkpoint, dtype=torch.bfloat16).save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="for 3 classes"):
        model = uz.create_model(f"local-dir:{tmp_path}", num_classes=3)
    with torch.inference_mode():
        assert model(torch.zeros(1, 3, 64, 64, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_a_saved_safetensors_file_says_all_itself(fixture, tmp_path):
    model = uz.load_checkpoint(fixture.checkpoint)
    model.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = uz.load_checkpoint(tmp_path / "model.safetensors")
    assert (loaded.config, loaded.recipe, loaded.label_set) == (model.config, model.recipe, model.label_set)
    assert same_weights(loaded, model)
    x = torch.randn(1, 3, 97, 131)
    with torch.inference_mode():
        assert torch.equal(loaded(x), model(x))  # mapped tensors are aligned as torch's own: bit for bit the same
