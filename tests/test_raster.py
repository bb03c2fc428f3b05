"""Rasters: labels of tiles against those of slide mode on the whole picture, and what rasterio itself reads of what is written."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support.fixture import Fixture
from support.models import small_model

import upernet_zoo as uz
from upernet_zoo import errors, raster
from upernet_zoo.cli.main import main

rasterio = pytest.importorskip("rasterio")
from rasterio.control import GroundControlPoint  # noqa: E402
from rasterio.crs import CRS  # noqa: E402
from rasterio.enums import ColorInterp  # noqa: E402
from rasterio.features import rasterize  # noqa: E402
from rasterio.rpc import RPC  # noqa: E402
from rasterio.transform import Affine  # noqa: E402

PLACE = {"crs": CRS.from_epsg(32633), "transform": Affine(0.5, 0.1, 400000.25, -0.1, -0.5, 5000000.75)}
pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


@pytest.fixture(scope="module")
def segmenter():
    return uz.Segmenter(small_model(uz.Recipe(scale=(96, 64)), num_classes=5))


def noise(height, width, seed=0):
    coarse = np.random.default_rng(seed).integers(0, 256, (-(-height // 8), -(-width // 8), 3), dtype=np.uint8)
    return coarse.repeat(8, 0).repeat(8, 1)[:height, :width]


def write(path, pixels, *, mask=None, **profile):
    """(H, W, bands) as a GeoTIFF."""
    pixels = np.atleast_3d(pixels)
    height, width, count = pixels.shape
    options = {"driver": "GTiff", "height": height, "width": width, "count": count, "dtype": pixels.dtype} | profile
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "w", **options) as out:
        out.write(pixels.transpose(2, 0, 1))
        if mask is not None:
            out.write_mask(mask)
    return path


def read(path):
    with rasterio.open(path) as found:
        return found.read(1)


def tiled(segmenter, tile, stride=None):
    """The segmenter in plain slide mode with those windows."""
    stride = stride or (tile * 2 // 3,) * 2
    return uz.Segmenter(segmenter.model, own_size=True, mode="slide", crop=(tile, tile), stride=stride, flip=segmenter.flip)


@pytest.mark.parametrize("size", ((64, 64), (40, 64), (30, 20)))
def test_a_raster_of_one_tile_has_the_labels_of_predict(segmenter, tmp_path, size):
    source = write(tmp_path / "a.tif", noise(*size), **PLACE)
    areas = uz.segment_raster(segmenter, source, tmp_path / "out.tif", tile=64)
    plain = segmenter(source)
    np.testing.assert_array_equal(read(tmp_path / "out.tif"), plain.labels)
    assert areas == pytest.approx(plain.areas())


def test_a_backbone_of_one_size_says_which_tile_to_take(tmp_path, capsys):
    beit = Fixture("family/upernet_beit-base_8x2_640x640_160k_ade20k").checkpoint
    (tmp_path / "a.tif").write_bytes(write(tmp_path / "b.tif", noise(200, 200), **PLACE).read_bytes())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        side = uz.load_checkpoint(beit).config.backbone.input_size[0]
        command = ["predict", str(beit), str(tmp_path / "a.tif"), "--out", str(tmp_path / "out"), "--tile"]
        assert main([*command, "100"]) == 1 and f"windows of one size alone: --tile {side}." in capsys.readouterr().err
        assert main([*command, str(side)]) == 0
    assert read(tmp_path / "out" / "a_labels.tif").shape == (200, 200)


@given(
    size=st.tuples(st.integers(1, 150), st.integers(65, 150)),
    stride=st.none() | st.tuples(st.integers(20, 64), st.integers(20, 64)),
    flip=st.booleans(),
    seed=st.integers(0, 9),
)
@settings(max_examples=8)
def test_tiles_have_the_labels_of_slide_mode(segmenter, tmp_path_factory, size, stride, flip, seed):
    folder = tmp_path_factory.mktemp("tiles")
    picture = noise(*size, seed)
    flipped = uz.Segmenter(segmenter.model, flip=flip)
    uz.segment_raster(flipped, write(folder / "a.tif", picture), folder / "out.tif", tile=64, stride=stride)
    np.testing.assert_array_equal(read(folder / "out.tif"), tiled(flipped, 64, stride)(picture).labels)


def test_where_it_lies_and_what_it_says_of_itself(segmenter, tmp_path):
    source = write(tmp_path / "a.tif", noise(200, 300), **PLACE)
    with rasterio.open(source, "r+") as out:
        out.build_overviews([2, 4])
        out.update_tags(AREA_OR_POINT="Point")
    uz.segment_raster(segmenter, source, tmp_path / "new" / "out.tif", tile=128)
    with rasterio.open(source) as before, rasterio.open(tmp_path / "new" / "out.tif") as found:
        assert found.crs == before.crs == PLACE["crs"] and found.transform == before.transform == PLACE["transform"]
        assert found.shape == (200, 300) and found.dtypes == ("uint8",) and found.nodata == 255
        assert found.overviews(1) == [2, 4] and found.tags()["AREA_OR_POINT"] == "Point"
        assert found.profile["tiled"] and found.profile["compress"] == "deflate" and found.colorinterp == (ColorInterp.palette,)
        label_set = segmenter.model.label_set
        colors = found.colormap(1)
        assert [colors[id][:3] for id in range(5)] == list(label_set.palette) and colors[255] == (0, 0, 0, 0)
        tags = found.tags(1)
        assert [tags[f"class_{id}"] for id in range(5)] == list(label_set.classes)
        half = found.read(1, out_shape=(100, 150))
    with rasterio.open(tmp_path / "new" / "out.tif", overview_level=0) as overview:  # colors of classes are not averaged
        assert overview.shape == (100, 150) and np.array_equal(overview.read(1), half) and half.max() < 5
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["out.tif"]
    with Image.open(tmp_path / "new" / "out.tif") as image:  # other programs read it too
        assert image.mode == "P" and np.array_equal(np.array(image), read(tmp_path / "new" / "out.tif"))


def test_control_points_and_rpcs_are_kept(segmenter, tmp_path):
    points = [GroundControlPoint(row, column, 500000.0 + column, 4000000.0 - row) for row, column in ((0, 0), (0, 90), (70, 0), (70, 90))]
    source = write(tmp_path / "a.tif", noise(80, 100), gcps=points, crs=PLACE["crs"])
    uz.segment_raster(segmenter, source, tmp_path / "out.tif", tile=64)
    with rasterio.open(tmp_path / "out.tif") as found:
        kept, crs = found.gcps
    assert crs == PLACE["crs"] and [(p.row, p.col, p.x, p.y) for p in kept] == [(p.row, p.col, p.x, p.y) for p in points]
    with pytest.raises(errors.ImageError, match=r"a\.tif: has control points and no transform"):
        uz.segment_raster(segmenter, source, tmp_path / "b.tif", tile=64, geojson=tmp_path / "b.geojson")
    unit = [1.0] + [0.0] * 19
    rpcs = RPC(0.0, 1.0, 45.0, 1.0, unit, unit, 50.0, 50.0, 10.0, 1.0, unit, unit, 50.0, 50.0, None, None)
    source = write(tmp_path / "c.tif", noise(80, 100), rpcs=rpcs)
    uz.segment_raster(segmenter, source, tmp_path / "d.tif", tile=64)
    with rasterio.open(source) as before, rasterio.open(tmp_path / "d.tif") as found:
        assert found.rpcs == before.rpcs and found.rpcs.lat_off == 45.0
    assert not list(tmp_path.glob("*.xml"))


@pytest.mark.parametrize("kind", ("nodata", "alpha", "mask"))
def test_masked_pixels_are_void_and_change_nothing_else(segmenter, tmp_path, kind):
    picture = noise(150, 170).clip(1)
    valid = np.ones((150, 170), bool)
    valid[:100, :80] = False
    valid[120:, 160:] = False
    picture[~valid] = 0
    if kind == "nodata":
        source = write(tmp_path / "a.tif", picture, nodata=0)
    elif kind == "alpha":
        source = write(tmp_path / "a.tif", np.dstack([picture, valid * np.uint8(255)]), photometric="RGB", alpha="YES")
    else:
        source = write(tmp_path / "a.tif", picture, mask=valid)
    areas = uz.segment_raster(segmenter, source, tmp_path / "out.tif", tile=64)
    found, expected = read(tmp_path / "out.tif"), tiled(segmenter, 64)(picture).labels
    np.testing.assert_array_equal(found, np.where(valid, expected, 255))
    counts = np.bincount(expected[valid], minlength=5)
    assert areas == pytest.approx({f"class {id}": count / valid.sum() for id, count in enumerate(counts) if count})
    # one tile, too
    uz.segment_raster(segmenter, source, tmp_path / "out.tif", tile=200)
    np.testing.assert_array_equal(read(tmp_path / "out.tif"), np.where(valid, segmenter(picture).labels, 255))


def test_a_window_that_is_masked_is_not_run(segmenter, tmp_path, monkeypatch):
    picture = noise(64, 192)
    picture[:, 64:] = 0
    source = write(tmp_path / "a.tif", picture, nodata=0)
    ran, network = [], uz.Segmenter._network
    monkeypatch.setattr(uz.Segmenter, "_network", lambda self, x: ran.append(len(x)) or network(self, x))
    uz.segment_raster(segmenter, source, tmp_path / "out.tif", tile=64, stride=(64, 64))
    assert sum(ran) == 1 and (read(tmp_path / "out.tif")[:, 64:] == 255).all()


def test_bands_colors_and_values(segmenter, tmp_path):
    picture = noise(70, 100)

    def labels(pixels, profile=None, **options):
        uz.segment_raster(segmenter, write(tmp_path / "a.tif", pixels, **profile or {}), tmp_path / "out.tif", tile=64, **options)
        return read(tmp_path / "out.tif")

    expected = tiled(segmenter, 64)(picture).labels
    many = np.dstack([picture[..., 1] // 2, picture[..., ::-1]])
    np.testing.assert_array_equal(labels(many, bands=(4, 3, 2)), expected)
    np.testing.assert_array_equal(labels(many, bands=(3,)), tiled(segmenter, 64)(picture[..., [1, 1, 1]]).labels)
    np.testing.assert_array_equal(labels(picture[..., 1]), tiled(segmenter, 64)(picture[..., [1, 1, 1]]).labels)
    wide = picture.astype(np.uint16) * 10 + 100
    np.testing.assert_array_equal(labels(wide, value_range=(100, 2650)), expected)
    floats = picture.astype(np.float32) / 255
    floats[0, 0] = np.nan
    dark = picture.copy()
    dark[0, 0] = 0
    void = tiled(segmenter, 64)(dark).labels.copy()
    void[0, 0] = 255  # NaN in every band is no value, though the file names no nodata
    np.testing.assert_array_equal(labels(floats, value_range=(0, 1)), void)
    named = write(tmp_path / "named.tif", many, photometric="MINISBLACK")
    with rasterio.open(named, "r+") as out:
        out.colorinterp = [ColorInterp.undefined, ColorInterp.blue, ColorInterp.green, ColorInterp.red]
    uz.segment_raster(segmenter, named, tmp_path / "out.tif", tile=64)
    np.testing.assert_array_equal(read(tmp_path / "out.tif"), expected)
    with pytest.raises(errors.ImageError, match=r"a\.tif: its values are uint16, and models take 0 to 255\. .*value_range=\(LOW, HIGH\)"):
        labels(wide)
    with pytest.raises(errors.ImageError, match=r"a\.tif: has 2 bands\. .*bands="):
        labels(picture[..., :2], {"photometric": "MINISBLACK"})
    for bands in ((1, 2), (0, 1, 2), (1, 2, 9), (1.5,)):
        with pytest.raises(errors.ArgumentError, match=r"three numbers from 1 .*a\.tif has 3 bands, found"):
            labels(picture, bands=bands)
    for value_range in ((1,), (2, 1), (0, float("nan")), "ab"):
        with pytest.raises(errors.ArgumentError, match="two numbers, the lower first"):
            labels(picture, value_range=value_range)
    # gray of which 0 is white, and a color table, as plain predict reads them
    white = write(tmp_path / "white.tif", picture[..., :1], photometric="MINISWHITE")
    uz.segment_raster(segmenter, white, tmp_path / "out.tif", tile=64)
    np.testing.assert_array_equal(read(tmp_path / "out.tif"), tiled(segmenter, 64)(white).labels)
    indexed = Image.fromarray(picture).quantize(16)
    indexed.save(tmp_path / "p.tif")
    uz.segment_raster(segmenter, tmp_path / "p.tif", tmp_path / "out.tif", tile=64)
    np.testing.assert_array_equal(read(tmp_path / "out.tif"), tiled(segmenter, 64)(tmp_path / "p.tif").labels)


def test_polygons_are_the_labels(segmenter, tmp_path):
    picture = noise(100, 130).clip(1)
    picture[40:60, 40:70] = 0
    source = write(tmp_path / "a.tif", picture, nodata=0, **PLACE)
    uz.segment_raster(segmenter, source, tmp_path / "out.tif", tile=64, geojson=tmp_path / "out.geojson")
    data = json.loads((tmp_path / "out.geojson").read_text())
    assert data["type"] == "FeatureCollection" and data["crs"]["properties"]["name"] == "urn:ogc:def:crs:EPSG::32633"
    shapes = [(feature["geometry"], feature["properties"]["id"]) for feature in data["features"]]
    assert {f["properties"]["class"] for f in data["features"]} == {f"class {id}" for _, id in shapes}
    found = rasterize(shapes, (100, 130), fill=255, transform=PLACE["transform"], dtype="uint8")
    np.testing.assert_array_equal(found, read(tmp_path / "out.tif"))


@pytest.mark.parametrize("error", (KeyboardInterrupt(), RuntimeError("odd"), errors.ImageError("cut off")))
def test_a_file_appears_whole_or_not_at_all(segmenter, tmp_path, monkeypatch, error):
    source = write(tmp_path / "a.tif", noise(150, 100))
    (tmp_path / "out").mkdir()
    calls, network = [], uz.Segmenter._network

    def fails_late(self, x):
        calls.append(x)
        if len(calls) == 6:
            raise error
        return network(self, x)

    monkeypatch.setattr(uz.Segmenter, "_network", fails_late)
    with pytest.raises(type(error)):
        uz.segment_raster(segmenter, source, tmp_path / "out" / "a.tif", tile=64, geojson=tmp_path / "out" / "a.geojson")
    assert not list((tmp_path / "out").iterdir())


def test_a_disk_without_space_is_refused_first(segmenter, tmp_path, monkeypatch):
    source = write(tmp_path / "a.tif", noise(100, 100))
    monkeypatch.setattr(uz.Segmenter, "_network", lambda *_: pytest.fail("the network ran"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=9999))
    with pytest.raises(errors.WriteError, match=r"out\.tif: labels of 100x100 pixels may take 13 kB, and 10 kB are free on the disk\."):
        uz.segment_raster(segmenter, source, tmp_path / "deep" / "out.tif", tile=64)


FULL = """
import resource, signal, sys
import upernet_zoo as uz
from support.fixture import Fixture
from support.models import small_model
segmenter = uz.Segmenter(small_model())
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
try:
    uz.segment_raster(segmenter, sys.argv[1], sys.argv[2], tile=64)
