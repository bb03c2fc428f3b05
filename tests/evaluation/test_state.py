"""The state of an evaluation: whatever else a file of that name holds is refused in the library's own words, and stays."""

import json
from types import SimpleNamespace

import pytest

from upernet_zoo import labels
from upernet_zoo.errors import StateError
from upernet_zoo.evaluation.state import State

RUN = {"model": "abc", "settings": {"flip": False}}
NAMES = ["a", "b"]
GOOD = {"run": RUN, "confusion": [[3, 0], [1, 2]], "pictures": {"a": 0.5}}


def read(path):
    state = State(RUN, SimpleNamespace(label_set=labels.generic(2)), path)
    state.read(NAMES, 1)
    return state


def test_what_was_counted_is_read_back(tmp_path):
    path = tmp_path / "state.json"
    path.write_text(json.dumps({**GOOD, "pictures": {"a": 0.5, "b": None}}))
    state = read(path)
    assert state.metrics.confusion.tolist() == GOOD["confusion"]
    assert state.pictures["a"] == 0.5 and state.pictures["b"] != state.pictures["b"]


CONTENTS = {
    "nothing": "",
    "no UTF-8": b"\xff\xfe",
    "a list": "[]",
    "a number": "3",
    "nested too deep": "[" * 100_000 + "]" * 100_000,
    "a dict nested too deep": '{"run":' * 100_000 + "1" + "}" * 100_000,
    "a matrix nested too deep": json.dumps({**GOOD, "confusion": 1}).replace("1", "[" * 100_000 + "]" * 100_000),
    **{
        f"{key}: {str(value)[:20]}": json.dumps({**GOOD, key: value})
        for key, values in {
            "run": ([], "abc", None, {}),
            "confusion": ([[1, 2]], [[1], [2, 3]], [[1.5, "a"], [1, 2]], [[-1, 0], [0, 0]], [[1 << 80, 0], [0, 0]], "abc", {}, 3),
            "pictures": ([], "abc", {"a": "0.5"}, {"a": []}, {"a": True}, {"a": 1.5}, {"a": float("nan")}, {"a": float("inf")}, {"c": 0.5}),
        }.items()
        for value in values
    },
}


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
def test_anything_else_is_refused_and_stays(content, tmp_path):
    path = tmp_path / "state.json"
    data = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(data)
    with pytest.raises(StateError) as caught:
        read(path)
    assert str(path) in str(caught.value) and "remove that file" in str(caught.value) and len(str(caught.value)) < 1000
    assert path.read_bytes() == data
