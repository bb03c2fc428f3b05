"""Swin Transformer (Liu et al. 2021): attention in windows; every other block's windows are shifted by half a window.

Computed as mmsegmentation does: a map is normed, then padded to whole windows, then shifted, then cut. One that fits into a single window
is shifted and masked too. Patch merging keeps the order of `nn.Unfold`: channel by channel, rows before columns.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...config import MAX_BLOCKS, BackboneConfig, fail, require_integer, require_integers, require_share
from ...errors import ConfigError
from ...registry import register_backbone
from ..blocks import (
    MLP,
    DropPath,
    Windows,
    attend,
    drop_path_rates,
    is_exported,
    missing,
    pad_to_multiple,
    relative_positions,
    reset_transformer,
)
from ..fused.layers import AT_ONCE, AddedMLP, Patches, Pointwise, empty, inference, set_weights, shares
from ..key_tables import KeyTable, Rule
from ..layers import checkpointed
from ..scripting import refuse_fx
from ._base import Backbone, count_blocks, require_settings

__all__ = ["FusedSwin", "PatchEmbed", "PatchMerging", "Swin", "SwinBlock", "SwinConfig", "SwinStage", "WindowAttention"]


@dataclass(frozen=True, kw_only=True)
class SwinConfig(BackboneConfig):
    """Options of a Swin Transformer.

    Args:
        embed_dim: channels of the first stage; each stage has twice as many as the one before.
        depths: blocks of each stage.
        num_heads: attention heads of each stage.
        window: side of a window, in tokens.
        mlp_ratio: hidden channels of a perceptron, as a multiple of its channels.
        eps: of the layer norms in the blocks.
        embed_eps: of those in the patch embedding and between the stages.
        feature_eps: of those behind the stages: smp's UPerNet has 1e-6 there.
        drop_path: rate of stochastic depth at the last block, in training.

    Raises:
        ConfigError: a value that cannot be used.
    """

    kind: ClassVar[str] = "swin"
    embed_dim: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    window: int = 7
    mlp_ratio: int = 4
    eps: float = 1e-5
    embed_eps: float = 1e-5
    feature_eps: float = 1e-5
    drop_path: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        owner = "SwinConfig"
        for key in ("embed_dim", "window", "mlp_ratio"):
            require_integer(owner, key, getattr(self, key), maximum=1 << 12)
        for key in ("depths", "num_heads"):
            object.__setattr__(self, key, require_integers(owner, key, getattr(self, key), 4, maximum=MAX_BLOCKS))
        for channels, heads in zip(self.channels, self.num_heads):
            if channels % heads:
                fail(owner, "num_heads", f"divisors of the stages' channels {self.channels}", self.num_heads)
        require_share(owner, eps=self.eps, embed_eps=self.embed_eps, feature_eps=self.feature_eps, drop_path=self.drop_path)

    @property
    def title(self) -> str:
        """Such as "Swin-T"; other sizes than the published ones go by their numbers."""
        name = _TITLES.get((self.embed_dim, self.depths))
        return f"Swin-{name}" if name else f"Swin (width {self.embed_dim}, depths {', '.join(map(str, self.depths))})"

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of the four features."""
        return tuple(self.embed_dim * 2**i for i in range(4))

    @property
    def reductions(self) -> tuple[int, ...]:
        """4, 8, 16 and 32."""
        return 4, 8, 16, 32


_TITLES: dict[tuple[int, tuple[int, ...]], str] = {
    (96, (2, 2, 6, 2)): "T",
    (96, (2, 2, 18, 2)): "S",
    (128, (2, 2, 18, 2)): "B",
    (192, (2, 2, 18, 2)): "L",
}  # Liu et al. 2021, section 3.3


