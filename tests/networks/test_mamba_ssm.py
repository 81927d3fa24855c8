"""How mamba-ssm's extension is called, with one in its place that has its layout and computes on a CPU."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from umamba_cli.pipeline.networks.scan import backends, choose_backend, mamba_ssm_backend, torch_backend
from umamba_cli.pipeline.networks.scan.inputs import ScanInputs

BATCH, LENGTH, CHANNELS, STATE = 2, 9, 6, 4


def kernel(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Any, z: Any, bias: Any
) -> tuple[Tensor, Tensor]:
    """The recurrence with tokens last and B, C as (batch, 1, state, length): before and after the gate."""
    assert u.shape == delta.shape == (BATCH, CHANNELS, LENGTH)
    assert B.shape == C.shape == (BATCH, 1, STATE, LENGTH)
    step = F.softplus(delta if bias is None else delta + bias[:, None])
    h, y = u.new_zeros(BATCH, CHANNELS, STATE), []
    for t in range(LENGTH):
        h = torch.exp(step[..., t, None] * A) * h + (step * u)[..., t, None] * B[:, :, :, t]
        y.append((h * C[:, :, :, t]).sum(-1))
    before = torch.stack(y, -1) + (0 if D is None else D[:, None] * u)
    return before, before if z is None else before * F.silu(z)


def fwd(*arguments: Any) -> list[Tensor]:
    *inputs, softplus = arguments
    assert softplus is True
    before, after = kernel(*inputs)
    return [before, torch.ones(BATCH, CHANNELS, 1, 2 * STATE), *([] if inputs[6] is None else [after])]


def bwd(*arguments: Any) -> list[Tensor | None]:
    *inputs, dout, states, out, dz, softplus, again = arguments
    assert states.shape == (BATCH, CHANNELS, 1, 2 * STATE)
    assert (dz, softplus, again) == (None, True, False)
    leaves = [None if t is None else t.detach().requires_grad_() for t in inputs]
    with torch.enable_grad():
        before, after = kernel(*leaves)
        after.backward(dout)
    if inputs[6] is not None:
        torch.testing.assert_close(out, before.detach())
    gradients = [None if t is None else t.grad for t in leaves]
    return [*gradients[:6], gradients[7], *([] if inputs[6] is None else [gradients[6]])]


@pytest.mark.parametrize("left_out", [(), (5, 6, 7)])
@pytest.mark.parametrize("more", [0, 1])
def test_layout_and_order_of_what_goes_in_and_out(
    left_out: tuple[int, ...], more: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def taking(function: Any, count: int) -> Any:
        def call(*arguments: Any) -> Any:
            if len(arguments) != count + more:
                raise TypeError("incompatible function arguments")
            return function(*arguments[:count])

        return call

    monkeypatch.setitem(sys.modules, "selective_scan_cuda", SimpleNamespace(fwd=taking(fwd, 9), bwd=taking(bwd, 14)))  # type: ignore[arg-type]
    torch.manual_seed(0)
    shapes = [(BATCH, LENGTH, CHANNELS)] * 2 + [(CHANNELS, STATE)] + [(BATCH, LENGTH, STATE)] * 2
    tensors = [torch.randn(s) for s in (*shapes, (CHANNELS,), shapes[0], (CHANNELS,))]
    tensors[2] = -tensors[2].abs()
    inputs = ScanInputs(*(None if i in left_out else t for i, t in enumerate(tensors)))  # type: ignore[arg-type]
    y, saved = mamba_ssm_backend.forward(inputs, keep=True)
    expected, starts = torch_backend.forward(inputs, keep=True)
    torch.testing.assert_close(y, expected)
    assert saved.shape == mamba_ssm_backend.saved_shape(tensors[0], tensors[2])
    dy = torch.randn_like(y)
    ours = mamba_ssm_backend.backward(dy, inputs, saved)
    theirs = torch_backend.backward(dy, inputs, starts)
    for a, b in zip(ours, theirs, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_package_without_its_kernel_is_passed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert choose_backend("cuda").name != "mamba_ssm"
    assert backends.BACKENDS["mamba_ssm"].missing == "mamba_ssm is not installed"
    (tmp_path / "mamba_ssm").mkdir()
    (tmp_path / "mamba_ssm" / "__init__.py").write_text("raise AssertionError('nobody needs this import')")
    monkeypatch.syspath_prepend(str(tmp_path))
    backends._problem.cache_clear()
    try:
        assert (
            backends.BACKENDS["mamba_ssm"].missing == "mamba_ssm is installed without its kernel, selective_scan_cuda"
        )
        assert choose_backend("cuda").name != "mamba_ssm"
    finally:
        backends._problem.cache_clear()
