"""The selective scan in plain PyTorch: many chunks of the sequence step forward side by side.

The recurrence h_t = a_t h_{t-1} + b_t is linear, so the sequence can be cut into chunks that are all stepped at once,
each from a state of zero; what a chunk's true initial state adds is known from the product of its decays. That gives

1. every chunk's final state from zero, and its total decay exp(A * sum of delta);
2. every chunk's true initial state, by a short recurrence over the chunks;
3. the outputs, stepping all chunks once more from their true initial states.

One step handles a tensor of (chunks, batch, channels, state), sized to stay in the cache. No exponent is ever
positive, so nothing can overflow. Backward runs the same three passes in reverse. Of the states it keeps one for each
segment of a chunk and recomputes those of one segment at a time: with S steps in a chunk, 2 sqrt(S) states, not S.

Axes: S steps in a chunk, K chunks, B batch, D channels, N state. Chunked tensors are laid out (S, K, B, ...), so that
one step is one contiguous piece.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from umamba_cli.pipeline.networks.scan.inputs import Gradients, ScanInputs

# Elements that one step should handle: enough to drown PyTorch's call overhead, few enough to stay in the cache.
STEP_ELEMENTS = 1 << 18
_ACCELERATOR_STEP_ELEMENTS = 1 << 22
_SOFTPLUS_IS_LINEAR_FROM = 20.0


def saved_shape(u: Tensor, A: Tensor) -> tuple[int, ...]:
    """The shape of what `forward` keeps: (segments, chunks, batch, channels, state)."""
    batch, length, channels = (int(n) for n in u.shape)
    steps = _steps(u, A)
    return math.ceil(steps / _segment_length(steps)), math.ceil(length / steps), batch, channels, int(A.shape[1])


def forward(inputs: ScanInputs, *, keep: bool) -> tuple[Tensor, Tensor]:
    """The scan in the inputs' type: y and, with `keep`, what backward needs."""
    u, delta, A, B, C, D, z, delta_bias = inputs
    dt = F.softplus(delta if delta_bias is None else delta + delta_bias)
    y, starts = _scan(u, dt, A, B, C, _steps(u, A), keep=keep)
    if D is not None:
        y.addcmul_(u, D)
    return (y if z is None else y.mul_(F.silu(z))), starts


def backward(dy: Tensor, inputs: ScanInputs, saved: Tensor) -> Gradients:
    """The gradients of all inputs from that of y."""
    u, delta, A, B, C, D, z, delta_bias = inputs
    inner = delta if delta_bias is None else delta + delta_bias
    dy_inner, dz = dy, None
    if z is not None:
        dy_inner = dy * F.silu(z)
    du, d_dt, dA, dB, dC, y = _scan_backward(dy_inner, u, F.softplus(inner), A, B, C, saved, steps=_steps(u, A))
    if D is not None:
        du.addcmul_(dy_inner, D)
        y.addcmul_(u, D)
    if z is not None:
        dz = torch.ops.aten.silu_backward(dy * y, z)
    ddelta = torch.ops.aten.softplus_backward(d_dt, inner, 1.0, _SOFTPLUS_IS_LINEAR_FROM)
    dD = None if D is None else (dy_inner * u).sum((0, 1))
    return du, ddelta, dA, dB, dC, dD, dz, None if delta_bias is None else ddelta.sum((0, 1))


def convolution_forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """silu(causal depthwise convolution); x (B, L, D), weight (D, K), bias (D,).

    As shifted multiply-adds: PyTorch's depthwise Conv1d wants (B, D, L), here the tokens stay where they are.
    """
    return F.silu(_convolved(x, weight, bias))


