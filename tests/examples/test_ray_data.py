"""examples/ray_data.py on a real local Ray with two workers, beside the plain loop."""

import dataclasses
import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image
from support.fixture import ROOT
from support.stand_in import process_environment

import upernet_zoo as uz

pytestmark = pytest.mark.large
pytest.importorskip("ray")
parquet = pytest.importorskip("pyarrow.parquet")
parquet_table = pytest.importorskip("pyarrow").table


def _bomb():
    """A PNG that says it has 60000x60000 pixels."""
    file, head = io.BytesIO(), b"IHDR" + struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    Image.new("RGB", (8, 8)).save(file, "PNG")
    png = file.getvalue()
    return png[:12] + head + struct.pack(">I", zlib.crc32(head)) + png[33:]


BAD = {
    "0007.png": b"",
    "0100.jpg": b"<!DOCTYPE html><title>404 Not Found</title>",
    "0233.png": b"\x89PNG\r\n\x1a\n" + bytes(40),
    "0400.png": _bomb(),
    "0499.png": b"%!PS-Adobe-3.0",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The demo model with small inputs, since many pictures run through it."""
    model = uz.create_model("demo")
    model.recipe = dataclasses.replace(model.recipe, scale=(96, 48))
    folder = tmp_path_factory.mktemp("model") / "small_demo"
    model.save_pretrained(folder)
    return str(folder)


def _pictures(folder, count):
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(count):
        height, width = (int(side) for side in rng.integers(20, 90, 2))
        tiles = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
        Image.fromarray(tiles).resize((width, height)).save(folder / f"{number:04d}.png")
    for name, content in BAD.items():
        (folder / name).with_suffix(".png").unlink(missing_ok=True)
        if int(name[:4]) < count:
            (folder / name).write_bytes(content)
    (folder / "notes.txt").write_text("no picture")


def _run(*arguments):
    line = [sys.executable, str(ROOT / "examples" / "ray_data.py"), *map(str, arguments), "--workers", "2"]
    environment = process_environment() | {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
    return subprocess.run(line, env=environment, capture_output=True, text=True, timeout=900)


def _require_equal(rows, names, folder, model):
    segmenter, failed = uz.Segmenter(model), []
    for name in names:
        row = rows.pop(name)
        try:
            expected = segmenter(folder / name)
        except uz.UPerNetZooError:
            failed.append(name)
            assert row["error"] and row["labels"] is row["width"] is row["area_road"] is None
            continue
        labels = np.asarray(Image.open(io.BytesIO(row["labels"])))
        assert row["error"] is None and (row["height"], row["width"]) == expected.labels.shape
        np.testing.assert_array_equal(labels, expected.labels)
        areas = {key.removeprefix("area_"): value for key, value in row.items() if key.startswith("area_")}
        assert {key: value for key, value in areas.items() if value} == pytest.approx(expected.areas())
    assert not rows
    return failed


def test_files_to_parquet_as_the_plain_loop(tmp_path, model):
    folder, out = tmp_path / "pictures", tmp_path / "out"
    _pictures(folder, 500)
    done = _run(model, folder, out)
    assert done.returncode == 0, done.stderr
    assert f"495 of 500 pictures segmented into {out}" in done.stdout
    assert all(f"{folder / name}: " in done.stdout for name in BAD)
    assert "decompression bomb" in done.stdout
    again = _run(model, folder, out)
    assert again.returncode == 2 and "is not empty" in again.stderr
    rows = {row["path"].rpartition("/")[2]: row for row in parquet.read_table(out).to_pylist()}
    names = sorted(path.name for path in folder.iterdir() if path.suffix != ".txt")
    assert len(names) == 500 and _require_equal(rows, names, folder, model) == sorted(BAD)


def test_parquet_to_parquet_as_the_plain_loop(tmp_path, model):
    """Two files with other columns beside, a picture of no bytes at all among them."""
    folder, out, source = tmp_path / "pictures", tmp_path / "out", tmp_path / "source"
    _pictures(folder, 40)
    names = sorted(path.name for path in folder.iterdir() if path.suffix != ".txt")
    source.mkdir()
    for number, part in enumerate((names[:15], names[15:])):
        content = [(folder / name).read_bytes() or None for name in part]
        table = {"id": part, "picture": content, "place": ["somewhere"] * len(part)}
        parquet.write_table(parquet_table(table), source / f"{number}.parquet")
    done = _run(model, source, out, "--column", "picture", "--name", "id")
    assert done.returncode == 0, done.stderr
    assert f"39 of 40 pictures segmented into {out}" in done.stdout and "0007.png: " in done.stdout
    rows = {row["path"]: row for row in parquet.read_table(out).to_pylist()}
    assert _require_equal(rows, names, folder, model) == ["0007.png"]


def test_a_wrong_name_is_said_before_any_worker_starts(tmp_path):
    done = _run("upernet_r05", tmp_path, tmp_path / "out")
    assert done.returncode == 1 and "ModelNotFoundError" in done.stderr.strip().splitlines()[-1]
