"""Every backend that runs here against the definition, one token after the other in float64."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from scan_cases import largest_difference, leaves, recurrence, scan_inputs
from torch import Tensor
from torch.library import opcheck

from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.networks.scan import (
    backends,
    causal_convolution,
    choose_backend,
    selective_scan,
    torch_backend,
)
from umamba_cli.pipeline.networks.scan.inputs import ScanInputs

HERE = ("torch", "numba")  # triton has tests of its own, mamba_ssm needs a GPU


def largest_differences(inputs: ScanInputs, backend: str) -> dict[str, float]:
    """Output and all gradients against the recurrence in float64, relative to each tensor's largest magnitude."""
    ours, theirs = leaves(inputs), leaves(inputs, torch.float64)
    y, expected = selective_scan(*ours, backend=backend), recurrence(theirs)
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    y.backward(weight)
    expected.backward(weight.double())
    found = {"y": largest_difference(y, expected)}
    for name, a, b in zip(ScanInputs._fields, ours, theirs, strict=True):
        if a is not None and b is not None:
            assert a.grad is not None
            assert b.grad is not None
            found[name] = largest_difference(a.grad, b.grad)
    return found


@pytest.mark.parametrize("length", [2, 7, 64, 101, 333])
@pytest.mark.parametrize("budget", [64, 1024, torch_backend.STEP_ELEMENTS])
def test_torch_in_chunks_equals_the_recurrence(length: int, budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_backend, "STEP_ELEMENTS", budget)
    assert max(largest_differences(scan_inputs(2, length, 3), "torch").values()) < 1e-5


def test_budgets_above_do_cut_the_sequence() -> None:
    steps = torch_backend.chunk_length(333, 2 * 3 * 16, budget=1024)
    assert steps < 333
    assert 333 % steps != 0


