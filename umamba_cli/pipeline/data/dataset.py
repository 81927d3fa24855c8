"""A dataset in nnU-Net raw layout: `dataset.json`, `imagesTr/CASE_0000.nii.gz`, `labelsTr/CASE.nii.gz`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pydantic

from umamba_cli.pipeline.data.files import read_model
from umamba_cli.pipeline.errors import InputError

BACKGROUND = "background"
IGNORE = "ignore"


class DatasetDescription(pydantic.BaseModel):
    """`dataset.json`. Keys that are not used here are kept."""

    model_config = pydantic.ConfigDict(extra="allow", frozen=True)

    channel_names: dict[str, str] = pydantic.Field(
        validation_alias=pydantic.AliasChoices("channel_names", "modality"), min_length=1
    )
    """Channel index to name; the name decides the normalisation (`CT`, ...)."""

    labels: dict[str, int]
    """Label name to value; `background` is 0."""

    file_ending: str = pydantic.Field(pattern=r"^\.[A-Za-z0-9.]+$")
    """`.nii.gz`, `.png`, ..."""

    name: str = ""

    @pydantic.field_validator("file_ending")
    @classmethod
    def _one_file_an_image(cls, ending: str) -> str:
        if ending.lower() in (".hdr", ".img", ".mhd", ".nhdr"):
            raise ValueError("images in two files (header and voxels) cannot be used, convert them to .nii.gz or .mha")
        return ending

    @pydantic.field_validator("labels", mode="before")
    @classmethod
    def _labels_are_plain(cls, labels: object) -> object:
        if not isinstance(labels, dict):
            return labels
        if any(isinstance(value, list | tuple) for value in labels.values()):
            raise ValueError("regions (a label that is a list) cannot be trained yet, give each label one number")
        if IGNORE in labels:
            raise ValueError("an ignore label cannot be trained yet")
        return labels

    @pydantic.field_validator("labels")
    @classmethod
    def _labels_are_consecutive(cls, labels: dict[str, int]) -> dict[str, int]:
        if labels.get(BACKGROUND) != 0:
            raise ValueError("must have a label `background` that is 0")
        if sorted(labels.values()) != list(range(len(labels))):
            raise ValueError(f"must be 0 to {len(labels) - 1}, each once")
        if len(labels) < 2:
            raise ValueError("must have at least one label besides the background")
        return labels

    @cached_property
    def foreground(self) -> dict[int, str]:
        """Label value to name, without the background, by value."""
        return {value: name for name, value in sorted(self.labels.items(), key=lambda item: item[1]) if value != 0}

    @property
    def num_classes(self) -> int:
        """Labels including the background."""
        return len(self.labels)

    @property
    def num_channels(self) -> int:
        """Channels of an image."""
        return len(self.channel_names)


@dataclass(frozen=True)
class Case:
    """One patient or picture."""

    identifier: str

    images: tuple[Path, ...]
    """A file for each channel, or one file that holds them all."""

    label: Path | None = None
    """The label map, where there is one."""


@dataclass(frozen=True)
class Dataset:
    """A folder in nnU-Net raw layout and the training cases found in it, sorted by identifier."""

    folder: Path
    description: DatasetDescription
    cases: tuple[Case, ...]

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name

    def select(self, identifiers: Sequence[str]) -> list[Case]:
        """The cases of these identifiers, in their order.

        Raises:
            InputError: an identifier is not in the dataset.
        """
        known = {case.identifier: case for case in self.cases}
        if missing := [name for name in identifiers if name not in known]:
            raise InputError(
                f"{len(missing)} of {len(identifiers)} cases are not in {self.folder}",
                details=missing,
                next_step="correct splits.json or bring the cases back",
            )
        return [known[name] for name in identifiers]


def read_description(path: Path) -> DatasetDescription:
    """Read and validate a `dataset.json`.

    Raises:
        InputError: the file is missing or does not hold what it must.
    """
    return read_model(
        path, DatasetDescription, next_step="give the folder of a dataset in nnU-Net raw layout (with dataset.json)"
    )


def open_dataset(folder: Path) -> Dataset:
    """Open a dataset and find its training cases; images are not read.

    A label without any image is a case too, so that `check` can name it.

    Raises:
        InputError: no dataset is there, or it holds no case.
    """
    folder = folder.resolve()
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder", next_step="give the folder of a dataset in nnU-Net raw layout")
    description = read_description(folder / "dataset.json")
    ending = description.file_ending
    images = find_images(folder / "imagesTr", ending)
    labels = {path.name[: -len(ending)]: path for path in _files(folder / "labelsTr", ending)}
    identifiers = sorted(images.keys() | labels.keys())
    if not identifiers:
        raise InputError(
            f"{folder} holds no case: no *{ending} in imagesTr and labelsTr",
            next_step=f"put images at imagesTr/CASE_0000{ending} and labels at labelsTr/CASE{ending}",
        )
    cases = tuple(Case(name, images.get(name, ()), labels.get(name)) for name in identifiers)
    return Dataset(folder, description, cases)


def find_images(folder: Path, ending: str) -> dict[str, tuple[Path, ...]]:
    """Image files by case, the files of a case in the order of their channel number (`CASE_0000`, `CASE_0001`, ...)."""
    found: dict[str, list[Path]] = defaultdict(list)
    for path in _files(folder, ending):
        found[_identifier(path, ending)].append(path)
    return {name: tuple(sorted(paths)) for name, paths in found.items()}


def _identifier(path: Path, ending: str) -> str:
    stem = path.name[: -len(ending)]
    head, underscore, number = stem.rpartition("_")
    return head if underscore and len(number) == 4 and number.isdigit() else stem


def _files(folder: Path, ending: str) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.name.endswith(ending) and not path.name.startswith("."))
