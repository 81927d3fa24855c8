"""What a network is made of, as one frozen value: what plans decide, and what sets the models apart."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from umamba_cli.pipeline.errors import InputError

Axes = tuple[int, ...]


@dataclass(frozen=True)
class Architecture:
    """A U-Net in two or three dimensions.

    Contradictions are refused when it is built.
    """

    input_channels: int
    """Channels of the image."""

    outputs: int
    """Channels of the result: one a class."""

    features_per_stage: tuple[int, ...]
    """Feature maps of each stage, full resolution first."""

    strides: tuple[Axes, ...]
    """Downsampling at the entry of each stage, by axis; ones for the first."""

    kernel_sizes: tuple[Axes, ...]
    """Kernel size of each stage, by axis."""

    blocks_per_stage: tuple[int, ...]
    """Blocks in each stage of the encoder."""

    blocks_per_stage_decoder: tuple[int, ...]
    """Blocks in each stage of the decoder, lowest resolution last: entry i works at the resolution of stage i."""

    block: Literal["plain", "residual"] = "plain"
    """Plain convolutions as in nnU-Net's U-Net, or residual blocks as in U-Mamba."""

    stem: bool = False
    """Blocks at full resolution before the first stage, as U-Mamba has them."""

    mamba: Literal["none", "bottleneck", "encoder"] = "none"
    """Where Mamba layers stand: nowhere, after the last stage, or after every stage of the encoder."""

    def __post_init__(self) -> None:
        stages = len(self.features_per_stage)
        if stages < 2:
            raise _contradiction(f"a U-Net needs at least 2 stages, the plan has {stages}")
        for name, expected in (
            ("strides", stages),
            ("kernel_sizes", stages),
            ("blocks_per_stage", stages),
            ("blocks_per_stage_decoder", stages - 1),
        ):
            if len(getattr(self, name)) != expected:
                raise _contradiction(f"{name} has {len(getattr(self, name))} entries, {expected} are needed")
        if any(len(axes) != self.dimensions for axes in (*self.strides, *self.kernel_sizes)):
            raise _contradiction(f"strides and kernel_sizes differ in their number of axes: {self.strides}")
        if self.dimensions not in (2, 3):
            raise _contradiction(f"networks have 2 or 3 dimensions, the plan has {self.dimensions}")
        if any(k % 2 == 0 for axes in self.kernel_sizes for k in axes):
            raise _contradiction(f"kernel sizes must be odd, they are {self.kernel_sizes}")

    @property
    def dimensions(self) -> int:
        """2 or 3."""
        return len(self.strides[0])

    @property
    def divisor(self) -> Axes:
        """What the size of an input must be a multiple of, by axis."""
        return tuple(math.prod(stage[axis] for stage in self.strides) for axis in range(self.dimensions))

    def to_json(self) -> dict[str, Any]:
        """A dictionary for a JSON file."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Architecture:
        """The architecture that `to_json` wrote."""
        return cls(**{name: _tuples(value) for name, value in content.items()})


def _contradiction(problem: str) -> InputError:
    return InputError(problem, next_step="correct the architecture in plans.json, or plan again")


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list | tuple) else value