# Lengths, channels and states around the sizes of chunks (16), vectors (16) and groups of states (8).
SHAPES = [
    (2, 1, 16, 16),
    (1, 15, 1, 16),
    (3, 16, 20, 16),
    (2, 77, 48, 16),
    (1, 257, 64, 5),
    (2, 33, 33, 20),
    (1, 40, 16, 1),
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_numba_equals_the_recurrence(shape: tuple[int, int, int, int], threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        differences = largest_differences(scan_inputs(*shape), "numba")
    finally:
        torch.set_num_threads(before)
    if shape[1] == 1:
        differences.pop("A")  # nothing decays over one token: the gradient is zero on both sides
    assert max(differences.values()) < 1e-5


@pytest.mark.parametrize("backend", HERE)
def test_one_token_one_channel_one_image(backend: str) -> None:
    differences = largest_differences(scan_inputs(1, 1, 1), backend)
    differences.pop("A")
    assert max(differences.values()) < 1e-5


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("budget", [64, torch_backend.STEP_ELEMENTS])
def test_extreme_step_sizes(backend: str, budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_backend, "STEP_ELEMENTS", budget)
    inputs = scan_inputs(1, 90, 2, steps=30.0)
    assert max(largest_differences(inputs, backend).values()) < 1e-5
    for step in (-30.0, 19.9, 20.1, 30.0):  # below, and around where softplus becomes the identity
        all_the_same = inputs._replace(delta=torch.full_like(inputs.delta, step))
        assert max(largest_differences(all_the_same, backend).values()) < 1e-5


def test_long_memory() -> None:
    """Steps of a thousandth, all the same: the rounding of their exponentials would add up over thousands of tokens."""
    inputs = scan_inputs(1, 8000, 16)
    inputs = inputs._replace(
        delta=torch.full_like(inputs.delta, math.log(math.expm1(1e-3))),
        A=-torch.arange(1.0, 17.0).repeat(16, 1),
        delta_bias=torch.zeros(16),
    )
    ours, theirs = leaves(inputs), leaves(inputs, torch.float64)
    y, expected = selective_scan(*ours, backend="numba"), selective_scan(*theirs)  # in float64 it is held to above
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    pairs = zip(
        (y, *torch.autograd.grad(y, ours, weight)),
        (expected, *torch.autograd.grad(expected, theirs, weight.double())),
        strict=True,
    )
    assert max(largest_difference(a, b) for a, b in pairs) < 4e-6


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("left_out", [("D",), ("z",), ("delta_bias",), ("D", "z", "delta_bias")])
def test_optional_parts_may_be_left_out(backend: str, left_out: tuple[str, ...]) -> None:
    inputs = scan_inputs(1, 40, 18)._replace(**dict.fromkeys(left_out))
    assert max(largest_differences(inputs, backend).values()) < 1e-5


@pytest.mark.parametrize("backend", HERE)
def test_inputs_that_are_not_contiguous(backend: str) -> None:
    """Slices of wider tensors, as Mamba's projections give them, and tensors whose channels are not side by side."""
    tensors = scan_inputs(2, 50, 16)
    expected = selective_scan(*tensors, backend=backend)
    sliced = [F.pad(t, (3, 5))[..., 3:-5] if t.dim() == 3 else t for t in tensors]
    strided = [t.mT.contiguous().mT if t.dim() == 3 else t for t in tensors]
    assert not any(t.is_contiguous() for t in (sliced[0], strided[0]))
    for others in (sliced, strided):
        torch.testing.assert_close(selective_scan(*others, backend=backend), expected)
        assert max(largest_differences(ScanInputs(*others), backend).values()) < 1e-5


@pytest.mark.parametrize("backend", HERE)
def test_a_gradient_of_one_number_spread_out(backend: str) -> None:
    """`sum().backward()` gives a gradient without memory of its own."""
    ours = [t.requires_grad_() for t in scan_inputs(2, 30, 16)]
    theirs = [t.detach().double().requires_grad_() for t in ours]
    selective_scan(*ours, backend=backend).sum().backward()
    recurrence(ScanInputs(*theirs)).sum().backward()
    for a, b in zip(ours, theirs, strict=True):
        assert a.grad is not None
        torch.testing.assert_close(a.grad.double(), b.grad, rtol=1e-4, atol=1e-5 * float(b.grad.abs().max()))  # type: ignore[union-attr]


@pytest.mark.parametrize("backend", HERE)
def test_gradients_only_of_what_asks_for_one(backend: str) -> None:
    tensors = scan_inputs(1, 20, 16)
    tensors[2].requires_grad_()
    selective_scan(*tensors, backend=backend).sum().backward()
    assert tensors[2].grad is not None
    assert all(t.grad is None for i, t in enumerate(tensors) if i != 2)


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("shape", [(0, 5, 16), (2, 0, 16)])
def test_nothing_in_nothing_out(backend: str, shape: tuple[int, int, int]) -> None:
    tensors = [t.requires_grad_() for t in scan_inputs(*shape)]
    y = selective_scan(*tensors, backend=backend)
    assert y.shape == shape
    y.sum().backward()
    assert all(t.grad is not None and not t.grad.any() for t in tensors)


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("index", range(8))
def test_no_nan_is_lost(backend: str, index: int) -> None:
    tensors = scan_inputs(1, 20, 16)
    tensors[index].view(-1)[0] = math.nan
    assert selective_scan(*tensors, backend=backend).isnan().any()


def test_calls_from_several_threads_at_once() -> None:
    tensors = scan_inputs(2, 300, 32)
    expected = selective_scan(*tensors, backend="numba")
    with ThreadPoolExecutor(4) as pool:
        for y in pool.map(lambda _: selective_scan(*tensors, backend="numba"), range(20)):
            assert torch.equal(y, expected)


@pytest.mark.parametrize("backend", HERE)
def test_autograd_meta_and_compiler_know_the_operators(backend: str) -> None:
    tensors = [t.requires_grad_() for t in scan_inputs(2, 20, 16)]
    opcheck(torch.ops.umamba.selective_scan.default, (*tensors, True, backend))
    weight, bias = torch.randn(16, 4, requires_grad=True), torch.randn(16, requires_grad=True)
    opcheck(torch.ops.umamba.causal_convolution.default, (tensors[0], weight, bias, backend))


def test_shapes_without_numbers() -> None:
    tensors = [t.to("meta").requires_grad_() for t in scan_inputs(2, 20, 16)]
    y = selective_scan(*tensors)
    y.sum().backward()
    assert y.shape == (2, 20, 16)
    assert tensors[2].grad is not None
    assert tensors[2].grad.shape == (16, 16)


def test_a_second_derivative_is_refused() -> None:
    u, *others = scan_inputs(1, 10, 16)
    first = torch.autograd.grad(selective_scan(u.requires_grad_(), *others).sum(), u, create_graph=True)[0]
    with pytest.raises(NotImplementedError, match="once"):
        first.sum().backward()


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize(
    "shape", [(2, 77, 48, 4), (1, 3, 5, 4), (3, 130, 17, 3), (1, 200, 16, 4), (1, 1, 1, 1), (2, 40, 20, 6)]
)
@pytest.mark.parametrize("with_bias", [True, False])
def test_the_convolution_is_pytorchs(backend: str, shape: tuple[int, int, int, int], with_bias: bool) -> None:
    batch, length, channels, taps = shape
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, length, 2 * channels, generator=generator)[..., :channels]
    ours = [x, torch.randn(channels, taps, generator=generator), torch.randn(channels, generator=generator)]
    ours = [t.detach().requires_grad_() for t in ours[: 2 + with_bias]]
    theirs = [t.detach().double().requires_grad_() for t in ours]
    y = causal_convolution(*ours, backend=backend)
    weight, bias = theirs[1][:, None], theirs[2] if with_bias else None
    padded = F.conv1d(theirs[0].mT, weight, bias, groups=channels, padding=taps - 1)
    expected = F.silu(padded[..., :length].mT)
    dy = torch.randn(y.shape, generator=generator)
    y.backward(dy)
    expected.backward(dy.double())
    for a, b in ((y, expected), *((p.grad, q.grad) for p, q in zip(ours, theirs, strict=True))):
        assert a is not None
        assert b is not None
        assert largest_difference(a, b) < 1e-5


def test_float64_stays_float64_and_passes_gradcheck(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_backend, "STEP_ELEMENTS", 16)
    tensors = [t.double().requires_grad_() for t in scan_inputs(1, 11, 2, 3)]
    assert selective_scan(*tensors).dtype == torch.float64
    assert torch.autograd.gradcheck(selective_scan, tensors)


def test_low_precision_is_computed_in_float32() -> None:
    tensors = scan_inputs(1, 40, 4)
    with torch.autocast("cpu", torch.bfloat16):
        y = selective_scan(*(t.bfloat16() for t in tensors))
    assert y.dtype == torch.float32
    rounded = ScanInputs(*(t.bfloat16().double() for t in tensors))
    assert largest_difference(y, recurrence(rounded)) < 1e-5


@pytest.mark.parametrize("backend", HERE)
def test_memory_does_not_hold_a_state_for_every_token(backend: str) -> None:
    """What backward keeps is far less than (batch, length, channels, state)."""
    batch, length, channels, state = 1, 20_000, 4, 16
    tensors = [t.requires_grad_() for t in scan_inputs(batch, length, channels, state)]
    kept: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        selective_scan(*tensors, backend=backend)
    inputs_and_output = sum(t.numel() for t in tensors) * 3
    assert sum(kept) < inputs_and_output + 0.1 * batch * length * channels * state


@pytest.mark.parametrize(
    ("length", "per_step", "budget"), [(1, 1, 1), (1000, 10, 100), (10**6, 512, 2**18), (5, 10**9, 1)]
)
def test_chunk_length_is_within_its_bounds(length: int, per_step: int, budget: int) -> None:
    steps = torch_backend.chunk_length(length, per_step, budget=budget)
    assert math.isqrt(length) <= steps <= length


def test_backends_are_chosen_by_device_name_and_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UMAMBA_SCAN", raising=False)
    assert choose_backend("cpu").name == "numba"
    assert choose_backend("mps").name == "torch"
    assert choose_backend("cpu", "torch").name == "torch"
    monkeypatch.setenv("UMAMBA_SCAN", "torch")
    assert choose_backend("cpu").name == "torch"
    monkeypatch.setenv("UMAMBA_SCAN", "nonsense")
    with pytest.raises(InputError, match="nonsense"):
        choose_backend("cpu")


def test_a_backend_that_is_broken_or_absent_is_passed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "built_for_another_torch.py"
    broken.write_text("raise ImportError('undefined symbol')")
    monkeypatch.syspath_prepend(str(tmp_path))
    for module, reason in (("built_for_another_torch", "undefined symbol"), ("not_there_at_all", "not installed")):
        changed = replace(backends.BACKENDS["numba"], package=module)
        monkeypatch.setitem(backends.BACKENDS, "numba", changed)
        assert choose_backend("cpu").name == "torch"
        with pytest.raises(InputError, match=reason):
            choose_backend("cpu", "numba")


def test_a_backend_of_another_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    if not backends.BACKENDS["triton"].missing:
        with pytest.raises(InputError, match="does not run on cpu"):
            choose_backend("cpu", "triton")
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        assert choose_backend("cpu", "triton").name == "triton"
        assert choose_backend("cpu").name == "numba"
    with pytest.raises(InputError, match="does not run on mps"):
        choose_backend("mps", "numba")


def test_a_version_that_is_too_old_is_passed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "kernels_of_yesterday.py").write_text("__version__ = '3.2.1+cu'")
    monkeypatch.syspath_prepend(str(tmp_path))
    for least, reason in (((3, 3), "3.2.1.cu is too old, 3.3 will do"), ((3, 2), "")):
        changed = replace(backends.BACKENDS["numba"], package="kernels_of_yesterday", least=least)
        assert re.fullmatch(f".*{reason}", changed.missing)
        assert bool(changed.missing) == bool(reason)


