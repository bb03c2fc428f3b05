"""Every kind of backbone, neck and head beside ResNets: against what mmsegmentation 0.30 computes with small checkpoints."""

import functools

import numpy as np
import pytest
import torch
from support.fixture import FAMILY, Fixture
from support.lively import lively
from support.models import small_config

import upernet_zoo as uz
from upernet_zoo.checkpoints.names import to_native, to_published
from upernet_zoo.checkpoints.read import read

PARTS = ("", "_odd", "_one_padded", "_same_tokens")  # of inputs: a usual size, an odd one, and two that take other branches
CASES = [(name, part) for name in FAMILY for part in PARTS if (Fixture(name).folder / f"tensors{part}.npz").exists()]


@functools.cache
def load(name):
    return uz.load_checkpoint(Fixture(name).checkpoint)


def outputs(model, x):
    """Features, logits and auxiliary logits, by their names in the fixtures."""
    features = model.backbone(x)
    heads_take = features if model.neck is None else model.neck(features)
    found = {f"feature{i}": feature for i, feature in enumerate(features)}
    if model.neck is not None:
        found |= {f"neck{i}": feature for i, feature in enumerate(heads_take)}
    if model.config.kernel_updates is not None:
        head = model.decode_head
        feature, *stages = head.fuse_features(heads_take), *head.training_logits(heads_take)
        found |= {"head_feature": feature, **{f"stage{i}_logits": logits for i, logits in enumerate(stages)}}
    return found | {"decode_logits": model.decode_head(heads_take), "aux_logits": model.auxiliary_head(heads_take)}


def tolerance(name, what):
    """K-Net sums over all pixels and takes three softmaxes: its float32 noise is 1e-5 (`float32_noise` in expected.json)."""
    return 1e-4 if "knet" in name and what.endswith("logits") else 2e-5


@pytest.mark.parametrize("name, part", CASES)
def test_as_mmsegmentation(name, part):
    data, exact = (Fixture(name).arrays(f"{kind}{part}.npz") for kind in ("tensors", "exact"))
    model = load(name)
    x = torch.from_numpy(data["input"])
    with torch.inference_mode():
        single = outputs(model, x)
        double = outputs(model.double(), x.double())
    model.float()
    assert {key.removesuffix("_at") for key in exact.files} - {"kernels"} <= double.keys()  # kernels: what the stages' logits are made of
    for what in double:
        if what in data.files:
            expected = data[what]
            assert single[what].dtype == torch.float32
            assert np.abs(single[what].numpy() - expected).max() <= tolerance(name, what) * np.abs(expected).max(), what
        if what in exact.files:
            expected = exact[what]
            found = double[what].contiguous().flatten()[torch.from_numpy(exact[f"{what}_at"])].numpy()
            assert np.abs(found - expected).max() <= 1e-9 * np.abs(expected).max(), what


@pytest.mark.parametrize("name, part", CASES)
def test_fused_as_plain(name, part):
    x = torch.from_numpy(Fixture(name).arrays(f"tensors{part}.npz")["input"])
    model = load(name)
    with torch.inference_mode():
        plain, fused = model.logits(x), uz.optimize_for_inference(model).logits(x)
    assert (fused - plain).abs().max() <= 5e-5 * plain.abs().max()


@pytest.mark.parametrize("channels", (768, 1024))
def test_heads_of_the_width_of_beit_and_mae_are_fused_as_plain(channels):
    model = lively(small_config(channels=channels, num_classes=150))
    x = torch.randn(1, 3, 64, 32)
    with torch.inference_mode():
        plain, fused = model.logits(x), uz.optimize_for_inference(model).logits(x)
    assert (fused - plain).abs().max() <= 5e-5 * plain.abs().max()


@pytest.mark.parametrize("name", FAMILY)
def test_published_names_and_back(name):
    """Every tensor of the file comes back under its name, bit for bit; index buffers, which follow from the config, do not."""
    published = torch.load(Fixture(name).checkpoint, weights_only=True)["state_dict"]
    model = load(name)
    back = to_published(model.state_dict())
    kept = {key for key in published if not key.endswith("relative_position_index")}
    assert back.keys() == kept and all(torch.equal(back[key], published[key]) for key in kept)
    assert to_native(back).keys() == model.state_dict().keys() == read(Fixture(name).checkpoint).state_dict.keys()


@pytest.mark.parametrize("name", FAMILY)
def test_labels_of_a_photo(name):
    """The recipe's own mode at full picture size: equal but where the two best classes are nearly alike."""
    one = Fixture(name)
    mode = load(name).recipe.mode
    expected = one.labels(mode)
    probes = one.arrays("probes.npz")
    segmenter = uz.Segmenter(load(name), optimize=False)
    probabilities = segmenter.probabilities(one.photo)
    best = probabilities.topk(2, 0).values
    clear = (best[0] - best[1] > 1e-5).numpy()
    labels = probabilities.argmax(0).numpy()
    assert clear.mean() > 0.99 and (labels == expected)[clear].mean() >= 0.9999
    found = probabilities[:, probes["rows"], probes["cols"]].T.numpy()
    np.testing.assert_allclose(found, probes["probs"], rtol=0, atol=1e-4 if "knet" in name else 1e-5)
    assert (uz.Segmenter(load(name))(one.photo).labels == expected)[clear].mean() >= 0.9999


MULTI_SCALE = [name for name in FAMILY if "probs_ms_flip" in Fixture(name).arrays("probes.npz").files]


@pytest.mark.parametrize("name", MULTI_SCALE)
def test_multi_scale_and_flip_of_a_photo(name):
    one = Fixture(name)
    segmenter = uz.Segmenter(load(name), scales=(0.5, 0.75, 1.0, 1.25, 1.5, 1.75), flip=True)
    probes = one.arrays("probes.npz")
    probabilities = segmenter.probabilities(one.photo)
    found = probabilities[:, probes["rows"], probes["cols"]].T.numpy()
    np.testing.assert_allclose(found, probes["probs_ms_flip"], rtol=0, atol=2e-5)
    best = probabilities.topk(2, 0).values
    clear = (best[0] - best[1] > 1e-5).numpy()
    assert (probabilities.argmax(0).numpy() == one.labels(f"{load(name).recipe.mode}_ms_flip"))[clear].mean() >= 0.9999


@pytest.mark.parametrize("name", FAMILY)
def test_a_step_of_training_changes_every_parameter(name):
    """With gradients kept and with them computed again: the same, and none is left out."""
    torch.manual_seed(0)
    model = uz.UPerNet(load(name).config, load(name).recipe, load(name).label_set).train()
    size = model.config.backbone.input_size or (64, 96)
    x, target = torch.randn(2, 3, *size), torch.randint(0, model.config.num_classes, (2, *size))
    gradients = []
    for again in (False, True):
        model.set_grad_checkpointing(again)
        model.zero_grad()
        torch.manual_seed(1)
        model.loss(x, target).backward()
        gradients.append({key: parameter.grad.clone() for key, parameter in model.named_parameters()})
    assert all(torch.isfinite(g).all() for g in gradients[0].values())
    assert all(torch.allclose(gradients[0][key], gradients[1][key], rtol=1e-4, atol=1e-6) for key in gradients[0])
    grouped = [id(p) for group in model.parameter_groups(0.1, layer_decay=0.9) for p in group["params"]]
    assert sorted(grouped) == sorted(map(id, model.parameters()))
    staged = [id(p) for stage in model.backbone.stages() for p in stage]
    assert sorted(staged) == sorted(map(id, model.backbone.parameters()))
