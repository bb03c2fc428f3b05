"""What the cards of models in other libraries' formats begin with."""

from __future__ import annotations

from ..errors import shown
from ..models.upernet import UPerNet
from ..version import __version__

__all__ = ["opening"]


def opening(model: UPerNet, name: str, library: str) -> list[str]:
    """Front matter, heading, and what the model is, as Markdown; what comes from the model's own record is escaped.

    Args:
        name: of the model there.
        library: whose format it is in, as the Hugging Face Hub names it.
    """
    label_set = model.label_set
    return [
        f"---\nlibrary_name: {library}\npipeline_tag: image-segmentation\ntags:\n- semantic-segmentation\n- upernet\n---",
        f"# {shown(name, 'markdown')}",
        f"UPerNet with a {model.config.backbone.title} backbone for semantic segmentation, {model.config.num_classes} classes "
        f"({shown(label_set.title or label_set.name, 'markdown')}), converted by upernet_zoo {__version__}.",
    ]
