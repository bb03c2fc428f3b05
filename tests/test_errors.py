"""What messages may quote: nothing that steers a terminal, no secrets of URLs, nothing without end."""

import dataclasses
import json
import logging

import pytest
import torch
from support.endless import endless
from support.fixture import NAMES, Fixture
from support.stand_in import DIGEST, FILE, clear_environment, make_entry

from upernet_zoo import errors, index, tables
from upernet_zoo.cli import main
from upernet_zoo.errors import shown
from upernet_zoo.weights import connect, download, probe, sources

ONE = Fixture(NAMES[0])
SECRET = "hunter2"
URLS = (
    (f"https://bob:{SECRET}@host/x", "https://host/x"),
    (f"https://{SECRET}@host/x", "https://host/x"),
    (f"https://host/x?token={SECRET}", "https://host/x"),
    (f"https://host/x?{SECRET}", "https://host/x"),
    (f"https://host/x#{SECRET}", "https://host/x"),
    (f"https://host:8080/x;password={SECRET}/y", "https://host:8080/x/y"),
    (f"https://bob:{SECRET}@", "https://"),
    (f"https://bob:{SECRET}@/x", "https:///x"),
    (f"https://bob:a/{SECRET}@host/x", "https://host/x"),
    (f"https://bob:{SECRET}", "https://bob"),
    (f"https://[bob:{SECRET}@host", "https://host"),
    (f"s3://key:{SECRET}@bucket", "s3://bucket"),
    (f"//bob:{SECRET}@host", "//host"),
    (f"bob:{SECRET}@host/x", "host/x"),
)
MISTYPED = (f"http:/bob:{SECRET}@host/x", f"http//bob:{SECRET}@host/x", f"mirrors/bob:{SECRET}@host")
NO_SECRETS = ("https://[2001:db8::1]:80/x", "http://host:80/a@b/c", "file:///a;b/c@d", "/a/b@c:d", "C:\\a@b", "runs/best")


@pytest.mark.parametrize("url, bare", URLS)
def test_a_url_is_shown_without_its_secrets(url, bare):
    assert shown(url, "url") == bare
    for text in (f"has {url!r}: no", f"Failed to parse: {url}", f"({url})"):
        assert SECRET not in str(errors.ArgumentError(text)) and SECRET not in shown(text, "text") and SECRET not in shown(text)
    assert SECRET not in tables.plain(("a",), [[url]], left=1)


@pytest.mark.parametrize("url", NO_SECRETS)
def test_what_has_none_stays_as_it_is(url):
    assert shown(url, "url") == shown(url, "text") == url
    assert str(errors.ArgumentError(f"{url}: gone.")) == f"{url}: gone."


def test_a_message_cannot_steer_a_terminal():
    message = str(errors.MissingFileError("a\x1b[2J\r\b\u202eb\udcff\nnext line"))
    assert message == "a\\x1b[2J\\r\\x08\\u202eb\\udcff\nnext line"
    message.encode()
    assert len(str(errors.CheckpointError("x" * 10**6))) <= 20_000
    assert isinstance(errors.CacheError("x"), OSError) and str(errors.CacheError("x")) == "x"


def test_shown_is_short_and_on_one_line():
    assert shown("a\nb") == "'a\\nb'" and shown("a\nb", "text") == "a\\nb" and shown("a_b", "markdown") == "a_b"
    for style in ("value", "text", "markdown"):
        assert len(shown("x" * 10**6, style)) < 600 and len(shown([["x" * 10**6] * 10**4] * 10**4, style)) < 5000
    assert shown(10**5000, "text") == "a number of thousands of digits"
    assert shown("<b>*x*_y_`z`|[a](b)", "markdown") == ("&#60;b&#62;&#42;x&#42;&#95;y&#95;&#96;z&#96;&#124;&#91;a&#93;(b)")


@pytest.mark.parametrize(
    "mirror",
    [*(url for url, _ in URLS), *MISTYPED],
)
def test_no_mirror_shows_its_secret(mirror, monkeypatch, tmp_path, caplog):
    clear_environment(monkeypatch, tmp_path)
    monkeypatch.chdir(tmp_path)
    entry = make_entry("http://127.0.0.1:9/" + FILE)
    caplog.set_level(logging.DEBUG, "upernet_zoo")

    def shown_by(function, **options):
        try:
            return str(function(entry, **options))
        except errors.UPerNetZooError as error:
            return str(error)

    texts = [shown_by(sources.plan, mirrors=mirror), shown_by(sources.fetch, mirrors=[mirror], local_files_only=True)]
    monkeypatch.setenv("UPERNET_ZOO_MIRRORS", f"{tmp_path / 'one'};{mirror};{tmp_path / 'two'}")
    texts.append(shown_by(sources.fetch, local_files_only=True))
    assert not any(SECRET in text for text in texts) and SECRET not in caplog.text


