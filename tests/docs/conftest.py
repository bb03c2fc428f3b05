import importlib.util
import shutil

import pytest
from PIL import Image
from support.fixture import ROOT

import upernet_zoo as uz
from upernet_zoo.demo import folder as demo_folder


@pytest.fixture(scope="session")
def things(tmp_path_factory):
    """A folder with what the snippets name: a picture, a checkpoint, one that needs its config, a data set."""
    place = tmp_path_factory.mktemp("things")
    demo_folder.write(place / "my_data", range(4))
    demo_folder.write(place / "scenes", range(1000, 1002), {name: (name,) for name in demo_folder.CITYSCAPES})
    (place / "scenes" / "classes.txt").write_text("\n".join(demo_folder.CITYSCAPES))
    (place / "my_data" / "classes.txt").write_text("\n".join(demo_folder.MERGED))
    shutil.copy(next((place / "my_data" / "images").iterdir()), place / "picture.png")
    Image.open(place / "picture.png").convert("RGB").save(place / "street.jpg")
    shutil.copy(next((ROOT / "upernet_zoo" / "demo").glob("*.pth")), place / "my_upernet.pth")
    uz.interop.mmsegmentation.to_mmsegmentation(uz.create_model("demo"), place / "bare.pth")
    if importlib.util.find_spec("av"):
        from support.films import write_video

        write_video(place / "clip.mp4")
    (place / "configs").mkdir()
    (place / "bare.py").rename(place / "configs" / "my_upernet.py")
    return place
