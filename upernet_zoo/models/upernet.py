"""UPerNet: backbone, decode head and auxiliary head in one module."""

from __future__ import annotations

import os
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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

    def loss(self, x: Tensor, target: Tensor) -> Tensor:
        """Cross entropy of the decode head plus 0.4 times that of the auxiliary head.

        Each is averaged over the labelled pixels, as `torch.nn.functional.cross_entropy` does (the original training divided by
        all pixels, ignored ones too); it is zero where no pixel is labelled.

        Args:
            x: normalised pictures (N, in_channels, H, W).
            target: train ids (N, H, W), any integer dtype; `label_set.ignore_index` where there is no label.

        Returns:
            A float32 scalar.

        Raises:
            ArgumentError: shapes that do not fit, or a target that is not of whole numbers.
        """
        if x.dim() != 4 or target.shape != (x.shape[0], *x.shape[2:]):
            raise ArgumentError(
                f"loss: target must be {(x.shape[0], *x.shape[2:])} for pictures {tuple(x.shape)}, found {tuple(target.shape)}."
            )
        if target.dtype.is_floating_point or target.dtype == torch.bool:
            raise ArgumentError(f"loss: target must hold train ids (an integer dtype), found {target.dtype}.")
        features = self.backbone(x)
        target = target.long()
        labelled = (target != self.label_set.ignore_index).sum().clamp(min=1)

        def cross_entropy(logits: Tensor) -> Tensor:
            logits = resize(logits, target.shape[1:], self.config.align_corners).float()
            return F.cross_entropy(logits, target, ignore_index=self.label_set.ignore_index, reduction="sum") / labelled

        return cross_entropy(self.decode_head(features)) + AUXILIARY_WEIGHT * cross_entropy(self.auxiliary_head(features))

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
            self.reset_classifier(head.classifier)

    @staticmethod
    @torch.no_grad()
    def reset_classifier(classifier: nn.Conv2d) -> None:
        """Weights from N(0, 0.01), bias zero."""
        nn.init.normal_(classifier.weight, std=0.01)
        nn.init.zeros_(classifier.bias)
