"""Training several folds one after the other, and the cross-validation over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from umamba_cli.pipeline.data.workspace import Workspace
from umamba_cli.pipeline.devices import choose_compute
from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.progress import OnProgress, Progress, ignore_progress
from umamba_cli.pipeline.runs.lock import RunBusyError
from umamba_cli.pipeline.training.distributed import connected, this_world
from umamba_cli.pipeline.workflows.assemble import TrainingParts
from umamba_cli.pipeline.workflows.cross_validation import CrossValidation, cross_validate, write_cross_validation
from umamba_cli.pipeline.workflows.train import TrainingJob, TrainingResult, device_of, prepare_training, train_fold


@dataclass(frozen=True)
class FoldsResult:
    """What the training of some folds left."""

    trained: tuple[TrainingResult, ...]
    left: Mapping[int | str, str]
    """Folds that another process was training, and what it said."""

    cross_validation: CrossValidation | None
    """Over all finished folds of the model; None where a single fold was asked for."""

    def to_json(self) -> dict[str, Any]:
        """A dictionary for a JSON file; of a single fold what `train` says of it."""
        folds = [_fold_json(result) for result in self.trained]
        if len(folds) == 1 and self.cross_validation is None and not self.left:
            return folds[0]
        return {
            "folds": folds,
            "left": {str(fold): problem for fold, problem in self.left.items()},
            "cross_validation": self.cross_validation.to_json() if self.cross_validation else None,
        }


def train_folds(
    job: TrainingJob,
    folds: Sequence[int | str],
    *,
    parts: TrainingParts | None = None,
    on_progress: OnProgress = ignore_progress,
) -> FoldsResult:
    """Train folds one after the other; those that are finished stay as they are.

    Where there are several, those that another process is training are left to it, so that the same command on several
    machines shares the folds among them, and `cross_validation.json` is written beside the folds.

    Raises:
        InputError: a fold cannot be trained as asked; looked at for all of them before the first one starts.
        Stopped, WorkError: see `train_fold`.
    """
    world = this_world()
    if len(folds) == 1:
        return FoldsResult((train_fold(replace(job, fold=folds[0]), parts=parts, on_progress=on_progress),), {}, None)
    decided = _decided(job.workspace)
    job = replace(job, together=tuple(folds))
    runs = [prepare_training(replace(job, fold=fold), parts=parts, world=world).run for fold in folds]
    trained: list[TrainingResult] = []
    left: dict[int | str, str] = {}
    with connected(world, choose_compute(device_of(job.device, world)).device):
        for fold in folds:
            if _decided(job.workspace) != decided:
                raise InputError(
                    f"{job.workspace.plans_file.name} or {job.workspace.splits_file.name} changed while the folds were "
                    f"trained; fold {fold} was not begun",
                    next_step="bring them back and run the same command again, or start over with --restart",
                )
            try:
                told = partial(_of_fold, fold, on_progress)
                trained.append(train_fold(replace(job, fold=fold), parts=parts, on_progress=told))
            except RunBusyError as error:
                left[fold] = error.problem
    model_folder = runs[0].folder.parent
    over_all = cross_validate(model_folder)
    if over_all and world.is_first:
        write_cross_validation(model_folder, over_all)
    return FoldsResult(tuple(trained), left, over_all)


def _decided(workspace: Workspace) -> tuple[bytes, bytes]:
    """What must be the same for all folds: plans and splits."""
    return workspace.plans_file.read_bytes(), workspace.splits_file.read_bytes()


def _of_fold(fold: int | str, on_progress: OnProgress, progress: Progress) -> None:
    """Say which fold a report is of."""
    on_progress(replace(progress, task=f"fold {fold}: {progress.task}"))


def _fold_json(result: TrainingResult) -> dict[str, Any]:
    return {
        "run": result.run.folder,
        "epochs": len(result.log),
        "device": result.compute.device_name,
        "precision": result.compute.precision,
        "skipped_steps": sum(entry.get("skipped_steps", 0) for entry in result.log),
        "validation": result.evaluation.to_json() if result.evaluation else None,
    }
