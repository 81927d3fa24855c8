"""The selective scan on a CPU: numba's loops over batch, chunks and channels, free of Python and of its lock.

The sequence is cut into chunks, whose intermediate values stay in the cache. Forward keeps the state before each chunk;
backward recomputes the states inside a chunk from it. What happens inside a chunk is in `numba_steps`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from umamba_cli.pipeline.networks.scan.numba_steps import (
    BC_BYTES,
    CHUNK,
    D_Y,
    END,
    GROUP,
    GROUP_BYTES,
    HALF_BYTES,
    LANES_BYTES,
    NUMBER_BYTES,
    H,
    Y,
    add_lanes,
    advance,
    advance_and_keep,
    copy,
    fetch,
    gate_back,
    gather,
    go_back,
    keep,
    prepare,
    prepare_back,
    write,
    write_back,
    write_dz,
)
from umamba_cli.pipeline.networks.scan.vectors import VECTOR_BYTES, aligned, clear, compiled


class ForwardCall(NamedTuple):
    """Addresses, strides and sizes of a forward pass. A stride is given for batch items and for steps."""

    u: int
    u_batch: int
    u_step: int
    delta: int
    delta_batch: int
    delta_step: int
    B: int
    B_batch: int
    B_step: int
    C: int
    C_batch: int
    C_step: int
    z: int
    """0 for none."""

    z_batch: int
    z_step: int
    A: int
    """(blocks, states, 16), times log2(e)."""

    D: int
    bias: int
    y: int
    """(batch, length, channels)."""

    starts: int
    """(batch, chunks, blocks, states, 16), the state before each chunk; 0: do not keep it."""

    length: int
    blocks: int
    """Of 16 channels."""

    states: int
    """A multiple of `GROUP`."""

    parts: int
    """Into how many the blocks of a batch item are cut, to be worked on side by side."""


class BackwardCall(NamedTuple):
    """Addresses of the gradients; what has no stride is dense."""

    d_y: int
    d_y_batch: int
    d_y_step: int
    d_u: int
    d_delta: int
    d_z: int
    d_A: int
    """(2, batch, blocks, states, 16), zeros: the sum over the tokens, and what rounding took from it."""

    d_B: int
    """(parts, batch, length, states), as is dC."""

    d_C: int
    d_D: int
    """(2, batch, channels), zeros, as is d_bias."""

    d_bias: int
    batch: int


@compiled
def _enter_chunk(
    call: ForwardCall, batch: int, t: int, steps: int, BC: int, ahead: int
) -> tuple[int, int, int]:  # pragma: no cover - compiled
    """Gather B and C of the steps from `t` on into `BC`; returns where u, delta and z of step `t` lie."""
    c = call
    B = c.B + batch * c.B_batch + t * c.B_step
    C = c.C + batch * c.C_batch + t * c.C_step
    for g in range(c.states // GROUP):
        at = g * HALF_BYTES
        gather((B + at, c.B_step, C + at, c.C_step, BC + g * BC_BYTES, steps, ahead))
    return (
        c.u + batch * c.u_batch + t * c.u_step,
        c.delta + batch * c.delta_batch + t * c.delta_step,
        c.z + batch * c.z_batch + t * c.z_step,
    )


@compiled
def forward(call: ForwardCall, first: int, last: int) -> None:  # pragma: no cover - compiled
    """Work on the items `first` to `last - 1` of batch times parts."""
    c = call
    block_bytes, row = c.states * VECTOR_BYTES, c.blocks * VECTOR_BYTES
    chunks, groups = (c.length + CHUNK - 1) // CHUNK, c.states // GROUP
    buffer = np.empty(END + groups * BC_BYTES + c.blocks * block_bytes + VECTOR_BYTES, np.uint8)
    work = aligned(buffer)
    BC = work + END
    h = BC + groups * BC_BYTES
    for item in range(first, last):
        batch, part = item // c.parts, item % c.parts
        clear((h, c.blocks * c.states))
        for chunk in range(chunks):
            t = chunk * CHUNK
            steps = min(CHUNK, c.length - t)
            u, delta, z = _enter_chunk(c, batch, t, steps, BC, CHUNK)
            y = c.y + (batch * c.length + t) * row
            for block in range(part * c.blocks // c.parts, (part + 1) * c.blocks // c.parts):
                at, h_block = block * VECTOR_BYTES, h + block * block_bytes
                if c.starts:
                    place = c.starts + ((batch * chunks + chunk) * c.blocks + block) * block_bytes
                    keep((h_block, place, c.states))
                prepare((work, delta + at, c.delta_step, u + at, c.u_step, c.bias + at, c.D + at, steps, CHUNK))
                for g in range(groups):
                    A = c.A + block * block_bytes + g * GROUP_BYTES
                    advance((work, A, BC + g * BC_BYTES, h_block + g * GROUP_BYTES, steps))
                if c.z:
                    write((work, z + at, c.z_step, y + at, row, steps, CHUNK))
                else:
                    copy((work + Y, VECTOR_BYTES, y + at, row, steps))


@compiled
def backward(call: ForwardCall, gradients: BackwardCall, first: int, last: int) -> None:  # pragma: no cover - compiled
    """Work on the items `first` to `last - 1` of batch times parts."""
    c, d = call, gradients
    block_bytes, row, state_row = c.states * VECTOR_BYTES, c.blocks * VECTOR_BYTES, c.states * NUMBER_BYTES
    chunks, groups = (c.length + CHUNK - 1) // CHUNK, c.states // GROUP
    buffer = np.empty(END + groups * (BC_BYTES + LANES_BYTES) + c.blocks * block_bytes + VECTOR_BYTES, np.uint8)
    work = aligned(buffer)
    BC = work + END
    d_BC = BC + groups * BC_BYTES
    d_h = d_BC + groups * LANES_BYTES
    for item in range(first, last):
        batch, part = item // c.parts, item % c.parts
        clear((d_h, c.blocks * c.states))
        for chunk in range(chunks - 1, -1, -1):
            t = chunk * CHUNK
            steps = min(CHUNK, c.length - t)
            u, delta, z = _enter_chunk(c, batch, t, steps, BC, -CHUNK)
            dy = d.d_y + batch * d.d_y_batch + t * d.d_y_step
            dense = (batch * c.length + t) * row
            clear((d_BC, groups * LANES_BYTES // VECTOR_BYTES))
            for block in range(part * c.blocks // c.parts, (part + 1) * c.blocks // c.parts):
                at = block * VECTOR_BYTES
                start = c.starts + ((batch * chunks + chunk) * c.blocks + block) * block_bytes
                d_A = d.d_A + (batch * c.blocks + block) * block_bytes
                prepare_back((work, delta + at, c.delta_step, u + at, c.u_step, c.bias + at, c.D + at, steps, -CHUNK))
                if c.z:
                    gate_back((work, z + at, c.z_step, dy + at, d.d_y_step, steps, -CHUNK))
                else:
                    copy((dy + at, d.d_y_step, work + D_Y, VECTOR_BYTES, steps))
                for g in range(groups):
                    n = g * GROUP_BYTES
                    A, BC_g, d_h_g = c.A + block * block_bytes + n, BC + g * BC_BYTES, d_h + block * block_bytes + n
                    fetch((start + n, work + H, -c.blocks * block_bytes))
                    advance_and_keep((work, A, BC_g, work + H, steps))
                    go_back(
                        (work, A, BC_g, d_h_g, d_A + n, d.batch * c.blocks * block_bytes, d_BC + g * LANES_BYTES, steps)
                    )
                if c.z:
                    write_dz((work, d.d_z + dense + at, row, steps))
                dD, dbias = d.d_D + batch * row + at, d.d_bias + batch * row + at
                du, ddelta = d.d_u + dense + at, d.d_delta + dense + at
                write_back((work, u + at, c.u_step, c.D + at, du, ddelta, row, dD, dbias, d.batch * row, steps))
            for g in range(groups):
                at = ((part * d.batch + batch) * c.length + t) * state_row + g * HALF_BYTES
                add_lanes((d_BC + g * LANES_BYTES, d.d_B + at, d.d_C + at, state_row, steps))
