"""Models whose answers say something: random ones would hide mistakes in batch norms, and label everything alike."""

import numpy as np
import torch
from torch import nn

from upernet_zoo.images import preprocess
from upernet_zoo.models import UPerNet


@torch.no_grad()
def lively(config, recipe=None, label_set=None, seed=0):
    """A UPerNet with random weights, its batch norms' statistics and its classifiers far from their initial values."""
    torch.manual_seed(seed)
    model = UPerNet(config, recipe, label_set).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.uniform_(0.6, 1.4)
            module.bias.normal_(0, 0.2)
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    for head in (model.decode_head, model.auxiliary_head):
        head.classifier.weight.normal_(0, 0.5)
        head.classifier.bias.normal_(0, 0.1)
    return model


@torch.no_grad()
def fit_classifier(model, image):
    """Fit the decode head's classifier to the brightness of a picture, (H, W, 3) uint8, in as many steps as there are classes.

    A label map with regions and margins as a trained model's, which a random classifier does not give.
    """
    head, x = model.decode_head, preprocess.prepare(image, model.recipe)
    classifier, head.classifier = head.classifier, nn.Identity()
    features = head(model.backbone(x))[0].flatten(1).T
    head.classifier = classifier
    count, size = model.config.num_classes, (-(-x.shape[2] // 4), -(-x.shape[3] // 4))
    bright = nn.functional.interpolate(x.mean(1, keepdim=True), size, mode="area").flatten()
    steps = torch.bucketize(bright, torch.quantile(bright[:: max(1, len(bright) // 100_000)], torch.linspace(0, 1, count + 1)[1:-1]))
    target = nn.functional.one_hot(steps, count).float()
    padded = torch.cat([features, torch.ones(len(features), 1)], 1).double()
    gram = padded.T @ padded
    solved = torch.linalg.solve(gram + 1e-6 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype), padded.T @ target.double())
    classifier.weight.copy_(solved[:-1].T[:, :, None, None])
    classifier.bias.copy_(solved[-1])
    assert np.unique(steps).size == count
    return model
