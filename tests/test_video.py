"""Videos: frames as FFmpeg gives them, labels as of single pictures, broken frames said."""

import csv
import threading
import types

import numpy as np
import pytest

import upernet_zoo as uz
from upernet_zoo import video
from upernet_zoo.images import frames
from upernet_zoo.video import is_own_table, is_own_video, label_video

av = pytest.importorskip("av")
from support.films import decoded, spoil, write_video  # noqa: E402


@pytest.fixture(scope="module")
def segmenter():
    return uz.Segmenter("demo")


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("film") / "film.mp4")


def test_labels_are_those_of_single_pictures(segmenter, film):
    found, pictures = list(segmenter.video(film)), decoded(film)
    assert [frame.number for frame in found] == list(range(8)) == list(range(len(pictures)))
    assert [frame.seconds for frame in found] == pytest.approx([number / 10 for number in range(8)])
    for frame, pixels in zip(found, pictures, strict=True):
        np.testing.assert_array_equal(frame.segmentation.labels, segmenter(pixels).labels)
        np.testing.assert_array_equal(frame.segmentation.image, pixels)


def test_every_third_frame(segmenter, film):
    found, pictures = list(segmenter.video(film, every=3)), decoded(film)
    assert [frame.number for frame in found] == [0, 3, 6]
    for frame in found:
        np.testing.assert_array_equal(frame.segmentation.image, pictures[frame.number])


@pytest.mark.parametrize("turn", [1, 2, 3])
def test_frames_are_upright(tmp_path, monkeypatch, turn):
    """As the display matrix says, counterclockwise in degrees, as ffplay shows them."""
    film = write_video(tmp_path / "film.mp4", count=1)
    pixels = decoded(film)[0]
    frame = types.SimpleNamespace(rotation=[0, 90, 180, -90][turn], to_ndarray=lambda format: pixels)
    np.testing.assert_array_equal(frames._pixels(frame), np.rot90(pixels, turn))


def test_a_broken_frame_is_said_and_the_next_ones_follow(segmenter, tmp_path):
    film = write_video(tmp_path / "film.mp4")
    spoil(film, 2)
    found = list(segmenter.video(film))
    assert len(found) == 8
    broken = [frame for frame in found if frame.segmentation is None]
    assert len(broken) == 1 and broken[0].error.startswith("the frame is damaged")
    assert all(frame.error is None for frame in found if frame.segmentation is not None)


def test_a_labeled_video_and_a_table(segmenter, film, tmp_path):
    out, table = tmp_path / "out" / "film.mp4", tmp_path / "out" / "film.csv"
    report = label_video(segmenter, film, out, table, every=2, alpha=1.0, show=False)
    assert (report.video, report.table, report.frames, report.failures) == (out, table, 4, {})
    pictures = decoded(out)
    assert len(pictures) == 4 and pictures[0].shape == (96, 128, 3)
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["frame"] for row in rows] == ["0", "2", "4", "6"]
    palette = np.array(segmenter.model.label_set.palette)
    for row, picture, frame in zip(rows, pictures, segmenter.video(film, every=2), strict=True):
        areas = {name.strip(): area for name, area in frame.segmentation.areas().items()}
        assert {name: float(row[name]) for name in areas} == pytest.approx(areas, abs=1e-6)
        near = np.abs(picture.astype(int) - palette[frame.segmentation.labels]).mean()
        assert near < 12, "H.264 changes the labels' colors a little, and not more"
    with av.open(str(out)) as container:
        assert float(container.streams.video[0].duration * container.streams.video[0].time_base) == pytest.approx(0.8, abs=0.11)


