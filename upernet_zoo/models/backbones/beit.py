"""BEiT (Bao et al. 2022), and the backbone of MAE (He et al. 2022) as OpenMMLab fine-tuned it.

Attention with a learned bias for each distance. The size of the pictures is fixed; four features at one stride, 16.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...config import require_bool
from ...errors import ArgumentError
from ...registry import register_backbone
from ..blocks import MLP, DropPath, attend, drop_path_rates, relative_positions, reset_transformer
from ..key_tables import KeyTable, Rule
from ..layers import checkpointed
from ..scripting import refuse_fx
from ._base import count_blocks, require_settings
from ._plain import PlainConfig, PlainTransformer, four_of, grid_of

__all__ = ["BEiT", "BEiTAttention", "BEiTBlock", "BEiTConfig", "table_rows"]


@dataclass(frozen=True, kw_only=True)
class BEiTConfig(PlainConfig):
    """Options of a BEiT.

    Args:
        embed_dim, depth, num_heads, patch, out_indices, mlp_ratio, eps, drop_path: see `PlainConfig`.
        grid: (height, width) in patches of the only pictures that are taken.
        mae: as MAE has it: a position embedding is added to the tokens, and the keys have a bias.

    Raises:
        ConfigError: a value that cannot be used.
    """

    kind: ClassVar[str] = "beit"
    max_side: ClassVar[int] = 1 << 7
    grid: tuple[int, int] = (40, 40)
    out_indices: tuple[int, ...] = (3, 5, 7, 11)
    mae: bool = False
    drop_path: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        require_bool(type(self).__name__, "mae", self.mae)

    @property
    def title(self) -> str:
        """Such as "BEiT-L" or "MAE-B"; other sizes than the published ones go by their numbers."""
        name = {(768, 12): "B", (1024, 24): "L"}.get((self.embed_dim, self.depth))
        kind = "MAE" if self.mae else "BEiT"
        return f"{kind}-{name}" if name else f"{kind} (width {self.embed_dim}, depth {self.depth})"

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) in pixels of the only pictures that are taken."""
        return self.grid[0] * self.patch, self.grid[1] * self.patch


def table_rows(height: int, width: int, device: torch.device) -> Tensor:
    """(T + 1, T + 1) int64, T = height * width: row of the bias table for each pair of query and key, the class token first.

    The last three rows of the table are for the class token to the others, for the others to it, and for it to itself.
    """
    distances = (2 * height - 1) * (2 * width - 1)
    rows = F.pad(relative_positions(height, width, device), (1, 0, 1, 0), value=distances)
    rows[:, 0] = distances + 1
    rows[0, 0] = distances + 2
    return rows


class BEiTAttention(nn.Module):
    """Attention over all tokens, with a learned bias for each distance."""

    def __init__(self, config: BEiTConfig) -> None:
        super().__init__()
        channels, (height, width) = config.embed_dim, config.grid
        self.heads = config.num_heads
        self.qkv = nn.Linear(channels, 3 * channels, bias=config.mae)
        if not config.mae:
            self.q_bias = nn.Parameter(torch.zeros(channels))
            self.v_bias = nn.Parameter(torch.zeros(channels))
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * height - 1) * (2 * width - 1) + 3, config.num_heads))
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor, rows: Tensor) -> Tensor:
        """Tokens (N, T, C), rows of the table (T, T) -> (N, T, C)."""
        bias = self.qkv.bias if self.qkv.bias is not None else torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        # head by head in memory, as attention reads it: of 1601 tokens 250 ms in place of 580 on one core
        distances = self.relative_position_bias_table.t().index_select(1, rows.flatten()).view(1, self.heads, *rows.shape)
        attended: Tensor = self.proj(attend(F.linear(x, self.qkv.weight, bias), self.heads, distances))
        return attended


class BEiTBlock(nn.Module):
    """Attention and a perceptron, each behind a norm, scaled, and beside a shortcut."""

    def __init__(self, config: BEiTConfig, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.embed_dim, config.eps)
        self.attn = BEiTAttention(config)
        self.gamma_1 = nn.Parameter(torch.ones(config.embed_dim))
        self.norm2 = nn.LayerNorm(config.embed_dim, config.eps)
        self.mlp = MLP(config.embed_dim, config.mlp_ratio * config.embed_dim)
        self.gamma_2 = nn.Parameter(torch.ones(config.embed_dim))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, rows: Tensor) -> Tensor:
        """(N, T, C) -> the same shape."""
        x = x + self.drop_path(self.gamma_1 * self.attn(self.norm1(x), rows))
        x = x + self.drop_path(self.gamma_2 * self.mlp(self.norm2(x)))
        return x


