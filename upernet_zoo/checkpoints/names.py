"""From the tensor names of other libraries to ours and back: the tables of the heads, and of whatever backbone and neck are there."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ..models.key_tables import KeyTable
from ..registry import BACKBONES, NECKS

__all__ = ["OWN", "library_of", "to_native", "to_published", "to_theirs"]

_UPDATE, _THEIR_UPDATE = "decode_head.updates.{i}.", "decode_head.kernel_update_head.{i}."
_GENERATE = "decode_head.kernel_generate_head."
# of the heads: library -> tables, the first of which that is for a state dict is used
_HEADS = {
    "mmsegmentation": (
        KeyTable(
            (_UPDATE + "feat_transform.", _THEIR_UPDATE + "feat_transform.conv."),
            (_UPDATE + "updator.", _THEIR_UPDATE + "kernel_update_conv."),
            (_UPDATE + "attention.in_proj.", _THEIR_UPDATE + "attention.attn.in_proj_"),
            (_UPDATE + "attention.out_proj.", _THEIR_UPDATE + "attention.attn.out_proj."),
            (_UPDATE + "ffn.0.", _THEIR_UPDATE + "ffn.layers.0.0."),
            (_UPDATE + "ffn.2.", _THEIR_UPDATE + "ffn.layers.1."),
            (_UPDATE + "mask_fc.", _THEIR_UPDATE + "mask_fcs."),
            (_UPDATE, _THEIR_UPDATE),
            ("decode_head.pyramid_pooling.branches.{i}.", _GENERATE + "psp_modules.{i}.1."),
            ("decode_head.pyramid_pooling.bottleneck.", _GENERATE + "bottleneck."),
            ("decode_head.classifier.", _GENERATE + "conv_seg."),
            ("auxiliary_head.classifier.", "auxiliary_head.conv_seg."),
            ("decode_head.", _GENERATE),
            ours=("decode_head.updates.0.fc_mask.weight",),
            theirs=(_GENERATE + "conv_seg.weight",),
        ),
        KeyTable(
            ("decode_head.pyramid_pooling.branches.{i}.", "decode_head.psp_modules.{i}.1."),
            ("decode_head.pyramid_pooling.bottleneck.", "decode_head.bottleneck."),
            ("decode_head.classifier.", "decode_head.conv_seg."),
            ("auxiliary_head.classifier.", "auxiliary_head.conv_seg."),
            ours=("decode_head.classifier.weight",),
            theirs=("decode_head.conv_seg.weight",),
        ),
    ),
    "transformers": (
        KeyTable(  # of its BEiT, which has the names of mmsegmentation but for the classifiers
            ("decode_head.pyramid_pooling.branches.{i}.", "decode_head.psp_modules.{i}.1."),
            ("decode_head.pyramid_pooling.bottleneck.", "decode_head.bottleneck."),
            theirs=("decode_head.bottleneck.bn.weight", "decode_head.classifier.weight", "beit.embeddings.cls_token"),
        ),
        KeyTable(
            ("decode_head.pyramid_pooling.branches.{i}.conv.", "decode_head.psp_modules.{i}.1.conv."),
            ("decode_head.pyramid_pooling.branches.{i}.bn.", "decode_head.psp_modules.{i}.1.batch_norm."),
            ("decode_head.pyramid_pooling.bottleneck.conv.", "decode_head.bottleneck.conv."),
            ("decode_head.pyramid_pooling.bottleneck.bn.", "decode_head.bottleneck.batch_norm."),
            ("decode_head.lateral_convs.{i}.bn.", "decode_head.lateral_convs.{i}.batch_norm."),
            ("decode_head.fpn_convs.{i}.bn.", "decode_head.fpn_convs.{i}.batch_norm."),
            ("decode_head.fpn_bottleneck.bn.", "decode_head.fpn_bottleneck.batch_norm."),
            ("auxiliary_head.convs.{i}.bn.", "auxiliary_head.convs.{i}.batch_norm."),
            ours=("decode_head.classifier.weight",),
            theirs=("decode_head.fpn_bottleneck.batch_norm.weight",),
        ),
    ),
    "smp": (  # its laterals and convolutions are in the order of the way down, from the third feature to the first
        KeyTable(
            ("decode_head.pyramid_pooling.branches.{i}.conv.", "decoder.psp.blocks.{i}.1.0."),
            ("decode_head.pyramid_pooling.branches.{i}.bn.", "decoder.psp.blocks.{i}.1.1."),
            ("decode_head.pyramid_pooling.bottleneck.conv.", "decoder.psp.out_conv.0."),
            ("decode_head.pyramid_pooling.bottleneck.bn.", "decoder.psp.out_conv.1."),
            *(
                (f"decode_head.{ours}.{i}.{part}.", f"decoder.{theirs.format(2 - i)}.{number}.")
                for ours, theirs in (("lateral_convs", "fpn_lateral_blocks.{}.conv_norm_relu"), ("fpn_convs", "fpn_conv_blocks.{}"))
                for i in range(3)
                for number, part in enumerate(("conv", "bn"))
            ),
            ("decode_head.fpn_bottleneck.conv.", "decoder.fusion_block.0."),
            ("decode_head.fpn_bottleneck.bn.", "decoder.fusion_block.1."),
            ("decode_head.classifier.", "segmentation_head.0."),
            ours=("decode_head.classifier.weight",),
            theirs=("decoder.fusion_block.1.weight", "decoder.psp.out_conv.1.weight"),
        ),
    ),
}


OWN = "upernet_zoo"  # the library whose names need no table


def library_of(state_dict: Mapping[str, Tensor]) -> str:
    """Whose names a state dict has, as in the tables of backbones, such as "transformers"."""
    return _theirs(state_dict)[0]


def to_native(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with the names of any library that is known -> the same tensors under our names; our names stay.

    Raises:
        CheckpointError: two tensors would have one name, or a part of a tensor is not there.
    """
    return _theirs(state_dict)[1].to_ours(state_dict)


def to_theirs(state_dict: Mapping[str, Tensor], library: str) -> dict[str, Tensor]:
    """A state dict with our names -> the same tensors under the names of a library, such as "mmsegmentation"."""
    heads = _HEADS.get(library, _HEADS["mmsegmentation"])  # on which the authors of backbones build
    table = next((one for one in heads if one.is_ours(state_dict)), heads[-1])  # of a backbone alone too
    for cls in (*BACKBONES.classes(), *NECKS.classes()):
        table += next((one for one in cls.key_tables.get(library, ()) if one.is_ours(state_dict)), KeyTable())
    return table.to_theirs(state_dict)


def to_published(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with our names -> the same tensors under the names that mmsegmentation uses."""
    return to_theirs(state_dict, "mmsegmentation")


def _theirs(state_dict: Mapping[str, Tensor]) -> tuple[str, KeyTable]:
    """The library whose names a state dict has, and the table for them: of the heads, and of each part the first that is for it."""
    heads = ((name, one) for name, tables in _HEADS.items() for one in tables if one.is_theirs(state_dict))
    library, table = next(heads, (OWN, _HEADS["mmsegmentation"][-1]))
    for registry in (BACKBONES, NECKS):
        for cls in registry.classes():
            fitting = ((name, one) for name, tables in cls.key_tables.items() for one in tables if one.is_theirs(state_dict))
            name, found = next(fitting, (library, KeyTable()))
            table += found
            if registry is BACKBONES:
                library = name
    return library, table
