"""How the plans say that arrays are resampled, in nnU-Net's keys."""

from __future__ import annotations

from typing import Literal

import pydantic

ResamplingName = Literal["resample_data_or_seg_to_shape"]
RESAMPLING: ResamplingName = "resample_data_or_seg_to_shape"
"""nnU-Net's name of the one way that is known here."""


class Resampling(pydantic.BaseModel):
    """How images or probabilities are brought to another number of voxels. Keys that are not used here are kept."""

    model_config = pydantic.ConfigDict(extra="allow", frozen=True)

    order: Literal[0, 1, 3]
    """Of the splines: nearest voxel, linear, cubic."""

    order_z: Literal[0] = 0
    """Of the axis that is resampled apart: always the nearest voxel."""

    force_separate_z: bool | None = None
    """Whether the coarsest axis is resampled apart; None: where it is more than three times coarser than another."""


class LabelResampling(Resampling):
    """How label maps are brought to another number of voxels."""

    order: Literal[0, 1]
    """The nearest voxel's label, or the one with the largest linearly interpolated share."""
