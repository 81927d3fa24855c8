"""The Mamba layer that U-Mamba puts into a U-Net.

Sources: Gu and Dao, "Mamba", arXiv 2312.00752, section 3.4 and figure 3 (the block); Ma, Li and Wang, "U-Mamba",
arXiv 2401.04722, section 2 and figure 1 (flatten, layer norm, Mamba, back to a map; no residual connection around it).
Axes: B batch, C feature maps, L tokens, D inner channels, N state, R rank of the step size.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from umamba_cli.pipeline.networks.scan import selective_scan

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
        x_BLD = F.silu(self._causal_convolution(x_BLD))
        delta_BLR, B_BLN, C_BLN = self.x_proj(x_BLD).split([self.rank, self.state, self.state], dim=-1)
        delta_BLD = F.linear(delta_BLR, self.dt_proj.weight)
        A_DN = -self.A_log.float().exp() if self.A_log.dtype != torch.float64 else -self.A_log.exp()
        y_BLD = selective_scan(x_BLD, delta_BLD, A_DN, B_BLN, C_BLN, self.D, z_BLD, self.dt_proj.bias)
        projected: Tensor = self.out_proj(y_BLD)
        return projected

    def _causal_convolution(self, x_BLD: Tensor) -> Tensor:
        """Each channel's weighted sum of the last `kernel_size` tokens, as shifted multiply-adds.

        PyTorch's depthwise Conv1d wants (B, D, L) and is slow on a CPU; here the tokens stay where they are.
        """
        weight_KD = self.conv1d.weight[:, 0].t().to(x_BLD.dtype)
        taps, length = len(weight_KD), x_BLD.shape[1]
        padded = F.pad(x_BLD, (0, 0, taps - 1, 0))
        y_BLD = torch.addcmul(self.conv1d.bias.to(x_BLD.dtype), padded[:, :length], weight_KD[0])  # type: ignore[union-attr]
        for k in range(1, taps):
            y_BLD = torch.addcmul(y_BLD, padded[:, k : k + length], weight_KD[k])
        return y_BLD


class MambaLayer(nn.Module):
    """A feature map as a sequence of tokens: flatten, layer norm, Mamba, back to a map.

    The Mamba block runs outside autocast: its output is not bounded, and float16 overflows after it.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.mamba = MambaBlock(channels)

    def forward(self, x_BCzyx: Tensor) -> Tensor:
        """(B, C, [z,] y, x) to the same; in channels_last(_3d) memory format the tokens are a view."""
        kind = self.norm.weight.dtype
        with torch.autocast(x_BCzyx.device.type, enabled=False):
            tokens_BzyxC = x_BCzyx.movedim(1, -1).to(kind)
            tokens_BLC = self.mamba(self.norm(tokens_BzyxC.flatten(1, -2)))
            y_BCzyx: Tensor = tokens_BLC.view(tokens_BzyxC.shape).movedim(-1, 1)
            return y_BCzyx
