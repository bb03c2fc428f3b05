"""Safe reading: what torch.save and safetensors write comes back as torch itself reads it; nothing else is run, or asks for memory."""

import collections
import contextlib
import io
import math
import os
import pickle
import pickletools
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import malicious
from support.fixture import FIXTURES, ROOT
from support.malicious import BOMBS, FORMATS, PICKLES, legacy_file, storage, tensor, whole, zip_file
from support.waiting import until

from upernet_zoo.checkpoints import safe_load
from upernet_zoo.errors import CheckpointError, MissingFileError, UnsafeCheckpointError, UPerNetZooError

CHECKPOINTS = sorted(FIXTURES.glob("*/upernet*.pth"))
TRAINING = sorted((FIXTURES / "training").glob("*.pth"))
BOTH = pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])


def save(value, path, new):
    torch.save(value, path, _use_new_zipfile_serialization=new)
    return path


def equal(a, b):
    """The same types and the same values, all the way down."""
    if isinstance(a, torch.Tensor):
        return type(a) is type(b) and a.dtype == b.dtype and a.stride() == b.stride() and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, dict):
        return type(a) is type(b) and list(a) == list(b) and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and a == b


@pytest.fixture
def no_torch_load(monkeypatch):
    """torch.load must not even be called."""
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch.load was called"))


# ---- what honest files hold


@pytest.mark.parametrize("path", CHECKPOINTS, ids=lambda p: p.parent.name)
def test_published_format_as_torch_reads_it(path):
    found, expected = safe_load.read(path), torch.load(path, weights_only=True)
    assert equal(found, expected) and len(found["state_dict"]) in (412, 718)
    assert found["state_dict"]._metadata == expected["state_dict"]._metadata


@BOTH
def test_every_plain_value(tmp_path, new):
    base = torch.arange(24.0)
    value = {
        "views": [base[4:], base.view(4, 6).t(), base.view(4, 6)[1:3, 2:5], base[:0], base[3]],
        "dtypes": {str(t): torch.ones(3).to(getattr(torch, t)) for t in malicious_dtypes()},
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "empty": torch.empty(0, 3),
        "size": torch.Size([1, 2]),
        "device": torch.device("cuda:1"),
        "dtype": torch.float16,
        "numbers": [0, 255, 256, 65536, -1, 1 << 40, -(1 << 40), 1.5, math.inf, True, False, None],
        "text": ["", "ä€𝄞", "x" * 300],
        "bytes": [b"", b"\x00\xff" * 100],
        "nested": [({"a": (1, 2, 3, 4)},), [], {}, ()],
        3: "a number for a key",
    }
    path = save(value, tmp_path / "a.pth", new)
    assert equal(safe_load.read(path), torch.load(path, weights_only=False))


def malicious_dtypes():
    return ["uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64", "bfloat16", "bool", "complex64", "complex128"]


NEWER_DTYPES = ["uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2"]  # torch writes and cannot read them in the old format


@BOTH
def test_whatever_else_torch_itself_reads_safely(tmp_path, new):
    parameter, tensor = torch.nn.Parameter(torch.ones(2)), torch.arange(3.0)
    parameter.lr_mult = tensor.tags = 0.1
    counts = collections.Counter(a=2, b=1)
    value = {
        "counters": [counts, collections.Counter(), collections.Counter({2: 1, 4: 3}), dict(counts)],
        "sets": [{1, 2, "a", None, 0.5}, set()],
        "bytes": [bytearray(b"\x00\xffab"), bytearray()],
        "complex": 1 - 2j,
        "keys": {True: 1, None: 2, 0.5: 3, "text": 4},
        "layout": torch.strided,
        "attributes": [parameter, tensor, torch.nn.Buffer(torch.ones(2))],
        "dtypes": {name: torch.arange(4).to(getattr(torch, name))[1:] for name in NEWER_DTYPES if new},
    }
    path = save(value, tmp_path / "a.pth", new)
    found, expected = safe_load.read(path), torch.load(path, weights_only=True)
    dtypes = found.pop("dtypes"), expected.pop("dtypes")
    assert equal(found, expected) and found["attributes"][1].tags == 0.1
    assert all(a.dtype == b.dtype and torch.equal(a.double(), b.double()) for a, b in zip(*(each.values() for each in dtypes)))


