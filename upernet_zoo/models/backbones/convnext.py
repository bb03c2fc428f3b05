"""ConvNeXt (Liu et al. 2022): convolutions in the shape of a transformer's blocks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...config import MAX_BLOCKS, BackboneConfig, require_integers, require_share
from ...errors import ArgumentError, ConfigError
from ...registry import register_backbone
from ..blocks import MLP, DropPath, LayerNorm2d, drop_path_rates, reset_transformer
from ..fused.layers import AT_ONCE, AddedMLP, Patches, fold_norm, inference, set_weights
from ..key_tables import KeyTable
from ..layers import checkpointed
from ._base import Backbone, count_blocks, require_settings

__all__ = ["ConvNeXt", "ConvNeXtBlock", "ConvNeXtConfig", "ConvNeXtStage", "FusedConvNeXt"]


@dataclass(frozen=True, kw_only=True)
class ConvNeXtConfig(BackboneConfig):
    """Options of a ConvNeXt.

    Args:
        depths: blocks of each stage.
        widths: channels of each stage.
        eps: of the layer norms in the stem, the blocks and behind the stages.
        downsample_eps: of the layer norms between the stages: mmcls, which trained OpenMMLab's models, has 1e-5 there; the authors'
            code, timm, torchvision and transformers have 1e-6.
        drop_path: rate of stochastic depth at the last block, in training.

    Raises:
        ConfigError: a value that cannot be used.
    """

    kind: ClassVar[str] = "convnext"
    depths: tuple[int, ...] = (3, 3, 9, 3)
    widths: tuple[int, ...] = (96, 192, 384, 768)
    eps: float = 1e-6
    downsample_eps: float = 1e-5
    drop_path: float = 0.4

    def __post_init__(self) -> None:
        super().__post_init__()
        for key, maximum in (("depths", MAX_BLOCKS), ("widths", 1 << 16)):
            object.__setattr__(self, key, require_integers("ConvNeXtConfig", key, getattr(self, key), 4, maximum=maximum))
        require_share("ConvNeXtConfig", eps=self.eps, downsample_eps=self.downsample_eps, drop_path=self.drop_path)

    @property
    def title(self) -> str:
        """Such as "ConvNeXt-S"; other sizes than the published ones go by their numbers."""
        name = _TITLES.get((self.widths[0], self.depths))
        return f"ConvNeXt-{name}" if name else f"ConvNeXt (width {self.widths[0]}, depths {', '.join(map(str, self.depths))})"

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of the four features."""
        return self.widths

    @property
    def reductions(self) -> tuple[int, ...]:
        """4, 8, 16 and 32."""
        return 4, 8, 16, 32


_TITLES: dict[tuple[int, tuple[int, ...]], str] = {
    (96, (3, 3, 9, 3)): "T",
    (96, (3, 3, 27, 3)): "S",
    (128, (3, 3, 27, 3)): "B",
    (192, (3, 3, 27, 3)): "L",
    (256, (3, 3, 27, 3)): "XL",
}  # Liu et al. 2022, section 3


