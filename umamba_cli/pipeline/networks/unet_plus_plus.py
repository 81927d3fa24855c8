"""UNet++: U-Nets of every depth in one, with dense paths of convolutions where the U-Net has skips.

Source: Zhou et al., "UNet++: Redesigning Skip Connections to Exploit Multiscale Features in Image Segmentation", arXiv
1912.05074: equation 1, figure 1 (nodes), section on deep supervision (heads). First in arXiv 1807.10165, 2018.

As everywhere here, the convolution that begins a stage of the encoder has its stride, where the paper pools, and an
instance norm follows each convolution, where the paper's code has none.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from umamba_cli.pipeline.networks.architecture import Architecture, require_multiples, require_plain
from umamba_cli.pipeline.networks.blocks import TRANSPOSED, ConvolutionBlock, initialise
from umamba_cli.pipeline.networks.checkpointing import is_worthwhile, run_part
from umamba_cli.pipeline.networks.heads import begin_with_frequencies, new_heads
from umamba_cli.pipeline.networks.unet import Encoder


class Node(nn.Module):
    """X^{i,j} for j > 0, equation 1: H([X^{i,0}, ..., X^{i,j-1}, U(X^{i+1,j-1})]).

    H are convolutions, U is a transposed convolution and [] puts maps side by side.
    """

    def __init__(self, a: Architecture, i: int, j: int) -> None:
        super().__init__()
        below, width = a.features_per_stage[i + 1], a.features_per_stage[i]
        kernel_size, stride = a.kernel_sizes[i], a.strides[i + 1]
        self.upsample = TRANSPOSED[a.dimensions](below, width, stride, stride)  # type: ignore[arg-type]
        self.blocks = nn.Sequential(
            ConvolutionBlock((j + 1) * width, width, kernel_size),
            *(ConvolutionBlock(width, width, kernel_size) for _ in range(a.blocks_per_stage_decoder[i] - 1)),
        )

    def forward(self, *maps: Tensor) -> Tensor:
        """To X^{i,j}, (B, width_i, ...).

        Args:
            maps: j of this level (B, width_i, ...) and, last, one of the level below (B, width_{i+1}, ... / stride).
        """
        *skips, below = maps
        y: Tensor = self.blocks(torch.cat((*skips, self.upsample(below)), dim=1))  # of (B, (j + 1) * width_i, ...)
        return y


class UNetPlusPlus(nn.Module):
    """UNet++ with the stages of a plain `Architecture`: X^{i,0} is stage i of the encoder, L the last of them.

    In training mode it returns the logits of the heads on X^{0,L}, X^{0,L-1}, ..., X^{0,1}, all at full resolution and
    the deepest U-Net's first; in evaluation mode those of X^{0,L} alone, the paper's fast mode without pruning. The
    mean over the heads, its accurate mode, would count a head that is not trained: the loss gives the later heads less
    weight and the last of several none. That one is on X^{0,1}, the U-Net of two stages, as in the U-Net it is the one
    at the lowest resolution; X^{0,1} itself is trained through the nodes that it leads to.

    Where the classes' frequencies are given, the heads begin by predicting them, see `heads`.

    Raises:
        InputError: the architecture asks for more than plain convolutions.
    """

    checkpointing: bool = False
    """In training, keep the nodes' results alone, and compute what is inside them anew for the gradients."""

    def __init__(self, architecture: Architecture, class_frequencies: Sequence[float] = ()) -> None:
        super().__init__()
        require_plain(architecture, "UNet++")
        self.architecture = a = architecture
        self.encoder = Encoder(a)
        last = len(a.features_per_stage) - 1
        # columns[j - 1][i] makes X^{i,j}: L nodes in the first column, one in the last.
        self.columns = nn.ModuleList(
            nn.ModuleList(Node(a, i, j) for i in range(last - j + 1)) for j in range(1, last + 1)
        )
        self.heads = new_heads([a.features_per_stage[0]] * last, a.outputs, a.dimensions)
        self.apply(initialise)
        begin_with_frequencies(self.heads, class_frequencies)

    def forward(self, x: Tensor) -> list[Tensor] | Tensor:
        """(B, channels, ...) to logits (B, outputs, ...), see the class.

        Raises:
            InputError: the size of `x` is not a multiple of the network's strides.
        """
        require_multiples(x.shape[2:], self.architecture.divisor)
        checkpointing = is_worthwhile(self)
        rows = [[x] for x in self.encoder(x, checkpointing=checkpointing)]  # rows[i]: X^{i,0}, then X^{i,1}, ...
        logits: list[Tensor] = []
        for nodes, head in zip(self.columns, self.heads[::-1], strict=True):
            assert isinstance(nodes, nn.ModuleList)
            # From the top: the row below ends with the column before, X^{i+1,j-1}.
            for node, row, below in zip(nodes, rows[:-1], rows[1:], strict=True):
                row.append(run_part(node, *row, below[-1], checkpointing=checkpointing))
            # The lowest row has served, and of the one above it the end alone is asked for.
            rows.pop()
            del rows[-1][:-1]
            if self.training:
                logits.append(head(rows[0][-1]))
        return logits[::-1] if self.training else self.heads[0](rows[0][-1])