@BOTH
def test_a_defaultdict_comes_back_as_a_dict(tmp_path, new):
    inner = collections.defaultdict(dict, a={"b": [torch.ones(2)]})
    value = {"lists": collections.defaultdict(list, x=[1], y=[2]), "none": collections.defaultdict(), "inner": inner}
    path = save(value, tmp_path / "a.pth", new)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    found = safe_load.read(path)
    assert equal(found, {"lists": {"x": [1], "y": [2]}, "none": {}, "inner": {"a": {"b": [torch.ones(2)]}}})


def test_attributes_that_torch_has_are_not_set(tmp_path, no_torch_load):
    tensor = torch.ones(2)
    for name in ("data", "is_floating_point", "_backward_hooks", "__class__"):
        path, value = tmp_path / "a.pth", torch.ones(2)
        value.mine = 1
        torch.save({"a": value, "b": tensor}, path)
        with zipfile.ZipFile(path) as archive:
            raw, body = archive.read("a/data.pkl"), [(f"data/{i}", archive.read(f"a/data/{i}")) for i in range(2)]
        changed = raw.replace(malicious.text("mine"), malicious.text(name))
        assert changed != raw
        path.write_bytes(zip_file(changed, body))
        with pytest.raises(UnsafeCheckpointError, match=f"sets the attribute '{name}' of a tensor"):
            safe_load.read(path)


def test_a_file_saved_without_checksums(tmp_path):
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        path = save({"a": torch.arange(4.0)}, tmp_path / "a.pth", True)
    finally:
        torch.serialization.set_crc32_options(before)
    with zipfile.ZipFile(path) as archive:
        assert {info.CRC for info in archive.infolist()} == {0}
    assert torch.equal(safe_load.read(path)["a"], torch.arange(4.0))


@BOTH
@pytest.mark.parametrize("module", ["numpy.core", "numpy._core"])
def test_numpy_values_of_either_numpy(tmp_path, new, module):
    value = {
        "scalars": [np.float64(0.1), np.float32(-2), np.int64(-5), np.uint8(200), np.bool_(True), np.complex128(1 + 2j)],
        "arrays": [
            np.arange(6.0).reshape(2, 3),
            np.asfortranarray(np.arange(6).reshape(2, 3)),
            np.zeros((0, 4), np.float32),
            np.arange(3, dtype=">i4"),
            np.float16([1, 2]),
            np.array(7),
        ],
    }
    real = save(value, tmp_path / "real.pth", new)
    raw = real.read_bytes()
    if new:
        with zipfile.ZipFile(real) as archive:
            data = archive.read("real/data.pkl")
            raw = zip_file(data.replace(b"cnumpy._core.", b"cnumpy.core.").replace(b"cnumpy.core.", f"c{module}.".encode()))
    else:
        raw = raw.replace(b"cnumpy._core.", b"cnumpy.core.").replace(b"cnumpy.core.", f"c{module}.".encode())
    assert module.encode() in raw
    path = tmp_path / "a.pth"
    path.write_bytes(raw)
    found = safe_load.read(path)
    assert equal(found["scalars"], value["scalars"])
    assert all(isinstance(a, np.ndarray) and np.array_equal(a, b) for a, b in zip(found["arrays"], value["arrays"]))
    assert [a.dtype.newbyteorder("=") for a in found["arrays"]] == [a.dtype.newbyteorder("=") for a in value["arrays"]]


@pytest.mark.parametrize("path", TRAINING, ids=lambda p: p.stem)
def test_training_checkpoint_of_mmengine(path):
    """Written by mmengine 0.10.7's MessageHub, torch 2.15 and NumPy 2.4: HistoryBuffers, their table of methods, NumPy numbers."""
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)  # so that this test shows something
    found = safe_load.read(path)
    assert torch.equal(found["state_dict"]["w"], torch.arange(4.0)) and found["message_hub"]["runtime_info"]["best"] == np.float32(0.5)
    assert vars(found["message_hub"]["log_scalars"]["train/loss"]) == {}
    assert "mmengine" not in sys.modules


