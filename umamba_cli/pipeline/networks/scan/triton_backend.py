"""The selective scan and the causal depthwise convolution on a GPU, in Triton: no compiler is needed.

How the scan is cut up. Stepping through the whole sequence in one go would leave most of a GPU idle: at batch 2 and 64
channels there are 4 warps' worth of sequences. So the sequence is cut into chunks, as in `torch_backend`:

1. `chunk_states`: every chunk's final state from zero, and the sum of its step sizes, which gives its total decay;
2. `carry_states`: every chunk's true initial state, by a scan over the chunks;
3. `scan_forward`: the outputs. The state before every segment of 64 tokens is kept for backward.

Backward does the same towards the start of the sequence, and recomputes the states of one segment at a time; those
before every second token go through a scratch of its program's own, small enough to stay in the cache. A sequence of up
to 256 tokens is one chunk: the first two passes fall away.

Steps through rows in registers were preferred to `tl.associative_scan` over the tokens: a step costs a multiplication
and a multiply-add for each state, where a parallel scan costs log2(tile) times as much and exchanges between lanes; and
chunks and channels already give all the lanes that a GPU has.

The limits are memory and the exponential. For each token and channel, with N states, D channels and float32:

- forward moves 24 + 12 N/D + N/16 bytes: pass 1 u, delta and B; pass 3 u, delta, z, y, B, C and the states kept;
- backward moves 40 + 20 N/D + N/16 + N/2 bytes: pass 1 dy, delta, z and C; pass 3 dy, u, delta, z, du, ddelta, dz, B,
  C, the states kept, and the sums for dB and dC over 32 channels, written and read again, and dB and dC; and 4 N bytes
  through the cache for the scratch;
- forward takes 2 exponentials for each state, backward 1 and 2.5 (sweep, again within the group, step back).

At 64 channels and 16 states that is 28 and 54 bytes; each input read once and each output written once is 18 and 32.

Gradients of B and C are sums over the channels: each block of 32 channels writes its own sum, and these are added up
afterwards, as are the chunks' sums for A, D and delta_bias. Nothing is added atomically, so results repeat exactly.
"""

from __future__ import annotations

import contextlib
from functools import lru_cache
from typing import Any

import torch
import triton
from torch import Tensor

from umamba_cli.pipeline.networks.scan import triton_convolution_kernels, triton_kernels
from umamba_cli.pipeline.networks.scan.inputs import Gradients, ScanInputs

CHANNELS = 32
"""Channels of one program: a warp's lanes, and 128 bytes of a row."""

SEGMENT = 64
"""Tokens between the states that forward keeps for backward: kept is N / 64 of the size of u."""

ROWS = 4
"""Tokens whose rows forward reads ahead of the steps. More would need so many registers that too few warps fit."""

GROUP = 2
"""Tokens whose states backward holds in registers (16 a thread and token, of 255 at most)."""

ONE_CHUNK = 256
"""Longest sequence that is not cut: three launches take longer than its steps."""

FORWARD_PROGRAMS, BACKWARD_PROGRAMS = 20, 18
"""Programs for each processor of the GPU: forward as many as its registers hold at a time, backward twice as many."""

CARRY_CHUNKS, CARRY_ELEMENTS = 64, 32
"""A tile of the scan over the chunks: chunks x elements of the state."""

CONVOLUTION_TOKENS, CONVOLUTION_CHANNELS = 32, 64
"""Tokens x channels that a program of the convolution writes; backward half as many tokens, for its registers' sake."""

CONVOLUTION_STEPS = 16
"""Tiles that a program of the convolution's backward works through, adding up its part of the weights' gradient."""

OPTIONS: dict[str, Any] = {"enable_fp_fusion": True}
"""Some releases do not fuse a multiplication and an addition unless told to."""


def saved_shape(u: Tensor, A: Tensor) -> tuple[int, ...]:
    """The shape of the states that `forward` keeps: (batch, segments, channel blocks, N, 32)."""
    batch, length, channels = u.shape
    return batch, (length + SEGMENT - 1) // SEGMENT, (channels + CHANNELS - 1) // CHANNELS, A.shape[1], CHANNELS


