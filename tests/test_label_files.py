"""classes.txt, .json and .yaml: ids, names, colors and what is void, as people write them."""

import json

import pytest

from upernet_zoo import label_files, labels
from upernet_zoo.errors import ArgumentError, ConfigError


def read(tmp_path, content, name="classes.txt"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return label_files.read_classes(path)


@pytest.mark.parametrize(
    "content",
    [
        "road\nsky\n",
        "road\r\nsky",
        "road\nsky\n\n \n",
        b"\xef\xbb\xbfroad\r\nsky\r\n",
        "\ufeffroad\nsky".encode("utf-16-le"),
        "\ufeffroad\nsky".encode("utf-16-be"),
        "0 road\n1 sky",
        b"\xef\xbb\xbf0: road\n1: sky",
    ],
)
def test_names_alone_are_of_the_ids_0_1(tmp_path, content):
    found = read(tmp_path, content)
    assert found.classes == ("road", "sky") and found.dataset_ids == (0, 1) and found.void_ids == (255,)


@pytest.mark.parametrize("content", ["7 road\n23 night sky\n0 void", "7\troad\n23\tnight sky\n0\tVoid", "7,road\n23, night sky\n0,void"])
def test_an_id_and_a_name_in_each_line(tmp_path, content):
    found = read(tmp_path, content)
    assert found.classes == ("road", "night sky") and found.dataset_ids == (7, 23)
    assert found.void_ids == (0, 255) and found.void_id == 0 and found.ignore_index == 255


def test_0_is_no_label(tmp_path):
    """mmsegmentation's reduce_zero_label."""
    for content, name in (
        ("void\ncat\ndog", "classes.txt"),
        ("0 void\n1 cat\n2 dog", "classes.txt"),
        ('{"classes": ["cat", "dog"], "void": 0}', "classes.json"),
        ("classes: [{name: nothing, id: 0, void: true}, {name: cat, id: 1}, {name: dog, id: 2}]", "classes.yaml"),
        ("- {name: cat, id: 1}\n- {name: dog, id: 2}\n- {name: nothing, id: 0, void: true}", "classes.yml"),
    ):
        found = read(tmp_path, content, name)
        assert (found.classes, found.dataset_ids, found.void_ids, found.void_id) == (("cat", "dog"), (1, 2), (0, 255), 0), content


def test_masks_of_0_and_255(tmp_path):
    found = read(tmp_path, "0 background\n255 object")
    assert found.dataset_ids == (0, 255) and 255 not in found.void_ids and found.ignore_index == 255


def test_colors(tmp_path):
    entries = [{"name": "road", "id": 7, "color": [1, 2, 3]}, {"name": "sky", "id": 8, "color": [4, 5, 6]}]
    entries += [{"name": "frame", "void": True, "color": [9, 9, 9]}]
    found = read(tmp_path, json.dumps({"classes": entries, "void": [3]}), "classes.json")
    assert found.palette == ((1, 2, 3), (4, 5, 6)) and found.void_colors == ((9, 9, 9), (0, 0, 0)) and found.void_ids == (3, 255)
    assert labels.LabelSet.from_dict(found.to_dict()) == found


def test_a_name_may_begin_with_a_number(tmp_path):
    assert read(tmp_path, "road\n2 wheeler").classes == ("road", "2 wheeler")


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("classes.txt", "road\n\nsky", "classes.txt: line 2 is blank"),
        ("classes.txt", "\nroad\nsky", "line 1 is blank"),
        ("classes.txt", "7 road\nsky", r"line 2 \('sky'\) has no id and name, as line 1"),
        ("classes.txt", "7 road\n8", r"line 2 \('8'\) has no id and name"),
        ("classes.txt", "road\nsky\nroad", "road more than once"),
        ("classes.txt", b"stra\xdfe", "cannot be read as UTF-8"),
        ("classes.json", "{", "cannot be read"),
        ("classes.json", "{}", "no list of classes"),
        ("classes.json", '{"classes": ["a"], "color": 1}', "unknown key 'color'"),
        ("classes.json", '[{"name": "a", "ID": 1}]', "entry 1 is"),
        ("classes.json", '[{"name": "a", "id": 1}, {"name": "b"}]', "'b' has no id, and other classes have one"),
        ("classes.json", '[{"name": "a", "id": "1"}]', "an id is '1', and must be a whole number"),
        ("classes.json", '[{"name": "a"}, {"name": "b", "void": true}]', "entry 2 is void and has neither id nor color"),
        ("classes.yaml", "[a, no]", r"entry 2 is False"),
        ("classes.yaml", "[{name: a}, {name: no}]", r"class 2 has no name \(found False\).* in quotes"),
        ("classes.yaml", "a: [b", "cannot be read"),
        ("classes.yaml", "[a, ' ']", "class 2 has no name"),
    ],
)
def test_what_says_something_else_is_refused(tmp_path, name, content, message):
    with pytest.raises(ArgumentError, match=message):
        read(tmp_path, content, name)


@pytest.mark.parametrize(
    "content, message", [("", "classes must be a list"), ("1 a\n1 b", "id 1 more than once"), ("70000 a", "dataset_ids")]
)
def test_lists_that_are_no_label_set_are_refused(tmp_path, content, message):
    with pytest.raises(ConfigError, match=f"classes.txt: .*{message}"):
        read(tmp_path, content)


def test_the_order_of_a_model_s_classes(tmp_path):
    def ordered(content, *classes):
        read(tmp_path, content)
        found = label_files.in_order_of(labels.LabelSet("model", classes), tmp_path / "classes.txt")
        return found.classes, found.dataset_ids

    assert ordered("5 sky\n6 Road\n7 car", "road ", "car", "sky") == (("road ", "car", "sky"), (6, 7, 5))
    assert ordered("5 sky\n6 Sky", "Sky", "sky") == (("Sky", "sky"), (6, 5))  # two classes, by their case
    assert ordered("5 sky\n6 road", "class 0", "class 1") == (("sky", "road"), (5, 6))
    for content in ("5 sky\n6 road", "5 sky\n6 road\n7 car\n8 bus", "5 sky\n6 road\n7 bus"):
        with pytest.raises(ConfigError, match="Name the model's classes there"):
            ordered(content, "road", "car", "sky")


def test_long_lists_are_read_at_once(tmp_path):
    assert len(read(tmp_path, "\n".join(f"{i} name {i}" for i in range(32768)))) == 32768
    with pytest.raises(ArgumentError, match="larger than 4 MiB"):
        read(tmp_path, "x" * (5 << 20))


def test_which_file_is_found(tmp_path):
    (tmp_path / "val").mkdir()
    assert label_files.find(tmp_path / "val") is None
    (tmp_path / "classes.yaml").write_text("[a, b]")
    assert label_files.find(tmp_path) == label_files.find(tmp_path / "val") == tmp_path / "classes.yaml"
    (tmp_path / "Classes.TXT").write_text("a\nb")
    with pytest.raises(ArgumentError, match="Classes.TXT, classes.yaml all say what the ids mean. Keep one"):
        label_files.find(tmp_path)
