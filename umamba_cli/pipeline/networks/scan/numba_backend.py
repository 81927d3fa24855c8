"""The selective scan and the causal convolution on a CPU, compiled by numba when first used: no compiler is needed.

Work is shared out among threads of our own. Numba's are not used: its `workqueue` aborts when two threads call at
once, and its OpenMP layer dies in a forked process.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from math import gcd
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from umamba_cli.pipeline.networks.scan import numba_convolution, numba_scan, torch_backend
from umamba_cli.pipeline.networks.scan.inputs import Gradients, ScanInputs
from umamba_cli.pipeline.networks.scan.numba_convolution import TAPS, ConvolutionCall
from umamba_cli.pipeline.networks.scan.numba_scan import BackwardCall, ForwardCall
from umamba_cli.pipeline.networks.scan.numba_steps import CHUNK, GROUP
from umamba_cli.pipeline.networks.scan.vectors import LANES, LOG2_E, VECTOR_BYTES, was_kept


def is_compiled() -> bool:
    """Whether the code was compiled before, by this process or, kept on disk, by another."""
    functions = (numba_scan.forward, numba_scan.backward, numba_convolution.forward, numba_convolution.backward)
    return all(function.signatures or was_kept(function) for function in functions)


def saved_shape(u: Tensor, A: Tensor) -> tuple[int, ...]:
    """The shape of what `forward` keeps: (batch, chunks, blocks of channels, states, 16)."""
    batch, length, channels = u.shape
    return batch, _up(length, CHUNK), _up(channels, LANES), _up(A.shape[1], GROUP) * GROUP, LANES


def forward(inputs: ScanInputs, *, keep: bool) -> tuple[Tensor, Tensor]:
    """The scan in float32: y and, with `keep`, what backward needs."""
    u, prepared = inputs.u, _Prepared(inputs)
    starts = _empty(saved_shape(u, inputs.A)) if keep else u.new_empty(0)
    y = _empty(prepared.shape)
    call = prepared.call(y, starts)
    _share_out(numba_scan.forward, (call,), len(u) * call.parts)
    return _narrowed(y, u.shape[2]), starts


def backward(dy: Tensor, inputs: ScanInputs, saved: Tensor) -> Gradients:
    """The gradients of all inputs from that of y."""
    u, prepared = inputs.u, _Prepared(inputs)
    call = prepared.call(u.new_empty(0), saved)
    batch, length, channels = prepared.shape
    du, ddelta = _empty(prepared.shape), _empty(prepared.shape)
    dz = _empty(prepared.shape) if inputs.z is not None else None
    dA = u.new_zeros(2, batch, call.blocks, call.states, LANES)
    dB, dC = (u.new_empty(call.parts, batch, length, call.states) for _ in range(2))
    dD, dbias = u.new_zeros(2, batch, channels), u.new_zeros(2, batch, channels)
    dy = _padded(dy, channels)  # bound to a name: the call takes addresses only
    gradients = BackwardCall(  # type: ignore[call-arg]  # numbers unpacked
        *_place(dy), *(0 if t is None else t.data_ptr() for t in (du, ddelta, dz, dA, dB, dC, dD, dbias)), batch
    )
    _share_out(numba_scan.backward, (call, gradients), batch * call.parts)
    width, states = u.shape[2], inputs.A.shape[1]
    dA = dA.sum((0, 1)).transpose(1, 2).reshape(channels, call.states)[:width, :states].contiguous()
    dB, dC = (g[0] if call.parts == 1 else g.sum(0) for g in (dB, dC))
    return (
        _narrowed(du, width),
        _narrowed(ddelta, width),
        dA,
        _narrowed(dB, states),
        _narrowed(dC, states),
        None if inputs.D is None else _narrowed(dD.sum((0, 1)), width),
        None if dz is None else _narrowed(dz, width),
        None if inputs.delta_bias is None else _narrowed(dbias.sum((0, 1)), width),
    )


def convolution_forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """silu(causal depthwise convolution); x (B, L, D), weight (D, K), bias (D,), all float32."""
    if weight.shape[1] > TAPS:
        return torch_backend.convolution_forward(x, weight, bias)
    prepared = _PreparedConvolution(x, weight, bias)
    y = _empty(prepared.shape)
    call = prepared.call(y)
    _share_out(numba_convolution.forward, (call,), call.batch * call.parts)
    return _narrowed(y, x.shape[2])


def convolution_backward(dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> Gradients:
    """The gradients of x, weight and bias; None where there is no bias."""
    if weight.shape[1] > TAPS:
        return torch_backend.convolution_backward(dy, x, weight, bias)
    prepared = _PreparedConvolution(x, weight, bias)
    dx = _empty(prepared.shape)
    parts, (batch, _, channels) = _parts(len(x), x.shape[1]), prepared.shape
    dweight, dbias = x.new_zeros(2, parts, batch, TAPS, channels), x.new_zeros(2, parts, batch, channels)
    dy = _padded(dy, channels)  # bound to a name: the call takes addresses only
    call = prepared.call(dx, dy, dweight, dbias)
    _share_out(numba_convolution.backward, (call,), batch * parts)
    width, taps = weight.shape
    dweight = dweight.sum((0, 1, 2)).t()[:width, TAPS - taps :].contiguous()
    return _narrowed(dx, width), dweight, None if bias is None else _narrowed(dbias.sum((0, 1, 2)), width)


class _Prepared:
    """The tensors of a call as the compiled code wants them; they must live as long as the call."""

    def __init__(self, inputs: ScanInputs) -> None:
        u, delta, A, B, C, D, z, bias = inputs
        channels, states = _up(u.shape[2], LANES) * LANES, _up(A.shape[1], GROUP) * GROUP
        self.shape = (*u.shape[:2], channels)
        self._u, self._delta = _padded(u, channels), _padded(delta, channels)
        self._z = None if z is None else _padded(z, channels)
        self._B, self._C = _padded(B, states), _padded(C, states)
        rates = F.pad(A * LOG2_E, (0, states - A.shape[1], 0, channels - A.shape[0]))
        self._A = rates.view(channels // LANES, LANES, states).transpose(1, 2).contiguous()
        self._D, self._bias = (
            u.new_zeros(channels) if t is None else _padded(t, channels).contiguous() for t in (D, bias)
        )

    def call(self, y: Tensor, starts: Tensor) -> ForwardCall:
        """What the compiled code takes; `starts` without elements keeps nothing."""
        batch, length, channels = self.shape
        return ForwardCall(  # type: ignore[call-arg]  # numbers unpacked
            *(number for t in (self._u, self._delta, self._B, self._C) for number in _place(t)),
            *(_place(self._z) if self._z is not None else (0, 0, 0)),
            *(t.data_ptr() for t in (self._A, self._D, self._bias, y)),
            starts.data_ptr() if starts.numel() else 0,
            length,
            channels // LANES,
            self._A.shape[1],
            _parts(batch, channels // LANES),
        )


class _PreparedConvolution:
    """The same for the convolution; fewer taps than four are four with zeros first."""

    def __init__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
        channels = _up(x.shape[2], LANES) * LANES
        self.shape = (*x.shape[:2], channels)
        self._x = _padded(x, channels)
        self._weight = F.pad(weight, (TAPS - weight.shape[1], 0, 0, channels - len(weight))).t().contiguous()
        self._bias = x.new_zeros(channels) if bias is None else _padded(bias, channels).contiguous()

    def call(
        self, y: Tensor, dy: Tensor | None = None, dweight: Tensor | None = None, dbias: Tensor | None = None
    ) -> ConvolutionCall:
        batch, length, channels = self.shape
        return ConvolutionCall(  # type: ignore[call-arg]  # numbers unpacked
            *_place(self._x),
            self._weight.data_ptr(),
            self._bias.data_ptr(),
            y.data_ptr(),
            *(_place(dy) if dy is not None else (0, 0, 0)),
            *(0 if t is None else t.data_ptr() for t in (dweight, dbias)),
            batch,
            length,
            channels // LANES,
            _parts(batch, length),
        )


def _up(number: int, unit: int) -> int:
    """How many units hold the number."""
    return (number + unit - 1) // unit


def _padded(tensor: Tensor, width: int) -> Tensor:
    """The tensor with zeros up to `width` in its last axis, which is then dense; the same tensor where it is so."""
    if tensor.shape[-1] != width:
        return F.pad(tensor, (0, width - tensor.shape[-1]))
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _narrowed(tensor: Tensor, width: int) -> Tensor:
    """The first `width` of the last axis, dense; the same tensor where that is all of it."""
    return tensor if tensor.shape[-1] == width else tensor[..., :width].contiguous()


def _empty(shape: tuple[int, ...]) -> Tensor:
    """A float32 tensor at an address that is a multiple of a vector's size: results go past the caches."""
    tensor = torch.empty(shape, dtype=torch.float32)
    if tensor.data_ptr() % VECTOR_BYTES:
        buffer = torch.empty(tensor.numel() + LANES, dtype=torch.float32)
        first = -buffer.data_ptr() % VECTOR_BYTES // 4
        tensor = buffer[first : first + tensor.numel()].view(shape)
    return tensor


