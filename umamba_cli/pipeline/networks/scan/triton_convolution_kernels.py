"""Triton kernels of the causal depthwise convolution with SiLU; they are launched by `triton_backend`.

A tile of tokens x channels is read once for each tap (all but the first reading come from the cache). Backward
computes the sums before the SiLU again, so that nothing but the input is kept.

Axes: b batch, t token, d channel, k tap. With K taps, p_t = bias + sum_k w_k x[t - K + 1 + k] and y_t = silu(p_t).
"""

# Triton reads these functions itself: types are given only where it wants them.
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,assignment"
# ruff: noqa: ANN001, ANN201, ANN202

from __future__ import annotations

import triton
import triton.language as tl

from umamba_cli.pipeline.networks.scan.triton_kernels import sigmoid


@triton.jit
def _tile(rows, row, t, d, channels, length):
    """Rows t of one image, zeros outside it."""
    mask = ((t >= 0) & (t < length))[:, None] & (d < channels)[None, :]
    return tl.load(rows + t[:, None] * row + d[None, :], mask=mask, other=0.0)


@triton.jit(do_not_specialize=["length", "channel_blocks", "token_blocks", "steps"])
def convolution_forward(
    x, weight, bias, y, x_batch, x_row, length, channels, channel_blocks, token_blocks,
    TAPS: tl.constexpr, TOKENS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Grid: channel blocks x token blocks x batch. weight is (D, K), y (batch, L, D)."""
    pid = tl.program_id(0)
    d = pid % channel_blocks * CHANNELS + tl.arange(0, CHANNELS)
    t = (pid // channel_blocks % token_blocks).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    b = (pid // channel_blocks // token_blocks).to(tl.int64)
    total = tl.zeros([TOKENS, CHANNELS], tl.float32)
    if bias is not None:
        total += tl.load(bias + d, mask=d < channels, other=0.0)[None, :]
    for k in tl.static_range(TAPS):
        tap = tl.load(weight + d * TAPS + k, mask=d < channels, other=0.0)
        total += tap[None, :] * _tile(x + b * x_batch, x_row, t - (TAPS - 1 - k), d, channels, length)
    mask = (t < length)[:, None] & (d < channels)[None, :]
    tl.store(y + b * length * channels + t[:, None] * channels + d[None, :], total * sigmoid(total), mask=mask)


@triton.jit(do_not_specialize=["length", "channel_blocks", "token_blocks", "steps"])
def convolution_backward(
    dy, x, weight, bias, dx, sums, dy_batch, dy_row, x_batch, x_row,
    length, channels, channel_blocks, token_blocks, steps,
    TAPS: tl.constexpr, TOKENS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Grid as forward's, a program working through `steps` tiles.

    With g = dy silu'(p): dx_t = sum_j w_(K - 1 - j) g_(t + j), dw_k = sum_t g_t x[t - K + 1 + k] and dbias = sum_t g_t.
    sums is (batch x token blocks, channel blocks, K + 1, CHANNELS), each program's own dw and dbias.
    """
    pid = tl.program_id(0)
    lane = tl.arange(0, CHANNELS)
    d = pid % channel_blocks * CHANNELS + lane
    first = (pid // channel_blocks % token_blocks).to(tl.int64) * (steps * TOKENS)
    b = (pid // channel_blocks // token_blocks).to(tl.int64)
    start = tl.zeros([TOKENS, CHANNELS], tl.float32)
    if bias is not None:
        start += tl.load(bias + d, mask=d < channels, other=0.0)[None, :]
    taps, totals = (), ()
    for k in tl.static_range(TAPS):
        taps += (tl.load(weight + d * TAPS + k, mask=d < channels, other=0.0)[None, :],)
        totals += (tl.zeros([TOKENS, CHANNELS], tl.float32),)
    dbias = tl.zeros([TOKENS, CHANNELS], tl.float32)
    for step in range(0, steps):
        t = first + step * TOKENS + tl.arange(0, TOKENS)
        inputs = ()
        for m in tl.static_range(2 * TAPS - 1):
            inputs += (_tile(x + b * x_batch, x_row, t - (TAPS - 1 - m), d, channels, length),)
        gradient = tl.zeros([TOKENS, CHANNELS], tl.float32)
        for j in tl.static_range(TAPS):
            p = start
            for k in tl.static_range(TAPS):
                p += taps[k] * inputs[j + k]
            s = sigmoid(p)
            g = _tile(dy + b * dy_batch, dy_row, t + j, d, channels, length) * s * (1.0 + p * (1.0 - s))
            gradient += taps[TAPS - 1 - j] * g
            if j == 0:
                dbias += g
                added = ()
                for k in tl.static_range(TAPS):
                    added += (totals[k] + g * inputs[k],)
                totals = added
        mask = (t < length)[:, None] & (d < channels)[None, :]
        tl.store(dx + b * length * channels + t[:, None] * channels + d[None, :], gradient, mask=mask)
    sums += pid.to(tl.int64) * ((TAPS + 1) * CHANNELS) + lane
    for k in tl.static_range(TAPS):
        tl.store(sums + k * CHANNELS, tl.sum(totals[k], axis=0))
    tl.store(sums + TAPS * CHANNELS, tl.sum(dbias, axis=0))