# settings of mmsegmentation's BEiT and MAE that change what is computed
_SETTINGS: dict[tuple[str, ...], tuple[Any, ...]] = {
    ("type",): ("BEiT", "MAE"),
    ("num_fcs",): (2,),
    ("patch_norm",): (False,),
    ("final_norm",): (False,),
    ("act_cfg", "type"): ("GELU",),
    ("norm_cfg", "type"): ("LN",),
    ("qkv_bias",): (True,),  # from here on as the authors call it
    ("use_abs_pos_emb",): (False,),
    ("use_rel_pos_bias",): (True,),
    ("use_shared_rel_pos_bias",): (False,),
}
_BLOCK, _THEIR_BLOCK = "backbone.blocks.{i}.", "backbone.layers.{i}."
_LAYER = "beit.encoder.layer.{i}."


@register_backbone
class BEiT(PlainTransformer):
    """BEiT or MAE of any size, without a classifier."""

    config_class = BEiTConfig
    mmseg_known = frozenset(["num_fcs", "patch_norm", "final_norm", "qv_bias", "init_values"]) | frozenset(
        ["in_chans", "embed_dim", "depth", "qkv_bias", "use_abs_pos_emb", "use_rel_pos_bias", "use_shared_rel_pos_bias"]
    )  # the latter in the authors' code
    key_tables: ClassVar[Mapping[str, tuple[KeyTable, ...]]] = {
        "mmsegmentation": (
            KeyTable(
                ("backbone.patch_embed.", "backbone.patch_embed.projection."),
                (_BLOCK + "norm1.", _THEIR_BLOCK + "ln1."),
                (_BLOCK + "norm2.", _THEIR_BLOCK + "ln2."),
                (_BLOCK + "mlp.fc1.", _THEIR_BLOCK + "ffn.layers.0.0."),
                (_BLOCK + "mlp.fc2.", _THEIR_BLOCK + "ffn.layers.1."),
                (_BLOCK, _THEIR_BLOCK),
                ours=("backbone.blocks.0.attn.relative_position_bias_table",),
                theirs=("backbone.layers.0.attn.relative_position_bias_table",),
                derived=(_THEIR_BLOCK + "attn.relative_position_index",),
            ),
        ),
        "transformers": (
            KeyTable(
                ("backbone.patch_embed.", "beit.embeddings.patch_embeddings.projection."),
                ("backbone.cls_token", "beit.embeddings.cls_token"),
                (_BLOCK + "norm1.", _LAYER + "layernorm_before."),
                (_BLOCK + "norm2.", _LAYER + "layernorm_after."),
                Rule(_BLOCK + "attn.qkv.weight", tuple(f"{_LAYER}attention.attention.{part}.weight" for part in ("query", "key", "value"))),
                (_BLOCK + "attn.q_bias", _LAYER + "attention.attention.query.bias"),
                (_BLOCK + "attn.v_bias", _LAYER + "attention.attention.value.bias"),
                (
                    _BLOCK + "attn.relative_position_bias_table",
                    _LAYER + "attention.attention.relative_position_bias.relative_position_bias_table",
                ),
                (_BLOCK + "attn.proj.", _LAYER + "attention.output.dense."),
                (_BLOCK + "gamma_1", _LAYER + "lambda_1"),
                (_BLOCK + "gamma_2", _LAYER + "lambda_2"),
                (_BLOCK + "mlp.fc1.", _LAYER + "intermediate.dense."),
                (_BLOCK + "mlp.fc2.", _LAYER + "output.dense."),
                ours=("backbone.blocks.0.attn.relative_position_bias_table", "backbone.blocks.0.attn.q_bias"),
                theirs=("beit.embeddings.cls_token", "beit.encoder.layer.0.attention.attention.query.weight"),
                derived=(
                    _LAYER + "attention.attention.relative_position_bias.relative_position_index",
                    "beit.embeddings.mask_token",  # which, as this norm, segmentation has no use for
                    "beit.layernorm.",
                ),
            ),
        ),
        "authors": (  # of microsoft's own code, for BEiT and BEiT v2
            KeyTable(
                ("backbone.patch_embed.", "backbone.patch_embed.proj."),
                ours=("backbone.blocks.0.attn.relative_position_bias_table", "backbone.blocks.0.attn.q_bias"),
                theirs=("backbone.patch_embed.proj.weight", "backbone.blocks.0.attn.relative_position_bias_table"),
                derived=(_BLOCK + "attn.relative_position_index",),
            ),
        ),
    }

    def __init__(self, config: BEiTConfig) -> None:
        super().__init__(config)
        self.config: BEiTConfig
        self.pos_embed = nn.Parameter(torch.zeros(1, config.grid[0] * config.grid[1] + 1, config.embed_dim)) if config.mae else None
        self.blocks = nn.ModuleList(BEiTBlock(config, rate) for rate in drop_path_rates(config.drop_path, config.depth))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Picture (N, in_channels, H, W) -> four features at stride `patch`.

        Raises:
            ArgumentError: another size than the config's; pixels beyond the last whole patch, at most `patch - 1`, are cut off.
        """
        refuse_fx(self, x)
        patch = self.config.patch
        if (x.shape[2] // patch, x.shape[3] // patch) != self.config.grid:
            height, width = self.config.input_size
            raise ArgumentError(
                f"{self.config.title} takes pictures of {height}x{width} pixels only, found {x.shape[2]}x{x.shape[3]}. Segmenter cuts any "
                "picture into such windows; for the model alone, resize or cut it."
            )
        x, size = self.tokens(x)
        if self.pos_embed is not None:
            x = x + self.pos_embed
        rows = table_rows(*size, x.device)
        features = []
        for i, block in enumerate(self.blocks):
            x = checkpointed(block, x, self.grad_checkpointing, rows)
            if i in self.config.out_indices:
                features.append(self.feature(x, size))
        return features

    def reset_parameters(self) -> None:
        """Linear layers, tables and embeddings from N(0, 0.02) cut at two deviations, as in the original training."""
        reset_transformer(self)
        for name, parameter in self.named_parameters():
            if name.endswith(("relative_position_bias_table", "pos_embed", "cls_token")):
                nn.init.trunc_normal_(parameter, std=0.02)
            elif name.endswith(("gamma_1", "gamma_2")):
                nn.init.constant_(parameter, 1.0 if self.config.mae else 0.1)
            elif name.endswith(("q_bias", "v_bias")):
                nn.init.zeros_(parameter)

    def after(self) -> list[nn.Parameter]:
        """None."""
        return []

    def no_decay(self) -> set[str]:
        """Norms, biases, the tables of biases, the scales and the embeddings."""
        ends = ("relative_position_bias_table", "pos_embed", "cls_token", "gamma_1", "gamma_2")
        return super().no_decay() | {name for name, _ in self.named_parameters() if name.endswith(ends)}

    def peak_values(self, pixels: int) -> float:
        """In a perceptron: tokens, normed ones, the hidden ones before and after GELU, and kept features; or the bias of a block."""
        config = self.config
        tokens = config.grid[0] * config.grid[1] + 1
        return pixels / config.patch**2 * config.embed_dim * (6 + 2 * config.mlp_ratio) + 2 * config.num_heads * tokens**2

    @classmethod
    def recognize(cls, tensors: Mapping[str, Tensor], settings: Mapping[str, Any], library: str) -> BEiTConfig | None:
        """The config of a checkpoint's BEiT or MAE. See `Backbone.recognize`.

        Without settings its pictures are square, and features come after a third, a half, two thirds and all of the blocks, as published.
        """
        patches, table = tensors.get("patch_embed.weight"), tensors.get("blocks.0.attn.relative_position_bias_table")
        hidden = tensors.get("blocks.0.mlp.fc1.weight")
        if patches is None or table is None or hidden is None or patches.dim() != 4 or table.dim() != 2:
            return None
        require_settings(settings, _SETTINGS, "model.backbone")
        width, patch = patches.shape[0], patches.shape[2]
        depth = count_blocks(tensors, "blocks.")
        mae = "pos_embed" in tensors
        side = (math.isqrt(table.shape[0] - 3) + 1) // 2
        return BEiTConfig(
            embed_dim=width,
            depth=depth,
            num_heads=table.shape[1],
            grid=grid_of(settings.get("img_size"), patch, tensors["pos_embed"].shape[1] - 1 if mae else side * side),
            patch=patch,
            out_indices=four_of(settings.get("out_indices", [depth * i // 6 - 1 for i in (2, 3, 4, 6)]), depth),
            mlp_ratio=hidden.shape[0] // width,
            mae=mae,
            eps=settings.get("norm_cfg", {}).get("eps", 1e-6),
            drop_path=settings.get("drop_path_rate", 0.1),
            in_channels=patches.shape[1],
        )

    @classmethod
    def to_mmseg(cls, config: BEiTConfig) -> dict[str, Any]:
        """`model.backbone` of a config of mmsegmentation 0.x."""
        return {
            "type": "MAE" if config.mae else "BEiT",
            "img_size": config.input_size,
            "patch_size": config.patch,
            "in_channels": config.in_channels,
            "embed_dims": config.embed_dim,
            "num_layers": config.depth,
            "num_heads": config.num_heads,
            "mlp_ratio": config.mlp_ratio,
            "out_indices": config.out_indices,
            **({} if config.mae else {"qv_bias": True}),
            "drop_path_rate": config.drop_path,
            "init_values": 1.0 if config.mae else 0.1,
            "norm_cfg": {"type": "LN", "eps": config.eps},
            "act_cfg": {"type": "GELU"},
        }

    @classmethod
    def mmseg_buffers(cls, config: BEiTConfig) -> dict[str, Tensor]:
        """The rows of the bias table, for each block the same tensor, which a file then holds once."""
        rows = table_rows(*config.grid, torch.device("cpu"))
        return {f"layers.{i}.attn.relative_position_index": rows for i in range(config.depth)}
