"""The selective scan on a GPU: Triton's backend and mamba-ssm's CUDA kernel, timed for `scan_speed.py`."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from umamba_cli.pipeline.networks.scan import BACKENDS, selective_scan

SHAPES = ((2, 32_768, 128), (2, 262_144, 64), (2, 2_097_152, 64))
"""(batch, length, channels)"""

STATE = 16
_FLOAT = 4  # bytes
_COPIED = 2**30  # bytes of the copy that measures the bandwidth

Scan = Callable[..., Tensor]


@dataclass(frozen=True)
class CudaTiming:
    """One backend at one shape; times are medians."""

    backend: str
    shape: tuple[int, int, int]
    forward_ms: float
    both_ms: float
    """Forward and backward."""

    peak_bytes: int
    """Most memory in use at a time during forward and backward, the inputs apart."""

    forward_share: float
    both_share: float
    """Of the bandwidth limit: the time that a copy takes to move what must be moved, over the time taken."""


def why_not() -> dict[str, str]:
    """Why a backend cannot be timed here; empty where it can."""
    if not torch.cuda.is_available():
        return dict.fromkeys(("triton", "mamba_ssm"), "there is no CUDA device")
    return {name: BACKENDS[name].missing for name in ("triton", "mamba_ssm")}


def bandwidth() -> float:
    """Bytes a second that a copy on the GPU moves, read and written."""
    source = torch.empty(_COPIED, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * _COPIED / (median_ms(lambda: target.copy_(source), repeats=20) / 1000)


def bytes_that_must_move(shape: tuple[int, int, int], *, backward: bool, state: int = STATE) -> int:
    """Each input read once and each output written once; backward alone where `backward`, else forward alone.

    Forward: u, delta, z, y, and B, C. Backward: dy, u, delta, z, du, ddelta, dz, and B, C, dB, dC.
    """
    batch, length, channels = shape
    rows = 7 * channels + 4 * state if backward else 4 * channels + 2 * state
    return batch * length * rows * _FLOAT


def time_backend(
    backend: str, shape: tuple[int, int, int], bytes_per_second: float, *, repeats: int = 20
) -> CudaTiming:
    """Forward, and forward plus backward, of one backend in float32, in the layout that it wants.

    Raises:
        torch.OutOfMemoryError: the GPU is too small for the shape.
    """
    scan = _triton if backend == "triton" else _mamba_ssm
    leaves = [t.requires_grad_() for t in _inputs(shape, channels_last=backend == "triton")]
    dy = torch.randn_like(leaves[0])

    def both() -> None:
        torch.autograd.grad(scan(*leaves), leaves, dy)

    def forward() -> None:
        with torch.no_grad():
            scan(*leaves)

    forward_ms = median_ms(forward, repeats=repeats)
    both_ms = median_ms(both, repeats=repeats)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    both()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    must_forward = bytes_that_must_move(shape, backward=False)
    must_both = must_forward + bytes_that_must_move(shape, backward=True)
    return CudaTiming(
        backend,
        shape,
        forward_ms,
        both_ms,
        peak,
        must_forward / bytes_per_second / (forward_ms / 1000),
        must_both / bytes_per_second / (both_ms / 1000),
    )


def median_ms(work: Callable[[], object], *, repeats: int, warm_up: int = 3) -> float:
    """The median time of `work` on the GPU, by CUDA events; compiled and warmed up before."""
    for _ in range(warm_up):
        work()
    times: list[float] = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        work()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def _inputs(shape: tuple[int, int, int], *, channels_last: bool) -> list[Tensor]:
    """u, delta, A, B, C, D, z, delta_bias: tokens as (B, L, D), or as mamba-ssm has them, (B, D, L)."""
    batch, length, channels = shape
    generator = torch.Generator("cuda").manual_seed(0)

    def tokens(width: int) -> Tensor:
        size = (batch, length, width) if channels_last else (batch, width, length)
        return torch.randn(size, generator=generator, device="cuda")

    A = -torch.arange(1, STATE + 1, device="cuda", dtype=torch.float32).repeat(channels, 1)
    ones = torch.ones(channels, device="cuda")
    return [tokens(channels), tokens(channels), A, tokens(STATE), tokens(STATE), ones, tokens(channels), -4 * ones]


def _triton(*inputs: Tensor) -> Tensor:
    return selective_scan(*inputs, backend="triton")


def _mamba_ssm(*inputs: Tensor) -> Tensor:
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    y: Tensor = selective_scan_fn(*inputs, delta_softplus=True)
    return y
