"""Pictures that are written: marked as the library's own, and never over someone else's. Without torch."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from upernet_zoo import labels
from upernet_zoo.errors import ArgumentError, ExistingFileError
from upernet_zoo.evaluation.masks import load_mask
from upernet_zoo.images.save import is_own, save_labels, save_picture

IDS = np.arange(12, dtype=np.uint8).reshape(3, 4)
PALETTE = labels.voc_colors(12)


@pytest.mark.parametrize("name", ["a.png", "a.PNG", "a.jpg", "a.jpeg"])
def test_what_was_written_here_may_be_replaced_and_nothing_else(tmp_path, name):
    path, picture = tmp_path / name, Image.new("RGB", (8, 8), "red")
    for content in (b"", b"hand-made ground truth"):
        path.write_bytes(content)
        with pytest.raises(ExistingFileError, match=f"{name} is there already and is not marked as written by upernet_zoo.*overwrite=True"):
            save_picture(picture, path)
        assert path.read_bytes() == content and not is_own(path)
    Image.new("RGB", (2, 2)).save(path)
    with pytest.raises(FileExistsError):
        save_picture(picture, path)
    save_picture(picture, path, overwrite=True)
    assert is_own(path)
    save_picture(picture.resize((4, 4)), path)
    with Image.open(path) as image:
        assert image.size == (4, 4)


def test_a_format_without_a_mark_is_never_replaced_unasked(tmp_path):
    for _ in range(2):
        save_picture(Image.new("RGB", (8, 8)), tmp_path / "a.bmp", overwrite=True)
    with pytest.raises(ExistingFileError):
        save_picture(Image.new("RGB", (8, 8)), tmp_path / "a.bmp")


def test_a_folder_in_the_place_of_a_file_is_refused(tmp_path):
    (tmp_path / "a.png").mkdir()
    with pytest.raises(ExistingFileError):
        save_labels(IDS, PALETTE, tmp_path / "a.png")


def test_a_label_map_says_that_it_holds_train_ids(tmp_path):
    save_labels(IDS, PALETTE, tmp_path / "a.png")
    mask = load_mask(tmp_path / "a.png")
    assert mask.marked and np.array_equal(mask.values, IDS)
    save_labels(IDS.astype(np.int16) + 500, labels.voc_colors(600), tmp_path / "b.png")
    mask = load_mask(tmp_path / "b.png")
    assert mask.marked and np.array_equal(mask.values, IDS + np.int16(500))
    with pytest.raises(ArgumentError, match="saved as .png"):
        save_labels(IDS, PALETTE, tmp_path / "a.jpg")


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None  # an import of it fails
from pathlib import Path
import numpy as np
from PIL import Image
from upernet_zoo import labels
from upernet_zoo.images.preprocess import fit, load_image, resize_uint8
from upernet_zoo.images.save import save_labels, save_picture
image = load_image(sys.argv[1])
small = resize_uint8(image, fit(image.shape[:2], (64, 32)))
save_labels(small[..., 0] % 19, labels.get("cityscapes").palette, Path(sys.argv[2]))
try:
    from upernet_zoo.images.preprocess import prepare
    from upernet_zoo.config import Recipe
    prepare(image, Recipe((64, 32)))
except ImportError:
    print("prepare makes a tensor")
"""


def test_pictures_are_read_resized_and_written_without_torch(tmp_path):
    Image.fromarray(np.zeros((60, 90, 3), np.uint8)).save(tmp_path / "in.png")
    arguments = [sys.executable, "-c", WITHOUT_TORCH, str(tmp_path / "in.png"), str(tmp_path / "out.png")]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert done.stdout == "prepare makes a tensor\n"
    with Image.open(tmp_path / "out.png") as image:
        assert image.size == (48, 32) and image.mode == "P"
