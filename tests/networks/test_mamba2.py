from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from mixers import TOLERANCE, largest_differences, peak_mebibytes
from torch import Tensor

from umamba_cli.pipeline.networks.mamba2 import Mamba2Block, chunked, head_channels, recurrence

REAL = [torch.float64, torch.float32]


def inputs(kind: torch.dtype, batch: int = 2, length: int = 50, decay: float = 1.0) -> list[Tensor]:
    heads, channels, state = 3, 4, 5
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    dt = 0.1 * random(batch, length, heads).exp()
    A = -decay * random(heads).exp()
    x, B, C = random(batch, length, heads, channels), random(batch, length, state), random(batch, length, state)
    return [t.to(kind) for t in (x, dt, A, B, C, random(heads))]


@pytest.mark.parametrize("kind", REAL)
@pytest.mark.parametrize("length", [1, 2, 16, 17, 150])
def test_chunks_and_recurrence_are_the_same(kind: torch.dtype, length: int) -> None:
    form = partial(chunked, chunk=16)
    assert max(largest_differences(form, recurrence, inputs(kind, length=length))) < TOLERANCE[kind]


@pytest.mark.parametrize("chunk", [1, 7, 16, 50, 64])
@pytest.mark.parametrize("chunks_in_piece", [1, 2, None])
def test_the_length_of_chunks_and_pieces_does_not_matter(chunk: int, chunks_in_piece: int | None) -> None:
    piece = None if chunks_in_piece is None else chunks_in_piece * min(chunk, 50)
    form = partial(chunked, chunk=chunk, piece=piece)
    assert max(largest_differences(form, recurrence, inputs(torch.float64))) < TOLERANCE[torch.float64]


@pytest.mark.parametrize("decay", [1e-30, 1e-6, 1e3, 1e10, 1e30])
def test_decays_of_any_speed_are_finite_and_right(decay: float) -> None:
    given = inputs(torch.float32, length=200, decay=decay)
    found, *gradients = largest_differences(partial(chunked, chunk=16), recurrence, given)
    assert found < 1e-4
    assert max(gradients[i] for i in (0, 1, 3, 4, 5)) < 1e-4  # that of A may be nothing but rounding


def test_what_follows_a_step_that_forgets_all_keeps_its_digits() -> None:
    """A difference of running sums would have lost them: -1e7 - 0.01 is -1e7 in float32."""
    given = inputs(torch.float32, length=60, decay=0.01)
    given[1][:, 10] = 1e9
    form = partial(chunked, chunk=32)
    given[0][:, 10] = 0
    assert largest_differences(form, recurrence, given)[0] < 1e-6


def test_gradients_are_those_of_finite_differences() -> None:
    given = [t.requires_grad_() for t in inputs(torch.float64, batch=1, length=7)]
    assert torch.autograd.gradcheck(partial(chunked, chunk=2, piece=4), given)


def test_nothing_comes_before_its_cause() -> None:
    x, *model = inputs(torch.float32, batch=1)
    changed = x.clone()
    changed[:, 30] += 1
    form = partial(chunked, chunk=8, piece=16)
    difference = (form(x, *model) - form(changed, *model)).abs().amax((2, 3))[0]
    assert float(difference[:30].max()) == 0
    assert float(difference[30:].min()) > 0


def test_a_block_by_hand() -> None:
    torch.manual_seed(0)
    block = Mamba2Block(8, state=6).double()
    tokens = torch.randn(2, 11, 8, dtype=torch.float64)
    z, x, B, C, dt = block.in_proj(tokens).split([16, 16, 6, 6, 4], dim=-1)
    padded = F.pad(torch.cat((x, B, C), dim=-1).mT, (3, 0))
    convolved = F.silu(F.conv1d(padded, block.conv1d.weight, block.conv1d.bias, groups=28)).mT
    x, B, C = convolved.split([16, 6, 6], dim=-1)
    y = recurrence(x.unflatten(-1, (4, 4)), F.softplus(dt + block.dt_bias), -block.A_log.exp(), B, C, block.D)
    y = y.flatten(-2) * F.silu(z)
    normed = y / (y.square().mean(-1, keepdim=True) + 1e-5).sqrt() * block.norm.weight
    torch.testing.assert_close(block(tokens), block.out_proj(normed))


@pytest.mark.parametrize(("inner", "expected"), [(640, 64), (256, 64), (64, 16), (96, 24), (12, 3), (14, 2), (2, 1)])
def test_heads_divide_the_channels_into_four_or_more(inner: int, expected: int) -> None:
    assert head_channels(inner) == expected


def test_it_begins_with_steps_and_decays_as_in_the_paper() -> None:
    torch.manual_seed(0)
    block = Mamba2Block(640)
    assert block.A_log.shape == (20,)
    steps, rates = F.softplus(block.dt_bias.detach()), block.A_log.detach().exp()
    assert 1e-3 <= float(steps.min()) < float(steps.max()) <= 0.1
    assert 1 <= float(rates.min()) < float(rates.max()) <= 16


def test_memory_is_bounded() -> None:
    """The decay matrices alone would be 200 MiB, of which autograd keeps several, the states of all tokens 3 GiB."""
    tokens, heads = 200_000, 4
    shapes = ((1, tokens, heads, 16), (1, tokens, heads), (heads,), (1, tokens, 64), (1, tokens, 64), (heads,))
    forward, backward = peak_mebibytes(chunked, *shapes)
    y = 4 * 64 * tokens / 2**20
    assert forward - y < 50  # one more y, before the skip is added
    assert backward - y < 100  # the gradient of x has two parts
