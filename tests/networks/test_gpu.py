"""The Triton backend on a real GPU: `pytest -m gpu`."""

from __future__ import annotations

import math

import pytest
import torch
from scan_cases import largest_difference, scan_inputs
from torch import Tensor

from umamba_cli.pipeline.networks.scan import causal_convolution, selective_scan
from umamba_cli.pipeline.networks.scan.inputs import ScanInputs

pytest.importorskip("triton", reason="triton is not installed")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


def on_gpu(*shape: int, steps: float = 3.0) -> ScanInputs:
    batch, length, channels = shape
    return scan_inputs(batch, length, channels, steps=steps, device="cuda")


def in_float64(inputs: ScanInputs) -> ScanInputs:
    return ScanInputs(*(t.double() for t in inputs))


def with_gradients(inputs: ScanInputs, dy: Tensor, backend: str) -> list[Tensor]:
    asking = ScanInputs(*(t.detach().requires_grad_() for t in inputs))
    y = selective_scan(*asking, backend=backend)
    return [y.detach(), *torch.autograd.grad(y, asking, dy.to(y.dtype))]


def largest_differences(ours: list[Tensor], theirs: list[Tensor]) -> dict[str, float]:
    pairs = zip(("y", *ScanInputs._fields), ours, theirs, strict=True)
    return {name: largest_difference(a, b) for name, a, b in pairs}


@pytest.mark.parametrize(
    "shape", [(2, 175, 640), (2, 1120, 256), (2, 8960, 256), (1, 89_601, 64), (2, 32_768, 128), (3, 4097, 33)]
)
@pytest.mark.parametrize("steps", [3.0, 30.0])
def test_equal_to_float64(shape: tuple[int, int, int], steps: float) -> None:
    """The `torch` backend in float64 is held to the recurrence elsewhere, and fits here."""
    tensors = on_gpu(*shape, steps=steps)
    dy = torch.randn_like(tensors.u)
    ours = with_gradients(tensors, dy, "triton")
    theirs = with_gradients(in_float64(tensors), dy, "torch")
    differences = largest_differences(ours, theirs)
    assert max(differences.values()) < 1e-5, differences


def test_long_memory() -> None:
    """Steps of a thousandth and slow decays: errors of single exponentials add up over thousands of tokens."""
    tensors = on_gpu(1, 20_000, 32)
    tensors = tensors._replace(
        delta=torch.full_like(tensors.delta, math.log(math.expm1(1e-3))),
        A=-torch.arange(1, 17, device="cuda", dtype=torch.float32).repeat(32, 1),
        delta_bias=torch.zeros(32, device="cuda"),
    )
    dy = torch.randn_like(tensors.u)
    ours = with_gradients(tensors, dy, "triton")
    theirs = with_gradients(in_float64(tensors), dy, "torch")
    assert max(largest_differences(ours, theirs).values()) < 1e-5


def test_four_million_tokens() -> None:
    """The end of the sequence is held to a scan of the end alone: what came 2,000 tokens before has decayed."""
    batch, length, channels, tail = 1, 4_000_003, 64, 4000
    tensors = on_gpu(batch, length, channels)
    dy = torch.zeros_like(tensors.u)
    dy[:, -tail // 2 :] = torch.randn(batch, tail // 2, channels, device="cuda")
    ours = with_gradients(tensors, dy, "triton")
    end = in_float64(ScanInputs(*(t[:, -tail:] if t.dim() == 3 else t for t in tensors)))
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
    tensors = on_gpu(batch, length, channels)
    assert tensors.u.numel() > 2**31
    with torch.no_grad():
        y = selective_scan(*tensors, backend="triton")[:, -tail // 2 :]
    end = in_float64(ScanInputs(*(t[:, -tail:] if t.dim() == 3 else t for t in tensors)))
    expected = selective_scan(*end, backend="torch")[:, -tail // 2 :]
    assert largest_difference(y, expected) < 1e-5


def test_slices_expanded_gradients_and_repetition() -> None:
    tensors = on_gpu(2, 3000, 64)
    u, z = torch.cat([tensors.u, tensors.z], -1).chunk(2, dim=-1)
    rank = torch.zeros(2, 3000, 2, device="cuda")
    _, B, C = torch.cat([rank, tensors.B, tensors.C], -1).split([2, 16, 16], dim=-1)
    sliced = tensors._replace(u=u, z=z, B=B, C=C)
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
        assert largest_difference(a, b) < 1e-5


def test_torch_compile() -> None:
    tensors = on_gpu(2, 500, 64)
    compiled = torch.compile(lambda *t: selective_scan(*t, backend="triton") * 2, fullgraph=True)
    torch.testing.assert_close(compiled(*tensors), selective_scan(*tensors, backend="triton") * 2)


def test_memory_of_a_training_step() -> None:
    """What is kept between forward and backward is the states of every 64th token: a quarter of u at 16 states."""
    tensors = [t.requires_grad_() for t in on_gpu(2, 65_536, 64)]
    before = torch.cuda.memory_allocated()
    y = selective_scan(*tensors, backend="triton")
    kept = torch.cuda.memory_allocated() - before - y.numel() * 4
    assert kept <= tensors[0].numel() * 4 * (16 / 64 + 0.05)
