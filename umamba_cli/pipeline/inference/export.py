"""From logits on the preprocessed grid to labels on the image's own grid."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from umamba_cli.pipeline.data.dataset import DatasetDescription
from umamba_cli.pipeline.geometry import Box, Shape, Spacing
from umamba_cli.pipeline.inference.finer_grid import FinerGrid
from umamba_cli.pipeline.inference.tile_sums import Slab, array_in_file
from umamba_cli.pipeline.planning.plans import Configuration
from umamba_cli.pipeline.preprocessing.case import CaseGeometry
from umamba_cli.pipeline.preprocessing.resampling import resample_image, thick_axis


@dataclass(frozen=True)
class Wanted:
    """What is wanted of a case besides its labels."""

    probabilities: bool = False
    """Of each output at each voxel: the softmax of the averaged logits, as nnU-Net has it."""

    uncertainty: bool = False
    """The entropy of the averaged softmax (folds and mirrorings)."""


LABELS_ALONE = Wanted()


@dataclass(frozen=True)
class Exported:
    """What was found in an image, on its own grid."""

    labels: NDArray[np.unsignedinteger[Any]]
    """(z, y, x)."""

    probabilities: NDArray[np.float32] | None
    """(outputs, z, y, x), in a temporary file; None where they were not asked for."""

    uncertainty: NDArray[np.float32] | None
    """(z, y, x), see `UncertaintyExport`; None where it was not asked for."""

    sums: str
    """Where the sums of tiles lay, see `tile_sums.PLACES`."""


class CaseExport:
    """All that is wanted of a case, made slab by slab."""

    def __init__(
        self, geometry: CaseGeometry, configuration: Configuration, dataset: DatasetDescription, wanted: Wanted
    ) -> None:
        """Arguments are those of `LabelExport`, and what is wanted."""
        how = geometry, configuration, dataset
        self._planes = geometry.new_shape[0]
        self._outputs = dataset.num_outputs
        self._labels = LabelExport(*how)
        self._probabilities = ProbabilityExport(*how) if wanted.probabilities else None
        self._uncertainty = UncertaintyExport(*how) if wanted.uncertainty else None

    def take(self, slab: Slab) -> Exported | None:
        """Go on with the next slab: logits, followed by mean probabilities where uncertainty is wanted.

        Returns:
            What was found, after the last slab.
        """
        logits = replace(slab, values=slab.values[..., : self._outputs])
        self._labels.take(logits)
        if self._probabilities is not None:
            self._probabilities.take(logits)
        if self._uncertainty is not None:
            self._uncertainty.take(replace(slab, values=slab.values[..., self._outputs :]))
        if slab.planes.stop < self._planes:
            return None
        return Exported(
            self._labels.finish(),
            self._probabilities.finish() if self._probabilities else None,
            self._uncertainty.finish() if self._uncertainty else None,
            slab.place,
        )


class LabelExport:
    """The label map of an image on its own grid, made from its logits slab by slab."""

    def __init__(self, geometry: CaseGeometry, configuration: Configuration, dataset: DatasetDescription) -> None:
        """A label map that is background everywhere.

        Args:
            geometry: how the case was preprocessed.
            configuration: of the plans; says how probabilities are resampled.
            dataset: says what the outputs are.
        """
        self._dataset = dataset
        self._whole = _OnImageGrid(geometry, label_type(dataset))
        self._slabs = _Slabs(geometry, configuration)

    def take(self, slab: Slab) -> None:
        """Go on with the next slab of logits."""
        for grid, part in self._slabs.ready(slab):
            for planes, labels in grid.labels(part, lambda values: _labels_of(values, self._dataset)):
                self._whole.crop[planes] = labels

    def finish(self) -> NDArray[np.unsignedinteger[Any]]:
        """The label map (z, y, x) on the image's grid, after all slabs."""
        return self._whole.array


