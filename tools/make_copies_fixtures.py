"""Write the small models of segmentation_models_pytorch in tests/fixtures/copies, and what that library computes with them.

    pip install segmentation-models-pytorch==0.6.0 && python tools/make_copies_fixtures.py

Each folder has `config.json` and `model.safetensors` as `save_pretrained` writes them, and logits.npz: logits before they are resized, of
the picture `picture()`, float32.
"""

from pathlib import Path

import numpy as np
import torch

FIXTURES = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "copies"
# none of timm's two faults shows: every map is whole windows, and larger than one
MODELS = {
    "smp_convnext": ("tu-convnext_tiny", dict(depths=(1, 1, 2, 1), dims=(8, 16, 24, 32))),
    "smp_swin": (
        "tu-swin_tiny_patch4_window7_224",
        dict(depths=(2, 2, 2, 2), embed_dim=8, num_heads=(1, 2, 2, 4), window_size=2, img_size=128),
    ),
}


def picture() -> torch.Tensor:
    """(1, 3, 128, 128), float32."""
    return torch.arange(3 * 128 * 128, dtype=torch.float64).mul(0.37).sin().float().view(1, 3, 128, 128)


@torch.no_grad()
def main() -> None:
    import segmentation_models_pytorch as smp

    torch.manual_seed(0)
    for name, (encoder, options) in MODELS.items():
        model = smp.UPerNet(encoder, encoder_weights=None, decoder_channels=8, classes=4, **options).eval()
        for key, value in model.state_dict().items():
            if value.is_floating_point():
                value.copy_(torch.rand_like(value) + 0.5 if key.endswith("running_var") else torch.randn_like(value) * 0.3)
        model.save_pretrained(FIXTURES / name)
        (FIXTURES / name / "README.md").unlink()
        logits = model.segmentation_head[0](model.decoder(model.encoder(picture())))
        np.savez(FIXTURES / name / "logits.npz", logits=logits.numpy())


if __name__ == "__main__":
    main()
