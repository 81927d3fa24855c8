"""What the CPU kernel is held against: the scan in plain PyTorch, and the floor of its arithmetic.

`chunked` was the package's only scan before it had kernels, and stays as it was: the sequence is cut into chunks that
step forward side by side, first from zero, then from their true initial states; backward does the same in reverse,
recomputing the states of one segment of a chunk at a time.

Axes: S steps in a chunk, K chunks, B batch, D channels, N state; chunked tensors are (S, K, B, ...).
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Elements that one step should handle: enough to drown PyTorch's call overhead, few enough to stay in the cache.
STEP_ELEMENTS = 1 << 18
_ACCELERATOR_STEP_ELEMENTS = 1 << 22


def chunked(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, bias: Tensor) -> Tensor:
    """The scan in chunks; shapes as in `selective_scan`."""
    y: Tensor = _ChunkedScan.apply(u, F.softplus(delta + bias), A, B, C)  # type: ignore[no-untyped-call]
    return torch.addcmul(y, u, D) * F.silu(z)


def recurrence(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, bias: Tensor) -> Tensor:
    """One token after the other, as equation 2 of arXiv 2312.00752 has it; everything is left to autograd."""
    step = F.softplus(delta + bias)
    decay = torch.exp(torch.einsum("bld,dn->bldn", step, A))
    entering = torch.einsum("bld,bln,bld->bldn", step, B, u)
    h = torch.zeros_like(decay[:, 0])
    y = []
    for t in range(u.shape[1]):
        h = decay[:, t] * h + entering[:, t]
        y.append(torch.einsum("bdn,bn->bd", h, C[:, t]))
    return torch.addcmul(torch.stack(y, 1), u, D) * F.silu(z)


def chunk_length(length: int, elements_per_step: int, *, budget: int = STEP_ELEMENTS) -> int:
    """Steps in a chunk: as many as leave `budget` elements to a step, but never fewer than sqrt(length).

    Fewer steps mean more chunks; beyond sqrt(length) the recurrence over the chunks would take longer than it saves.
    """
    chunks = max(1, budget // max(elements_per_step, 1))
    return max(1, min(length, max(math.ceil(length / chunks), math.isqrt(length))))


class _ChunkedScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
        batch, length, channels = u.shape
        budget = STEP_ELEMENTS if u.device.type == "cpu" else _ACCELERATOR_STEP_ELEMENTS
        ctx.steps = steps = chunk_length(length, batch * channels * A.shape[1], budget=budget)
        delta_S, inputs_S, B_S, C_S = (_to_chunks(t, steps) for t in (delta, delta * u, B, C))
        h = _initial_states(delta_S, inputs_S, A, B_S)
        y_S = torch.empty_like(delta_S)
        segment = _segment_length(steps)
        starts = h.new_empty(math.ceil(steps / segment), *h.shape)  # the state before each segment, for backward
        decay = torch.empty_like(h)
        for s in range(steps):
            if s % segment == 0:
                starts[s // segment].copy_(h)
            _advance(h, delta_S[s], inputs_S[s], A, B_S[s], decay=decay, out=h)
            torch.matmul(h, C_S[s].unsqueeze(-1), out=y_S[s].unsqueeze(-1))
        ctx.save_for_backward(u, delta, A, B, C, starts)
        return _from_chunks(y_S, length)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, ...]:
        return _backward(dy, *ctx.saved_tensors, steps=ctx.steps)


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


def _backward(
    dy: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, starts: Tensor, *, steps: int
) -> tuple[Tensor, ...]:
    """Gradients of u, delta, A, B and C: pass 3 in reverse, one segment of each chunk at a time."""
    length = u.shape[1]
    dy_S, u_S, delta_S, B_S, C_S = (_to_chunks(t, steps) for t in (dy, u, delta, B, C))
    inputs_S = delta_S * u_S
    du_S, ddelta_S, dB_S, dC_S = (torch.empty_like(t) for t in (u_S, u_S, B_S, C_S))
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
            torch.matmul(dy_S[s].unsqueeze(-2), after, out=dC_S[s].unsqueeze(-2))
            dh.addcmul_(dy_S[s].unsqueeze(-1), C_S[s].unsqueeze(-2))
            torch.matmul(inputs_S[s].unsqueeze(-2), dh, out=dB_S[s].unsqueeze(-2))
            dinputs = torch.matmul(dh, B_S[s].unsqueeze(-1)).squeeze(-1)
            dh.mul_(decay)
            through_decay = torch.mul(dh, before, out=decay)  # dL/d(delta A): the exponential is its own derivative
            torch.mul(dinputs, delta_S[s], out=du_S[s])
            dA.addcmul_(through_decay, delta_S[s].unsqueeze(-1))
            torch.addcmul(through_decay.mul_(A).sum(-1), dinputs, u_S[s], out=ddelta_S[s])
    gradients = (_from_chunks(t, length) for t in (du_S, ddelta_S, dB_S, dC_S))
    du, ddelta, dB, dC = gradients
    return du, ddelta, dA.sum((0, 1)), dB, dC


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
    return tensor.permute(2, 1, 0, 3).reshape(batch, chunks * steps, width)[:, :length]
