"""mamba-ssm's CUDA kernel of the selective scan, where it is installed.

It wants tokens last, (B, D, L): the tensors are copied on the way in and out. Its extension is called rather than its
Python function, which hides the states that backward needs. The convolution is `triton`'s where that is there.

Source for the extension's arguments: mamba_ssm/ops/selective_scan_interface.py, releases 1.2 to 2.3.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from torch import Tensor

from umamba_cli.pipeline.networks.scan.backends import BACKENDS
from umamba_cli.pipeline.networks.scan.inputs import Gradients, ScanInputs

_CHUNK = 2048
"""Tokens for which the kernel keeps one state."""


def saved_shape(u: Tensor, A: Tensor) -> tuple[int, ...]:
    """The shape of what `forward` keeps: the kernel's running products and states, (B, D, chunks, 2 N)."""
    batch, length, channels = u.shape
    return batch, channels, (length + _CHUNK - 1) // _CHUNK, 2 * A.shape[1]


def forward(inputs: ScanInputs, *, keep: bool) -> tuple[Tensor, Tensor]:
    """The scan in float32: y and, with `keep`, what backward needs."""
    y, states, *gated = _call("fwd", *_tokens_last(inputs), True)
    return _tokens_first(gated[0] if gated else y), states if keep else y.new_empty(0)


def backward(dy: Tensor, inputs: ScanInputs, saved: Tensor) -> Gradients:
    """The gradients of all inputs from that of y."""
    theirs, has_gate = _tokens_last(inputs), inputs.z is not None
    # With a gate the kernel needs the output before it, which is computed once more rather than kept.
    before_gate = _call("fwd", *theirs, True)[0] if has_gate else None
    dout = dy.transpose(1, 2).contiguous()
    du, ddelta, dA, dB, dC, dD, dbias, *dz = _call("bwd", *theirs, dout, saved, before_gate, None, True, False)
    return (
        _tokens_first(du),
        _tokens_first(ddelta),
        dA,
        _tokens_first(dB[:, 0]),
        _tokens_first(dC[:, 0]),
        None if inputs.D is None else dD,
        _tokens_first(dz[0]) if has_gate else None,
        None if inputs.delta_bias is None else dbias,
    )


def convolution_forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """As of the backend that computes it."""
    y: Tensor = _convolution().convolution_forward(x, weight, bias)
    return y


def convolution_backward(dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> Gradients:
    """As of the backend that computes it."""
    gradients: Gradients = _convolution().convolution_backward(dy, x, weight, bias)
    return gradients


def _call(name: str, *arguments: Any) -> Any:
    """Call the extension; some releases take one argument more, for sequences put end to end."""
    import selective_scan_cuda

    function = getattr(selective_scan_cuda, name)
    try:
        return function(*arguments)
    except TypeError:
        return function(*arguments, None)


def _tokens_last(inputs: ScanInputs) -> list[Tensor | None]:
    """(B, L, D) to (B, D, L); B and C get an axis for groups of channels: (B, 1, N, L)."""
    u, delta, A, B, C, D, z, delta_bias = (None if t is None else t.contiguous() for t in inputs)
    u, delta, z = (None if t is None else t.transpose(1, 2).contiguous() for t in (u, delta, z))
    B, C = (t.transpose(1, 2)[:, None].contiguous() for t in (B, C) if t is not None)
    return [u, delta, A, B, C, D, z, delta_bias]


def _tokens_first(tensor: Tensor) -> Tensor:
    return tensor.transpose(1, 2).contiguous()


def _convolution() -> ModuleType:
    return BACKENDS["torch" if BACKENDS["triton"].missing else "triton"].module