def test_what_a_program_registered_with_torch_is_neither_used_nor_lost():
    def fail(*_):
        raise AssertionError("NumPy's own function was called")

    registered = [(fail, "numpy._core.multiarray.scalar"), (fail, "somewhere.else"), torch.nn.Linear]
    with torch.serialization.safe_globals(registered):
        before = set(torch.serialization.get_safe_globals())
        assert safe_load.read(TRAINING[0])["message_hub"]["runtime_info"]["best"] == 0.5
        assert set(torch.serialization.get_safe_globals()) == before
    assert not {fail} & {g[0] for g in torch.serialization.get_safe_globals() if isinstance(g, tuple)}


def test_a_global_registered_with_torch_is_still_refused(tmp_path):
    path = tmp_path / "a.pth"
    path.write_bytes(zip_file(pickle.dumps({"a": torch.nn.Linear(1, 1)}, 2)))
    with torch.serialization.safe_globals([torch.nn.Linear]), pytest.raises(UnsafeCheckpointError, match="linear.Linear"):
        safe_load.read(path)


def test_zip_tensors_are_mapped_and_private(tmp_path):
    path = save({"a": torch.zeros(1000)}, tmp_path / "a.pth", True)
    before = path.read_bytes()
    safe_load.read(path)["a"].fill_(1)
    assert path.read_bytes() == before


def test_safetensors(tmp_path):
    from safetensors.torch import save_file

    tensors = {"a": torch.arange(4.0), "b": torch.ones(2, 3, dtype=torch.int64), "e": torch.empty(0)}
    path = tmp_path / "a.safetensors"
    save_file(tensors, path, {"config": "{}"})
    found, metadata = safe_load.read_safetensors(path)
    assert metadata == {"config": "{}"} and found.keys() == tensors.keys() and all(equal(found[k], tensors[k]) for k in tensors)
    assert equal(safe_load.read(path), found)
    save_file(tensors, path)
    assert safe_load.read_safetensors(path)[1] == {}


# ---- malicious pickles


@pytest.mark.parametrize("name", [n for n, p in PICKLES.items() if p.runs])
def test_the_malicious_pickles_are_malicious(name, tmp_path):
    """A plain unpickler runs them: without this, the tests below would show nothing."""
    canary = tmp_path / "canary"
    data = PICKLES[name].make(f"touch {canary}", f"open({str(canary)!r}, 'w').close()")
    with contextlib.suppress(Exception):  # what comes after the deed
        pickle.loads(data)
    until(canary.exists)  # os.popen does not wait


def check_refused(path, canary, names):
    with pytest.raises(UnsafeCheckpointError) as caught:
        safe_load.read(path)
    message = str(caught.value)
    assert str(path) in message and "nothing of it was run" in message and "ask for a safetensors file" in message
    for name in names:
        assert name in message
    assert not canary.exists()
    return message


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("name", PICKLES)
def test_malicious_pickles_run_nothing_and_are_named(name, kind, tmp_path, no_torch_load):
    canary, path = tmp_path / "canary", tmp_path / "a.pth"
    one = PICKLES[name]
    path.write_bytes(FORMATS[kind](one.make(f"touch {canary}", f"open({str(canary)!r}, 'w').close()")))
    message = check_refused(path, canary, one.names)
    listed = message.split("it asks for ")[1].split(", which no checkpoint")[0].split(", ")
    assert listed == sorted(listed)


@pytest.mark.parametrize("name", PICKLES)
def test_malicious_pickles_without_a_container(name, tmp_path, no_torch_load):
    canary, path = tmp_path / "canary", tmp_path / "a.pkl"
    path.write_bytes(PICKLES[name].make(f"touch {canary}", f"open({str(canary)!r}, 'w').close()"))
    check_refused(path, canary, PICKLES[name].names)


@pytest.mark.parametrize("where", ["magic", "version", "system", "key_list"])
def test_every_pickle_of_the_old_format_is_scanned(where, tmp_path, no_torch_load):
    canary, path = tmp_path / "canary", tmp_path / "a.pth"
    bad = PICKLES["os_system"].make(f"touch {canary}", "")
    bad = malicious.MAGIC[:-1] + bad[2:-1] + b"\x86." if where == "magic" else bad
    path.write_bytes(legacy_file(whole(b"N"), **{where: bad}))
    check_refused(path, canary, ["posix.system" if os.name == "posix" else "nt.system"])


