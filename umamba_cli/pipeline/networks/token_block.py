"""What the blocks that mix tokens have in common: a projection in, the mixing, a projection out.

Source: Gu and Dao, "Mamba", arXiv 2312.00752, figure 3. A block's kind says what stands between the projections.
Axes: B batch, C feature maps, L tokens, D inner channels, E numbers a token is projected to (input, gate, ...).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

STEP_MIN, STEP_MAX = 1e-3, 1e-1  # initial step sizes, log-uniform (Mamba, section 3.6)
KERNEL_SIZE = 4  # of the causal convolution


class TokenBlock(nn.Module):
    """Tokens in, tokens out: x -> W_out mix(W_in x); without projections it is one direction of `ManyDirections`.

    What mixes begins with a causal convolution, which is why every kind has kernels to compile, see `networks.scan`.
    """

    in_proj: nn.Linear
    out_proj: nn.Linear
    D: nn.Parameter
    """The skip around the state space model."""

    def mix(self, projected_BLE: Tensor) -> Tensor:
        """The projected tokens (B, L, E), in the order in which they are to be read, to the gated output (B, L, D)."""
        raise NotImplementedError

    def forward(self, tokens_BLC: Tensor) -> Tensor:
        """(B, L, C) to (B, L, C)."""
        projected: Tensor = self.out_proj(self.mix(self.in_proj(tokens_BLC)))
        return projected


def initial_steps(count: int) -> Tensor:
    """Step sizes, log-uniform between 0.001 and 0.1."""
    return torch.empty(count).uniform_(math.log(STEP_MIN), math.log(STEP_MAX)).exp()


def before_softplus(steps: Tensor) -> Tensor:
    """What softplus makes these steps of."""
    return steps + torch.log(-torch.expm1(-steps))


def at_least_float32(tensor: Tensor) -> Tensor:
    """float64 stays float64, all else is computed in float32."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
