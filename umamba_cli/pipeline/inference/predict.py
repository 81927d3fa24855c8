"""Predicting files: what to read, what is done already, what is written where."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from umamba_cli.pipeline.data.checks import not_finite_problems, numbering_problems
from umamba_cli.pipeline.data.dataset import Case, find_images
from umamba_cli.pipeline.data.files import replacing
from umamba_cli.pipeline.data.images import file_ending, read_image, write_label_map
from umamba_cli.pipeline.errors import InputError, UmambaError
from umamba_cli.pipeline.geometry import Grid
from umamba_cli.pipeline.inference.ahead import InBackground, one_ahead
from umamba_cli.pipeline.inference.predictor import Exported, Predictor
from umamba_cli.pipeline.preprocessing.case import PreprocessedCase
from umamba_cli.pipeline.progress import OnProgress, Progress, ignore_progress
from umamba_cli.pipeline.runs.network import compile_scan


@dataclass(frozen=True)
class PredictionResult:
    """What `predict_cases` did."""

    predicted: tuple[str, ...]
    skipped: tuple[str, ...]
    """Cases whose prediction was there already."""

    failed: Mapping[str, str]
    """Cases that could not be predicted, and why."""


def find_input(path: Path, ending: str) -> list[Case]:
    """The cases that an INPUT argument means: all images of a folder, or one file with its channels.

    Args:
        path: a folder, or a file; of a case with several channels any one file will do.
        ending: the dataset's file ending.

    Raises:
        InputError: nothing is there.
    """
    if path.is_dir():
        images = find_images(path, ending)
        if not images:
            raise InputError(
                f"{path} holds no *{ending}", next_step=f"put images there, CASE_0000{ending}, or check the path"
            )
        return [Case(name, files) for name, files in sorted(images.items())]
    if not path.is_file():
        raise InputError(f"{path} does not exist", next_step="give a folder of images or one image")
    if not path.name.endswith(ending):
        raise InputError(f"{path.name} is no {ending} file, as the model was trained on", next_step="convert it")
    images = find_images(path.parent, ending)
    return [Case(name, files) for name, files in images.items() if path in files]


def predict_cases(
    predictor: Predictor,
    cases: list[Case],
    output: Path,
    *,
    overwrite: bool = False,
    save_probabilities: bool = False,
    on_progress: OnProgress = ignore_progress,
) -> PredictionResult:
    """Predict cases and write `CASE.nii.gz` (or what the dataset's file ending is) into a folder.

    Finished cases are skipped. A case that fails does not stop the others.

    Raises:
        InputError: the output is the folder of the images.
        WorkError: the output cannot be written.
    """
    ending = predictor.record.dataset.file_ending
    if any(path.resolve().parent == output.resolve() for case in cases for path in case.images):
        raise InputError(
            f"{output} holds the images themselves, label maps beside them would be taken for images",
            next_step="choose another output folder",
        )
    targets = {case.identifier: output / f"{case.identifier}{ending}" for case in cases}

    def is_done(case: Case) -> bool:
        target = targets[case.identifier]
        wanted = [target, *([_probabilities_file(target)] if save_probabilities else [])]
        return not overwrite and all(path.is_file() for path in wanted)

    skipped = [case.identifier for case in cases if is_done(case)]
    todo = [case for case in cases if case.identifier not in skipped]
    predicted: list[str] = []
    failed: dict[str, str] = {}
    compile_scan(predictor.networks, predictor.compute.device, on_progress)

    def report(step: str = "") -> None:
        on_progress(Progress("predict", len(skipped) + len(predicted) + len(failed), len(cases), step=step))

    def readable() -> Iterator[tuple[str, PreprocessedCase]]:
        # The network of a cascade's first stage works on the case here: it would only get in the second one's way.
        prepared = _prepare(predictor, todo)
        for name, case in prepared if predictor.previous else one_ahead(prepared):
            if isinstance(case, InputError):
                failed[name] = case.problem
                report(name)
            else:
                yield name, case

    report()
    with InBackground() as writing:
        begun = (((name, case.geometry.grid), case) for name, case in readable())
        for (name, grid), found in predictor.export(begun, probabilities=save_probabilities):
            writing.call(partial(_write, targets[name], found, grid))
            predicted.append(name)
            report(name)
    return PredictionResult(tuple(predicted), tuple(skipped), failed)


def raise_if_failed(result: PredictionResult) -> None:
    """Raise what a folder command ends with where a case failed.

    Raises:
        UmambaError: with exit code 1, or InputError where not a single case could be used.
    """
    if not result.failed:
        return
    total = len(result.predicted) + len(result.skipped) + len(result.failed)
    kind = UmambaError if total > len(result.failed) else InputError
    raise kind(
        f"{len(result.failed)} of {total} cases could not be predicted",
        details=[f"{name}: {problem}" for name, problem in result.failed.items()],
        next_step="correct or remove them, then run the same command again; finished cases are kept",
    )


def _probabilities_file(target: Path) -> Path:
    """CASE.npz beside CASE.nii.gz."""
    return target.with_name(target.name.removesuffix(file_ending(target)) + ".npz")


def _write(target: Path, found: Exported, grid: Grid) -> None:
    if found.probabilities is not None:
        with replacing(_probabilities_file(target)) as temporary:
            np.savez_compressed(temporary, probabilities=found.probabilities)
    write_label_map(target, found.labels, grid)


def _prepare(predictor: Predictor, cases: Iterable[Case]) -> Iterator[tuple[str, PreprocessedCase | InputError]]:
    """Read and preprocess cases; what is wrong with one comes in its place."""
    for case in cases:
        try:
            yield case.identifier, _preprocessed(predictor, case)
        except InputError as error:
            yield case.identifier, error


def _preprocessed(predictor: Predictor, case: Case) -> PreprocessedCase:
    if problems := numbering_problems(case, predictor.record.dataset):
        raise InputError("; ".join(problems), next_step="give one file a channel, CASE_0000, CASE_0001, ...")
    image = read_image(case.images)
    if problems := not_finite_problems("image", image.voxels):
        raise InputError("; ".join(problems), next_step="correct the image")
    return predictor.preprocess(image)