class ProbabilityExport:
    """The probability of each output at each voxel of an image, made slab by slab in a temporary file.

    Outside the crop the background has probability 1, and every region 0.
    """

    def __init__(
        self,
        geometry: CaseGeometry,
        configuration: Configuration,
        dataset: DatasetDescription,
        *,
        into: NDArray[np.float32] | None = None,
    ) -> None:
        """Probabilities are added to `into`, (outputs, z, y, x) on the image's grid; without it, to a new file.

        The other arguments are those of `LabelExport`.
        """
        self._dataset = dataset
        self._whole = _OnImageGrid(geometry, np.float32, channels=dataset.num_outputs, array=into)
        if not dataset.has_regions:
            for part in _around(geometry.crop, self._whole.array[0].transpose(geometry.transpose)):
                np.add(part, 1, out=part)
        self._slabs = _Slabs(geometry, configuration)

    def take(self, slab: Slab) -> None:
        """Go on with the next slab of logits."""
        for grid, part in self._slabs.ready(slab):
            for planes, values in grid.values(part):
                probabilities = probabilities_of_logits(values, self._dataset, axis=-1)
                self._whole.crop[:, planes] += probabilities.movedim(-1, 0).cpu().numpy()

    def finish(self) -> NDArray[np.float32]:
        """float32 (outputs, z, y, x) on the image's grid, after all slabs."""
        return self._whole.array


class UncertaintyExport:
    """How undecided the mean of several probabilities is at each voxel of an image, made slab by slab.

    Its entropy in nats: 0 where all agree on one label, ln(labels) where every label is as likely. With regions, which
    are decided on one by one, the sum of their entropies. Outside the crop it is 0.
    """

    def __init__(self, geometry: CaseGeometry, configuration: Configuration, dataset: DatasetDescription) -> None:
        """Arguments are those of `LabelExport`."""
        self._dataset = dataset
        self._whole = _OnImageGrid(geometry, np.float32)
        self._slabs = _Slabs(geometry, configuration)

    def take(self, slab: Slab) -> None:
        """Go on with the next slab of mean probabilities."""
        for grid, part in self._slabs.ready(slab):
            for planes, values in grid.values(part):
                self._whole.crop[planes] = entropy(values, self._dataset).cpu().numpy()

    def finish(self) -> NDArray[np.float32]:
        """float32 (z, y, x) on the image's grid, in nats, after all slabs."""
        return self._whole.array


class _OnImageGrid:
    """An array on the image's grid, and the view of it that the crop is, in the transposed axes."""

    def __init__(
        self,
        geometry: CaseGeometry,
        kind: type[np.generic],
        channels: int | None = None,
        array: NDArray[Any] | None = None,
    ) -> None:
        more = () if channels is None else (channels,)
        shape = (*more, *geometry.grid.shape)
        if array is None:
            array = np.zeros(shape, kind) if channels is None else array_in_file(shape, kind)
        self.array = array
        axes = [axis + len(more) for axis in geometry.transpose]
        transposed = self.array.transpose(*range(len(more)), *axes)
        self.crop = transposed[geometry.crop.slices_of_channels if more else geometry.crop.slices]


