"""The Triton backend on a real GPU: `pytest -m gpu`."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from umamba_cli.pipeline.networks.scan import causal_convolution, selective_scan

pytest.importorskip("triton", reason="triton is not installed")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]

NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")


def scan_inputs(batch: int, length: int, channels: int, state: int = 16, *, steps: float = 3.0) -> list[Tensor]:
    generator = torch.Generator("cuda").manual_seed(length)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device="cuda")

    uniform = torch.rand(batch, length, channels, generator=generator, device="cuda")
    return [
        normal(batch, length, channels),
        (uniform * 2 - 1) * steps,
        -torch.rand(channels, state, generator=generator, device="cuda") * state - 0.1,
        normal(batch, length, state),
        normal(batch, length, state),
        normal(channels),
        normal(batch, length, channels),
        normal(channels) * 0.1,
    ]


def with_gradients(tensors: list[Tensor], dy: Tensor, backend: str) -> list[Tensor]:
    leaves = [t.detach().requires_grad_() for t in tensors]
    y = selective_scan(*leaves, backend=backend)
    return [y.detach(), *torch.autograd.grad(y, leaves, dy.to(y.dtype))]


def largest_differences(ours: list[Tensor], theirs: list[Tensor]) -> dict[str, float]:
    pairs = zip(("y", *NAMES), ours, theirs, strict=True)
    return {name: ((a - b).abs().max() / b.abs().max().clamp_min(1e-12)).item() for name, a, b in pairs}


@pytest.mark.parametrize(
    "shape", [(2, 175, 640), (2, 1120, 256), (2, 8960, 256), (1, 89_601, 64), (2, 32_768, 128), (3, 4097, 33)]
)
@pytest.mark.parametrize("steps", [3.0, 30.0])
def test_equal_to_float64(shape: tuple[int, int, int], steps: float) -> None:
    """The `torch` backend in float64 is held to the recurrence elsewhere, and fits here."""
    tensors = scan_inputs(*shape, steps=steps)
    dy = torch.randn_like(tensors[0])
    ours = with_gradients(tensors, dy, "triton")
    theirs = with_gradients([t.double() for t in tensors], dy, "torch")
    differences = largest_differences(ours, theirs)
    assert max(differences.values()) < 1e-5, differences


def test_long_memory() -> None:
    """Steps of a thousandth and slow decays: errors of single exponentials add up over thousands of tokens."""
    tensors = scan_inputs(1, 20_000, 32)
    tensors[1] = torch.full_like(tensors[1], math.log(math.expm1(1e-3)))
    tensors[2] = -torch.arange(1, 17, device="cuda", dtype=torch.float32).repeat(32, 1)
    tensors[7] = torch.zeros_like(tensors[7])
    dy = torch.randn_like(tensors[0])
    ours = with_gradients(tensors, dy, "triton")
    theirs = with_gradients([t.double() for t in tensors], dy, "torch")
    assert max(largest_differences(ours, theirs).values()) < 1e-5


def test_four_million_tokens() -> None:
    """The end of the sequence is held to a scan of the end alone: what came 2,000 tokens before has decayed."""
    batch, length, channels, tail = 1, 4_000_003, 64, 4000
    tensors = scan_inputs(batch, length, channels)
    dy = torch.zeros_like(tensors[0])
    dy[:, -tail // 2 :] = torch.randn(batch, tail // 2, channels, device="cuda")
    ours = with_gradients(tensors, dy, "triton")
    end = [t[:, -tail:].double() if t.dim() == 3 else t.double() for t in tensors]
    theirs = with_gradients(end, dy[:, -tail:], "torch")
    ours = [t[:, -tail:] if t.dim() == 3 else t for t in ours]
    half = [t[:, -tail // 2 :] if t.dim() == 3 else t for t in ours]
    expected = [t[:, -tail // 2 :] if t.dim() == 3 else t for t in theirs]
    assert max(largest_differences(half, expected).values()) < 1e-5


@pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_properties(0).total_memory < 100 * 2**30,
    reason="needs 100 GiB of GPU memory",
)
def test_more_than_two_to_the_31_elements() -> None:
    batch, length, channels, tail = 1, 4_000_000, 544, 1000
    tensors = scan_inputs(batch, length, channels)
    assert tensors[0].numel() > 2**31
    with torch.no_grad():
        y = selective_scan(*tensors, backend="triton")[:, -tail // 2 :]
    end = [t[:, -tail:].double() if t.dim() == 3 else t.double() for t in tensors]
    expected = selective_scan(*end, backend="torch")[:, -tail // 2 :]
    assert float((y - expected).abs().max() / expected.abs().max()) < 1e-5


def test_slices_expanded_gradients_and_repetition() -> None:
    tensors = scan_inputs(2, 3000, 64)
    xz = torch.cat([tensors[0], tensors[6]], -1)
    parts = torch.cat([torch.zeros(2, 3000, 2, device="cuda"), tensors[3], tensors[4]], -1)
    sliced = list(tensors)
    sliced[0], sliced[6] = xz.chunk(2, dim=-1)
    _, sliced[3], sliced[4] = parts.split([2, 16, 16], dim=-1)
    dy = torch.tensor(1.0, device="cuda").expand(2, 3000, 64)
    first, second = with_gradients(sliced, dy, "triton"), with_gradients(sliced, dy, "triton")
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert max(largest_differences(first, with_gradients(tensors, dy, "triton")).values()) < 1e-6


@pytest.mark.parametrize("taps", [2, 4, 8])
def test_convolution(taps: int) -> None:
    x = torch.randn(2, 10_001, 200, device="cuda")[..., 3:99].requires_grad_()
    weight = torch.randn(96, taps, device="cuda", requires_grad=True)
    bias = torch.randn(96, device="cuda", requires_grad=True)
    inputs = (x, weight, bias)
    y = causal_convolution(*inputs, backend="triton")
    exact = [t.detach().double().requires_grad_() for t in inputs]
    expected = causal_convolution(*exact, backend="torch")
    dy = torch.randn_like(y)
    ours = [y, *torch.autograd.grad(y, inputs, dy)]
    theirs = [expected, *torch.autograd.grad(expected, exact, dy.double())]
    for a, b in zip(ours, theirs, strict=True):
        assert float((a - b).abs().max() / b.abs().max()) < 1e-5


def test_torch_compile() -> None:
    tensors = scan_inputs(2, 500, 64)
    compiled = torch.compile(lambda *t: selective_scan(*t, backend="triton") * 2, fullgraph=True)
    torch.testing.assert_close(compiled(*tensors), selective_scan(*tensors, backend="triton") * 2)


def test_memory_of_a_training_step() -> None:
    """What is kept between forward and backward is the states of every 64th token: a quarter of u at 16 states."""
    tensors = [t.requires_grad_() for t in scan_inputs(2, 65_536, 64)]
    before = torch.cuda.memory_allocated()
    y = selective_scan(*tensors, backend="triton")
    kept = torch.cuda.memory_allocated() - before - y.numel() * 4
    assert kept <= tensors[0].numel() * 4 * (16 / 64 + 0.05)
