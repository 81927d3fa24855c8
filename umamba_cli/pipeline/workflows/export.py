"""Making a bundle of trainings: what there is to share, and nothing that the one who gets it need trust."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from umamba_cli.pipeline.data.files import read_json
from umamba_cli.pipeline.data.workspace import Run
from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.inference.previous_stage import find_previous_runs, require_same_images
from umamba_cli.pipeline.progress import OnProgress, Progress, ignore_progress
from umamba_cli.pipeline.runs.bundle import (
    Fold,
    Manifest,
    PreviousStage,
    is_bundle,
    not_finite,
    require_new_file,
    write_bundle,
)
from umamba_cli.pipeline.runs.checkpoint import read_checkpoint
from umamba_cli.pipeline.runs.model import choose_runs, made_of, refuse_foreign
from umamba_cli.pipeline.runs.record import RunRecord, read_record


@dataclass(frozen=True)
class ExportedModel:
    """What `export_model` wrote."""

    bundle: Path
    manifest: Manifest
    record: RunRecord
    folds: tuple[Fold, ...]

    previous_folds: tuple[Fold, ...] = ()
    """Of a cascade's previous stage, which the bundle holds too."""


def export_model(
    model: Path,
    bundle: Path,
    *,
    folds: Sequence[Fold] = (),
    overwrite: bool = False,
    on_progress: OnProgress = ignore_progress,
) -> ExportedModel:
    """Write a bundle of finished runs; one of a cascade holds its previous stage too, the folds that were used.

    Args:
        model: a run's folder, or the folder above its folds.
        bundle: the file to write.
        folds: of the folder; none means the numbered ones that are finished, or `all` where that is the only one.
        overwrite: replace a bundle that is there.
        on_progress: told after each fold.

    Raises:
        InputError: there is no finished run, folds were trained differently, their weights are no numbers, or a
            cascade's previous stage is gone.
        WorkError: the bundle cannot be written.
    """
    require_new_file(bundle, overwrite=overwrite)
    if is_bundle(model):
        raise InputError(f"{model} is a bundle already", next_step="copy it")
    refuse_foreign(model)
    stage = _Stage.of(choose_runs(model, folds))
    previous = _previous_stage(stage)
    before, used = previous or (None, {})
    total = len(stage.runs) + (len(before.runs) if before else 0)
    on_progress(Progress("export", 0, total))
    manifest = write_bundle(
        bundle,
        stage.shared,
        stage.weights(on_progress, 0, total),
        origin={**_origin(stage), **({"previous": _origin(before)} if before else {})},
        validation=_validation(stage),
        previous=PreviousStage(before.shared, before.weights(on_progress, len(stage.runs), total), used)
        if before
        else None,
    )
    return ExportedModel(bundle, manifest, stage.shared, stage.folds, before.folds if before else ())


@dataclass(frozen=True)
class _Stage:
    """Finished runs to be averaged."""

    runs: Sequence[Run]
    records: Sequence[RunRecord]

    @classmethod
    def of(cls, runs: Sequence[Run]) -> _Stage:
        """Read the records of runs.

        Raises:
            InputError: they do not belong together.
        """
        records = [read_record(run) for run in runs]
        for run, other in zip(runs, records, strict=True):
            if made_of(other) != made_of(records[0]):
                raise InputError(
                    f"{run.folder} was trained with other plans than {runs[0].folder}",
                    next_step="choose folds that belong together with -f",
                )
        return cls(runs, records)

    @property
    def folds(self) -> tuple[Fold, ...]:
        return tuple(record.fold for record in self.records)

    @property
    def shared(self) -> RunRecord:
        return _to_share(self.records[0])

    def weights(self, on_progress: OnProgress, done: int, total: int) -> Iterator[tuple[Fold, Mapping[str, Tensor]]]:
        """Each fold and its weights; `done` of `total` were handed out before."""
        for run, fold in zip(self.runs, self.folds, strict=True):
            checkpoint = run.checkpoint("final")
            weights = read_checkpoint(checkpoint).weights
            if broken := not_finite(weights):
                raise InputError(
                    f"{len(broken)} of {len(weights)} weights of {checkpoint} are not finite numbers",
                    next_step="train it again, or choose other folds with -f",
                )
            yield fold, weights
            done += 1
            configuration = self.records[0].configuration
            on_progress(Progress("export", done, total, step=f"fold {fold} of {configuration}"))


def _previous_stage(stage: _Stage) -> tuple[_Stage, dict[Fold, tuple[Fold, ...]]] | None:
    """For a cascade the runs of its previous stage that its folds name, and for each fold the folds of those.

    Raises:
        InputError: one is gone, or they do not fit the cascade or one another.
    """
    record = stage.records[0]
    if record.network_configuration.previous_stage is None:
        return None
    used = {of.fold: find_previous_runs(run, [of]) for run, of in zip(stage.runs, stage.records, strict=True)}
    runs = list(dict.fromkeys(run for of in used.values() for run in of))
    before = _Stage.of(runs)
    require_same_images(record, before.records[0], str(runs[0].folder))
    if len(set(before.folds)) < len(runs):
        raise InputError(
            f"the folds of {stage.runs[0].folder.parent} were trained with several models of "
            f"{before.records[0].configuration}",
            details=[str(run.folder) for run in runs],
            next_step="choose folds that belong together with -f",
        )
    fold_of = dict(zip(runs, before.folds, strict=True))
    return before, {fold: tuple(fold_of[run] for run in of) for fold, of in used.items()}


def _to_share(record: RunRecord) -> RunRecord:
    """A record without what others need not know: names of cases, which may tell who a patient is, and paths."""
    settings = {**record.settings, "init_from": Path(str(record.settings.get("init_from") or "")).name}
    initialised = {"taken": record.initialised["taken"]} if record.initialised else None
    nobody = {"train_cases": (), "val_cases": (), "previous_runs": ()}
    return record.model_copy(update={**nobody, "settings": settings, "initialised": initialised})


def _origin(stage: _Stage) -> dict[str, Any]:
    """What was trained with what on what; nothing of the machine but its device's name."""
    first = stage.records[0]
    return {
        "program": "umamba",
        "trainer": first.variant.title,
        "plans": first.plans.plans_name,
        "dataset": first.plans.dataset_name,
        "epochs": first.settings.get("epochs"),
        "settings": _to_share(first).settings,
        "folds": {
            str(of.fold): {
                "started": of.started,
                "versions": of.versions,
                "device": of.device.get("device"),
                "precision": of.device.get("precision"),
                "train_cases": len(of.train_cases),
                "val_cases": len(of.val_cases),
            }
            for of in stage.records
        },
    }


def _validation(stage: _Stage) -> dict[str, Any] | None:
    """How well each fold did on the cases that it held back, where that was evaluated."""
    found: dict[str, Any] = {}
    for run, fold in zip(stage.runs, stage.folds, strict=True):
        path = run.validation / "summary.json"
        if path.is_file():
            summary = read_json(path, next_step="remove it and run `umamba train` again, which evaluates the fold")
            found[str(fold)] = {key: summary[key] for key in ("foreground_mean", "mean") if key in summary}
    return {"folds": found} if found else None
