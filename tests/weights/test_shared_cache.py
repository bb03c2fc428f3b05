"""A cache that others may read or write, and a machine that lacks the usual: nothing planted is followed, nothing waits for ever."""

import contextlib
import dataclasses
import errno
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import types
from pathlib import Path

import pytest
from support.fixture import NAMES, Fixture
from support.servers import Server
from support.stand_in import DATA, DIGEST, FILE, OTHER, PATH, clear_environment, listing, make_entry, process_environment
from support.waiting import until

import upernet_zoo
from upernet_zoo import errors, factory, files, reference
from upernet_zoo.checkpoints import native
from upernet_zoo.reference import DEMO_FOLDER
from upernet_zoo.weights import cache, locks, sources
from upernet_zoo.weights import partial as partials

posix = pytest.mark.skipif(os.name != "posix", reason="links, owners and FIFOs of POSIX")
root = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="becomes another user")
STRANGER = 54321


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch):
    clear_environment(monkeypatch, tmp_path)


@pytest.fixture
def kept(tmp_path):
    folder = tmp_path / "cache" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def fetch(server, **options):
    return sources.fetch(make_entry(server.url + PATH), progress=False, **options)


def within(seconds, function):
    """The result, or the library's error, of a call that must come to an end."""
    box = []

    def run():
        try:
            box.append(function())
        except errors.UPerNetZooError as error:
            box.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), f"not over after {seconds} s"
    return box[0]


