"""Plain transformers and PCPVT against timm, with the same random weights, where the two are the same function.

timm refuses other sizes than BEiT's and MAE's own, resizes ViT's position embedding with antialiasing, and PCPVT there does not pad.
"""

import functools

import pytest
import torch

from upernet_zoo.models.backbones._base import build_backbone
from upernet_zoo.models.backbones.beit import BEiTConfig
from upernet_zoo.models.backbones.twins import TwinsConfig
from upernet_zoo.models.backbones.vit import ViTConfig

NARROW = dict(embed_dim=64, depth=4, num_heads=4, out_indices=(0, 1, 2, 3))


def random_backbone(config):
    """Every weight far from where training starts: norms, scales, tables and biases too."""
    torch.manual_seed(0)
    backbone = build_backbone(config).eval()
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            if name.endswith(("weight", "gamma_1", "gamma_2")) and parameter.dim() == 1:
                parameter.uniform_(0.6, 1.4)
            elif parameter.dim() == 1 or "embed" in name or "token" in name:
                parameter.normal_(0, 0.2)
            else:
                parameter.normal_(0, 1.0 if name.endswith("table") else 0.1)
    return backbone


def renamed(backbone):
    """The tensors under timm's names for plain transformers."""
    return {key.replace("patch_embed.", "patch_embed.proj."): value for key, value in backbone.state_dict().items()}


def vit(norm):
    from timm.models.vision_transformer import VisionTransformer

    backbone = random_backbone(ViTConfig(**NARROW, grid=(6, 6), final_norm=norm))
    layer_norm = functools.partial(torch.nn.LayerNorm, eps=1e-6)
    theirs = VisionTransformer(96, 16, num_classes=0, embed_dim=64, depth=4, num_heads=4, norm_layer=layer_norm, final_norm=norm)
    theirs.load_state_dict(renamed(backbone))
    return backbone, theirs


def beit():
    from timm.models.beit import Beit

    backbone = random_backbone(BEiTConfig(**NARROW, grid=(6, 6)))
    options = dict(embed_dim=64, depth=4, num_heads=4, init_values=0.1, use_abs_pos_emb=False, use_rel_pos_bias=True)
    theirs = Beit(96, 16, num_classes=0, **options, norm_layer=functools.partial(torch.nn.LayerNorm, eps=1e-6))
    theirs.fc_norm = torch.nn.Identity()  # of a classifier
    theirs.load_state_dict(renamed(backbone))
    return backbone, theirs


def mae():
    """timm's BEiT has no bias of keys: it adds a number to each row before the softmax, which changes nothing."""
    from timm.models.beit import Beit

    backbone = random_backbone(BEiTConfig(**NARROW, grid=(6, 6), mae=True))
    options = dict(embed_dim=64, depth=4, num_heads=4, init_values=1.0, use_abs_pos_emb=True, use_rel_pos_bias=True)
    theirs = Beit(96, 16, num_classes=0, **options, norm_layer=functools.partial(torch.nn.LayerNorm, eps=1e-6))
    theirs.fc_norm = torch.nn.Identity()
    weights = renamed(backbone)
    for key in [key for key in weights if key.endswith("qkv.bias")]:
        bias = weights.pop(key)
        assert bias[64:128].abs().max() > 0.1
        weights[key.replace("qkv.", "q_")], weights[key.replace("qkv.", "v_")] = bias[:64], bias[128:]
    theirs.load_state_dict(weights)
    return backbone, theirs


def pcpvt():
    from timm.models.twins import Twins

    config = TwinsConfig(widths=(16, 32, 40, 64), depths=(2, 1, 1, 1), num_heads=(1, 2, 5, 8))
    backbone = random_backbone(config)
    options = dict(embed_dims=config.widths, depths=config.depths, num_heads=config.num_heads, mlp_ratios=config.mlp_ratios)
    theirs = Twins(96, num_classes=0, **options, sr_ratios=config.reduction_ratios)
    for module in theirs.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = config.eps  # OpenMMLab's models have 1e-5, timm 1e-6
    weights = {}
    for key, value in backbone.state_dict().items():
        stage, rest = key.removeprefix("stage").split(".", 1)
        if rest.startswith("position."):
            weights[f"pos_block.{stage}.proj.0.{rest.split('.')[1]}"] = value
        elif rest.startswith(("projection.", "norm.")):
            weights[f"patch_embeds.{stage}.{rest.replace('projection.', 'proj.')}"] = value
        else:
            name = rest.removeprefix("blocks.").replace("attn.out_proj.", "attn.proj.").replace("attn.reduce.", "attn.sr.")
            if "attn.in_proj." in name:
                third = len(value) // 3
                weights[f"blocks.{stage}.{name.replace('in_proj', 'q')}"] = value[:third]
                weights[f"blocks.{stage}.{name.replace('in_proj', 'kv')}"] = value[third:]
            else:
                weights[f"blocks.{stage}.{name}"] = value
    missing, unexpected = theirs.load_state_dict(weights, strict=False)
    assert set(missing) == {"norm.weight", "norm.bias"} and not unexpected  # of a classifier
    return backbone, theirs


@pytest.mark.parametrize(
    "build", (functools.partial(vit, False), functools.partial(vit, True), beit, mae, pcpvt), ids=("vit", "vit_ln", "beit", "mae", "pcpvt")
)
def test_as_timm(build):
    pytest.importorskip("timm")
    backbone, theirs = build()
    theirs.eval()
    x = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    for dtype, bar in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        with torch.no_grad():
            found = backbone.to(dtype)(x.to(dtype))
            expected = theirs.to(dtype).forward_intermediates(x.to(dtype), intermediates_only=True)
            if getattr(backbone, "norm", None) is not None:  # ours norms the last feature, theirs what comes after it
                expected[-1] = theirs.norm(expected[-1].flatten(2).mT).mT.view_as(expected[-1])
        assert len(found) == len(expected) == 4
        for ours, other in zip(found, expected):
            assert ours.shape == other.shape and (ours - other).abs().max() <= bar * other.abs().max()
