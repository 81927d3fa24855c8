"""Inputs of the selective scan, and its definition, for the tests of every backend."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from umamba_cli.pipeline.networks.scan.inputs import ScanInputs


def recurrence(inputs: ScanInputs) -> Tensor:
    """The definition, one token after the other, in the inputs' type."""
    u, delta, A, B, C, D, z, delta_bias = inputs
    step = F.softplus(delta if delta_bias is None else delta + delta_bias)
    h = u.new_zeros(u.shape[0], u.shape[2], A.shape[1])
    y = []
    for t in range(u.shape[1]):
        h = torch.exp(step[:, t, :, None] * A) * h + (step[:, t] * u[:, t])[..., None] * B[:, t, None, :]
        y.append((h * C[:, t, None, :]).sum(-1) + (0 if D is None else D * u[:, t]))
    return torch.stack(y, 1) * (1 if z is None else F.silu(z))


def scan_inputs(
    batch: int, length: int, channels: int, state: int = 16, *, steps: float = 3.0, device: str = "cpu"
) -> ScanInputs:
    """All eight, random; the step sizes before softplus lie between -steps and steps."""
    generator = torch.Generator(device).manual_seed(length)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, device=device)

    return ScanInputs(
        u=normal(batch, length, channels),
        delta=(uniform(batch, length, channels) * 2 - 1) * steps,
        A=-uniform(channels, state) * state - 0.1,
        B=normal(batch, length, state),
        C=normal(batch, length, state),
        D=normal(channels),
        z=normal(batch, length, channels),
        delta_bias=normal(channels) * 0.1,
    )


def leaves(inputs: ScanInputs, kind: torch.dtype = torch.float32) -> ScanInputs:
    """The same numbers in another type, each asking for its gradient."""
    return ScanInputs(*(None if t is None else t.detach().to(kind).requires_grad_() for t in inputs))


def largest_difference(a: Tensor, b: Tensor) -> float:
    """Relative to the largest magnitude of `b`."""
    return float(((a - b).abs().max() / b.abs().max().clamp_min(1e-12)).detach())
