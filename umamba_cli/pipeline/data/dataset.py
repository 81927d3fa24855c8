"""A dataset in nnU-Net raw layout: `dataset.json`, `imagesTr/CASE_0000.nii.gz`, `labelsTr/CASE.nii.gz`."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import pydantic

from umamba_cli.pipeline.data.files import read_model
from umamba_cli.pipeline.errors import InputError

BACKGROUND = "background"
IGNORE = "ignore"

Label = int | tuple[int, ...]
"""A value of a label map, or the values of a region."""

Labels = Mapping[str, Label]


class DatasetDescription(pydantic.BaseModel):
    """`dataset.json`. Keys that are not used here are kept."""

    model_config = pydantic.ConfigDict(extra="allow", frozen=True)

    channel_names: dict[str, str] = pydantic.Field(
        validation_alias=pydantic.AliasChoices("channel_names", "modality"), min_length=1
    )
    """Channel index to name; the name decides the normalisation (`CT`, ...)."""

    labels: dict[str, Label]
    """Label name to value; `background` is 0. A list of values makes a region, several labels taken together; `ignore`
    marks voxels that nobody annotated."""

    file_ending: str = pydantic.Field(pattern=r"^\.[A-Za-z0-9.]+$")
    """`.nii.gz`, `.png`, ..."""

    name: str = ""

    regions_class_order: tuple[int, ...] | None = None
    """With regions: the value that each of them writes into a label map, one after the other, the last one on top."""

    @pydantic.field_validator("file_ending")
    @classmethod
    def _one_file_an_image(cls, ending: str) -> str:
        if ending.lower() in (".hdr", ".img", ".mhd", ".nhdr"):
            raise ValueError("images in two files (header and voxels) cannot be used, convert them to .nii.gz or .mha")
        if ending.lower() in (".jpg", ".jpeg"):
            raise ValueError("JPEG changes labels where it compresses them, convert images and labels to .png")
        return ending

    @pydantic.field_validator("channel_names")
    @classmethod
    def _channels_are_counted(cls, names: dict[str, str]) -> dict[str, str]:
        if set(names) != {str(index) for index in range(len(names))}:
            raise ValueError(f"must have the keys 0 to {len(names) - 1}, one for each channel")
        return names

    @pydantic.field_validator("labels")
    @classmethod
    def _labels_are_consecutive(cls, labels: dict[str, Label]) -> dict[str, Label]:
        if labels.get(BACKGROUND) != 0:
            raise ValueError("must have a label `background` that is 0")
        if any(value == () for value in labels.values()):
            raise ValueError("must not have a region without any label")
        each = [single for name, value in labels.items() if name != IGNORE for single in values_of(value)]
        values = sorted(set(each))
        if not _has_regions(labels) and sorted(each) != list(range(len(each))):
            raise ValueError(f"must be 0 to {len(each) - 1}, each once")
        if values != list(range(len(values))):
            raise ValueError(f"must hold every value from 0 to {max(values)}, has {', '.join(map(str, values))}")
        if len(values) < 2:
            raise ValueError("must have at least one label besides the background")
        if same := _same_regions(labels):
            raise ValueError(f"must not have the same values in {same[0]} and {same[1]}")
        if IGNORE in labels and labels[IGNORE] != len(values):
            raise ValueError(f"must have {len(values)} as `ignore`, one more than the highest label")
        return labels

    @pydantic.field_validator("regions_class_order")
    @classmethod
    def _as_many_as_regions(
        cls, order: tuple[int, ...] | None, info: pydantic.ValidationInfo
    ) -> tuple[int, ...] | None:
        labels = info.data.get("labels")
        if labels is None or not _has_regions(labels):
            return order
        regions, values = _regions(labels), set(_values(labels))
        if order is not None and len(order) != len(regions):
            raise ValueError(f"must have {len(regions)} values, one for each of {', '.join(regions)}")
        if order is not None and not set(order) <= values:
            raise ValueError(f"must hold labels only: {', '.join(map(str, sorted(values)))}")
        return order

    @pydantic.model_validator(mode="after")
    def _regions_have_an_order(self) -> DatasetDescription:
        if self.has_regions and self.regions_class_order is None:
            raise ValueError("must have regions_class_order, a value for each region, because labels holds regions")
        return self

    @property
    def has_regions(self) -> bool:
        """True where a label is a list of several values."""
        return _has_regions(self.labels)

    @property
    def ignore_label(self) -> int | None:
        """The value of voxels that nobody annotated, where there is one."""
        value = self.labels.get(IGNORE)
        return value if isinstance(value, int) else None

    @property
    def regions(self) -> dict[str, tuple[int, ...]]:
        """What is to be told apart, without the background: name to the values that make it, in their order."""
        return _regions(self.labels)

    @property
    def known_values(self) -> tuple[int, ...]:
        """Every value that a label map may hold, `ignore` included."""
        return _values(self.labels) if self.ignore_label is None else (*_values(self.labels), self.ignore_label)

    @cached_property
    def foreground(self) -> dict[int, str]:
        """Label value to name, without background and `ignore`, by value; within regions the smallest one's name."""
        smallest_last = sorted(self.regions.items(), key=lambda item: -len(item[1]))
        names = {value: name for name, values in smallest_last for value in values}
        return dict(sorted(names.items()))

    @property
    def targets(self) -> dict[Label, str]:
        """What is to be told apart, to its name: the regions where there are some, otherwise the foreground's labels.

        In the order of the network's outputs, of which the background's, where there are no regions, is not among them.
        """
        if self.has_regions:
            return {self.labels[name]: name for name in self.regions}
        return dict(self.foreground.items())

    @property
    def num_classes(self) -> int:
        """Values of a label map, the background included, `ignore` not."""
        return len(_values(self.labels))

    @property
    def num_outputs(self) -> int:
        """Outputs of a network: one for each region, or one for each label and the background."""
        return len(self.regions) if self.has_regions else self.num_classes

    @property
    def num_channels(self) -> int:
        """Channels of an image."""
        return len(self.channel_names)