class ConvNeXtBlock(nn.Module):
    """A depthwise 7x7 convolution and a perceptron behind a norm, scaled, beside a shortcut."""

    def __init__(self, channels: int, eps: float, drop_path: float) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps)
        self.mlp = MLP(channels, 4 * channels)
        self.gamma = nn.Parameter(torch.ones(channels))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape."""
        branch: Tensor = self.mlp(self.norm(self.dwconv(x).permute(0, 2, 3, 1)))
        x = x + self.drop_path((self.gamma * branch).permute(0, 3, 1, 2))
        return x


class ConvNeXtStage(nn.Module):
    """Half the sides (but for the first stage), then blocks. A last odd row or column is lost, as published."""

    def __init__(self, downsample: nn.Sequential | None, blocks: list[ConvNeXtBlock]) -> None:
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.ModuleList(blocks)


_BLOCK = "backbone.stage{i}.blocks.{j}."
_MMCLS_BLOCK, _HUB_BLOCK = "backbone.stages.{i}.{j}.", "backbone.encoder.stages.{i}.layers.{j}."
_SMP = "encoder.model."
# settings of mmcls' ConvNeXt that change what is computed
_SETTINGS: dict[tuple[str, ...], tuple[Any, ...]] = {
    ("type",): ("ConvNeXt",),
    ("out_indices",): ((0, 1, 2, 3),),
    ("stem_patch_size",): (4,),
    ("linear_pw_conv",): (True,),
    ("gap_before_final_norm",): (True, False),  # of an average that no feature is
    ("act_cfg", "type"): ("GELU",),
    ("norm_cfg", "type"): ("LN2d",),
}
# the same of transformers' ConvNextConfig
_TRANSFORMERS_SETTINGS: dict[tuple[str, ...], tuple[Any, ...]] = {
    ("patch_size",): (4, (4, 4)),
    ("hidden_act",): ("gelu",),
    ("out_features",): (("stage1", "stage2", "stage3", "stage4"),),
}
_EPS = 1e-6  # of all layer norms in the authors' code, transformers (whatever its config says) and timm
_MMCLS_EPS = 1e-5  # of those between the stages in mmcls, whatever its config says; its successor mmpretrain has one for all


@register_backbone
class ConvNeXt(Backbone):
    """ConvNeXt of any size, without a classifier."""

    config_class = ConvNeXtConfig
    mmseg_v1: ClassVar[Mapping[str, Any]] = {"type": "mmpretrain.ConvNeXt"}
    mmseg_known = frozenset(
        ["stem_patch_size", "linear_pw_conv", "layer_scale_init_value", "act_cfg", "norm_cfg", "in_chans", "depths", "dims"]
    )  # the last three in the authors' code
    key_tables: ClassVar[Mapping[str, tuple[KeyTable, ...]]] = {
        "mmsegmentation": (
            KeyTable(
                (_BLOCK + "dwconv.", _MMCLS_BLOCK + "depthwise_conv."),
                (_BLOCK + "mlp.fc1.", _MMCLS_BLOCK + "pointwise_conv1."),
                (_BLOCK + "mlp.fc2.", _MMCLS_BLOCK + "pointwise_conv2."),
                (_BLOCK, _MMCLS_BLOCK),
                ("backbone.stem.", "backbone.downsample_layers.0."),
                ("backbone.stage{i}.downsample.", "backbone.downsample_layers.{i}."),
                ours=("backbone.stem.0.weight", "backbone.stage0.blocks.0.gamma"),
                theirs=("backbone.downsample_layers.0.0.weight", "backbone.stages.0.0.depthwise_conv.weight"),
            ),
        ),
        # as the conversion script named them
        "transformers": (
            KeyTable(
                ("backbone.stem.0.", "backbone.embeddings.patch_embeddings."),
                ("backbone.stem.1.", "backbone.embeddings.layernorm."),
                (_BLOCK + "gamma", _HUB_BLOCK + "layer_scale_parameter"),
                (_BLOCK + "norm.", _HUB_BLOCK + "layernorm."),
                (_BLOCK + "mlp.fc1.", _HUB_BLOCK + "pwconv1."),
                (_BLOCK + "mlp.fc2.", _HUB_BLOCK + "pwconv2."),
                (_BLOCK, _HUB_BLOCK),
                ("backbone.stage{i}.downsample.", "backbone.encoder.stages.{i}.downsampling_layer."),
                *((f"backbone.norm{i}.", f"backbone.hidden_states_norms.stage{i + 1}.") for i in range(4)),
                ours=("backbone.stem.0.weight", "backbone.stage0.blocks.0.gamma"),
                theirs=("backbone.embeddings.patch_embeddings.weight", "backbone.encoder.stages.0.layers.0.dwconv.weight"),
            ),
        ),
        "authors": (  # of facebookresearch's own code
            KeyTable(
                (_BLOCK + "mlp.fc1.", _MMCLS_BLOCK + "pwconv1."),
                (_BLOCK + "mlp.fc2.", _MMCLS_BLOCK + "pwconv2."),
                (_BLOCK, _MMCLS_BLOCK),
                ("backbone.stem.", "backbone.downsample_layers.0."),
                ("backbone.stage{i}.downsample.", "backbone.downsample_layers.{i}."),
                ours=("backbone.stem.0.weight", "backbone.stage0.blocks.0.gamma"),
                theirs=("backbone.downsample_layers.0.0.weight", "backbone.stages.0.0.dwconv.weight"),
            ),
        ),
        "smp": (  # timm's names
            KeyTable(
                ("backbone.stem.", _SMP + "stem_"),
                (_BLOCK + "dwconv.", _SMP + "stages_{i}.blocks.{j}.conv_dw."),
                (_BLOCK, _SMP + "stages_{i}.blocks.{j}."),
                ("backbone.stage{i}.downsample.", _SMP + "stages_{i}.downsample."),
                ("backbone.norm{i}.", "decoder.feature_norms.{i}."),
                ours=("backbone.stem.0.weight", "backbone.stage0.blocks.0.gamma"),
                theirs=(_SMP + "stem_0.weight", _SMP + "stages_0.blocks.0.conv_dw.weight", "decoder.feature_norms.0.weight"),
            ),
        ),
    }

    def __init__(self, config: ConvNeXtConfig) -> None:
        super().__init__(config, [f"norm{i}" for i in range(4)])
        self.config: ConvNeXtConfig
        self.stem = nn.Sequential(nn.Conv2d(config.in_channels, config.widths[0], 4, 4), LayerNorm2d(config.widths[0], config.eps))
        rates = drop_path_rates(config.drop_path, sum(config.depths))
        before: int | None = None
        for i, (depth, channels) in enumerate(zip(config.depths, config.widths)):
            down = nn.Sequential(LayerNorm2d(before, config.downsample_eps), nn.Conv2d(before, channels, 2, 2)) if before else None
            self.add_module(f"stage{i}", ConvNeXtStage(down, [ConvNeXtBlock(channels, config.eps, next(rates)) for _ in range(depth)]))
            self.add_module(f"norm{i}", LayerNorm2d(channels, config.eps))
            before = channels

    def forward(self, x: Tensor) -> list[Tensor]:
        """Picture (N, in_channels, H, W) -> features at strides 4, 8, 16, 32; a side of n pixels becomes floor(n / stride)."""
        x = self.stem(x)
        features = []
        for i in range(4):
            stage = cast(ConvNeXtStage, self.get_submodule(f"stage{i}"))
            if stage.downsample is not None:
                x = stage.downsample(x)
            for block in stage.blocks:
                x = checkpointed(block, x, self.grad_checkpointing)
            features.append(self.get_submodule(f"norm{i}")(x))
        return features

    def reset_parameters(self) -> None:
        """All weights from N(0, 0.02) cut at two deviations, as in the original training; `gamma` from 1, as OpenMMLab's."""
        reset_transformer(self)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=0.02)
            elif isinstance(module, ConvNeXtBlock):
                nn.init.ones_(module.gamma)

    def stages(self) -> list[list[nn.Parameter]]:
        """The stem's parameters, then those of each stage with the norm of its feature."""
        parts = [[*self.get_submodule(f"stage{i}").parameters(), *self.get_submodule(f"norm{i}").parameters()] for i in range(4)]
        return [list(self.stem.parameters()), *parts]

    def layers(self) -> list[list[nn.Parameter]]:
        """As `stage_wise` in the original training: what halves the sides, then the blocks of each stage, then layers with nothing in them.

        There are as many of these as a decay by blocks would have. The norms of the features are in none.
        """
        stages = [cast(ConvNeXtStage, self.get_submodule(f"stage{i}")) for i in range(4)]
        down = [parameter for stage in stages if stage.downsample is not None for parameter in stage.downsample.parameters()]
        by_blocks = 3 + self.config.depths[2] // 3  # `num_layers` of the original: 6 for ConvNeXt-T, else 12
        empty: list[list[nn.Parameter]] = [[] for _ in range(by_blocks - 4)]
        return [[*self.stem.parameters(), *down], *(list(stage.blocks.parameters()) for stage in stages), *empty]

    def no_decay(self) -> set[str]:
        """All that is a vector: norms, biases, and the scales of the blocks."""
        return {name for name, parameter in self.named_parameters() if parameter.dim() == 1}

    @property
    def first_conv(self) -> nn.Conv2d:
        """The stem's convolution."""
        return cast(nn.Conv2d, self.stem[0])

    def peak_values(self, pixels: int) -> float:
        """In the first stage's perceptron: the map, the branch, the hidden channels before and after GELU."""
        return pixels / 16 * self.config.widths[0] * 11

    def fuse(self) -> FusedConvNeXt:
        """Layer scale and norms folded, channels last, perceptrons a few pixels at a time."""
        return FusedConvNeXt.of(self)

    @classmethod
    def recognize(cls, tensors: Mapping[str, Tensor], settings: Mapping[str, Any], library: str) -> ConvNeXtConfig | None:
        """The config of a checkpoint's ConvNeXt. See `Backbone.recognize`."""
        names = (f"stage{i}.blocks.0.dwconv.weight" for i in range(4))
        first = [conv for name in names if (conv := tensors.get(name)) is not None and conv.dim() == 4]
        stem = tensors.get("stem.0.weight")
        if stem is None or stem.dim() != 4 or len(first) < 4:
            return None
        require_settings(settings, _SETTINGS, "model.backbone")
        if stem.shape[2:] != (4, 4) or any(conv.shape[2:] != (7, 7) for conv in first):
            raise ConfigError("has a ConvNeXt with other kernels than 4x4 in the stem and 7x7 in the blocks.")
        if "stage0.blocks.0.gamma" not in tensors:
            raise ConfigError("has a ConvNeXt without layer scale, or ConvNeXt V2; known is ConvNeXt with layer scale.")
        is_other, kind = library in ("transformers", "smp", "authors"), settings.get("type", "")
        eps = _EPS if is_other else settings.get("norm_cfg", {}).get("eps", _EPS)
        return ConvNeXtConfig(
            depths=tuple(count_blocks(tensors, f"stage{i}.blocks.") for i in range(4)),
            widths=tuple(conv.shape[0] for conv in first),
            eps=eps,
            downsample_eps=_EPS if is_other else eps if str(getattr(kind, "name", kind)).startswith("mmpretrain.") else _MMCLS_EPS,
            drop_path=settings.get("drop_path_rate", 0.4),
            in_channels=stem.shape[1],
        )

    @classmethod
    def to_mmseg(cls, config: ConvNeXtConfig) -> dict[str, Any]:
        """`model.backbone` of a config of mmsegmentation 0.x: mmcls' ConvNeXt."""
        return {
            "type": "mmcls.ConvNeXt",
            "arch": {"depths": list(config.depths), "channels": list(config.widths)},
            "in_channels": config.in_channels,
            "out_indices": [0, 1, 2, 3],
            "drop_path_rate": config.drop_path,
            "layer_scale_init_value": 1.0,
            "gap_before_final_norm": False,
            **({} if config.eps == _EPS else {"norm_cfg": {"type": "LN2d", "eps": config.eps}}),
        }

    @classmethod
    def note_of(cls, config: ConvNeXtConfig, library: str) -> str | None:
        """What the epsilon between the stages changes in mmsegmentation. See `Backbone.note_of`."""
        theirs = {"mmsegmentation 0": _MMCLS_EPS, "mmsegmentation 1": config.eps}.get(library, config.downsample_eps)
        if config.downsample_eps == theirs:
            return None
        return (
            f"The layer norms between the stages have an epsilon of {config.downsample_eps:g}, and {theirs:g} in {library}.x, whatever its "
            "config says: logits differ by up to 1e-4 of the largest."
        )

    @classmethod
    def to_smp(cls, config: ConvNeXtConfig) -> dict[str, Any]:
        """The options of timm's ConvNeXt."""
        return {
            "encoder_name": "tu-convnext_tiny",  # the options make another of it
            "depths": list(config.depths),
            "dims": list(config.widths),
            "drop_path_rate": config.drop_path,
        }

    @classmethod
    def to_transformers(cls, config: ConvNeXtConfig) -> dict[str, Any]:
        """The ConvNextConfig of transformers, which also keeps `downsample_eps`, and does nothing with it."""
        if config.eps != _EPS:
            raise ArgumentError(f"its layer norms have an epsilon of {config.eps:g}, and transformers' {_EPS:g}")
        return {
            "model_type": "convnext",
            "num_channels": config.in_channels,
            "depths": list(config.depths),
            "hidden_sizes": list(config.widths),
            "layer_scale_init_value": 1.0,
            "drop_path_rate": config.drop_path,
            "out_features": ["stage1", "stage2", "stage3", "stage4"],
            "downsample_eps": config.downsample_eps,
        }

    @classmethod
    def adjust_transformers(cls, config: ConvNeXtConfig, backbone: nn.Module) -> str | None:
        """Give the norms between the stages their epsilon. See `Backbone.adjust_transformers`."""
        if config.downsample_eps == _EPS:
            return None
        for name, module in backbone.named_modules():
            if isinstance(module, nn.LayerNorm) and ".downsampling_layer." in name:
                module.eps = config.downsample_eps
        return (
            f"The layer norms between the stages have an epsilon of {config.downsample_eps:g}. transformers' config cannot say so: a model "
            f"that it loads from files has {_EPS:g}, and logits that differ by up to 1e-4 of the largest."
        )

    @classmethod
    def from_transformers(cls, settings: Mapping[str, Any]) -> ConvNeXtConfig | None:
        """The config of transformers' ConvNeXt. See `Backbone.from_transformers`."""
        if settings.get("model_type") != "convnext":
            return None
        require_settings(settings, _TRANSFORMERS_SETTINGS, "backbone_config")
        return ConvNeXtConfig(
            depths=tuple(settings.get("depths", (3, 3, 9, 3))),
            widths=tuple(settings.get("hidden_sizes", (96, 192, 384, 768))),
            downsample_eps=settings.get("downsample_eps", _EPS),
            drop_path=settings.get("drop_path_rate", 0.0),
            in_channels=settings.get("num_channels", 3),
        )


