"""From a folder of the Medical Segmentation Decathlon to a dataset in nnU-Net raw layout.

Such a folder holds `dataset.json`, `imagesTr`, `labelsTr` and `imagesTs` with one NIfTI file an image; where an image
has several channels, they are its fourth axis. Source: http://medicaldecathlon.com and its `dataset.json` files.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Annotated, Any

import pydantic

from umamba_cli.pipeline.data.dataset import BACKGROUND, DatasetDescription
from umamba_cli.pipeline.data.files import (
    file_state,
    read_json,
    read_model,
    remove_leftovers,
    to_plain,
    validated,
    write_json,
)
from umamba_cli.pipeline.data.images import UnreadableImage, file_ending
from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.interop.nifti_volumes import count_volumes, split_volumes
from umamba_cli.pipeline.parallel import for_each_case
from umamba_cli.pipeline.progress import OnProgress, ignore_progress
from umamba_cli.pipeline.resources import default_workers, require_disk

_ENDING = ".nii.gz"
_GIVE_TASK = "give the folder of one task (dataset.json, imagesTr, labelsTr, imagesTs)"
_WORKER_BYTES = 1 << 27  # Python with this module and a few blocks
_RECOMPRESSED = 1.25  # channels may be so many times as large as their source, which was compressed more slowly
_RECORDS = ".converted"  # folder in the dataset, one file a case
_NAMED = 8  # an error names as many foreign files at most


@dataclass(frozen=True)
class ConvertedDataset:
    """What `convert_msd` made."""

    folder: Path
    """The dataset, in nnU-Net raw layout."""

    cases: int
    """Training cases."""

    test_images: int
    """Images without a label map, in imagesTs."""

    channels: tuple[str, ...]
    """Names of the channels, by number."""

    labels: tuple[str, ...]
    """Names of the labels, by value; the background is first."""

    kept: int
    """Cases and test images that were there already, made from files that have not changed since."""


def _inside(entry: str) -> str:
    posix, windows = PurePosixPath(entry), PureWindowsPath(entry)
    if posix.is_absolute() or windows.drive or windows.root or ".." in windows.parts:
        raise ValueError("must be a path below the folder, without ..")
    if not posix.name.lower().endswith((".nii.gz", ".nii")) or posix.name.startswith("."):
        raise ValueError("must be a NIfTI file, NAME.nii.gz")
    return entry


_Entry = Annotated[str, pydantic.AfterValidator(_inside)]


class _TrainingEntry(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True)

    image: _Entry
    label: _Entry


class _MsdDescription(pydantic.BaseModel):
    """The `dataset.json` of a task."""

    model_config = pydantic.ConfigDict(frozen=True, coerce_numbers_to_str=True)

    modality: dict[str, str] = pydantic.Field(min_length=1)
    """Channel number to name."""

    labels: dict[str, str]
    """Label value to name, the other way round than in nnU-Net's file."""

    training: list[_TrainingEntry] = pydantic.Field(min_length=1)
    test: list[_Entry] = []
    name: str = ""
    description: Any = None
    reference: Any = None
    licence: Any = pydantic.Field(None, validation_alias=pydantic.AliasChoices("licence", "license"))
    release: Any = pydantic.Field(
        None, validation_alias=pydantic.AliasChoices("release", "relase")
    )  # as some tasks have

    @pydantic.field_validator("modality")
    @classmethod
    def _numbered(cls, modality: dict[str, str]) -> dict[str, str]:
        numbers = [str(index) for index in range(len(modality))]
        if sorted(modality, key=lambda key: (len(key), key)) != numbers:
            raise ValueError('must name the channels "0", "1", ..., each once')
        return {number: modality[number] for number in numbers}

    @pydantic.field_validator("labels")
    @classmethod
    def _named_apart(cls, labels: dict[str, str]) -> dict[str, str]:
        if wrong := [key for key in labels if not (key.isascii() and key.isdigit())]:
            raise ValueError(f"must be label values, whole numbers, with their names; {wrong[0]!r} is no number")
        if re.sub(r"[^a-z]", "", labels.get("0", "").lower()) != BACKGROUND:
            raise ValueError(f"label 0 must be there and be called {BACKGROUND}")
        names = {key: BACKGROUND if key == "0" else name for key, name in labels.items()}
        if twice := [name for name, times in Counter(names.values()).items() if times > 1]:
            raise ValueError(f"{twice[0]!r} is the name of several labels, each must have its own")
        return names


@dataclass(frozen=True)
class _Part:
    """A file of a case, and the files that it becomes: one for each channel of an image, one for a label."""

    kind: str
    source: Path
    targets: tuple[Path, ...]


