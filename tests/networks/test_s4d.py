from __future__ import annotations

import math

import pytest
import torch
from mixers import TOLERANCE, largest_differences, peak_mebibytes
from torch import Tensor

from umamba_cli.pipeline.networks import s4d
from umamba_cli.pipeline.networks.s4d import S4DBlock, convolution, padded_length, recurrence

REAL = [torch.float64, torch.float32]


def inputs(kind: torch.dtype, batch: int = 2, length: int = 50, channels: int = 5, pairs: int = 6) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    step = torch.rand(channels, dtype=torch.float64, generator=generator) * 0.1 + 1e-3
    A = torch.complex(-random(channels, pairs).exp(), 20 * random(channels, pairs))
    C = torch.complex(random(channels, pairs), random(channels, pairs))
    found = [random(batch, length, channels), step, A, C, random(channels)]
    return [t.to(t.dtype if kind == torch.float64 else torch.complex64 if t.is_complex() else kind) for t in found]


@pytest.mark.parametrize("kind", REAL)
@pytest.mark.parametrize("length", [1, 2, 16, 17, 100])
def test_convolution_and_recurrence_are_the_same(kind: torch.dtype, length: int) -> None:
    assert max(largest_differences(convolution, recurrence, inputs(kind, length=length))) < TOLERANCE[kind]


@pytest.mark.parametrize(("elements", "pieces"), [(1, 10), (200, 10), (256, 5), (600, 3), (4096, 1)])
def test_the_size_of_the_pieces_does_not_matter(elements: int, pieces: int, monkeypatch: pytest.MonkeyPatch) -> None:
    given = inputs(torch.float64)  # ten series that are padded to 120
    whole = convolution(*given)
    monkeypatch.setattr(s4d, "_PIECE_ELEMENTS", elements)
    found = [(channels, some) for channels, items in s4d._pieces(given[0], given[2]) for some in items]
    assert len(found) == pieces
    torch.testing.assert_close(convolution(*given), whole)
    assert max(largest_differences(convolution, recurrence, given)) < TOLERANCE[torch.float64]


@pytest.mark.parametrize("kind", REAL)
def test_a_constant_input_is_answered_as_the_differential_equation_says(kind: torch.dtype) -> None:
    """x' = A x + 1 from 0 has x(t) = (exp(A t) - 1) / A: zero-order hold is exact for it."""
    _, step, A, C, D = inputs(kind)
    y = convolution(torch.ones(1, 30, 5, dtype=kind), step, A, C, D)[0]
    times = torch.arange(1, 31, dtype=kind).unsqueeze(-1) * step
    x = ((times.unsqueeze(-1) * A).exp() - 1) / A
    expected = 2 * (C * x).sum(-1).real + D
    torch.testing.assert_close(y, expected, rtol=10 * TOLERANCE[kind], atol=TOLERANCE[kind])


def test_gradients_are_those_of_finite_differences() -> None:
    given = [t.requires_grad_() for t in inputs(torch.float64, batch=1, length=6, channels=2, pairs=2)]
    assert torch.autograd.gradcheck(convolution, given)


def test_nothing_comes_before_its_cause() -> None:
    u, *model = inputs(torch.float64, batch=1, length=64)
    changed = u.clone()
    changed[:, 40] += 1
    difference = (convolution(u, *model) - convolution(changed, *model)).abs().amax(-1)[0]
    assert float(difference[:40].max()) < 1e-12  # the end must not run into the beginning
    assert float(difference[40:].min()) > 1e-6


def test_many_tokens_in_float32() -> None:
    given = inputs(torch.float64, batch=1, length=30_000, channels=2)
    low = [t.to(torch.complex64 if t.is_complex() else torch.float32) for t in given]
    expected, found = convolution(*given), convolution(*low)
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-4


def test_small_steps_in_float32() -> None:
    """Bbar = (exp(step A) - 1) / A is about the step; taken literally, a tenth of a thousandth of it would be lost."""
    u, _, A, C, _ = inputs(torch.float64, channels=1)
    given = [u, torch.full((1,), 1e-3), torch.full_like(A, -0.5), C, torch.zeros(1)]
    low = [t.to(torch.complex64 if t.is_complex() else torch.float32) for t in given]
    expected = convolution(u, *(t.to(A.dtype if t.is_complex() else u.dtype) for t in low[1:]))
    found = convolution(*low)
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-6


@pytest.mark.parametrize("rate", [1e-30, 1e-6, 1e4, 1e30])
def test_decays_of_any_speed_are_finite(rate: float) -> None:
    u, step, A, C, D = inputs(torch.float32, length=200)
    given = [t.detach().requires_grad_() for t in (u, step, torch.complex(-rate * torch.ones(5, 6), A.imag), C, D)]
    y = convolution(*given)
    assert all(t.isfinite().all() for t in (y, *torch.autograd.grad(y.sum(), given)))


@pytest.mark.parametrize("length", [1, 2, 3, 7, 8, 9, 100, 1000, 262_144, 999_999])
def test_padding_is_enough_and_not_much_more(length: int) -> None:
    padded = padded_length(length)
    assert 2 * length <= padded <= max(2.5 * length, 3)
    while padded % 2 == 0:
        padded //= 2
    assert padded in (1, 3, 5, 9, 15)


def test_it_begins_as_s4d_lin() -> None:
    torch.manual_seed(0)
    block = S4DBlock(16, state=8)
    torch.testing.assert_close(-block.A_log.exp(), torch.full((32, 4), -0.5))
    torch.testing.assert_close(block.A_imag[3], math.pi * torch.arange(4))
    assert 1e-3 <= float(block.log_step.detach().exp().min()) < 3e-3
    assert 3e-2 < float(block.log_step.detach().exp().max()) <= 0.1
    assert 0.7 < float(block.C.detach().square().sum(-1).mean()) < 1.4  # a complex number of variance 1
    assert all(not p.is_complex() for p in block.parameters())


def test_memory_is_bounded() -> None:
    """A million tokens: all exponentials would take 16 GiB a channel, all spectra half a GiB."""
    shapes = ((1, 10**6, 20), (20,), (20, 32), (20, 32), (20,))
    forward, backward = peak_mebibytes(convolution, *shapes, is_complex=(2, 3))
    y = 4 * 20 * 10**6 / 2**20
    assert forward - y < 100  # one more y, before the skip is added
    assert backward - y < 150  # the gradient of u has two parts
