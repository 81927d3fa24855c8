"""One case of a folder that nnU-Net preprocessed: what is wrong with it, and its way into a workspace."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from umamba_cli.pipeline.data import tiff
from umamba_cli.pipeline.data.checks import grid_problems, label_problems
from umamba_cli.pipeline.data.dataset import Case, DatasetDescription
from umamba_cli.pipeline.data.files import file_state, link_or_copy
from umamba_cli.pipeline.data.images import file_ending, read_label_map, write_label_map
from umamba_cli.pipeline.data.store import Store
from umamba_cli.pipeline.data.workspace import Workspace
from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.geometry import Grid, Shape, resampled_shape, size_text
from umamba_cli.pipeline.interop.nnunet_files import CaseFiles, CaseProperties, reading
from umamba_cli.pipeline.planning.plans import Plans
from umamba_cli.pipeline.preprocessing.case import OUTSIDE, CaseGeometry, plans_digest, source_state
from umamba_cli.pipeline.preprocessing.dataset import preprocessed_store, store_case
from umamba_cli.pipeline.preprocessing.resampling import resample_labels


@dataclass(frozen=True)
class ImportJob:
    """One case's import, as a worker process gets it."""

    case: Case
    """Of the workspace's dataset; where that lies in the workspace, the label map may still have to be put there."""

    label: Path
    """The case's label map in the workspace's dataset."""

    reference: Path | None
    """The label map that nnU-Net was given; None: it is rebuilt from the preprocessed labels."""

    files: Mapping[str, CaseFiles]
    """By configuration; of those that share their cases one alone."""

    workspace: Workspace
    plans: Plans
    description: DatasetDescription

    @property
    def todo(self) -> tuple[str, ...]:
        """The configurations that the workspace does not hold yet, or holds made of other files."""
        if not self.label_is_in_place:
            return tuple(self.files)
        return tuple(name for name in self.files if not self._is_current(name))

    @property
    def label_is_in_place(self) -> bool:
        """True where the dataset's label map is the reference, or was rebuilt since nnU-Net wrote the arrays."""
        if not self.label.is_file():
            return False
        if self.reference is not None:
            return file_state(self.label) == file_state(self.reference)
        arrays = (path for files in self.files.values() for path in files.arrays if path.is_file())
        return self.label.stat().st_mtime_ns >= max((path.stat().st_mtime_ns for path in arrays), default=0)

    def store(self, configuration: str) -> Store:
        """Where the cases of a configuration go."""
        return preprocessed_store(self.workspace, self.plans, configuration, self.description)

    def geometry(self, configuration: str, properties: CaseProperties, grid: Grid) -> CaseGeometry:
        """How the preprocessed case came from its image."""
        transpose = self.plans.transpose_forward
        spacing = tuple(properties.spacing[axis] for axis in transpose)
        new_spacing = self.plans.configuration(configuration).data_spacing(spacing)
        new_shape = resampled_shape(properties.crop.shape, spacing, new_spacing)
        return CaseGeometry(grid, transpose, properties.crop, spacing, new_spacing, new_shape)

    def noted_grid(self, properties: CaseProperties) -> Grid:
        """The image's grid as nnU-Net noted it."""
        return properties.grid(self.plans.transpose_forward, self.description.file_ending)

    def _is_current(self, configuration: str) -> bool:
        files, store, name = self.files[configuration], self.store(configuration), self.case.identifier
        digest = plans_digest(self.plans, self.plans.configuration(configuration), self.description)
        if files.missing or store.origin(name) != (digest, source_state(self.case)):
            return False
        return bool(store.case(name).properties.get("imported") == files.state)


def check_case(job: ImportJob) -> tuple[str, ...]:
    """All that is wrong with the files of a case, in short phrases; nothing is raised for what they hold."""
    problems: list[str] = []
    read: dict[str, CaseProperties] = {}
    for name, files in job.files.items():
        if files.missing:
            problems.append(f"{name}: {' and '.join(files.missing)} missing")
            continue
        try:
            read[name] = files.read_properties()
        except InputError as error:
            problems.append(f"{name}: {_in_one_line(error)}")
    reference = None
    if job.reference is not None:
        noted = next((job.noted_grid(properties) for properties in read.values()), None)
        try:
            label_map = read_label_map(job.reference, noted)
            reference = label_map.grid
            problems += label_problems("label", label_map.labels, job.description.known_values)
        except InputError as error:
            problems.append(error.problem)
    for name, properties in read.items():
        problems += [f"{name}: {problem}" for problem in _problems(job, name, properties, reference)]
    return tuple(problems)


