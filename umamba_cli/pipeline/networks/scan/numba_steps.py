"""The selective scan on a CPU, inside a chunk: explicit vector code for one block of 16 channels.

16 channels lie in the lanes of a vector, 8 states of them advance together in registers, step by step. What one loop
leaves to the next lies in a workspace that fits into the nearest cache.

Names follow `selective_scan`: dt is the step size after softplus, `drive` is dt u, what enters the state by B, `decay`
is exp(dt A) - 1: where steps are small the exponential is nearly 1, and its rounding would add up over the tokens.
Gradients begin with `d_`. Addresses and strides are whole numbers, in bytes; `ahead` is how many steps further on the
caller will read next.
"""

from __future__ import annotations

import math
from typing import Any

from umamba_cli.pipeline.networks.scan.vectors import LANES, VECTOR_BYTES, Value, Vectors, vector_code

CHUNK = 16
"""Steps in a chunk: the states and decays of 8 states of 16 channels then fill a core's nearest cache."""

GROUP = 8
"""States that advance together: with their gradients and decay rates they fill the registers of AVX-512."""

GROUP_BYTES = GROUP * VECTOR_BYTES
NUMBER_BYTES = 4
HALF_BYTES = VECTOR_BYTES // 2
_LN2 = math.log(2)

# What a chunk of one block of channels needs for a while, one vector a step. The distance from a thread's workspace:
_DT, _DRIVE, Y, D_Y, _D_Z, _SLOPE, _D_DRIVE, _D_EXPONENT = (i * CHUNK * VECTOR_BYTES for i in range(8))
# Then for each step `GROUP` vectors: decays, states (with the one before the first step), the state that advances.
_DECAYS = 8 * CHUNK * VECTOR_BYTES
_STATES = _DECAYS + CHUNK * GROUP_BYTES
H = _STATES + (CHUNK + 1) * GROUP_BYTES
END = H + GROUP_BYTES
# B and C lie side by side there too, 8 states of either in one vector a step; and so do their gradients, but with a
# vector for each number: its lanes are kept apart until all blocks of channels were added.
BC_BYTES = CHUNK * VECTOR_BYTES
_LANES_ROW = 2 * GROUP_BYTES
LANES_BYTES = CHUNK * _LANES_ROW


def _prepare_code(v: Vectors, arguments: tuple[Value, ...], *, back: bool) -> None:
    work, delta, delta_step, u, u_step, bias, D, steps, ahead = arguments
    bias_, D_ = v.load(bias), v.load(D)

    def step(t: Value, _: object) -> list[Value]:
        at, later = v.offset(work, t, VECTOR_BYTES), v.builder.add(t, ahead)
        u_t, delta_t = v.load(v.offset(u, t, u_step)), v.load(v.offset(delta, t, delta_step))
        v.prefetch(v.offset(u, later, u_step))
        v.prefetch(v.offset(delta, later, delta_step))
        dt, slope = v.softplus_and_slope(v.add(delta_t, bias_))
        kept = [(dt, _DT), (v.multiply(dt, u_t), _DRIVE), (v.multiply(D_, u_t), Y)]
        if back:
            kept += [(slope, _SLOPE), (v.constant(0.0), _D_DRIVE), (v.constant(0.0), _D_EXPONENT)]
        for value, place in kept:
            v.store(value, v.offset(at, place))
        return []

    v.loop(steps, [], step)


@vector_code
def prepare(v: Vectors, *arguments: Value) -> None:
    """Dt = softplus(delta + bias), drive = dt u, y = D u."""
    _prepare_code(v, arguments, back=False)


@vector_code
def prepare_back(v: Vectors, *arguments: Value) -> None:
    """The same, the slope of softplus, and no gradients yet."""
    _prepare_code(v, arguments, back=True)


def _advance_code(v: Vectors, arguments: tuple[Value, ...], *, keep: bool) -> None:
    work, A, BC, h, steps = arguments
    group = range(GROUP)
    A_ = [v.load(v.offset(A, n, VECTOR_BYTES)) for n in group]
    start = [v.load(v.offset(h, n, VECTOR_BYTES)) for n in group]

    def step(t: Value, h_: Any) -> list[Value]:
        at, kept = v.offset(work, t, VECTOR_BYTES), v.offset(work, t, GROUP_BYTES)
        dt, drive = (v.load(v.offset(at, place)) for place in (_DT, _DRIVE))
        B_t = v.offset(BC, t, VECTOR_BYTES)
        C_t = v.offset(B_t, HALF_BYTES)
        sums = [v.load(v.offset(at, Y)), v.constant(0.0)]  # two chains of additions, each half as long
        following = []
        for n in group:
            decay = v.exp2_minus_1(v.multiply(dt, A_[n]))
            entering = v.multiply(drive, v.load_to_all(v.offset(B_t, n, NUMBER_BYTES)))
            following.append(v.add(v.multiply_add(decay, h_[n], h_[n]), entering))
            sums[n % 2] = v.multiply_add(following[n], v.load_to_all(v.offset(C_t, n, NUMBER_BYTES)), sums[n % 2])
            if keep:
                v.store(decay, v.offset(kept, _DECAYS + n * VECTOR_BYTES))
                v.store(following[n], v.offset(kept, _STATES + GROUP_BYTES + n * VECTOR_BYTES))
        v.store(v.add(*sums), v.offset(at, Y))
        return following

    if keep:
        for n in group:
            v.store(start[n], v.offset(work, _STATES + n * VECTOR_BYTES))
    for n, h_n in enumerate(v.loop(steps, start, step)):
        v.store(h_n, v.offset(h, n, VECTOR_BYTES))


