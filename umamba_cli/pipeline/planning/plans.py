"""`plans.json`: every decision drawn from the fingerprint, in nnU-Net's keys.

nnU-Net's own plans load as they are; keys that are not used here are kept. The configurations stay as they were
written, so that an edited file reads back as its editor left it; `Plans.configuration` hands out one of them resolved.

Source: the plans files of nnU-Net (Isensee et al. 2021, Nature Methods), version 2.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field
from pydantic_core import InitErrorDetails, PydanticCustomError

from umamba_cli.pipeline.data.files import read_model, write_json
from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.geometry import Spacing
from umamba_cli.pipeline.planning.resampling import RESAMPLING, LabelResampling, Resampling, ResamplingName

Count = Annotated[int, Field(ge=1)]
Size = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Number = Annotated[float, Field(allow_inf_nan=False)]
PerAxis = Annotated[tuple[Count, ...], Field(min_length=2, max_length=3)]
SizePerAxis = Annotated[tuple[Size, ...], Field(min_length=2, max_length=3)]
Axis = Annotated[int, Field(ge=0, le=2)]
Normalization = Literal[
    "CTNormalization",
    "ZScoreNormalization",
    "NoNormalization",
    "RescaleTo01Normalization",
    "RGBTo01Normalization",
]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""What a configuration may be called: it names folders."""

_MOST_VOXELS = 512**3
"""Of a patch: beyond all that fits a device. A file of someone else's shall not fill the memory."""


