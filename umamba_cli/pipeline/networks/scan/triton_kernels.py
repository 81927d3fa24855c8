"""Triton kernels of the selective scan; how they fit together is told in `triton_backend`.

One program works on 32 channels (one coalesced row of 128 bytes) of one chunk of the sequence, token after token, the
states in registers. Up to 16 states one warp is enough; with more states, more warps share them.

Two layouts of the states are used, both chosen through the tensor's shape, because Triton deals the fastest axes to the
lanes and the others to registers and warps:

- `[N, 32]`: one lane a channel, all states of the channel in its registers. The sum over the states needs no exchange
  between lanes. For the forward pass.
- `[N / 4, 4, 8, 4]`: channel 8 j + k at [:, j, k, :] and state i + N / 4 m at [i, :, :, m]. Four lanes share four
  channels. For the backward pass, which sums over the states and over the channels: 48 exchanges between lanes for a
  token, where one lane a channel would take 160.

Blocks of states in memory are (..., channel blocks, N, 32). They are said to be multiples of 1 (`tl.multiple_of`),
which is nothing new, so that Triton does not load them as vectors: it would lay out all that follows to suit the load.

Axes: b batch, t token, d channel, n state. A2 is A log2(e), transposed, so that exp(dt A) = exp2(dt A2). No exponent is
ever positive. Rows after the end of the sequence are read as zeros, and step sizes there are zero: such a step leaves
the state as it is.
"""

# Triton reads these functions itself: types are given only where it wants them.
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,assignment"
# ruff: noqa: ANN001, ANN202, ANN201

from __future__ import annotations

import triton
import triton.language as tl

