"""Vision Transformer (Dosovitskiy et al. 2021), also as DeiT (Touvron et al. 2021): four features at one stride, 16.

Computed as mmsegmentation does: pictures are padded to whole patches, and the position embedding is resized only where the number of
patches differs from that of the training, whatever their shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...config import require_bool
from ...registry import register_backbone
from ..blocks import MLP, DropPath, attend, drop_path_rates, is_exported, pad_to_multiple, reset_transformer
from ..key_tables import KeyTable
from ..layers import checkpointed
from ..scripting import refuse_fx
from ._base import count_blocks, require_settings
from ._plain import PlainConfig, PlainTransformer, four_of, grid_of

__all__ = ["Attention", "ViT", "ViTBlock", "ViTConfig"]


@dataclass(frozen=True, kw_only=True)
class ViTConfig(PlainConfig):
    """Options of a Vision Transformer.

    Args:
        embed_dim, depth, num_heads, patch, out_indices, mlp_ratio, eps, drop_path: see `PlainConfig`.
        grid: (height, width) in patches of the pictures in training, for which the position embedding was learned.
        final_norm: a layer norm on the last block's feature.

    Raises:
        ConfigError: a value that cannot be used.
    """

    kind: ClassVar[str] = "vit"
    max_side: ClassVar[int] = 1 << 10
    final_norm: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require_bool(type(self).__name__, "final_norm", self.final_norm)

    @property
    def title(self) -> str:
        """Such as "ViT-B/16"; other sizes than the published ones go by their numbers."""
        name = _TITLES.get((self.embed_dim, self.depth))
        return f"ViT-{name}/{self.patch}" if name else f"ViT (width {self.embed_dim}, depth {self.depth})"


_TITLES = {(384, 12): "S", (768, 12): "B", (1024, 24): "L"}


class Attention(nn.Module):
    """Multi-head attention over all tokens."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, C) -> the same shape."""
        attended: Tensor = self.proj(attend(self.qkv(x), self.heads))
        return attended


class ViTBlock(nn.Module):
    """Attention and a perceptron, each behind a norm and beside a shortcut."""

    def __init__(self, config: ViTConfig, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.embed_dim, config.eps)
        self.attn = Attention(config.embed_dim, config.num_heads)
        self.norm2 = nn.LayerNorm(config.embed_dim, config.eps)
        self.mlp = MLP(config.embed_dim, config.mlp_ratio * config.embed_dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, C) -> the same shape."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        x = x + self.drop_path(self.mlp(self.norm2(x)))
        return x


# settings of mmsegmentation's VisionTransformer that change what is computed
_SETTINGS: dict[tuple[str, ...], tuple[Any, ...]] = {
    ("type",): ("VisionTransformer",),
    ("qkv_bias",): (True,),
    ("with_cls_token",): (True,),
    ("output_cls_token",): (False,),
    ("patch_norm",): (False,),
    ("num_fcs",): (2,),
    ("interpolate_mode",): ("bicubic",),
    ("act_cfg", "type"): ("GELU",),
    ("norm_cfg", "type"): ("LN",),
}
_BLOCK, _THEIR_BLOCK = "backbone.blocks.{i}.", "backbone.layers.{i}."


