"""The Mamba layer that U-Mamba puts into a U-Net.

Sources: Gu and Dao, "Mamba", arXiv 2312.00752, section 3.4 and figure 3 (the block); Ma, Li and Wang, "U-Mamba",
arXiv 2401.04722, section 2 and figure 1 (flatten, layer norm, Mamba, back to a map; no residual connection around it).
What may stand in the place of the selective state space model, and the orders in which voxels can be read: `s4d`,
`mamba2` and `directions`, with their sources.
Axes: B batch, C feature maps, L tokens, D inner channels, N state, R rank of the step size.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from umamba_cli.pipeline.networks.architecture import Mixer, ScanDirections
from umamba_cli.pipeline.networks.directions import ManyDirections, orders_of
from umamba_cli.pipeline.networks.mamba2 import Mamba2Block
from umamba_cli.pipeline.networks.s4d import S4DBlock
from umamba_cli.pipeline.networks.scan import causal_convolution, selective_scan
from umamba_cli.pipeline.networks.token_block import (
    KERNEL_SIZE,
    TokenBlock,
    at_least_float32,
    before_softplus,
    initial_steps,
)


class MambaBlock(TokenBlock):
    """Tokens in, tokens out: x -> W_out(SSM(silu(conv(W_x x))) * silu(W_z x))."""

    def __init__(self, channels: int, *, projections: bool = True, expand: int = 2, state: int = 16) -> None:
        super().__init__()
        inner = expand * channels
        self.rank = math.ceil(channels / 16)
        self.state = state
        if projections:
            self.in_proj = nn.Linear(channels, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, KERNEL_SIZE, groups=inner)
        self.x_proj = nn.Linear(inner, self.rank + 2 * state, bias=False)
        self.dt_proj = nn.Linear(self.rank, inner)
        self.A_log = nn.Parameter(torch.arange(1, state + 1, dtype=torch.float32).log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        if projections:
            self.out_proj = nn.Linear(inner, channels, bias=False)
        self.reset_step_size()

    @torch.no_grad()
    def reset_step_size(self) -> None:
        """Initial step sizes: softplus(bias) log-uniform between 0.001 and 0.1, the projection keeping its variance."""
        spread = self.rank**-0.5
        nn.init.uniform_(self.dt_proj.weight, -spread, spread)
        self.dt_proj.bias.copy_(before_softplus(initial_steps(len(self.dt_proj.bias))))

    def mix(self, projected_BLE: Tensor) -> Tensor:
        """Input and gate (B, L, 2D) to the gated output (B, L, D)."""
        x_BLD, z_BLD = projected_BLE.chunk(2, dim=-1)
        x_BLD = causal_convolution(x_BLD, self.conv1d.weight[:, 0], self.conv1d.bias)
        delta_BLR, B_BLN, C_BLN = self.x_proj(x_BLD).split([self.rank, self.state, self.state], dim=-1)
        delta_BLD = F.linear(delta_BLR, self.dt_proj.weight)
        A_DN = -at_least_float32(self.A_log).exp()
        return selective_scan(x_BLD, delta_BLD, A_DN, B_BLN, C_BLN, self.D, z_BLD, self.dt_proj.bias)


BLOCKS: dict[Mixer, type[MambaBlock | S4DBlock | Mamba2Block]] = {
    "mamba": MambaBlock,
    "s4d": S4DBlock,
    "mamba2": Mamba2Block,
}


class MambaLayer(nn.Module):
    """A feature map as a sequence of tokens: flatten, layer norm, Mamba, back to a map.

    The Mamba block runs outside autocast: its output is not bounded, and float16 overflows after it.

    Args:
        width: numbers in a token: as many as the map has channels, or voxels where the channels are the tokens.
        dimensions: of the map, 2 or 3; matters where the voxels are read along every axis.
        channels_are_tokens: take the channels, in their order, as the sequence in place of the voxels.
        mixer: what mixes the tokens in the block, see `Architecture`.
        scan_directions: the order in which the voxels are read, see `Architecture`.
    """

    mamba: TokenBlock | ManyDirections

    def __init__(
        self,
        width: int,
        dimensions: int = 3,
        *,
        channels_are_tokens: bool = False,
        mixer: Mixer = "mamba",
        scan_directions: ScanDirections = "forward",
    ) -> None:
        super().__init__()
        self.channels_are_tokens = channels_are_tokens
        self.norm = nn.LayerNorm(width)
        orders = orders_of(scan_directions, dimensions)
        block = BLOCKS[mixer]
        self.mamba = block(width) if len(orders) == 1 else ManyDirections(block, width, orders)

    def forward(self, x_BCzyx: Tensor) -> Tensor:
        """(B, C, [z,] y, x) to the same; in channels_last(_3d) memory format voxel tokens are a view."""
        kind, given = self.norm.weight.dtype, x_BCzyx.dtype
        with _without_autocast(x_BCzyx.device.type):
            if self.channels_are_tokens:
                tokens_BCL = self.mamba(self.norm(x_BCzyx.to(kind).flatten(2)))
                map_BCzyx: Tensor = tokens_BCL.reshape(x_BCzyx.shape)
                return map_BCzyx
            tokens_BzyxC = x_BCzyx.movedim(1, -1).to(kind)
            tokens_BLC = self.norm(tokens_BzyxC.flatten(1, -2))
            y_BCzyx: Tensor = self._mix(tokens_BLC, tokens_BzyxC.shape).movedim(-1, 1)
            # What follows would round it to bfloat16 in any case, each on its own; bfloat16 reaches as far as float32.
            return y_BCzyx.to(given) if given == torch.bfloat16 else y_BCzyx

    def _mix(self, tokens_BLC: Tensor, shape: torch.Size) -> Tensor:
        """The block's output as a map of this shape, (B, [z,] y, x, C)."""
        if isinstance(self.mamba, ManyDirections):
            tokens_BzyxC: Tensor = self.mamba(tokens_BLC.view(shape))
            return tokens_BzyxC
        mixed_BLC: Tensor = self.mamba(tokens_BLC)
        return mixed_BLC.view(shape)


def _without_autocast(device_type: str) -> AbstractContextManager[object]:
    """Full precision; the meta device has no other."""
    return nullcontext() if device_type == "meta" else torch.autocast(device_type, enabled=False)
