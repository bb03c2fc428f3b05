"""A model of every kind that is exported, and the comparison of what was exported with it."""

import functools

import torch

import upernet_zoo as uz

from .fixture import FAMILY, Fixture

KINDS = [name for name in FAMILY if not any(part in name for part in ("ln_mln", "knet_s3_upernet_swin", "upernet_r18"))]
# beside those at which `export` compares a file: none that a window or a patch divides, and one of few rows
SHAPES = ((1, 75, 130), (3, 224, 96))


@functools.cache
def load(name):
    return uz.load_checkpoint(Fixture(name).checkpoint)


def shapes_for(model):
    """With as many patches as in a ViT's training in another grid, for which its embedding is not resized, as 256x1024 for 512x512."""
    size, grid = model.config.backbone.input_size, getattr(model.config.backbone, "grid", None)
    if size is not None:
        return (1, *size), (2, *size)
    return SHAPES if grid is None else (*SHAPES, (1, grid[0] * 32, grid[1] * 8), (2, grid[0] * 16, grid[1] * 16))


def assert_equal(model, run):
    # K-Net's updates of kernels make more of float32's rounding than others do: 1e-4 is what its features are held to everywhere
    limit = 5e-5 if model.config.kernel_updates is None else 1e-4
    for batch, height, width in shapes_for(model):
        x = torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            expected, found = model(x), run(x)
        assert (found - expected).abs().max() <= limit * expected.abs().max()
