"""Several processes, one model name, two digests, one cache: never one file's weights under the other's digest."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from support.fixture import NAMES, Fixture
from support.stand_in import ROOT, process_environment

import upernet_zoo as uz
from upernet_zoo import errors, factory, files
from upernet_zoo.checkpoints import safe_load
from upernet_zoo.weights import cache, sources

WATCHED = "decode_head.classifier.weight"


@pytest.fixture
def one(small_index):
    return Fixture(NAMES[0])


@pytest.fixture
def other(one, tmp_path):
    """Another file for the same model, all of its weights one: its path and digest."""
    content = torch.load(one.checkpoint, weights_only=True)
    content["state_dict"] = {k: torch.ones_like(v) if v.is_floating_point() else v for k, v in content["state_dict"].items()}
    path = tmp_path / "other.pth"
    torch.save(content, path)
    return path, files.file_digest(path)[0]


def test_two_processes_with_two_digests(tmp_path):
    script = ROOT / "benchmarks" / "race_two_digests.py"
    if not script.exists():
        pytest.skip("needs the checkout")
    record = tmp_path / "race.json"
    done = subprocess.run(
        [sys.executable, str(script), "--rounds", "2", "--output", str(record)], env=process_environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    seen = json.loads(record.read_text())
    assert seen["loads"] == 12 and not seen["errors"]
    assert not any(seen[key] for key in ("wrong_weights", "wrong_origins", "wrong_receipts", "wrong_conversions"))


@pytest.mark.parametrize("how", ["in place", "rename", "link"])
def test_a_file_that_changes_between_fetch_and_conversion(one, other, own_cache, tmp_path, monkeypatch, how):
    """The right weights or an error, and never the other's weights with this one's digest."""
    mine = tmp_path / "mine.pth"
    shutil.copy(one.checkpoint, mine)
    right = uz.create_model(one.name, checkpoint=one.checkpoint, cache_dir=tmp_path / "aside").state_dict()[WATCHED]
    fetch = sources.fetch

    def then_change(*args, **options):
        found = fetch(*args, **options)
        if how == "in place":
            mine.write_bytes(other[0].read_bytes())
        else:
            mine.unlink()
            (shutil.copy if how == "rename" else lambda a, b: b.symlink_to(a))(other[0], mine)
        return found

    monkeypatch.setattr(factory.sources, "fetch", then_change)
    with pytest.raises(errors.IntegrityError, match=r"mine\.pth"):
        uz.create_model(one.name, checkpoint=mine)
    monkeypatch.undo()
    monkeypatch.setenv("UPERNET_ZOO_INDEX", str(tmp_path / "small_index.yml"))
    assert not list(own_cache.glob("converted/*"))
    assert torch.equal(uz.create_model(one.name, checkpoint=one.checkpoint, cache_dir=own_cache).state_dict()[WATCHED], right)


def test_what_is_hashed_is_what_is_loaded(one, other, tmp_path, monkeypatch):
    """A file that changes after its bytes were read, and before they are scanned and loaded."""
    path = tmp_path / "mine.pth"
    shutil.copy(one.checkpoint, path)
    right = uz.load_checkpoint(path).state_dict()[WATCHED]
    read_content = safe_load.read_content

    def then_change(source):
        content = read_content(source)
        path.write_bytes(other[0].read_bytes())
        return content

    monkeypatch.setattr(safe_load, "read_content", then_change)
    model = uz.load_checkpoint(path, sha256=one.expected["sha256"])
    assert torch.equal(model.state_dict()[WATCHED], right) and model.origin["sha256"] == one.expected["sha256"]
    with pytest.raises(errors.IntegrityError):
        uz.load_checkpoint(path, sha256=one.expected["sha256"])


def test_a_cached_file_that_its_receipt_does_not_describe_is_brought_again(one, other, own_cache, tmp_path):
    """Changed with its size and its time as they were: found when it is converted, and a right one takes its place."""
    (tmp_path / "mirror").mkdir()
    shutil.copy(one.checkpoint, tmp_path / "mirror" / one.checkpoint.name)
    options = {"mirrors": [tmp_path / "mirror"]}
    right = uz.create_model(one.name, **options)
    kept = own_cache / "checkpoints" / one.checkpoint.name
    shutil.rmtree(own_cache / "converted")
    status, data = kept.stat(), bytearray(kept.read_bytes())
    data[len(data) // 2] ^= 255
    kept.write_bytes(data)
    os.utime(kept, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.warns(UserWarning, match="SHA-256 is not the expected one"):
        model = uz.create_model(one.name, **options)
    assert torch.equal(model.state_dict()[WATCHED], right.state_dict()[WATCHED])
    assert kept.read_bytes() == one.checkpoint.read_bytes() and len(list(kept.parent.glob("*.bad-*"))) == 1


def test_a_cache_that_cannot_be_written_serves_its_checkpoint_unconverted(one, own_cache, tmp_path, monkeypatch):
    (own_cache / "checkpoints").mkdir(parents=True)
    shutil.copy(one.checkpoint, own_cache / "checkpoints")
    right = uz.create_model(one.name, checkpoint=one.checkpoint, cache_dir=tmp_path / "aside")

    def full(*_):
        raise errors.WriteError("the disk is full") from OSError(28, "No space left on device")

    monkeypatch.setattr(files, "write_together", full)
    model = uz.create_model(one.name)
    assert torch.equal(model.state_dict()[WATCHED], right.state_dict()[WATCHED])
    assert not list(own_cache.glob("converted/*.safetensors"))
    with pytest.raises(errors.CacheError, match="the disk or the quota is full"):
        uz.create_model(one.name, checkpoint=one.checkpoint)


def test_the_lock_is_held_from_the_fetch_to_the_conversion(one, own_cache, monkeypatch):
    held = []
    convert = factory._convert

    def watched(entry, *args):
        lock = own_cache / "locks" / f"{one.checkpoint.name}.lock"
        held.append(lock in cache.locks._own.paths)
        return convert(entry, *args)

    monkeypatch.setattr(factory, "_convert", watched)
    uz.create_model(one.name, checkpoint=one.checkpoint)
    assert held == [True]