def test_an_old_file_may_have_no_tensors_but_in_its_object(tmp_path, no_torch_load):
    path = tmp_path / "a.pth"
    path.write_bytes(legacy_file(whole(b"N"), system=whole(tensor(storage(1)))))
    with pytest.raises(UnsafeCheckpointError, match="where torch.save describes the machine"):
        safe_load.read(path)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("name", BOMBS)
def test_files_that_ask_for_too_much(name, kind, tmp_path, no_torch_load):
    path = tmp_path / "a.pth"
    path.write_bytes(malicious.bomb_file(kind, name))
    start = time.process_time()
    with pytest.raises(UnsafeCheckpointError) as caught:
        safe_load.read(path)
    assert time.process_time() - start < 10 and str(path) in str(caught.value)


def test_bombs_stay_below_1_gb():
    """All of them in one process of its own, whose address space is limited to 1 GB more than what it has with torch loaded."""
    code = """
import resource, sys, tempfile, pathlib
from support import malicious
from upernet_zoo.checkpoints import safe_load
from upernet_zoo.errors import UnsafeCheckpointError
in_use = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (in_use + (1 << 30),) * 2)
with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / "a.pth"
    for kind in malicious.FORMATS:
        for name in malicious.BOMBS:
            path.write_bytes(malicious.bomb_file(kind, name))
            try:
                safe_load.read(path)
            except UnsafeCheckpointError:
                continue
            sys.exit(f"{kind} {name} was read")
"""
    if not Path("/proc/self/statm").exists():
        pytest.skip("needs Linux's /proc")
    tests = ROOT / "tests"
    environment = {**os.environ, "PYTHONPATH": f"{tests}{os.pathsep}{tests.parent}"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_1_kb_cannot_ask_for_100_gb(tmp_path, no_torch_load):
    path = tmp_path / "a.pth"
    path.write_bytes(malicious.bomb_file("legacy", "storage_of_100_gb"))
    assert path.stat().st_size < 1024
    with pytest.raises(UnsafeCheckpointError, match="declares 100000000000 bytes of tensors and has 12"):
        safe_load.read(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 20e6


# ---- malicious archives

GOOD = whole(tensor(storage(2), (2,)))


def test_the_archive_that_the_next_ones_are_made_from_is_good(tmp_path):
    path = tmp_path / "a.pth"
    path.write_bytes(zip_file(GOOD, [("data/0", np.float32([1, 2]).tobytes())]))
    assert safe_load.read(path)["state_dict"].tolist() == [1, 2]


def _local_name_differs(raw):
    return raw.replace(b"archive/data/0", b"archive/data/1", 1)


def _compressed_flag(raw):
    at = raw.index(b"PK\x01\x02", raw.rindex(b"archive/data/0") - 46)
    return raw[: at + 10] + b"\x08\x00" + raw[at + 12 :]


def _wrong_checksum(raw):
    return raw.replace(b"_rebuild_tensor_v2", b"_rebuild_parameter", 1)


ARCHIVES = {
    "compressed": (lambda: zip_file(GOOD, [("data/0", bytes(8))], zipfile.ZIP_DEFLATED), "compressed"),
    "bomb": (
        lambda: zip_file(whole(tensor(storage(1 << 24), (1 << 24,))), [("data/0", bytes(1 << 26))], zipfile.ZIP_DEFLATED),
        "compressed",
    ),
    "compressed_by_its_directory_alone": (lambda: _compressed_flag(zip_file(GOOD, [("data/0", bytes(8))])), "compressed"),
    "twice": (lambda: zip_file(GOOD, [("data/0", bytes(8)), ("data/0", bytes(8))]), "is there twice"),
    "twice_in_another_case": (lambda: zip_file(GOOD, [("data/0", bytes(8)), ("DATA.pkl", GOOD)]), "is there twice"),
    "parent_folder": (lambda: zip_file(GOOD, [("../../x", b""), ("data/0", bytes(8))]), "path that torch.save never writes"),
    "backslash": (lambda: zip_file(GOOD, [("..\\x", b""), ("data/0", bytes(8))]), "path that torch.save never writes"),
    "absolute": (lambda: zip_file(GOOD, [("data/0", bytes(8))], folder="/tmp"), "path that torch.save never writes"),
    "short_storage": (lambda: zip_file(GOOD, [("data/0", bytes(4))]), "declared with 8 bytes and has 4"),
    "long_storage": (lambda: zip_file(GOOD, [("data/0", bytes(12))]), "declared with 8 bytes and has 12"),
    "torchscript": (lambda: zip_file(GOOD, [("data/0", bytes(8)), ("constants.pkl", b"")]), "TorchScript"),
    "missing_storage": (lambda: zip_file(GOOD), "storage '0' is not in the file"),
    "no_pickle": (lambda: zip_file(GOOD).replace(b"data.pkl", b"xata.pkl"), "another kind"),
    "two_folders": (
        lambda: zip_file(GOOD, [("data/0", bytes(8))]).replace(b"archive/data/0", b"brchive/data/0"),
        "more than one folder",
    ),
    "local_name_differs": (lambda: _local_name_differs(zip_file(GOOD, [("data/0", bytes(8))])), "not what the directory says"),
    "wrong_checksum": (lambda: _wrong_checksum(zip_file(GOOD, [("data/0", bytes(8))])), "checksum"),
    "comment": (lambda: zip_file(GOOD, [("data/0", bytes(8))]) + b"x", "cut short"),
    "something_before": (lambda: b"PK\x03\x04" + zip_file(GOOD, [("data/0", bytes(8))]), "not one that torch.save writes"),
    "list_at_the_top": (lambda: zip_file(b"\x80\x02]."), "does not hold a dict"),
    "bare_tensor": (
        lambda: zip_file(b"\x80\x02" + tensor(storage(2), (2,)) + b".", [("data/0", bytes(8))]),
        "does not hold a dict",
    ),
    "unset_memo": (lambda: zip_file(whole(b"h\x07")), "its pickle ends in the middle"),
    "empty_stack": (lambda: zip_file(b"\x80\x02."), "leaves values over"),
    "bad_text": (lambda: zip_file(whole(b"X\x01\x00\x00\x00\xff")), "not UTF-8"),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")  # zipfile, of what it is asked to write
@pytest.mark.parametrize("name", ARCHIVES)
def test_malicious_and_damaged_archives(name, tmp_path, no_torch_load):
    make, words = ARCHIVES[name]
    path = tmp_path / "a.pth"
    path.write_bytes(make())
    with pytest.raises(CheckpointError, match=words) as caught:
        safe_load.read(path)
    assert str(path) in str(caught.value)


def test_old_format_with_false_lists(tmp_path, no_torch_load):
    path = tmp_path / "a.pth"
    good = whole(tensor(storage(2, legacy=True), (2,)))
    data = (2).to_bytes(8, "little") + bytes(8)
    for keys, body, words in (
        (["0", "0"], data * 2, "differs from those"),
        ([], b"", "differs from those"),
        (["1"], data, "differs from those"),
        ([0], data, "is not one"),
        (["0"], (3).to_bytes(8, "little") + bytes(12), "does not have the length"),
        (["0"], data[:-1], "cut short"),
    ):
        path.write_bytes(legacy_file(good, keys, body))
        with pytest.raises(CheckpointError, match=words):
            safe_load.read(path)
    path.write_bytes(legacy_file(good, ["0"], data, version=b"\x80\x02K\x01."))
    with pytest.raises(CheckpointError, match="second number"):
        safe_load.read(path)


def test_good_old_file_of_our_own_makers(tmp_path):
    path = tmp_path / "a.pth"
    path.write_bytes(
        legacy_file(whole(tensor(storage(2, legacy=True), (2,))), ["0"], (2).to_bytes(8, "little") + np.float32([1, 2]).tobytes())
    )
    assert safe_load.read(path)["state_dict"].tolist() == [1, 2]


# ---- other files under a checkpoint's name


def _tar():
    import tarfile

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo("storages"))
    return buffer.getvalue()


def _npz():
    buffer = io.BytesIO()
    np.savez(buffer, a=np.ones(3))
    return buffer.getvalue()


OTHERS = {
    "empty": (b"", "is empty"),
    "html": (b"\n<!DOCTYPE html><html><title>404</title>", "HTML or XML page"),
    "xml": (b'\xef\xbb\xbf<?xml version="1.0"?><Error><Code>AccessDenied</Code>', "HTML or XML page"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "git lfs pull"),
    "json": (b'{"error": "not found"}', "JSON text"),
    "tar": (_tar(), "tar format"),
    "gzip": (b"\x1f\x8b\x08\x00" + bytes(50), "gzip"),
    "png": (b"\x89PNG\r\n\x1a\n" + bytes(50), "PNG"),
    "onnx": (b"\x08\x08\x12\x07pytorch\x1a\x051.8.0:" + bytes(50), "ONNX"),
    "text": (b"class,foo\nbar\nbaz\n", "does not begin as a file of torch.save"),
    "zeros": (bytes(1000), "does not begin as a file of torch.save"),
    "plain_pickle": (pickle.dumps({"a": 1}, 2), "does not begin as a file of torch.save"),
    "numpy_zip": (_npz(), "zip archive of another kind"),
    "empty_zip": (b"PK\x05\x06" + bytes(18), "empty zip"),
    "plain_pickle_protocol_4": (pickle.dumps({"a": 1}, 4), "protocol 4"),
    "protocol_4": (zip_file(pickle.dumps({"a": 1}, 4)), "protocol 4"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_kinds_of_file(name, tmp_path, no_torch_load):
    content, words = OTHERS[name]
    path = tmp_path / "a.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=words) as caught:
        safe_load.read(path)
    assert str(path) in str(caught.value) and isinstance(caught.value, UnsafeCheckpointError) == ("protocol_4" in name)
    with pytest.raises(CheckpointError):
        safe_load.read_safetensors(path)


def test_what_is_no_regular_file(tmp_path):
    for missing in (tmp_path / "none.pth", tmp_path / "a.pth" / "b.pth", "a\0b", None, 3, "~nobody-of-that-name/a"):
        (tmp_path / "a.pth").touch()
        with pytest.raises(MissingFileError, match="No checkpoint file"):
            safe_load.read(missing)
    with pytest.raises(CheckpointError, match="is a folder"):
        safe_load.read(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="not a regular file"):
        safe_load.read(tmp_path / "pipe")


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root reads everything")
def test_no_permission(tmp_path):
    path = tmp_path / "a.pth"
    path.write_bytes(b"x")
    path.chmod(0)
    with pytest.raises(CheckpointError, match="Permission denied"):
        safe_load.read(path)


def test_a_file_that_changes_while_it_is_read(tmp_path, monkeypatch):
    path = save({"a": torch.ones(2)}, tmp_path / "a.pth", True)
    other = save({"a": torch.zeros(3)}, tmp_path / "b.pth", True)
    load = torch.load

    def swap(*args, **kwargs):
        other.replace(path)
        return load(*args, **kwargs)

    monkeypatch.setattr(torch, "load", swap)
    assert torch.equal(safe_load.read(path)["a"], torch.ones(2))
    assert not other.exists()


# ---- damage


@pytest.mark.parametrize("path", [*CHECKPOINTS, *TRAINING], ids=lambda p: p.name[:30])
def test_cut_anywhere(path, tmp_path, no_torch_load):
    raw, cut = path.read_bytes(), tmp_path / "a.pth"
    random_places = random.Random(0).sample(range(1, len(raw)), 12)
    for length in sorted({*range(1, 40, 3), *(len(raw) * i // 10 for i in range(1, 10)), *random_places, len(raw) - 1}):
        cut.write_bytes(raw[:length])
        with pytest.raises(CheckpointError) as caught:
            safe_load.read(cut)
        assert ("asks for" not in str(caught.value) and "Delete it" in str(caught.value)) or "trap for your memory" in str(caught.value)


def test_damaged_safetensors(tmp_path):
    from safetensors.torch import save_file

    path, bad = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_file({"a": torch.arange(4.0), "b": torch.ones(3)}, path)
    raw = path.read_bytes()
    for length in range(1, len(raw)):
        bad.write_bytes(raw[:length])
        with pytest.raises(CheckpointError):
            safe_load.read(bad)
    many = ",".join(f'"{i}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for i in range(200_000)).encode()
    bad.write_bytes((len(many) + 2).to_bytes(8, "little") + b"{" + many + b"}")
    start = time.process_time()
    with pytest.raises(CheckpointError, match="has 200000 tensors"):
        safe_load.read_safetensors(bad)
    assert time.process_time() - start < 2
    huge = (1 << 40).to_bytes(8, "little") + raw[8:]
    overlap = raw.replace(b'"data_offsets":[0,16]', b'"data_offsets":[0,28]')
    assert overlap != raw
    for content, words in ((huge, "ends beyond the file"), (overlap, "is damaged")):
        bad.write_bytes(content)
        with pytest.raises(CheckpointError, match=words):
            safe_load.read_safetensors(bad)
    with Path(bad).open("wb") as file:  # a long header, of a sparse file
        file.write((1 << 30).to_bytes(8, "little") + b"{")
        file.truncate((1 << 30) + 8)
    with pytest.raises(CheckpointError, match="at most"):
        safe_load.read_safetensors(bad)


# ---- speed


def least_seconds(run):
    """The CPU's, of five runs: the machine may be busy."""
    times = []
    for _ in range(5):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return min(times)


@pytest.mark.parametrize("path", CHECKPOINTS, ids=lambda p: p.parent.name)
def test_the_scan_takes_less_than_50_ms(path):
    """As many tensors as a full-size file has, and the scan does not depend on their size."""
    with safe_load._opened(path) as (_, data):
        check = safe_load._check_zip if data[:2] == b"PK" else safe_load._check_legacy
        assert least_seconds(lambda: check(data)) < 0.05


def test_the_scan_reads_no_tensor_data(tmp_path):
    """A file of 16 GB, of which nearly all is a hole: reading it would take longer, and memory that is not there."""
    path, count = tmp_path / "a.pth", 4 << 30
    head = legacy_file(whole(tensor(storage(count, legacy=True), (count,))), ["0"], count.to_bytes(8, "little"))
    path.write_bytes(head)
    os.truncate(path, len(head) + 4 * count)
    if shutil.disk_usage(tmp_path).total < 4 * count and path.stat().st_size != len(head) + 4 * count:
        pytest.skip("no sparse files here")

    def scan():
        with safe_load._opened(path) as (_, data):
            safe_load._check_legacy(data)

    assert least_seconds(scan) < 0.05


# ---- properties

PLAIN = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 70), 1 << 70)
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
    | st.binary(max_size=20)
)
NUMPY = st.builds(np.float64, st.floats(allow_nan=False)) | st.builds(lambda n: np.arange(n) * 0.5, st.integers(0, 5))
TENSORS = st.builds(
    lambda shape, dtype: torch.ones(shape).to(dtype), st.lists(st.integers(0, 3), max_size=3), st.sampled_from([torch.float32, torch.int64])
)
VALUES = st.recursive(
    PLAIN | NUMPY | TENSORS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=5) | st.integers(-(1 << 63), (1 << 63) - 1), inner, max_size=4)
        | st.tuples(inner, inner)
    ),
    max_leaves=20,
)


@settings(max_examples=100)
@given(st.dictionaries(st.text(max_size=10), VALUES, max_size=5), st.booleans())
def test_whatever_torch_saves_of_plain_values_is_read(value, new):
    """The other way round from the fuzzer: nothing honest is refused."""
    with tempfile.TemporaryDirectory() as folder:
        path = save(value, Path(folder) / "a.pth", new)
        assert equal(safe_load.read(path), torch.load(path, weights_only=False))


@settings(max_examples=300)
@given(
    st.lists(
        st.sampled_from(sorted({op.code.encode("latin1") for op in pickletools.opcodes})) | st.binary(min_size=1, max_size=6), max_size=30
    ),
    st.booleans(),
)
def test_any_bytes_for_a_pickle(parts, new):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.pth"
        path.write_bytes((zip_file if new else legacy_file)(b"\x80\x02" + b"".join(parts)))
        try:
            assert isinstance(safe_load.read(path), dict)
        except CheckpointError as error:
            assert str(path) in str(error)


# ---- the fuzzer


def test_a_seeded_thousand_of_fuzzed_inputs(tmp_path):
    """benchmarks/fuzz_loader.py runs any number of them; what a million did is in results/fuzz.json."""
    script = ROOT / "benchmarks" / "fuzz_loader.py"
    if not script.exists():
        pytest.skip("needs the checkout")
    command = [sys.executable, str(script), "--count", "1000", "--seed", "1", "--output", str(tmp_path / "fuzz.json")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_only_errors_of_the_library():
    assert issubclass(UnsafeCheckpointError, CheckpointError) and issubclass(CheckpointError, (UPerNetZooError, ValueError))
