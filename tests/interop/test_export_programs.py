"""Programs of torch.export of the kinds with windows, patches or one size: what the model computes, at other sizes than the traced one."""

import pytest
import torch
from support.kinds import KINDS, assert_equal, load

import upernet_zoo as uz
from upernet_zoo.errors import ArgumentError
from upernet_zoo.interop import export

WINDOWED = [name for name in KINDS if "upernet_swin" in name or "svt" in name]


@pytest.mark.large
@pytest.mark.parametrize("name", WINDOWED)
def test_a_program_of_torch_export_gives_the_models_logits(name, tmp_path):
    model = load(name)
    assert_equal(model, torch.export.load(export.to_torch(model, tmp_path / "m.pt2")).module())


@pytest.mark.large
def test_a_grid_of_as_many_patches_keeps_the_embedding_as_it_is(tmp_path):
    """A ViT's graph chooses when it runs, as the model does: 4 x 1 patches in place of the 2 x 2 of the training."""
    model = load(next(name for name in KINDS if "vit-b16" in name))
    height, width = (side * 16 for side in model.config.backbone.grid)
    program = torch.export.load(export.to_torch(model, tmp_path / "m.pt2")).module()
    x = torch.randn(1, 3, 2 * height, width // 2)
    with torch.no_grad():
        torch.testing.assert_close(program(x), model(x), rtol=1e-4, atol=1e-4)


def test_labels_of_one_size_alone_are_refused(tmp_path):
    model = load(next(name for name in KINDS if "beit" in name))
    whole = uz.UPerNet(model.config, uz.Recipe(scale=(512, 512))).eval()
    with pytest.raises(ArgumentError, match="takes pictures of any size, and this model's backbone, BEiT .*alone"):
        export.to_torch(whole, tmp_path / "m.pt2", labels=True)


@pytest.mark.large
@pytest.mark.parametrize("form", ["fused", "direct"])
def test_a_program_of_one_size_has_the_algebra_too(form, tmp_path):
    model = load(next(name for name in KINDS if "upernet_swin" in name))
    program = torch.export.load(export.to_torch(model, tmp_path / "m.pt2", form=form, size=(75, 131))).module()
    x = torch.randn(3, 3, 75, 131)
    with torch.no_grad():
        expected = model(x)
        assert (program(x) - expected).abs().max() <= 5e-5 * expected.abs().max()


@pytest.mark.large
def test_labels_of_windows_are_those_of_one(tmp_path):
    """A BEiT, whose windows are its only size, and which no other size is given to."""
    model = load(next(name for name in KINDS if "beit" in name))
    height, width = model.recipe.crop
    assert model.recipe.mode == "slide" and model.config.backbone.input_size == (height, width)
    program = torch.export.load(export.to_torch(model, tmp_path / "m.pt2", labels=True)).module()
    window = torch.randint(0, 256, (2, height, width, 3), dtype=torch.uint8)
    mean, std = (torch.tensor(values) for values in (model.recipe.mean, model.recipe.std))
    with torch.no_grad():
        expected = model(((window - mean) / std).permute(0, 3, 1, 2)).argmax(1)
        assert (program(window) == expected).float().mean() >= 0.999
        with pytest.raises(AssertionError, match=rf"pictures.size\(\)\[1\] == {height}"):
            program(window[:, :-1])
