"""The convolutional building blocks, in any number of dimensions.

Sources: Isensee et al., "nnU-Net", Nature Methods 2021 (convolution, instance norm, leaky ReLU); He et al., "Deep
Residual Learning", CVPR 2016 (the residual block); He et al., "Bag of Tricks", CVPR 2019, figure 2c (the pooled
shortcut of ResNet-D, which nnU-Net's residual encoder has).

What a Mamba layer gives out is not bounded, and float16 ends at 65,504. A block whose input comes from a Mamba layer
without a norm in between is told so by `unbounded`: what takes that input then runs in float32 where autocast is set to
float16. Behind an instance norm all is bounded again.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from umamba_cli.pipeline.networks.architecture import ShortcutKind
from umamba_cli.pipeline.networks.normalization import InstanceNorm

NEGATIVE_SLOPE = 0.01


class Convolution3d(nn.Conv3d):
    """A 3D convolution whose weights get right gradients on a CPU also where a map is shorter than the kernel.

    There PyTorch's own one reads memory that was never written when it computes the weights' gradient in bfloat16
    (torch 2.13, oneDNN): sometimes it is not finite, sometimes just wrong, and with a kernel of 7 the process may end.
    Such small maps cost nothing in float32.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, z, y, x) to (B, outputs, ...)."""
        is_short = any(n < k for n, k in zip(x.shape[2:], self.kernel_size, strict=True))
        if not (is_short and x.device.type == "cpu" and _autocast_takes(torch.bfloat16, "cpu")):
            return super().forward(x)
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.float()).to(torch.bfloat16)


def guard_convolutions(network: nn.Module) -> None:
    """Make `Convolution3d` of the 3D convolutions of someone else's network."""
    for module in network.modules():
        if type(module) is nn.Conv3d:
            module.__class__ = Convolution3d


CONVOLUTION: dict[int, type[nn.Conv2d] | type[nn.Conv3d]] = {2: nn.Conv2d, 3: Convolution3d}
TRANSPOSED: dict[int, type[nn.ConvTranspose2d] | type[nn.ConvTranspose3d]] = {
    2: nn.ConvTranspose2d,
    3: nn.ConvTranspose3d,
}
AVERAGE_POOLING: dict[int, type[nn.AvgPool2d] | type[nn.AvgPool3d]] = {2: nn.AvgPool2d, 3: nn.AvgPool3d}


