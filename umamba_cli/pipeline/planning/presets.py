"""What a preset fixes: the kind of network, the memory that it is measured against, and how long it trains.

Source: nnU-Net's planners (the default one; ResEncM, ResEncL and ResEncXL of Isensee et al. 2024, "nnU-Net Revisited").
`cpu` is ours.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from umamba_cli.pipeline.planning.plans import TrainingDefaults

PresetName = Literal["default", "resenc-m", "resenc-l", "resenc-xl", "cpu"]

BATCH_AT_REFERENCE = {2: 12, 3: 2}
"""Batch sizes, by dimensions, at which the reference networks were measured."""

SMALLEST_BATCH = 2


@dataclass(frozen=True)
class Features:
    """Feature maps at full resolution, doubled from stage to stage up to a limit."""

    first: int = 32
    most_2d: int = 512
    most_3d: int = 320

    def per_stage(self, stages: int, dimensions: int) -> tuple[int, ...]:
        """Feature maps of each stage, from full resolution down."""
        most = self.most(dimensions)
        return tuple(min(most, self.first * 2**stage) for stage in range(stages))

    def most(self, dimensions: int) -> int:
        """The limit in 2 or 3 dimensions."""
        return self.most_2d if dimensions == 2 else self.most_3d


@dataclass(frozen=True)
class Preset:
    """One way to plan."""

    name: PresetName
    residual: bool
    """A residual encoder, or a plain one."""

    memory_gb: float
    """GPU memory that the references fill."""

    reference_2d: int
    reference_3d: int
    """Numbers in the feature maps (see `memory.py`) of one image of a network that fills `memory_gb`."""

    fitted_batch_2d: int = SMALLEST_BATCH
    """In 2D, the patch must be small enough for this batch size."""

    most_of_dataset: float = 1.0
    """One batch sees at most this share of the dataset's voxels."""

    features: Features = field(default_factory=Features)
    """Of the network trained; memory is always judged with the default ones."""

    residual_blocks: int | None = None
    """Residual blocks of each stage of U-Mamba's networks; None: as many as a plain stage has convolutions."""

    batch_size: int | None = None
    """None: as many as fit."""

    most_voxels_2d: int | None = None
    most_voxels_3d: int | None = None
    """Limit on the voxels of a patch, whatever fits the memory."""

    training: TrainingDefaults = field(default_factory=TrainingDefaults)

    def reference(self, dimensions: int) -> int:
        """The reference figure in 2 or 3 dimensions."""
        return self.reference_2d if dimensions == 2 else self.reference_3d

    def fitted_batch(self, dimensions: int) -> int:
        """The batch size that the patch must leave room for."""
        return self.fitted_batch_2d if dimensions == 2 else SMALLEST_BATCH

    def most_voxels(self, dimensions: int) -> int | None:
        """The limit on a patch's voxels in 2 or 3 dimensions."""
        return self.most_voxels_2d if dimensions == 2 else self.most_voxels_3d

    def encoder_layers(self, stages: int) -> tuple[int, ...]:
        """Convolutions (plain) or residual blocks (residual) of each encoder stage: most where maps are small."""
        if not self.residual:
            return (2,) * stages
        return ((1, 3, 4) + (6,) * stages)[:stages]

    def decoder_layers(self, stages: int) -> tuple[int, ...]:
        """Convolutions of each decoder stage: a residual encoder leaves the decoder one."""
        return (1 if self.residual else 2,) * (stages - 1)


def _residual(name: PresetName, memory_gb: float, reference_2d: int, reference_3d: int) -> Preset:
    return Preset(name, True, memory_gb, reference_2d, reference_3d, fitted_batch_2d=BATCH_AT_REFERENCE[2])


_DEFAULT = Preset("default", False, 8, reference_2d=85_000_000, reference_3d=560_000_000, most_of_dataset=0.05)

PRESETS: dict[PresetName, Preset] = {
    "default": _DEFAULT,
    "resenc-m": _residual("resenc-m", 8, 135_000_000, 680_000_000),
    "resenc-l": _residual("resenc-l", 24, 380_000_000, 2_100_000_000),
    "resenc-xl": _residual("resenc-xl", 40, 560_000_000, 3_600_000_000),
    "cpu": replace(
        _DEFAULT,
        name="cpu",
        features=Features(first=8, most_2d=64, most_3d=64),
        residual_blocks=1,
        batch_size=2,
        most_voxels_2d=65_536,
        most_voxels_3d=100_000,
        training=TrainingDefaults(epochs=30, iterations=60),
    ),
}
