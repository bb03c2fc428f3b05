"""Twins (Chu et al. 2021): PCPVT, whose attention is global over a smaller map, and SVT, where every other block attends within windows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...config import MAX_BLOCKS, BackboneConfig, fail, require_bool, require_integer, require_integers, require_share
from ...errors import ConfigError
from ...registry import register_backbone
from ..blocks import MLP, DropPath, Windows, attend, drop_path_rates, is_exported, missing, pad_to_multiple, reset_transformer
from ..key_tables import KeyTable
from ..layers import checkpointed
from ..scripting import refuse_fx
from ._base import Backbone, count_blocks, require_settings

__all__ = ["GlobalAttention", "LocalAttention", "Twins", "TwinsBlock", "TwinsConfig", "TwinsStage"]


@dataclass(frozen=True, kw_only=True)
class TwinsConfig(BackboneConfig):
    """Options of a Twins backbone.

    Args:
        widths: channels of each stage.
        depths: blocks of each stage.
        num_heads: attention heads of each stage.
        mlp_ratios: hidden channels of the perceptrons of each stage, as multiples of their channels.
        reduction_ratios: by how much the map of keys and values is smaller in global attention, for each stage.
        local: SVT: blocks with even numbers attend within windows, and each stage ends in a norm. False: PCPVT.
        window: side of a window in tokens.
        eps: of every layer norm. OpenMMLab's models have 1e-5, the authors' 1e-6.
        drop_path: rate of stochastic depth at the last block, in training.

    Raises:
        ConfigError: a value that cannot be used.
    """

    kind: ClassVar[str] = "twins"
    widths: tuple[int, ...] = (64, 128, 320, 512)
    depths: tuple[int, ...] = (3, 4, 6, 3)
    num_heads: tuple[int, ...] = (1, 2, 5, 8)
    mlp_ratios: tuple[int, ...] = (8, 8, 4, 4)
    reduction_ratios: tuple[int, ...] = (8, 4, 2, 1)
    local: bool = False
    window: int = 7
    eps: float = 1e-5
    drop_path: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        owner = "TwinsConfig"
        for key in ("widths", "depths", "num_heads", "mlp_ratios", "reduction_ratios"):
            object.__setattr__(self, key, require_integers(owner, key, getattr(self, key), 4))
        require_integers(owner, "depths", self.depths, 4, maximum=MAX_BLOCKS)
        if any(width % heads for width, heads in zip(self.widths, self.num_heads)):
            fail(owner, "num_heads", f"divisors of the stages' channels {self.widths}", self.num_heads)
        require_bool(owner, "local", self.local)
        require_integer(owner, "window", self.window, maximum=1 << 10)
        require_share(owner, eps=self.eps, drop_path=self.drop_path)

    @property
    def title(self) -> str:
        """Such as "Twins-PCPVT-S"; other sizes than the published ones go by their numbers."""
        kind = "SVT" if self.local else "PCPVT"
        name = _TITLES.get((self.local, self.widths[0], self.depths))
        return f"Twins-{kind}-{name}" if name else f"Twins-{kind} (width {self.widths[0]}, depths {', '.join(map(str, self.depths))})"

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of the four features."""
        return self.widths

    @property
    def reductions(self) -> tuple[int, ...]:
        """4, 8, 16 and 32."""
        return 4, 8, 16, 32


_TITLES: dict[tuple[bool, int, tuple[int, ...]], str] = {
    (False, 64, (3, 4, 6, 3)): "S",
    (False, 64, (3, 4, 18, 3)): "B",
    (False, 64, (3, 8, 27, 3)): "L",
    (True, 64, (2, 2, 10, 4)): "S",
    (True, 96, (2, 2, 18, 2)): "B",
    (True, 128, (2, 2, 18, 2)): "L",
}  # Chu et al. 2021, tables 1 and 2


class GlobalAttention(nn.Module):
    """Queries from every place; keys and values from a map that is `ratio` times smaller."""

    def __init__(self, channels: int, heads: int, ratio: int, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj = nn.Linear(channels, 3 * channels)  # queries, keys and values in one, as torch.nn.MultiheadAttention has it
        self.out_proj = nn.Linear(channels, channels)
        self.reduce = nn.Conv2d(channels, channels, ratio, ratio) if ratio > 1 else None
        self.norm = nn.LayerNorm(channels, eps) if ratio > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) -> the same shape; rows and columns beyond the last whole step of `ratio` give no key."""
        small = x
        if self.reduce is not None and self.norm is not None:
            small = self.norm(self.reduce(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        weight, bias, channels = self.in_proj.weight, self.in_proj.bias, x.shape[3]
        q = F.linear(x, weight[:channels], bias[:channels]).flatten(1, 2).unflatten(2, (self.heads, -1)).transpose(1, 2)
        pairs = F.linear(small, weight[channels:], bias[channels:]).flatten(1, 2)
        k, v = pairs.unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended: Tensor = self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape))
        return attended


class LocalAttention(nn.Module):
    """Attention within windows."""

    def __init__(self, channels: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) -> the same shape.

        Tokens that fill up the last windows are masked only where both sides needed filling: mmsegmentation's mask has no effect where
        one of them did not, and the published numbers were measured so.
        """
        count, height, width, _ = x.shape
        windows = Windows(height, width, self.window, 0, x.device)
        mask = None
        below, right = missing(height, self.window), missing(width, self.window)
        if is_exported() or (below and right):
            filled = windows.filled
            if is_exported():  # whether both sides needed it shows when the graph runs
                both = torch.scalar_tensor(below * right, dtype=torch.int64, device=x.device) > 0
                filled = filled & both
            mask = windows.between(filled, -1000.0).to(x.dtype)[:, None].repeat(count, 1, 1, 1)
        return windows.join(self.proj(attend(self.qkv(windows.cut(x)), self.heads, mask)), x)