def convolution(
    inputs: int, outputs: int, kernel_size: Sequence[int], stride: Sequence[int] | None = None, *, bias: bool = True
) -> nn.Module:
    """A convolution padded so that stride 1 keeps the size; the number of axes is that of `kernel_size`."""
    axes = len(kernel_size)
    return CONVOLUTION[axes](
        inputs,
        outputs,
        tuple(kernel_size),  # type: ignore[arg-type]
        stride=tuple(stride or (1,) * axes),  # type: ignore[arg-type]
        padding=tuple((k - 1) // 2 for k in kernel_size),  # type: ignore[arg-type]
        bias=bias,
    )


def apply_to(x: Tensor, layer: nn.Module, *, unbounded: bool) -> Tensor:
    """`layer(x)`; where `x` is unbounded and autocast is set to float16, in float32."""
    if unbounded and _autocast_takes(torch.float16, x.device.type):
        with torch.autocast(x.device.type, enabled=False):
            wide: Tensor = layer(x.float() if x.dtype == torch.float16 else x)
            return wide
    y: Tensor = layer(x)
    return y


def _autocast_takes(kind: torch.dtype, device_type: str) -> bool:
    if device_type == "meta":  # it knows no autocast
        return False
    return torch.is_autocast_enabled(device_type) and torch.get_autocast_dtype(device_type) == kind


def initialise(module: nn.Module) -> None:
    """He et al. 2015, for leaky ReLU, as nnU-Net does; for `Module.apply`. Other layers keep their initialisation."""
    if isinstance(module, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        nn.init.kaiming_normal_(module.weight, a=NEGATIVE_SLOPE)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class ConvolutionBlock(nn.Module):
    """Convolution, instance norm, leaky ReLU (the latter optional, for the end of a residual branch)."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel_size: Sequence[int],
        stride: Sequence[int] | None = None,
        *,
        activation: bool = True,
        unbounded: bool = False,
    ) -> None:
        super().__init__()
        self._unbounded = unbounded
        self.conv = convolution(inputs, outputs, kernel_size, stride)
        self.norm = InstanceNorm(outputs, NEGATIVE_SLOPE if activation else None)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, ...) to (B, outputs, ...)."""
        y: Tensor = self.norm(apply_to(x, self.conv, unbounded=self._unbounded))
        return y


class Shortcut(nn.Module):
    """A 1x1 convolution with a stride: take every stride-th voxel, then convolve.

    It is written in two steps because PyTorch's own strided one crashes in backward, or writes where it must not, for 8
    channels_last feature maps on a CPU with AVX-512 (torch 2.13, oneDNN).
    """

    def __init__(
        self, inputs: int, outputs: int, stride: Sequence[int], *, bias: bool = True, unbounded: bool = False
    ) -> None:
        super().__init__()
        self._unbounded = unbounded
        self.conv = convolution(inputs, outputs, (1,) * len(stride), bias=bias)
        self._every = (slice(None), slice(None), *(slice(None, None, step) for step in stride))

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, ...) to (B, outputs, ... / stride)."""
        return apply_to(x[self._every], self.conv, unbounded=self._unbounded)


class PooledShortcut(nn.Module):
    """The average over the stride, then, where the width changes, a 1x1 convolution without bias and a norm."""

    def __init__(self, inputs: int, outputs: int, stride: Sequence[int], *, unbounded: bool = False) -> None:
        super().__init__()
        self._unbounded = unbounded
        axes = len(stride)
        strided = any(step > 1 for step in stride)
        self.pool = AVERAGE_POOLING[axes](tuple(stride)) if strided else nn.Identity()  # type: ignore[arg-type]
        widens = inputs != outputs
        self.conv = convolution(inputs, outputs, (1,) * axes, bias=False) if widens else nn.Identity()
        self.norm = InstanceNorm(outputs) if widens else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, ...) to (B, outputs, ... / stride)."""
        y: Tensor = self.norm(apply_to(self.pool(x), self.conv, unbounded=self._unbounded))
        return y


class ResidualBlock(nn.Module):
    """Two convolutions around which the input is added, through a shortcut where size or width change.

    Source: U-Mamba, arXiv 2401.04722, figure 1 (residual block): the shortcut is a 1x1 convolution without a norm.
    `starts_stage` says that the block is the first of its stage, see `Architecture.shortcut`.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel_size: Sequence[int],
        stride: Sequence[int] | None = None,
        *,
        shortcut: ShortcutKind = "convolution",
        starts_stage: bool = False,
        unbounded: bool = False,
    ) -> None:
        super().__init__()
        stride = stride or (1,) * len(kernel_size)
        self.first = ConvolutionBlock(inputs, outputs, kernel_size, stride, unbounded=unbounded)
        self.second = ConvolutionBlock(outputs, outputs, kernel_size, activation=False)
        changes = inputs != outputs or any(s > 1 for s in stride)
        self.shortcut: nn.Module = nn.Identity()
        if shortcut == "pooling":
            self.shortcut = PooledShortcut(inputs, outputs, stride, unbounded=unbounded) if changes else self.shortcut
        elif changes or (starts_stage and shortcut == "convolution_each_stage"):
            self.shortcut = Shortcut(inputs, outputs, stride, unbounded=unbounded)
        self.activation = nn.LeakyReLU(NEGATIVE_SLOPE, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, ...) to (B, outputs, ...)."""
        y: Tensor = self.activation(self.second(self.first(x)) + self.shortcut(x))
        return y


class NearestUpsampling(nn.Module):
    """Every voxel repeated along each axis, and a 1x1 convolution.

    The convolution comes first, where there are fewer voxels; the result is the same.
    """

    def __init__(self, inputs: int, outputs: int, stride: Sequence[int]) -> None:
        super().__init__()
        self.conv = convolution(inputs, outputs, (1,) * len(stride))
        self._factors = [float(step) for step in stride]

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, ...) to (B, outputs, ... * stride)."""
        return interpolate(self.conv(x), scale_factor=self._factors, mode="nearest")