MISFITS = {
    "u": lambda t: t[0],
    "delta": lambda t: t[..., :1],
    "A": lambda t: t[:5],
    "B": lambda t: t[:, :3],
    "C": lambda t: t[..., :2],
    "D": lambda t: t[:1],
    "z": lambda t: t[:1],
    "delta_bias": lambda t: t.long(),
}


@pytest.mark.parametrize("name", MISFITS)
def test_what_does_not_fit_together_is_refused(name: str) -> None:
    """The kernels would read foreign memory."""
    inputs = scan_inputs(2, 6, 16)
    inputs = inputs._replace(**{name: MISFITS[name](getattr(inputs, name))})
    with pytest.raises(ValueError, match="is needed"):
        selective_scan(*inputs, backend="numba")


@pytest.mark.parametrize("index", range(3))
def test_a_convolution_that_does_not_fit_is_refused(index: int) -> None:
    given = [torch.randn(1, 5, 4), torch.randn(4, 4), torch.randn(4)]
    given[index] = given[index][..., :3] if index != 1 else given[index][:3]
    with pytest.raises(ValueError, match="is needed"):
        causal_convolution(*given, backend="numba")


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
def test_whatever_the_default_type(kind: torch.dtype) -> None:
    inputs = scan_inputs(2, 30, 18)
    expected = selective_scan(*inputs, backend="numba")
    before = torch.get_default_dtype()
    torch.set_default_dtype(kind)
    try:
        y = selective_scan(*inputs, backend="numba")
    finally:
        torch.set_default_dtype(before)
    assert y.dtype == torch.float32
    assert torch.equal(y, expected)


