"""The orders in which a map's voxels are read as a sequence, and the block that reads them in several.

Sources: Zhu et al., "Vision Mamba", arXiv 2401.09417, algorithm 1 (the sequence and its reverse: projections are
shared, convolution and state space model are each direction's own, the gated outputs are summed); Liu et al., "VMamba",
arXiv 2401.10166 (the cross-scan of a picture: along rows and along columns, both ways); Xing et al., "SegMamba", arXiv
2401.13560 (the tri-orientated Mamba: a volume read along each of its axes).

Axes: B batch, z, y, x of the map, C feature maps, L tokens, D inner channels, E numbers a token is projected to.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import Protocol

import torch
from torch import Tensor, nn

from umamba_cli.pipeline.networks.architecture import ScanDirections
from umamba_cli.pipeline.networks.token_block import TokenBlock


@dataclass(frozen=True)
class Order:
    """One order of reading."""

    axis: int
    """Of the map's axes z, y, x (or y, x) the one along which neighbours follow one another, counted from the end: -1
    is x. The others keep their order."""

    backwards: bool
    """From the last voxel to the first."""


def orders_of(directions: ScanDirections, dimensions: int) -> tuple[Order, ...]:
    """The orders, each axis forwards and then backwards, x first: 1, 2, or twice the number of axes."""
    if directions == "forward":
        return (Order(-1, backwards=False),)
    axes = range(1, dimensions + 1) if directions == "axes" else (1,)
    return tuple(Order(-axis, backwards) for axis in axes for backwards in (False, True))


class NewBlock(Protocol):
    """A kind of block."""

    def __call__(self, channels: int, *, projections: bool = True) -> TokenBlock:
        """A block, or, without projections, what stands between them."""


class ManyDirections(nn.Module):
    """Voxels in, voxels out: x -> W_out sum_d mix_d(W_in x), each direction d with an order and weights of its own."""

    def __init__(self, new_block: NewBlock, channels: int, orders: tuple[Order, ...]) -> None:
        super().__init__()
        self.orders = orders
        whole = new_block(channels)  # of which the projections are taken
        self.in_proj = whole.in_proj
        self.directions = nn.ModuleList(new_block(channels, projections=False) for _ in orders)
        self.out_proj = whole.out_proj

    def forward(self, tokens_BzyxC: Tensor) -> Tensor:
        """(B, [z,] y, x, C) to the same."""
        axes = dict.fromkeys(order.axis for order in self.orders)
        if len(axes) > 1 and len(axes) != tokens_BzyxC.dim() - 2:
            raise ValueError(f"a map of {tokens_BzyxC.dim() - 2} axes cannot be read along {len(axes)}")
        projected_BzyxE = self.in_proj(tokens_BzyxC)
        outputs_BzyxD = []
        for axis in axes:
            along_BzyxE = projected_BzyxE.movedim(axis - 1, -2)
            read_BLD = self._read_along(axis, along_BzyxE.flatten(1, -2))
            read_BzyxD = torch.unflatten(read_BLD, 1, along_BzyxE.shape[1:-1]).movedim(-2, axis - 1)
            outputs_BzyxD.append(read_BzyxD)
        y_BzyxC: Tensor = self.out_proj(reduce(torch.add, outputs_BzyxD))
        return y_BzyxC

    def _read_along(self, axis: int, projected_BLE: Tensor) -> Tensor:
        """The sum over the directions along an axis."""
        outputs_BLD = []
        for order, block in zip(self.orders, self.directions, strict=True):
            assert isinstance(block, TokenBlock)
            if order == Order(axis, backwards=False):
                outputs_BLD.append(block.mix(projected_BLE))
            elif order == Order(axis, backwards=True):
                outputs_BLD.append(block.mix(projected_BLE.flip(1)).flip(1))
        return reduce(torch.add, outputs_BLD)