class WindowAttention(nn.Module):
    """Attention within windows, with a learned bias for each distance."""

    def __init__(self, channels: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor, index: Tensor, mask: Tensor | None) -> Tensor:
        """Windows (N * windows, T, C), rows of the table (T, T), mask (windows, T, T) -> (N * windows, T, C)."""
        bias = self.relative_position_bias_table[index].permute(2, 0, 1)[None]
        if mask is not None:
            bias = (bias + mask.to(bias.dtype)[:, None]).repeat(x.shape[0] // mask.shape[0], 1, 1, 1)
        attended: Tensor = self.proj(attend(self.qkv(x), self.heads, bias))
        return attended


class SwinBlock(nn.Module):
    """Window attention and a perceptron, each behind a norm and beside a shortcut."""

    def __init__(self, channels: int, heads: int, window: int, mlp_ratio: int, eps: float, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps)
        self.attn = WindowAttention(channels, heads, window)
        self.norm2 = nn.LayerNorm(channels, eps)
        self.mlp = MLP(channels, mlp_ratio * channels)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, windows: Windows, index: Tensor) -> Tensor:
        """(N, H, W, C) -> the same shape."""
        x = x + self.drop_path(windows.join(self.attn(windows.cut(self.norm1(x)), index, windows.mask), x))
        x = x + self.drop_path(self.mlp(self.norm2(x)))
        return x


class PatchMerging(nn.Module):
    """Four neighbors side by side, normed, and brought to twice the channels."""

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels, eps)
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) -> (N, ceil(H / 2), ceil(W / 2), 2 * C)."""
        below, right = missing(x.shape[1], 2), missing(x.shape[2], 2)
        if is_exported() or below or right:
            x = F.pad(x, (0, 0, 0, right, 0, below))
        count, height, width, channels = x.shape
        x = x.view(count, height // 2, 2, width // 2, 2, channels).permute(0, 1, 3, 5, 2, 4).flatten(3)
        merged: Tensor = self.reduction(self.norm(x))
        return merged


class PatchEmbed(nn.Module):
    """Patches of 4x4 pixels as tokens, normed."""

    def __init__(self, in_channels: int, channels: int, eps: float) -> None:
        super().__init__()
        self.projection = nn.Conv2d(in_channels, channels, 4, 4)
        self.norm = nn.LayerNorm(channels, eps)

    def forward(self, x: Tensor) -> Tensor:
        """Picture (N, in_channels, H, W) -> (N, ceil(H / 4), ceil(W / 4), C)."""
        tokens: Tensor = self.norm(self.projection(pad_to_multiple(x, 4)).permute(0, 2, 3, 1))
        return tokens


class SwinStage(nn.Module):
    """Blocks, and the merging that leads to the next stage (the last one has none)."""

    def __init__(self, blocks: list[SwinBlock], downsample: PatchMerging | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample


def _merge_to_theirs(weight: Tensor) -> Tensor:
    """Channel by channel -> place by place, (0, 0), (1, 0), (0, 1), (1, 1), along the last axis."""
    merged: Tensor = weight.unflatten(-1, (-1, 4))[..., [0, 2, 1, 3]].transpose(-1, -2).flatten(-2)
    return merged


def _merge_to_ours(weight: Tensor) -> Tensor:
    merged: Tensor = weight.unflatten(-1, (4, -1)).transpose(-1, -2)[..., [0, 2, 1, 3]].flatten(-2)
    return merged


_BLOCK, _MERGE = "backbone.stage{i}.blocks.{j}.", "backbone.stage{i}.downsample."
_THEIR_BLOCK, _THEIR_MERGE = "backbone.stages.{i}.blocks.{j}.", "backbone.stages.{i}.downsample."
_AUTHORS = "backbone.layers.{i}."
_SMP = "encoder.model."


def _transformers_table(root: str, names: Mapping[str, str | tuple[str, ...]], derived: tuple[str, ...]) -> KeyTable:
    """Names in transformers.

    Args:
        root: prefix of the backbone without its norms.
        names: of what is in a block, ours -> theirs; the first is the table of biases.
        derived: what else is in a block there.
    """
    block, merge = root + "encoder.layers.{i}.blocks.{j}.", root + "encoder.layers.{i}.downsample."
    table = next(iter(names))
    return KeyTable(
        ("backbone.patch_embed.projection.", root + "embeddings.patch_embeddings.projection."),
        ("backbone.patch_embed.norm.", root + "embeddings.norm."),
        (_BLOCK + "norm1.", block + "layernorm_before."),
        (_BLOCK + "norm2.", block + "layernorm_after."),
        *(
            Rule(_BLOCK + ours, block + theirs if isinstance(theirs, str) else tuple(block + part for part in theirs))
            for ours, theirs in names.items()
        ),
        Rule(_MERGE + "norm.", merge + "norm.", _merge_to_ours, _merge_to_theirs),
        Rule(_MERGE + "reduction.", merge + "reduction.", _merge_to_ours, _merge_to_theirs),
        *((f"backbone.norm{i}.", f"backbone.hidden_states_norms.stage{i + 1}.") for i in range(4)),
        ours=(f"backbone.stage0.blocks.0.{table}",),
        theirs=(f"{root}encoder.layers.0.blocks.0.{names[table]}",),
        derived=(*(block + name for name in derived), "backbone.swin.layernorm."),  # the classifier's norm, which no feature passes
    )


_EPS = 1e-5  # of all layer norms in the authors' code, mmsegmentation and transformers, where the config does not say otherwise
_SMP_FEATURE_EPS = 1e-6


def _whole_windows(config: SwinConfig) -> int:
    """Pixels of a picture's side of which every stage is one window."""
    return 32 * config.window


