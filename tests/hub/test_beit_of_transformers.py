"""transformers' BeitForSemanticSegmentation, as a folder of its own and as the Hub's conversions of the authors' files have it."""

import dataclasses
import json

import pytest
import torch
from support.fixture import FIXTURES
from support.hub_process import Forker, environment
from support.hub_server import Blob, Commit, Hub

import upernet_zoo as uz
from upernet_zoo import errors

transformers = pytest.importorskip("transformers")
AUTHORS = FIXTURES / "authors" / "beit" / "checkpoint.pth"
REPOSITORY = "microsoft/beit-base-finetuned-ade-640-640"
BLOCK = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}


def config(**options):
    sizes = dict(hidden_size=12, num_hidden_layers=6, num_attention_heads=3, intermediate_size=48, image_size=64, auxiliary_channels=4)
    return transformers.BeitConfig(**sizes | dict(use_relative_position_bias=True, out_indices=[2, 3, 4, 6], num_labels=7) | options)


@pytest.fixture
def theirs(tmp_path):
    """A model of transformers with weights far from where training starts, and its folder."""
    torch.manual_seed(0)
    model = transformers.BeitForSemanticSegmentation(config()).eval()
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith(("running_mean", "bias")) or "token" in name:
                value.normal_(0, 0.2)
            elif name.endswith("running_var") or (value.dim() == 1 and value.is_floating_point()):
                value.uniform_(0.5, 1.5)
            elif value.is_floating_point():
                value.normal_(0, 1.0 if "table" in name else 0.2)
    model.save_pretrained(tmp_path / "saved")
    return model, tmp_path / "saved"


def logits(model, x):
    with torch.inference_mode():
        return model(x).logits if hasattr(model, "beit") else model.logits(x)


def test_logits_equal_transformers(theirs):
    model, folder = theirs
    x = torch.randn(2, 3, 64, 64)
    for load in (uz.load_checkpoint, uz.create_model):
        for place in (folder, folder / "model.safetensors"):
            with pytest.warns(
                UserWarning, match=r"assumed .*scale=\(2048, 512\).*features of blocks 0, 1, 2, 4, counted from 0, as transf"
            ):
                ours = load(place)
            assert ours.config.backbone.eps == 1e-12 and ours.config.backbone.out_indices == (0, 1, 2, 4)
            assert ours.label_set.classes == tuple(f"LABEL_{i}" for i in range(7))
            expected = logits(model, x)
            assert (logits(ours, x) - expected).abs().max() <= 1e-5 * expected.abs().max()
            with torch.inference_mode():
                found, expected = ours.auxiliary_head(ours.features(x)), model.auxiliary_head(feature_maps(model, x))
            assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def feature_maps(model, x):
    hidden = model.beit(x, output_hidden_states=True).hidden_states
    maps = [hidden[i - 1][:, 1:].transpose(1, 2).reshape(len(x), -1, 4, 4) for i in model.config.out_indices]
    return model.fpn(maps)


@pytest.mark.parametrize(
    "options, message",
    (
        (dict(use_shared_relative_position_bias=True), "use_shared_relative_position_bias=True"),
        (dict(use_absolute_position_embeddings=True), "use_absolute_position_embeddings=True"),
        (dict(hidden_act="relu"), "hidden_act='relu'"),
        (dict(out_indices=[1, 2, 3, 4]), "'out_indices' must be four whole numbers from 2"),
    ),
)
def test_a_variant_that_is_not_computed_is_refused(theirs, options, message):
    _, folder = theirs
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(said | options))
    with pytest.raises(errors.UPerNetZooError, match=message):
        uz.create_model(folder)