def forward(inputs: ScanInputs, *, keep: bool) -> tuple[Tensor, Tensor]:
    """The scan, all tensors float32 on one GPU; batches and rows may lie anywhere.

    Returns:
        y (B, L, D) and, with `keep`, the states that `backward` needs (`saved_shape`).
    """
    u, delta, A, B, C, D, z, delta_bias = inputs
    batch, length, channels = u.shape
    y = torch.empty(batch, length, channels, device=u.device, dtype=torch.float32)
    saved = y.new_empty(saved_shape(u, A) if keep else (0,))
    if y.numel() == 0:
        return y, saved.zero_()
    plan = _Plan(u, A, FORWARD_PROGRAMS)
    u, delta, B, C = _rows(u), _rows(delta), _rows(B), _rows(C)
    z = None if z is None else _rows(z)
    vector = _vector_width(B, C)
    with _on(u):
        starts = plan.carried(u, delta, None, B, delta_bias, vector, reverse=False)
        triton_kernels.scan_forward[(plan.programs,)](
            u, delta, z, B, C, plan.A2, _flat(D), _flat(delta_bias), starts, y, saved if keep else None,
            *_strides(u, delta, z, B, C), length, channels, plan.chunks, plan.chunk_steps, plan.blocks,
            STATES=plan.states, VECTOR=vector, N=plan.padded, CHANNELS=CHANNELS, ROWS=ROWS, SEGMENT=SEGMENT,
            num_warps=plan.warps, **OPTIONS,
        )  # fmt: skip
    return y, saved