class TwinsBlock(nn.Module):
    """Attention and a perceptron, each behind a norm and beside a shortcut."""

    def __init__(self, channels: int, attn: nn.Module, mlp_ratio: int, eps: float, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps)
        self.attn = attn
        self.norm2 = nn.LayerNorm(channels, eps)
        self.mlp = MLP(channels, mlp_ratio * channels)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) -> the same shape."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        x = x + self.drop_path(self.mlp(self.norm2(x)))
        return x


class TwinsStage(nn.Module):
    """Smaller by `patch`, then blocks, with a position encoding by convolution after the first."""

    def __init__(self, config: TwinsConfig, number: int, in_channels: int, rates: list[float]) -> None:
        super().__init__()
        channels, heads, eps = config.widths[number], config.num_heads[number], config.eps
        self.patch = 4 if number == 0 else 2
        self.projection = nn.Conv2d(in_channels, channels, self.patch, self.patch)
        self.norm = nn.LayerNorm(channels, eps)
        self.blocks = nn.ModuleList()
        for i, rate in enumerate(rates):
            attn: nn.Module
            if config.local and i % 2 == 0:
                attn = LocalAttention(channels, heads, config.window)
            else:
                attn = GlobalAttention(channels, heads, config.reduction_ratios[number], eps)
            self.blocks.append(TwinsBlock(channels, attn, config.mlp_ratios[number], eps, rate))
        self.position = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.out_norm = nn.LayerNorm(channels, eps) if config.local else None

    def forward(self, x: Tensor, grad_checkpointing: bool) -> Tensor:
        """(N, in_channels, H, W) -> (N, C, ceil(H / patch), ceil(W / patch))."""
        x = self.norm(self.projection(pad_to_multiple(x, self.patch)).permute(0, 2, 3, 1))
        for i, block in enumerate(self.blocks):
            x = checkpointed(block, x, grad_checkpointing)
            if i == 0:
                x = x + self.position(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        if self.out_norm is not None:
            x = self.out_norm(x)
        return x.permute(0, 3, 1, 2)


_BLOCK, _THEIR_BLOCK = "backbone.stage{i}.blocks.{j}.", "backbone.layers.{i}.{j}."
# settings of mmsegmentation's PCPVT and SVT that change what is computed
_SETTINGS: dict[tuple[str, ...], tuple[Any, ...]] = {
    ("type",): ("PCPVT", "SVT"),
    ("patch_sizes",): ((4, 2, 2, 2),),
    ("strides",): ((4, 2, 2, 2),),
    ("out_indices",): ((0, 1, 2, 3),),
    ("qkv_bias",): (True,),
    ("norm_cfg", "type"): ("LN",),
}


@register_backbone
class Twins(Backbone):
    """Twins-PCPVT or Twins-SVT of any size, without a classifier."""

    config_class = TwinsConfig
    mmseg_known = frozenset(["windiow_sizes", "window_sizes"])
    key_tables: ClassVar[Mapping[str, tuple[KeyTable, ...]]] = {
        "mmsegmentation": (
            KeyTable(
                ("backbone.stage{i}.projection.", "backbone.patch_embeds.{i}.projection."),
                ("backbone.stage{i}.norm.", "backbone.patch_embeds.{i}.norm."),
                ("backbone.stage{i}.position.", "backbone.position_encodings.{i}.proj."),
                ("backbone.stage{i}.out_norm.", "backbone.norm_list.{i}."),
                (_BLOCK + "attn.in_proj.", _THEIR_BLOCK + "attn.attn.in_proj_"),
                (_BLOCK + "attn.out_proj.", _THEIR_BLOCK + "attn.attn.out_proj."),
                (_BLOCK + "attn.reduce.", _THEIR_BLOCK + "attn.sr."),
                (_BLOCK + "mlp.fc1.", _THEIR_BLOCK + "ffn.layers.0.0."),
                (_BLOCK + "mlp.fc2.", _THEIR_BLOCK + "ffn.layers.1."),
                (_BLOCK, _THEIR_BLOCK),
                ours=("backbone.stage0.projection.weight", "backbone.stage0.position.weight"),
                theirs=("backbone.patch_embeds.0.projection.weight", "backbone.position_encodings.0.proj.weight"),
            ),
        ),
    }

    def __init__(self, config: TwinsConfig) -> None:
        super().__init__(config, [f"stage{i}" for i in range(4)])
        self.config: TwinsConfig
        rates = list(drop_path_rates(config.drop_path, sum(config.depths)))
        before = config.in_channels
        for i, depth in enumerate(config.depths):
            self.add_module(f"stage{i}", TwinsStage(config, i, before, rates[:depth]))
            rates, before = rates[depth:], config.widths[i]

    def forward(self, x: Tensor) -> list[Tensor]:
        """Picture (N, in_channels, H, W) -> features at strides 4, 8, 16, 32; a side of n pixels becomes ceil(n / stride)."""
        refuse_fx(self, x)
        features = []
        for i in range(4):
            x = self.get_submodule(f"stage{i}")(x, self.grad_checkpointing)
            features.append(x)
        return features

    def reset_parameters(self) -> None:
        """Linear layers from N(0, 0.02) cut at two deviations, as in the original training."""
        reset_transformer(self)

    def stages(self) -> list[list[nn.Parameter]]:
        """The first stage's projection, then what else each stage has."""
        first = self.get_submodule("stage0.projection")
        stages = [list(self.get_submodule(f"stage{i}").parameters()) for i in range(4)]
        before = list(first.parameters())
        stages[0] = [p for p in stages[0] if all(p is not other for other in before)]
        return [before, *stages]

    @property
    def first_conv(self) -> nn.Conv2d:
        """The first stage's projection."""
        conv = self.get_submodule("stage0.projection")
        assert isinstance(conv, nn.Conv2d)
        return conv

    def peak_values(self, pixels: int) -> float:
        """In the first stage's perceptron: tokens, the normed ones, the hidden ones before and after GELU."""
        return pixels / 16 * self.config.widths[0] * (4 + 2 * self.config.mlp_ratios[0])

    @classmethod
    def recognize(cls, tensors: Mapping[str, Tensor], settings: Mapping[str, Any], library: str) -> TwinsConfig | None:
        """The config of a checkpoint's Twins. See `Backbone.recognize`.

        The number of heads and the window are not in the tensors: without settings they are the published ones: 64 channels a head in
        PCPVT, 32 in SVT, and windows of 7.
        """
        names = [f"stage{i}.{part}.weight" for part in ("projection", "blocks.0.mlp.fc1") for i in range(4)]
        weights = [weight for name in names if (weight := tensors.get(name)) is not None and weight.dim() >= 2]
        if len(weights) < len(names) or "stage0.position.weight" not in tensors:
            return None
        projections, hidden = weights[:4], weights[4:]
        require_settings(settings, _SETTINGS, "model.backbone")
        local = "stage0.out_norm.weight" in tensors
        windows = settings.get("windiow_sizes", settings.get("window_sizes", (7, 7, 7, 7)))  # the first is how 0.x spells it
        if len(set(windows)) != 1:
            raise ConfigError(f"has a Twins with windows of different sizes {tuple(windows)}; known are those of one size.")
        widths = tuple(tensor.shape[0] for tensor in projections)
        ratios = (tensors.get(f"stage{i}.blocks.{int(local)}.attn.reduce.weight") for i in range(4))
        return TwinsConfig(
            widths=widths,
            depths=tuple(count_blocks(tensors, f"stage{i}.blocks.") for i in range(4)),
            num_heads=tuple(settings.get("num_heads", (max(width // (32 if local else 64), 1) for width in widths))),
            mlp_ratios=tuple(tensor.shape[0] // tensor.shape[1] for tensor in hidden),
            reduction_ratios=tuple(1 if ratio is None else ratio.shape[2] for ratio in ratios),
            local=local,
            window=windows[0],
            eps=settings.get("norm_cfg", {}).get("eps", 1e-5),
            drop_path=settings.get("drop_path_rate", 0.2),
            in_channels=projections[0].shape[1],
        )

    @classmethod
    def to_mmseg(cls, config: TwinsConfig) -> dict[str, Any]:
        """`model.backbone` of a config of mmsegmentation 0.x."""
        return {
            "type": "SVT" if config.local else "PCPVT",
            "in_channels": config.in_channels,
            "embed_dims": list(config.widths),
            "num_heads": list(config.num_heads),
            "patch_sizes": [4, 2, 2, 2],
            "strides": [4, 2, 2, 2],
            "mlp_ratios": list(config.mlp_ratios),
            "out_indices": (0, 1, 2, 3),
            "qkv_bias": True,
            "norm_cfg": {"type": "LN", "eps": config.eps},
            "depths": list(config.depths),
            "sr_ratios": list(config.reduction_ratios),
            "norm_after_stage": config.local,
            **({"windiow_sizes": [config.window] * 4} if config.local else {}),  # 0.x spells it so
            "drop_path_rate": config.drop_path,
        }
