"""The 1x1 convolutions that make logits of feature maps, one for each resolution of deep supervision.

Where the classes' frequencies are given, the heads begin by predicting them. Otherwise the first steps teach a network
that nearly all is background, with a momentum that carries it far beyond, and on small datasets it takes hundreds of
steps to come back. Source: Lin et al., "Focal Loss for Dense Object Detection", 2017, section 3.3.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from umamba_cli.pipeline.networks.blocks import convolution

RAREST = 1e-4
"""A class rarer than this is taken to be this frequent at the start."""


def new_heads(widths: Iterable[int], outputs: int, dimensions: int) -> nn.ModuleList:
    """A head for each feature map of so many channels."""
    return nn.ModuleList(convolution(width, outputs, (1,) * dimensions) for width in widths)


@torch.no_grad()
def begin_with_frequencies(heads: Iterable[nn.Module], class_frequencies: Sequence[float]) -> None:
    """Let heads (1x1 convolutions with a bias) predict the classes' frequencies; nothing is done where there are none.

    A softmax of the logarithms of shares gives the shares; so does a sigmoid of a region's logarithm of the odds.

    Args:
        heads: are changed.
        class_frequencies: see `NetworkPlan.class_frequencies`.
    """
    if not class_frequencies:
        return
    prior = torch.tensor(class_frequencies).clamp_min(RAREST).log()
    for head in heads:
        assert isinstance(head, nn.Conv2d | nn.Conv3d)
        assert head.bias is not None
        nn.init.normal_(head.weight, std=0.01)
        head.bias.copy_(prior)