def as_stranger(code, *arguments, first="", **environment):
    """Run Python as a user of no name, who may not be able to read the packages: `first` runs before; its last line of output."""
    before = "import os, sys; os.setgroups([]); os.setgid(54321); os.setuid(54321)\n"
    imports = "import encodings.idna, huggingface_hub, requests, tqdm, upernet_zoo\nfrom upernet_zoo.weights import cache, sources\n"
    line = [sys.executable, "-c", imports + first + before + code, *map(str, arguments)]
    done = subprocess.run(line, env={**process_environment(), **environment}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


# ---- what was planted


@posix
@pytest.mark.parametrize("suffix", [".partial", ".partial.state", ".partial.state.tmp", ".incoming", ".json", ""])
@pytest.mark.parametrize("by", ["url", "folder"])
def test_a_link_in_the_cache_is_never_written_through(server, kept, tmp_path, suffix, by):
    victim = tmp_path / "bashrc"
    victim.write_text("precious")
    (kept / (FILE + suffix)).symlink_to(victim)
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror" / FILE).write_bytes(DATA)
    with contextlib.suppress(errors.CacheError), pytest.warns(UserWarning) if not suffix else contextlib.nullcontext():
        found = fetch(server, mirrors=[tmp_path / "mirror"] if by == "folder" else [])
        assert found.path.read_bytes() == DATA and not found.path.is_symlink()
    assert victim.read_text() == "precious"


@posix
@pytest.mark.parametrize(
    "make", [os.mkfifo, lambda path: path.symlink_to("/nonexistent"), lambda path: os.link(path.parent / "mine", path)]
)
def test_what_is_no_partial_is_refused_by_name(server, kept, make):
    (kept / "mine").write_text("precious")
    make(kept / f"{FILE}.partial")
    refused = within(120, lambda: fetch(server))
    assert isinstance(refused, errors.CacheError) and f"{FILE}.partial" in str(refused)
    assert (kept / "mine").read_text() == "precious" and FILE not in listing(kept)


@posix
@pytest.mark.parametrize("suffix", ["", ".json", ".partial.state"])
def test_a_fifo_in_the_cache_holds_nothing_up(server, kept, suffix):
    os.mkfifo(kept / (FILE + suffix))
    found = within(120, lambda: fetch(server))
    if suffix:
        assert found.path.read_bytes() == DATA
    else:
        assert isinstance(found, errors.CacheError) and FILE in str(found)


@posix
@pytest.mark.parametrize("place", ["checkpoint", "mirror", "torch hub", "file url", "/dev/zero"])
def test_a_fifo_or_a_device_is_no_checkpoint(tmp_path, place):
    model = make_entry("http://127.0.0.1:9" + PATH)
    fifo = tmp_path / "folder" / FILE
    options = {"local_files_only": True, "progress": False}
    if place == "torch hub":
        fifo = cache.torch_hub_folder() / FILE
    fifo.parent.mkdir(parents=True)
    os.mkfifo(fifo)
    if place == "mirror":
        options["mirrors"] = [fifo.parent]
    elif place == "checkpoint":
        options["checkpoint"] = fifo
    elif place == "/dev/zero":
        options["checkpoint"] = place
    elif place == "file url":
        model = make_entry(fifo.as_uri())
    refused = within(120, lambda: sources.fetch(model, **options))
    assert isinstance(refused, errors.UPerNetZooError) and "no regular file" in str(refused)


@posix
def test_a_link_for_a_lock_is_refused_by_name(server, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "cache" / "locks").mkdir(parents=True)
    lock = tmp_path / "cache" / "locks" / f"{FILE}.lock"
    for plant in (lambda: lock.symlink_to(victim), lambda: lock.symlink_to(lock), lambda: os.link(victim, lock), lambda: os.mkfifo(lock)):
        plant()
        refused = within(120, lambda: fetch(server))
        assert isinstance(refused, errors.CacheError) and f"{lock}: cannot be written (no lock file but a link" in str(refused)
        lock.unlink()
    lock.mkdir()
    refused = within(120, lambda: fetch(server))
    assert isinstance(refused, errors.CacheError) and str(lock) in str(refused)
    assert victim.read_text() == "precious"


@root
def test_what_strangers_say_in_a_folder_of_everybody_is_not_believed(tmp_path):
    """A receipt makes a file trusted unread; in such a folder only one's own, or the administrator's, does."""
    folder = tmp_path / "cache"
    folder.mkdir()
    path = folder / FILE
    path.write_bytes(DATA)
    cache.write_receipt(path, files.hash_file(path), "somewhere")
    assert cache.trusted(path)
    folder.chmod(0o1777)
    assert cache.trusted(path)
    os.chown(cache.receipt_path(path), STRANGER, STRANGER)
    assert cache.read_receipt(path) is None and cache.trusted(path) is None
    folder.chmod(0o755)
    assert cache.trusted(path)  # where the owner alone may write, he has put it there


@root
def test_a_strangers_folder_is_not_followed(server, tmp_path):
    (tmp_path / "home_of_the_victim").mkdir()
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o1777)
    link = tmp_path / "cache" / "checkpoints"
    link.symlink_to(tmp_path / "home_of_the_victim")
    os.lchown(link, STRANGER, STRANGER)
    with pytest.raises(errors.CacheError, match="checkpoints is a link that another user made"):
        fetch(server)
    assert listing(tmp_path / "home_of_the_victim") == []
    os.lchown(link, 0, 0)  # the user's own: a cache on another disk
    assert fetch(server).path.read_bytes() == DATA


@root
def test_another_users_partial_is_left_to_him(server, kept):
    partial = kept / f"{FILE}.partial"
    partial.write_bytes(OTHER[:1000])
    os.chown(partial, STRANGER, STRANGER)
    assert fetch(server).path.read_bytes() == DATA
    assert partial.read_bytes() == OTHER[:1000]


def test_a_partial_is_one_processs_at_a_time(server, tmp_path):
    with partials.Partial(tmp_path / "partial"):
        if os.name == "posix":
            with pytest.raises(partials.TakenError):
                partials.Partial(tmp_path / "partial")


def test_a_partial_that_is_replaced_meanwhile_is_not_taken_for_it(tmp_path):
    with partials.Partial(tmp_path / "partial") as part:
        part.append(DATA)
        _written(tmp_path / "other", OTHER).replace(tmp_path / "partial")
        with pytest.raises(errors.CacheError, match="was replaced while it was written"):
            part.finish()


def _written(path, content):
    path.write_bytes(content)
    return path


# ---- locks