class FusedConvNeXtBlock(nn.Module):
    """A block with layer scale and norm folded into its perceptron."""

    def __init__(self, block: ConvNeXtBlock) -> None:
        super().__init__()
        self.dwconv = block.dwconv
        self.mlp = AddedMLP(block.gamma.shape[0], block.mlp.fc1.out_features, block.norm.eps)
        self.mlp.fill(block.norm, block.mlp, block.gamma)

    def forward(self, x: Tensor) -> None:
        """(N, H, W, C), contiguous, which is overwritten by the result."""
        y = self.dwconv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).reshape(-1, x.shape[3])
        flat = x.view(y.shape)
        for part in self.mlp.blocks(flat):
            self.mlp.add_to(flat[part], y[part])


class FusedConvNeXt(nn.Module):
    """The backbone for inference: pixel by pixel, (N, H, W, C), with what is linear folded together."""

    def __init__(self, plain: ConvNeXt) -> None:
        super().__init__()
        self.config = config = plain.config
        self.cuts = nn.ModuleList([Patches(config.in_channels, config.widths[0], 4)])
        self.cuts.extend(Patches(before, channels, 2) for before, channels in zip(config.widths, config.widths[1:]))
        self.stem_norm = plain.stem[1]
        self.stages = nn.ModuleList()
        for i in range(4):
            stage = cast(ConvNeXtStage, plain.get_submodule(f"stage{i}"))
            self.stages.append(nn.ModuleList(FusedConvNeXtBlock(cast(ConvNeXtBlock, block)) for block in stage.blocks))
        self.norms = nn.ModuleList(plain.get_submodule(f"norm{i}") for i in range(4))

    @inference
    def forward(self, x: Tensor) -> list[Tensor]:
        """Picture (N, in_channels, H, W) -> features (N, C, h, w) at strides 4, 8, 16, 32, channels last in memory."""
        x = self.cuts[0](x.permute(0, 2, 3, 1))
        features = []
        for i, blocks in enumerate(cast(Any, self.stages)):
            x = self.cuts[i](F.layer_norm(x, x.shape[3:], eps=self.config.downsample_eps)) if i else _normed(self.stem_norm, x)
            for block in blocks:
                block(x)
            features.append(_normed(self.norms[i], x).permute(0, 3, 1, 2))
        return features

    def peak_values(self, pixels: int) -> float:
        """In the first stage: the map, behind the convolution, in the convolution's own layout, its feature; and a block of hidden ones."""
        return pixels / 16 * self.config.widths[0] * 5 + 3 * AT_ONCE

    @classmethod
    @torch.no_grad()
    def of(cls, plain: ConvNeXt) -> FusedConvNeXt:
        """That of a ConvNeXt, computed in float64."""
        fused = cls(plain)
        stem = plain.first_conv
        set_weights(fused.cuts[0], stem.weight.double(), cast(Tensor, stem.bias).double(), stem.weight)
        for i in range(1, 4):
            norm, conv = cast(Any, plain.get_submodule(f"stage{i}")).downsample
            set_weights(fused.cuts[i], *fold_norm(norm, conv.weight, conv.bias), stem.weight)
        return fused.eval()


def _normed(norm: Any, x: Tensor) -> Tensor:
    """The norm over the last axis, the channels."""
    return F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