def _around(box: Box, array: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Everything outside of a box in an array of its axes: views, each voxel in one of them."""
    within = [slice(None)] * array.ndim
    for axis, inside in enumerate(box.slices):
        for part in (slice(0, inside.start), slice(inside.stop, None)):
            within[axis] = part
            yield array[tuple(within)]
        within[axis] = inside


class _Slabs:
    """What slabs of logits become on the image's own spacing, over the crop."""

    def __init__(self, geometry: CaseGeometry, configuration: Configuration) -> None:
        self._geometry, self._configuration = geometry, configuration
        resampling = configuration.resampling_fn_probabilities_kwargs
        axis = thick_axis(geometry.new_spacing_mm, geometry.spacing_mm, separate=resampling.force_separate_z)
        self._by_splines = resampling.order > 1 and geometry.new_shape != geometry.crop.shape
        shape = geometry.crop.shape if self._by_splines else geometry.new_shape
        self._grid = FinerGrid(shape, geometry.crop.shape, thick_axis=axis, linear=resampling.order == 1)
        self._logits: NDArray[np.float32] | None = None  # all of them, where splines need them together

    def ready(self, slab: Slab) -> Iterator[tuple[FinerGrid, Slab]]:
        """What can be worked on now."""
        if not self._by_splines:
            yield self._grid, slab
            return
        if self._logits is None:
            self._logits = np.empty((slab.values.shape[-1], *self._geometry.new_shape), dtype=np.float32)
        self._logits[:, slab.planes] = slab.values.movedim(-1, 0).cpu().numpy()
        if slab.planes.stop == self._geometry.new_shape[0]:
            resampled = resample_logits(
                self._logits,
                self._configuration,
                self._geometry.new_spacing_mm,
                self._geometry.crop.shape,
                self._geometry.spacing_mm,
            )
            yield self._grid, Slab(0, torch.from_numpy(resampled).movedim(0, -1))


def labels_on_image_grid(
    logits: NDArray[np.float32], geometry: CaseGeometry, configuration: Configuration, dataset: DatasetDescription
) -> NDArray[np.integer[Any]]:
    """The most likely label of each voxel of the image.

    Regions that are likelier than not are written one after the other, each with its value of `regions_class_order`.

    Args:
        logits: float32 (outputs, z, y, x) as the network sees the case.
        geometry: how the case was preprocessed.
        configuration: of the plans; says how probabilities are resampled.
        dataset: says what the outputs are.

    Returns:
        (z, y, x) on `geometry.grid`; background outside the crop.
    """
    export = LabelExport(geometry, configuration, dataset)
    export.take(Slab(0, torch.from_numpy(logits).movedim(0, -1)))
    return export.finish()


def labels_of_logits(logits: NDArray[np.float32], dataset: DatasetDescription) -> NDArray[np.uint16]:
    """The label map (z, y, x) of logits (outputs, z, y, x); see `labels_on_image_grid`."""
    labels: NDArray[np.uint16] = _labels_of(torch.from_numpy(logits).movedim(0, -1), dataset).numpy().astype(np.uint16)
    return labels


def probabilities_of_logits(values: Tensor, dataset: DatasetDescription, axis: int) -> Tensor:
    """The probability of each output, whose axis is named: they sum to 1, but for regions."""
    return values.sigmoid() if dataset.has_regions else values.softmax(axis)


def entropy(probabilities: Tensor, dataset: DatasetDescription) -> Tensor:
    """The entropy (...) in nats of probabilities (..., outputs); see `UncertaintyExport`."""
    known = probabilities.clamp(0, 1)  # splines overshoot
    nats: Tensor = torch.special.entr(known).sum(-1)
    return nats + torch.special.entr(1 - known).sum(-1) if dataset.has_regions else nats


def _labels_of(values: Tensor, dataset: DatasetDescription) -> Tensor:
    """Logits (..., outputs) to labels, int32 (...)."""
    if not dataset.has_regions:
        return values.argmax(-1).int()
    labels = values.new_zeros(values.shape[:-1], dtype=torch.int32)
    for value, region in zip(dataset.regions_class_order or (), values.unbind(-1), strict=True):
        labels.masked_fill_(region > 0, value)  # the sigmoid is above 1/2
    return labels


def labels_of_probabilities(probabilities: Tensor, dataset: DatasetDescription) -> Tensor:
    """Probabilities (..., outputs) to labels, int32 (...), as `labels_on_image_grid` makes them of logits."""
    return _labels_of(probabilities - 0.5 if dataset.has_regions else probabilities, dataset)


def label_type(dataset: DatasetDescription) -> type[np.unsignedinteger[Any]]:
    """The smallest type of number that holds the label maps of a dataset."""
    return np.uint8 if highest_label(dataset) < 2**8 else np.uint16


def highest_label(dataset: DatasetDescription) -> int:
    """The highest value that a predicted label map can have."""
    return max(dataset.regions_class_order or (0,)) if dataset.has_regions else dataset.num_classes - 1


def probabilities_on_image_grid(
    logits: NDArray[np.float32], geometry: CaseGeometry, configuration: Configuration, dataset: DatasetDescription
) -> NDArray[np.float32]:
    """The probability of each output at each voxel of the image, float32 (outputs, z, y, x).

    Arguments as for `labels_on_image_grid`.
    """
    export = ProbabilityExport(geometry, configuration, dataset)
    export.take(Slab(0, torch.from_numpy(logits).movedim(0, -1)))
    return export.finish()


def resample_logits(
    logits: NDArray[np.float32],
    configuration: Configuration,
    spacing_mm: Spacing,
    new_shape: Shape,
    new_spacing_mm: Spacing,
) -> NDArray[np.float32]:
    """Logits of a configuration on another grid of the same extent, as its plans say for probabilities."""
    resampling = configuration.resampling_fn_probabilities_kwargs
    return resample_image(
        logits, new_shape, spacing_mm, new_spacing_mm, order=resampling.order, separate=resampling.force_separate_z
    )