@pytest.mark.parametrize("busy", ["segmenting", "drawing"])
def test_a_camera_is_recorded_until_it_is_ended(segmenter, film, tmp_path, monkeypatch, busy):
    """Whatever Ctrl+C meets at the third frame; of a file nothing is written then."""
    owner, name = (type(segmenter), "_segment") if busy == "segmenting" else (video, "_drawn")
    real, seen = getattr(owner, name), []

    def interrupted(*arguments):
        seen.append(arguments)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(owner, name, interrupted)
    out, table = tmp_path / "out.mp4", tmp_path / "areas.csv"
    with pytest.raises(KeyboardInterrupt):
        label_video(segmenter, film, out, table, show=False)
    assert not list(tmp_path.iterdir())
    opened = frames.Video.__init__

    def as_camera(self, *arguments):
        opened(self, *arguments)
        self.is_camera = True

    monkeypatch.setattr(frames.Video, "__init__", as_camera)
    seen.clear()
    report = label_video(segmenter, film, out, table, show=False)
    rows = len(table.read_text().splitlines()) - 1
    assert len(decoded(out)) == 2 and report.frames == rows == (2 if busy == "segmenting" else 3)


def test_the_next_frame_is_decoded_while_one_is_segmented(segmenter, film):
    given, real = [], frames.Video._decoded

    class Watched(frames.Video):
        def _decoded(self):
            for one in real(self):
                given.append(threading.current_thread() is threading.main_thread())
                yield one

    ahead = segmenter.frames(Watched(film))
    next(ahead)
    ahead.close()  # early: the file is closed after the thread has ended
    assert len(given) in (2, 3) and not any(given)


def test_odd_sizes_are_made_even(segmenter, tmp_path):
    with av.open(str(tmp_path / "odd.avi"), "w") as container:
        stream = container.add_stream("ffv1", rate=5)
        stream.width, stream.height, stream.pix_fmt = 61, 41, "bgr0"
        for packet in [*stream.encode(av.VideoFrame.from_ndarray(np.zeros((41, 61, 3), np.uint8), format="rgb24")), *stream.encode()]:
            container.mux(packet)
    label_video(segmenter, tmp_path / "odd.avi", tmp_path / "out.mp4", tmp_path / "out.csv", show=False)
    assert decoded(tmp_path / "out.mp4")[0].shape == (42, 62, 3)


def test_what_is_replaced(segmenter, film, tmp_path):
    out, table = tmp_path / "film.mp4", tmp_path / "film.csv"
    for path in (out, table):
        path.write_text("mine")
        with pytest.raises(uz.errors.ExistingFileError, match=path.name):
            label_video(segmenter, film, out, table, show=False)
        assert path.read_text() == "mine"
        path.unlink()
    for _ in range(2):  # what was written here may be written again
        label_video(segmenter, film, out, table, every=8, show=False)
    assert is_own_video(out) and is_own_table(table) and not is_own_video(film)


def test_a_video_without_a_whole_frame_is_refused_and_nothing_is_written(segmenter, tmp_path):
    film = write_video(tmp_path / "film.mp4", count=1)
    spoil(film, 0)
    with pytest.raises(uz.errors.ImageError, match="no frame could be segmented"):
        label_video(segmenter, film, tmp_path / "out.mp4", tmp_path / "out.csv", show=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["film.mp4"]


def test_mistakes_are_told_at_once(segmenter, tmp_path, film):
    with pytest.raises(uz.errors.MissingFileError, match="No video at"):
        segmenter.video(tmp_path / "none.mp4")
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(uz.errors.ImageError, match=r"text\.mp4: cannot be opened as a video"):
        segmenter.video(tmp_path / "text.mp4")
    for every in (0, -1, True, 1.5):
        with pytest.raises(uz.errors.ArgumentError, match="every must be a whole number from 1"):
            segmenter.video(film, every)
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.rate = 44100
        for packet in [*stream.encode(sound), *stream.encode()]:
            container.mux(packet)
    with pytest.raises(uz.errors.ImageError, match="no pictures in this file"):
        segmenter.video(tmp_path / "sound.mp4")


def test_without_the_package(segmenter, film, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(uz.errors.MissingPackageError, match="video"):
        segmenter.video(film)
