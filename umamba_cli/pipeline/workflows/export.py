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
from umamba_cli.pipeline.progress import OnProgress, Progress, ignore_progress
from umamba_cli.pipeline.runs.bundle import Fold, Manifest, is_bundle, require_new_file, write_bundle
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


def export_model(
    model: Path,
    bundle: Path,
    *,
    folds: Sequence[Fold] = (),
    overwrite: bool = False,
    on_progress: OnProgress = ignore_progress,
) -> ExportedModel:
    """Write a bundle of finished runs.

    Args:
        model: a run's folder, or the folder above its folds.
        bundle: the file to write.
        folds: of the folder; none means the numbered ones that are finished, or `all` where that is the only one.
        overwrite: replace a bundle that is there.
        on_progress: told after each fold.

    Raises:
        InputError: there is no finished run, folds were trained differently, or it is a cascade's second stage.
        WorkError: the bundle cannot be written.
    """
    require_new_file(bundle, overwrite=overwrite)
    if is_bundle(model):
        raise InputError(f"{model} is a bundle already", next_step="copy it")
    refuse_foreign(model)
    runs = choose_runs(model, folds)
    records = [read_record(run) for run in runs]
    record = records[0]
    if stage := record.network_configuration.previous_stage:
        raise InputError(
            f"{model} is a model of {record.configuration}, which needs what {stage} finds, and a bundle holds one "
            "stage of a cascade alone",
            next_step="share the workspace's folder instead, or export a model of 3d_fullres",
        )
    for run, other in zip(runs, records, strict=True):
        if made_of(other) != made_of(record):
            raise InputError(
                f"{run.folder} was trained with other plans than {runs[0].folder}",
                next_step="choose folds that belong together with -f",
            )

    def each() -> Iterator[tuple[Fold, Mapping[str, Tensor]]]:
        on_progress(Progress("export", 0, len(runs)))
        for done, (run, of) in enumerate(zip(runs, records, strict=True), start=1):
            yield of.fold, read_checkpoint(run.checkpoint("final")).weights
            on_progress(Progress("export", done, len(runs), step=f"fold {of.fold}"))

    shared = _to_share(record)
    manifest = write_bundle(bundle, shared, each(), origin=_origin(records), validation=_validation(runs, records))
    return ExportedModel(bundle, manifest, shared, tuple(of.fold for of in records))


def _to_share(record: RunRecord) -> RunRecord:
    """A record without what others need not know: names of cases, which may tell who a patient is, and paths."""
    settings = {**record.settings, "init_from": Path(str(record.settings.get("init_from") or "")).name}
    initialised = {"taken": record.initialised["taken"]} if record.initialised else None
    nobody = {"train_cases": (), "val_cases": ()}
    return record.model_copy(update={**nobody, "settings": settings, "initialised": initialised})


def _origin(records: Sequence[RunRecord]) -> dict[str, Any]:
    """What was trained with what on what; nothing of the machine but its device's name."""
    first = records[0]
    return {
        "program": "umamba",
        "trainer": first.model,
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
            for of in records
        },
    }


def _validation(runs: Sequence[Run], records: Sequence[RunRecord]) -> dict[str, Any] | None:
    """How well each fold did on the cases that it held back, where that was evaluated."""
    found: dict[str, Any] = {}
    for run, record in zip(runs, records, strict=True):
        path = run.validation / "summary.json"
        if path.is_file():
            summary = read_json(path, next_step="remove it and run `umamba train` again, which evaluates the fold")
            found[str(record.fold)] = {key: summary[key] for key in ("foreground_mean", "mean") if key in summary}
    return {"folds": found} if found else None
