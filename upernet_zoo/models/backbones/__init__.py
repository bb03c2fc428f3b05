"""Backbones: a picture in, four features at strides 4, 8, 16 and 32 out."""

from .resnet import ResNet

__all__ = ["ResNet"]