def values_of(value: Label) -> tuple[int, ...]:
    """The values that a label or region stands for."""
    return (value,) if isinstance(value, int) else value


def _has_regions(labels: Labels) -> bool:
    return any(len(values_of(value)) > 1 for value in labels.values())


def _regions(labels: Labels) -> dict[str, tuple[int, ...]]:
    named = {name: values_of(value) for name, value in labels.items() if name != IGNORE}
    return {name: values for name, values in named.items() if set(values) != {0}}


def _same_regions(labels: Labels) -> tuple[str, str] | None:
    """The names of the first two regions that are made of the same values."""
    first: dict[frozenset[int], str] = {}
    for name, values in _regions(labels).items():
        if (other := first.setdefault(frozenset(values), name)) != name:
            return min(other, name), max(other, name)
    return None


def _values(labels: Labels) -> tuple[int, ...]:
    """Every value from the background up, `ignore` left out."""
    return tuple(sorted({0}.union(*_regions(labels).values())))


@dataclass(frozen=True)
class Case:
    """One patient or picture."""

    identifier: str

    images: tuple[Path, ...]
    """A file for each channel, or one file that holds them all."""

    label: Path | None = None
    """The label map, where there is one."""

    conflicts: tuple[str, ...] = ()
    """What is wrong with the names of its files, in short phrases."""


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
        known = {composed(case.identifier): case for case in self.cases}
        if missing := [name for name in identifiers if composed(name) not in known]:
            raise InputError(
                f"{len(missing)} of {len(identifiers)} cases are not in {self.folder}",
                details=missing,
                next_step="correct splits.json or bring the cases back",
            )
        return [known[composed(name)] for name in identifiers]


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

    A label without any image is a case too, so that `check` can name it. Image and label may write a letter of their
    name in different ways (see `composed`); the image's is the identifier.

    Raises:
        InputError: no dataset is there, or it holds no case.
    """
    folder = folder.resolve()
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder", next_step="give the folder of a dataset in nnU-Net raw layout")
    description = read_description(folder / "dataset.json")
    ending = description.file_ending
    images = find_images(folder / "imagesTr", ending)
    labels = _by_name((path.name[: -len(ending)], path) for path in _files(folder / "labelsTr", ending))
    cases = [_case(name, files, labels.pop(composed(name), [])) for name, files in images.items()]
    cases += [_case(files[0].name[: -len(ending)], (), files) for files in labels.values()]
    if not cases:
        raise InputError(
            f"{folder} holds no case: no *{ending} in imagesTr and labelsTr",
            next_step=f"put images at imagesTr/CASE_0000{ending} and labels at labelsTr/CASE{ending}",
        )
    return Dataset(folder, description, tuple(sorted(_with_clashes(cases), key=lambda case: case.identifier)))


def find_images(folder: Path, ending: str) -> dict[str, tuple[Path, ...]]:
    """Image files by case, the files of a case in the order of their channel number (`CASE_0000`, `CASE_0001`, ...)."""
    found = _by_name((_identifier(path, ending), path) for path in _files(folder, ending))
    return {
        _identifier(paths[0], ending): tuple(sorted(paths, key=lambda path: composed(path.name)))
        for paths in found.values()
    }


def composed(text: str) -> str:
    """The same text with letter and accent as one character: names are compared so.

    Systems disagree about the two, so that a name may come back otherwise than it was written: macOS takes them apart.
    """
    return unicodedata.normalize("NFC", text)


def same_name_problem(paths: Sequence[Path]) -> str:
    """A phrase for files that are told apart by their bytes alone, which it shows."""
    return f"{' and '.join(ascii(path.name) for path in paths)} have the same name"


def _by_name(named: Iterable[tuple[str, Path]]) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = defaultdict(list)
    for name, path in named:
        found[composed(name)].append(path)
    return found


def _case(identifier: str, images: tuple[Path, ...], labels: Sequence[Path]) -> Case:
    conflicts = (same_name_problem(labels),) if len(labels) > 1 else ()
    return Case(identifier, images, labels[0] if labels else None, conflicts)


def _with_clashes(cases: Sequence[Case]) -> Iterator[Case]:
    """The same cases, those among them noted that would overwrite another one in the preprocessed store."""
    names = {case.identifier for case in cases}
    for case in cases:
        other = case.identifier.removesuffix("_seg")
        if other != case.identifier and other in names:
            clash = f"its preprocessed image and the label map of {other} would be one file, {case.identifier}.b2nd"
            yield replace(case, conflicts=(*case.conflicts, clash))
        else:
            yield case


def _identifier(path: Path, ending: str) -> str:
    stem = path.name[: -len(ending)]
    head, _, number = stem.rpartition("_")
    return head if head and len(number) == 4 and number.isascii() and number.isdigit() else stem


def _files(folder: Path, ending: str) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.name.endswith(ending) and not path.name.startswith("."))