def _place(tensor: Tensor) -> tuple[int, int, int]:
    """Address of a (B, L, X) tensor, and the bytes from one batch item, and from one step, to the next."""
    return tensor.data_ptr(), tensor.stride(0) * 4, tensor.stride(1) * 4


def _parts(batch: int, pieces: int) -> int:
    """Into how many parts each batch item is cut so that every thread gets as much as every other."""
    threads = torch.get_num_threads()
    return max(1, min(pieces, threads // gcd(threads, max(batch, 1))))


def _share_out(function: Callable[..., None], arguments: tuple[Any, ...], items: int) -> None:
    """Call `function(*arguments, first, last)` on shares of the items, in as many threads as torch uses."""
    threads = max(1, min(torch.get_num_threads(), items))
    (first, *others) = [(items * i // threads, items * (i + 1) // threads) for i in range(threads)]
    waiting = [_pool(os.getpid(), threads).submit(function, *arguments, *share) for share in others]
    function(*arguments, *first)
    for share in waiting:
        share.result()


@lru_cache(maxsize=1)
def _pool(_process: int, threads: int) -> ThreadPoolExecutor:
    """Threads that wait for work. A forked process makes its own: its parent's did not come with it."""
    return ThreadPoolExecutor(max(1, threads - 1), thread_name_prefix="umamba-scan")
