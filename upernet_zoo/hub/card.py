"""The card (`README.md`) of a saved model, rendered from its description and, for a published model, from the index.

Metadata: https://huggingface.co/docs/hub/model-cards#model-card-metadata, written by huggingface_hub's own `ModelCardData`.
"""

from __future__ import annotations

import json
import re

from .. import licenses, tables
from ..description import Description
from ..errors import shown
from ..index import TASK, ModelEntry
from ..provenance import Claim, Evidence
from ..version import __version__, install_line

__all__ = ["render"]

# label set -> id of its data set in the metadata, as other cards have it
_DATASETS = {"cityscapes": "cityscapes", "ade20k": "scene_parse_150", "voc12aug": "pascal-voc"}
_TRAINED_ON = {"cityscapes": "Cityscapes", "ade20k": "ADE20K", "voc12aug": "Pascal VOC 2012 + Aug"}  # as `licenses.of_data` names it
_HUB_LICENSES = ("apache-2.0", "mit", "bsd-3-clause", "cc-by-nc-4.0", "cc-by-4.0")
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


def _metadata(name: str, description: Description, entry: ModelEntry | None, published: bool) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    dataset = _DATASETS.get(description.label_set.name)
    results = []
    if entry is not None and published:
        results = [
            EvalResult(
                task_type="image-segmentation",
                task_name=TASK,
                dataset_type=dataset or shown(description.label_set.name, "text"),
                dataset_name=shown(entry.dataset, "text"),
                metric_type="mean_iou",
                metric_name=_METRICS[key],
                metric_value=entry.metrics[key],
            )
            for key in _METRICS.keys() & entry.metrics.keys()
        ]
    results.sort(key=lambda result: len(result.metric_name or ""))
    return ModelCardData(
        library_name="upernet_zoo",
        pipeline_tag="image-segmentation",
        tags=["semantic-segmentation", "upernet", description.config.backbone.title.lower().replace(" ", "-"), "pytorch"],
        license=_license(entry),
        datasets=[dataset] if dataset else None,
        metrics=["mean_iou"] if results else None,
        model_name=shown(name, "text") if results else None,
        eval_results=results or None,
    ).to_yaml(line_break="\n")


def render(description: Description, *, reference: str, name: str, weights_sha256: str, claim: Claim | None) -> str:
    """The text of a card. What comes from the model's own record is escaped and named as such: anybody can write one.

    Args:
        description: of the model.
        reference: what `create_model` loads it by, such as "hf-hub:org/name".
        name: of the model, the card's title.
        weights_sha256: SHA-256 of `model.safetensors`, 64 hex digits.
        claim: what is known of the origin in the record; only published weights, bit for bit, get the published results.
    """
    config, recipe, label_set, origin = description.config, description.recipe, description.label_set, description.origin
    entry = None if claim is None or claim.evidence is Evidence.UNCONFIRMED else claim.entry
    published = claim is not None and claim.evidence is Evidence.PUBLISHED
    parts = [f"---\n{_metadata(name, description, entry, published).strip()}\n---", f"# {shown(name, 'markdown')}"]
    what = f"UPerNet with a {config.backbone.title} backbone for semantic segmentation, {config.num_classes} classes"
    if entry is not None and published:
        dataset = shown(entry.dataset, "markdown")
        parts.append(f"{what}, trained by the MMSegmentation project on {dataset} ({entry.schedule} iterations).")
    elif entry is not None:
        parts.append(f"{what}. By its record, its weights started from those of {_code(entry.name)}, and differ from them.")
    else:
        parts.append(f"{what} ({shown(label_set.title or label_set.name, 'markdown')}).")
    called = json.dumps(reference, ensure_ascii=not reference.isprintable())
    parts.append(
        f"## Use\n\n```shell\n{install_line()}\n```\n\n```python\nimport upernet_zoo as uz\n\n"
        f'segmenter = uz.Segmenter({called})\nsegmentation = segmenter("picture.jpg")\n'
        'print(segmentation.areas())\nsegmentation.save("labels.png")\n```\n\n'
        f"The network alone, an `nn.Module`: {_code(f'uz.create_model({called})')}."
    )
    if entry is not None and published and entry.metrics:
        rows = [[label, f"{entry.metrics[key]:.2f}"] for key, label in _METRICS.items() if key in entry.metrics]
        heading = f"## Results\n\nOn the validation set of {shown(entry.dataset, 'markdown')}, in percent, as published:\n\n"
        parts.append(heading + _table(rows))
    run = (
        f"sliding windows of {_size(recipe.crop)}, stride {_size(recipe.stride)}" if recipe.mode == "slide" else "the whole picture at once"
    )
    parts.append(
        f"## Recipe\n\nPictures are {recipe.resizing}, and run as {run}. Architecture, recipe, classes and palette are in `config.json`."
    )
    by_record = "" if published else ", by its record"
    recorded = {"file": "original file", "sha256": "original file, SHA-256", "url": "original URL"}
    rows = [[title + by_record, _code(shown(origin[key], "text"))] for key, title in recorded.items() if origin.get(key)]
    if entry is not None and (living := entry.link(entry.weights)):
        rows.append(["the same file at a living host", f"<{living}>" if re.fullmatch(r"[\w.+@:/=~%-]+", living) else _code(living)])
    rows += [["`model.safetensors`, SHA-256", f"`{weights_sha256}`"], ["written by", f"upernet_zoo {__version__}"]]
    note = ""
    if published:
        note = "\n\nThe tensors are those of the original file, bit for bit, under other names."
    elif claim is not None and entry is None:
        note = (
            f"\n\nThe record names {_code(claim.entry.name)}. Whether these are its tensors was not checked: no checkpoint of it was "
            "converted on the machine that wrote this card."
        )
    parts.append("## Provenance\n\n" + _table(rows) + note)
    if terms := _terms(entry, label_set.name):
        parts.append(f"## License and terms of the data\n\n{terms}")
    parts.append("## Citation\n\n" + _CITATIONS + (_CITE_MMSEGMENTATION if entry is not None else ""))
    return "\n\n".join(parts) + "\n"


