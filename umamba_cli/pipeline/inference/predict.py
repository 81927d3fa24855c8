"""Predicting files: what to read, what is done already, what is written where."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from umamba_cli.pipeline.data.checks import not_finite_problems, numbering_problems
from umamba_cli.pipeline.data.dataset import Case, find_images
from umamba_cli.pipeline.data.files import replacing
from umamba_cli.pipeline.data.images import file_ending, read_image, write_label_map
from umamba_cli.pipeline.errors import InputError, UmambaError
from umamba_cli.pipeline.inference.export import labels_on_image_grid, probabilities_on_image_grid
from umamba_cli.pipeline.inference.predictor import Predictor
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
    predicted, skipped, failed = [], [], {}
    compile_scan(predictor.networks, predictor.compute.device, on_progress)
    on_progress(Progress("predict", 0, len(cases)))
    for done, case in enumerate(cases, start=1):
        target = output / f"{case.identifier}{ending}"
        wanted = [target, *([_probabilities_file(target)] if save_probabilities else [])]
        if not overwrite and all(path.is_file() for path in wanted):
            skipped.append(case.identifier)
        else:
            try:
                _predict_case(predictor, case, target, save_probabilities)
                predicted.append(case.identifier)
            except InputError as error:
                failed[case.identifier] = error.problem
        on_progress(Progress("predict", done, len(cases), step=case.identifier))
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


def _predict_case(predictor: Predictor, case: Case, target: Path, save_probabilities: bool) -> None:
    if problems := numbering_problems(case, predictor.record.dataset):
        raise InputError("; ".join(problems), next_step="give one file a channel, CASE_0000, CASE_0001, ...")
    image = read_image(case.images)
    if problems := not_finite_problems("image", image.voxels):
        raise InputError("; ".join(problems), next_step="correct the image")
    preprocessed = predictor.preprocess(image)
    logits = predictor.logits(preprocessed.image)
    how = preprocessed.geometry, predictor.record.network_configuration, predictor.record.dataset
    if save_probabilities:
        with replacing(_probabilities_file(target)) as temporary:
            np.savez_compressed(temporary, probabilities=probabilities_on_image_grid(logits, *how))
    write_label_map(target, labels_on_image_grid(logits, *how), preprocessed.geometry.grid)
