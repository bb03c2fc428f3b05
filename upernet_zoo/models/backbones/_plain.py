"""What plain transformers share: tokens of one size from the first block to the last, and four features at one stride."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...config import MAX_BLOCKS, BackboneConfig, fail, require_integer, require_integers, require_share
from ...errors import ConfigError
from ._base import Backbone

__all__ = ["PlainConfig", "PlainTransformer", "four_of", "grid_of"]


@dataclass(frozen=True, kw_only=True)
class PlainConfig(BackboneConfig):
    """Options that plain transformers have in common.

    Args:
        embed_dim: channels.
        depth: blocks.
        num_heads: attention heads.
        grid: (height, width) in patches of the pictures in training.
        patch: side of a patch in pixels.
        out_indices: blocks that give the four features, counted from 0.
        mlp_ratio: hidden channels of a perceptron, as a multiple of its channels.
        eps: of every layer norm.
        drop_path: rate of stochastic depth at the last block, in training.

    Raises:
        ConfigError: a value that cannot be used.
    """

    max_side: ClassVar[int]  # of a grid
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    grid: tuple[int, int] = (32, 32)
    patch: int = 16
    out_indices: tuple[int, ...] = (2, 5, 8, 11)
    mlp_ratio: int = 4
    eps: float = 1e-6
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        owner = type(self).__name__
        for key in ("embed_dim", "depth", "num_heads", "patch", "mlp_ratio"):
            require_integer(owner, key, getattr(self, key), maximum=MAX_BLOCKS if key == "depth" else 1 << 12)
        object.__setattr__(self, "grid", require_integers(owner, "grid", self.grid, 2, maximum=self.max_side))
        object.__setattr__(self, "out_indices", require_integers(owner, "out_indices", self.out_indices, 4, minimum=0))
        if list(self.out_indices) != sorted(set(self.out_indices)) or self.out_indices[-1] >= self.depth:
            fail(owner, "out_indices", f"four rising numbers below the depth of {self.depth}", self.out_indices)
        if self.embed_dim % self.num_heads:
            fail(owner, "num_heads", f"a divisor of the {self.embed_dim} channels", self.num_heads)
        require_share(owner, eps=self.eps, drop_path=self.drop_path)

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of the four features, all alike."""
        return (self.embed_dim,) * 4

    @property
    def reductions(self) -> tuple[int, ...]:
        """The patch's side, four times."""
        return (self.patch,) * 4


class PlainTransformer(Backbone):
    """Patches and a class token, then blocks, four of which give a feature.

    Args:
        config: its options.
    """

    config: PlainConfig
    blocks: nn.ModuleList
    pos_embed: nn.Parameter | None

    def __init__(self, config: PlainConfig) -> None:
        super().__init__(config, [f"blocks.{i}" for i in config.out_indices])
        self.patch_embed = nn.Conv2d(config.in_channels, config.embed_dim, config.patch, config.patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.embed_dim))

    def tokens(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Picture (N, in_channels, H, W) -> tokens (N, 1 + h * w, C), the class token first, and (h, w)."""
        x = self.patch_embed(x)
        return torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x.flatten(2).transpose(1, 2)], 1), (x.shape[2], x.shape[3])

    @staticmethod
    def feature(tokens: Tensor, size: tuple[int, int]) -> Tensor:
        """(N, 1 + h * w, C) -> (N, C, h, w), without the class token."""
        feature: Tensor = tokens[:, 1:].transpose(1, 2).unflatten(2, size)
        return feature

    @abstractmethod
    def after(self) -> list[nn.Parameter]:
        """The parameters behind the blocks, which go with the last of them."""

    def _before(self) -> list[nn.Parameter]:
        positions = [] if self.pos_embed is None else [self.pos_embed]
        return [*self.patch_embed.parameters(), self.cls_token, *positions]

    def stages(self) -> list[list[nn.Parameter]]:
        """What is before the blocks, then the blocks up to the first feature, the second, the third, and the rest."""
        starts = (0, *(i + 1 for i in self.config.out_indices[:3]))
        ends = (*starts[1:], self.config.depth)
        stages = [self._before(), *([p for block in self.blocks[a:b] for p in block.parameters()] for a, b in zip(starts, ends))]
        stages[-1] += self.after()
        return stages

    def layers(self) -> list[list[nn.Parameter]]:
        """What is before the blocks, then block by block."""
        layers = [self._before(), *(list(block.parameters()) for block in self.blocks)]
        layers[-1] += self.after()
        return layers

    @property
    def first_conv(self) -> nn.Conv2d:
        """The patch embedding."""
        return self.patch_embed


def grid_of(img_size: Any, patch: int, count: int) -> tuple[int, int]:
    """(height, width) in patches of pictures of `img_size`, a side or two; without one, the square of `count` patches.

    Raises:
        ConfigError: another number of patches than the embedding has.
    """
    sides = (img_size, img_size) if isinstance(img_size, int) else img_size
    grid = (math.isqrt(count),) * 2 if sides is None else tuple(side // patch for side in sides)
    if len(grid) != 2 or grid[0] * grid[1] != count:
        raise ConfigError(f"its position embedding is of {count} patches, and its pictures in training of {grid} (img_size).")
    return grid[0], grid[1]


def four_of(out_indices: Any, depth: int) -> tuple[int, ...]:
    """The blocks that give features: as said, where a last one may be -1; else every quarter."""
    if out_indices is None:
        return tuple(depth * (i + 1) // 4 - 1 for i in range(4))
    return tuple(i % depth for i in out_indices)
