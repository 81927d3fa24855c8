"""The whole way on a phantom dataset: plan, preprocess, train, predict, evaluate, and a picture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from umamba_cli.pipeline.data.dataset import find_images, open_dataset
from umamba_cli.pipeline.data.images import read_image, read_label_map
from umamba_cli.pipeline.data.inputs import find_cases
from umamba_cli.pipeline.data.workspace import Workspace, open_workspace
from umamba_cli.pipeline.devices import choose_compute
from umamba_cli.pipeline.evaluation.case import Task
from umamba_cli.pipeline.evaluation.evaluate import evaluate_folders
from umamba_cli.pipeline.evaluation.results import Evaluation
from umamba_cli.pipeline.evaluation.tables import write_summary
from umamba_cli.pipeline.inference.predict import predict_cases, raise_if_failed
from umamba_cli.pipeline.inference.predictor import load_predictor
from umamba_cli.pipeline.planning.planner import PlanOptions
from umamba_cli.pipeline.preprocessing.dataset import preprocess_workspace
from umamba_cli.pipeline.progress import OnProgress, ignore_progress
from umamba_cli.pipeline.reporting.overlay import draw_side_by_side
from umamba_cli.pipeline.training.settings import SettingsChosen
from umamba_cli.pipeline.workflows.phantom import draw_phantom_dataset
from umamba_cli.pipeline.workflows.plan import plan_workspace
from umamba_cli.pipeline.workflows.train import TrainingJob, train_fold

MODEL, CONFIGURATION = "umamba-bot", "3d_fullres"
TRAINING_CASES, TEST_CASES = 20, 6

# Three minutes on two cores. A schedule this short leaves no time for momentum 0.99 to settle.
SCHEDULE = SettingsChosen(epochs=10, iterations=40, learning_rate=0.03, momentum=0.9)


@dataclass(frozen=True)
class DemoResult:
    """What the demo made."""

    evaluation: Evaluation
    """Of the phantoms that the model was not trained on."""

    picture: Path
    """Image, reference and prediction of one of them, side by side."""


def run_demo(
    folder: Path,
    *,
    restart: bool = False,
    workers: int | None = None,
    threads: int | None = None,
    on_progress: OnProgress = ignore_progress,
) -> DemoResult:
    """Draw a dataset and go the whole way with `umamba-bot` on the CPU; what an earlier run finished is kept.

    Args:
        folder: to work in; gets a dataset, a workspace, predictions and a picture.
        restart: train again even where a training is there.
        workers: processes; None means what the machine allows.
        threads: that compute; None means all usable cores.
        on_progress: told of every stage.

    Raises:
        InputError: the folder cannot be used.
        WorkError: a stage failed.
    """
    raw, predictions = folder / "Dataset001_Phantom", folder / "predictions"
    if not (raw / "dataset.json").is_file():  # written last
        draw_phantom_dataset(raw, cases=TRAINING_CASES, test_cases=TEST_CASES)
    dataset = open_dataset(raw)
    plan_workspace(raw, folder / "workspace", PlanOptions(preset="cpu"), workers=workers, on_progress=on_progress)
    workspace = open_workspace(folder / "workspace")
    preprocess_workspace(workspace, CONFIGURATION, workers=workers, on_progress=on_progress)
    _train(workspace, restart, workers, threads, on_progress)

    run = workspace.run(MODEL, CONFIGURATION, "all")
    predictor = load_predictor(run.folder, (), choose_compute("cpu"))
    cases = find_cases([raw / "imagesTs"], dataset.description.file_ending).cases
    predicted = predict_cases(predictor, cases, predictions, overwrite=restart, on_progress=on_progress)
    raise_if_failed(predicted)
    evaluation = evaluate_folders(predictions, raw / "labelsTs", Task(dataset.description))
    write_summary(predictions / "summary.json", evaluation)
    return DemoResult(evaluation, _picture(folder, raw, predictions, evaluation))


def _train(
    workspace: Workspace, restart: bool, workers: int | None, threads: int | None, on_progress: OnProgress
) -> None:
    job = TrainingJob(
        workspace,
        configuration=CONFIGURATION,
        model=MODEL,
        fold="all",  # the test phantoms are held back already
        chosen=SCHEDULE,
        device="cpu",
        restart=restart,
        workers=workers,
        threads=threads,
    )
    train_fold(job, on_progress=on_progress)


def _picture(folder: Path, raw: Path, predictions: Path, evaluation: Evaluation) -> Path:
    """Draw the first test phantom."""
    case = evaluation.cases[0].case
    ending = ".nii.gz"
    image = read_image(find_images(raw / "imagesTs", ending)[case])
    reference = read_label_map(raw / "labelsTs" / f"{case}{ending}")
    prediction = read_label_map(predictions / f"{case}{ending}")
    path = folder / "demo.png"
    draw_side_by_side(
        path,
        image.voxels[0],
        reference.labels.astype(np.int64),
        prediction.labels.astype(np.int64),
        spacing_mm=image.grid.spacing_mm,
        label_names=open_dataset(raw).description.foreground,
        title=f"{case}: image, reference and prediction",
    )
    return path