class _Model(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow", frozen=True, populate_by_name=True)


class IntensityProperties(_Model):
    """Statistics of one channel over the foreground of all cases."""

    max: Number
    mean: Number
    median: Number
    min: Number
    percentile_00_5: Number
    percentile_99_5: Number
    std: Number


class TrainingDefaults(_Model):
    """How long a training lasts unless the command says otherwise."""

    epochs: Count = 1000
    iterations: Count = 250
    """Optimiser steps an epoch."""


class NetworkArguments(_Model):
    """The shape of the U-Net (`arch_kwargs`), stages from full resolution down."""

    n_stages: Count

    strides: Annotated[tuple[PerAxis, ...], Field(min_length=1)]
    """Downsampling at the entry of each stage."""

    kernel_sizes: Annotated[tuple[PerAxis, ...], Field(min_length=1)]
    features_per_stage: tuple[Count, ...]

    n_conv_per_stage: tuple[Count, ...] | None = None
    """Convolutions of each encoder stage of a plain U-Net."""

    n_blocks_per_stage: tuple[Count, ...] | None = None
    """Residual blocks of each encoder stage of a residual-encoder U-Net."""

    n_conv_per_stage_decoder: tuple[Count, ...]
    """Convolutions of each decoder stage, from the lowest resolution up."""

    n_blocks_per_stage_decoder: tuple[Count, ...] | None = None
    """Residual blocks of each decoder stage, likewise, where the decoder has such blocks; nnU-Net writes none."""

    conv_op: str
    conv_bias: bool = True
    norm_op: str | None = None
    norm_op_kwargs: dict[str, Any] | None = None
    dropout_op: str | None = None
    dropout_op_kwargs: dict[str, Any] | None = None
    nonlin: str | None = None
    nonlin_kwargs: dict[str, Any] | None = None

    @pydantic.field_validator("strides", "kernel_sizes", "features_per_stage", "n_conv_per_stage", "n_blocks_per_stage")
    @classmethod
    def _one_entry_a_stage(cls, entries: Any, info: pydantic.ValidationInfo) -> Any:
        return _require_length(entries, info.data.get("n_stages"), "one for each of n_stages")

    @pydantic.field_validator("n_conv_per_stage_decoder", "n_blocks_per_stage_decoder")
    @classmethod
    def _one_entry_a_decoder_stage(cls, entries: Any, info: pydantic.ValidationInfo) -> Any:
        stages = info.data.get("n_stages")
        return _require_length(entries, stages and stages - 1, "one less than n_stages")

    @pydantic.field_validator("strides", "kernel_sizes")
    @classmethod
    def _one_number_an_axis(
        cls, entries: tuple[tuple[int, ...], ...], info: pydantic.ValidationInfo
    ) -> tuple[tuple[int, ...], ...]:
        axes = len(info.data.get("strides", entries)[0])
        if any(len(entry) != axes for entry in entries):
            raise ValueError(f"every entry must have {axes} numbers, as the first of strides has")
        return entries

    @pydantic.model_validator(mode="after")
    def _encoder_has_layers(self) -> NetworkArguments:
        if self.n_conv_per_stage is None and self.n_blocks_per_stage is None:
            raise ValueError("must have n_conv_per_stage or n_blocks_per_stage")
        return self


class Architecture(_Model):
    """The network by nnU-Net's class name, and its arguments."""

    network_class_name: str
    arch_kwargs: NetworkArguments
    kw_requires_import: tuple[str, ...] = Field(default=(), alias="_kw_requires_import")


class Configuration(_Model):
    """One way to work on the dataset, inheritance resolved. Axes are in the transposed order of the plans.

    A 2D configuration has two numbers an axis entry, y and x: slices along the first axis are segmented one by one.
    """

    name: str
    """Its key in `Plans.configurations`."""

    data_identifier: str | None = None
    preprocessor_name: str | None = None
    batch_size: Count
    # First of the things that depend on each other: what follows is compared with it.
    architecture: Architecture

    spacing: SizePerAxis
    """Millimetres between voxels of the preprocessed images."""

    patch_size: PerAxis
    """Voxels of the patches trained on, a multiple of the product of the strides along each axis."""

    median_image_size_in_voxels: SizePerAxis
    """Median size of the preprocessed images."""

    normalization_schemes: Annotated[tuple[Normalization, ...], Field(min_length=1)]
    """One for each channel."""

    use_mask_for_norm: tuple[bool, ...]
    """For each channel: are mean and standard deviation taken inside the nonzero mask only?"""

    batch_dice: bool = False
    """True: the Dice loss sees the batch as one image; False: one Dice for each image, averaged."""

    resampling_fn_data: ResamplingName = RESAMPLING
    resampling_fn_data_kwargs: Resampling = Resampling(order=3)
    resampling_fn_seg: ResamplingName = RESAMPLING
    resampling_fn_seg_kwargs: LabelResampling = LabelResampling(order=1)
    resampling_fn_probabilities: ResamplingName = RESAMPLING
    resampling_fn_probabilities_kwargs: Resampling = Resampling(order=1)

    previous_stage: str | None = None
    """The configuration whose segmentation is an input of this one (cascade)."""

    next_stage: str | tuple[str, ...] | None = None

    @pydantic.field_validator("spacing", "patch_size", "median_image_size_in_voxels")
    @classmethod
    def _as_many_axes_as_the_network(cls, sizes: Any, info: pydantic.ValidationInfo) -> Any:
        architecture = info.data.get("architecture")
        axes = architecture and len(architecture.arch_kwargs.strides[0])
        return _require_length(sizes, axes, "as the entries of architecture.arch_kwargs.strides have")

    @pydantic.field_validator("patch_size")
    @classmethod
    def _patch_can_be_halved(cls, patch: tuple[int, ...], info: pydantic.ValidationInfo) -> tuple[int, ...]:
        architecture = info.data.get("architecture")
        if math.prod(patch) > _MOST_VOXELS:
            raise ValueError(f"must not have more than {_MOST_VOXELS} voxels")
        if architecture is None:
            return patch
        divisors = tuple(math.prod(axis) for axis in zip(*architecture.arch_kwargs.strides, strict=True))
        if any(size % divisor for size, divisor in zip(patch, divisors, strict=True)):
            allowed = ", ".join(str(divisor) for divisor in divisors)
            raise ValueError(f"must be multiples of {allowed}, the product of the strides along each axis")
        if all(size == divisor for size, divisor in zip(patch, divisors, strict=True)):
            raise ValueError("leaves a single voxel at the lowest resolution, must be twice as large along some axis")
        return patch

    @pydantic.field_validator("use_mask_for_norm")
    @classmethod
    def _one_mask_a_channel(cls, masks: Any, info: pydantic.ValidationInfo) -> Any:
        schemes = info.data.get("normalization_schemes")
        return _require_length(masks, schemes and len(schemes), "as normalization_schemes has")

    @property
    def dimensions(self) -> int:
        """2 or 3."""
        return len(self.patch_size)

    @property
    def network(self) -> NetworkArguments:
        """Stages, features, strides and kernels."""
        return self.architecture.arch_kwargs

    def data_spacing(self, spacing_mm: Sequence[float]) -> Spacing:
        """The spacing to resample a case to, three axes; a 2D configuration leaves the first axis as it is.

        Args:
            spacing_mm: the case's own spacing, transposed.
        """
        return (*spacing_mm[: 3 - self.dimensions], *self.spacing)


class Plans(_Model):
    """Every decision drawn from one dataset's fingerprint."""

    dataset_name: str
    plans_name: str

    original_median_spacing_after_transp: tuple[Size, ...]
    original_median_shape_after_transp: tuple[Count, ...]
    image_reader_writer: str | None = None

    transpose_forward: tuple[Axis, Axis, Axis]
    """Axis order to work in: the coarsest axis comes first."""

    transpose_backward: tuple[Axis, Axis, Axis]
    """The inverse of `transpose_forward`."""

    foreground_intensity_properties_per_channel: Annotated[dict[str, IntensityProperties], Field(min_length=1)]
    """Channel index to statistics."""

    preset: str = "default"
    training: TrainingDefaults = TrainingDefaults()

    configurations: dict[str, dict[str, Any]] = Field(min_length=1)
    """As written; `inherits_from` names a configuration whose values hold wherever this one gives none."""

    @pydantic.field_validator("transpose_forward")
    @classmethod
    def _every_axis_once(cls, axes: tuple[int, int, int]) -> tuple[int, int, int]:
        if sorted(axes) != [0, 1, 2]:
            raise ValueError("must hold 0, 1 and 2, each once")
        return axes

    @pydantic.field_validator("transpose_backward")
    @classmethod
    def _undoes_the_transpose(cls, axes: tuple[int, int, int], info: pydantic.ValidationInfo) -> tuple[int, int, int]:
        forward = info.data.get("transpose_forward")
        if forward is not None and tuple(forward[axis] for axis in axes) != (0, 1, 2):
            inverse = [forward.index(axis) for axis in range(3)]
            raise ValueError(f"must be {inverse}, the inverse of transpose_forward")
        return axes

    @pydantic.field_validator("foreground_intensity_properties_per_channel")
    @classmethod
    def _channels_are_counted(cls, channels: dict[str, IntensityProperties]) -> dict[str, IntensityProperties]:
        if set(channels) != {str(index) for index in range(len(channels))}:
            raise ValueError(f"must have the keys 0 to {len(channels) - 1}, one for each channel")
        return channels

    @pydantic.field_validator("configurations")
    @classmethod
    def _configurations_are_valid(
        cls, written: dict[str, dict[str, Any]], info: pydantic.ValidationInfo
    ) -> dict[str, dict[str, Any]]:
        for name, keys in written.items():
            if not _NAME.fullmatch(name):
                raise _complaint(
                    (name,), "must be named with letters, digits, '.', '-' and '_', a letter or digit first", name
                )
            if misspelt := _misspelt(keys):
                raise _complaint((name, misspelt[0]), f"is not known, did you mean {misspelt[1]}?", keys[misspelt[0]])
        # Parents first: what is wrong with a parent is reported once, not again for each child.
        _CONFIGURATIONS.validate_python(_resolved({k: v for k, v in written.items() if "inherits_from" not in v}))
        configurations = _CONFIGURATIONS.validate_python(_resolved(written))
        channels = len(info.data.get("foreground_intensity_properties_per_channel", ()))
        for name, configuration in configurations.items():
            if channels and len(configuration.normalization_schemes) != channels:
                problem = f"must have {channels} entries, as foreground_intensity_properties_per_channel has"
                raise _complaint((name, "normalization_schemes"), problem, configuration.normalization_schemes)
            if configuration.previous_stage not in (None, *written):
                problem = f"must be one of {', '.join(written)}"
                raise _complaint((name, "previous_stage"), problem, configuration.previous_stage)
        return written

    @cached_property
    def _configurations(self) -> dict[str, Configuration]:
        return _CONFIGURATIONS.validate_python(_resolved(self.configurations))

    def configuration(self, name: str) -> Configuration:
        """One configuration, inheritance resolved.

        Raises:
            InputError: the plans have none of that name.
        """
        if name not in self._configurations:
            raise InputError(
                f"the plans of {self.dataset_name} have no configuration {name!r}",
                next_step=f"choose one of {', '.join(self.configurations)}",
            )
        return self._configurations[name]


_CONFIGURATIONS = pydantic.TypeAdapter(dict[str, Configuration])


def read_plans(path: Path) -> Plans:
    """Read and validate a plans file.

    Raises:
        InputError: the file cannot be read, or a key does not hold what is allowed; every such key is listed.
    """
    return read_model(path, Plans, next_step="run `umamba plan` first, or once more where it was stopped")


def write_plans(path: Path, plans: Plans) -> None:
    """Write a plans file, whole or not at all.

    Raises:
        WorkError: the file cannot be written.
    """
    write_json(path, plans)


def _resolved(written: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """All configurations with the values that they inherit; a child's value replaces its parent's as a whole."""
    return {name: {**_with_inherited(name, written), "name": name} for name in written}


def _with_inherited(
    name: str, written: Mapping[str, Mapping[str, Any]], descendants: tuple[str, ...] = ()
) -> dict[str, Any]:
    own = dict(written[name])
    parent = own.pop("inherits_from", None)
    if parent is None:
        return own
    lineage = (*descendants, name)
    if not isinstance(parent, str) or parent not in written:
        raise _complaint((name, "inherits_from"), f"must be one of {', '.join(written)}", parent)
    if parent in lineage:
        raise _complaint((name, "inherits_from"), f"runs in a circle: {' -> '.join((*lineage, parent))}", parent)
    return {**_with_inherited(parent, written, lineage), **own}


def _misspelt(configuration: Mapping[str, Any]) -> tuple[str, str] | None:
    """A key that is none of a configuration's but much like one, and that one; other unknown keys are kept."""
    known = [*Configuration.model_fields, "inherits_from"]
    for key in configuration.keys() - set(known):
        if likely := difflib.get_close_matches(key, known, n=1, cutoff=0.85):
            return key, likely[0]
    return None


def _require_length(values: Any, length: int | None, why: str) -> Any:
    """The values themselves where there are `length` of them; unchecked where either is unknown."""
    if values is not None and length is not None and len(values) != length:
        raise ValueError(f"must have {length} entries, {why}, has {len(values)}")
    return values


def _complaint(place: tuple[str, ...], problem: str, value: object) -> pydantic.ValidationError:
    """An error of one key, for a validator to raise: pydantic puts the validated field's own key in front."""
    error = InitErrorDetails(
        type=PydanticCustomError("plans", "{problem}", {"problem": problem}), loc=place, input=value
    )
    return pydantic.ValidationError.from_exception_data("Plans", [error])
