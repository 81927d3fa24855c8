"""The selective scan and the causal convolution of Mamba: one operator each, several backends, chosen at run time.

Source: Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", arXiv 2312.00752, section 3.
Shapes are named by their axes: B batch, L length (tokens), D channels, N state.
"""

from __future__ import annotations

import torch
from torch import Tensor

from umamba_cli.pipeline.networks.scan.backends import BACKENDS, ENVIRONMENT_VARIABLE, Backend, choose_backend
from umamba_cli.pipeline.networks.scan.operators import convolution_operator, scan_operator

__all__ = [
    "BACKENDS",
    "ENVIRONMENT_VARIABLE",
    "Backend",
    "causal_convolution",
    "choose_backend",
    "compile_kernels",
    "selective_scan",
]


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
    float64 stays float64, and is computed by the `torch` backend whichever is asked for.

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
    inputs = (u, delta, A, B, C, D, z, delta_bias)
    keep = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs)
    y: Tensor = scan_operator(*_in_computing_type(inputs), keep, backend or "")[0]
    return y


def causal_convolution(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, backend: str | None = None) -> Tensor:
    """SiLU of each channel's weighted sum of the last K tokens; computed in the same types as the scan.

    Args:
        x: (B, L, D).
        weight: (D, K), the last one for the token itself.
        bias: (D,); None for none.
        backend: forces a backend by name.

    Returns:
        (B, L, D) in the computing type (float32 or float64).

    Raises:
        InputError: the backend asked for does not exist or does not run on the tensors' device.
    """
    y: Tensor = convolution_operator(*_in_computing_type((x, weight, bias)), backend or "")
    return y


def compile_kernels(device: torch.device | str) -> None:
    """Compile what the device's backend compiles on its first call, or fetch it from where it was kept on disk.

    Raises:
        InputError: `UMAMBA_SCAN` asks for a backend that does not exist or does not run on the device.
    """
    tokens, matrix = torch.zeros(1, 2, 16, device=device), torch.zeros(16, 16, device=device)
    with torch.inference_mode(False), torch.enable_grad():
        x = causal_convolution(tokens.requires_grad_(), matrix[:, :4], matrix[0])
        y = selective_scan(x, x, matrix, x, x, matrix[0], x, matrix[0])
        y.sum().backward()  # type: ignore[no-untyped-call]


def _in_computing_type(tensors: tuple[Tensor | None, ...]) -> list[Tensor | None]:
    first = tensors[0]
    assert first is not None
    kind = torch.float64 if first.dtype == torch.float64 else torch.float32
    return [None if tensor is None else tensor.to(kind) for tensor in tensors]
