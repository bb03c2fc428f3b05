"""One model from a file in each format that has these weights, each written by the library whose format it is."""

import json
import warnings

import pytest
import torch
from support.fixture import FAMILY, Fixture

import upernet_zoo as uz
from upernet_zoo.interop.smp import to_smp
from upernet_zoo.interop.transformers import to_transformers

pytest.importorskip("transformers")
pytest.importorskip("segmentation_models_pytorch")
NAMES = [name for name in FAMILY if "/upernet_swin" in name or "/upernet_convnext" in name]


def without_our_record(folder):
    """As if this library had not written the model for the other one."""
    config = json.loads((folder / "config.json").read_text())
    for key in ("upernet_zoo", "_upernet_zoo"):
        config.pop(key, None)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("name", NAMES)
def test_mmsegmentation_transformers_and_smp_give_one_model(name, tmp_path):
    """mmsegmentation 0.30 wrote the first file, and its tensors are in the modules of the others, which write theirs themselves."""
    model = uz.load_checkpoint(Fixture(name).checkpoint)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        to_transformers(model)[0].save_pretrained(tmp_path / "transformers")
        to_smp(model).save_pretrained(tmp_path / "smp")
    expected = model.state_dict()
    for library in ("transformers", "smp"):
        folder = tmp_path / library
        without_our_record(folder)
        with pytest.warns(UserWarning, match="assumed"):
            found = uz.load_checkpoint(folder / "model.safetensors").state_dict()
        missing = {key for key in expected if key.startswith("auxiliary_head.")} if library == "smp" else set()
        assert found.keys() == expected.keys() - missing
        assert all(torch.equal(value, expected[key]) for key, value in found.items())
    assert {key.split(".")[0] for key in expected} == {"backbone", "decode_head", "auxiliary_head"}
