"""What the tests of the mixers share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import get_args

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from umamba_cli.pipeline.networks.architecture import Mixer, ScanDirections
from umamba_cli.pipeline.training.memory import _LiveStorages

MIXERS: tuple[Mixer, ...] = get_args(Mixer)
DIRECTIONS: tuple[ScanDirections, ...] = get_args(ScanDirections)
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}

Form = Callable[..., Tensor]


def largest_differences(form: Form, reference: Form, inputs: Sequence[Tensor]) -> list[float]:
    """Of the output and of the gradient of each input, relative to the largest number in the reference's."""
    found, expected = _output_and_gradients(form, inputs), _output_and_gradients(reference, inputs)
    pairs = list(zip(found, expected, strict=True))
    assert all(a.dtype == b.dtype and a.shape == b.shape and a.isfinite().all() for a, b in pairs)
    return [float((a - b).abs().max() / b.abs().max()) for a, b in pairs]


def _output_and_gradients(form: Form, inputs: Sequence[Tensor]) -> list[Tensor]:
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    y = form(*leaves)
    dy = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(1))
    return [y.detach(), *torch.autograd.grad(y, leaves, dy)]


def peak_mebibytes(form: Form, *shapes: tuple[int, ...], is_complex: Sequence[int] = ()) -> tuple[float, float]:
    """What forward and backward hold at most beside inputs, output and gradients, counted without data."""
    with FakeTensorMode(), _LiveStorages() as live:
        kinds = [torch.complex64 if i in is_complex else torch.float32 for i in range(len(shapes))]
        inputs = [torch.empty(s, dtype=k, requires_grad=True) for s, k in zip(shapes, kinds, strict=True)]
        of_inputs = live.peak_bytes
        y = form(*inputs)
        forward = live.peak_bytes - of_inputs - y.nbytes
        dy = torch.empty_like(y)
        live.restart_peak()
        before = live.peak_bytes
        gradients = torch.autograd.grad(y, inputs, dy)
        backward = live.peak_bytes - before - sum(g.nbytes for g in gradients)
    return forward / 2**20, backward / 2**20