@root
def test_a_reader_cannot_hold_a_lock_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "QUIET", 0.5)
    with cache.lock("file"):
        pass
    tmp_path.chmod(0o755)
    lock = tmp_path / "cache" / "locks" / "file.lock"
    code = "import fcntl, time\nfcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX)\nprint('held', flush=True)\ntime.sleep(300)"
    before = "import os, sys; os.setgroups([]); os.setgid(54321); os.setuid(54321)\n"
    reader = subprocess.Popen([sys.executable, "-c", before + code, str(lock)], stdout=subprocess.PIPE, text=True)
    try:
        if reader.stdout.readline() == "held\n":  # where the file can be opened at all
            assert within(120, lambda: _with_lock("file")) == "done"
    finally:
        reader.kill()
        reader.communicate()


def _with_lock(name):
    with cache.lock(name):
        return "done"


def test_whoever_works_is_waited_for(monkeypatch):
    """Longer than a lock without a sign of life would be."""
    monkeypatch.setattr(locks, "QUIET", 4.0)  # 40 beats, as the machine may be busy
    monkeypatch.setattr(locks, "_BEAT", 0.1)
    order = []
    with cache.lock("file"):
        waiting = threading.Thread(target=lambda: order.append(_with_lock("file")))
        waiting.start()
        time.sleep(5.0)
        order.append("first")
    waiting.join()
    assert order == ["first", "done"]


def test_a_pause_of_the_waiter_is_no_silence_of_the_holder(monkeypatch):
    """As of a machine that stands still: ten seconds pass between two looks."""
    looks = []
    clock = types.SimpleNamespace(monotonic=lambda: looks.append(None) or 10.0 * len(looks), sleep=time.sleep)
    monkeypatch.setattr(locks, "_BEAT", 0.1)
    order = []
    with cache.lock("file"):
        waiting = threading.Thread(target=lambda: order.append(_with_lock("file")))
        with monkeypatch.context() as patch:
            patch.setattr(locks, "QUIET", 9.0)
            patch.setattr(locks, "time", clock)
            waiting.start()
            until(lambda: len(looks) > 50 or not waiting.is_alive())
            order.append("first")
    waiting.join()
    assert order == ["first", "done"]


def test_a_thread_takes_its_own_lock_again():
    with cache.lock("file"), cache.lock("file"):
        pass
    assert within(120, lambda: _with_lock("file")) == "done"


@posix
@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_a_file_system_without_flock(server, tmp_path, monkeypatch, code):
    """Lustre, NFS without locks: others wait all the same, and what a killed process left holds nobody up for ever."""
    import fcntl

    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    test_whoever_works_is_waited_for(monkeypatch)
    folder = tmp_path / "cache" / "locks"
    assert listing(folder) == ["file.lock"]
    (folder / "file.lock.claim").touch()
    assert within(120, lambda: _with_lock("file")) == "done"
    assert fetch(server).path.read_bytes() == DATA


# ---- a cache that can only be read, and none


@root
def test_a_read_only_cache_serves_what_it_has(server, monkeypatch):
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        monkeypatch.setenv("UPERNET_ZOO_CACHE", f"{folder}/cache")
        path = fetch(server).path
        for place in (Path(folder) / "cache", *(Path(folder) / "cache").rglob("*")):
            place.chmod(0o555 if place.is_dir() else 0o444)
        first = "import sys; from support.stand_in import make_entry; entry = make_entry(sys.argv[1])\n"
        code = "print(sources.fetch(entry, progress=False).path)"
        assert as_stranger(code, "http://127.0.0.1:9" + PATH, first=first, PYTHONPATH=_with_tests()) == str(path)


