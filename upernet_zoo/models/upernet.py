"""UPerNet: backbone, neck, decode head and auxiliary head in one module."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .. import labels, memory
from ..config import Recipe, UPerNetConfig
from ..description import Description
from ..errors import ArgumentError, CheckpointError, ConfigError, NotEnoughMemoryError
from ..files import size_text
from ..hub.mixin import HubMixin
from ..tables import name_list
from .backbones._base import build_backbone
from .heads import AuxiliaryHead, UPerHead, at_least_float32, feature_values
from .knet import KNetHead
from .layers import norms_and_biases, resize
from .necks import build_neck
from .scripting import NotScriptable

__all__ = ["AUXILIARY_WEIGHT", "UPerNet", "adapted_input", "check_keys", "require_labels_fit", "require_memory"]

torch.fx.wrap("resize")
AUXILIARY_WEIGHT = 0.4  # of the auxiliary head's loss, as in the original training


def require_labels_fit(config: UPerNetConfig, label_set: labels.LabelSet) -> None:
    """Refuse a label set with another number of classes than the model's.

    Raises:
        ConfigError: names both numbers.
    """
    if len(label_set) != config.num_classes:
        raise ConfigError(
            f"Label set {label_set.name!r} has {len(label_set)} classes, and the model {config.num_classes}: "
            "pass a label set of the model's own classes, or num_classes= as many as the label set has."
        )


def adapted_input(config: UPerNetConfig, recipe: Recipe, in_channels: int) -> tuple[UPerNetConfig, Recipe]:
    """Config and recipe of a model of RGB pictures for pictures of other channels: see `UPerNet.adapt_input`.

    Raises:
        ConfigError: a model that takes no RGB pictures, or a number of channels that cannot be.
    """
    if config.in_channels != 3:
        raise ConfigError(f"The model has {config.in_channels} input channels; only one of 3 can be adapted to {in_channels}.")
    config = dataclasses.replace(config, backbone=dataclasses.replace(config.backbone, in_channels=in_channels))
    mean, std = ((sum(v) / 3,) if in_channels == 1 else (v * in_channels)[:in_channels] for v in (recipe.mean, recipe.std))
    return config, dataclasses.replace(recipe, mean=mean, std=std)


def require_memory(config: UPerNetConfig) -> None:
    """Refuse an architecture whose weights are more than there is memory for, before any of them is allocated.

    Raises:
        NotEnoughMemoryError: names both sizes.
    """
    device = torch.get_default_device()
    if device.type == "meta":
        return
    with torch.device("meta"):
        needed = sum(tensor.numel() * tensor.itemsize for tensor in UPerNet(config).state_dict().values())
    free = memory.available(device)
    if free is not None and needed > free:
        raise NotEnoughMemoryError(
            f"A UPerNet with {config.backbone.title}, a head of width {config.channels} and {config.num_classes} classes has "
            f"{size_text(needed)} of weights, and {size_text(free)} of memory are free. Check the widths in its config."
        )


@torch.no_grad()
def _reset_classifier(classifier: nn.Conv2d) -> None:
    nn.init.normal_(classifier.weight, std=0.01)
    nn.init.zeros_(cast(Tensor, classifier.bias))


class UPerNet(NotScriptable, HubMixin, nn.Module):
    """UPerNet for semantic segmentation (Xiao et al. 2018, "Unified Perceptual Parsing for Scene Understanding").

    Built on the meta device (`with torch.device("meta")`) nothing is initialized; elsewhere weights are initialized as in the
    original training.

    Args:
        config: the architecture.
        recipe: how pictures are prepared and the model is run; by default (2048, 512), whole, ImageNet's mean and std.
        label_set: classes and colors; by default "class 0", "class 1", ...

    Attributes:
        config, recipe, label_set: as given.
        backbone: `backbone(x)` -> four features.
        neck: `neck(features)` -> four features; None if the model has none.
        decode_head: `decode_head(features)` -> logits at the first feature's stride.
        auxiliary_head: `auxiliary_head(features)` -> logits at the stride of its feature; only `loss` uses it. None if the model has none.
        origin: where the weights come from (model name, file name, SHA-256), empty if they were not loaded.

    Raises:
        ConfigError: a label set with another number of classes.

    Examples:
        >>> import torch
        >>> import upernet_zoo as uz
        >>> model = uz.UPerNet(uz.UPerNetConfig(backbone=uz.ResNetConfig(depth=18, base_channels=8), channels=16, num_classes=4)).eval()
        >>> model(torch.zeros(1, 3, 64, 96)).shape
        torch.Size([1, 4, 64, 96])
    """

    def __init__(self, config: UPerNetConfig, recipe: Recipe | None = None, label_set: labels.LabelSet | None = None) -> None:
        super().__init__()
        self.config = config
        self.recipe = recipe or Recipe(scale=(2048, 512))
        self.label_set = label_set or labels.generic(config.num_classes)
        require_labels_fit(config, self.label_set)
        self.origin: dict[str, str] = {}
        self.backbone = build_backbone(config.backbone)
        self.neck = None if config.neck is None else build_neck(config.neck, config.backbone)
        self.decode_head = UPerHead(config) if config.kernel_updates is None else KNetHead(config, config.kernel_updates)
        self.auxiliary_head = None
        if config.auxiliary is not None:
            in_channels = config.feature_channels[config.auxiliary.feature]
            self.auxiliary_head = AuxiliaryHead(in_channels, config.auxiliary, config.num_classes)
        if self.decode_head.classifier.weight.device.type != "meta":
            self.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """Normalized picture (N, in_channels, H, W), H and W from 32 up -> logits (N, num_classes, H, W)."""
        return resize(self.logits(x), x.shape[2:], self.config.align_corners)

    def features(self, x: Tensor) -> list[Tensor]:
        """Normalized picture (N, in_channels, H, W) -> the four features that the heads take: the neck's, or the backbone's own."""
        features: list[Tensor] = self.backbone(x)
        if self.neck is not None:
            features = self.neck(features)
        return features

    def logits(self, x: Tensor) -> Tensor:
        """Normalized picture (N, in_channels, H, W) -> logits (N, num_classes, h, w) at the first feature's stride."""
        logits: Tensor = self.decode_head(self.features(x))
        return logits

    def peak_values(self, pixels: int) -> float:
        """How many numbers inference holds at once, at most, for so many pixels of input, logits left out; as measured on the CPU."""
        values = max(self.backbone.peak_values(pixels), self.decode_head.peak_values(pixels))
        return values if self.neck is None else max(values, feature_values(self.config, pixels) + self.neck.peak_values(pixels))

    def _heads(self) -> list[UPerHead | AuxiliaryHead]:
        return [self.decode_head] if self.auxiliary_head is None else [self.decode_head, self.auxiliary_head]

    # training

    def loss(self, x: Tensor, target: Tensor, labeled: Tensor | None = None) -> Tensor:
        """Cross entropy of the decode head (with K-Net, of the classifier and of each stage) plus 0.4 times that of the auxiliary head.

        Each is averaged over the labeled pixels, as `torch.nn.functional.cross_entropy` does (the original training divided by
        all pixels, ignored ones too); it is zero where no pixel is labeled.

        Args:
            x: normalized pictures (N, in_channels, H, W).
            target: train ids (N, H, W), any integer dtype; `label_set.ignore_index` where there is no label.
            labeled: divide by this number in place of that of the labeled pixels, as several processes must that share a batch.

        Returns:
            A scalar, float32, or float64 of a model in float64.

        Raises:
            ArgumentError: shapes that do not fit, a target that is not of whole numbers, or one picture to train batch norms by.
        """
        if x.dim() != 4 or target.shape != (x.shape[0], *x.shape[2:]):
            raise ArgumentError(
                f"loss: target must be {(x.shape[0], *x.shape[2:])} for pictures {tuple(x.shape)}, found {tuple(target.shape)}."
            )
        if target.dtype.is_floating_point or target.dtype == torch.bool:
            raise ArgumentError(f"loss: target must hold train ids (an integer dtype), found {target.dtype}.")
        self._require_batch(len(x))
        target = self._train_ids(target)
        features = self.features(x)
        if labeled is None:
            labeled = (target != self.label_set.ignore_index).sum()
        labeled = labeled.clamp(min=1)

        def cross_entropy(logits: Tensor) -> Tensor:
            logits = at_least_float32(resize(logits, target.shape[1:], self.config.align_corners))
            return F.cross_entropy(logits, target, ignore_index=self.label_set.ignore_index, reduction="sum") / labeled

        loss = torch.stack([cross_entropy(logits) for logits in self.decode_head.training_logits(features)]).sum()
        if self.auxiliary_head is None:
            return loss
        return loss + AUXILIARY_WEIGHT * cross_entropy(self.auxiliary_head(features))

    def _train_ids(self, target: Tensor) -> Tensor:
        """A target as int64, all of it classes or `ignore_index`."""
        ids, ignored = target.long(), self.label_set.ignore_index
        unknown = ((ids < 0) | (ids >= self.config.num_classes)) & (ids != ignored)
        if unknown.any():
            found = ids[unknown].unique().tolist()
            raise ArgumentError(
                f"loss: the target holds {name_list(map(str, found))}, and train ids of this model are 0 to {self.config.num_classes - 1}, "
                f"or {ignored} where there is no label (label_set.ignore_index). Where {found[0]} means that there is none: "
                f"target.masked_fill(target == {found[0]}, {ignored})."
            )
        return ids

    def _require_batch(self, pictures: int) -> None:
        """Refuse to train a batch norm by the single value that is left of one picture where it is averaged to 1x1."""
        pooling: Any = self.decode_head.pyramid_pooling
        for bins, branch in zip(pooling.scales, pooling.branches):
            shared = isinstance(branch.bn, nn.SyncBatchNorm)  # which looks at the other processes' pictures too
            if pictures * bins * bins == 1 and branch.bn.training and not shared:
                raise ArgumentError(
                    "loss: one picture cannot train the batch norm of the pyramid's 1x1 average, which has one value of it. Use batches "
                    "of two or more, or keep the batch norms as they are: model.freeze_batch_norm()."
                )

    def train(self, mode: bool = True) -> UPerNet:
        """Set the mode of training or, with False, of evaluation. A frozen batch norm stays in that of evaluation."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, _BatchNorm) and not module.weight.requires_grad:
                module.eval()
        return self

    def freeze_stages(self, stages: int) -> None:
        """Keep weights and batch norm statistics of the backbone as they are, up to its stage number `stages`.

        What comes before the first stage is kept too, and alone with 0. They stay so after `train()`; `requires_grad_(True)` and
        `train()` undo it.

        Raises:
            ArgumentError: more stages than the backbone has, or fewer than 0.
        """
        groups = self.backbone.stages()
        if type(stages) is not int or not 0 <= stages < len(groups):
            raise ArgumentError(
                f"freeze_stages: the backbone has {len(groups) - 1} stages; give a whole number from 0 (what comes before the first alone) "
                f"to {len(groups) - 1}, not {stages!r}."
            )
        for parameter in (parameter for group in groups[: stages + 1] for parameter in group):
            parameter.requires_grad_(False)
        self.train(self.training)

    def freeze_batch_norm(self) -> None:
        """Keep every batch norm as it is, weights and statistics, also after `train()`: then a batch may be of one picture."""
        for module in self.modules():
            if isinstance(module, _BatchNorm):
                module.requires_grad_(False)
        self.train(self.training)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """In training, keep no more of the backbone than the input of each block, and compute the rest again for the gradients."""
        self.backbone.grad_checkpointing = enable

    def parameter_groups(
        self, lr: float, head_multiplier: float = 10.0, no_decay_norm: bool = True, layer_decay: float = 1.0
    ) -> list[dict[str, Any]]:
        """The trainable parameters in groups, as torch's optimizers take them.

        Args:
            lr: learning rate of the backbone.
            head_multiplier: the rate of neck and heads, in multiples of it.
            no_decay_norm: no weight decay for what the backbone says takes none, and for the heads' norms and biases; all else has the
                optimizer's.
            layer_decay: the backbone's last layer learns so many times as fast as `lr`, the one before it as that again, and so on down
                to the picture; what is in none of its layers, as fast as `lr`. See `Backbone.layers`.

        Returns:
            Groups with "params" and "lr", and "weight_decay" where it is zero; none is empty.
        """
        undecayed = set(map(id, self._undecayed())) if no_decay_norm else set()
        layers = self.backbone.layers()
        rates = [(layer, lr * layer_decay ** (len(layers) - i)) for i, layer in enumerate(layers)]
        in_layers = {id(parameter) for layer in layers for parameter in layer}
        rates.append(([parameter for parameter in self.backbone.parameters() if id(parameter) not in in_layers], lr))
        if layer_decay == 1:
            rates = [(list(self.backbone.parameters()), lr)]
        above = [module for module in (self.neck, *self._heads()) if module is not None]
        rates.append(([parameter for module in above for parameter in module.parameters()], lr * head_multiplier))
        groups: list[dict[str, Any]] = []
        for parameters, rate in rates:
            trained = [p for p in parameters if p.requires_grad]
            groups.append({"params": [p for p in trained if id(p) not in undecayed], "lr": rate})
            groups.append({"params": [p for p in trained if id(p) in undecayed], "lr": rate, "weight_decay": 0.0})
        return [group for group in groups if group["params"]]

    def _undecayed(self) -> Iterator[nn.Parameter]:
        names: list[tuple[nn.Module, set[str]]] = [(part, part.no_decay()) for part in (self.backbone, self.neck) if part is not None]
        names += [(head, norms_and_biases(head)) for head in self._heads()]
        for module, undecayed in names:
            yield from (parameter for name, parameter in module.named_parameters() if name in undecayed)

    def reset_classifier(self, label_set: labels.LabelSet) -> None:
        """Replace the heads' classifiers by new, untrained ones (weights from N(0, 0.01), bias zero), for other classes.

        Exactly `decode_head.classifier` and, if there is one, `auxiliary_head.classifier` change; so do `config` and `label_set`.
        """
        self.config = dataclasses.replace(self.config, num_classes=len(label_set))
        self.label_set = label_set
        for head in self._heads():
            weight = head.classifier.weight
            head.classifier = nn.Conv2d(weight.shape[1], len(label_set), 1, device=weight.device, dtype=weight.dtype)
            _reset_classifier(head.classifier)

    def adapt_input(self, in_channels: int) -> None:
        """Take pictures of `in_channels` channels in place of RGB, by adapting the first convolution as timm's `adapt_input_conv` does.

        One channel gets the sum of the weights of three: a gray picture gives what it gave as RGB, up to mean and std. More get
        the three in turn, scaled by 3 / `in_channels`. The recipe's mean and std follow: their average for one channel, else in turn;
        set your own where the further channels are no colors.

        Raises:
            ConfigError: a model that takes no RGB pictures, or a number of channels that cannot be.
        """
        self.config, self.recipe = adapted_input(self.config, self.recipe, in_channels)
        conv = self.backbone.first_conv
        weight = conv.weight.detach().float()
        if in_channels == 1:
            weight = weight.sum(1, keepdim=True)
        else:
            weight = weight.repeat(1, -(-in_channels // 3), 1, 1)[:, :in_channels] * (3 / in_channels)
        conv.in_channels, conv.weight = in_channels, nn.Parameter(weight.to(conv.weight.dtype))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialize as the original training did: Kaiming normal, classifiers from N(0, 0.01)."""
        self.backbone.reset_parameters()
        if self.neck is not None:
            self.neck.reset_parameters()
        for head in self._heads():
            head.reset_parameters()
            _reset_classifier(head.classifier)

    @classmethod
    def from_state(cls, description: Description, tensors: Mapping[str, Tensor], owner: str) -> UPerNet:
        """A model in eval mode that takes the given tensors as they are, without a copy and without initializing any of its own.

        Args:
            description: of the model.
            tensors: its state dict.
            owner: the file or model that they are from, for errors.

        Raises:
            CheckpointError: names or shapes that do not fit.
        """
        with torch.device("meta"):
            model = cls(description.config, description.recipe, description.label_set)
        check_keys(tensors, model, owner)
        model.load_state_dict(tensors, assign=True)
        model.origin = dict(description.origin)
        return model.eval()


