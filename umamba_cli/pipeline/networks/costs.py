"""What one forward pass of a network costs, counted without data: multiply-adds.

Convolutions and products of matrices count as torch counts them (`torch.utils.flop_counter`), a multiply-add as one,
as papers on segmentation do that say GFLOPs; elementwise operations, norms and resampling count nothing, as there. What
torch does not know is added here:

- the selective scan: 9 operations for each token, channel and state (Mamba's authors' own count), 2 for the skip and 2
  for the gate for each token and channel;
- the causal convolution: as many multiply-adds as the kernel has taps;
- Fourier transforms: 2.5 n log2 n operations of n real numbers, half of a complex one's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from umamba_cli.pipeline.networks.scan.operators import convolution_operator, scan_operator

_OF_STATE, _OF_SKIP, _OF_GATE = 9, 2, 2


def multiply_adds(network: nn.Module, input_shape: Sequence[int]) -> int:
    """Count the multiply-adds of a forward pass in evaluation mode; the network is left as it is.

    Args:
        network: on any device, the meta device included.
        input_shape: (batch, channels, [z,] y, x).

    Raises:
        InputError: the size does not suit the network.
        Exception: whatever a network raises that cannot run without data.
    """
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            state = {
                name: torch.empty(tensor.shape, dtype=tensor.dtype)
                for name, tensor in (*network.named_parameters(), *network.named_buffers())
            }
            with FlopCounterMode(display=False, custom_mapping=_FORMULAS) as counter:
                torch.func.functional_call(network, state, (torch.empty(tuple(input_shape)),))
    finally:
        for module, mode in modes.items():
            module.training = mode
    return int(counter.get_total_flops()) // 2


def _of_scan(u_BLD: Any, delta: Any, A_DN: Any, B: Any, C: Any, D: Any, z: Any, *_more: Any, **_named: Any) -> int:
    states = _OF_STATE * A_DN[1]
    return int(math.prod(u_BLD) * (states + _OF_SKIP * (D is not None) + _OF_GATE * (z is not None)))


def _of_convolution(x_BLD: Any, weight_DK: Any, *_more: Any, **_named: Any) -> int:
    return int(2 * math.prod(x_BLD) * weight_DK[1])


def _of_real_transform(given: Any, axes: Any, *_more: Any, out_shape: Any = None, **_named: Any) -> int:
    """Of real numbers to complex ones, or back; the larger of the two shapes has the real numbers."""
    real = max((list(given), list(out_shape)), key=lambda shape: shape[axes[-1]])
    return _operations(real, axes, 2.5)


def _of_complex_transform(given: Any, axes: Any, *_more: Any, **_named: Any) -> int:
    return _operations(list(given), axes, 5.0)


def _operations(shape: Sequence[int], axes: Sequence[int], each: float) -> int:
    return round(each * math.prod(shape) * math.log2(max(2, math.prod(shape[axis] for axis in axes))))


_FORMULAS = {
    scan_operator.overloadpacket: _of_scan,
    convolution_operator.overloadpacket: _of_convolution,
    torch.ops.aten._fft_r2c: _of_real_transform,
    torch.ops.aten._fft_c2r: _of_real_transform,
    torch.ops.aten._fft_c2c: _of_complex_transform,
}