@vector_code
def advance(v: Vectors, *arguments: Value) -> None:
    """H += decay h + drive B and y += C . h, through the steps of a chunk, for 8 states."""
    _advance_code(v, arguments, keep=False)


@vector_code
def advance_and_keep(v: Vectors, *arguments: Value) -> None:
    """The same, leaving the decays and the states in the workspace."""
    _advance_code(v, arguments, keep=True)


@vector_code
def write(
    v: Vectors, work: Value, z: Value, z_step: Value, y: Value, y_step: Value, steps: Value, ahead: Value
) -> None:
    """The output, y silu(z)."""

    def step(t: Value, _: object) -> list[Value]:
        z_t, later = v.load(v.offset(z, t, z_step)), v.builder.add(t, ahead)
        v.prefetch(v.offset(z, later, z_step))
        y_t = v.load(v.offset(v.offset(work, Y), t, VECTOR_BYTES))
        v.stream(v.multiply(y_t, v.multiply(z_t, v.sigmoid(z_t))), v.offset(y, t, y_step))
        return []

    v.loop(steps, [], step)


@vector_code
def copy(v: Vectors, source: Value, source_step: Value, target: Value, target_step: Value, count: Value) -> None:
    """Vectors from one place to another."""

    def one(i: Value, _: object) -> list[Value]:
        v.store(v.load(v.offset(source, i, source_step)), v.offset(target, i, target_step))
        return []

    v.loop(count, [], one)


@vector_code
def keep(v: Vectors, source: Value, target: Value, count: Value) -> None:
    """Vectors side by side, to memory that is not read again soon."""

    def one(i: Value, _: object) -> list[Value]:
        v.stream(v.load(v.offset(source, i, VECTOR_BYTES)), v.offset(target, i, VECTOR_BYTES))
        return []

    v.loop(count, [], one)


@vector_code
def fetch(v: Vectors, source: Value, target: Value, ahead: Value) -> None:
    """The state of a group, and a look ahead to where the next one will be fetched."""
    for n in range(GROUP):
        place = v.offset(source, n, VECTOR_BYTES)
        v.store(v.load(place), v.offset(target, n, VECTOR_BYTES))
        v.prefetch(v.builder.add(place, ahead))


@vector_code
def gate_back(
    v: Vectors, work: Value, z: Value, z_step: Value, dy: Value, dy_step: Value, steps: Value, ahead: Value
) -> None:
    """The gradient before the gate, dy silu(z), and dy silu'(z), which times y is the gradient of z."""

    def step(t: Value, _: object) -> list[Value]:
        z_t, at = v.load(v.offset(z, t, z_step)), v.offset(work, t, VECTOR_BYTES)
        later = v.builder.add(t, ahead)
        v.prefetch(v.offset(z, later, z_step))
        v.prefetch(v.offset(dy, later, dy_step))
        sigmoid, one = v.sigmoid(z_t), v.constant(1.0)
        through = v.multiply(v.load(v.offset(dy, t, dy_step)), sigmoid)
        slope = v.multiply_add(z_t, v.subtract(one, sigmoid), one)
        for value, place in ((v.multiply(through, z_t), D_Y), (v.multiply(through, slope), _D_Z)):
            v.store(value, v.offset(at, place))
        return []

    v.loop(steps, [], step)


@vector_code
def write_dz(v: Vectors, work: Value, dz: Value, dz_step: Value, steps: Value) -> None:
    """The gradient of z, from what `gate_back` left and y."""

    def step(t: Value, _: object) -> list[Value]:
        at = v.offset(work, t, VECTOR_BYTES)
        v.stream(v.multiply(*(v.load(v.offset(at, place)) for place in (_D_Z, Y))), v.offset(dz, t, dz_step))
        return []

    v.loop(steps, [], step)


