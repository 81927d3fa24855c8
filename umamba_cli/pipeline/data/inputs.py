"""What is to be predicted: the images that a folder, a file, a list of files or a DICOM folder means."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from umamba_cli.pipeline.data import dicom
from umamba_cli.pipeline.data.checks import numbering_problems
from umamba_cli.pipeline.data.dataset import composed, find_images
from umamba_cli.pipeline.data.dicom import Series, find_series, holds_dicom
from umamba_cli.pipeline.data.images import IMAGE_ENDINGS, PICTURE_ENDINGS, Image, file_ending, read_image
from umamba_cli.pipeline.errors import InputError

_LIST_ENDING = ".txt"
_MOST_NAMED = 10


@dataclass(frozen=True)
class InputCase:
    """One image to be predicted, on the disk."""

    identifier: str

    sources: tuple[Path, ...]
    """A file for each channel, one file that holds them all, or a DICOM folder."""

    ending: str
    """Of the files; "" of DICOM folders, and of DICOM files without one."""

    series: tuple[str, ...] | None = None
    """Of a DICOM folder: the series asked for, one for each channel, none where there is only one. None: no folder."""

    def read(self, channels: int) -> Image:
        """Read the image, which should have so many channels.

        Raises:
            InputError: a file is missing, damaged or does not fit the others, or the folder holds several series.
        """
        if self.series is not None:
            return read_image(choose_series(self.sources[0], self.series))
        if problems := numbering_problems(self.identifier, self.sources, channels, self.ending):
            raise InputError("; ".join(problems), next_step="give one file a channel, CASE_0000, CASE_0001, ...")
        return read_image(self.sources, volumes_are_channels=True)

    @property
    def files(self) -> tuple[Path, ...]:
        """The files there are now."""
        if self.series is None:
            return self.sources
        return tuple(sorted(path for path in self.sources[0].iterdir() if path.is_file()))


@dataclass(frozen=True)
class Found:
    """What inputs mean."""

    cases: tuple[InputCase, ...]
    notes: tuple[str, ...] = ()
    """What was left out, and why."""


def find_cases(inputs: Sequence[Path], ending: str, *, series: Sequence[str] = (), may_be_empty: bool = False) -> Found:
    """The cases that INPUT arguments mean, by identifier.

    Args:
        inputs: folders of images, images (of a case with several channels any file will do), text files with such a
            path in each line, DICOM folders, or folders that hold DICOM folders.
        ending: of the files that the model was trained on; taken where a folder has some, otherwise all images are.
        series: of DICOM folders that hold several, one for each channel: number, description or UID.
        may_be_empty: a folder without any image is no error.

    Raises:
        InputError: nothing is there, or two different images have one name.
    """
    search = _Search(ending, tuple(series), may_be_empty)
    by_name: dict[str, dict[tuple[str, ...], InputCase]] = defaultdict(dict)
    try:
        for path in _listed(inputs):
            for case in search.cases_of(path):
                sources = tuple(os.path.realpath(source) for source in case.sources)
                by_name[composed(case.identifier)].setdefault(sources, case)
    except OSError as error:  # a name too long, a folder that may not be read
        raise InputError(
            f"{error.filename or 'an input'} cannot be read: {error.strerror or error}", next_step="check the path"
        ) from error
    notes = list(dict.fromkeys(search.notes))
    if several := [list(cases.values()) for cases in by_name.values() if len(cases) > 1]:
        named = [" and ".join(str(case.sources[0]) for case in cases) for cases in several[:_MOST_NAMED]]
        if not may_be_empty:
            raise InputError(
                f"{len(several)} cases have the name of another one",
                details=named,
                next_step="rename them, or predict them into different folders",
            )
        notes += [f"left out, because they have the same name: {both}" for both in named]
    cases = [case for same in by_name.values() if len(same) == 1 for case in same.values()]
    return Found(tuple(sorted(cases, key=lambda case: case.identifier)), tuple(notes))


def choose_series(folder: Path, wanted: Sequence[str]) -> list[Series]:
    """The series of a DICOM folder that are asked for; all where it holds only one.

    Args:
        folder: the files themselves lie in it.
        wanted: number, description (or a part of it) or UID of a series, one for each channel.

    Raises:
        InputError: it holds several and none is asked for, or not exactly one fits.
    """
    found = find_series(folder)
    if not wanted and len(found) == 1:
        return found
    details = [series.title for series in found]
    choose = "choose with --series, by number, description or UID; once for each channel"
    if not wanted:
        raise InputError(f"{folder} holds {len(found)} DICOM series", details=details, next_step=choose)
    chosen = []
    for text in wanted:
        fitting = [series for series in found if text in (series.uid, str(series.number))] or [
            series for series in found if text.casefold() == series.description.casefold()
        ]
        fitting = fitting or [series for series in found if text.casefold() in series.description.casefold()]
        if len(fitting) != 1:
            problem = (
                f"{text!r} fits {len(fitting)} series of {folder}" if fitting else f"no series of {folder} is {text!r}"
            )
            raise InputError(problem, details=details, next_step=choose)
        chosen += fitting
    return chosen


def _listed(inputs: Sequence[Path]) -> Iterator[Path]:
    """The inputs, in place of a list what is in it."""
    for path in inputs:
        if path.suffix.lower() != _LIST_ENDING or not path.is_file():
            yield path
            continue
        try:
            lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path} cannot be read: {error}", next_step="write one path a line into it") from error
        named = [path.parent / line for line in lines if line and not line.startswith("#")]
        missing = [str(entry) for entry in named if not entry.exists() or entry.suffix.lower() == _LIST_ENDING]
        if missing or not named:
            raise InputError(
                f"{len(missing)} of {len(named)} paths in {path} are no images" if named else f"{path} names no image",
                details=missing[:_MOST_NAMED],
                next_step="write one path a line into it; paths are seen from the list's folder",
            )
        yield from named


class _Search:
    """Looks for cases in one folder after the other."""

    def __init__(self, ending: str, series: tuple[str, ...], may_be_empty: bool) -> None:
        self._ending, self._series, self._may_be_empty = ending, series, may_be_empty
        self._images: dict[tuple[Path, str], dict[str, tuple[Path, ...]]] = {}
        self.notes: list[str] = []

    def cases_of(self, path: Path) -> list[InputCase]:
        if path.is_dir():
            cases = self._cases_in(path)
            if not cases and not self._may_be_empty:
                raise InputError(
                    f"{path} holds no *{self._ending}, nor any other image",
                    next_step=f"put images there, CASE_0000{self._ending}, or check the path",
                )
            return cases
        if not path.is_file():
            raise InputError(f"{path} does not exist", next_step="give a folder of images, an image, or a list of them")
        own = file_ending(path, self._ending)
        if own in dicom.ENDINGS or (own not in (*IMAGE_ENDINGS, self._ending) and dicom.is_dicom(path)):
            suffix = path.suffix if own in dicom.ENDINGS else ""  # without one the name may be a number with points
            return [InputCase(path.name.removesuffix(suffix), (path,), suffix)]
        if own not in (*IMAGE_ENDINGS, self._ending) or path.name.startswith("."):
            raise InputError(f"{path} is no image that can be read", next_step="convert or rename it")
        known = path.name[-len(own) :]
        images = self._find(path.parent, known)
        return [InputCase(name, files, known) for name, files in images.items() if path in files]

    def _find(self, folder: Path, ending: str) -> dict[str, tuple[Path, ...]]:
        if (folder, ending) not in self._images:
            self._images[folder, ending] = find_images(folder, ending)
        return self._images[folder, ending]

    def _cases_in(self, folder: Path) -> list[InputCase]:
        """The images of the training's kind; without any all volumes, DICOM too; without any of these all pictures."""
        there = {known: self._find(folder, known) for known in (self._ending, *_endings_in(folder))}
        if there[self._ending]:
            cases = self._of(there, [self._ending])
            below = [path for path in folder.iterdir() if path.is_dir()]
            self._leave_out(folder, there, cases, len(self._dicom([folder, *below], folder)))
            return cases
        cases = self._of(there, [known for known in there if known.lower() not in PICTURE_ENDINGS])
        found = self._dicom([folder, *sorted(folder.rglob("*"))], folder)
        cases += found
        if not cases:
            return self._of(there, list(there))
        self._leave_out(folder, there, cases, 0)
        return cases

    def _of(self, there: Mapping[str, Mapping[str, tuple[Path, ...]]], endings: Sequence[str]) -> list[InputCase]:
        return [InputCase(name, files, known) for known in endings for name, files in there[known].items()]

    def _dicom(self, folders: Sequence[Path], top: Path) -> list[InputCase]:
        """A case of each folder that holds DICOM."""
        cases = []
        for folder in folders:
            parts = folder.relative_to(top).parts
            if not folder.is_dir() or any(part.startswith(".") for part in parts):
                continue
            try:
                if not holds_dicom(folder):
                    continue
            except InputError as error:  # a folder like lost+found
                self.notes.append(f"{error.problem}; it is left out")
                continue
            if not parts:
                choose_series(folder, self._series)  # several are told of before anything is read
            name = "_".join(parts) or folder.resolve().name
            cases.append(InputCase(name, (folder,), "", self._series))
        return cases

    def _leave_out(
        self,
        folder: Path,
        there: Mapping[str, Mapping[str, tuple[Path, ...]]],
        taken: Sequence[InputCase],
        more: int,
    ) -> None:
        """Note what is not taken."""
        wanted = {case.ending for case in taken}
        images = sum(len(found) for known, found in there.items() if known not in wanted)
        if images + more:
            what = [f"{images} images of other formats"] * bool(images) + [f"{more} DICOM folders"] * bool(more)
            kind = self._ending if there[self._ending] else "volumes"
            self.notes.append(f"{' and '.join(what)} in {folder} are left out, where there are {kind}")


def _endings_in(folder: Path) -> list[str]:
    """The endings of images in a folder, as they are written there."""
    names = [path.name for path in folder.iterdir() if not path.name.startswith(".") and path.is_file()]
    endings = [(name, file_ending(Path(name))) for name in names]
    found = {name[-len(known) :] for name, known in endings if known in IMAGE_ENDINGS}
    return sorted(found - {*dicom.ENDINGS, ".img"})  # .img is the second half of .hdr
