"""The Triton backend through Triton's interpreter, on the CPU: a script for `test_triton.py`.

TRITON_INTERPRET must be set before the kernels are imported, so this runs in a process of its own. It prints, for each
case, the largest difference of every output from a float64 recurrence, relative to the output's largest magnitude.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable

os.environ["TRITON_INTERPRET"] = "1"

import torch
import torch.nn.functional as F
from scan_cases import leaves, recurrence, scan_inputs
from torch import Tensor

from umamba_cli.pipeline.networks.scan import causal_convolution, selective_scan, triton_backend
from umamba_cli.pipeline.networks.scan.inputs import ScanInputs

Differences = dict[str, float]


def scan_differences(inputs: ScanInputs, dy: Tensor | None = None) -> Differences:
    exact = leaves(inputs, torch.float64)
    expected = recurrence(exact)
    if dy is None:
        dy = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    given = [(name, t) for name, t in exact._asdict().items() if t is not None]
    expected_gradients = torch.autograd.grad(expected, [t for _, t in given], dy.double())
    y, saved = triton_backend.forward(inputs, keep=True)
    assert tuple(saved.shape) == triton_backend.saved_shape(inputs.u, inputs.A)
    gradients = triton_backend.backward(dy, inputs, saved)
    assert [g is None for g in gradients] == [t is None for t in inputs]
    found = [g for g in gradients if g is not None]
    return compared(["y", *(name for name, _ in given)], [y, *found], [expected, *expected_gradients])


def compared(names: list[str], ours: list[Tensor], theirs: list[Tensor]) -> Differences:
    for name, a, b in zip(names, ours, theirs, strict=True):
        assert a.shape == b.shape, name
        assert a.dtype == torch.float32, name
    scale = [b.abs().max().clamp_min(1e-12) for b in theirs]
    return {name: ((a - b).abs().max() / s).item() for name, a, b, s in zip(names, ours, theirs, scale, strict=True)}


def slices_of_projections() -> Differences:
    """u and z side by side, B and C behind the step size's rank, as a Mamba block has them; rows not aligned."""
    inputs = scan_inputs(2, 21, 3)
    u, z = torch.cat([inputs.u, inputs.z], -1).chunk(2, dim=-1)
    _, B, C = torch.cat([torch.zeros(2, 21, 2), inputs.B, inputs.C], -1).split([2, 16, 16], dim=-1)
    assert not any(t.is_contiguous() for t in (u, z, B, C))
    return scan_differences(inputs._replace(u=u, z=z, B=B, C=C))


def aligned_slices() -> Differences:
    inputs = scan_inputs(1, 21, 3)
    B, C = torch.cat([inputs.B, inputs.C], -1).chunk(2, dim=-1)
    assert triton_backend._vector_width(B, C) == 4
    return scan_differences(inputs._replace(B=B, C=C))


def transposed() -> Differences:
    return scan_differences(ScanInputs(*(t.mT.contiguous().mT if t.dim() == 3 else t for t in scan_inputs(2, 19, 3))))


def tiny_steps() -> ScanInputs:
    inputs = scan_inputs(1, 33, 2)
    return inputs._replace(delta=inputs.delta - 25)


def without(*names: str) -> ScanInputs:
    return scan_inputs(2, 20, 3)._replace(**dict.fromkeys(names))


def nothing() -> Differences:
    for shape in ((0, 5, 3), (2, 0, 3)):
        inputs = scan_inputs(*shape)
        y, saved = triton_backend.forward(inputs, keep=True)
        gradients = triton_backend.backward(y, inputs, saved)
        assert y.shape == shape
        assert [g.shape for g in gradients] == [t.shape for t in inputs]
        assert not any(g.any() for g in gradients)
    return {}


def nothing_kept() -> Differences:
    inputs = scan_inputs(2, 20, 3)
    y, saved = triton_backend.forward(inputs, keep=False)
    assert saved.numel() == 0
    assert torch.equal(y, triton_backend.forward(inputs, keep=True)[0])
    return {}


def cut(batch: int, length: int, channels: int, *, forward: int, backward: int) -> Differences:
    """With so many chunks in either direction."""
    inputs = scan_inputs(batch, length, channels)
    programs = triton_backend.FORWARD_PROGRAMS, triton_backend.BACKWARD_PROGRAMS
    chunks = [triton_backend._Plan(inputs.u, inputs.A, count).chunks for count in programs]
    assert chunks == [forward, backward]
    return scan_differences(inputs)


