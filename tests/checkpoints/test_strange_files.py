"""Whatever a stranger's file says: the library's own error, in a moment, and nothing large is allocated."""

import json
import struct
import time

import pytest
import torch
from safetensors.torch import save_file
from support.fixture import FIXTURES

import upernet_zoo as uz
from upernet_zoo import memory
from upernet_zoo.errors import ConfigError, NotEnoughMemoryError, UPerNetZooError

SOURCE = FIXTURES / "training" / "v0_resnet18_ema" / "checkpoint.pth"


@pytest.fixture(scope="module")
def model():
    return uz.load_checkpoint(SOURCE)


@pytest.fixture
def folder(model, tmp_path):
    return model.save_pretrained(tmp_path / "saved")


def refused(function, owner):
    """The message of the error that a call raises, in less than two seconds."""
    start = time.process_time()
    with pytest.raises(UPerNetZooError) as caught:
        function()
    assert time.process_time() - start < 2
    message = str(caught.value)
    assert str(owner) in message and len(message) < 2000 and "weights_only" not in message
    return message


def with_description(path, text, target):
    """A copy of a safetensors file with another description in its header."""
    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + length])
    header["__metadata__"]["upernet_zoo"] = text
    head = json.dumps(header).encode()
    target.write_bytes(struct.pack("<Q", len(head)) + head + raw[8 + length :])
    return target


DEEP = ("[" * 100_000 + "]" * 100_000, '{"architecture":' * 100_000 + "1" + "}" * 100_000)


@pytest.mark.parametrize("text", (*DEEP, "", "{", "3", "[]", '"architecture"'), ids=lambda t: t[:12] or "nothing")
def test_a_description_that_is_none(text, folder, tmp_path):
    config = folder / "config.json"
    config.write_text(text)
    refused(lambda: uz.create_model(f"local-dir:{folder}"), config)
    path = with_description(folder / "model.safetensors", text, tmp_path / "header.safetensors")
    refused(lambda: uz.load_checkpoint(path), path)


def test_a_safetensors_header_nested_deep(tmp_path):
    path, head = tmp_path / "a.safetensors", b'{"a":' * 100_000
    path.write_bytes(struct.pack("<Q", len(head)) + head)
    refused(lambda: uz.load_checkpoint(path), path)


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2", "int8", "bool", "complex64", "uint16"])
def test_weights_and_counters_of_other_types(name, model, folder, tmp_path):
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    for key in ("decode_head.classifier.weight", "backbone.stem.1.num_batches_tracked"):
        changed = {**state, key: state[key].to(getattr(torch, name))}
        save_file(changed, folder / "model.safetensors", {"format": "pt"})
        refused(lambda: uz.create_model(f"local-dir:{folder}"), folder)


GIGANTIC = {
    "wide": {"backbone": {"kind": "resnet", "depth": 101, "base_channels": 65536}},
    "a wide head": {"channels": 65536},
    "5000 pooling scales": {"pool_scales": [1] * 5000},
    "large pooling scales": {"pool_scales": [65536]},
    "many blocks": {"backbone": {"kind": "convnext", "depths": [65536] * 4}},
    "wide blocks": {"backbone": {"kind": "convnext", "widths": [65536] * 4}},
    "a deep transformer": {"backbone": {"kind": "vit", "depth": 4096, "out_indices": [0, 1, 2, 3]}},
    "a wide transformer": {"backbone": {"kind": "beit", "embed_dim": 4096, "depth": 256, "num_heads": 16, "mlp_ratio": 4096}},
}


@pytest.mark.parametrize("change", GIGANTIC.values(), ids=GIGANTIC)
def test_a_gigantic_model_is_refused_before_it_is_allocated(change, folder, tmp_path, monkeypatch):
    path = folder / "config.json"
    data = json.loads(path.read_text())
    data["architecture"].update(change)
    path.write_text(json.dumps(data))
    refused(lambda: uz.create_model(f"local-dir:{folder}"), folder)
    monkeypatch.setattr(uz.UPerNet, "reset_parameters", lambda _: pytest.fail("it was allocated"))
    monkeypatch.setattr(memory, "available", lambda _: 1 << 34)
    start = time.process_time()
    with pytest.raises((ConfigError, NotEnoughMemoryError)) as caught:
        uz.create_model(f"local-dir:{folder}", pretrained=False)
    assert time.process_time() - start < 4 and len(str(caught.value)) < 1000
    description = {key: data[key] for key in ("architecture", "recipe", "labels", "origin")}
    header = with_description(folder / "model.safetensors", json.dumps(description), tmp_path / "header.safetensors")
    refused(lambda: uz.load_checkpoint(header), header)
