"""Checking a dataset before work starts: everything that is wrong with every case, in short phrases."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from umamba_cli.pipeline.data.dataset import Case, Dataset, DatasetDescription, composed, same_name_problem
from umamba_cli.pipeline.data.images import Image, LabelMap, UnreadableImage, read_image, read_label_map
from umamba_cli.pipeline.data.sizes import describe_case, workers_that_fit
from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.geometry import Grid, size_text
from umamba_cli.pipeline.parallel import for_each_case
from umamba_cli.pipeline.progress import OnProgress, ignore_progress

_LARGEST = 1e15  # of an intensity; what lies beyond marks missing values, often float32's largest number

_VALUES_NAMED = 8  # a phrase names as many values at most: a greyscale image taken for a label map holds hundreds


@dataclass(frozen=True)
class CaseReport:
    """What there is to say of a case, without its arrays: what a worker process hands back."""

    problems: tuple[str, ...] = ()
    """Short phrases; empty where the case can be trained on."""

    labels: tuple[int, ...] = ()
    """The values that its label map holds; none where the case is bad."""

    is_constant: bool = False
    """True where a channel of a good case has the same value in every voxel."""


@dataclass(frozen=True)
class CheckedCase:
    """A case as it was read, and what there is to say of it."""

    case: Case

    image: Image | None
    """None where there is no image or it cannot be read."""

    label_map: LabelMap | None
    """None where there is no label or it cannot be read."""

    report: CaseReport

    @property
    def problems(self) -> tuple[str, ...]:
        """Short phrases; empty where the case can be trained on."""
        return self.report.problems


@dataclass(frozen=True)
class CheckReport:
    """What is wrong with a dataset, and what is odd."""

    cases: int
    """How many cases were checked."""

    problems: Mapping[str, tuple[str, ...]]
    """The bad cases by identifier, each with all that is wrong with it."""

    notes: tuple[str, ...] = ()
    """What a person should know although it can be worked with; looked for where no case is bad."""

    def raise_if_bad(self) -> None:
        """Refuse the dataset where any of its cases is bad.

        Raises:
            InputError: some cases cannot be used; every one is listed with all that is wrong with it.
        """
        if self.problems:
            raise InputError(
                f"{len(self.problems)} of {self.cases} cases cannot be used",
                details=[f"{identifier}: {'; '.join(phrases)}" for identifier, phrases in self.problems.items()],
                next_step="correct or remove them, then run the same command again",
            )


def check_dataset(
    dataset: Dataset, *, workers: int | None = None, on_progress: OnProgress = ignore_progress
) -> CheckReport:
    """Read every training case of a dataset and say what is wrong with each.

    Args:
        dataset: the dataset.
        workers: processes; None means as many as the machine allows.
        on_progress: told after each case.
    """
    found = for_each_case(
        partial(check_case, description=dataset.description),
        dataset.cases,
        task="check",
        name=lambda case: case.identifier,
        describe=describe_case,
        workers=workers or workers_that_fit(dataset.cases),
        on_progress=on_progress,
    )
    return summarise(dataset, found)


def summarise(dataset: Dataset, reports: Sequence[CaseReport]) -> CheckReport:
    """The report on a dataset from those on its cases, in their order."""
    by_name = {case.identifier: report for case, report in zip(dataset.cases, reports, strict=True)}
    problems = {name: report.problems for name, report in by_name.items() if report.problems}
    if problems:
        return CheckReport(len(by_name), problems)
    foreground = dataset.description.foreground
    empty = [name for name, report in by_name.items() if not foreground.keys() & report.labels]
    if len(empty) == len(by_name):
        return CheckReport(len(by_name), dict.fromkeys(empty, ("no foreground in this or any other case",)))
    return CheckReport(len(by_name), {}, tuple(_notes(by_name, empty, foreground)))


def _notes(reports: Mapping[str, CaseReport], empty: Sequence[str], foreground: Mapping[int, str]) -> Iterator[str]:
    held = {value for report in reports.values() for value in report.labels}
    if missing := [f"label {value} ({name})" for value, name in foreground.items() if value not in held]:
        yield f"no case holds {', '.join(missing)}"
    constant = [name for name, report in reports.items() if report.is_constant]
    for names, what in ((empty, "have no foreground"), (constant, "have an image or a channel of one single value")):
        if names:
            yield f"{len(names)} of {len(reports)} cases {what}: {_beginning(names, len(names))}"


def check_case(case: Case, description: DatasetDescription) -> CaseReport:
    """What there is to say of a case, without its arrays: what a worker process hands back."""
    return load_and_check(case, description).report


def load_and_check(case: Case, description: DatasetDescription) -> CheckedCase:
    """Read a training case and list all that is wrong with it; nothing is raised for what its files hold."""
    problems = [*case.conflicts, *_numbering(case, description)]
    image, label_map, values = None, None, np.empty(0)
    if case.images:
        image, unreadable = _read_images(case.images)
        problems += unreadable
    if case.label is None:
        problems.append("no label in labelsTr")
    else:
        try:
            label_map = read_label_map(case.label, image.grid if image else None)
        except UnreadableImage as error:
            problems.append(error.problem)
    if image is not None:
        problems += _image_problems(image, case, description)
    if image is not None and label_map is not None:
        problems += grid_problems("image", image.grid, "label", label_map.grid)
    if label_map is not None:
        values = label_values(label_map.labels)
        problems += _value_problems("label", label_map.labels, values, description.known_values)
    if problems or image is None:
        return CheckedCase(case, image, label_map, CaseReport(tuple(problems)))
    if label_map is not None and label_map.labels.dtype.itemsize > 2:  # whole numbers stored as float64, say
        label_map = replace(label_map, labels=label_map.labels.astype(np.int16))
    report = CaseReport((), tuple(int(value) for value in values), _is_constant(image))
    return CheckedCase(case, image, label_map, report)


def grid_problems(first_name: str, first: Grid, second_name: str, second: Grid) -> list[str]:
    """Phrases for what differs between two grids; empty where they are the same."""
    if first.shape != second.shape:
        return [f"{first_name} is {size_text(first.shape)}, {second_name} is {size_text(second.shape)}"]
    return [f"{first_name} and {second_name} differ: {difference}" for difference in first.differences(second)]


def label_problems(name: str, labels: NDArray[Any], known: Collection[int] | None) -> list[str]:
    """Phrases for values of a label map that are no labels.

    Args:
        name: what the phrases call the label map.
        labels: of any shape and type.
        known: the values that dataset.json knows; None where there is none: any whole number from 0 is a label then.
    """
    return _value_problems(name, labels, label_values(labels), known)


def _value_problems(name: str, labels: NDArray[Any], values: NDArray[Any], known: Collection[int] | None) -> list[str]:
    problems = not_finite_problems(name, labels)
    values = values[np.isfinite(values)]
    whole = values == np.round(values)
    if not whole.all():
        problems.append(f"{name} holds {_listing(values[~whole])}, labels are whole numbers")
    values = values[whole]
    unknown = values[values < 0] if known is None else values[~np.isin(values, list(known))]
    if len(unknown):
        rule = "labels start at 0" if known is None else f"dataset.json knows {_listing(sorted(known))}"
        problems.append(f"{name} holds {_listing(unknown)}, {rule}")
    return problems


def label_values(labels: NDArray[Any]) -> NDArray[Any]:
    """The different values in a label map (z, y, x), ascending."""
    if not labels.size:
        return labels.reshape(-1)
    # Of equal neighbours one is enough, which leaves little to sort. Slice by slice: that stays in the cache.
    return np.unique(np.concatenate([_ends_of_runs(part.reshape(-1)) for part in labels]))


def _ends_of_runs(values: NDArray[Any]) -> NDArray[Any]:
    """The last one of each run of equal values."""
    return np.append(values[:-1][values[1:] != values[:-1]], values[-1:])


def _numbering(case: Case, description: DatasetDescription) -> list[str]:
    if not case.images:
        return ["no image in imagesTr"]
    return numbering_problems(case.identifier, case.images, description.num_channels, description.file_ending)


def numbering_problems(identifier: str, images: Sequence[Path], channels: int, ending: str) -> list[str]:
    """Files must be numbered 0000 to n-1, one for each channel, or be one file (which may hold them all).

    Args:
        identifier: of the case.
        images: its files.
        channels: that it should have.
        ending: of the files.
    """
    ends: dict[str, list[Path]] = defaultdict(list)
    for path in images:
        ends[_number(path, identifier, ending)].append(path)
    wanted = [f"{index:04d}" for index in range(channels)]
    if len(images) == 1 and ("" in ends or wanted[0] in ends):
        return []  # whether that file holds all the channels is seen when it is read
    missing = [f"channel {number} is missing" for number in wanted if number not in ends]
    unknown = [
        f"{paths[0].name} has no channel number" if not number else f"channel {number} is not in dataset.json"
        for number, paths in ends.items()
        if number not in wanted
    ]
    return missing + unknown + [same_name_problem(paths) for paths in ends.values() if len(paths) > 1]


def _number(path: Path, identifier: str, ending: str) -> str:
    """The channel number in a file's name, "" where it has none."""
    name = composed(path.name.removesuffix(ending))
    return name.removeprefix(composed(identifier)).removeprefix("_")