def repeated() -> Differences:
    inputs = scan_inputs(1, 20, 35)
    y, saved = triton_backend.forward(inputs, keep=True)
    first, second = (triton_backend.backward(torch.ones_like(y), inputs, saved) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    return {}


def through_the_operators() -> Differences:
    """As a user of the interpreter calls it."""
    ours, exact = leaves(scan_inputs(1, 20, 3)), leaves(scan_inputs(1, 20, 3), torch.float64)
    weight = torch.ones(3, 4)
    x = causal_convolution(ours.u, weight, backend="triton")
    y = selective_scan(x, *ours[1:], backend="triton")
    exact_x = causal_convolution(exact.u, weight.double(), backend="torch")
    expected = recurrence(exact._replace(u=exact_x))
    dy = torch.ones_like(y)
    gradients = torch.autograd.grad(y, ours, dy), torch.autograd.grad(expected, exact, dy.double())
    return compared(["y", *ScanInputs._fields], [y, *gradients[0]], [expected, *gradients[1]])


def convolution_differences(shape: tuple[int, int, int], taps: int, *, bias: bool = True) -> Differences:
    generator = torch.Generator().manual_seed(taps)
    batch, length, channels = shape
    x = torch.randn(batch, length, 2 * channels, generator=generator)[..., channels:]
    parameters = [torch.randn(channels, taps, generator=generator)]
    if bias:
        parameters.append(torch.randn(channels, generator=generator))
    dy = torch.randn(batch, 1, channels, generator=generator).expand(shape)
    exact = [t.double().requires_grad_() for t in (x, *parameters)]
    padded = F.pad(exact[0], (0, 0, taps - 1, 0))
    total = sum(padded[:, k : k + length] * exact[1][:, k] for k in range(taps)) + (exact[2] if bias else 0)
    expected = F.silu(total)
    theirs = [expected, *torch.autograd.grad(expected, exact, dy.double())]
    weight, added = parameters[0], parameters[1] if bias else None
    y = triton_backend.convolution_forward(x, weight, added)
    gradients = triton_backend.convolution_backward(dy, x, weight, added)
    assert (gradients[2] is None) == (added is None)
    return compared(["y", "x", "weight", "bias"][: len(theirs)], [y, *(g for g in gradients if g is not None)], theirs)


CASES: dict[str, Callable[[], Differences]] = {
    "one token, one channel": lambda: scan_differences(scan_inputs(1, 1, 1)),
    "one chunk": lambda: scan_differences(scan_inputs(2, 7, 3)),
    "one whole segment": lambda: scan_differences(scan_inputs(1, 8, 2)),
    "several chunks": lambda: cut(2, 45, 3, forward=6, backward=6),
    "chunks of several segments": lambda: cut(5, 45, 1, forward=3, backward=3),
    "several channel blocks": lambda: scan_differences(scan_inputs(1, 18, 70)),
    "five states": lambda: scan_differences(scan_inputs(1, 30, 2, 5)),
    "one state": lambda: scan_differences(scan_inputs(1, 30, 2, 1)),
    "twenty states": lambda: scan_differences(scan_inputs(1, 18, 2, 20)),
    "extreme step sizes": lambda: scan_differences(scan_inputs(1, 60, 2, steps=30.0)),
    "tiny step sizes": lambda: scan_differences(tiny_steps()),
    "slices of projections": slices_of_projections,
    "aligned slices": aligned_slices,
    "transposed": transposed,
    "expanded gradient": lambda: scan_differences(scan_inputs(2, 25, 3), torch.tensor(0.7).expand(2, 25, 3)),
    "gradient the same in every row": lambda: scan_differences(
        scan_inputs(2, 25, 3), torch.randn(3, generator=torch.Generator().manual_seed(2)).expand(2, 25, 3)
    ),
    "no D": lambda: scan_differences(without("D")),
    "no z": lambda: scan_differences(without("z")),
    "no delta_bias": lambda: scan_differences(without("delta_bias")),
    "none of them": lambda: scan_differences(without("D", "z", "delta_bias")),
    "nothing": nothing,
    "nothing kept": nothing_kept,
    "repeated": repeated,
    "through the operators": through_the_operators,
    "convolution": lambda: convolution_differences((2, 37, 11), 4),
    "convolution, one token": lambda: convolution_differences((1, 1, 1), 4),
    "convolution without bias": lambda: convolution_differences((2, 40, 9), 8, bias=False),
    "convolution of two taps": lambda: convolution_differences((1, 5, 3), 2),
}


def main() -> None:
    # Small blocks, so that short sequences go through every pass.
    triton_backend.SEGMENT, triton_backend.ONE_CHUNK, triton_backend.CARRY_CHUNKS = 8, 16, 4
    triton_backend._processors = lambda _device: 1
    triton_backend.CONVOLUTION_TOKENS, triton_backend.CONVOLUTION_CHANNELS, triton_backend.CONVOLUTION_STEPS = 16, 8, 2
    results: dict[str, Differences | str] = {}
    for name in sys.argv[1:] or CASES:
        try:
            results[name] = CASES[name]()
        except Exception as error:
            results[name] = f"{type(error).__name__}: {error}"
    print(json.dumps(results))  # noqa: T201


if __name__ == "__main__":
    main()
