"""Learning rates and weight decay of each parameter, against mmsegmentation 0.30's `LearningRateDecayOptimizerConstructor`."""

import json

import pytest
import torch
from support.fixture import FIXTURES

import upernet_zoo as uz
from upernet_zoo.checkpoints.names import to_published
from upernet_zoo.models.backbones.convnext import ConvNeXtConfig

# of the published configs of ConvNeXt-T and -S, built narrow: parameters by learning rate and weight decay
PUBLISHED = json.loads((FIXTURES / "training" / "convnext_layer_decay.json").read_text())
DEPTHS = {"upernet_convnext_tiny_fp16_512x512_160k_ade20k": (3, 3, 9, 3), "upernet_convnext_small_fp16_512x512_160k_ade20k": (3, 3, 27, 3)}


@pytest.mark.parametrize("name", PUBLISHED)
def test_convnext_is_trained_as_published(name):
    published = PUBLISHED[name]
    assert uz.model_info(name).config.backbone.depths == DEPTHS[name]
    with torch.device("meta"):
        backbone = ConvNeXtConfig(depths=DEPTHS[name], widths=(4, 4, 4, 4))
        model = uz.UPerNet(uz.UPerNetConfig(backbone=backbone, num_classes=3, channels=4, auxiliary=uz.AuxiliaryConfig(channels=4)))
    theirs = dict(zip(model.state_dict(), to_published(model.state_dict())))
    names = {id(parameter): theirs[key] for key, parameter in model.named_parameters()}
    groups = model.parameter_groups(published["lr"], head_multiplier=1.0, layer_decay=published["layer_decay"])
    found = {names[id(p)]: (group["lr"], group.get("weight_decay", published["weight_decay"])) for group in groups for p in group["params"]}
    expected = {key: (group["lr"], group["weight_decay"]) for group in published["groups"] for key in group["names"]}
    assert found.keys() == expected.keys() and len(names) == len(found)
    for key, (lr, decay) in expected.items():
        assert found[key] == (pytest.approx(lr, rel=1e-12), decay), key
    assert len({lr for lr, _ in found.values()}) == 6
