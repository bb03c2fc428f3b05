"""The card (`README.md`) of a saved model, rendered from its description and, for a published model, from the index.

Metadata: https://huggingface.co/docs/hub/model-cards#model-card-metadata, written by huggingface_hub's own `ModelCardData`.
"""

from __future__ import annotations

from . import index, tables
from .checkpoint import Description
from .errors import ModelNotFoundError
from .version import __version__

# label set -> (id of the data set in the metadata, as other cards have it; its terms)
_DATASETS = {
    "cityscapes": (
        "cityscapes",
        "Cityscapes is free for non-commercial purposes such as academic research, teaching and personal experimentation, under its "
        "own [terms of use](https://www.cityscapes-dataset.com/license/).",
    ),
    "ade20k": (
        "scene_parse_150",
        "The pictures of ADE20K are for non-commercial research and education, under its own "
        "[terms of use](https://groups.csail.mit.edu/vision/datasets/ADE20K/terms/).",
    ),
    "voc12aug": (
        "pascal-voc",
        "The pictures of [Pascal VOC 2012](http://host.robots.ox.ac.uk/pascal/VOC/voc2012/) come from Flickr and are subject to "
        "Flickr's terms of use; the additional labels are those of the "
        "[Semantic Boundaries Dataset](http://home.bharathh.info/pubs/codes/SBD/download.html).",
    ),
}
_METRICS = {"mIoU": "mIoU", "mIoU(ms+flip)": "mIoU (multi-scale and flip)"}  # in the index -> in the card
_CITATIONS = """\
```bibtex
@inproceedings{xiao2018unified,
  title = {Unified Perceptual Parsing for Scene Understanding},
  author = {Xiao, Tete and Liu, Yingcheng and Zhou, Bolei and Jiang, Yuning and Sun, Jian},
  booktitle = {European Conference on Computer Vision (ECCV)},
  year = {2018}
}
```"""
_CITE_MMSEGMENTATION = """

```bibtex
@misc{mmseg2020,
  title = {{MMSegmentation}: OpenMMLab Semantic Segmentation Toolbox and Benchmark},
  author = {MMSegmentation Contributors},
  howpublished = {https://github.com/open-mmlab/mmsegmentation},
  year = {2020}
}
```"""


def _entry(description: Description) -> index.ModelEntry | None:
    """The entry of the index that a model's weights started from."""
    try:
        entry = index.model_info(description.origin["model"])
    except (KeyError, ModelNotFoundError):
        return None
    return entry if description.origin.get("sha256", "").startswith(entry.sha256) else None


def _metadata(name: str, description: Description, entry: index.ModelEntry | None, published: bool) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    dataset = _DATASETS.get(description.label_set.name, (None, None))[0]
    results = []
    if entry is not None and published:
        for key in _METRICS.keys() & entry.metrics.keys():
            results.append(
                EvalResult(
                    task_type="image-segmentation",
                    task_name=index.TASK,
                    dataset_type=dataset or description.label_set.name,
                    dataset_name=entry.dataset,
                    metric_type="mean_iou",
                    metric_name=_METRICS[key],
                    metric_value=entry.metrics[key],
                )
            )
    results.sort(key=lambda result: len(result.metric_name))
    return ModelCardData(
        library_name="upernet_zoo",
        pipeline_tag="image-segmentation",
        tags=["semantic-segmentation", "upernet", f"resnet-{description.config.depth}", "pytorch"],
        license="apache-2.0" if entry is not None else None,
        datasets=[dataset] if dataset else None,
        metrics=["mean_iou"] if results else None,
        model_name=name if results else None,
        eval_results=results or None,
    ).to_yaml(line_break="\n")


def render(description: Description, *, reference: str, name: str, weights_sha256: str, published: bool) -> str:
    """The text of a card.

    Args:
        description: of the model.
        reference: what `create_model` loads it by, such as "hf-hub:org/name".
        name: of the model, the card's title.
        weights_sha256: SHA-256 of `model.safetensors`, 64 hex digits.
        published: whether the weights are those of the published checkpoint, bit for bit; only then its results are claimed.
    """
    config, recipe, label_set, origin = description.config, description.recipe, description.label_set, description.origin
    entry = _entry(description)
    parts = [f"---\n{_metadata(name, description, entry, published).strip()}\n---", f"# {name}"]
    what = f"UPerNet with a {config.backbone_name} backbone for semantic segmentation, {config.num_classes} classes"
    if entry is not None:
        trained = f"trained by the MMSegmentation project on {entry.dataset} ({entry.schedule} iterations)"
        parts.append(f"{what}, {trained}." if published else f"{what}. Its weights started from those {trained}, and differ from them.")
    else:
        parts.append(f"{what} ({label_set.title or label_set.name}).")
    parts.append(
        "## Use\n\n```shell\npip install upernet-zoo\n```\n\n```python\nimport upernet_zoo as uz\n\n"
        f'segmenter = uz.Segmenter("{reference}")\nsegmentation = segmenter("picture.jpg")\n'
        'print(segmentation.areas())\nsegmentation.save("labels.png")\n```\n\n'
        f'The network alone, an `nn.Module`: `uz.create_model("{reference}")`.'
    )
    if entry is not None and published and entry.metrics:
        rows = [[label, f"{entry.metrics[key]:.2f}"] for key, label in _METRICS.items() if key in entry.metrics]
        parts.append(f"## Results\n\nOn the validation set of {entry.dataset}, in percent, as published:\n\n" + _table(rows))
    run = (
        f"sliding windows of {_size(recipe.crop)}, stride {_size(recipe.stride)}" if recipe.mode == "slide" else "the whole picture at once"
    )
    parts.append(
        f"## Recipe\n\nPictures are made to fit {recipe.scale[0]}x{recipe.scale[1]}, keeping their ratio, and run as {run}. "
        f"Architecture, recipe, classes and palette are in `config.json`."
    )
    rows = [["`model.safetensors`, SHA-256", f"`{weights_sha256}`"], ["written by", f"upernet_zoo {__version__}"]]
    if origin.get("file"):
        rows.insert(0, ["original file", f"`{origin['file']}`"])
    if origin.get("sha256"):
        rows.insert(1, ["original file, SHA-256", f"`{origin['sha256']}`"])
    if origin.get("url"):
        rows.insert(2, ["original URL", f"<{origin['url']}>"])
    note = ""
    if entry is not None:
        note = "\n\nThe tensors are those of the original file, bit for bit, under other names." if published else ""
    parts.append("## Provenance\n\n" + _table(rows) + note)
    terms = []
    if entry is not None:
        terms.append("The original checkpoint was published under the Apache License 2.0.")
    if label_set.name in _DATASETS:
        terms.append(f"The data set has terms of its own. {_DATASETS[label_set.name][1]} Check whether they bear on your use.")
    if terms:
        parts.append("## License and terms of the data\n\n" + " ".join(terms))
    parts.append("## Citation\n\n" + _CITATIONS + (_CITE_MMSEGMENTATION if entry is not None else ""))
    return "\n\n".join(parts) + "\n"


def _table(rows: list[list[str]]) -> str:
    return tables.markdown(("", ""), rows, left=2)


def _size(pair: tuple[int, int]) -> str:
    return f"{pair[0]}x{pair[1]}"
