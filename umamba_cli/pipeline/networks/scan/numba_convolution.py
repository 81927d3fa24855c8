"""The causal depthwise convolution and its SiLU on a CPU, in one pass over the tokens each way.

Four taps, as Mamba has them (arXiv 2312.00752, figure 3). A window of four tokens slides along in registers.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from umamba_cli.pipeline.networks.scan.vectors import (
    VECTOR_BYTES,
    Value,
    Vectors,
    aligned,
    clear,
    compiled,
    vector_code,
)

TAPS = 4
ROWS = 64
"""Tokens that are worked on for one block of channels before the next block: few enough to stay in the cache."""


class ConvolutionCall(NamedTuple):
    """Addresses, strides and sizes of a pass. Strides are in bytes; what has none is dense."""

    x: int
    x_batch: int
    x_step: int
    weight: int
    """(taps, channels)."""

    bias: int
    y: int
    """(batch, length, channels); backward: the gradient of x."""

    dy: int
    """Of backward, as are the following."""

    dy_batch: int
    dy_step: int
    dweight: int
    """(2, parts, batch, taps, channels), zeros: the sum over the tokens, and what rounding took from it."""

    dbias: int
    """(2, parts, batch, channels), zeros, likewise."""

    batch: int
    length: int
    blocks: int
    """Of 16 channels."""

    parts: int
    """Into how many the tokens of a batch item are cut, to be worked on side by side."""


def _window(v: Vectors, x: Value, x_step: Value, known: Value) -> list[Value]:
    """The three tokens before `x`; zeros where there are fewer than three before it in the sequence (`known`)."""
    b = v.builder
    window = []
    for back in range(TAPS - 1, 0, -1):
        exists = b.icmp_signed(">=", known, known.type(back))
        place = b.select(exists, v.offset(x, -back, x_step), x)
        window.append(b.select(exists, v.load(place), v.constant(0.0)))
    return window


def _weighted(v: Vectors, weight: list[Value], window: list[Value], bias: Value) -> Value:
    for w, x in zip(weight, window, strict=True):
        bias = v.multiply_add(w, x, bias)
    return bias


@vector_code
def _convolve(
    v: Vectors,
    x: Value,
    x_step: Value,
    known: Value,
    weight: Value,
    row: Value,
    bias: Value,
    y: Value,
    steps: Value,
    ahead: Value,
) -> None:
    """Y = silu(sum of weight x + bias) for one block of channels."""
    weight_, bias_ = [v.load(v.offset(weight, k, row)) for k in range(TAPS)], v.load(bias)

    def step(t: Value, known_tokens: Any) -> list[Value]:
        window = [*known_tokens, v.load(v.offset(x, t, x_step))]
        v.prefetch(v.offset(x, v.builder.add(t, ahead), x_step))
        inner = _weighted(v, weight_, window, bias_)
        v.store(v.multiply(inner, v.sigmoid(inner)), v.offset(y, t, row))
        return window[1:]

    v.loop(steps, _window(v, x, x_step, known), step)


@vector_code
def _inner_gradients(
    v: Vectors,
    x: Value,
    x_step: Value,
    known: Value,
    weight: Value,
    row: Value,
    bias: Value,
    dy: Value,
    dy_step: Value,
    inner_gradients: Value,
    steps: Value,
    dweight: Value,
    dweight_low: Value,
    dbias: Value,
    dbias_low: Value,
    ahead: Value,
) -> None:
    """The gradient before SiLU, and what these tokens add to the sums for weights and bias (rests `low` bytes on)."""
    weight_, bias_ = [v.load(v.offset(weight, k, row)) for k in range(TAPS)], v.load(bias)
    places = [*((v.offset(dweight, k, row), dweight_low) for k in range(TAPS)), (dbias, dbias_low)]

    def step(t: Value, carried: Any) -> list[Value]:
        window, one = [*carried[: TAPS - 1], v.load(v.offset(x, t, x_step))], v.constant(1.0)
        later = v.builder.add(t, ahead)
        v.prefetch(v.offset(x, later, x_step))
        v.prefetch(v.offset(dy, later, dy_step))
        inner = _weighted(v, weight_, window, bias_)
        sigmoid = v.sigmoid(inner)
        slope = v.multiply(sigmoid, v.multiply_add(inner, v.subtract(one, sigmoid), one))
        gradient = v.multiply(v.load(v.offset(dy, t, dy_step)), slope)
        v.store(gradient, v.offset(inner_gradients, t, VECTOR_BYTES))
        inputs = zip([*window, one], carried[TAPS - 1 :], strict=True)
        return [*window[1:], *(v.multiply_add(gradient, value, total) for value, total in inputs)]

    start = [*_window(v, x, x_step, known), *[v.constant(0.0)] * len(places)]
    for (place, low), total in zip(places, v.loop(steps, start, step)[TAPS - 1 :], strict=True):
        v.add_exactly(total, place, low)


@vector_code
def _correlate(v: Vectors, inner_gradients: Value, weight: Value, row: Value, dx: Value, steps: Value) -> None:
    """The gradient of x: each token's comes from itself and the three that follow."""
    weight_ = [v.load(v.offset(weight, k, row)) for k in reversed(range(TAPS))]

    def step(t: Value, known_tokens: Any) -> list[Value]:
        window = [*known_tokens, v.load(v.offset(inner_gradients, v.offset(t, TAPS - 1), VECTOR_BYTES))]
        v.store(_weighted(v, weight_, window, v.constant(0.0)), v.offset(dx, t, row))
        return window[1:]

    start = [v.load(v.offset(inner_gradients, k, VECTOR_BYTES)) for k in range(TAPS - 1)]
    v.loop(steps, start, step)


