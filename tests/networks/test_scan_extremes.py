"""Backends of the scan with inputs of millions: exponents stay below zero, so that nothing becomes inf - inf."""

from __future__ import annotations

import pytest
import torch
from scan_cases import largest_difference, leaves, recurrence, scan_inputs

from umamba_cli.pipeline.networks.scan import causal_convolution, selective_scan
from umamba_cli.pipeline.networks.scan.inputs import ScanInputs

BACKENDS = ("torch", "numba")
LENGTH = 70  # several chunks, the last one cut short


def with_gradients(inputs: ScanInputs, backend: str) -> list[torch.Tensor]:
    y = selective_scan(*inputs, backend=backend)
    return [y.detach(), *torch.autograd.grad(y, inputs, torch.ones_like(y))]


@pytest.mark.parametrize(
    ("enlarged", "factor"),
    [(("u",), 1e7), (("delta",), 1e7), (("D",), 1e7), (("z",), 1e7), (("u", "B", "C"), 1e7), (ScanInputs._fields, 1e4)],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_finite_and_right(backend: str, enlarged: tuple[str, ...], factor: float) -> None:
    inputs = scan_inputs(2, LENGTH, 20)
    larger = inputs._replace(**{name: getattr(inputs, name) * factor for name in enlarged})
    found = with_gradients(leaves(larger), backend)
    exact = leaves(larger, torch.float64)
    y = recurrence(exact)
    expected = [y.detach(), *torch.autograd.grad(y, exact, torch.ones_like(y))]
    assert float(found[0].abs().max()) > 1e6
    for name, ours, theirs in zip(("y", *ScanInputs._fields), found, expected, strict=True):
        assert ours.isfinite().all(), name
        assert largest_difference(ours.double(), theirs) < 1e-4, name


@pytest.mark.parametrize("delta", [-1e30, -1e6, 1e6, 1e30])
@pytest.mark.parametrize("backend", BACKENDS)
def test_steps_of_any_size(backend: str, delta: float) -> None:
    """Softplus of a huge step is the step itself, after which nothing of the state is left; of the least it is 0."""
    inputs = scan_inputs(1, LENGTH, 16)
    inputs = inputs._replace(delta=torch.full_like(inputs.delta, delta), u=inputs.u * 1e-3)
    for tensor in with_gradients(leaves(inputs), backend):
        assert tensor.isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_convolution_saturates(backend: str) -> None:
    x = (1e30 * torch.randn(2, LENGTH, 16)).requires_grad_()
    weight, bias = torch.randn(16, 4, requires_grad=True), torch.randn(16, requires_grad=True)
    y = causal_convolution(x, weight, bias, backend=backend)
    for tensor in (y, *torch.autograd.grad(y, (x, weight, bias), torch.ones_like(y))):
        assert tensor.isfinite().all()