def _problems(job: ImportJob, configuration: str, properties: CaseProperties, reference: Grid | None) -> list[str]:
    """What is wrong with a case in one configuration, whose files are there."""
    if properties.was_turned:
        return ["nnU-Net turned the image while reading it, umamba leaves images as they lie"]
    grid = job.noted_grid(properties)
    problems = []
    if reference is not None:  # of which size and spacing must agree; origin and direction are taken from it
        placed = replace(grid, origin_mm=reference.origin_mm, direction=reference.direction)
        problems += grid_problems("image", placed, "label", reference)
    expected = job.geometry(configuration, properties, grid).new_shape
    try:
        return problems + _array_problems(job.files[configuration], expected, job.description)
    except InputError as error:
        return [*problems, _in_one_line(error)]


def _array_problems(files: CaseFiles, expected: Shape, description: DatasetDescription) -> list[str]:
    labels = files.read_labels()
    labels[labels == OUTSIDE] = 0
    problems = label_problems("label", labels, description.known_values)
    image = files.open_image()
    if len(image.shape) != 4 or len(image) != description.num_channels:
        channels = f"{description.num_channels} channel{'s' if description.num_channels > 1 else ''}"
        return [*problems, f"image is {size_text(image.shape)}, {channels} of three axes are expected"]
    if labels.shape != (1, *image.shape[1:]):
        problems.append(f"image is {size_text(image.shape[1:])}, label is {size_text(labels.shape)}")
    if image.shape[1:] != expected:
        stored = size_text(image.shape[1:])
        problems.append(f"image is {stored}, by {files.properties.name} and the plans it is {size_text(expected)}")
    with reading(files.arrays[0]):
        return problems + _not_finite(image)


def _not_finite(image: Any) -> list[str]:
    """A phrase where the image holds what is no number. All of its file is read, in pieces."""
    bad = 0
    step = getattr(image, "chunks", image.shape)[1]
    for channel in range(len(image)):
        for start in range(0, image.shape[1], step):
            piece = image[channel, start : start + step]
            bad += piece.size - int(np.count_nonzero(np.isfinite(piece)))
    return [f"image has {bad} of {math.prod(image.shape)} voxels that are not finite"] if bad else []


def import_case(job: ImportJob) -> None:
    """Bring a checked case into the workspace: its label map, and the configurations that are to do.

    Raises:
        InputError: a file changed since it was checked.
        WorkError: the disk is full or the folder cannot be written to.
    """
    todo = job.todo
    read = {name: files.read_properties() for name, files in job.files.items()}
    _put_label_map(job, read)
    for name in todo:
        files = job.files[name]
        grid = read_label_map(job.label, job.noted_grid(read[name])).grid
        store_case(
            job.store(name),
            job.case,
            _image_to_store(files),
            files.read_labels()[0].astype(np.int16),
            job.geometry(name, read[name], grid),
            digest=plans_digest(job.plans, job.plans.configuration(name), job.description),
            configuration=job.plans.configuration(name),
            description=job.description,
            more={"imported": files.state},
        )


def _put_label_map(job: ImportJob, read: Mapping[str, CaseProperties]) -> None:
    if job.label == job.reference or job.label_is_in_place:
        return
    if job.reference is None:
        _rebuild_label_map(job, read)
        return
    grid = job.noted_grid(next(iter(read.values())))
    if file_ending(job.label) in tiff.ENDINGS and not grid.is_2d_file:
        tiff.write_spacing(job.label, grid.spacing_mm)  # nnU-Net copies a volume without the file that tells it
    link_or_copy(job.reference, job.label)


def _rebuild_label_map(job: ImportJob, read: Mapping[str, CaseProperties]) -> None:
    """Write the label map as the finest configuration has it, back on the image's grid."""
    geometries = {name: job.geometry(name, noted, job.noted_grid(noted)) for name, noted in read.items()}
    finest, geometry = max(geometries.items(), key=lambda item: math.prod(item[1].new_shape))
    labels = np.maximum(job.files[finest].read_labels()[0], 0).astype(np.int16)
    cropped = resample_labels(labels, geometry.crop.shape, geometry.new_spacing_mm, geometry.spacing_mm)
    write_label_map(job.label, geometry.labels_on_image_grid(cropped), geometry.grid)


def _image_to_store(files: CaseFiles) -> NDArray[np.float32] | Path:
    """The image's own file where it is as a store has it, so that nothing is compressed again; otherwise its array."""
    image = files.open_image()
    if not isinstance(image, np.ndarray) and image.dtype == np.float32:
        return files.arrays[0]
    with reading(files.arrays[0]):
        return np.asarray(image[:], dtype=np.float32)


def _in_one_line(error: InputError) -> str:
    return ": ".join(filter(None, [error.problem, "; ".join(error.details)]))
