"""The Mamba layer that U-Mamba puts into a U-Net.

Sources: Gu and Dao, "Mamba", arXiv 2312.00752, section 3.4 and figure 3 (the block); Ma, Li and Wang, "U-Mamba",
arXiv 2401.04722, section 2 and figure 1 (flatten, layer norm, Mamba, back to a map; no residual connection around it).
Axes: B batch, C feature maps, L tokens, D inner channels, N state, R rank of the step size.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from umamba_cli.pipeline.networks.scan import causal_convolution, selective_scan

STEP_MIN, STEP_MAX = 1e-3, 1e-1  # initial step sizes, log-uniform (Mamba, section 3.6)


class MambaBlock(nn.Module):
    """Tokens in, tokens out: x -> W_out(SSM(silu(conv(W_x x))) * silu(W_z x))."""

    def __init__(self, channels: int, *, expand: int = 2, state: int = 16, kernel_size: int = 4) -> None:
        super().__init__()
        inner = expand * channels
        self.rank = math.ceil(channels / 16)
        self.state = state
        self.in_proj = nn.Linear(channels, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, kernel_size, groups=inner, padding=kernel_size - 1)
        self.x_proj = nn.Linear(inner, self.rank + 2 * state, bias=False)
        self.dt_proj = nn.Linear(self.rank, inner)
        self.A_log = nn.Parameter(torch.arange(1, state + 1, dtype=torch.float32).log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, channels, bias=False)
        self.reset_step_size()

    @torch.no_grad()
    def reset_step_size(self) -> None:
        """Initial step sizes: softplus(bias) log-uniform between 0.001 and 0.1, the projection keeping its variance."""
        spread = self.rank**-0.5
        nn.init.uniform_(self.dt_proj.weight, -spread, spread)
        step = torch.empty_like(self.dt_proj.bias).uniform_(math.log(STEP_MIN), math.log(STEP_MAX)).exp()
        self.dt_proj.bias.copy_(step + torch.log(-torch.expm1(-step)))  # the inverse of softplus

    def forward(self, tokens_BLC: Tensor) -> Tensor:
        """(B, L, C) to (B, L, C)."""
        x_BLD, z_BLD = self.in_proj(tokens_BLC).chunk(2, dim=-1)
        x_BLD = causal_convolution(x_BLD, self.conv1d.weight[:, 0], self.conv1d.bias)
        delta_BLR, B_BLN, C_BLN = self.x_proj(x_BLD).split([self.rank, self.state, self.state], dim=-1)
        delta_BLD = F.linear(delta_BLR, self.dt_proj.weight)
        A_DN = -self.A_log.float().exp() if self.A_log.dtype != torch.float64 else -self.A_log.exp()
        y_BLD = selective_scan(x_BLD, delta_BLD, A_DN, B_BLN, C_BLN, self.D, z_BLD, self.dt_proj.bias)
        projected: Tensor = self.out_proj(y_BLD)
        return projected


class MambaLayer(nn.Module):
    """A feature map as a sequence of tokens: flatten, layer norm, Mamba, back to a map.

    The Mamba block runs outside autocast: its output is not bounded, and float16 overflows after it.

    Args:
        width: numbers in a token: as many as the map has channels, or voxels where the channels are the tokens.
        channels_are_tokens: take the channels, in their order, as the sequence in place of the voxels.
    """

    def __init__(self, width: int, *, channels_are_tokens: bool = False) -> None:
        super().__init__()
        self.channels_are_tokens = channels_are_tokens
        self.norm = nn.LayerNorm(width)
        self.mamba = MambaBlock(width)

    def forward(self, x_BCzyx: Tensor) -> Tensor:
        """(B, C, [z,] y, x) to the same; in channels_last(_3d) memory format voxel tokens are a view."""
        kind, given = self.norm.weight.dtype, x_BCzyx.dtype
        with _without_autocast(x_BCzyx.device.type):
            if self.channels_are_tokens:
                tokens_BCL = self.mamba(self.norm(x_BCzyx.to(kind).flatten(2)))
                map_BCzyx: Tensor = tokens_BCL.reshape(x_BCzyx.shape)
                return map_BCzyx
            tokens_BzyxC = x_BCzyx.movedim(1, -1).to(kind)
            tokens_BLC = self.mamba(self.norm(tokens_BzyxC.flatten(1, -2)))
            y_BCzyx: Tensor = tokens_BLC.view(tokens_BzyxC.shape).movedim(-1, 1)
            # What follows would round it to bfloat16 in any case, each on its own; bfloat16 reaches as far as float32.
            return y_BCzyx.to(given) if given == torch.bfloat16 else y_BCzyx


def _without_autocast(device_type: str) -> AbstractContextManager[object]:
    """Full precision; the meta device has no other."""
    return nullcontext() if device_type == "meta" else torch.autocast(device_type, enabled=False)
