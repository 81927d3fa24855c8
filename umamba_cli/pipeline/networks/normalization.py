"""Instance norm and leaky ReLU in one function that stays in channels_last.

`torch.nn.functional.instance_norm` makes its input contiguous: in channels_last every norm costs a transposition there
and one back, and both again in backward. Its result is a view, so that an in-place activation behind it makes autograd
copy the whole gradient once more. Here each image is batch-normalised by itself, which is the same thing, and torch's
batch norm knows channels_last. The activation works in place on memory that nobody saved, and its gradient needs the
sign of the result alone. One image after the other pays on a CPU and for small batches; elsewhere torch's own functions
are taken.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LARGEST_BATCH = 16
"""Images that are worked on one by one; more of them are small ones, and the calls would take longer than the work."""


class InstanceNorm(nn.Module):
    """Each channel of each image to mean 0 and variance 1, a learned scale and shift, and a leaky ReLU or none.

    Args:
        channels: feature maps.
        negative_slope: of the leaky ReLU, greater than 0; None for no activation.
        eps: added to the variance.
    """

    def __init__(self, channels: int, negative_slope: float | None = None, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.negative_slope, self.eps = negative_slope, eps

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) to the same, in the same memory format; statistics are in float32 at least.

        Raises:
            ValueError: a map has a single voxel, whose variance is 0 whatever it holds.
        """
        if x.shape[2:].numel() == 1:
            raise ValueError(f"a map of one voxel cannot be normalised: {tuple(x.shape)}")
        if x.device.type != "cpu" or not 0 < len(x) <= LARGEST_BATCH:
            normalised = F.instance_norm(x, weight=self.weight, bias=self.bias, eps=self.eps)
            return normalised if self.negative_slope is None else F.leaky_relu(normalised, self.negative_slope)
        y: Tensor = _InstanceNorm.apply(x, self.weight, self.bias, self.eps, self.negative_slope)  # type: ignore[no-untyped-call]
        return y


class _InstanceNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, negative_slope: float | None) -> Tensor:
        y = torch.empty_like(x)
        statistics = []
        for image, result in zip(x.chunk(len(x)), y.chunk(len(x)), strict=True):
            normalised, *mean_and_scale = torch.native_batch_norm(image, weight, bias, None, None, True, 0.0, eps)
            result.copy_(normalised)
            statistics.append(torch.stack(mean_and_scale))
        if negative_slope is not None:
            F.leaky_relu_(y, negative_slope)
        ctx.save_for_backward(x, weight, torch.stack(statistics), *((y,) if negative_slope is not None else ()))
        ctx.eps, ctx.negative_slope = eps, negative_slope
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, statistics, *result = ctx.saved_tensors
        if dy.stride() != x.stride():  # batch norm's backward is fast where both lie in the same order
            dy = torch.empty_like(x).copy_(dy)
        if result:
            dy = torch.ops.aten.leaky_relu_backward(dy, result[0], ctx.negative_slope, True)
        dx = torch.empty_like(x)
        of_parameters = []
        images = zip(x.chunk(len(x)), statistics, dy.chunk(len(x)), dx.chunk(len(x)), strict=True)
        for image, (mean, scale), dy_image, dx_image in images:
            given, *others = torch.ops.aten.native_batch_norm_backward(
                dy_image, image, weight, None, None, mean, scale, True, ctx.eps, [True, True, True]
            )
            dx_image.copy_(given)
            of_parameters.append(torch.stack(others))
        dweight, dbias = torch.stack(of_parameters).sum(0)
        return dx, dweight, dbias, None, None