def _read_images(paths: Sequence[Path]) -> tuple[Image | None, list[str]]:
    """The image, or what keeps it from being read, every bad file named."""
    try:
        return read_image(paths), []
    except UnreadableImage as error:
        if len(paths) == 1:
            return None, [error.problem]
        found = [problem for path in paths for problem in _read_images([path])[1]]
        return None, found or [error.problem]


def _image_problems(image: Image, case: Case, description: DatasetDescription) -> list[str]:
    return _channel_problems(len(image.voxels), case, description) + not_finite_problems("image", image.voxels)


def _channel_problems(held: int, case: Case, description: DatasetDescription) -> list[str]:
    """What is wrong with the number of channels that the files hold; files that are missing were named before."""
    wanted = description.num_channels
    files = len(case.images)
    if held == wanted or (held == files > 1):
        return []
    number = _number(case.images[0], case.identifier, description.file_ending)
    if held == files and number:
        return [f"channel {index:04d} is missing" for index in range(1, wanted)] if int(number) == 0 else []
    return [f"image holds {held} channel{'' if held == 1 else 's'}, dataset.json knows {wanted}"]


def not_finite_problems(name: str, voxels: NDArray[Any]) -> list[str]:
    """A phrase where voxels are not finite, or so large that sums of their squares would not be."""
    if not np.issubdtype(voxels.dtype, np.floating) or (voxels.min() >= -_LARGEST and voxels.max() <= _LARGEST):
        return []  # without a mask as large as the image
    bad = voxels.size - int(np.count_nonzero(np.isfinite(voxels)))
    if bad:
        return [f"{name} has {bad} of {voxels.size} voxels that are not finite"]
    large = int(np.count_nonzero(np.abs(voxels) > _LARGEST))
    return [f"{name} has {large} of {voxels.size} voxels beyond {_LARGEST:g}, too large to compute with"]


def _is_constant(image: Image) -> bool:
    """Whether a channel has the same value in every voxel; of most images the first slice tells."""
    return any(all((part == channel[0, 0, 0]).all() for part in channel) for channel in image.voxels)


def _listing(values: Sequence[Any] | NDArray[Any]) -> str:
    return _beginning([str(int(v)) if v == int(v) else f"{v:.6g}" for v in values[:_VALUES_NAMED]], len(values))


def _beginning(names: Sequence[str], total: int) -> str:
    """The first of so many names, and how many more there are."""
    more = total - _VALUES_NAMED
    return ", ".join(names[:_VALUES_NAMED]) + (f" and {more} more" if more > 0 else "")