def test_backward_is_the_backend_that_forward_was(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = leaves(scan_inputs(2, 30, 16))
    monkeypatch.setenv("UMAMBA_SCAN", "torch")
    y = selective_scan(*inputs)
    monkeypatch.setenv("UMAMBA_SCAN", "numba")
    gradients = torch.autograd.grad(y.sum(), inputs)
    expected = torch.autograd.grad(selective_scan(*inputs, backend="torch").sum(), inputs)
    assert all(torch.equal(a, b) for a, b in zip(gradients, expected, strict=True))
    saved = torch.ops.umamba.selective_scan(*inputs, True, "torch")[1]
    with pytest.raises(RuntimeError, match="backend was changed"):
        torch.ops.umamba.selective_scan_backward(y.detach(), *inputs, saved, "numba")


@pytest.mark.parametrize("bits", [0x7FC00001, 0x7F800001, 0xFFFFFFFF])
@pytest.mark.parametrize("name", ["delta", "A", "delta_bias"])
def test_no_kind_of_nan_is_lost(bits: int, name: str) -> None:
    inputs = scan_inputs(1, 20, 16)
    odd = getattr(inputs, name).clone()
    odd.view(torch.int32).view(-1)[0] = bits - (1 << 32) if bits >> 31 else bits
    assert selective_scan(*inputs._replace(**{name: odd}), backend="numba").isnan().any()


def test_sums_over_many_tokens() -> None:
    """Of the gradients of D, the bias and the convolution: all of one sign, one float32 would lose digits."""
    length = 300_000
    inputs = scan_inputs(1, length, 16, 8)
    inputs = ScanInputs(*(None if t is None else t.abs() for t in inputs))._replace(A=-inputs.A.abs() - 1)
    ours = leaves(inputs)
    selective_scan(*ours, backend="numba").sum().backward()
    y = selective_scan(*inputs._replace(D=None, z=None), backend="numba")
    assert y.isfinite().all()
    gate = F.silu(inputs.z.double())  # type: ignore[union-attr]
    assert ours.D is not None
    assert ours.D.grad is not None
    assert largest_difference(ours.D.grad, (inputs.u.double() * gate).sum((0, 1))) < 1e-6
    weight, bias = torch.rand(16, 4, requires_grad=True), torch.rand(16, requires_grad=True)
    exact = [t.detach().double().requires_grad_() for t in (weight, bias)]
    causal_convolution(inputs.u, weight, bias, backend="numba").sum().backward()
    causal_convolution(inputs.u.double(), *exact).sum().backward()
    for a, b in zip((weight, bias), exact, strict=True):
        assert a.grad is not None
        assert b.grad is not None
        assert largest_difference(a.grad, b.grad) < 1e-6


def test_auto_and_unknown_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UMAMBA_SCAN", "auto")
    assert choose_backend("cpu").name == choose_backend("cpu", "auto").name == "numba"
    monkeypatch.setenv("UMAMBA_SCAN", "nonsense")
    with pytest.raises(InputError, match="UMAMBA_SCAN=nonsense"):
        choose_backend("cpu")


def test_compiling_is_announced_once(tmp_path: Path) -> None:
    """In processes of their own, with an empty place for what is compiled."""
    program = """
import torch
from umamba_cli.pipeline.networks.mamba import MambaBlock
from umamba_cli.pipeline.runs.network import compile_scan
compile_scan([MambaBlock(16)], torch.device("cpu"), lambda progress: print(progress.task, progress.done, progress.step))
compile_scan([MambaBlock(16)], torch.device("cpu"), lambda progress: print("again"))
"""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "UMAMBA_SCAN": ""}
    command = [sys.executable, "-c", program]
    first, second = (
        subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout for _ in range(2)
    )
    assert first.splitlines()[0].startswith("compile 0 the scan for this machine")
    assert first.splitlines()[1:] == ["compile 1 done"]
    assert second == ""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
def test_a_forked_process_computes_too() -> None:
    """Its parent's threads did not come with it. In a process of its own: this one holds threads of other libraries."""
    program = """
import os, torch
from umamba_cli.pipeline.networks.scan import selective_scan
torch.set_num_threads(2)
u, A, B = torch.ones(2, 40, 16), -torch.ones(16, 8), torch.ones(2, 40, 8)
y = selective_scan(u, u, A, B, B, backend="numba")
child = os.fork()
if not child:
    os._exit(0 if torch.equal(y, selective_scan(u, u, A, B, B, backend="numba")) else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    command = [sys.executable, "-W", "ignore", "-c", program]
    assert subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout.strip() == "0"