def check_keys(state_dict: Mapping[str, Tensor], model: UPerNet, owner: str) -> None:
    """Compare names and shapes with a model's, strictly.

    Raises:
        CheckpointError: a missing, unexpected or wrongly shaped tensor; each is named.
    """
    expected = model.state_dict()
    faults = []
    if missing := [key for key in expected if key not in state_dict]:
        faults.append(f"missing: {name_list(missing)}")
    if unexpected := [key for key in state_dict if key not in expected]:
        faults.append(f"unexpected: {name_list(unexpected)}")
    wrong = [k for k in expected if k in state_dict and state_dict[k].shape != expected[k].shape]
    if wrong:
        shapes = (f"{k} is {tuple(state_dict[k].shape)} instead of {tuple(expected[k].shape)}" for k in wrong)
        faults.append(f"wrong shape: {name_list(shapes)}")
    kind = [k for k in expected if k in state_dict and state_dict[k].is_floating_point() != expected[k].is_floating_point()]
    if kind:
        faults.append(f"wrong dtype: {name_list(f'{k} is {state_dict[k].dtype}' for k in kind)}")
    if faults:
        what = f"UPerNet with {model.config.backbone.title} and {model.config.num_classes} classes"
        raise CheckpointError(f"{owner}: does not fit {what}. {'; '.join(faults)}. Check that the file belongs to this model.")