def _license(entry: ModelEntry | None) -> str | None:
    """For the metadata, which takes one: that of the weights' origin, if it states one that the Hub knows."""
    stated = entry.licenses.weights.licenses if entry is not None else ()
    return stated[0].lower() if stated and stated[0].lower() in _HUB_LICENSES else None


def _terms(entry: ModelEntry | None, label_set: str) -> str:
    """A list of what is stated by whom: all that the index knows of an entry; of another model, the terms of its classes' data set."""
    parts = []
    of_classes = licenses.of_data(_TRAINED_ON.get(label_set))
    if entry is not None:
        known = entry.licenses
        training = known.training if any(terms.stated for terms in known.training) else of_classes
        of_backbone = [(f"Pretrained backbone ({known.backbone.name})", known.backbone)] if known.backbone else []
        of_data = [(f"Training data: {terms.name}", terms) for terms in training]
        of_data += [(f"Pretraining data: {terms.name}", terms) for terms in known.pretraining]
        parts += [("Original code", known.code), ("Weights", known.weights), *of_backbone, *of_data]
    else:
        parts += [(terms.name, terms) for terms in of_classes]
    lines = []
    for title, terms in parts:
        stated = terms.stated or (licenses.Statement("by nobody that is known"),)
        lines += [f"- {shown(title, 'markdown')}: {_statement(one)}" for one in stated]
        if terms.disagree:
            lines.append(f"- {shown(title, 'markdown')}: the sources disagree ({shown(' and '.join(terms.licenses), 'markdown')}).")
    if not lines:
        return ""
    if entry is None:
        lines.insert(0, "The data set of these classes has terms of its own, which bear on what was trained on it:\n")
    return "\n".join([*lines, "\nCheck which of these terms bear on your use."])


def _statement(one: licenses.Statement) -> str:
    source = one.source if one.source and re.fullmatch(r"https?://[\w.+@:/=~%#-]+", one.source) else None
    by = f"[{shown(one.by, 'markdown')}]({source})" if source else shown(one.by, "markdown")
    license = shown(one.license or licenses.NOT_STATED, "markdown")
    return f"{license} ({by})" + (f". {shown(one.note, 'markdown')}" if one.note else "")


def _code(text: str) -> str:
    """A text as code, where nothing in it ends that; else escaped."""
    return f"`{text}`" if re.fullmatch(r"[\w.+@:/='\"(),;%~ -]+", text) else shown(text, "markdown")


def _table(rows: list[list[str]]) -> str:
    return tables.markdown(("", ""), rows, left=2)


def _size(pair: tuple[int, int] | None) -> str:
    return "-" if pair is None else f"{pair[0]}x{pair[1]}"
