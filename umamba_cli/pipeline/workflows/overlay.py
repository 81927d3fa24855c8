"""A picture for each case of a folder of label maps: the image with each label's outline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from umamba_cli.pipeline.data.checks import grid_problems, label_problems
from umamba_cli.pipeline.data.dataset import Case, DatasetDescription, composed
from umamba_cli.pipeline.data.images import PICTURE_ENDINGS, Image, file_ending, read_image, read_label_map
from umamba_cli.pipeline.data.inputs import InputCase, choose_series, find_cases
from umamba_cli.pipeline.data.sizes import workers_that_fit
from umamba_cli.pipeline.data.tiff import ENDINGS as TIFF_ENDINGS
from umamba_cli.pipeline.errors import InputError, UmambaError
from umamba_cli.pipeline.evaluation.evaluate import find_label_maps
from umamba_cli.pipeline.geometry import Grid
from umamba_cli.pipeline.parallel import for_each_case
from umamba_cli.pipeline.progress import OnProgress, ignore_progress
from umamba_cli.pipeline.reporting.overlay import draw_overlay
from umamba_cli.pipeline.reporting.slices import REFERENCE, ShownCase, Window, in_colour

LABELS = "labels"

_USUAL_ENDING = ".nii.gz"
_MOST_NAMED = 10


@dataclass(frozen=True)
class OverlayOptions:
    """How the pictures of a folder are drawn."""

    slices: int = 1
    """In a picture, at most; see `reporting.slices.best_slices` for which."""

    channel: int | None = None
    """Of the image, from 0, in grey; None: pictures in colour stay so, of others the first one."""

    window: Window | None = None
    """The intensities shown as black and white; None: by percentiles of each image."""


@dataclass(frozen=True)
class OverlayResult:
    """What became of the cases of a folder."""

    drawn: tuple[Path, ...]
    failed: Mapping[str, str]
    """The cases that could not be drawn, and what is wrong with them."""

    notes: tuple[str, ...] = ()
    """What was left out, and why."""

    @property
    def total(self) -> int:
        """Cases there were."""
        return len(self.drawn) + len(self.failed)


@dataclass(frozen=True)
class _Task:
    case: InputCase
    labels: Path
    reference: Path | None
    picture: Path


def draw_overlays(
    images: Path,
    labels: Path,
    output: Path,
    *,
    references: Path | None = None,
    description: DatasetDescription | None = None,
    options: OverlayOptions | None = None,
    workers: int | None = None,
    on_progress: OnProgress = ignore_progress,
) -> OverlayResult:
    """Draw every label map of a folder over its image: OUTPUT/CASE.png. Pictures that are there are drawn again.

    Args:
        images: a folder of images, or whatever else `find_cases` takes; images without a label map are left alone. Of
            a folder, label maps without an image are failures.
        labels: a folder of label maps.
        output: the folder of the pictures.
        references: a folder of label maps to compare with.
        description: names the labels, and tells the files' ending; None: labels are called by their numbers.
        options: how to draw.
        workers: processes; None means as many as the machine allows.
        on_progress: told after each case.

    Raises:
        InputError: a folder is missing or is that of the pictures too, or no label map has an image.
        WorkError: a picture cannot be written.
    """
    _require_own_folder(output, [folder for folder in (images, labels, references) if folder])
    ending = description.file_ending if description else None
    found = find_cases([images], ending or _USUAL_ENDING)
    cases = {composed(case.identifier): case for case in found.cases}
    label_maps = find_label_maps(labels, ending)
    wanted = find_label_maps(references, ending) if references else {}
    tasks = [
        _Task(cases[name], path, wanted.get(name), output / f"{name}.png")
        for name, path in label_maps.items()
        if name in cases
    ]
    if not tasks:
        raise _strangers(label_maps, cases, labels, images)
    outcomes = for_each_case(
        partial(_draw, description=description, options=options or OverlayOptions()),
        tasks,
        task="overlay",
        name=lambda task: task.case.identifier,
        workers=workers or workers_that_fit([Case(task.case.identifier, task.case.sources) for task in tasks]),
        on_progress=on_progress,
    )
    ends = list(zip(tasks, outcomes, strict=True))
    failed = {task.case.identifier: text for task, text in ends if text}
    if images.is_dir():  # a single image is meant to pick out its own label map
        failed |= dict.fromkeys(sorted(label_maps.keys() - cases.keys()), f"no image of it in {images}")
    notes = [*found.notes, *_notes(cases, label_maps, wanted if references else None)]
    return OverlayResult(
        tuple(task.picture for task, text in ends if not text), dict(sorted(failed.items())), tuple(notes)
    )


def _notes(
    cases: Mapping[str, InputCase], label_maps: Mapping[str, Path], wanted: Mapping[str, Path] | None
) -> list[str]:
    notes = _left_out(cases, label_maps, "images have no label map and are left out")
    if wanted is not None:
        notes += _left_out(label_maps, wanted, "label maps have no reference and are drawn without")
    return notes


def _strangers(
    label_maps: Mapping[str, Path], cases: Mapping[str, InputCase], labels: Path, images: Path
) -> InputError:
    return InputError(
        f"no label map in {labels} has an image in {images}",
        details=[f"label maps: {_beginning(list(label_maps))}", f"images: {_beginning(list(cases))}"],
        next_step="give the folder whose label maps have the images' names: CASE.nii.gz for CASE_0000.nii.gz",
    )


def raise_if_failed(result: OverlayResult) -> None:
    """Raise what the command ends with where a case could not be drawn.

    Raises:
        UmambaError: with exit code 1, or InputError where not a single case could be drawn.
    """
    if not result.failed:
        return
    kind = UmambaError if result.drawn else InputError
    raise kind(
        f"{len(result.failed)} of {result.total} cases could not be drawn",
        details=[f"{name}: {problem}" for name, problem in result.failed.items()],
        next_step="correct or remove them, then run the same command again",
    )


def shown_image(image: Image, *, is_picture: bool, channel: int | None, window: Window | None) -> NDArray[np.generic]:
    """What is shown of an image: (z, y, x), or (z, y, x, 3) of 8 bit of a picture in colour.

    Raises:
        InputError: it has no such channel.
    """
    held = len(image.voxels)
    if channel is None and is_picture and held in (3, 4):
        return in_colour(image.voxels, window)
    if (channel or 0) >= held:
        raise InputError(
            f"the image has {held} channel{'' if held == 1 else 's'}, there is no channel {channel}",
            next_step=f"choose 0 to {held - 1}",
        )
    return np.asarray(image.voxels[channel or 0])


def is_picture(path: Path) -> bool:
    """Whether a file is of a kind that holds colours."""
    return file_ending(path) in (*PICTURE_ENDINGS, *TIFF_ENDINGS)


def read_shown_labels(
    name: str, path: Path, grid: Grid, description: DatasetDescription | None
) -> NDArray[np.integer[Any]]:
    """A label map as whole numbers (z, y, x), on the image's grid.

    Raises:
        InputError: it cannot be read, lies on another grid, or holds what is no label.
    """
    label_map = read_label_map(path, grid)
    problems = grid_problems("image", grid, name, label_map.grid)
    problems += label_problems(name, label_map.labels, description.known_values if description else None)
    if problems:
        raise InputError("; ".join(problems), next_step="correct or remove it")
    labels = label_map.labels
    return labels if np.issubdtype(labels.dtype, np.integer) else labels.astype(np.int64)


def _draw(task: _Task, description: DatasetDescription | None, options: OverlayOptions) -> str:
    """Draw one case; what is wrong with it, or ""."""
    try:
        image, is_colour = _read(task.case, options.channel)
        channel = 0 if options.channel is not None and len(task.case.sources) > 1 else options.channel
        shown = shown_image(image, is_picture=is_colour, channel=channel, window=options.window)
        files = {REFERENCE: task.reference, LABELS: task.labels}
        maps = {name: read_shown_labels(name, path, image.grid, description) for name, path in files.items() if path}
    except InputError as error:
        return "; ".join([error.problem, *error.details])
    case = ShownCase(
        image=shown,
        label_maps=maps,
        spacing_mm=image.grid.spacing_mm,
        label_names=dict(description.foreground.items()) if description else {},
        ignored=description.ignore_label if description else None,
    )
    draw_overlay(task.picture, case, count=options.slices, window=options.window, title=task.case.identifier)
    return ""


def _read(case: InputCase, channel: int | None) -> tuple[Image, bool]:
    """The image, of several files that of the channel alone, and whether it may be in colour."""
    if case.series is not None:
        return read_image(choose_series(case.sources[0], case.series)), False
    if len(case.sources) == 1:
        return read_image(case.sources, volumes_are_channels=True), is_picture(case.sources[0])
    if (channel or 0) >= len(case.sources):
        raise InputError(
            f"there are {len(case.sources)} channels, none is {channel}",
            next_step=f"choose 0 to {len(case.sources) - 1}",
        )
    return read_image([case.sources[channel or 0]]), False


def _require_own_folder(output: Path, others: list[Path]) -> None:
    """The pictures are called as the label maps are: those of pictures would be overwritten."""
    for other in others:
        if output.resolve() == other.resolve():
            raise InputError(f"{output} is the folder of what is to be drawn", next_step="choose another one with -o")
    if output.exists() and not output.is_dir():
        raise InputError(f"{output} is no folder", next_step="choose another one with -o")


def _left_out(names: Mapping[str, object], others: Mapping[str, object], what: str) -> list[str]:
    lacking = sorted(names.keys() - others.keys())
    return [f"{len(lacking)} of {len(names)} {what}: {_beginning(lacking)}"] if lacking else []


def _beginning(names: list[str]) -> str:
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