@register_backbone
class ViT(PlainTransformer):
    """Vision Transformer of any size, without a classifier."""

    config_class = ViTConfig
    mmseg_v1: ClassVar[Mapping[str, Any]] = {"patch_bias": True}
    mmseg_known = frozenset(["patch_bias", "output_cls_token", "patch_norm", "num_fcs"])
    key_tables: ClassVar[Mapping[str, tuple[KeyTable, ...]]] = {
        "mmsegmentation": (
            KeyTable(
                ("backbone.patch_embed.", "backbone.patch_embed.projection."),
                (_BLOCK + "norm1.", _THEIR_BLOCK + "ln1."),
                (_BLOCK + "norm2.", _THEIR_BLOCK + "ln2."),
                (_BLOCK + "attn.qkv.", _THEIR_BLOCK + "attn.attn.in_proj_"),
                (_BLOCK + "attn.proj.", _THEIR_BLOCK + "attn.attn.out_proj."),
                (_BLOCK + "mlp.fc1.", _THEIR_BLOCK + "ffn.layers.0.0."),
                (_BLOCK + "mlp.fc2.", _THEIR_BLOCK + "ffn.layers.1."),
                ("backbone.norm.", "backbone.ln1."),
                ours=("backbone.pos_embed", "backbone.blocks.0.attn.qkv.weight"),
                theirs=("backbone.pos_embed", "backbone.layers.0.attn.attn.in_proj_weight"),
            ),
        ),
    }

    def __init__(self, config: ViTConfig) -> None:
        super().__init__(config)
        self.config: ViTConfig
        self.pos_embed: nn.Parameter
        self.pos_embed = nn.Parameter(torch.zeros(1, config.grid[0] * config.grid[1] + 1, config.embed_dim))
        self.blocks = nn.ModuleList(ViTBlock(config, rate) for rate in drop_path_rates(config.drop_path, config.depth))
        self.norm = nn.LayerNorm(config.embed_dim, config.eps) if config.final_norm else None

    def forward(self, x: Tensor) -> list[Tensor]:
        """Picture (N, in_channels, H, W) -> four features at stride `patch`; a side of n pixels becomes ceil(n / patch)."""
        refuse_fx(self, x)
        x, size = self.tokens(pad_to_multiple(x, self.config.patch))
        x = x + self.positions(*size)
        features = []
        for i, block in enumerate(self.blocks):
            x = checkpointed(block, x, self.grad_checkpointing)
            if i == len(self.blocks) - 1 and self.norm is not None:
                x = self.norm(x)
            if i in self.config.out_indices:
                features.append(self.feature(x, size))
        return features

    def positions(self, height: int, width: int) -> Tensor:
        """(1, height * width + 1, C) position embedding of a grid of patches, the class token's first.

        It is resized (bicubic) where the number of patches is another than in training. A grid of another shape with as many patches
        gets the embedding row by row as it is: so the published numbers were measured.
        """
        grid = self.config.grid
        count = grid[0] * grid[1]
        if not is_exported() and height * width == count:
            return self.pos_embed
        learned = self.pos_embed[:, 1:]
        places = F.interpolate(learned.transpose(1, 2).unflatten(2, grid), (height, width), mode="bicubic", align_corners=False)
        places = places.flatten(2).transpose(1, 2)
        if is_exported():  # which of the two it is shows when the graph runs
            number = torch.scalar_tensor(height * width, dtype=torch.int64, device=places.device)
            rows = torch.arange(height * width, device=places.device).clamp(max=count - 1)
            places = torch.where(number == count, learned.index_select(1, rows), places)
        return torch.cat([self.pos_embed[:, :1], places], 1)

    def reset_parameters(self) -> None:
        """Linear layers and embeddings from N(0, 0.02) cut at two deviations, as in the original training."""
        reset_transformer(self)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.trunc_normal_(self.cls_token, std=0.02)

    def after(self) -> list[nn.Parameter]:
        """Those of the last norm, where there is one."""
        return [] if self.norm is None else list(self.norm.parameters())

    def no_decay(self) -> set[str]:
        """Norms, biases, and the embeddings."""
        return super().no_decay() | {"cls_token", "pos_embed"}

    def peak_values(self, pixels: int) -> float:
        """In a perceptron: tokens, normed ones, the hidden ones before and after GELU, and the features that are kept."""
        config = self.config
        return pixels / config.patch**2 * config.embed_dim * (6 + 2 * config.mlp_ratio)

    @classmethod
    def recognize(cls, tensors: Mapping[str, Tensor], settings: Mapping[str, Any], library: str) -> ViTConfig | None:
        """The config of a checkpoint's Vision Transformer. See `Backbone.recognize`.

        The number of heads, the grid and the blocks that give features are not in the tensors: without settings they are taken to be
        64 channels a head, a square, and every quarter.
        """
        patches, positions, hidden = (tensors.get(key) for key in ("patch_embed.weight", "pos_embed", "blocks.0.mlp.fc1.weight"))
        if patches is None or positions is None or hidden is None or patches.dim() != 4 or "blocks.0.attn.qkv.weight" not in tensors:
            return None
        if "blocks.0.attn.relative_position_bias_table" in tensors:
            return None
        require_settings(settings, _SETTINGS, "model.backbone")
        width, patch = patches.shape[0], patches.shape[2]
        depth = count_blocks(tensors, "blocks.")
        return ViTConfig(
            embed_dim=width,
            depth=depth,
            num_heads=settings.get("num_heads", max(width // 64, 1)),
            grid=grid_of(settings.get("img_size"), patch, positions.shape[1] - 1),
            patch=patch,
            out_indices=four_of(settings.get("out_indices"), depth),
            mlp_ratio=hidden.shape[0] // width,
            eps=settings.get("norm_cfg", {}).get("eps", 1e-6),
            final_norm="norm.weight" in tensors,
            drop_path=settings.get("drop_path_rate", 0.0),
            in_channels=patches.shape[1],
        )

    @classmethod
    def to_mmseg(cls, config: ViTConfig) -> dict[str, Any]:
        """`model.backbone` of a config of mmsegmentation 0.x."""
        return {
            "type": "VisionTransformer",
            "img_size": tuple(side * config.patch for side in config.grid),
            "patch_size": config.patch,
            "in_channels": config.in_channels,
            "embed_dims": config.embed_dim,
            "num_layers": config.depth,
            "num_heads": config.num_heads,
            "mlp_ratio": config.mlp_ratio,
            "out_indices": config.out_indices,
            "qkv_bias": True,
            "drop_path_rate": config.drop_path,
            "with_cls_token": True,
            "final_norm": config.final_norm,
            "interpolate_mode": "bicubic",
            "norm_cfg": {"type": "LN", "eps": config.eps},
            "act_cfg": {"type": "GELU"},
        }