@compiled
def forward(call: ConvolutionCall, first: int, last: int) -> None:  # pragma: no cover - compiled
    """Work on the items `first` to `last - 1` of batch times parts."""
    c = call
    row = c.blocks * VECTOR_BYTES
    for item in range(first, last):
        batch, part = item // c.parts, item % c.parts
        end = (part + 1) * c.length // c.parts
        for t in range(part * c.length // c.parts, end, ROWS):
            steps = min(ROWS, end - t)
            x = c.x + batch * c.x_batch + t * c.x_step
            y = c.y + (batch * c.length + t) * row
            for block in range(c.blocks):
                at = block * VECTOR_BYTES
                _convolve((x + at, c.x_step, t, c.weight + at, row, c.bias + at, y + at, steps, ROWS))


@compiled
def backward(call: ConvolutionCall, first: int, last: int) -> None:  # pragma: no cover - compiled
    """Work on the items `first` to `last - 1` of batch times parts."""
    c = call
    row = c.blocks * VECTOR_BYTES
    weight_low, bias_low = c.parts * c.batch * TAPS * row, c.parts * c.batch * row
    buffer = np.empty((ROWS + TAPS + 1 + 2 * c.blocks * (TAPS + 1)) * VECTOR_BYTES, np.uint8)
    inner = aligned(buffer)
    not_used = inner + (ROWS + TAPS) * VECTOR_BYTES  # sums that belong to the next tokens
    for item in range(first, last):
        batch, part = item // c.parts, item % c.parts
        end = (part + 1) * c.length // c.parts
        dweight = c.dweight + (part * c.batch + batch) * TAPS * row
        dbias = c.dbias + (part * c.batch + batch) * row
        for t in range(part * c.length // c.parts, end, ROWS):
            steps = min(ROWS, end - t)
            following = min(TAPS - 1, c.length - t - steps)
            x = c.x + batch * c.x_batch + t * c.x_step
            dy = c.dy + batch * c.dy_batch + t * c.dy_step
            dx = c.y + (batch * c.length + t) * row
            for block in range(c.blocks):
                at = block * VECTOR_BYTES
                weight, bias, x_, dy_ = c.weight + at, c.bias + at, x + at, dy + at
                fixed = (c.x_step, t, weight, row, bias)
                sums = (dweight + at, weight_low, dbias + at, bias_low)
                _inner_gradients((x_, *fixed, dy_, c.dy_step, inner, steps, *sums, ROWS))
                later = inner + steps * VECTOR_BYTES
                clear((later, TAPS - 1))
                x_, dy_ = x_ + steps * c.x_step, dy_ + steps * c.dy_step
                fixed = (c.x_step, t + steps, weight, row, bias)
                sums = (not_used, (TAPS + 1) * row, not_used + TAPS * row, (TAPS + 1) * row)
                _inner_gradients((x_, *fixed, dy_, c.dy_step, later, following, *sums, 0))
                _correlate((inner, weight, row, dx + at, steps))
