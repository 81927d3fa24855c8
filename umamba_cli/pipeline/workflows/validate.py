"""Predicting and evaluating the cases that a fold held back, with its final weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from umamba_cli.pipeline.data.files import remove_leftovers
from umamba_cli.pipeline.data.images import write_label_map
from umamba_cli.pipeline.data.store import Store
from umamba_cli.pipeline.data.workspace import Run, Workspace
from umamba_cli.pipeline.devices import channels_last
from umamba_cli.pipeline.evaluation.evaluate import Pair, evaluate_pairs
from umamba_cli.pipeline.evaluation.results import Evaluation
from umamba_cli.pipeline.evaluation.tables import write_summary
from umamba_cli.pipeline.evaluation.task import task_of
from umamba_cli.pipeline.inference.export import labels_on_image_grid
from umamba_cli.pipeline.inference.predictor import Predictor, load_predictor
from umamba_cli.pipeline.inference.sliding_window import WindowOptions
from umamba_cli.pipeline.preprocessing.case import CaseGeometry
from umamba_cli.pipeline.progress import Progress
from umamba_cli.pipeline.runs.checkpoint import read_checkpoint
from umamba_cli.pipeline.runs.network import recorded_plan
from umamba_cli.pipeline.runs.record import RunRecord
from umamba_cli.pipeline.training.patches import PreviousStage
from umamba_cli.pipeline.workflows.assemble import Surroundings, TrainingParts
from umamba_cli.pipeline.workflows.cascade import network_input


def validate_fold(
    run: Run,
    record: RunRecord,
    store: Store,
    around: Surroundings,
    workspace: Workspace,
    parts: TrainingParts,
    *,
    previous: PreviousStage | None = None,
) -> Evaluation | None:
    """Predict the held-back cases and evaluate them; finished predictions are kept.

    With several processes each predicts its part of the cases, and the first one evaluates.

    Returns:
        The evaluation, which is in `validation/summary.json` too; None where no case was held back, and in other
        processes than the first.
    """
    if not record.val_cases:
        return None
    world, cases = around.world, workspace.dataset().select(record.val_cases)
    own = cases_to_predict(run, record)[world.rank :: world.size]
    if world.is_first:
        remove_leftovers(run.validation)
    around.on_progress(Progress("validate", 0, len(own)))
    predictor = _predictor(run, record, around, parts) if own else None
    for done, name in enumerate(own, start=1):
        assert predictor is not None
        case = store.case(name)
        geometry = CaseGeometry.from_json(case.properties["geometry"])
        logits = predictor.logits(network_input(case, record, previous))
        if not np.isfinite(logits).all():
            text = f"what the network finds in {name} is not finite: look at this case and its preprocessed file"
            around.on_progress(Progress("validate", done - 1, len(own), warning=text))
        labels = labels_on_image_grid(logits, geometry, record.network_configuration, record.dataset)
        write_label_map(_target(run, record, name), labels, geometry.grid)
        around.on_progress(Progress("validate", done, len(own), step=name))
        if around.lock:
            around.lock.note("validate", iteration=done, iterations=len(own))
    world.wait()
    if not world.is_first:
        return None
    names = [(case.identifier, case.label) for case in cases]
    pairs: list[Pair] = [(name, _target(run, record, name), label) for name, label in names if label]
    evaluation = evaluate_pairs(pairs, task_of(record.dataset), workers=1)
    write_summary(run.validation / "summary.json", evaluation)
    return evaluation


def cases_to_predict(run: Run, record: RunRecord) -> list[str]:
    """The held-back cases that are not predicted yet."""
    return [name for name in record.val_cases if not _target(run, record, name).is_file()]


def _target(run: Run, record: RunRecord, case: str) -> Path:
    return run.validation / f"{case}{record.dataset.file_ending}"


def _predictor(run: Run, record: RunRecord, around: Surroundings, parts: TrainingParts) -> Predictor:
    if parts.network is None:
        return load_predictor(run.folder, (), around.compute, previous_stage=False)
    network = parts.network(recorded_plan(record))
    network.load_state_dict(dict(read_checkpoint(run.checkpoint("final")).weights))
    memory_format = channels_last(record.network_configuration.dimensions)
    network.to(around.compute.device, memory_format=memory_format)  # type: ignore[call-overload]
    return Predictor(record, (network.eval(),), around.compute, WindowOptions(mirror_axes=record.mirror_axes))
