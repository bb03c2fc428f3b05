"""Backbones: a picture in, four features at strides 4, 8, 16 and 32 out."""

from .resnet import ResNetV1c

__all__ = ["ResNetV1c"]