# settings of mmsegmentation's SwinTransformer that change what is computed
_SETTINGS: dict[tuple[str, ...], tuple[Any, ...]] = {
    ("type",): ("SwinTransformer",),
    ("patch_size",): (4,),
    ("strides",): ((4, 2, 2, 2),),
    ("out_indices",): ((0, 1, 2, 3),),
    ("qkv_bias",): (True,),
    ("qk_scale",): (None,),
    ("patch_norm",): (True,),
    ("use_abs_pos_embed",): (False,),
    ("ape",): (False,),  # the same, as the authors call it
    ("act_cfg", "type"): ("GELU",),
    ("norm_cfg", "type"): ("LN",),
}
# the same of transformers' SwinConfig
_TRANSFORMERS_SETTINGS: dict[tuple[str, ...], tuple[Any, ...]] = {
    ("patch_size",): (4, (4, 4)),
    ("qkv_bias",): (True,),
    ("hidden_act",): ("gelu",),
    ("use_absolute_embeddings",): (False,),
    ("out_features",): (("stage1", "stage2", "stage3", "stage4"),),
}


@register_backbone
class Swin(Backbone):
    """Swin Transformer of any size, without a classifier."""

    config_class = SwinConfig
    mmseg_known = frozenset(["pretrain_img_size", "qk_scale", "in_chans", "embed_dim", "ape", "use_checkpoint"])  # the authors' names too
    key_tables: ClassVar[Mapping[str, tuple[KeyTable, ...]]] = {
        "mmsegmentation": (
            KeyTable(
                (_BLOCK + "attn.", _THEIR_BLOCK + "attn.w_msa."),
                (_BLOCK + "mlp.fc1.", _THEIR_BLOCK + "ffn.layers.0.0."),
                (_BLOCK + "mlp.fc2.", _THEIR_BLOCK + "ffn.layers.1."),
                (_BLOCK, _THEIR_BLOCK),
                (_MERGE, _THEIR_MERGE),
                ours=("backbone.stage0.blocks.0.attn.relative_position_bias_table",),
                theirs=("backbone.stages.0.blocks.0.attn.w_msa.relative_position_bias_table",),
                derived=(_THEIR_BLOCK + "attn.w_msa.relative_position_index",),
            ),
        ),
        "transformers": (
            # as the conversion script named them, and as files have them
            _transformers_table(
                "backbone.",
                {
                    "attn.relative_position_bias_table": "attention.self.relative_position_bias_table",
                    "attn.qkv.": ("attention.self.query.", "attention.self.key.", "attention.self.value."),
                    "attn.proj.": "attention.output.dense.",
                    "mlp.fc1.": "intermediate.dense.",
                    "mlp.fc2.": "output.dense.",
                },
                derived=("attention.self.relative_position_index",),
            ),
            # as transformers 5 renames them while it loads a file
            _transformers_table(
                "backbone.swin.",
                {
                    "attn.relative_position_bias_table": "attention.relative_position_bias.relative_position_bias_table",
                    "attn.qkv.": ("attention.q_proj.", "attention.k_proj.", "attention.v_proj."),
                    "attn.proj.": "attention.o_proj.",
                    "mlp.": "mlp.",
                },
                derived=("attention.relative_position_bias.relative_position_index",),
            ),
        ),
        # of microsoft's own code, in the order of transformers
        "authors": (
            KeyTable(
                ("backbone.patch_embed.projection.", "backbone.patch_embed.proj."),
                Rule(_MERGE, _AUTHORS + "downsample.", _merge_to_ours, _merge_to_theirs),
                ("backbone.stage{i}.", _AUTHORS),
                ours=("backbone.stage0.blocks.0.attn.relative_position_bias_table",),
                theirs=("backbone.patch_embed.proj.weight", "backbone.layers.0.blocks.0.attn.relative_position_bias_table"),
                derived=(_AUTHORS + "blocks.{j}.attn.relative_position_index",),
            ),
        ),
        # timm's names; its merging is at the head of the stage that it leads to, in the order of transformers
        "smp": (
            KeyTable(
                ("backbone.patch_embed.projection.", _SMP + "patch_embed.proj."),
                ("backbone.patch_embed.norm.", _SMP + "patch_embed.norm."),
                *(
                    Rule(f"backbone.stage{i}.downsample.", f"{_SMP}layers_{i + 1}.downsample.", _merge_to_ours, _merge_to_theirs)
                    for i in range(3)
                ),
                (_BLOCK, _SMP + "layers_{i}.blocks.{j}."),
                ("backbone.norm{i}.", "decoder.feature_norms.{i}."),
                ours=("backbone.stage0.blocks.0.attn.relative_position_bias_table",),
                theirs=(_SMP + "layers_0.blocks.0.attn.relative_position_bias_table", "decoder.feature_norms.0.weight"),
            ),
        ),
    }

    def __init__(self, config: SwinConfig) -> None:
        super().__init__(config, [f"norm{i}" for i in range(4)])
        self.config: SwinConfig
        self.patch_embed = PatchEmbed(config.in_channels, config.embed_dim, config.embed_eps)
        rates = drop_path_rates(config.drop_path, sum(config.depths))
        for i, (depth, heads, channels) in enumerate(zip(config.depths, config.num_heads, config.channels)):
            blocks = [SwinBlock(channels, heads, config.window, config.mlp_ratio, config.eps, next(rates)) for _ in range(depth)]
            self.add_module(f"stage{i}", SwinStage(blocks, PatchMerging(channels, config.embed_eps) if i < 3 else None))
            self.add_module(f"norm{i}", nn.LayerNorm(channels, config.feature_eps))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Picture (N, in_channels, H, W) -> features at strides 4, 8, 16, 32; a side of n pixels becomes ceil(n / stride)."""
        refuse_fx(self, x)
        x = self.patch_embed(x)
        window = self.config.window
        index = relative_positions(window, window, x.device)
        features = []
        for i in range(4):
            stage = cast(SwinStage, self.get_submodule(f"stage{i}"))
            height, width = x.shape[1:3]
            plain, shifted = (Windows(height, width, window, shift, x.device) for shift in (0, window // 2))
            for j, block in enumerate(stage.blocks):
                x = checkpointed(block, x, self.grad_checkpointing, shifted if j % 2 else plain, index)
            features.append(self.get_submodule(f"norm{i}")(x).permute(0, 3, 1, 2))
            if stage.downsample is not None:
                x = stage.downsample(x)
        return features

    def reset_parameters(self) -> None:
        """Linear layers and tables from N(0, 0.02) cut at two deviations, as in the original training."""
        reset_transformer(self)
        for name, parameter in self.named_parameters():
            if name.endswith("relative_position_bias_table"):
                nn.init.trunc_normal_(parameter, std=0.02)

    def stages(self) -> list[list[nn.Parameter]]:
        """The patch embedding's parameters, then those of each stage with the norm of its feature."""
        parts = [[*self.get_submodule(f"stage{i}").parameters(), *self.get_submodule(f"norm{i}").parameters()] for i in range(4)]
        return [list(self.patch_embed.parameters()), *parts]

    def no_decay(self) -> set[str]:
        """Norms, biases, and the tables of biases."""
        return super().no_decay() | {name for name, _ in self.named_parameters() if name.endswith("relative_position_bias_table")}

    @property
    def first_conv(self) -> nn.Conv2d:
        """The patch embedding's convolution."""
        return self.patch_embed.projection

    def peak_values(self, pixels: int) -> float:
        """In the first stage's perceptron: tokens, the normed ones, the hidden ones before and after GELU; or in its attention."""
        config = self.config
        bias = config.window**2 * config.num_heads[0]  # of each token, with a mask: once as such, once for the attention
        return pixels / 16 * (config.embed_dim * max(3 + 2 * config.mlp_ratio, 8) + 2 * bias)

    def fuse(self) -> FusedSwin:
        """Norms folded where nothing is padded behind them, a few windows and tokens at a time, and masks where there are any."""
        return FusedSwin.of(self)

    @classmethod
    def recognize(cls, tensors: Mapping[str, Tensor], settings: Mapping[str, Any], library: str) -> SwinConfig | None:
        """The config of a checkpoint's Swin Transformer. See `Backbone.recognize`."""
        names = (f"stage{i}.blocks.0.attn.relative_position_bias_table" for i in range(4))
        tables = [table for name in names if (table := tensors.get(name)) is not None and table.dim() == 2]
        patches, hidden = tensors.get("patch_embed.projection.weight"), tensors.get("stage0.blocks.0.mlp.fc1.weight")
        if patches is None or hidden is None or len(tables) < 4:
            return None
        require_settings(settings, _SETTINGS, "model.backbone")
        if "absolute_pos_embed" in tensors:
            raise ConfigError("has a Swin Transformer with an absolute position embedding; known are those without.")
        if patches.dim() != 4 or patches.shape[2:] != (4, 4):
            raise ConfigError(f"has a Swin Transformer with patches of {tuple(patches.shape[2:])} pixels; known are those of 4x4.")
        eps = settings.get("norm_cfg", {}).get("eps", _EPS)
        others = _EPS if library in ("transformers", "smp", "authors") else eps  # mmsegmentation's is for all
        return SwinConfig(
            embed_dim=patches.shape[0],
            depths=tuple(count_blocks(tensors, f"stage{i}.blocks.") for i in range(4)),
            num_heads=tuple(table.shape[1] for table in tables),
            window=(math.isqrt(tables[0].shape[0]) + 1) // 2,
            mlp_ratio=hidden.shape[0] // hidden.shape[1],
            eps=eps,
            embed_eps=others,
            feature_eps=_SMP_FEATURE_EPS if library == "smp" else others,
            drop_path=settings.get("drop_path_rate", 0.3),
            in_channels=patches.shape[1],
        )

    @classmethod
    def to_mmseg(cls, config: SwinConfig) -> dict[str, Any]:
        """`model.backbone` of a config of mmsegmentation 0.x."""
        return {
            "type": "SwinTransformer",
            "in_channels": config.in_channels,
            "embed_dims": config.embed_dim,
            "patch_size": 4,
            "window_size": config.window,
            "mlp_ratio": config.mlp_ratio,
            "depths": config.depths,
            "num_heads": config.num_heads,
            "strides": (4, 2, 2, 2),
            "out_indices": (0, 1, 2, 3),
            "qkv_bias": True,
            "patch_norm": True,
            "drop_path_rate": config.drop_path,
            "use_abs_pos_embed": False,
            "act_cfg": {"type": "GELU"},
            "norm_cfg": {"type": "LN", "requires_grad": True, "eps": config.eps},
        }

    @classmethod
    def mmseg_buffers(cls, config: SwinConfig) -> dict[str, Tensor]:
        """The rows of the bias tables, for each block the same tensor, which a file then holds once."""
        rows = relative_positions(config.window, config.window, torch.device("cpu"))
        names = ((i, j) for i, depth in enumerate(config.depths) for j in range(depth))
        return {f"stages.{i}.blocks.{j}.attn.w_msa.relative_position_index": rows for i, j in names}

    @classmethod
    def to_smp(cls, config: SwinConfig) -> dict[str, Any]:
        """The options of timm's Swin Transformer, for pictures of any size."""
        return {
            "encoder_name": "tu-swin_tiny_patch4_window7_224",  # the options make another of it
            "img_size": _whole_windows(config),
            "strict_img_size": False,
            "always_partition": True,  # else it shifts no map that is one window
            "embed_dim": config.embed_dim,
            "depths": list(config.depths),
            "num_heads": list(config.num_heads),
            "window_size": config.window,
            "mlp_ratio": config.mlp_ratio,
            "drop_path_rate": config.drop_path,
        }

    @classmethod
    def note_of(cls, config: SwinConfig, library: str) -> str | None:
        """What other shifts, and one epsilon for all layer norms, change. See `Backbone.note_of`."""
        if library != "smp":
            is_one = config.eps == config.embed_eps == config.feature_eps
            return (
                None if is_one else f"Layer norms all have an epsilon of {config.eps:g} there: logits differ by up to 1e-4 of the largest."
            )
        return (
            f"smp's {config.title} is timm's, which shifts a map before it pads it to whole windows: it computes this model for pictures "
            f"whose sides are multiples of {_whole_windows(config)}, and something else for others."
        )

    @classmethod
    def to_transformers(cls, config: SwinConfig) -> dict[str, Any]:
        """The SwinConfig of transformers, which also keeps `embed_eps` and `feature_eps`, and does nothing with them."""
        return {
            "model_type": "swin",
            "num_channels": config.in_channels,
            "embed_dim": config.embed_dim,
            "depths": list(config.depths),
            "num_heads": list(config.num_heads),
            "window_size": config.window,
            "mlp_ratio": config.mlp_ratio,
            "layer_norm_eps": config.eps,
            "embed_eps": config.embed_eps,
            "feature_eps": config.feature_eps,
            "drop_path_rate": config.drop_path,
            "out_features": ["stage1", "stage2", "stage3", "stage4"],
        }

    @classmethod
    def adjust_transformers(cls, config: SwinConfig, backbone: nn.Module) -> str | None:
        """Give the norms outside the blocks their epsilons. See `Backbone.adjust_transformers`."""
        if config.embed_eps == config.feature_eps == _EPS:
            return None
        for name, module in backbone.named_modules():
            if isinstance(module, nn.LayerNorm) and ".blocks." not in name:
                module.eps = config.feature_eps if "hidden_states_norms." in name else config.embed_eps
        return (
            f"The layer norms outside the blocks have epsilons of {config.embed_eps:g} and, behind the stages, {config.feature_eps:g}. "
            f"transformers' config cannot say so: a model that it loads from files has {_EPS:g}, and logits that differ by up to 1e-4 of "
            "the largest."
        )

    @classmethod
    def from_transformers(cls, settings: Mapping[str, Any]) -> SwinConfig | None:
        """The config of transformers' Swin Transformer. See `Backbone.from_transformers`."""
        if settings.get("model_type") != "swin":
            return None
        require_settings(settings, _TRANSFORMERS_SETTINGS, "backbone_config")
        ratio = settings.get("mlp_ratio", 4)
        return SwinConfig(
            embed_dim=settings.get("embed_dim", 96),
            depths=tuple(settings.get("depths", (2, 2, 6, 2))),
            num_heads=tuple(settings.get("num_heads", (3, 6, 12, 24))),
            window=settings.get("window_size", 7),
            mlp_ratio=int(ratio) if ratio == int(ratio) else ratio,
            eps=settings.get("layer_norm_eps", _EPS),
            embed_eps=settings.get("embed_eps", _EPS),
            feature_eps=settings.get("feature_eps", _EPS),
            drop_path=settings.get("drop_path_rate", 0.1),
            in_channels=settings.get("num_channels", 3),
        )


