"""Native modules: plain torch, no registry, no side effects."""

from .heads import AuxiliaryHead, PyramidPooling, UPerHead
from .upernet import UPerNet

__all__ = ["AuxiliaryHead", "PyramidPooling", "UPerHead", "UPerNet"]
