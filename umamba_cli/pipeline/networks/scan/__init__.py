"""The selective scan and the causal convolution of Mamba: one operator each, several backends, chosen at run time.

Source: Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", arXiv 2312.00752, section 3.
Shapes are named by their axes: B batch, L length (tokens), D channels, N state.
"""

from __future__ import annotations

import torch
from torch import Tensor

from umamba_cli.pipeline.networks.scan.backends import BACKENDS, ENVIRONMENT_VARIABLE, Backend, choose_backend
from umamba_cli.pipeline.networks.scan.inputs import ScanInputs
from umamba_cli.pipeline.networks.scan.operators import convolution_operator, scan_operator

__all__ = [
    "BACKENDS",
    "ENVIRONMENT_VARIABLE",
    "Backend",
    "causal_convolution",
    "choose_backend",
    "compile_kernels",
    "needs_compiling",
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
        ValueError: shapes do not fit together, or a tensor holds no floating type.
        InputError: the backend asked for does not exist or does not run on the tensors' device.
    """
    inputs = ScanInputs(u, delta, A, B, C, D, z, delta_bias)
    _require_fitting(inputs)
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
        ValueError: shapes do not fit together, or a tensor holds no floating type.
        InputError: the backend asked for does not exist or does not run on the tensors' device.
    """
    _require_shapes("x", x, (-1, -1, -1))
    _require_shapes("weight", weight, (x.shape[2], -1))
    if bias is not None:
        _require_shapes("bias", bias, (x.shape[2],))
    y: Tensor = convolution_operator(*_in_computing_type((x, weight, bias)), backend or "")
    return y


def needs_compiling(device: torch.device | str) -> bool:
    """Whether the first scan on the device will take seconds, because its backend has something to compile.

    Raises:
        InputError: as `compile_kernels`.
    """
    module = choose_backend(torch.device(device).type).module
    return hasattr(module, "is_compiled") and not module.is_compiled()


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


def _require_fitting(inputs: ScanInputs) -> None:
    """The kernels read from memory what they are told is there: refuse what is not."""
    _require_shapes("u", inputs.u, (-1, -1, -1))
    _require_shapes("A", inputs.A, (inputs.u.shape[2], -1))
    tokens, channels, states = tuple(inputs.u.shape), (inputs.u.shape[2],), (*inputs.u.shape[:2], inputs.A.shape[1])
    expected = {"delta": tokens, "z": tokens, "B": states, "C": states, "D": channels, "delta_bias": channels}
    for name, shape in expected.items():
        if (tensor := getattr(inputs, name)) is not None:
            _require_shapes(name, tensor, shape)


def _require_shapes(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """The tensor has this shape, with any size where it says -1."""
    sizes = tuple(tensor.shape)
    if len(sizes) != len(shape) or any(n not in (-1, size) for n, size in zip(shape, sizes, strict=True)):
        wanted = ", ".join("any" if n == -1 else str(n) for n in shape)
        raise ValueError(f"{name} has the shape {sizes}, ({wanted}) is needed")
    if not tensor.is_floating_point():
        raise ValueError(f"{name} holds {tensor.dtype}, a floating type is needed")


def _in_computing_type(tensors: tuple[Tensor | None, ...]) -> list[Tensor | None]:
    first = tensors[0]
    assert first is not None
    kind = torch.float64 if first.dtype == torch.float64 else torch.float32
    return [None if tensor is None else tensor.to(kind) for tensor in tensors]
