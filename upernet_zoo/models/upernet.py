"""UPerNet: backbone, decode head and auxiliary head in one module."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .. import labels
from ..config import Recipe, UPerNetConfig
from ..errors import ArgumentError, ConfigError
from .backbones import ResNet
from .heads import AuxiliaryHead, UPerHead, resize

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
    config = dataclasses.replace(config, in_channels=in_channels)
    mean, std = ((sum(v) / 3,) if in_channels == 1 else (v * in_channels)[:in_channels] for v in (recipe.mean, recipe.std))
    return config, dataclasses.replace(recipe, mean=mean, std=std)


@torch.no_grad()
def _reset_classifier(classifier: nn.Conv2d) -> None:
    nn.init.normal_(classifier.weight, std=0.01)
    nn.init.zeros_(classifier.bias)


class UPerNet(nn.Module):
    """UPerNet for semantic segmentation (Xiao et al. 2018, "Unified Perceptual Parsing for Scene Understanding").

    Built on the meta device (`with torch.device("meta")`) nothing is initialised; elsewhere weights are initialised as in the
    original training.

    Args:
        config: the architecture.
        recipe: how pictures are prepared and the model is run; by default (2048, 512), whole, ImageNet's mean and std.
        label_set: classes and colours; by default "class 0", "class 1", ...

    Attributes:
        config, recipe, label_set: as given.
        backbone: `backbone(x)` -> four features at strides 4, 8, 16, 32.
        decode_head: `decode_head(features)` -> logits at stride 4.
        auxiliary_head: `auxiliary_head(features)` -> logits at stride 16; only `loss` uses it.
        origin: where the weights come from (model name, file name, SHA-256), empty if they were not loaded.

    Raises:
        ConfigError: a label set with another number of classes.
    """

    def __init__(self, config: UPerNetConfig, recipe: Recipe | None = None, label_set: labels.LabelSet | None = None):
        super().__init__()
        self.config = config
        self.recipe = recipe or Recipe(scale=(2048, 512))
        self.label_set = label_set or labels.generic(config.num_classes)
        require_labels_fit(config, self.label_set)
        self.origin: dict[str, str] = {}
        self.backbone = ResNet(config)
        self.decode_head = UPerHead(config)
        self.auxiliary_head = AuxiliaryHead(config)
        if self.decode_head.classifier.weight.device.type != "meta":
            self.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """Normalised picture (N, in_channels, H, W), H and W from 32 up -> logits (N, num_classes, H, W)."""
        logits = self.decode_head(self.backbone(x))
        return resize(logits, x.shape[2:], self.config.align_corners)

    # training

    def loss(self, x: Tensor, target: Tensor, labelled: Tensor | None = None) -> Tensor:
        """Cross entropy of the decode head plus 0.4 times that of the auxiliary head.

        Each is averaged over the labelled pixels, as `torch.nn.functional.cross_entropy` does (the original training divided by
        all pixels, ignored ones too); it is zero where no pixel is labelled.

        Args:
            x: normalised pictures (N, in_channels, H, W).
            target: train ids (N, H, W), any integer dtype; `label_set.ignore_index` where there is no label.
            labelled: divide by this number in place of that of the labelled pixels, as several processes must that share a batch.

        Returns:
            A float32 scalar.

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
        features = self.backbone(x)
        target = target.long()
        if labelled is None:
            labelled = (target != self.label_set.ignore_index).sum()
        labelled = labelled.clamp(min=1)

        def cross_entropy(logits: Tensor) -> Tensor:
            logits = resize(logits, target.shape[1:], self.config.align_corners).float()
            return F.cross_entropy(logits, target, ignore_index=self.label_set.ignore_index, reduction="sum") / labelled

        return cross_entropy(self.decode_head(features)) + AUXILIARY_WEIGHT * cross_entropy(self.auxiliary_head(features))

    def _require_batch(self, pictures: int) -> None:
        """Refuse to train a batch norm by the single value that is left of one picture where it is averaged to 1x1."""
        pooling = self.decode_head.pyramid_pooling
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
        """Keep the stem and the first `stages` stages (0 to 4) of the backbone as they are: weights and batch norm statistics.

        They stay so after `train()`; `requires_grad_(True)` and `train()` undo it.

        Raises:
            ArgumentError: another number of stages.
        """
        if type(stages) is not int or not 0 <= stages <= 4:
            raise ArgumentError(
                f"freeze_stages: a backbone has 4 stages; give a whole number from 0 (the stem alone) to 4, not {stages!r}."
            )
        self.backbone.freeze(stages)
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

    def parameter_groups(self, lr: float, head_multiplier: float = 10.0, no_decay_norm: bool = True) -> list[dict[str, Any]]:
        """The trainable parameters in groups, as torch's optimizers take them.

        Args:
            lr: learning rate of the backbone.
            head_multiplier: the heads', in multiples of it.
            no_decay_norm: no weight decay for batch norms and biases; all else has the optimizer's.

        Returns:
            Groups with "params" and "lr", and "weight_decay" where it is zero; none is empty.
        """
        groups = []
        for modules, rate in (((self.backbone,), lr), ((self.decode_head, self.auxiliary_head), lr * head_multiplier)):
            trained = [p for module in modules for p in module.parameters() if p.requires_grad]
            undecayed = [p for p in trained if no_decay_norm and p.dim() == 1]
            groups.append({"params": [p for p in trained if not (no_decay_norm and p.dim() == 1)], "lr": rate})
            groups.append({"params": undecayed, "lr": rate, "weight_decay": 0.0})
        return [group for group in groups if group["params"]]

    def reset_classifier(self, label_set: labels.LabelSet) -> None:
        """Replace the two classifiers by new, untrained ones (weights from N(0, 0.01), bias zero), for other classes.

        Exactly `decode_head.classifier` and `auxiliary_head.classifier` change; so do `config` and `label_set`.
        """
        self.config = dataclasses.replace(self.config, num_classes=len(label_set))
        self.label_set = label_set
        for head in (self.decode_head, self.auxiliary_head):
            weight = head.classifier.weight
            head.classifier = nn.Conv2d(weight.shape[1], len(label_set), 1, device=weight.device, dtype=weight.dtype)
            _reset_classifier(head.classifier)

    def adapt_input(self, in_channels: int) -> None:
        """Take pictures of `in_channels` channels in place of RGB, by adapting the first convolution as timm's `adapt_input_conv` does.

        One channel gets the sum of the weights of three: a grey picture gives what it gave as RGB, up to mean and std. More get
        the three in turn, scaled by 3 / `in_channels`. The recipe's mean and std follow: their average for one channel, else in turn;
        set your own where the further channels are no colours.

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

    # the hub knows models; a model only offers the way there

    @classmethod
    def from_pretrained(
        cls,
        ref: str | os.PathLike,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike | None = None,
        local_files_only: bool = False,
    ) -> UPerNet:
        """The model of a folder that `save_pretrained` wrote, or of a Hub repository that `push_to_hub` wrote, in eval mode.

        Names and shapes must fit strictly, and nothing but safetensors is read.

        Args:
            ref: a folder; else "org/name" or "org/name@revision", with or without "hf-hub:".
            revision: branch, tag or commit; by default the main branch.
            token: of the Hub; None: `HF_TOKEN` or that of `hf auth login`, False: none.
            cache_dir: in place of the Hub's cache (`HF_HUB_CACHE`).
            local_files_only: open no socket.

        Raises:
            UPerNetZooError: see `upernet_zoo.hub.find_folder` and `load_folder`.
        """
        from ..hub import from_pretrained

        return from_pretrained(ref, revision=revision, token=token, cache_dir=cache_dir, local_files_only=local_files_only)

    def save_pretrained(self, folder: str | os.PathLike) -> Path:
        """Write `config.json`, `model.safetensors` and a card; see `upernet_zoo.hub.save_pretrained`."""
        from ..hub import save_pretrained

        return save_pretrained(self, folder)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        commit_message: str | None = None,
        create_pr: bool = False,
    ) -> str:
        """Write what `save_pretrained` writes into a Hub repository, in one commit; the repository is made if there is none.

        A card (`README.md`) that is already there stays as it is.

        Args:
            repo_id: "org/name", or "name" for one's own account.
            private: of a new repository; None: as the account's or organisation's default.
            token: of the Hub, one that may write; None: `HF_TOKEN` or that of `hf auth login`.
            revision: branch, made from the main branch if there is none.
            commit_message: first line of the commit.
            create_pr: propose the commit as a pull request.

        Returns:
            URL of the commit or the pull request.

        Raises:
            ArgumentError: no name of a repository.
            DownloadError: the Hub could not be reached, or refuses.
            OfflineError: the network may not be used.
        """
        from ..hub import push_to_hub

        return push_to_hub(
            self, repo_id, private=private, token=token, revision=revision, commit_message=commit_message, create_pr=create_pr
        )

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise as the original training did: Kaiming normal, classifiers from N(0, 0.01)."""
        self.backbone.reset_parameters()
        for head in (self.decode_head, self.auxiliary_head):
            for module in head.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            _reset_classifier(head.classifier)
