"""The scan and the causal convolution as operators of torch, so that autograd, torch.compile and the meta device know
them.

They are defined by `torch.library.Library`: the decorator `torch.library.custom_op` would import torch's compiler with
the first call, which takes seconds.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, NoReturn

import torch
from torch import Tensor

from umamba_cli.pipeline.networks.scan.backends import BACKENDS, choose_backend
from umamba_cli.pipeline.networks.scan.inputs import ScanInputs

Optional = Tensor | None

_NAMESPACE = "umamba"
_DEVICES = ("CPU", "CUDA", "MPS")
_SCAN_INPUTS = "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? delta_bias"
_COUNT = len(ScanInputs._fields)
_GRADIENTS = ", ".join(["Tensor"] * _COUNT)

_library: Any = torch.library.Library(_NAMESPACE, "DEF")  # type: ignore[no-untyped-call]
_library.define(f"selective_scan({_SCAN_INPUTS}, bool keep, str backend) -> (Tensor, Tensor)")
_library.define(f"selective_scan_backward(Tensor dy, {_SCAN_INPUTS}, Tensor saved, str backend) -> ({_GRADIENTS})")
_library.define("causal_convolution(Tensor x, Tensor weight, Tensor? bias, str backend) -> Tensor")
_library.define(
    "causal_convolution_backward(Tensor dy, Tensor x, Tensor weight, Tensor? bias, str backend)"
    " -> (Tensor, Tensor, Tensor)"
)

scan_operator = torch.ops.umamba.selective_scan.default
convolution_operator = torch.ops.umamba.causal_convolution.default


def _scan(*arguments: Any) -> tuple[Tensor, Tensor]:
    inputs, (keep, backend) = ScanInputs(*arguments[:_COUNT]), arguments[_COUNT:]
    if not inputs.u.numel():
        return _like(inputs.u, inputs.u), inputs.u.new_empty(0)
    y, saved = _implementation(inputs.u, backend).forward(inputs, keep=keep)
    return y, saved


def _scan_backward(dy: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    inputs, (saved, backend) = ScanInputs(*arguments[:_COUNT]), arguments[_COUNT:]
    if not dy.numel():
        return tuple(_like(t, dy).zero_() for t in inputs)
    implementation = _implementation(dy, backend)
    if tuple(saved.shape) != tuple(implementation.saved_shape(inputs.u, inputs.A)):
        raise RuntimeError("the scan's backend was changed between the forward and the backward pass")
    gradients = implementation.backward(dy, inputs, saved)
    return tuple(dy.new_empty(0) if gradient is None else gradient for gradient in gradients)


def _scan_shapes(*arguments: Any) -> tuple[Tensor, Tensor]:
    inputs, (keep, backend) = ScanInputs(*arguments[:_COUNT]), arguments[_COUNT:]
    shape = _implementation(inputs.u, backend).saved_shape(inputs.u, inputs.A) if keep else (0,)
    return _like(inputs.u, inputs.u), inputs.u.new_empty(shape)


def _scan_backward_shapes(dy: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    return tuple(_like(t, dy) for t in arguments[:_COUNT])


def _convolution(x: Tensor, weight: Tensor, bias: Optional, backend: str) -> Tensor:
    if not x.numel():
        return _like(x, x)
    y: Tensor = _implementation(x, backend).convolution_forward(x, weight, bias)
    return y


def _convolution_backward(dy: Tensor, x: Tensor, weight: Tensor, bias: Optional, backend: str) -> tuple[Tensor, ...]:
    if not dy.numel():
        return tuple(_like(t, dy).zero_() for t in (x, weight, bias))
    gradients = _implementation(dy, backend).convolution_backward(dy, x, weight, bias)
    return tuple(dy.new_empty(0) if gradient is None else gradient for gradient in gradients)


def _implementation(tensor: Tensor, asked: str) -> ModuleType:
    """What computes for such a tensor: the backend asked for, or the best where none is.

    It is chosen inside the operator, because torch.compile cannot follow the choice.
    """
    chosen = choose_backend(tensor.device.type, asked or None)
    return (BACKENDS["torch"] if tensor.dtype == torch.float64 else chosen).module


def _like(tensor: Optional, kind: Tensor) -> Tensor:
    """A dense tensor of the same shape; empty for None."""
    return kind.new_empty(0) if tensor is None else tensor.new_empty(tensor.shape)


def _keep_scan(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, _keep, asked = inputs
    ctx.backend = choose_backend(tensors[0].device.type, asked or None).name  # backward reads what this one kept
    ctx.save_for_backward(*tensors, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # or zeros as large as what was kept would be made for its gradient


def _differentiate_scan(context: Any, dy: Optional, _: Optional) -> tuple[Optional, ...]:
    *inputs, saved = context.saved_tensors
    if dy is None:
        return (None,) * (len(inputs) + 2)
    gradients = torch.ops.umamba.selective_scan_backward(dy, *inputs, saved, context.backend)
    return (*_where_asked(context, inputs, gradients), None, None)


def _keep_convolution(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _differentiate_convolution(context: Any, dy: Tensor) -> tuple[Optional, ...]:
    inputs = context.saved_tensors
    gradients = torch.ops.umamba.causal_convolution_backward(dy, *inputs, context.backend)
    return (*_where_asked(context, inputs, gradients), None)


def _where_asked(context: Any, inputs: Any, gradients: Any) -> list[Optional]:
    asked = zip(inputs, context.needs_input_grad, gradients, strict=False)
    return [gradient if wanted and tensor is not None else None for tensor, wanted, gradient in asked]


def _refuse_second_derivative(_context: Any, *_gradients: Tensor) -> NoReturn:
    raise NotImplementedError("the scan and the convolution of Mamba can be differentiated once, not twice")


for _name, _function, _shapes in (
    ("selective_scan", _scan, _scan_shapes),
    ("selective_scan_backward", _scan_backward, _scan_backward_shapes),
    ("causal_convolution", _convolution, lambda x, *_: _like(x, x)),
    ("causal_convolution_backward", _convolution_backward, lambda dy, *i: tuple(_like(t, dy) for t in i[:3])),
):
    for _device in _DEVICES:
        _library.impl(_name, _function, _device)
    torch.library.register_fake(f"{_NAMESPACE}::{_name}", _shapes, lib=_library)
torch.library.register_autograd(
    f"{_NAMESPACE}::selective_scan", _differentiate_scan, setup_context=_keep_scan, lib=_library
)
torch.library.register_autograd(
    f"{_NAMESPACE}::causal_convolution", _differentiate_convolution, setup_context=_keep_convolution, lib=_library
)
for _name in ("selective_scan_backward", "causal_convolution_backward"):
    torch.library.register_autograd(f"{_NAMESPACE}::{_name}", _refuse_second_derivative, lib=_library)
