"""Preprocessing one case: transpose, crop to nonzero, normalise, resample; and the way back to the image's own grid."""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from umamba_cli.pipeline.data import tiff
from umamba_cli.pipeline.data.dataset import Case, DatasetDescription
from umamba_cli.pipeline.data.files import file_state, to_plain
from umamba_cli.pipeline.data.images import Image, file_ending
from umamba_cli.pipeline.data.nonzero import nonzero_box, nonzero_mask
from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.geometry import Box, Grid, Shape, Spacing, numbers_text, resampled_shape, size_text
from umamba_cli.pipeline.planning.plans import Configuration, Plans
from umamba_cli.pipeline.preprocessing.normalization import normalise
from umamba_cli.pipeline.preprocessing.resampling import resample_image, resample_labels
from umamba_cli.pipeline.resources import most_memory_bytes

OUTSIDE = -1
"""The label of voxels outside the nonzero mask: background that normalisation may have left at zero."""

MAX_CLASS_VOXELS = 10_000
"""Voxels noted for each class of a case, and of those that are not ignored, to draw patch centres from."""


@dataclass(frozen=True)
class CaseGeometry:
    """How a preprocessed case came from its image, and so the way back."""

    grid: Grid
    """The image's own grid, before anything was done."""

    transpose: tuple[int, ...]
    """Axis order of the work, from z, y, x."""

    crop: Box
    """What was kept, in the transposed axes."""

    spacing_mm: tuple[float, ...]
    """The image's spacing in the transposed axes."""

    new_spacing_mm: tuple[float, ...]
    """The spacing after resampling, in the transposed axes."""

    new_shape: Shape
    """Voxels after resampling, in the transposed axes."""

    def to_json(self) -> dict[str, Any]:
        """A dictionary for a JSON file."""
        return {
            "grid": self.grid.to_json(),
            "transpose": self.transpose,
            "crop": [self.crop.start, self.crop.stop],
            "spacing_mm": self.spacing_mm,
            "new_spacing_mm": self.new_spacing_mm,
            "new_shape": self.new_shape,
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> CaseGeometry:
        """The geometry that `to_json` wrote."""
        start, stop = content["crop"]
        return cls(
            grid=Grid.from_json(content["grid"]),
            transpose=tuple(content["transpose"]),
            crop=Box(tuple(start), tuple(stop)),
            spacing_mm=tuple(content["spacing_mm"]),
            new_spacing_mm=tuple(content["new_spacing_mm"]),
            new_shape=tuple(content["new_shape"]),
        )

    def labels_on_image_grid(self, labels: NDArray[np.integer[Any]]) -> NDArray[np.integer[Any]]:
        """Put a label map of the cropped region (transposed axes, image's spacing) back: (z, y, x) of the image.

        Outside the crop is background.
        """
        shape = tuple(self.grid.shape[axis] for axis in self.transpose)
        whole = np.zeros(shape, dtype=labels.dtype)
        whole[self.crop.slices] = labels
        back: NDArray[np.integer[Any]] = whole.transpose(np.argsort(self.transpose))
        return back


@dataclass(frozen=True)
class PreprocessedCase:
    """A case as networks see it."""

    image: NDArray[np.float32]
    """(channels, z, y, x)."""

    labels: NDArray[np.integer[Any]] | None
    """(z, y, x), -1 outside the nonzero mask; None for an image to predict."""

    geometry: CaseGeometry


@dataclass(frozen=True)
class CroppedCase:
    """A case in the axis order of the plans, cropped to its nonzero part; arrays of its own, not the image's."""

    voxels: NDArray[np.float32]
    """(channels, z, y, x), intensities as in the file."""

    labels: NDArray[np.signedinteger[Any]] | None
    """(z, y, x), as in the file."""

    grid: Grid
    """The image's own."""

    transpose: tuple[int, ...]
    box: Box
    """What was kept of the transposed image."""


def preprocess(
    image: Image, labels: NDArray[Any] | None, plans: Plans, configuration: Configuration
) -> PreprocessedCase:
    """Transpose, crop to nonzero, normalise and resample one case.

    Args:
        image: as read; it is not changed.
        labels: integers (z, y, x) on the same grid, or None.
        plans: of the dataset.
        configuration: one of the plans' configurations.

    Raises:
        InputError: the image has another number of channels than the plans.
    """
    return normalise_and_resample(crop_case(image, labels, plans), plans, configuration)


def crop_case(image: Image, labels: NDArray[Any] | None, plans: Plans) -> CroppedCase:
    """The first half of `preprocess`; afterwards image and labels may be let go, to save memory.

    Raises:
        InputError: the image has another number of channels than the plans.
    """
    channels = len(plans.foreground_intensity_properties_per_channel)
    if len(image.voxels) != channels:
        raise InputError(
            f"the image has {len(image.voxels)} channels, the plans are made for {channels}",
            next_step="run `umamba plan` again",
        )
    transpose = plans.transpose_forward
    whole = image.voxels.transpose(0, *(axis + 1 for axis in transpose))
    box = nonzero_box(whole)
    voxels = whole[box.slices_of_channels].astype(np.float32, order="C", copy=True)
    cropped = None
    if labels is not None:
        kind = np.int8 if labels.max() < 128 else np.int16
        cropped = labels.transpose(transpose)[box.slices].astype(kind, order="C", copy=True)
    return CroppedCase(voxels, cropped, image.grid, transpose, box)


def normalise_and_resample(case: CroppedCase, plans: Plans, configuration: Configuration) -> PreprocessedCase:
    """The second half of `preprocess`; the cropped case's arrays are worked on in place.

    What is labelled counts as image even where it is zero, as in nnU-Net.

    Raises:
        InputError: at the plans' spacing the case does not fit any memory of this machine.
    """
    inside = nonzero_mask(case.voxels)
    if case.labels is not None:
        inside |= case.labels != 0
        case.labels[~inside] = OUTSIDE
    normalise(case.voxels, inside, plans, configuration)
    del inside
    spacing = tuple(case.grid.spacing_mm[axis] for axis in case.transpose)
    new_spacing = configuration.data_spacing(spacing)
    _require_room(case, spacing, new_spacing)
    new_shape = resampled_shape(case.box.shape, spacing, new_spacing)
    labels: NDArray[np.integer[Any]] | None = case.labels
    if labels is not None:
        of_labels = configuration.resampling_fn_seg_kwargs
        labels = resample_labels(
            labels, new_shape, spacing, new_spacing, order=of_labels.order, separate=of_labels.force_separate_z
        )
    resampling = configuration.resampling_fn_data_kwargs
    return PreprocessedCase(
        image=resample_image(
            case.voxels, new_shape, spacing, new_spacing, order=resampling.order, separate=resampling.force_separate_z
        ),
        labels=labels,
        geometry=CaseGeometry(case.grid, case.transpose, case.box, spacing, new_spacing, new_shape),
    )


def _require_room(case: CroppedCase, spacing_mm: Spacing, new_spacing_mm: Spacing) -> None:
    """A spacing in the wrong unit, of an image or of somebody's plans, asks for a thousand million times the voxels."""
    sizes = zip(case.box.shape, spacing_mm, new_spacing_mm, strict=True)
    needed = case.voxels.itemsize * len(case.voxels) * math.prod(max(1.0, old / new * n) for n, old, new in sizes)
    if needed > (there := most_memory_bytes()):
        raise InputError(
            f"the image, {size_text(case.box.shape)} voxels {numbers_text(spacing_mm)} mm apart, would take "
            f"{needed / 2**30:,.4g} GiB at the plans' {numbers_text(new_spacing_mm)} mm, this machine has "
            f"{there / 2**30:,.4g} GiB",
            next_step="correct the spacing of the image, or that of the plans",
        )


def sample_class_voxels(
    labels: NDArray[np.integer[Any]], classes: Sequence[int], identifier: str
) -> dict[int, NDArray[np.int64]]:
    """Some voxels of each class that the label map (z, y, x) holds, as sorted indices into the raveled volume.

    The draw depends on identifier and class alone, not on the order in which they are worked on.
    """
    found = {}
    flat = labels.ravel()
    for label in classes:
        (indices,) = np.nonzero(flat == label)
        if len(indices) > MAX_CLASS_VOXELS:
            generator = np.random.default_rng((zlib.crc32(identifier.encode()), label))
            indices = np.sort(generator.choice(indices, MAX_CLASS_VOXELS, replace=False))
        if len(indices):
            found[label] = indices.astype(np.int64)
    return found


def sample_annotated_voxels(labels: NDArray[np.integer[Any]], ignore_label: int, identifier: str) -> NDArray[np.int64]:
    """Some voxels of a label map (z, y, x) that are neither ignored nor outside, as sorted indices into the volume.

    As for `sample_class_voxels`, the draw depends on the case alone.
    """
    annotated = (labels > OUTSIDE) & (labels != ignore_label)
    in_planes = np.count_nonzero(annotated, axis=(1, 2))
    total = int(in_planes.sum())
    if total <= MAX_CLASS_VOXELS:
        return np.flatnonzero(annotated)
    generator = np.random.default_rng((zlib.crc32(identifier.encode()), ignore_label))
    chosen = np.sort(generator.choice(total, MAX_CLASS_VOXELS, replace=False))
    # Plane by plane, because indices of all voxels take 8 times the memory of their labels.
    ends = np.cumsum(in_planes)
    planes = np.searchsorted(ends, chosen, side="right")
    found = []
    for index in np.unique(planes):
        within = chosen[planes == index] - (ends[index] - in_planes[index])
        found.append(np.flatnonzero(annotated[index])[within] + index * annotated[index].size)
    return np.concatenate(found).astype(np.int64)


def plans_digest(plans: Plans, configuration: Configuration, description: DatasetDescription) -> str:
    """A fingerprint of all that preprocessing takes from plans and dataset.json; another one: do it again."""
    relevant = {
        "labels": description.known_values,
        "channels": description.num_channels,
        "transpose": plans.transpose_forward,
        "spacing": configuration.spacing,
        "normalization_schemes": configuration.normalization_schemes,
        "use_mask_for_norm": configuration.use_mask_for_norm,
        "intensities": plans.foreground_intensity_properties_per_channel,
        "resampling": [configuration.resampling_fn_data_kwargs, configuration.resampling_fn_seg_kwargs],
    }
    if description.ignore_label is not None:
        relevant["annotated_voxels"] = MAX_CLASS_VOXELS
    return hashlib.sha256(json.dumps(to_plain(relevant), sort_keys=True).encode()).hexdigest()[:16]


def source_state(case: Case) -> list[list[Any]]:
    """Name, size and time of change of the files that a case is made from; None for one that is not there."""
    images = [*case.images, *filter(None, [case.label])]
    spacings = [tiff.spacing_file(path) for path in images if file_ending(path) in tiff.ENDINGS]
    files = (*images, *dict.fromkeys(path for path in spacings if path.is_file()))
    return [[path.name, *file_state(path)] for path in files]