def convolution_backward(dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> Gradients:
    """The gradients of x, weight and bias; None where there is no bias."""
    inner = torch.ops.aten.silu_backward(dy, _convolved(x, weight, bias))
    taps, length = weight.shape[1], x.shape[1]
    following, before = F.pad(inner, (0, 0, 0, taps - 1)), F.pad(x, (0, 0, taps - 1, 0))
    dx = following[:, taps - 1 : taps - 1 + length] * weight[:, 0]
    for k in range(1, taps):
        dx.addcmul_(following[:, taps - 1 - k : taps - 1 - k + length], weight[:, k])
    dweight = torch.stack([(inner * before[:, k : k + length]).sum((0, 1)) for k in range(taps)], dim=1)
    return dx, dweight, None if bias is None else inner.sum((0, 1))


def _convolved(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    taps, length = weight.shape[1], x.shape[1]
    padded = F.pad(x, (0, 0, taps - 1, 0))
    y = padded[:, :length] * weight[:, 0]
    for k in range(1, taps):
        y.addcmul_(padded[:, k : k + length], weight[:, k])
    return y if bias is None else y.add_(bias)


def _steps(u: Tensor, A: Tensor) -> int:
    """Steps in a chunk, for tensors of these shapes on their device."""
    batch, length, channels = (int(n) for n in u.shape)
    budget = STEP_ELEMENTS if u.device.type == "cpu" else _ACCELERATOR_STEP_ELEMENTS
    return chunk_length(length, batch * channels * int(A.shape[1]), budget=budget)


def chunk_length(length: int, elements_per_step: int, *, budget: int = STEP_ELEMENTS) -> int:
    """Steps in a chunk: as many as leave `budget` elements to a step, but never fewer than sqrt(length).

    Fewer steps mean more chunks; beyond sqrt(length) the recurrence over the chunks would take longer than it saves.
    """
    chunks = max(1, budget // max(elements_per_step, 1))
    return max(1, min(length, max(math.ceil(length / chunks), math.isqrt(length))))


def _scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, steps: int, *, keep: bool
) -> tuple[Tensor, Tensor]:
    """y_t = C_t . h_t with h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t, and the state before each segment."""
    delta_S, inputs_S, B_S, C_S = (_to_chunks(t, steps) for t in (delta, delta * u, B, C))
    h = _initial_states(delta_S, inputs_S, A, B_S)
    y_S = torch.empty_like(delta_S)
    segment = _segment_length(steps)
    starts = h.new_empty(math.ceil(steps / segment), *h.shape) if keep else h.new_empty(0)
    decay = torch.empty_like(h)
    for s in range(steps):
        if keep and s % segment == 0:
            starts[s // segment].copy_(h)
        _advance(h, delta_S[s], inputs_S[s], A, B_S[s], decay=decay, out=h)
        torch.matmul(h, C_S[s].unsqueeze(-1), out=y_S[s].unsqueeze(-1))
    return _from_chunks(y_S, u.shape[1]), starts


def _segment_length(steps: int) -> int:
    return max(1, math.isqrt(steps))


def _advance(h: Tensor, delta: Tensor, inputs: Tensor, A: Tensor, B: Tensor, *, decay: Tensor, out: Tensor) -> None:
    """One step of every chunk into `out`: exp(delta A) h + (delta u) B; `decay` receives exp(delta A).

    h, decay and out are (K, B, D, N), B is (K, B, N), the others (K, B, D). `out` may be `h`. The buffers are the
    caller's: allocating megabytes anew in every step costs more than the arithmetic.
    """
    torch.mul(delta.unsqueeze(-1), A, out=decay).exp_()
    torch.mul(decay, h, out=out).addcmul_(inputs.unsqueeze(-1), B.unsqueeze(-2))


def _initial_states(delta_S: Tensor, inputs_S: Tensor, A: Tensor, B_S: Tensor) -> Tensor:
    """The true state before each chunk, (K, B, D, N): passes 1 and 2."""
    steps, chunks, batch, channels = delta_S.shape
    initial = delta_S.new_zeros(chunks, batch, channels, A.shape[1])
    if chunks == 1:
        return initial
    local = torch.zeros_like(initial[1:])
    decay = torch.empty_like(local)
    for s in range(steps):
        _advance(local, delta_S[s, :-1], inputs_S[s, :-1], A, B_S[s, :-1], decay=decay, out=local)
    total = (delta_S[:, :-1].sum(0).unsqueeze(-1) * A).exp_()
    for k in range(chunks - 1):
        torch.addcmul(local[k], total[k], initial[k], out=initial[k + 1])
    return initial


def _final_gradients(dy_S: Tensor, delta_S: Tensor, A: Tensor, C_S: Tensor) -> Tensor:
    """The gradient that reaches each chunk's last state from the chunks after it: passes 1 and 2 in reverse."""
    steps, chunks, batch, channels = delta_S.shape
    final = delta_S.new_zeros(chunks, batch, channels, A.shape[1])
    if chunks == 1:
        return final
    local = torch.zeros_like(final[1:])
    decay = torch.empty_like(local)
    for s in reversed(range(steps)):
        local.addcmul_(dy_S[s, 1:].unsqueeze(-1), C_S[s, 1:].unsqueeze(-2))
        local.mul_(torch.mul(delta_S[s, 1:].unsqueeze(-1), A, out=decay).exp_())
    total = (delta_S[:, 1:].sum(0).unsqueeze(-1) * A).exp_()
    for k in reversed(range(chunks - 1)):
        torch.addcmul(local[k], total[k], final[k + 1], out=final[k])
    return final


def _scan_backward(
    dy: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, starts: Tensor, *, steps: int
) -> tuple[Tensor, ...]:
    """Gradients of u, delta, A, B and C, and y once more: pass 3 in reverse, one segment of each chunk at a time."""
    length = u.shape[1]
    dy_S, u_S, delta_S, B_S, C_S = (_to_chunks(t, steps) for t in (dy, u, delta, B, C))
    inputs_S = delta_S * u_S
    du_S, ddelta_S, dB_S, dC_S, y_S = (torch.empty_like(t) for t in (u_S, u_S, B_S, C_S, u_S))
    dA = torch.zeros_like(starts[0])
    dh = _final_gradients(dy_S, delta_S, A, C_S)
    segment = _segment_length(steps)
    states = starts.new_empty(segment + 1, *dh.shape)
    decays = starts.new_empty(segment, *dh.shape)
    for index in reversed(range(len(starts))):
        first, last = index * segment, min((index + 1) * segment, steps)
        states[0].copy_(starts[index])
        for i, s in enumerate(range(first, last)):
            _advance(states[i], delta_S[s], inputs_S[s], A, B_S[s], decay=decays[i], out=states[i + 1])
        for s in reversed(range(first, last)):
            before, after, decay = states[s - first], states[s - first + 1], decays[s - first]
            torch.matmul(after, C_S[s].unsqueeze(-1), out=y_S[s].unsqueeze(-1))
            torch.matmul(dy_S[s].unsqueeze(-2), after, out=dC_S[s].unsqueeze(-2))
            dh.addcmul_(dy_S[s].unsqueeze(-1), C_S[s].unsqueeze(-2))
            torch.matmul(inputs_S[s].unsqueeze(-2), dh, out=dB_S[s].unsqueeze(-2))
            dinputs = torch.matmul(dh, B_S[s].unsqueeze(-1)).squeeze(-1)
            dh.mul_(decay)
            through_decay = torch.mul(dh, before, out=decay)  # dL/d(delta A): the exponential is its own derivative
            torch.mul(dinputs, delta_S[s], out=du_S[s])
            dA.addcmul_(through_decay, delta_S[s].unsqueeze(-1))
            torch.addcmul(through_decay.mul_(A).sum(-1), dinputs, u_S[s], out=ddelta_S[s])
    du, ddelta, dB, dC, y = (_from_chunks(t, length) for t in (du_S, ddelta_S, dB_S, dC_S, y_S))
    return du, ddelta, dA.sum((0, 1)), dB, dC, y


def _to_chunks(tensor: Tensor, steps: int) -> Tensor:
    """(B, L, X) to (S, K, B, X), zeros after the end: a step size of zero leaves the state as it is."""
    batch, length, width = tensor.shape
    chunks = math.ceil(length / steps)
    if chunks * steps != length:
        tensor = torch.nn.functional.pad(tensor, (0, 0, 0, chunks * steps - length))
    return tensor.reshape(batch, chunks, steps, width).permute(2, 1, 0, 3).contiguous()


def _from_chunks(tensor: Tensor, length: int) -> Tensor:
    """(S, K, B, X) back to (B, L, X)."""
    steps, chunks, batch, width = tensor.shape
    return tensor.permute(2, 1, 0, 3).reshape(batch, chunks * steps, width)[:, :length].contiguous()