@vector_code
def go_back(
    v: Vectors, work: Value, A: Value, BC: Value, d_h: Value, d_A: Value, low: Value, d_BC: Value, steps: Value
) -> None:
    """A chunk in reverse for 8 states, from what `advance_and_keep` left; d_A and, `low` bytes on, its rest grow."""
    group = range(GROUP)
    A_ = [v.load(v.offset(A, n, VECTOR_BYTES)) for n in group]
    start = [*(v.load(v.offset(d_h, n, VECTOR_BYTES)) for n in group), *[v.constant(0.0)] * GROUP]

    def step(i: Value, carried: Any) -> list[Value]:
        t = v.builder.sub(v.offset(steps, -1), i)
        d_h_, d_A_ = list(carried[:GROUP]), list(carried[GROUP:])
        at, kept, d_BC_t = (
            v.offset(work, t, VECTOR_BYTES),
            v.offset(work, t, GROUP_BYTES),
            v.offset(d_BC, t, _LANES_ROW),
        )
        dt, drive, dy, d_drive, d_exponent = (
            v.load(v.offset(at, place)) for place in (_DT, _DRIVE, D_Y, _D_DRIVE, _D_EXPONENT)
        )
        B_t = v.offset(BC, t, VECTOR_BYTES)
        C_t = v.offset(B_t, HALF_BYTES)
        for n in group:
            lane = n * VECTOR_BYTES
            before, after = (v.load(v.offset(kept, _STATES + lane + later)) for later in (0, GROUP_BYTES))
            d_h_n = v.multiply_add(dy, v.load_to_all(v.offset(C_t, n, NUMBER_BYTES)), d_h_[n])
            for a, b, offset in ((d_h_n, drive, lane), (dy, after, lane + GROUP_BYTES)):
                place = v.offset(d_BC_t, offset)
                v.store(v.multiply_add(a, b, v.load(place)), place)
            d_drive = v.multiply_add(d_h_n, v.load_to_all(v.offset(B_t, n, NUMBER_BYTES)), d_drive)
            d_h_[n] = v.multiply_add(d_h_n, v.load(v.offset(kept, _DECAYS + lane)), d_h_n)
            through_decay = v.multiply(d_h_[n], before)  # the exponential is its own derivative
            d_A_[n] = v.multiply_add(through_decay, dt, d_A_[n])
            d_exponent = v.multiply_add(through_decay, A_[n], d_exponent)
        v.store(d_drive, v.offset(at, _D_DRIVE))
        v.store(d_exponent, v.offset(at, _D_EXPONENT))
        return [*d_h_, *d_A_]

    results = v.loop(steps, start, step)
    for n in group:
        v.store(results[n], v.offset(d_h, n, VECTOR_BYTES))
        v.add_exactly(results[GROUP + n], v.offset(d_A, n, VECTOR_BYTES), low)


@vector_code
def write_back(
    v: Vectors,
    work: Value,
    u: Value,
    u_step: Value,
    D: Value,
    du: Value,
    ddelta: Value,
    row: Value,
    dD: Value,
    dbias: Value,
    low: Value,
    steps: Value,
) -> None:
    """The gradients of u and delta, and what the chunk adds to those of D and the bias (rests `low` bytes on)."""
    D_ = v.load(D)

    def step(t: Value, carried: Any) -> list[Value]:
        dD_, dbias_ = carried
        at, u_t = v.offset(work, t, VECTOR_BYTES), v.load(v.offset(u, t, u_step))
        dt, dy, slope, d_drive, d_exponent = (
            v.load(v.offset(at, place)) for place in (_DT, D_Y, _SLOPE, _D_DRIVE, _D_EXPONENT)
        )
        d_dt = v.multiply_add(d_exponent, v.constant(_LN2), v.multiply(d_drive, u_t))  # A is scaled by log2(e)
        ddelta_t = v.multiply(d_dt, slope)
        v.stream(v.multiply_add(d_drive, dt, v.multiply(dy, D_)), v.offset(du, t, row))
        v.stream(ddelta_t, v.offset(ddelta, t, row))
        return [v.multiply_add(dy, u_t, dD_), v.add(dbias_, ddelta_t)]

    for value, place in zip(v.loop(steps, [v.constant(0.0)] * 2, step), (dD, dbias), strict=True):
        v.add_exactly(value, place, low)


@vector_code
def gather(v: Vectors, B: Value, B_step: Value, C: Value, C_step: Value, BC: Value, steps: Value, ahead: Value) -> None:
    """8 states of B and of C side by side."""

    def step(t: Value, _: object) -> list[Value]:
        for base, stride in ((B, B_step), (C, C_step)):
            later = v.offset(base, v.builder.add(t, ahead), stride)
            for edge in (0, HALF_BYTES - 1):  # it may lie on two cache lines
                v.prefetch(v.offset(later, edge))
        v.store(v.load_halves(v.offset(B, t, B_step), v.offset(C, t, C_step)), v.offset(BC, t, VECTOR_BYTES))
        return []

    v.loop(steps, [], step)


@vector_code
def add_lanes(v: Vectors, d_BC: Value, dB: Value, dC: Value, row: Value, steps: Value) -> None:
    """The gradients of B and C for 8 states: the sums of their lanes."""

    def step(t: Value, _: object) -> list[Value]:
        d_BC_t = v.offset(d_BC, t, _LANES_ROW)
        sums = v.lane_sums([v.load(v.offset(d_BC_t, n, VECTOR_BYTES)) for n in range(LANES)])
        v.store_halves(sums, v.offset(dB, t, row), v.offset(dC, t, row))
        return []

    v.loop(steps, [], step)