def backward(dy: Tensor, inputs: ScanInputs, saved: Tensor) -> Gradients:
    """The gradients of all inputs, from that of y and what `forward` kept."""
    u, delta, A, B, C, D, z, delta_bias = inputs
    if u.numel() == 0 or A.shape[1] == 0:
        return tuple(None if t is None else torch.zeros_like(t) for t in inputs)
    batch, length, channels = u.shape
    plan = _Plan(u, A, BACKWARD_PROGRAMS)
    dy, u, delta, B, C = _rows(dy), _rows(u), _rows(delta), _rows(B), _rows(C)
    z = None if z is None else _rows(z)
    vector = _vector_width(B, C)
    du, ddelta = u.new_empty(batch, length, channels), u.new_empty(batch, length, channels)
    dz = None if z is None else torch.empty_like(du)
    dB, dC = (u.new_empty(plan.blocks, batch, length, plan.states) for _ in range(2))
    sums = (batch * plan.chunks, plan.blocks)
    dA = u.new_empty(*sums, plan.states, CHANNELS)
    dD, dbias = u.new_empty(*sums, CHANNELS), u.new_empty(*sums, CHANNELS)
    scratch = u.new_empty(plan.programs, SEGMENT // GROUP, plan.padded, CHANNELS)
    with _on(u):
        ends = plan.carried(dy, delta, z, C, delta_bias, vector, reverse=True)
        triton_kernels.scan_backward[(plan.programs,)](
            dy, u, delta, z, B, C, plan.A2, _flat(D), _flat(delta_bias), saved, ends, scratch,
            du, ddelta, dz, dB, dC, dA, dD, dbias,
            *_strides(dy, u, delta, z, B, C), length, batch, channels, plan.chunks, plan.chunk_steps, plan.blocks,
            STATES=plan.states, VECTOR=vector, N=plan.padded, CHANNELS=CHANNELS, GROUP=GROUP, SEGMENT=SEGMENT,
            num_warps=plan.warps, **OPTIONS,
        )  # fmt: skip
    return (
        du,
        ddelta,
        dA.sum(0).transpose(1, 2).reshape(-1, plan.states)[:channels],
        _sum_of_blocks(dB),
        _sum_of_blocks(dC),
        None if D is None else dD.sum(0).flatten()[:channels],
        dz,
        None if delta_bias is None else dbias.sum(0).flatten()[:channels],
    )


def convolution_forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """y_t = silu(bias + sum_k weight[:, k] x[t - K + 1 + k]), all float32 on one GPU.

    Args:
        x: (B, L, D), last axis contiguous; batches and rows may lie anywhere.
        weight: (D, K), K up to 8.
        bias: (D,) or None.

    Returns:
        (B, L, D).
    """
    batch, length, channels = x.shape
    y = torch.empty(batch, length, channels, device=x.device, dtype=x.dtype)
    if y.numel() == 0:
        return y
    x = _rows(x)
    blocks, tiles = triton.cdiv(channels, CONVOLUTION_CHANNELS), triton.cdiv(length, CONVOLUTION_TOKENS)
    with _on(x):
        triton_convolution_kernels.convolution_forward[(batch * blocks * tiles,)](
            x, weight.contiguous(), _flat(bias), y, *_strides(x), length, channels, blocks, tiles,
            TAPS=weight.shape[1], TOKENS=CONVOLUTION_TOKENS, CHANNELS=CONVOLUTION_CHANNELS, num_warps=4, **OPTIONS,
        )  # fmt: skip
    return y


def convolution_backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The gradients of x, weight and bias."""
    if x.numel() == 0:
        return torch.zeros_like(x), torch.zeros_like(weight), None if bias is None else torch.zeros_like(bias)
    batch, length, channels = x.shape
    taps = weight.shape[1]
    dy, x = _rows(dy), _rows(x)
    dx = x.new_empty(batch, length, channels)
    tokens = CONVOLUTION_TOKENS // (2 if taps <= 4 else 4)
    blocks = triton.cdiv(channels, CONVOLUTION_CHANNELS)
    parts = triton.cdiv(length, tokens * CONVOLUTION_STEPS)
    sums = x.new_empty(batch * parts, blocks, taps + 1, CONVOLUTION_CHANNELS)
    with _on(x):
        triton_convolution_kernels.convolution_backward[(batch * parts * blocks,)](
            dy, x, weight.contiguous(), _flat(bias), dx, sums, *_strides(dy, x), length, channels, blocks, parts,
            CONVOLUTION_STEPS, TAPS=taps, TOKENS=tokens, CHANNELS=CONVOLUTION_CHANNELS, num_warps=4, **OPTIONS,
        )  # fmt: skip
    total = sums.sum(0).transpose(1, 2).reshape(-1, taps + 1)[:channels]
    return dx, total[:, :taps].contiguous(), None if bias is None else total[:, taps].contiguous()


class _Plan:
    """How a scan is cut into programs, and A as the kernels want it."""

    def __init__(self, u: Tensor, A: Tensor, programs_per_processor: int) -> None:
        self.batch, self.length, self.channels = u.shape
        self.states = A.shape[1]
        self.padded = max(4, triton.next_power_of_2(self.states))
        self.warps = min(32, max(1, self.padded // 16))
        self.blocks = triton.cdiv(self.channels, CHANNELS)
        segments = triton.cdiv(self.length, SEGMENT)
        programs = programs_per_processor * _processors(u.device)
        chunks = 1 if self.length <= ONE_CHUNK else max(1, programs // (self.batch * self.blocks))
        self.chunk_steps = triton.cdiv(segments, min(chunks, segments)) * SEGMENT
        self.chunks = triton.cdiv(self.length, self.chunk_steps)
        self.programs = self.batch * self.chunks * self.blocks
        missing = self.blocks * CHANNELS - self.channels
        A2 = torch.nn.functional.pad(A * triton_kernels.LOG2E.value, (0, 0, 0, missing))
        self.A2 = A2.view(self.blocks, CHANNELS, self.states).transpose(1, 2).contiguous()

    def carried(
        self,
        x: Tensor,
        delta: Tensor,
        z: Tensor | None,
        vectors: Tensor,
        delta_bias: Tensor | None,
        vector: int,
        *,
        reverse: bool,
    ) -> Tensor | None:
        """Passes 1 and 2: what enters each chunk, (batch, chunks, blocks, N, 32); None where there is one chunk."""
        if self.chunks == 1:
            return None
        local = x.new_empty(self.batch, self.chunks - 1, self.blocks, self.states, CHANNELS)
        sums = x.new_empty(self.batch, self.chunks - 1, self.blocks, CHANNELS)
        carried = x.new_empty(self.batch, self.chunks, self.blocks, self.states, CHANNELS)
        triton_kernels.chunk_states[(self.batch * (self.chunks - 1) * self.blocks,)](
            x, delta, z, vectors, self.A2, _flat(delta_bias), local, sums, *_strides(x, delta, z, vectors),
            self.length, self.channels, self.chunks, self.chunk_steps, self.blocks,
            REVERSE=int(reverse), STATES=self.states, VECTOR=vector, N=self.padded, CHANNELS=CHANNELS, ROWS=ROWS,
            num_warps=self.warps, **OPTIONS,
        )  # fmt: skip
        elements = self.blocks * self.states * CHANNELS
        triton_kernels.carry_states[(elements // CARRY_ELEMENTS, self.batch)](
            local, sums, self.A2, carried, self.chunks, self.blocks,
            REVERSE=int(reverse), STATES=self.states, CHANNELS=CHANNELS, CHUNKS=CARRY_CHUNKS, ELEMENTS=CARRY_ELEMENTS,
            num_warps=4, **OPTIONS,
        )  # fmt: skip
        return carried


@lru_cache
def _processors(device: torch.device) -> int:
    """Multiprocessors of the GPU; without one (Triton's interpreter) a number to be getting on with."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 8


def _on(tensor: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Kernels are launched on the current GPU: make it the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


def _rows(tensor: Tensor) -> Tensor:
    """The tensor itself where its last axis is contiguous, else a copy."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _flat(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _strides(*tensors: Tensor | None) -> tuple[int, ...]:
    """Batch and row stride of each, in elements; zeros for None."""
    return tuple(stride for t in tensors for stride in ((0, 0) if t is None else t.stride()[:2]))


def _vector_width(*tensors: Tensor) -> int:
    """4 where all rows start at multiples of 16 bytes, so that they may be read four numbers at a time; else 1."""
    aligned = all(t.data_ptr() % 16 == 0 and t.stride(0) % 4 == 0 and t.stride(1) % 4 == 0 for t in tensors)
    return 4 if aligned else 1


def _sum_of_blocks(partial: Tensor) -> Tensor:
    return partial[0] if partial.shape[0] == 1 else partial.sum(0)
