"""Names of tensors from one side to the other and back."""

import pytest
import torch

from upernet_zoo.checkpoints import names
from upernet_zoo.errors import CheckpointError
from upernet_zoo.models.key_tables import KeyTable, Rule


def swapped(x):
    return x.flip(0)


TABLE = KeyTable(
    Rule("stages.{i}.blocks.{j}.qkv.", tuple(f"layers.{{i}}.{{j}}.{name}." for name in ("query", "key", "value"))),
    Rule("stages.{i}.merge.", "layers.{i}.down.", to_ours=swapped, to_theirs=swapped),
    ("stages.{i}.blocks.{j}.", "layers.{i}.{j}."),
    ours=("embed.weight",),
    theirs=("patch.weight",),
    derived=("layers.{i}.{j}.index",),
)
OURS = {
    "stages.0.blocks.11.qkv.weight": torch.arange(18.0).view(6, 3),
    "stages.0.blocks.11.norm.bias": torch.ones(2),
    "stages.2.merge.weight": torch.arange(4.0),
    "head.weight": torch.zeros(1),
}
THEIRS = {
    "layers.0.11.query.weight": torch.arange(6.0).view(2, 3),
    "layers.0.11.key.weight": torch.arange(6.0, 12).view(2, 3),
    "layers.0.11.value.weight": torch.arange(12.0, 18).view(2, 3),
    "layers.0.11.norm.bias": torch.ones(2),
    "layers.2.down.weight": torch.tensor([3.0, 2, 1, 0]),
    "head.weight": torch.zeros(1),
}


def same(found, expected):
    assert list(found) == list(expected)
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_tensors_go_over_and_come_back():
    same(TABLE.to_theirs(OURS), THEIRS)
    same(TABLE.to_ours(THEIRS), OURS)
    same(TABLE.to_ours(OURS), OURS)  # our names stay
    shuffled = dict(reversed(THEIRS.items()))
    assert torch.equal(TABLE.to_ours(shuffled)["stages.0.blocks.11.qkv.weight"], OURS["stages.0.blocks.11.qkv.weight"])


def test_what_is_derived_is_left_out():
    same(TABLE.to_ours({**THEIRS, "layers.0.11.index": torch.zeros(9)}), OURS)


def test_a_prefix_is_a_prefix_and_a_number_a_number():
    for name in ("my.layers.0.11.norm.bias", "layers.x.11.norm.bias", "layersx0.11.norm.bias"):
        assert list(TABLE.to_ours({name: torch.zeros(1)})) == [name]


def test_two_names_of_one_tensor_and_a_missing_part_are_refused():
    with pytest.raises(
        CheckpointError, match="'layers.0.11.norm.bias' and 'stages.0.blocks.11.norm.bias' are two names of the same tensor"
    ):
        TABLE.to_ours({**THEIRS, "stages.0.blocks.11.norm.bias": torch.zeros(2)})
    with pytest.raises(CheckpointError, match="'stages.0.blocks.11.qkv.weight' is made of 3 tensors, and only layers.0.11.query.weight, "):
        TABLE.to_ours({key: value for key, value in THEIRS.items() if "key" not in key})


def test_a_table_is_for_tensors_that_have_all_of_its_names():
    assert TABLE.is_theirs(["patch.weight", "other"]) and not TABLE.is_theirs(OURS)
    assert TABLE.is_ours(["embed.weight"]) and not TABLE.is_ours([])
    assert not KeyTable().is_theirs(OURS) and not KeyTable().is_ours(OURS)


def test_the_library_of_a_checkpoint_is_told_by_its_names():
    stem, first = "backbone.conv1.weight", "backbone.layer1.0.conv1.weight"
    head = "decode_head.fpn_bottleneck"
    states = {
        "mmsegmentation": (stem, first, "decode_head.conv_seg.weight"),
        "transformers": ("backbone._backbone.conv1.weight", "backbone._backbone.layer1.0.conv1.weight", f"{head}.batch_norm.weight"),
        "upernet_zoo": ("backbone.stem.0.weight", first, "decode_head.classifier.weight"),
    }
    for library, keys in states.items():
        assert names.library_of(dict.fromkeys(keys)) == library
