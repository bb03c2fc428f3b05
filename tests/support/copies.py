"""Copies of a model in the formats of other libraries, as their repositories on the Hub hold them."""

import json

import torch

from upernet_zoo.checkpoints import names

HUB_FILES = {"README.md": b"---\nlicense: mit\n---\n", "preprocessor_config.json": b'{"size": {"height": 512, "width": 512}}'}


def write_transformers(model, folder, weights="pytorch_model.bin"):
    """`config.json` and weights of a Swin or ConvNeXt, with the names of the conversion script; and what else is there."""
    import transformers

    config = model.config
    backbone, stages = config.backbone, [f"stage{i}" for i in range(1, 5)]
    if backbone.kind == "swin":
        theirs = transformers.SwinConfig(
            embed_dim=backbone.embed_dim,
            depths=list(backbone.depths),
            num_heads=list(backbone.num_heads),
            window_size=backbone.window,
            drop_path_rate=backbone.drop_path,
            out_features=stages,
        )
    else:
        theirs = transformers.ConvNextConfig(
            hidden_sizes=list(backbone.widths), depths=list(backbone.depths), drop_path_rate=backbone.drop_path, out_features=stages
        )
    classes = dict(enumerate(model.label_set.classes))
    whole = transformers.UperNetConfig(
        backbone_config=theirs,
        hidden_size=config.channels,
        auxiliary_channels=config.auxiliary.channels,
        auxiliary_in_channels=config.feature_channels[2],
        id2label=classes,
        label2id={name: i for i, name in classes.items()},
        architectures=["UperNetForSemanticSegmentation"],
    )
    folder.mkdir(parents=True)
    whole.save_pretrained(folder)
    state = names.to_theirs(model.state_dict(), "transformers")
    if weights.endswith(".safetensors"):
        from safetensors.torch import save_file

        save_file({key: value.contiguous() for key, value in state.items()}, folder / weights, metadata={"format": "pt"})
    else:
        torch.save(state, folder / weights)
    for name, data in HUB_FILES.items():
        (folder / name).write_bytes(data)
    return folder


def write_smp(model, folder):
    """`config.json` and `model.safetensors` of a Swin or ConvNeXt as segmentation_models_pytorch keeps them: no auxiliary head."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    options = {"encoder_depth": 5, "decoder_use_norm": "batchnorm", "aux_params": None, "classes": model.config.num_classes}
    (folder / "config.json").write_text(json.dumps({"_model_class": "UPerNet", "encoder_name": "tu-other", **options}))
    state = {key: value for key, value in names.to_theirs(model.state_dict(), "smp").items() if not key.startswith("auxiliary_head.")}
    save_file(state, folder / "model.safetensors")
    return folder
