"""All that a model is besides its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from . import labels
from .config import Recipe, UPerNetConfig
from .errors import ConfigError, shown
from .wording import worded

__all__ = ["FORMAT", "Described", "Description"]

FORMAT = 1  # of what is saved; another number whenever this version could not read what an earlier one wrote, or the other way round


class Described(Protocol):
    """A model of whatever class, which has tensors and what a description says besides them."""

    config: UPerNetConfig
    recipe: Recipe
    label_set: labels.LabelSet
    origin: dict[str, str]

    def state_dict(self) -> Mapping[str, Any]:
        """Its tensors by name."""


@dataclass(frozen=True)
class Description:
    """All that a model is besides its tensors; goes to `config.json` and into a safetensors header, and back."""

    config: UPerNetConfig
    recipe: Recipe
    label_set: labels.LabelSet
    origin: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, model: Described) -> Description:
        """The description of a model."""
        return cls(model.config, model.recipe, model.label_set, model.origin)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "format": FORMAT,
            "architecture": self.config.to_dict(),
            "recipe": self.recipe.to_dict(),
            "labels": self.label_set.to_dict(),
            "origin": dict(self.origin),
        }

    @classmethod
    def from_dict(cls, data: Any, owner: str) -> Description:
        """The description in plain values; `owner` names the file in errors.

        Raises:
            ConfigError: not such a description, or a value that cannot be used.
        """
        if not isinstance(data, Mapping) or "architecture" not in data:
            raise ConfigError(
                f"{owner}: not a description of a UPerNet model (no key 'architecture'). "
                f"Save one with {worded('save_pretrained', 'upernet-zoo convert')}."
            )
        if data.get("format") != FORMAT:
            raise ConfigError(
                f"{owner}: the description has format {shown(data.get('format'))}, and this version of upernet_zoo reads {FORMAT}. "
                "Install the version that wrote it, or save the model again with this one."
            )
        data = {"recipe": None, "labels": None, "origin": {}, **data}
        config = UPerNetConfig.from_dict(data["architecture"], f"{owner}: architecture")
        recipe = Recipe.from_dict(data["recipe"], f"{owner}: recipe")
        try:
            label_set = labels.LabelSet.from_dict(data["labels"])
        except ConfigError as error:
            raise ConfigError(f"{owner}: labels: {error}") from None
        origin = data["origin"]
        if not isinstance(origin, Mapping) or not all(isinstance(v, str) for pair in origin.items() for v in pair):
            raise ConfigError(f"{owner}: 'origin' must map text to text, found {shown(origin)}.")
        if len(label_set) != config.num_classes:
            raise ConfigError(f"{owner}: the model has {config.num_classes} classes, and its labels {len(label_set)}.")
        if len(recipe.mean) != config.in_channels:
            raise ConfigError(f"{owner}: the model has {config.in_channels} input channels, and its recipe a mean of {len(recipe.mean)}.")
        return cls(config, recipe, label_set, dict(origin))
