"""The state of a training run: read back as written, and refused in the library's own words whatever else is in the file."""

import json
import os

import pytest
import torch

from upernet_zoo.errors import StateError, UPerNetZooError
from upernet_zoo.training import state

RUN = {"settings": {"lr": 0.1}, "weights from": {}}
ROW = {"step": 2, "lr": 0.1, "loss": 1.5, "mIoU": None, "seconds": 0.5}


def parts(seed=0):
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(2, 1, 4, 4)).sum().backward()
    optimizer.step()
    return {"model": model, "optimizer": optimizer, "scaler": torch.amp.GradScaler("cpu", enabled=False)}


def written(folder, targets):
    progress = state.Progress(step=3, seconds=0.5, losses=[1.0], rows=[ROW], best_mIoU=0.5, best_step=2)
    state.write(folder, RUN, progress, {name: part.state_dict() for name, part in targets.items()})
    return progress


def test_what_is_written_is_read_back(tmp_path):
    assert state.read(tmp_path, RUN) is None
    first, second = parts(0), parts(1)
    progress = written(tmp_path, first)
    found, states = state.read(tmp_path, RUN)
    assert found == progress
    state.restore(tmp_path, second, states)
    for name in ("model", "optimizer"):
        a, b = (torch.utils._pytree.tree_leaves(part[name].state_dict()) for part in (first, second))
        assert all(torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in zip(a, b, strict=True))
    (tmp_path / state.STATE_NAME).write_bytes(b"")  # nothing is mapped from it any more
    assert torch.equal(states["model"]["0.weight"], first["model"][0].weight)


class Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


CHANGES = {
    "no run": lambda c: c.pop("run"),
    "a run that is no text": lambda c: c.update(run=[1]),
    "a run that is no dict": lambda c: c.update(run="[1]"),
    "a run that is no JSON": lambda c: c.update(run="{"),
    "a run nested too deep": lambda c: c.update(run="[" * 100_000 + "]" * 100_000),
    "another run nested deep": lambda c: c.update(run=json.dumps(RUN)[:-1] + ',"x":' + "[" * 900 + "]" * 900 + "}"),
    "no progress": lambda c: c.pop("progress"),
    "a list for progress": lambda c: c.update(progress=[1]),
    "another key": lambda c: c["progress"].update(x=1),
    "text for a step": lambda c: c["progress"].update(step="3"),
    "a step below zero": lambda c: c["progress"].update(step=-1),
    "a tensor for seconds": lambda c: c["progress"].update(seconds=torch.ones(1)),
    "text among losses": lambda c: c["progress"].update(losses=[1.0, "a"]),
    "rows without a column": lambda c: c["progress"].update(rows=[{"step": 1}]),
    "rows of text": lambda c: c["progress"].update(rows=["x"]),
    "a list for parts": lambda c: c.update(parts=[1]),
    "no model": lambda c: c["parts"].pop("model"),
    "a model of another shape": lambda c: c["parts"]["model"].update({"0.weight": torch.ones(1)}),
    "a model that is none": lambda c: c["parts"].update(model=3),
    "an optimizer without groups": lambda c: c["parts"].update(optimizer={"state": {}}),
    "an optimizer with text": lambda c: c["parts"]["optimizer"].update(param_groups="x"),
    "something to run": lambda c: c.update(x=Touch("canary")),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_damaged_state_is_refused(change, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    targets = parts()
    written(tmp_path, targets)
    path = tmp_path / state.STATE_NAME
    content = torch.load(path)
    change(content)
    torch.save(content, path)
    before = path.read_bytes()
    with pytest.raises(StateError) as caught:
        state.restore(tmp_path, targets, state.read(tmp_path, RUN)[1])
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "remove that file to start again" in message and "\n" not in message
    assert "weights_only" not in message and "torch.load" not in message
    assert path.read_bytes() == before and not (tmp_path / "canary").exists()


@pytest.mark.parametrize("content", (b"", b"PK\x03\x04", b"\x80\x02}.", b"<html>", b"\x00" * 1000, None), ids=repr)
def test_what_is_no_state_at_all_is_refused(content, tmp_path):
    path = tmp_path / state.STATE_NAME
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    with pytest.raises(StateError, match="not the state of a training run"):
        state.read(tmp_path, RUN)


def test_a_state_cut_anywhere_is_refused(tmp_path):
    written(tmp_path, parts())
    path = tmp_path / state.STATE_NAME
    raw = path.read_bytes()
    for length in range(1, len(raw), 97):
        path.write_bytes(raw[:length])
        with pytest.raises(UPerNetZooError, match="not the state of a training run"):
            state.read(tmp_path, RUN)