def converted(folder):
    """The authors' checkpoint as transformers' convert_beit_unilm_to_pytorch.py converts it, with its config and names."""
    tensors = {}
    for key, value in torch.load(AUTHORS, weights_only=True)["state_dict"].items():
        key = (
            key.replace("conv_seg", "classifier").replace("backbone.fpn", "fpn").replace("backbone.cls_token", "beit.embeddings.cls_token")
        )
        key = key.replace("backbone.patch_embed.proj", "beit.embeddings.patch_embeddings.projection")
        if not key.startswith("backbone.blocks."):
            tensors[key] = value
            continue
        number, name = key.removeprefix("backbone.blocks.").split(".", 1)
        layer, stem = f"beit.encoder.layer.{number}.", name.rpartition(".")[0]
        if name == "attn.qkv.weight":
            parts = zip(("query", "key", "value"), value.chunk(3))
            tensors |= {f"{layer}attention.attention.{part}.weight": one.contiguous() for part, one in parts}
        elif name in ("attn.q_bias", "attn.v_bias"):
            tensors[f"{layer}attention.attention.{'query' if 'q_' in name else 'value'}.bias"] = value
        elif "relative_position" in name:
            tensors[f"{layer}attention.attention.relative_position_bias.{name.removeprefix('attn.')}"] = value
        elif name.startswith("gamma"):
            tensors[layer + name.replace("gamma", "lambda")] = value
        else:
            tensors[layer + BLOCK[stem] + name.removeprefix(stem)] = value
    folder.mkdir()
    torch.save(tensors, folder / "pytorch_model.bin")
    said = config(num_hidden_layers=9, num_labels=4, out_indices=[2, 3, 5, 8]).to_dict()
    (folder / "config.json").write_text(json.dumps(said | {"architectures": ["BeitForSemanticSegmentation"]}))
    return folder


def test_transformers_takes_earlier_blocks_than_the_training_did(tmp_path):
    """Its answers to a converted file are ours with blocks two before those that the authors' config names."""
    folder = converted(tmp_path / "copy")
    model = transformers.BeitForSemanticSegmentation.from_pretrained(folder).eval()
    authors = uz.load_checkpoint(AUTHORS)
    assert authors.config.backbone.out_indices == (2, 3, 5, 8)
    earlier = uz.UPerNet(
        dataclasses.replace(authors.config, backbone=dataclasses.replace(authors.config.backbone, out_indices=(0, 1, 3, 6)))
    )
    earlier.load_state_dict(authors.state_dict())
    x = torch.randn(1, 3, 64, 64)
    expected = logits(model, x)
    assert (logits(earlier.eval(), x) - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (logits(authors, x) - expected).abs().max() > 0.1 * expected.abs().max()
    with pytest.warns(UserWarning, match="features of blocks 0, 1, 3, 6"):
        ours = uz.create_model(folder)
    assert (logits(ours, x) - expected).abs().max() <= 1e-5 * expected.abs().max()


CODE = f"""
def words(model):
    with torch.inference_mode():
        return hashlib.sha256(model.logits(torch.ones(1, 3, 64, 64)).numpy().tobytes()).hexdigest()
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    model = uz.create_model("hf-hub:{REPOSITORY}")
say(words(model), words(uz.load_checkpoint({str(AUTHORS)!r})), model.recipe.to_dict(), model.config.backbone.to_dict(), model.origin)
say(model.label_set.name, *(str(warning.message) for warning in caught))
"""


def test_conversions_of_the_authors_files_are_taken_as_they_were_trained(tmp_path):
    """The two repositories of microsoft, whose config says less. Here with a file of four classes, so that ADE20K's are not taken."""
    folder = converted(tmp_path / "copy")
    with Hub({}) as server, Forker() as forker:
        repo = server.create(REPOSITORY)
        files = {path.name: Blob(path.read_bytes(), path.suffix == ".bin") for path in folder.iterdir()}
        server.storage.update({blob.sha256: blob.data for blob in files.values() if blob.lfs})
        repo.add("main", Commit(repo.refs["main"], "by hand", {**repo.head().files, **files}))
        status, out, err = forker.run(CODE, environment(server.url, tmp_path / "home"), tmp_path)
    assert status == 0, err
    (found, expected, recipe, backbone, origin), (_, *said) = (json.loads(line[5:]) for line in out.splitlines())
    assert found == expected
    published = uz.model_info("upernet_beit-base_8x2_640x640_160k_ade20k")  # another training with the same recipe
    assert uz.Recipe.from_dict(recipe) == dataclasses.replace(published.recipe, min_size=recipe["min_size"])
    assert (backbone["out_indices"], backbone["eps"]) == ([2, 3, 5, 8], 1e-6)
    assert "model" not in origin and origin["verified"] == "against its host's digest, not the index's"
    assert len(said) == 1 and "features of blocks 2, 3, 5, 8 and the pictures' preparation as in its training" in said[0]
