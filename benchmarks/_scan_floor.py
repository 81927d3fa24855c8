"""The arithmetic of the scan without its data: the floor that the CPU kernel is held against."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from umamba_cli.pipeline.networks.scan.numba_steps import GROUP
from umamba_cli.pipeline.networks.scan.vectors import (
    LANES,
    VECTOR_BYTES,
    Value,
    Vectors,
    aligned,
    compiled,
    vector_code,
)


def _code(v: Vectors, data: Value, steps: Value, *, backward: bool) -> None:
    """For 8 states of 16 channels at a time: the exponentials and what is multiplied and added."""
    group = range(GROUP)
    A, B, C, start = ([v.load(v.offset(data, k * GROUP + n, VECTOR_BYTES)) for n in group] for k in range(4))
    inputs = v.offset(data, 4 * GROUP, VECTOR_BYTES)

    def step(t: Value, carried: Any) -> list[Value]:
        h, sums = list(carried[:GROUP]), list(carried[GROUP:])
        at = v.offset(inputs, v.builder.and_(t, t.type(7)), VECTOR_BYTES)
        dt, drive = v.load(at), v.load(v.offset(at, GROUP, VECTOR_BYTES))
        sums[3] = v.multiply_add(v.exp2(drive), dt, sums[3])  # softplus and SiLU: two a token, in two groups of states
        for n in group:
            decay = v.exp2(v.multiply(dt, A[n]))
            h[n] = v.multiply_add(decay, h[n], v.multiply(drive, B[n]))
            sums[n % 4] = v.multiply_add(h[n], C[n], sums[n % 4])
            if backward:
                d_h = v.multiply_add(drive, C[n], h[n])
                for k, (a, b) in enumerate(((drive, h[n]), (d_h, drive), (d_h, B[n]))):
                    sums[k] = v.multiply_add(a, b, sums[k])
                h[n] = v.multiply(d_h, decay)
                through = v.multiply(h[n], C[n])
                sums[3] = v.multiply_add(through, dt, sums[3])
                sums[n % 3] = v.multiply_add(through, A[n], sums[n % 3])
        return [*h, *sums]

    results = v.loop(steps, [*start, *start[:4]], step)
    for n, value in enumerate(results):  # written, so that it is computed
        v.store(value, v.offset(data, 6 * GROUP + n, VECTOR_BYTES))


@vector_code
def _forward(v: Vectors, data: Value, steps: Value) -> None:
    _code(v, data, steps, backward=False)


@vector_code
def _backward(v: Vectors, data: Value, steps: Value) -> None:
    _code(v, data, steps, backward=True)


@compiled
def _run_forward(data: int, steps: int) -> None:  # pragma: no cover - compiled
    _forward((data, steps))


@compiled
def _run_backward(data: int, steps: int) -> None:  # pragma: no cover - compiled
    _backward((data, steps))


class Floor:
    """Runs the arithmetic of scans on the same kilobytes over and over."""

    def __init__(self) -> None:
        self._buffer = np.zeros(10 * GROUP * VECTOR_BYTES, np.uint8)
        self._data = aligned.py_func(self._buffer)
        _run_forward(self._data, 1)
        _run_backward(self._data, 1)

    def seconds(self, batch: int, length: int, channels: int, state: int) -> tuple[float, float]:
        """Seconds for forward, and for forward plus backward, of a scan of this size."""
        steps = batch * length * -(-channels // LANES) * -(-state // GROUP)
        began = time.perf_counter()
        _run_forward(self._data, steps)
        forward = time.perf_counter() - began
        _run_backward(self._data, steps)
        return forward, time.perf_counter() - began