# Numbers that a kernel is not compiled anew for: where they are 1, or multiples of 16.
PLAIN = [
    "length", "batches", "chunks", "chunk_steps", "channel_blocks", "token_blocks", "steps", "channels",
    *(f"{tensor}_{stride}" for tensor in ("x", "dy", "u", "delta", "z", "v", "B", "C") for stride in ("batch", "row")),
]  # fmt: skip

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def softplus(x):
    """log(1 + exp(x)) to the last bits, also where it is tiny: the hardware's logarithm is not, close to 1.

    It is max(x, 0) + log1p(e) with e = exp(-|x|) <= 1, and log1p(e) = 2 artanh(e / (2 + e)) by its series.
    """
    e = tl.exp2(-tl.abs(x) * LOG2E)
    s = e / (2.0 + e)
    q = s * s
    series = 1.0 / 15.0 + q * (1.0 / 17.0)
    series = 1.0 / 13.0 + q * series
    series = 1.0 / 11.0 + q * series
    series = 1.0 / 9.0 + q * series
    series = 1.0 / 7.0 + q * series
    series = 1.0 / 5.0 + q * series
    series = 1.0 / 3.0 + q * series
    return tl.maximum(x, 0.0) + 2.0 * (s + s * q * series)


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x)), the exponent never positive."""
    e = tl.exp2(-tl.abs(x) * LOG2E)
    return tl.where(x >= 0, 1.0, e) / (1.0 + e)


@triton.jit
def _inside(d, t, channels, length):
    """Which channels of row t exist: none after the end of the sequence."""
    return d < tl.where(t < length, channels, 0)


@triton.jit
def _vector(vectors, batch, row, b, t, n, length, STATES: tl.constexpr, VECTOR: tl.constexpr):
    """Row t of B or C; after the end the last one, which steps of size zero multiply by zero.

    With VECTOR = 4 rows start at multiples of 16 bytes, and are read four numbers at a time.
    """
    offset = tl.multiple_of(b * batch + tl.minimum(t, length - 1) * row, VECTOR)
    return tl.load(vectors + offset + n, mask=n < STATES, other=0.0)


@triton.jit(do_not_specialize=PLAIN)
def chunk_states(
    x, delta, z, v, A2, delta_bias, local, sums,
    x_batch, x_row, delta_batch, delta_row, z_batch, z_row, v_batch, v_row,
    length, channels, chunks, chunk_steps, channel_blocks,
    REVERSE: tl.constexpr, STATES: tl.constexpr, VECTOR: tl.constexpr,
    N: tl.constexpr, CHANNELS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Pass 1: what each chunk but the last adds to the state that leaves it, and the sum of its step sizes.

    Forward, x is u and v is B: h = exp(dt A) h + dt u B. In reverse, for each chunk but the first, x is dy and v is C:
    the gradient that leaves the chunk at its start, g = exp(dt A) (g + dy silu(z) C).
    Grid: channel blocks x (chunks - 1) x batch. local is (batch, chunks - 1, blocks, N, 32), sums
    (batch, chunks - 1, blocks, 32).
    """
    pid = tl.program_id(0)
    place = pid // channel_blocks
    k = place % (chunks - 1)
    b = (place // (chunks - 1)).to(tl.int64)
    block = pid % channel_blocks
    d = block * CHANNELS + tl.arange(0, CHANNELS)
    n = tl.arange(0, N)
    tile = tl.multiple_of(n[:, None] * CHANNELS + tl.arange(0, CHANNELS)[None, :], [1, 1])
    rate = tl.load(A2 + block * STATES * CHANNELS + tile, mask=n[:, None] < STATES, other=0.0)
    bias = 0.0 if delta_bias is None else tl.load(delta_bias + d, mask=d < channels, other=0.0)
    first = (k + REVERSE) * chunk_steps
    h = tl.zeros([N, CHANNELS], tl.float32)
    total = tl.zeros([CHANNELS], tl.float32)
    for step in range(0, chunk_steps, ROWS):
        start = (first + chunk_steps - ROWS - step if REVERSE else first + step).to(tl.int64)
        steps, inputs = (), ()
        for i in tl.static_range(ROWS):
            t = start + i
            mask = _inside(d, t, channels, length)
            raw = tl.load(delta + (b * delta_batch + t * delta_row) + d, mask=mask, other=float("-inf"))
            row = tl.load(x + (b * x_batch + t * x_row) + d, mask=mask, other=0.0)
            if z is not None:
                gate = tl.load(z + (b * z_batch + t * z_row) + d, mask=mask, other=0.0)
                row *= gate * sigmoid(gate)
            dt = softplus(raw + bias)
            steps += (dt,)
            inputs += (row if REVERSE else row * dt,)
        for i in tl.static_range(ROWS):
            if REVERSE:
                row = _vector(v, v_batch, v_row, b, start + ROWS - 1 - i, n, length, STATES, VECTOR)
                added = inputs[ROWS - 1 - i][None, :] * row[:, None]
                h = tl.exp2(steps[ROWS - 1 - i][None, :] * rate) * (h + added)
            else:
                row = _vector(v, v_batch, v_row, b, start + i, n, length, STATES, VECTOR)
                h = tl.exp2(steps[i][None, :] * rate) * h + inputs[i][None, :] * row[:, None]
            total += steps[i]
    tl.store(local + pid.to(tl.int64) * STATES * CHANNELS + tile, h, mask=n[:, None] < STATES)
    tl.store(sums + pid.to(tl.int64) * CHANNELS + tl.arange(0, CHANNELS), total)


@triton.jit
def _join(decay, added, later_decay, later_added):
    return decay * later_decay, added * later_decay + later_added


@triton.jit(do_not_specialize=PLAIN)
def carry_states(
    local, sums, A2, carried, chunks, channel_blocks,
    REVERSE: tl.constexpr, STATES: tl.constexpr, CHANNELS: tl.constexpr, CHUNKS: tl.constexpr, ELEMENTS: tl.constexpr,
):  # fmt: skip
    """Pass 2: the state that enters each chunk, or in reverse the gradient that enters it at its end.

    A scan over the chunks, CHUNKS at a time. Grid: (elements of all blocks / ELEMENTS, batch). carried is
    (batch, chunks, blocks, N, 32).
    """
    b = tl.program_id(1).to(tl.int64)
    e = tl.program_id(0) * ELEMENTS + tl.arange(0, ELEMENTS)
    size = channel_blocks * STATES * CHANNELS
    lane = e // (STATES * CHANNELS) * CHANNELS + e % CHANNELS
    rate = tl.load(A2 + e)
    h = tl.zeros([1, ELEMENTS], tl.float32)
    edge = (b * chunks + (chunks - 1 if REVERSE else 0)) * size
    tl.store(carried + edge + e, tl.zeros([ELEMENTS], tl.float32))
    for start in range(0, chunks - 1, CHUNKS):
        i = start + tl.arange(0, CHUNKS)
        k = (chunks - 2 - i if REVERSE else i).to(tl.int64)
        live = (i < chunks - 1)[:, None]
        place = b * (chunks - 1) + k
        total = tl.load(sums + place[:, None] * (channel_blocks * CHANNELS) + lane[None, :], mask=live, other=0.0)
        added = tl.load(local + place[:, None] * size + e[None, :], mask=live, other=0.0)
        decay, added = tl.associative_scan((tl.exp2(total * rate[None, :]), added), 0, _join)
        states = added + decay * h
        out = b * chunks + (k if REVERSE else k + 1)
        tl.store(carried + out[:, None] * size + e[None, :], states, mask=live)
        h = tl.sum(tl.where((tl.arange(0, CHUNKS) == CHUNKS - 1)[:, None], states, 0.0), axis=0)[None, :]


@triton.jit(do_not_specialize=PLAIN)
def scan_forward(
    u, delta, z, B, C, A2, D, delta_bias, starts, y, saved,
    u_batch, u_row, delta_batch, delta_row, z_batch, z_row, B_batch, B_row, C_batch, C_row,
    length, channels, chunks, chunk_steps, channel_blocks,
    STATES: tl.constexpr, VECTOR: tl.constexpr,
    N: tl.constexpr, CHANNELS: tl.constexpr, ROWS: tl.constexpr, SEGMENT: tl.constexpr,
):  # fmt: skip
    """Pass 3: the outputs of each chunk from its true initial state; the state before each segment is saved.

    Grid: channel blocks x chunks x batch. starts is (batch, chunks, blocks, N, 32), or None for a single chunk;
    saved is (batch, segments, blocks, N, 32), or None. y is (batch, L, D).
    """
    pid = tl.program_id(0)
    place = (pid // channel_blocks).to(tl.int64)
    b = place // chunks
    first = place % chunks * chunk_steps
    block = pid % channel_blocks
    d = block * CHANNELS + tl.arange(0, CHANNELS)
    n = tl.arange(0, N)
    tile = tl.multiple_of(n[:, None] * CHANNELS + tl.arange(0, CHANNELS)[None, :], [1, 1])
    rate = tl.load(A2 + block * STATES * CHANNELS + tile, mask=n[:, None] < STATES, other=0.0)
    bias = 0.0 if delta_bias is None else tl.load(delta_bias + d, mask=d < channels, other=0.0)
    skip = 0.0 if D is None else tl.load(D + d, mask=d < channels, other=0.0)
    h = tl.zeros([N, CHANNELS], tl.float32)
    if starts is not None:
        h += tl.load(starts + pid.to(tl.int64) * STATES * CHANNELS + tile, mask=n[:, None] < STATES, other=0.0)
    for step in range(0, tl.minimum(chunk_steps, length - first), ROWS):
        start = first + step
        if saved is not None:  # noqa: SIM102  (this is decided when compiled, the next while running)
            if step % SEGMENT == 0:
                segment = (b * tl.cdiv(length, SEGMENT) + start // SEGMENT) * channel_blocks + block
                tl.store(saved + segment * STATES * CHANNELS + tile, h, mask=n[:, None] < STATES)
        steps, inputs, gates, outputs = (), (), (), ()
        for i in tl.static_range(ROWS):
            t = start + i
            mask = _inside(d, t, channels, length)
            raw = tl.load(delta + (b * delta_batch + t * delta_row) + d, mask=mask, other=float("-inf"))
            steps += (softplus(raw + bias),)
            inputs += (tl.load(u + (b * u_batch + t * u_row) + d, mask=mask, other=0.0),)
            if z is not None:
                gates += (tl.load(z + (b * z_batch + t * z_row) + d, mask=mask, other=0.0),)
        for i in tl.static_range(ROWS):
            Bt = _vector(B, B_batch, B_row, b, start + i, n, length, STATES, VECTOR)
            Ct = _vector(C, C_batch, C_row, b, start + i, n, length, STATES, VECTOR)
            h = tl.exp2(steps[i][None, :] * rate) * h + (steps[i] * inputs[i])[None, :] * Bt[:, None]
            out = tl.sum(h * Ct[:, None], axis=0) + skip * inputs[i]
            if z is not None:
                out *= gates[i] * sigmoid(gates[i])
            outputs += (out,)
        for i in tl.static_range(ROWS):
            t = start + i
            tl.store(y + (b * length + t) * channels + d, outputs[i], mask=_inside(d, t, channels, length))


@triton.jit
def _over_states(x):
    """The sum over the states of a tensor in the backward layout: the registers first, then the lanes."""
    return tl.sum(tl.sum(x, axis=0), axis=2)


@triton.jit
def _over_channels(x):
    return tl.sum(tl.sum(x, axis=1), axis=1)


@triton.jit
def _advance(h, dt, u, B, rate):
    decay = tl.exp2(dt[None, :, :, None] * rate)
    return decay * h + (dt * u)[None, :, :, None] * B[:, None, None, :]


@triton.jit
def _sweep(
    h, u, delta, B, b, u_row, delta_row, B_batch, B_row, rate, bias, start, length, d, n, channels, scratch, groups,
    STATES: tl.constexpr, VECTOR: tl.constexpr, SIZE: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """The states before each group of a segment, into `scratch`, from the state `h` before the first one."""
    tl.store(scratch, h)
    for group in range(1, groups):
        for i in tl.static_range(GROUP):
            t = start + (group - 1) * GROUP + i
            mask = _inside(d, t, channels, length)
            dt = softplus(tl.load(delta + t * delta_row + d, mask=mask, other=float("-inf")) + bias)
            x = tl.load(u + t * u_row + d, mask=mask, other=0.0)
            h = _advance(h, dt, x, _vector(B, B_batch, B_row, b, t, n, length, STATES, VECTOR), rate)
        tl.store(scratch + group * SIZE, h)


@triton.jit
def _step_back(
    t, h, dh, dA, dD, dbias, dy, u, delta, z, B, C, du, ddelta, dz, dB, dC,
    dy_row, u_row, delta_row, z_row, B_batch, B_row, C_batch, C_row, b, d, n, rate, bias, skip, length, channels,
    STATES: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """All gradients of token t, from the state `h` before it and the gradient `dh` of the state after it."""
    mask = _inside(d, t, channels, length)
    raw = tl.load(delta + t * delta_row + d, mask=mask, other=float("-inf")) + bias
    x = tl.load(u + t * u_row + d, mask=mask, other=0.0)
    dout = tl.load(dy + t * dy_row + d, mask=mask, other=0.0)
    Bt = _vector(B, B_batch, B_row, b, t, n, length, STATES, VECTOR)
    Ct = _vector(C, C_batch, C_row, b, t, n, length, STATES, VECTOR)
    dt = softplus(raw)
    decay = tl.exp2(dt[None, :, :, None] * rate)
    after = decay * h + (dt * x)[None, :, :, None] * Bt[:, None, None, :]
    if z is not None:
        gate = tl.load(z + t * z_row + d, mask=mask, other=0.0)
        opening = sigmoid(gate)
        y = _over_states(after * Ct[:, None, None, :]) + skip * x
        tl.store(dz + t * channels + d, dout * y * opening * (1.0 + gate * (1.0 - opening)), mask=mask)
        dout *= gate * opening
    vector_mask = n < tl.where(t < length, STATES, 0)
    tl.store(dC + t * STATES + n, _over_channels(dout[None, :, :, None] * after), mask=vector_mask)
    dh += dout[None, :, :, None] * Ct[:, None, None, :]
    tl.store(dB + t * STATES + n, _over_channels((dt * x)[None, :, :, None] * dh), mask=vector_mask)
    dinput = _over_states(dh * Bt[:, None, None, :])
    dh *= decay
    through = dh * h  # the gradient of the exponent: an exponential is its own derivative
    draw = (dinput * x + _over_states(through * rate) * LN2) * sigmoid(raw)
    tl.store(ddelta + t * channels + d, draw, mask=mask)
    tl.store(du + t * channels + d, dinput * dt + skip * dout, mask=mask)
    return dh, dA + through * dt[None, :, :, None], dD + dout * x, dbias + draw


@triton.jit
def _group_back(
    h, origin, dh, dA, dD, dbias, dy, u, delta, z, B, C, du, ddelta, dz, dB, dC,
    dy_row, u_row, delta_row, z_row, B_batch, B_row, C_batch, C_row, b, d, n, rate, bias, skip, length, channels,
    STATES: tl.constexpr, VECTOR: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """GROUP tokens from `origin` on, the last first, from the state `h` before the first."""
    states = (h,)
    for step in tl.static_range(GROUP - 1):
        t = origin + step
        mask = _inside(d, t, channels, length)
        dt = softplus(tl.load(delta + t * delta_row + d, mask=mask, other=float("-inf")) + bias)
        x = tl.load(u + t * u_row + d, mask=mask, other=0.0)
        h = _advance(h, dt, x, _vector(B, B_batch, B_row, b, t, n, length, STATES, VECTOR), rate)
        states += (h,)
    for step in tl.static_range(GROUP):
        dh, dA, dD, dbias = _step_back(
            origin + GROUP - 1 - step, states[GROUP - 1 - step], dh, dA, dD, dbias,
            dy, u, delta, z, B, C, du, ddelta, dz, dB, dC,
            dy_row, u_row, delta_row, z_row, B_batch, B_row, C_batch, C_row,
            b, d, n, rate, bias, skip, length, channels, STATES, VECTOR,
        )  # fmt: skip
    return dh, dA, dD, dbias


@triton.jit
def _places(N: tl.constexpr, CHANNELS: tl.constexpr):
    """The backward layout: channels, states, and where they lie in a block of states and in a program's scratch."""
    i, j, k, m = tl.arange(0, N // 4), tl.arange(0, CHANNELS // 8), tl.arange(0, 8), tl.arange(0, 4)
    lane = j[:, None] * 8 + k[None, :]
    n = i[:, None] + m[None, :] * (N // 4)
    tile = n[:, None, None, :] * CHANNELS + lane[None, :, :, None]
    own = (i[:, None, None, None] * (CHANNELS // 8) + j[None, :, None, None]) * 32
    own += k[None, None, :, None] + m[None, None, None, :] * 8
    return lane, n, tl.multiple_of(tile, [1, 1, 1, 1]), tl.multiple_of(own, [1, 1, 1, 1])


@triton.jit(do_not_specialize=PLAIN)
def scan_backward(
    dy, u, delta, z, B, C, A2, D, delta_bias, saved, ends, scratch,
    du, ddelta, dz, dB, dC, dA, dD, dbias,
    dy_batch, dy_row, u_batch, u_row, delta_batch, delta_row, z_batch, z_row, B_batch, B_row, C_batch, C_row,
    length, batches, channels, chunks, chunk_steps, channel_blocks,
    STATES: tl.constexpr, VECTOR: tl.constexpr,
    N: tl.constexpr, CHANNELS: tl.constexpr, GROUP: tl.constexpr, SEGMENT: tl.constexpr,
):  # fmt: skip
    """Pass 3 in reverse: all gradients, one segment of the chunk after the other, the last first.

    Of a segment, a sweep forward finds the states before each group of GROUP tokens; then for each group, the last
    first, the states within it are found once more, and kept in registers for the steps back.
    Grid: channel blocks x chunks x batch. saved is (batch, segments, blocks, N, 32), ends (batch, chunks, blocks, N,
    32) or None. dB and dC are (blocks, batch, L, N); dA, dD and dbias are each program's own sums, scratch its own.
    """
    pid = tl.program_id(0).to(tl.int64)
    block = (pid % channel_blocks).to(tl.int32)
    b = pid // channel_blocks // chunks
    first = pid // channel_blocks % chunks * chunk_steps
    last = tl.minimum(first + chunk_steps, length)
    lane, n, tile, own = _places(N, CHANNELS)
    d = block * CHANNELS + lane
    inside = n[:, None, None, :] < STATES
    rate = tl.load(A2 + block * (STATES * CHANNELS) + tile, mask=inside, other=0.0)
    bias = 0.0 if delta_bias is None else tl.load(delta_bias + d, mask=d < channels, other=0.0)
    skip = 0.0 if D is None else tl.load(D + d, mask=d < channels, other=0.0)
    dh = tl.zeros([N // 4, CHANNELS // 8, 8, 4], tl.float32)
    if ends is not None:
        dh += tl.load(ends + pid * (STATES * CHANNELS) + tile, mask=inside, other=0.0)
    dA_sum = tl.zeros([N // 4, CHANNELS // 8, 8, 4], tl.float32)
    dD_sum = tl.zeros([CHANNELS // 8, 8], tl.float32)
    dbias_sum = tl.zeros([CHANNELS // 8, 8], tl.float32)
    scratch += pid * (SEGMENT // GROUP * N * CHANNELS)
    dy, u, delta = dy + b * dy_batch, u + b * u_batch, delta + b * delta_batch
    du, ddelta = du + b * length * channels, ddelta + b * length * channels
    if z is not None:
        z, dz = z + b * z_batch, dz + b * length * channels
    dB += (block * batches + b) * length * STATES
    dC += (block * batches + b) * length * STATES
    for back in range(0, tl.cdiv(last - first, SEGMENT)):
        start = first + (tl.cdiv(last - first, SEGMENT) - 1 - back) * SEGMENT
        place = (b * tl.cdiv(length, SEGMENT) + start // SEGMENT) * channel_blocks + block
        h = tl.load(saved + place * (STATES * CHANNELS) + tile, mask=inside, other=0.0)
        groups = tl.cdiv(tl.minimum(SEGMENT, length - start), GROUP)
        _sweep(
            h, u, delta, B, b, u_row, delta_row, B_batch, B_row, rate, bias, start, length, d, n, channels,
            scratch + own, groups, STATES, VECTOR, N * CHANNELS, GROUP,
        )  # fmt: skip
        tl.debug_barrier()
        for group in range(groups - 1, -1, -1):
            dh, dA_sum, dD_sum, dbias_sum = _group_back(
                tl.load(scratch + group * (N * CHANNELS) + own), start + group * GROUP, dh, dA_sum, dD_sum, dbias_sum,
                dy, u, delta, z, B, C, du, ddelta, dz, dB, dC,
                dy_row, u_row, delta_row, z_row, B_batch, B_row, C_batch, C_row,
                b, d, n, rate, bias, skip, length, channels, STATES, VECTOR, GROUP,
            )  # fmt: skip
        tl.debug_barrier()
    tl.store(dA + pid * (STATES * CHANNELS) + tile, dA_sum, mask=inside)
    tl.store(dbias + pid * CHANNELS + lane, dbias_sum)
    tl.store(dD + pid * CHANNELS + lane, dD_sum)
