"""Attention U-Net: what the decoder knows decides which parts of a skip are let through.

Source: Oktay et al., "Attention U-Net: Learning Where to Look for the Pancreas", arXiv 1804.03999: equations 1 and 2
and figure 2 (the gate), figure 1 and "Attention Gates in U-Net Model" (where gates stand, deep supervision).

The gate is the paper's of one coefficient a voxel. Its released code puts two of them side by side, mixes what comes of
them by another convolution, and gives W_x the stride as its kernel, where the paper has 1x1x1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from umamba_cli.pipeline.networks.architecture import Architecture, Axes, require_plain
from umamba_cli.pipeline.networks.blocks import Shortcut, convolution
from umamba_cli.pipeline.networks.unet import DecoderStage, UNet

LINEAR = {2: "bilinear", 3: "trilinear"}


class AttentionGate(nn.Module):
    """Additive attention, with x the skip and g the gating signal, one level coarser.

    q = psi^T relu(W_x^T x + W_g^T g + b_g) + b_psi    (equation 1, at the resolution of g)
    alpha = sigmoid(q)                                 (equation 2)
    and the result is x times alpha, which is resampled linearly to the resolution of x (figure 2).

    Args:
        channels: of x; the features in which x and g are compared (F_int) are as many.
        gating_channels: of g.
        stride: between x and g, by axis.
    """

    def __init__(self, channels: int, gating_channels: int, stride: Axes) -> None:
        super().__init__()
        ones = (1,) * len(stride)
        self.of_skip = Shortcut(channels, channels, stride, bias=False)  # W_x
        self.of_gating = convolution(gating_channels, channels, ones)  # W_g, b_g
        self.psi = convolution(channels, 1, ones)  # psi, b_psi

    def coefficients(self, skip: Tensor, gating: Tensor) -> Tensor:
        """(B, channels, ...) and (B, gating_channels, ... / stride) to alpha, (B, 1, ...), from 0 to 1."""
        q = self.psi(torch.relu(self.of_skip(skip) + self.of_gating(gating)))  # (B, 1, ... / stride)
        return interpolate(q.sigmoid(), size=skip.shape[2:], mode=LINEAR[skip.ndim - 2])

    def forward(self, skip: Tensor, gating: Tensor) -> Tensor:
        """(B, channels, ...) and (B, gating_channels, ... / stride) to (B, channels, ...)."""
        return skip * self.coefficients(skip, gating)


class GatedDecoderStage(DecoderStage):
    """A stage of the U-Net's decoder behind a gate on its skip, whose gating signal is the map from below.

    At full resolution there is no gate: the paper leaves the first skip alone, whose features are too close to the
    image to be judged by.
    """

    def __init__(self, a: Architecture, index: int) -> None:
        super().__init__(a, index)
        below, width = a.features_per_stage[index + 1], a.features_per_stage[index]
        self.gate = AttentionGate(width, below, a.strides[index + 1]) if index > 0 else None

    def forward(self, below: Tensor, skip: Tensor) -> Tensor:
        """The map from below and the encoder's at this resolution to the decoder's at this resolution."""
        return super().forward(below, skip if self.gate is None else self.gate(skip, below))


class AttentionUNet(UNet):
    """The U-Net of a plain `Architecture` with attention gates on all skips but that of the full resolution.

    With two stages there is no other skip, and it is the U-Net.

    Raises:
        InputError: the architecture asks for more than plain convolutions.
    """

    decoder_stage = GatedDecoderStage

    def __init__(self, architecture: Architecture, class_frequencies: Sequence[float] = ()) -> None:
        require_plain(architecture, "Attention U-Net")
        super().__init__(architecture, class_frequencies)