def test_the_demo_needs_no_cache_that_can_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("UPERNET_ZOO_CACHE", str(tmp_path / "file" / "cache"))
    assert upernet_zoo.create_model("demo").origin["model"] == reference.demo_entry().name


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_said_while_a_file_is_converted(tmp_path, monkeypatch, number):
    def full(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(native, "write_safetensors", full)
    demo = reference.demo_entry()
    given = Path(shutil.copy(DEMO_FOLDER / demo.file_name, tmp_path))
    with pytest.raises(errors.CacheError, match="disk or the quota is full"):
        factory.load_entry(demo, checkpoint=given)
    assert listing(tmp_path / "cache" / "converted") == []


def _with_tests():
    return os.pathsep.join((process_environment()["PYTHONPATH"], str(Path(__file__).parent.parent)))


@root
@pytest.mark.parametrize("named", [True, False])
def test_no_home_and_no_account(tmp_path, monkeypatch, named):
    for name in ("HOME", *([] if named else ["UPERNET_ZOO_CACHE"])):
        monkeypatch.delenv(name)
    code = """
try:
    print(cache.cache_root(), cache.torch_hub_folder())
except upernet_zoo.UPerNetZooError as error:
    print(type(error).__name__, error)"""
    said = as_stranger(code)
    if named:
        assert said.startswith(str(tmp_path / "cache"))
    else:
        assert said.startswith("CacheError No folder for the cache") and "UPERNET_ZOO_CACHE" in said and "cache_dir=" in said


@posix
def test_a_name_that_begins_with_a_tilde_is_a_name(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files.expanded("~/x") == tmp_path / "x" and files.expanded("~") == tmp_path
    for name in ("~nobody-of-that-name/x", "~x.pth", "a/~", "./~/x"):
        assert files.expanded(name) == Path(name)


def test_torch_hubs_folder_is_the_one_that_a_program_set(tmp_path):
    code = """
import sys
from upernet_zoo.weights import cache
before = cache.torch_hub_folder()
assert "torch" not in sys.modules
import torch
torch.hub.set_dir(sys.argv[1])
print(before != cache.torch_hub_folder(), cache.torch_hub_folder())"""
    line = [sys.executable, "-c", code, str(tmp_path / "mine")]
    done = subprocess.run(line, env=process_environment(), capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", str(tmp_path / "mine" / "checkpoints")]


# ---- long names


@pytest.mark.parametrize("length", [200, 240, 251, 255])
def test_names_as_long_as_the_file_system_allows(tmp_path, length):
    name = "ü" * 20 + "a" * (length - 44) + ".pth"
    with Server({f"/{_quoted(name)}": DATA}) as server:
        model = dataclasses.replace(make_entry(f"{server.url}/{_quoted(name)}"))
        found = sources.fetch(model, progress=False)
        assert found.path.name == name and found.path.read_bytes() == DATA
        assert cache.read_receipt(found.path).sha256 == DIGEST
        assert sources.fetch(model, progress=False).source == "cache"
    assert len(listing(found.path.parent)) == 2


def _quoted(name):
    from urllib.parse import quote

    return quote(name)


def test_names_beside_long_ones_differ_as_those_do(tmp_path):
    one, other = (tmp_path / ("a" * 250 + end) for end in ("1.pth", "2.pth"))
    assert files.beside(one, ".json") != files.beside(other, ".json")
    assert len(files.beside(one, ".json").name.encode()) == 255
    assert files.beside(tmp_path / "short.pth", ".json") == tmp_path / "short.pth.json"


# ---- receipts and files that change


def test_a_receipt_describes_what_was_hashed(tmp_path):
    path = _written(tmp_path / "file", DATA)
    hashed = files.hash_file(path)
    path.write_bytes(OTHER)
    os.utime(path, ns=(hashed.mtime_ns + 10**9,) * 2)
    receipt = cache.write_receipt(path, hashed, "somewhere")
    assert (receipt.sha256, receipt.mtime_ns) == (DIGEST, hashed.mtime_ns)
    assert cache.trusted(path) is None


@pytest.mark.parametrize("change", ["in place", "rename", "link", "time put back"])
def test_what_changes_while_it_is_read_is_not_trusted(tmp_path, change):
    path = _written(tmp_path / "file", DATA)
    cache.write_receipt(path, files.hash_file(path), "somewhere")
    assert cache.read_trusted(path, Path.read_bytes) == DATA

    def reader(opened):
        status = opened.stat()
        time.sleep(0.02)  # more than a tick of the system's clock
        if change in ("in place", "time put back"):
            opened.write_bytes(OTHER)
        elif change == "rename":
            _written(tmp_path / "other", OTHER).replace(opened)
        else:
            opened.unlink()
            opened.symlink_to(_written(tmp_path / "other", OTHER))
        if change == "time put back":
            os.utime(opened, ns=(status.st_atime_ns, status.st_mtime_ns))
        return opened.read_bytes()

    assert cache.read_trusted(path, reader) is None


# ---- full disks


def _no_space(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
def test_a_full_disk_loses_nothing(tmp_path, monkeypatch, step):
    one, other = _written(tmp_path / "one", b"before"), _written(tmp_path / "two", b"before")
    if step != "write":
        monkeypatch.setattr(os, step, _no_space)
    second = _no_space if step == "write" else lambda path: path.write_bytes(b"after")
    with pytest.raises(errors.WriteError, match="the disk or the quota is full") as caught:
        files.write_together([(one, lambda path: path.write_bytes(b"after")), (other, second)])
    assert not isinstance(caught.value, errors.CacheError) and "UPERNET_ZOO_CACHE" not in str(caught.value)
    assert one.read_bytes() == other.read_bytes() == b"before" and listing(tmp_path) == ["one", "two"]


def test_a_name_that_cannot_be_given_is_left_with_the_old_file(server, kept, monkeypatch):
    """The wrong file in the cache is put back where the right one cannot take its place."""
    (kept / FILE).write_bytes(OTHER)
    real = os.replace

    def replace(source, target):
        if str(target) == str(kept / FILE) and str(source).endswith(".partial"):
            _no_space()
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.warns(UserWarning), pytest.raises(errors.CacheError, match="the disk or the quota is full"):
        fetch(server)
    assert (kept / FILE).read_bytes() == OTHER


def test_a_folder_of_the_cache_that_is_a_file(server, tmp_path):
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    (tmp_path / "cache").write_text("mine")
    with pytest.raises(errors.CacheError, match="UPERNET_ZOO_CACHE"):
        fetch(server)
    assert (tmp_path / "cache").read_text() == "mine"


# ---- what a program asks of the cache


def test_verify_and_prune_are_functions(server, kept):
    path = fetch(server).path
    (one,) = cache.verify()
    assert one == cache.Checked(path, cache.State.UNCHANGED, size=len(DATA)) and one.text == "unchanged since it was verified"
    (one,) = cache.verify(deep=True)
    assert (one.state, one.digits, one.text) == (cache.State.VERIFIED, 64, "verified")
    model = make_entry(server.url + PATH)
    cache.receipt_path(path).unlink()
    (one,) = cache.verify([model])
    assert one.text == "verified by 8 hex digits"
    cache.write_receipt(path, files.hash_file(path), "somewhere")
    status = path.stat()
    path.write_bytes(OTHER)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert cache.trusted(path)  # as far as size and time tell
    (one,) = cache.verify(deep=True)
    assert one.state is cache.State.DAMAGED and str(path) in str(one.error) and path.read_bytes() == OTHER
    assert cache.trusted(path) is None  # from now on it is read
    (kept / f"{FILE}.partial").write_bytes(b"half")
    assert [held.kind for held in cache.held()] == [cache.Kind.CHECKPOINT, cache.Kind.RECEIPT, cache.Kind.UNFINISHED]
    assert [held.path.name for held in cache.prune()] == [f"{FILE}.partial"]
    assert [held.path for held in cache.prune([model])] == [path]
    assert cache.expected_digest(model) == DIGEST  # the receipt pins it still
    assert [one.state for one in cache.verify([model])] == [cache.State.ABSENT]


def test_a_damaged_conversion_is_found(small_index, own_cache, monkeypatch):
    import torch

    import upernet_zoo as uz

    monkeypatch.setenv("UPERNET_ZOO_CACHE", str(own_cache))
    one = Fixture(NAMES[0])
    uz.create_model(one.name, checkpoint=one.checkpoint)
    (converted,) = own_cache.glob("converted/*.safetensors")
    data = bytearray(converted.read_bytes())
    status = converted.stat()
    data[-5] ^= 1
    converted.write_bytes(data)
    os.utime(converted, ns=(status.st_atime_ns, status.st_mtime_ns))
    (found,) = cache.verify(deep=True)
    assert found.state is cache.State.DAMAGED and "made again" in str(found.error)
    model = uz.create_model(one.name, checkpoint=one.checkpoint)
    assert [found.state for found in cache.verify(deep=True)] == [cache.State.VERIFIED]
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())
