from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.networks.scan import choose_backend, selective_scan, torch_backend

NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")


def recurrence(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, delta_bias: Tensor
) -> Tensor:
    """The definition, one token after the other, in float64."""
    step = F.softplus(delta + delta_bias)
    h = u.new_zeros(u.shape[0], u.shape[2], A.shape[1])
    y = []
    for t in range(u.shape[1]):
        h = torch.exp(step[:, t, :, None] * A) * h + (step[:, t] * u[:, t])[..., None] * B[:, t, None, :]
        y.append((h * C[:, t, None, :]).sum(-1) + D * u[:, t])
    return torch.stack(y, 1) * F.silu(z)


def inputs(batch: int, length: int, channels: int, state: int = 16, *, delta_range: float = 3.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(length)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    delta = (torch.rand(batch, length, channels, generator=generator) * 2 - 1) * delta_range
    return [
        normal(batch, length, channels),
        delta,
        -torch.rand(channels, state, generator=generator) * state - 0.1,
        normal(batch, length, state),
        normal(batch, length, state),
        normal(channels),
        normal(batch, length, channels),
        normal(channels) * 0.1,
    ]


def largest_differences(tensors: list[Tensor]) -> dict[str, float]:
    """Output and all eight gradients against the recurrence in float64, relative to each tensor's largest magnitude."""
    ours = [t.clone().requires_grad_() for t in tensors]
    theirs = [t.double().requires_grad_() for t in tensors]
    y, expected = selective_scan(*ours), recurrence(*theirs)
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    gradients = torch.autograd.grad(y, ours, weight.to(y.dtype))
    expected_gradients = torch.autograd.grad(expected, theirs, weight.double())
    pairs = zip(("y", *NAMES), (y, *gradients), (expected, *expected_gradients), strict=True)
    return {name: ((a - b).abs().max() / b.abs().max().clamp_min(1e-12)).item() for name, a, b in pairs}


@pytest.mark.parametrize("length", [2, 7, 64, 101, 333])
@pytest.mark.parametrize("budget", [64, 1024, torch_backend.STEP_ELEMENTS])
def test_output_and_gradients_equal_the_recurrence(length: int, budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_backend, "STEP_ELEMENTS", budget)
    assert max(largest_differences(inputs(2, length, 3)).values()) < 1e-5


def test_budgets_above_do_cut_the_sequence() -> None:
    steps = torch_backend.chunk_length(333, 2 * 3 * 16, budget=1024)
    assert steps < 333
    assert 333 % steps != 0


def test_one_token_one_channel_one_image() -> None:
    differences = largest_differences(inputs(1, 1, 1))
    differences.pop("A")  # nothing decays over one token: the gradient is zero on both sides
    assert max(differences.values()) < 1e-5


@pytest.mark.parametrize("budget", [64, torch_backend.STEP_ELEMENTS])
def test_extreme_step_sizes(budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_backend, "STEP_ELEMENTS", budget)
    assert max(largest_differences(inputs(1, 90, 2, delta_range=30.0)).values()) < 1e-5


def test_float64_stays_float64_and_passes_gradcheck(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_backend, "STEP_ELEMENTS", 16)
    tensors = [t.double().requires_grad_() for t in inputs(1, 11, 2, 3)]
    assert selective_scan(*tensors).dtype == torch.float64
    assert torch.autograd.gradcheck(selective_scan, tensors)


def test_low_precision_is_computed_in_float32() -> None:
    tensors = inputs(1, 40, 4)
    with torch.autocast("cpu", torch.bfloat16):
        y = selective_scan(*(t.bfloat16() for t in tensors))
    assert y.dtype == torch.float32
    rounded = [t.bfloat16().double() for t in tensors]
    assert float((y - recurrence(*rounded)).abs().max() / recurrence(*rounded).abs().max()) < 1e-5


def test_optional_parts_may_be_left_out() -> None:
    u, delta, A, B, C, D, z, bias = inputs(1, 20, 3)
    zeros, open_gate = torch.zeros_like(D), torch.full_like(z, 50.0)
    expected = recurrence(*(t.double() for t in (u, delta, A, B, C, zeros, open_gate, zeros))) / 50.0
    torch.testing.assert_close(selective_scan(u, delta, A, B, C).double(), expected, rtol=1e-4, atol=1e-5)
    assert not torch.equal(selective_scan(u, delta, A, B, C, D, z, bias), selective_scan(u, delta, A, B, C))


def test_inputs_that_are_not_contiguous() -> None:
    tensors = inputs(2, 50, 4)
    strided = [t.mT.contiguous().mT if t.dim() == 3 else t for t in tensors]
    assert not strided[0].is_contiguous()
    torch.testing.assert_close(selective_scan(*strided), selective_scan(*tensors))


def test_memory_does_not_hold_a_state_for_every_token() -> None:
    """What backward keeps is far less than (batch, length, channels, state)."""
    batch, length, channels, state = 1, 20_000, 4, 16
    tensors = [t.requires_grad_() for t in inputs(batch, length, channels, state)]
    kept: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        selective_scan(*tensors)
    inputs_and_output = sum(t.numel() for t in tensors) * 3
    assert sum(kept) < inputs_and_output + 0.1 * batch * length * channels * state


@pytest.mark.parametrize(
    ("length", "per_step", "budget"), [(1, 1, 1), (1000, 10, 100), (10**6, 512, 2**18), (5, 10**9, 1)]
)
def test_chunk_length_is_within_its_bounds(length: int, per_step: int, budget: int) -> None:
    steps = torch_backend.chunk_length(length, per_step, budget=budget)
    assert math.isqrt(length) <= steps <= length


def test_backends_are_chosen_by_device_name_and_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_backend("cpu").name == "torch"
    assert choose_backend("mps").name == "torch"
    monkeypatch.setenv("UMAMBA_SCAN", "nonsense")
    with pytest.raises(InputError, match="nonsense"):
        choose_backend("cpu")
    assert choose_backend("cpu", "torch").name == "torch"