@dataclass(frozen=True)
class _Job:
    """One case's work, as a worker process gets it."""

    identifier: str
    parts: tuple[_Part, ...]

    record: Path
    """Notes what the case was made of, once it is complete."""

    def is_done(self) -> bool:
        """Whether all files are there, made of the sources as they are now."""
        if not all(target.is_file() for part in self.parts for target in part.targets):
            return False
        try:
            return bool(read_json(self.record) == to_plain(self.origin()))
        except InputError:
            return False

    def origin(self) -> dict[str, Any]:
        """Path, size and time of change of the file that each part is made of."""
        return {part.kind: [part.source, *file_state(part.source)] for part in self.parts}


def convert_msd(
    folder: Path, dataset_folder: Path, *, workers: int | None = None, on_progress: OnProgress = ignore_progress
) -> ConvertedDataset:
    """Write a dataset in nnU-Net raw layout from a folder of the Medical Segmentation Decathlon.

    `dataset.json` is written last. What is complete is kept, so it can be run again after a kill.

    Args:
        folder: the task's folder, with `dataset.json`; it is not changed.
        dataset_folder: where to; made where it is not there.
        workers: processes; None means as many as the machine allows.
        on_progress: told after each case.

    Raises:
        InputError: no such task is there, files are missing or cannot be used, `dataset_folder` holds something else,
            or the disk is too small. All bad files are listed.
        WorkError: a worker died or a file could not be written.
    """
    folder, dataset_folder = folder.resolve(), dataset_folder.resolve()
    if dataset_folder.is_relative_to(folder):
        raise InputError(f"{dataset_folder} lies in {folder} itself", next_step="choose a folder outside it")
    _refuse_raw_layout(folder)
    msd = read_model(
        folder / "dataset.json",
        _MsdDescription,
        next_step=_GIVE_TASK,
    )
    content = _raw_description(msd)
    description = validated(DatasetDescription.model_validate, content, source=str(folder / "dataset.json"))
    jobs = _jobs(folder, msd, dataset_folder)
    _refuse_other_content(dataset_folder, content, jobs)
    _refuse_missing_files(folder, jobs)
    _raise_if_bad(jobs, [_header_problems(job) for job in jobs])
    todo = [job for job in jobs if not job.is_done()]
    _convert_cases(todo, dataset_folder, workers, on_progress)
    if not (dataset_folder / "dataset.json").exists():
        write_json(dataset_folder / "dataset.json", content)
    return ConvertedDataset(
        folder=dataset_folder,
        cases=len(msd.training),
        test_images=len(msd.test),
        channels=tuple(description.channel_names.values()),
        labels=(BACKGROUND, *description.foreground.values()),
        kept=len(jobs) - len(todo),
    )


def _refuse_raw_layout(folder: Path) -> None:
    content = read_json(folder / "dataset.json", next_step=_GIVE_TASK)
    if isinstance(content, dict) and "channel_names" in content and "file_ending" in content:
        raise InputError(
            f"{folder} is in nnU-Net raw layout already", next_step=f"run `umamba plan {folder}`, there is no need"
        )


def _raw_description(msd: _MsdDescription) -> dict[str, Any]:
    """What nnU-Net's `dataset.json` says of the task."""
    about = msd.model_dump(include={"name", "description", "reference", "licence", "release"}, exclude_unset=True)
    labels = sorted((int(value), name) for value, name in msd.labels.items())
    return {
        **about,
        "channel_names": msd.modality,
        "labels": {name: value for value, name in labels},
        "numTraining": len(msd.training),
        "file_ending": _ENDING,
    }


def _jobs(folder: Path, msd: _MsdDescription, dataset_folder: Path) -> list[_Job]:
    """The work of every case and test image.

    Raises:
        InputError: two images would become one case.
    """
    numbers = range(len(msd.modality))
    jobs = []
    training: list[tuple[str, str | None]] = [(entry.image, entry.label) for entry in msd.training]
    for split, entries in (("Tr", training), ("Ts", [(entry, None) for entry in msd.test])):
        names = [_identifier(image) for image, _ in entries]
        if twice := [name for name, times in Counter(names).items() if times > 1]:
            raise InputError(
                f"{folder / 'dataset.json'} names {len(twice)} case{'s' if len(twice) > 1 else ''} several times",
                details=twice,
                next_step="correct the file: each image once, with a name of its own",
            )
        images, labels = dataset_folder / f"images{split}", dataset_folder / f"labels{split}"
        for name, (image, label) in zip(names, entries, strict=True):
            channels = tuple(images / f"{name}_{number:04d}{_ENDING}" for number in numbers)
            parts = [_Part("image", folder / image, channels)]
            if label is not None:
                parts.append(_Part("label", folder / label, (labels / f"{name}{_ENDING}",)))
            jobs.append(_Job(name, tuple(parts), dataset_folder / _RECORDS / f"{images.name}_{name}.json"))
    return jobs