except uz.errors.WriteError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits of POSIX")
def test_a_disk_that_fills_up_says_so_and_leaves_nothing(tmp_path):
    source = write(tmp_path / "a.tif", noise(700, 600))
    (tmp_path / "out").mkdir()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    line = [sys.executable, "-c", FULL, str(source), str(tmp_path / "out" / "a.tif")]
    ran = subprocess.run(line, capture_output=True, text=True, env=environment)
    assert "a.tif: the disk or the quota is full" in ran.stdout, ran
    assert not list((tmp_path / "out").iterdir())


def test_what_is_no_raster_is_refused_by_name(segmenter, tmp_path, monkeypatch):
    (tmp_path / "a.tif").write_bytes(b"II*\0 and no more")
    with pytest.raises(errors.ImageError, match=r"a\.tif: cannot be read as a raster"):
        uz.segment_raster(segmenter, tmp_path / "a.tif", tmp_path / "out.tif")
    with pytest.raises(errors.MissingFileError, match=r"No raster at .*none\.tif"):
        uz.segment_raster(segmenter, tmp_path / "none.tif", tmp_path / "out.tif")
    with pytest.raises(errors.ImageError, match="is a URL"):
        uz.segment_raster(segmenter, "https://example.org/a.tif", tmp_path / "out.tif")
    source = write(tmp_path / "b.tif", noise(80, 80))
    data = source.read_bytes()
    source.write_bytes(data[: len(data) // 2])
    with pytest.raises(errors.ImageError, match=r"b\.tif: cannot be read as a raster"):
        uz.segment_raster(segmenter, source, tmp_path / "out.tif", tile=64)
    assert not (tmp_path / "out.tif").exists()
    source = write(tmp_path / "c.tif", noise(80, 80))
    for options, message in (
        ({"tile": 0}, "tile= is the side of the windows"),
        ({"tile": 64, "stride": (80, 80)}, "stride .* is larger than crop"),
    ):
        with pytest.raises(errors.ArgumentError, match=message):
            uz.segment_raster(segmenter, source, tmp_path / "out.tif", **options)
    with pytest.raises(errors.ArgumentError, match=r"ends in \.tif"):
        uz.segment_raster(segmenter, source, tmp_path / "out.png")
    with pytest.raises(errors.ArgumentError, match="at its own size: leave out scales="):
        uz.segment_raster(uz.Segmenter(segmenter.model, scales=(1.0, 0.5)), source, tmp_path / "out.tif", tile=64)
    (tmp_path / "out.tif").write_bytes(source.read_bytes())
    with pytest.raises(errors.ExistingFileError, match=r"out\.tif is there already"):
        uz.segment_raster(segmenter, source, tmp_path / "out.tif", tile=64)
    uz.segment_raster(segmenter, source, tmp_path / "out.tif", tile=64, overwrite=True)
    uz.segment_raster(segmenter, source, tmp_path / "out.tif", tile=64)  # its own is replaced
    monkeypatch.setitem(sys.modules, "rasterio", None)
    with pytest.raises(errors.MissingPackageError, match="Rasters need rasterio .*upernet-zoo"):
        raster.segment_raster(segmenter, source, tmp_path / "out.tif")


def test_more_than_255_classes_are_16_bits(tmp_path):
    many = uz.Segmenter(small_model(num_classes=300))
    picture = noise(80, 80)
    uz.segment_raster(many, write(tmp_path / "a.tif", picture), tmp_path / "out.tif", tile=64)
    with rasterio.open(tmp_path / "out.tif") as found:
        assert found.dtypes == ("uint16",) and found.nodata == 65535
        np.testing.assert_array_equal(found.read(1), tiled(many, 64)(picture).labels)


def test_the_command(tmp_path, capsys):
    model = small_model(dataclasses.replace(uz.Recipe(scale=(96, 64))))
    model.save_pretrained(tmp_path / "model")
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    write(pictures / "a.tif", noise(80, 100), **PLACE)
    write(pictures / "b.tif", noise(80, 100).astype(np.uint16))
    line = ["predict", f"local-dir:{tmp_path / 'model'}", str(pictures), "--out", str(pictures), "--tile", "64", "--stride", "50x40"]
    for _ in range(2):  # the second time what the first wrote is no raster to segment
        assert main([*line, "--geojson"]) == 1
        ran = capsys.readouterr()
        assert "1 of 2 pictures segmented" in ran.out and "b.tif: its values are uint16" in ran.err and "--value-range LOW,HIGH" in ran.err
    assert sorted(p.name for p in pictures.iterdir()) == ["a.tif", "a_labels.tif", "a_polygons.geojson", "b.tif"]
    expected = tiled(uz.Segmenter(model), 64, (50, 40))(noise(80, 100)).labels
    np.testing.assert_array_equal(read(pictures / "a_labels.tif"), expected)
    alone = ["predict", f"local-dir:{tmp_path / 'model'}", str(pictures / "b.tif"), "--out", str(tmp_path / "out")]
    assert main([*alone, "--tile", "64", "--value-range", "0,255", "--bands", "1,2,3"]) == 0
    assert "b_labels.tif" in capsys.readouterr().out
    for options, message in (
        (["--geojson"], "--geojson is for rasters"),
        (["--tile", "64", "--mode", "slide"], "Leave out --mode and --crop"),
    ):
        assert main([*alone, *options]) != 0
        assert message in capsys.readouterr().err


def test_a_tiff_that_is_too_large_for_a_picture_names_the_way(segmenter, tmp_path, monkeypatch):
    source = write(tmp_path / "a.tif", noise(80, 100))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(errors.ImageError, match=r"a\.tif: .* In tiles it is segmented by upernet_zoo\.segment_raster\."):
        segmenter(source)