@pytest.mark.parametrize(
    "listed, mirrors",
    (
        ("/a;https://b/c;/d", ["/a", "https://b/c", "/d"]),
        ("https://a/b;https://c/d", ["https://a/b", "https://c/d"]),
        ("https://bob:p;w@h/x ~/y", ["https://bob:p;w@h/x", "~/y"]),
        ("https://h/x?token=a;b;/c", ["https://h/x?token=a;b", "/c"]),
        (" ; a;b;", ["a", "b"]),
        ("https://a/b;C:\\mirror", ["https://a/b", "C:\\mirror"]),
    ),
)
def test_a_semicolon_in_a_url_does_not_end_it(listed, mirrors, monkeypatch):
    monkeypatch.setenv("UPERNET_ZOO_MIRRORS", listed)
    assert sources._mirrors(()) == mirrors


def test_no_proxy_shows_its_secret(monkeypatch, tmp_path):
    clear_environment(monkeypatch, tmp_path)
    entry = make_entry("http://upernet.invalid/" + FILE)
    for proxy in ("http://bob:hunter2@127.0.0.1:99999", "http://bob:hunter2@127.0.0.1:9", "bob:hunter2@127.0.0.1:x", "http://bob:hunter2@"):
        monkeypatch.setenv("http_proxy", proxy)
        with pytest.raises(errors.DownloadError) as caught:
            sources.fetch(entry, progress=False)
        assert SECRET not in str(caught.value)


def test_no_log_and_no_record_of_a_source_shows_a_secret(monkeypatch, tmp_path, caplog):
    """urllib3 logs whole paths, and warns with the whole URL where a header cannot be read."""
    clear_environment(monkeypatch, tmp_path)
    caplog.set_level(logging.DEBUG)
    answer = b"HTTP/1.1 404 no\r\n bad\r\nContent-Length: 0\r\n\r\n"
    with endless(answer, lambda _: b"", 9) as (url, _):
        mirror = url.replace("http://", f"http://bob:{SECRET}@") + f"/sub?{SECRET}"
        found = probe.probe([make_entry(url + "/" + FILE)], mirrors=[mirror])
        with pytest.raises(errors.DownloadError) as caught:
            sources.fetch(make_entry(url + "/" + FILE), mirrors=[mirror], progress=False)
        assert "Failed to parse headers" in caplog.text and f"GET /sub/{FILE}?... HTTP" in caplog.text
        logging.getLogger("urllib3.connectionpool").debug("of another: /x?y")
    assert SECRET not in caplog.text + str(caught.value) + repr(found) and "of another: /x?y" in caplog.text


def test_what_a_server_says_is_short(monkeypatch, tmp_path):
    clear_environment(monkeypatch, tmp_path)
    for answer in (b"HTTP/1.1 " + b"A" * 60_000, b"HTTP/1.1 418 " + b"A" * 60_000, b"HTTP/1.1 302 x\r\nLocation: ftp://" + b"A" * 60_000):
        connect.forget()
        monkeypatch.setattr(download, "SETTINGS", dataclasses.replace(download.SETTINGS, attempts=1))
        with endless(answer + b"\r\n\r\n", lambda _: b"", 9) as (url, _), pytest.raises(errors.DownloadError) as caught:
            sources.fetch(make_entry(url + "/" + FILE), progress=False)
        assert "AAA" in str(caught.value) and "Next: " in str(caught.value) and len(str(caught.value)) < 3000


def test_no_command_shows_a_secret(tmp_path, monkeypatch, capfd):
    clear_environment(monkeypatch, tmp_path)
    monkeypatch.setenv("UPERNET_ZOO_OFFLINE", "1")
    monkeypatch.setenv("UPERNET_ZOO_MIRRORS", f"https://bob:{SECRET}@127.0.0.1/x?token={SECRET}")
    name = "upernet_r50_512x512_160k_ade20k"
    for arguments in (["where", name], ["download", name], ["export", name, "--out", "x.onnx", "--mirror", f"https://bob:{SECRET}@host"]):
        main.main(arguments)
        said = "".join(capfd.readouterr())
        assert SECRET not in said and name in said


def test_a_record_of_a_cache_has_none_either(tmp_path, monkeypatch):
    from support.servers import nobody

    clear_environment(monkeypatch, tmp_path)
    with nobody() as url, pytest.raises(errors.DownloadError) as caught:
        sources.fetch(make_entry(url.replace("http://", "http://bob:hunter2@") + "/" + FILE, DIGEST), progress=False)
    kept = [path.read_text(errors="replace") for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert SECRET not in json.dumps(kept) + str(caught.value)


def test_an_index_has_no_control_characters(tmp_path):
    text = index.default_path().read_text(encoding="utf-8").replace("Method: UPerNet", 'Method: "UPer\\eNet"', 1)
    (tmp_path / "index.yml").write_text(text, encoding="utf-8")
    with pytest.raises(errors.IndexFormatError, match=r"'Method' is 'UPer\\x1bNet'; expected text of one line"):
        index.load(tmp_path / "index.yml")


def test_what_a_checkpoint_says_is_printed_as_text(tmp_path, capsys):
    tensors = torch.load(ONE.checkpoint, weights_only=True)["state_dict"]
    torch.save({"state_dict": {**tensors, "\x1b[2Jloss.weight": torch.zeros(1)}}, tmp_path / "a.pth")
    main.main(["convert", str(tmp_path / "a.pth"), "--out", str(tmp_path / "out")])
    captured = capsys.readouterr()
    assert "\x1b" not in captured.out + captured.err and r"\x1b[2Jloss.weight" in captured.out + captured.err
