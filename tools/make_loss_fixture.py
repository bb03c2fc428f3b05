"""Write tests/fixtures/loss.npz: random logits and labels, and mmsegmentation 0.30's loss of them. Needs an environment with that.

python tools/make_loss_fixture.py
"""

from pathlib import Path

import numpy as np
import torch
from mmseg.models.decode_heads import FCNHead

OUT = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "loss.npz"
CLASSES, SIZE, IGNORE = 7, (32, 48), 255


def original(logits: torch.Tensor, target: torch.Tensor, weight: float, align_corners: bool) -> float:
    """What a head of the original gives for its logits: resized to the labels, averaged over the labeled pixels, weighted."""
    loss = dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=weight, avg_non_ignore=True)
    head = FCNHead(in_channels=4, channels=4, num_classes=CLASSES, loss_decode=loss, align_corners=align_corners, ignore_index=IGNORE)
    return head.losses(logits, target[:, None])["loss_ce"].item()


def main() -> None:
    torch.manual_seed(0)
    arrays = {}
    for case, (align_corners, ignored) in enumerate([(False, 0.0), (False, 0.3), (True, 0.3), (True, 0.999)]):
        strides = [torch.randn(2, CLASSES, SIZE[0] // s, SIZE[1] // s) * 3 for s in (4, 16)]
        target = torch.randint(0, CLASSES, (2, *SIZE))
        target[torch.rand(target.shape) < ignored] = IGNORE
        loss = sum(original(logits, target, weight, align_corners) for logits, weight in zip(strides, (1.0, 0.4)))
        arrays |= {f"decode_{case}": strides[0].numpy(), f"auxiliary_{case}": strides[1].numpy()}
        arrays |= {f"target_{case}": target.numpy().astype(np.uint8), f"loss_{case}": loss, f"align_corners_{case}": align_corners}
    np.savez_compressed(OUT, **arrays)


if __name__ == "__main__":
    main()