class _Places:
    """Which tokens of a map (H, W) lie where in its windows, those that need a mask behind the others.

    Attributes:
        back: (H * W,) of each token its place in the windows.
        parts: of windows that are done together the slice of places, the tokens there, (places,), where among them none is, and the mask
            (windows, 1, T, T), if there is one.
    """

    def __init__(self, height: int, width: int, window: int, shift: int, most: int, device: torch.device) -> None:
        windows = Windows(height, width, window, shift, device)
        tokens, wide = windows.tokens, width + windows.pad[3]
        row, column = windows.order // wide, windows.order % wide
        filled = (row >= height) | (column >= width)
        order = torch.where(filled, 0, row * width + column).view(-1, tokens)
        masked = torch.zeros(len(order), dtype=torch.bool, device=device) if windows.mask is None else windows.mask.flatten(1).any(1)
        turn = masked.sort(stable=True).indices
        place = torch.empty_like(turn)
        place[turn] = torch.arange(len(turn), device=device)
        self.back = place[windows.back // tokens] * tokens + windows.back % tokens
        free = len(turn) - int(masked.sum())
        self.parts = []
        for start, count, mask_them in ((0, free, False), (free, len(turn) - free, True)):
            for share in shares(count, most, device):
                chosen = turn[start + share.start : start + share.stop]
                places = slice((start + share.start) * tokens, (start + share.stop) * tokens)
                empty_at = filled.view_as(order)[chosen].flatten().nonzero()[:, 0]
                mask = windows.mask[chosen, None] if mask_them and windows.mask is not None else None
                self.parts.append((places, order[chosen].flatten(), empty_at, mask))


_kept_places = functools.lru_cache(maxsize=32)(_Places)  # every picture of a size needs the same eight; 4 MB in all for 1024x2048


class FusedSwinBlock(nn.Module):
    """A block for inference."""

    def __init__(self, block: SwinBlock) -> None:
        super().__init__()
        attention, channels = block.attn, block.attn.proj.in_features
        self.heads = attention.heads
        self.norm1 = block.norm1
        self.table = nn.Parameter(attention.relative_position_bias_table.detach().T.contiguous(), requires_grad=False)
        self.qkv, self.proj = Pointwise(channels, 3 * channels), Pointwise(channels, channels)
        for target, linear in ((self.qkv, attention.qkv), (self.proj, attention.proj)):
            set_weights(target, linear.weight.double()[:, :, None, None], linear.bias.double(), linear.weight)
        self.mlp = AddedMLP(channels, block.mlp.fc1.out_features, block.norm2.eps)
        self.mlp.fill(block.norm2, block.mlp)

    def forward(self, x: Tensor, places: _Places, index: Tensor) -> None:
        """Tokens of a picture (H * W, C), which are overwritten by the result; rows of the table (T, T)."""
        tokens, channels = len(index), x.shape[1]
        bias = self.table.index_select(1, index.flatten()).view(1, -1, tokens, tokens)
        attended = empty((sum(len(order) for _, order, _, _ in places.parts), channels), x)
        for place, order, empty_at, mask in places.parts:
            part = self.norm1(x.index_select(0, order)).index_fill_(0, empty_at, 0)
            qkv = self.qkv(part).view(-1, tokens, 3 * channels)
            self.proj(attend(qkv, self.heads, bias if mask is None else bias + mask.to(bias.dtype)), attended[place])
        for rows in self.mlp.blocks(x):
            part = x[rows]
            part += attended.index_select(0, places.back[rows])
            self.mlp.add_to(part, part)


class FusedSwin(nn.Module):
    """The backbone for inference: tokens go to their windows, through the attention and back a few windows at a time."""

    def __init__(self, plain: Swin) -> None:
        super().__init__()
        self.config = config = plain.config
        self.embed, self.embed_norm = Patches(config.in_channels, config.embed_dim, 4), plain.patch_embed.norm
        stages = [cast(SwinStage, plain.get_submodule(f"stage{i}")) for i in range(4)]
        self.stages = nn.ModuleList(nn.ModuleList(FusedSwinBlock(cast(SwinBlock, block)) for block in stage.blocks) for stage in stages)
        self.merges = nn.ModuleList(Patches(channels, 2 * channels, 2) for channels in config.channels[:3])
        self.norms = nn.ModuleList(plain.get_submodule(f"norm{i}") for i in range(4))

    @inference
    def forward(self, x: Tensor) -> list[Tensor]:
        """Picture (N, in_channels, H, W) -> features (N, C, h, w) at strides 4, 8, 16, 32, channels last in memory."""
        x = self.embed_norm(self.embed(pad_to_multiple(x, 4).permute(0, 2, 3, 1)))
        window = self.config.window
        index = relative_positions(window, window, x.device)
        features = []
        for i, blocks in enumerate(cast(Any, self.stages)):
            if i:
                x = self._merged(self.merges[i - 1], x)
            _, height, width, channels = x.shape
            plain, shifted = (_kept_places(height, width, window, shift, 3 * channels * window**2, x.device) for shift in (0, window // 2))
            for picture in x.view(len(x), -1, channels):
                for j, block in enumerate(blocks):
                    block(picture, shifted if j % 2 else plain, index)
            features.append(cast(Tensor, self.norms[i](x)).permute(0, 3, 1, 2))
        return features

    def _merged(self, merge: Any, x: Tensor) -> Tensor:
        """(N, H, W, C) -> (N, ceil(H / 2), ceil(W / 2), 2 * C)."""
        cut = merge.cut(pad_to_multiple(x.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1))
        merged: Tensor = Pointwise.forward(merge, F.layer_norm(cut, cut.shape[3:], eps=self.config.embed_eps))
        return merged

    def peak_values(self, pixels: int) -> float:
        """In the first stage: tokens, attended ones and their feature; and a block of hidden ones."""
        return pixels / 16 * self.config.embed_dim * 4 + 3 * AT_ONCE

    @classmethod
    @torch.no_grad()
    def of(cls, plain: Swin) -> FusedSwin:
        """That of a Swin Transformer, computed in float64."""
        fused = cls(plain)
        conv = plain.first_conv
        set_weights(fused.embed, conv.weight.double(), cast(Tensor, conv.bias).double(), conv.weight)
        for i, target in enumerate(fused.merges):
            merging = cast(Any, plain.get_submodule(f"stage{i}")).downsample
            weight = merging.reduction.weight.double() * merging.norm.weight.double()
            bias = merging.reduction.weight.double() @ merging.norm.bias.double()
            set_weights(target, weight.unflatten(1, (-1, 2, 2)), bias, conv.weight)
        return fused.eval()
