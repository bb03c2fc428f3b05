"""What decides the outcome of a training run, beside the model and the pictures."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from ..config import Recipe
from ..errors import ArgumentError

__all__ = ["OPTIMIZERS", "TrainingSettings"]

OPTIMIZERS = ("sgd", "adamw")
_POWER, _LAST = 0.9, 0.01  # of the original schedule: poly of power 0.9 from 0.01 down to 0.0001 (mmsegmentation's schedules)
_LARGEST_CROP = 512


@dataclasses.dataclass(frozen=True)
class TrainingSettings:
    """How a model is trained. The defaults are the original training's, with a tenth of its learning rate for the pretrained backbone.

    Args:
        steps: updates of the weights.
        batch_size: crops in a step, over all processes together.
        crop: (height, width) of the crops in pixels; None: see `crop_for`.
        optimizer: "sgd" (momentum 0.9), as for ResNets, or "adamw" (betas 0.9 and 0.999), as for all other backbones.
        lr: learning rate of the backbone after the warm-up.
        head_multiplier: the heads learn so many times faster than the backbone.
        layer_decay: each layer of the backbone learns so many times as fast as the one above it, up to 1, see
            `UPerNet.parameter_groups`; the original trainings of ConvNeXt, BEiT and MAE have 0.9, 0.9 and 0.65.
        weight_decay: of all but norms, biases and what else the backbone says takes none.
        warmup: share of the steps over which the learning rate grows linearly up to the schedule's.
        freeze_stages: the stem and so many stages of the backbone stay as they are (0 to 4); None: nothing is frozen.
        freeze_batch_norm: every batch norm keeps its statistics and weights; for batches too small to measure by.
        grad_checkpointing: spend time to save memory: each block of the backbone is computed again for its gradient.
        amp: mixed precision: bfloat16, or float16 with scaled gradients on a GPU without it.
        evaluate_every: steps between evaluations; None: ten evaluations.
        seed: of the order of pictures, their augmentation, and dropout.

    Raises:
        ArgumentError: a value that cannot be used.

    Examples:
        >>> from upernet_zoo.training import TrainingSettings
        >>> TrainingSettings(steps=500, optimizer="adamw", lr=6e-5).batch_size
        8
    """

    steps: int = 2000
    batch_size: int = 8
    crop: tuple[int, int] | None = None
    optimizer: str = "sgd"
    lr: float = 1e-3
    head_multiplier: float = 10.0
    layer_decay: float = 1.0
    weight_decay: float = 5e-4
    warmup: float = 0.05
    freeze_stages: int | None = None
    freeze_batch_norm: bool = False
    grad_checkpointing: bool = False
    amp: bool = False
    evaluate_every: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        whole: dict[str, tuple[int, float]] = {"steps": (1, math.inf), "batch_size": (1, math.inf), "seed": (0, math.inf)}
        whole |= {"evaluate_every": (1, math.inf)} if self.evaluate_every is not None else {}
        whole |= {"freeze_stages": (0, 4)} if self.freeze_stages is not None else {}
        for key, (first, most) in whole.items():
            value = getattr(self, key)
            if type(value) is not int or not first <= value <= most:
                self._fail(key, f"a whole number from {first}" + (f" to {most}" if most < math.inf else " up"))
        above_zero, from_zero = "a number above 0", "a number from 0 up"
        for key, expected, least in (("lr", above_zero, 5e-324), ("head_multiplier", above_zero, 5e-324), ("weight_decay", from_zero, 0)):
            value = getattr(self, key)
            if type(value) not in (int, float) or not least <= value < math.inf:
                self._fail(key, expected)
        if type(self.warmup) not in (int, float) or not 0 <= self.warmup <= 1:
            self._fail("warmup", "a share of the steps, from 0 to 1")
        if type(self.layer_decay) not in (int, float) or not 0 < self.layer_decay <= 1:
            self._fail("layer_decay", "a factor above 0 and up to 1")
        if self.optimizer not in OPTIMIZERS:
            self._fail("optimizer", " or ".join(map(repr, OPTIMIZERS)))
        for key in ("freeze_batch_norm", "grad_checkpointing", "amp"):
            if not isinstance(getattr(self, key), bool):
                self._fail(key, "True or False")
        if self.crop is not None:
            good = isinstance(self.crop, (list, tuple)) and len(self.crop) == 2
            if not good or not all(type(side) is int and side >= 32 for side in self.crop):
                self._fail("crop", "(height, width) in pixels, each from 32 up")
            object.__setattr__(self, "crop", tuple(self.crop))

    def _fail(self, key: str, expected: str) -> None:
        raise ArgumentError(f"TrainingSettings: {key} must be {expected}, found {getattr(self, key)!r}.")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)

    def crop_for(self, recipe: Recipe) -> tuple[int, int]:
        """(height, width) of the crops: as set, else the recipe's windows, else a square of its shorter side, 512 at most."""
        if self.crop is not None:
            return self.crop
        side = min((*(recipe.scale or ()), _LARGEST_CROP))
        return recipe.crop or (side, side)

    def is_evaluated(self, step: int) -> bool:
        """Whether the model is evaluated after so many steps; after the last one it always is."""
        return step == self.steps or step % (self.evaluate_every or max(1, self.steps // 10)) == 0

    def lr_factor(self, step: int) -> float:
        """What the learning rates are multiplied by in a step, counted from 0: poly, and in the warm-up less."""
        poly = _LAST + (1 - _LAST) * (1 - step / self.steps) ** _POWER
        warmup = round(self.warmup * self.steps)
        return float(poly * min(1.0, (step + 1) / warmup) if warmup else poly)
