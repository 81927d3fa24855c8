"""Predicting files: what is done already, what is to be done, and one bad case among good ones."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from umamba_cli.pipeline.data.checks import not_finite_problems
from umamba_cli.pipeline.data.dataset import DatasetDescription
from umamba_cli.pipeline.data.images import Image
from umamba_cli.pipeline.data.inputs import InputCase
from umamba_cli.pipeline.devices import out_of_memory
from umamba_cli.pipeline.errors import InputError, UmambaError, WorkError
from umamba_cli.pipeline.geometry import Grid
from umamba_cli.pipeline.inference.ahead import InBackground, one_ahead
from umamba_cli.pipeline.inference.export import LABELS_ALONE, Exported, Wanted
from umamba_cli.pipeline.inference.folder import PredictionFolder
from umamba_cli.pipeline.inference.origin import Origin
from umamba_cli.pipeline.progress import OnProgress, Progress, ignore_progress

Prepared = TypeVar("Prepared")
Key = TypeVar("Key")

_PLACES = {"device": "on the device", "memory": "in memory", "file": "in a temporary file"}


class Described(Protocol):
    """What makes predictions, as far as their folder must know it."""

    @property
    def dataset(self) -> DatasetDescription:
        """Says what the labels mean, and how many channels an image has."""

    @property
    def described(self) -> Mapping[str, Any]:
        """All that predictions depend on, for JSON."""


class Segmenter(Described, Protocol[Prepared]):
    """What finds labels in images: a model, or several."""

    @property
    def prepares_ahead(self) -> bool:
        """Whether the next image may be prepared while the networks work on the one before."""

    def compile(self, on_progress: OnProgress) -> None:
        """Compile what must be, before the first case."""

    def prepare(self, image: Image) -> Prepared:
        """An image as the networks see it.

        Raises:
            InputError: it is none that they can see.
        """

    def export(self, cases: Iterable[tuple[Key, Prepared]], wanted: Wanted) -> Iterator[tuple[Key, Exported]]:
        """What is found in each case, in the order of the cases."""


@dataclass(frozen=True)
class PredictionResult:
    """What `predict_cases` did."""

    predicted: tuple[str, ...]
    skipped: tuple[str, ...]
    """Cases whose prediction was there already."""

    failed: Mapping[str, str]
    """Cases that could not be predicted, and why."""

    sums: Mapping[str, str] = field(default_factory=dict)
    """Where the sums of tiles lay of each case that was predicted, see `tile_sums.PLACES`."""

    @property
    def total(self) -> int:
        """Cases in all."""
        return len(self.predicted) + len(self.skipped) + len(self.failed)


def predict_cases(
    segmenter: Segmenter[Any],
    cases: Sequence[InputCase],
    output: Path,
    *,
    wanted: Wanted = LABELS_ALONE,
    overwrite: bool = False,
    on_progress: OnProgress = ignore_progress,
) -> PredictionResult:
    """Predict cases and write what is found into a folder, each label map in the format of its image.

    Finished cases are skipped. A case that fails does not stop the others.

    Raises:
        InputError: the output is the folder of the images, or holds predictions of another model.
        WorkError: the output cannot be written.
    """
    folder = open_output(segmenter, cases, output, wanted=wanted, overwrite=overwrite, on_progress=on_progress)
    work = _Work(segmenter, folder, cases, overwrite, on_progress)
    segmenter.compile(on_progress)
    work.report()
    alone = False  # after an error cases are worked on one by one: in a batch nobody knows whose it was
    with InBackground() as writing:
        while left := work.left():
            try:
                for read, found in work.stream(left[:1] if alone else left):
                    writing.call(partial(work.write, read, found))
                    work.finished(read.case, found)
            except Exception as error:
                if not (isinstance(error, WorkError) or out_of_memory(error)) or writing.failed:
                    raise
                if alone:
                    work.fail(left[0], error.problem if isinstance(error, WorkError) else "memory ran out")
                alone = True
    return PredictionResult(tuple(work.sums), tuple(work.skipped), work.failed, work.sums)


def open_output(
    segmenter: Described,
    cases: Sequence[InputCase],
    output: Path,
    *,
    wanted: Wanted,
    overwrite: bool,
    on_progress: OnProgress = ignore_progress,
) -> PredictionFolder:
    """The folder to predict into, which is seen to be one that can be.

    Raises:
        InputError, WorkError: see `predict_cases`.
    """
    folders = [source if case.series is not None else source.parent for case in cases for source in case.sources]
    folders += [
        Path(os.path.realpath(source)).parent for case in cases if case.series is None for source in case.sources
    ]
    refuse_same_folder(folders, output)
    folder = PredictionFolder(output, segmenter.dataset, segmenter.described, wanted)
    if kept := folder.begin(cases, overwrite=overwrite):
        some = ", ".join(kept[:3]) + (", ..." if len(kept) > 3 else "")
        text = f"{len(kept)} label maps in {output} are no predictions of this program and are kept: {some}"
        on_progress(Progress("predict", 0, len(cases), warning=text))
    return folder


def refuse_same_folder(inputs: Iterable[Path], output: Path) -> None:
    """Refuse to write label maps where images are looked for.

    Raises:
        InputError: the output is one of the inputs.
    """
    if os.path.realpath(output) in {os.path.realpath(path) for path in inputs}:
        raise InputError(
            f"{output} holds the images themselves, label maps beside them would be taken for images",
            next_step="choose another output folder",
        )


@dataclass(frozen=True)
class _Read:
    """A case that was read."""

    case: InputCase
    grid: Grid
    origin: Origin


class _Work:
    """The cases of one call, and how far they are."""

    def __init__(
        self,
        segmenter: Segmenter[Any],
        folder: PredictionFolder,
        cases: Sequence[InputCase],
        overwrite: bool,
        on_progress: OnProgress,
    ) -> None:
        self._segmenter, self._folder, self._on_progress = segmenter, folder, on_progress
        self.skipped = [] if overwrite else [case.identifier for case in cases if folder.is_done(case)]
        skipped = set(self.skipped)
        self._todo = [case for case in cases if case.identifier not in skipped]
        self._total = len(cases)
        self.failed = {case.identifier: why for case in self._todo if (why := folder.unusable(case))}
        self.sums: dict[str, str] = {}
        self._shown = ""

    def left(self) -> list[InputCase]:
        return [case for case in self._todo if case.identifier not in self.failed.keys() | self.sums.keys()]

    def report(self, step: str = "", note: str = "") -> None:
        done = len(self.skipped) + len(self.sums) + len(self.failed)
        self._on_progress(Progress("predict", done, self._total, step=step, note=note))

    def finished(self, case: InputCase, found: Exported) -> None:
        self.sums[case.identifier] = found.sums
        note = "" if found.sums == self._shown else f"sums of tiles lie {_PLACES[found.sums]}"
        self._shown = found.sums
        self.report(case.identifier, note)

    def fail(self, case: InputCase, why: str) -> None:
        self.sums.pop(case.identifier, None)
        self.failed[case.identifier] = why
        self.report(case.identifier)

    def write(self, read: _Read, found: Exported) -> None:
        """Called in another thread."""
        try:
            self._folder.write(read.case, found, read.grid, read.origin)
        except InputError as error:  # its format cannot hold what was found
            self.fail(read.case, error.problem)
        except Exception as error:
            if not out_of_memory(error):
                raise
            self.fail(read.case, "memory ran out while it was written")

    def stream(self, cases: Sequence[InputCase]) -> Iterator[tuple[_Read, Exported]]:
        """What is found in the cases that can be read; what is wrong with the others is noted."""
        prepared = self._prepared(cases)
        # Where preparing needs a network itself (a cascade's first stage) the two would only get in each other's way.
        coming = one_ahead(prepared) if self._segmenter.prepares_ahead else prepared
        return self._segmenter.export(self._usable(coming), self._folder.wanted)

    def _usable(self, coming: Iterable[tuple[InputCase, tuple[_Read, Any] | str]]) -> Iterator[tuple[_Read, Any]]:
        for case, found in coming:
            if isinstance(found, str):
                self.fail(case, found)
            else:
                yield found

    def _prepared(self, cases: Iterable[InputCase]) -> Iterator[tuple[InputCase, tuple[_Read, Any] | str]]:
        """What was read of each case and what the networks see, or what is wrong with it."""
        for case in cases:
            try:
                origin = self._folder.origin(case)
                image = read_case(case, self._segmenter.dataset)
                yield case, (_Read(case, image.grid, origin), self._segmenter.prepare(image))
            except InputError as error:
                yield case, "; ".join([error.problem, *error.details])
            except OSError as error:
                yield case, f"{error.strerror or error}: {error.filename}"
            except Exception as error:
                if not out_of_memory(error):
                    raise
                yield case, "memory ran out while it was read"


def read_case(case: InputCase, dataset: DatasetDescription) -> Image:
    """Read an image and see that it can be used.

    Raises:
        InputError: it cannot.
    """
    image = case.read(dataset.num_channels)
    if problems := not_finite_problems("image", image.voxels):
        raise InputError("; ".join(problems), next_step="correct the image")
    return image


def raise_if_failed(result: PredictionResult) -> None:
    """Raise what a folder command ends with where a case failed.

    Raises:
        UmambaError: with exit code 1, or InputError where not a single case could be used.
    """
    if not result.failed:
        return
    kind = UmambaError if result.total > len(result.failed) else InputError
    raise kind(
        f"{len(result.failed)} of {result.total} cases could not be predicted",
        details=[f"{name}: {problem}" for name, problem in result.failed.items()],
        next_step="correct or remove them, then run the same command again; finished cases are kept",
    )
