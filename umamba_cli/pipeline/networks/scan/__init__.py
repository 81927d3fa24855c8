"""The selective scan: one operator, several backends, chosen at run time.

Source: Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", arXiv 2312.00752, section 3.
Shapes are named by their axes: B batch, L length (tokens), D channels, N state.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.networks.scan.torch_backend import chunked_scan

ENVIRONMENT_VARIABLE = "UMAMBA_SCAN"

StateScan = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Backend:
    """One implementation of the recurrence."""

    name: str
    scan: StateScan
    """`scan(u_BLD, delta_BLD, A_DN, B_BLN, C_BLN) -> y_BLD`, delta positive, all of one floating type."""

    devices: tuple[str, ...]
    """Device types that it runs on; `*` is any."""

    description: str


# The order is the order of preference.
BACKENDS: dict[str, Backend] = {
    "torch": Backend("torch", chunked_scan, ("*",), "chunked, in plain PyTorch, on any device"),
}


def choose_backend(device_type: str, name: str | None = None) -> Backend:
    """The backend to use on a device: the one asked for, or the first that runs there.

    Args:
        device_type: `cpu`, `cuda`, `mps`.
        name: a backend's name; None takes the environment variable `UMAMBA_SCAN`, and where that is unset, the best.

    Raises:
        InputError: no such backend, or it does not run on the device.
    """
    name = name or os.environ.get(ENVIRONMENT_VARIABLE) or None
    if name is None:
        return next(backend for backend in BACKENDS.values() if _runs_on(backend, device_type))
    if name not in BACKENDS:
        raise InputError(f"there is no scan backend {name!r}", next_step=f"choose one of {', '.join(BACKENDS)}")
    backend = BACKENDS[name]
    if not _runs_on(backend, device_type):
        raise InputError(
            f"the scan backend {name!r} does not run on {device_type}",
            next_step=f"unset {ENVIRONMENT_VARIABLE}, or choose another device",
        )
    return backend


def _runs_on(backend: Backend, device_type: str) -> bool:
    return "*" in backend.devices or device_type in backend.devices


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    """The selective state space model, discretised and run along the tokens.

    With d = softplus(delta + delta_bias), for each batch item and channel::

        h_t = exp(d_t A) h_{t-1} + d_t B_t u_t
        y_t = (C_t . h_t + D u_t) silu(z_t)

    It is computed in float32 at least, whatever autocast says: the sums grow without bound and float16 overflows.
    float64 stays float64.

    Args:
        u: (B, L, D), the input.
        delta: (B, L, D), the step sizes before softplus.
        A: (D, N), negative, the decay rates.
        B: (B, L, N), how the input enters the state.
        C: (B, L, N), how the state is read.
        D: (D,), the skip; None for none.
        z: (B, L, D), the gate; None for none.
        delta_bias: (D,), added to `delta`; None for none.
        backend: forces a backend by name.

    Returns:
        (B, L, D) in the computing type (float32 or float64).

    Raises:
        InputError: the backend asked for does not exist or does not run on the tensors' device.
    """
    kind = torch.float64 if u.dtype == torch.float64 else torch.float32
    with torch.autocast(u.device.type, enabled=False):
        u, delta, A, B, C = (tensor.to(kind) for tensor in (u, delta, A, B, C))
        if delta_bias is not None:
            delta = delta + delta_bias.to(kind)
        y = choose_backend(u.device.type, backend).scan(u, F.softplus(delta), A, B, C)
        if D is not None:
            y = torch.addcmul(y, u, D.to(kind))
        if z is not None:
            y = y * F.silu(z.to(kind))
    return y