def _identifier(entry: str) -> str:
    path = Path(entry)
    return path.name[: -len(file_ending(path))]


def _refuse_other_content(dataset_folder: Path, content: dict[str, Any], jobs: Sequence[_Job]) -> None:
    """Refuse a folder that holds anything but this conversion, whole or unfinished; hidden files do not count."""
    if not dataset_folder.exists():
        return
    advice = "choose a new folder"
    if not dataset_folder.is_dir():
        raise InputError(f"{dataset_folder} is a file", next_step=advice)
    ours = {target for job in jobs for part in job.parts for target in part.targets}
    folders = {target.parent for target in ours}
    description = dataset_folder / "dataset.json"
    found = [path for path in dataset_folder.iterdir() if path != description and path not in folders]
    found += [path for parent in folders if parent.is_dir() for path in parent.iterdir() if path not in ours]
    foreign = sorted(str(path.relative_to(dataset_folder)) for path in found if not path.name.startswith("."))
    if foreign:
        more = [f"and {len(foreign) - _NAMED} more"] if len(foreign) > _NAMED else []
        raise InputError(
            f"{dataset_folder} holds what this conversion does not make",
            details=foreign[:_NAMED] + more,
            next_step=advice,
        )
    if description.exists() and read_json(description, next_step=advice) != to_plain(content):
        raise InputError(f"{description} is not that of this conversion", next_step=advice)


def _refuse_missing_files(folder: Path, jobs: Sequence[_Job]) -> None:
    sources = [part.source for job in jobs for part in job.parts]
    if missing := [source for source in sources if not source.is_file()]:
        raise InputError(
            f"{len(missing)} of {len(sources)} files that {folder / 'dataset.json'} names are missing",
            details=[str(source.relative_to(folder)) for source in missing],
            next_step="bring them back, or take them out of dataset.json, then run the same command again",
        )


def _header_problems(job: _Job) -> list[str]:
    """Phrases for what keeps a case from being converted, as far as its headers tell."""
    problems = []
    for part in job.parts:
        try:
            held, wanted = count_volumes(part.source), len(part.targets)
        except UnreadableImage as error:
            problems.append(error.problem)
            continue
        if held != wanted:
            rule = f"dataset.json knows {wanted}" if part.kind == "image" else "a label map has one"
            problems.append(f"{part.kind} holds {held} channel{'' if held == 1 else 's'}, {rule}")
    return problems


def _raise_if_bad(jobs: Sequence[_Job], problems: Sequence[Sequence[str]]) -> None:
    bad = [f"{job.identifier}: {'; '.join(found)}" for job, found in zip(jobs, problems, strict=True) if found]
    if bad:
        raise InputError(
            f"{len(bad)} of {len(jobs)} cases cannot be converted",
            details=bad,
            next_step="correct them, or take them out of dataset.json, then run the same command again",
        )


def _convert_cases(jobs: Sequence[_Job], dataset_folder: Path, workers: int | None, on_progress: OnProgress) -> None:
    if jobs:
        sources = [part.source for job in jobs for part in job.parts]
        require_disk(dataset_folder, int(_RECOMPRESSED * sum(source.stat().st_size for source in sources)))
        for folder in {target.parent for job in jobs for part in job.parts for target in part.targets}:
            remove_leftovers(folder)
        (dataset_folder / "dataset.json").unlink(missing_ok=True)  # no dataset until all cases are there again
    problems = for_each_case(
        _convert_case,
        jobs,
        task="convert",
        name=lambda job: job.identifier,
        workers=workers or default_workers(_WORKER_BYTES),
        on_progress=on_progress,
    )
    _raise_if_bad(jobs, problems)


def _convert_case(job: _Job) -> list[str]:
    """Write a case's files; what is wrong with its sources comes back in words, so that the other cases go on."""
    problems = []
    job.record.unlink(missing_ok=True)
    origin = job.origin()
    for part in job.parts:
        try:
            split_volumes(part.source, part.targets)
        except UnreadableImage as error:
            problems.append(error.problem)
    if not problems:
        write_json(job.record, origin)
    return problems
