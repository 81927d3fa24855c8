"""The cascade: a training that gets what another one, at a lower resolution, found in the same images.

No case may come with a label map of a network that was trained on it: such maps are better than those of new images,
and the second stage would learn to copy them. So each case's map is predicted by the fold that held it out.

Source: nnU-Net (Isensee et al. 2021, online methods, "3D U-Net cascade").
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from umamba_cli.pipeline.data.files import file_state, remove_leftovers, to_plain
from umamba_cli.pipeline.data.splits import read_folds
from umamba_cli.pipeline.data.store import Store, StoredArray, StoredCase, write_array
from umamba_cli.pipeline.data.workspace import Run, Workspace
from umamba_cli.pipeline.devices import Compute
from umamba_cli.pipeline.errors import InputError, WorkError
from umamba_cli.pipeline.inference.predictor import Predictor, load_runs
from umamba_cli.pipeline.inference.previous_stage import require_same_images, train_command, with_label_channels
from umamba_cli.pipeline.preprocessing.case import CaseGeometry
from umamba_cli.pipeline.preprocessing.dataset import require_preprocessed
from umamba_cli.pipeline.progress import OnProgress, Progress, ignore_progress
from umamba_cli.pipeline.runs.network import compile_scan, previous_labels
from umamba_cli.pipeline.runs.record import RunRecord, read_record
from umamba_cli.pipeline.training.patches import PreviousStage

_MADE_OF = "made_of"
"""The entry beside a predicted label map that tells what it was made of."""


def choose_previous_runs(workspace: Workspace, record: RunRecord) -> dict[str, Run]:
    """For each case of a cascade's fold, the run of the previous stage that predicts it; nothing is written.

    That is the finished run, of the same model and tag, that held the case out. For a training on all cases it is
    `fold_all` where there are not all of those.

    Args:
        workspace: that both stages are trained in.
        record: of the training that is to start.

    Returns:
        Case to run; nothing where the configuration has no previous stage.

    Raises:
        InputError: runs are missing or unfinished, or were trained with other labels or another axis order; or the
            previous stage has a previous stage itself.
    """
    configuration = record.network_configuration
    if configuration.previous_stage is None:
        return {}
    stage = record.plans.configuration(configuration.previous_stage)
    if stage.previous_stage is not None:
        raise InputError(
            f"{record.configuration} has two previous stages, {stage.name} and {stage.previous_stage}",
            next_step=f"give {record.configuration} a previous_stage in {workspace.plans_file} that has none itself",
        )
    folder = workspace.run(record.model, stage.name, "all", record.tag).folder.parent
    numbered = [run for run in _finished(folder) if run.folder.name != "fold_all"]
    held_out = {case: run for run in reversed(numbered) for case in read_record(run).val_cases}
    cases = [*record.train_cases, *record.val_cases]
    on_all = Run(folder / "fold_all")
    if all(case in held_out for case in cases):
        chosen = {case: held_out[case] for case in cases}
    elif record.fold == "all" and on_all.is_finished:
        chosen = dict.fromkeys(cases, on_all)
    else:
        raise _not_trained(workspace, record, [case for case in cases if case not in held_out])
    for run in dict.fromkeys(chosen.values()):
        require_same_images(record, read_record(run), str(run.folder))
    return chosen


def previous_run_names(runs: Mapping[str, Run]) -> tuple[str, ...]:
    """What `RunRecord.previous_runs` shall hold, from what `choose_previous_runs` returned."""
    return tuple(sorted({f"{run.folder.parent.name}/{run.folder.name}" for run in runs.values()}))


def predict_previous_stage(
    workspace: Workspace,
    record: RunRecord,
    compute: Compute,
    on_progress: OnProgress = ignore_progress,
) -> PreviousStage | None:
    """Predict what the previous stage finds in every case of a cascade's fold; finished predictions are kept.

    They lie in the folder of the run that made them, `predicted_next_stage/CONFIGURATION/CASE.b2nd`, and are made again
    where the run was trained again or a case preprocessed again.

    Args:
        workspace: that both stages are trained in.
        record: of the cascade's training.
        compute: device and precision.
        on_progress: told after each case.

    Returns:
        Where the label maps are; None where the configuration has no previous stage.

    Raises:
        InputError: see `choose_previous_runs`; or a case is not preprocessed for one of the stages.
        WorkError: a file is damaged or cannot be written.
    """
    chosen = choose_previous_runs(workspace, record)
    if not chosen:
        return None
    dataset = workspace.dataset()
    store = require_preprocessed(workspace, record.plans, record.configuration, dataset, list(chosen))
    jobs = []
    for run in dict.fromkeys(chosen.values()):
        names = [case for case, by in chosen.items() if by == run]
        before = read_record(run)
        lower = require_preprocessed(workspace, before.plans, before.configuration, dataset, names)
        jobs += [_Job(run, record, lower, store, name) for name in names]
    todo = [job for job in jobs if not job.is_done]
    _predict(todo, compute, on_progress)
    return PreviousStage({job.name: job.target for job in jobs})


def network_input(case: StoredCase, record: RunRecord, previous: PreviousStage | None) -> NDArray[np.float32]:
    """A preprocessed case as the network of a run sees it, float32 (channels, z, y, x).

    The image, and in a cascade, whose `previous` stage `predict_previous_stage` returned, the channels of its labels.
    """
    image = case.image[:]
    if previous is None:
        return image
    labels = previous.labels(case.identifier)[0]
    return with_label_channels(image, labels, previous_labels(record.network_configuration, record.dataset))


@dataclass(frozen=True)
class _Job:
    """One case that a run of the previous stage predicts for the next one."""

    run: Run
    record: RunRecord
    """Of the next stage."""

    lower: Store
    """The previous stage's preprocessed cases."""

    store: Store
    """The next stage's."""

    name: str

    @property
    def target(self) -> Path:
        return self.run.folder / "predicted_next_stage" / self.record.configuration / f"{self.name}.b2nd"

    @property
    def made_of(self) -> bytes:
        """What decides the label map: the run's weights, and the case as both stages see it."""
        origins = [store.origin(self.name) for store in (self.lower, self.store)]
        return json.dumps(to_plain([file_state(self.run.checkpoint("final")), origins])).encode()

    @property
    def is_done(self) -> bool:
        """True where the label map is there, whole, and of the present run and case."""
        if not self.target.is_file():
            return False
        try:
            stored = StoredArray(self.target)
            return _MADE_OF in stored.metadata and stored.read_metadata(_MADE_OF) == self.made_of
        except WorkError:
            return False  # damaged: to be made again

    def predict(self, predictor: Predictor) -> None:
        """Predict and write the label map."""
        case, geometries = self.lower.case(self.name), []
        for store in (self.lower, self.store):
            geometries.append(CaseGeometry.from_json(store.case(self.name).properties["geometry"]))
        labels = predictor.labels_for_next_stage(case.image[:], *geometries)
        kind = np.int8 if labels.max(initial=0) < 128 else np.int16
        patch_size = self.record.network_configuration.patch_size
        write_array(self.target, labels[None].astype(kind), patch_size, {_MADE_OF: self.made_of})


def _predict(jobs: Sequence[_Job], compute: Compute, on_progress: OnProgress) -> None:
    """Predict cases, with one run's network in memory at a time."""
    if not jobs:
        return
    task = f"predict {jobs[0].record.network_configuration.previous_stage}"
    on_progress(Progress(task, 0, len(jobs)))
    done = 0
    for run in dict.fromkeys(job.run for job in jobs):
        predictor = load_runs([run], compute)
        compile_scan(predictor.networks, compute.device, on_progress)
        of_run = [job for job in jobs if job.run == run]
        remove_leftovers(of_run[0].target.parent)
        for job in of_run:
            job.predict(predictor)
            done += 1
            on_progress(Progress(task, done, len(jobs), step=job.name))


def _finished(folder: Path) -> list[Run]:
    runs = [Run(path) for path in folder.glob("fold_*")]
    return sorted((run for run in runs if run.is_finished), key=lambda run: (len(run.folder.name), run.folder.name))


def _not_trained(workspace: Workspace, record: RunRecord, cases: Sequence[str]) -> InputError:
    """The error for cases that no finished run of the previous stage held out."""
    stage = str(record.network_configuration.previous_stage)
    folds = read_folds(workspace.splits_file)
    held_out = {number: sorted(set(fold.val).intersection(cases)) for number, fold in enumerate(folds)}
    wanting = {number: names for number, names in held_out.items() if names}
    runs = {number: workspace.run(record.model, stage, number, record.tag) for number in wanting}
    details = [f"fold {number} {_state(runs[number])}: {_some(names)}" for number, names in wanting.items()]
    nowhere = sorted(set(cases).difference(*wanting.values()))
    if nowhere:
        details.append(f"no fold holds out: {_some(nowhere)}")
    return InputError(
        f"{record.configuration} of {record.variant.title} needs what {stage} finds in each case, predicted by a fold "
        f"that held it out; for {len(cases)} of {len(record.train_cases) + len(record.val_cases)} cases there is none",
        details=details,
        next_step=_how_to_train(workspace, record, runs, everywhere=not nowhere),
    )


def _how_to_train(workspace: Workspace, record: RunRecord, runs: Mapping[int, Run], *, everywhere: bool) -> str:
    folds = train_command(workspace.folder, record, list(runs))
    on_all = train_command(workspace.folder, record, ["all"])
    if record.fold == "all":
        return f"run {folds} first, or {on_all}" if runs and everywhere else f"run {on_all} first"
    if other := [number for number, run in runs.items() if run.is_finished]:
        again = train_command(workspace.folder, record, other[:1])
        return f"bring back the {workspace.splits_file} that they were trained with, or add --restart: {again}"
    if not everywhere:
        return f"let the folds of {workspace.splits_file} hold out every case once, and train them all"
    return f"run {folds} first"


def _state(run: Run) -> str:
    if run.is_finished:
        return "held out other cases when it was trained"
    return "is not finished" if run.configuration_file.is_file() else "is not trained"


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    return f"{len(names)} case{'s' if len(names) > 1 else ''}, {shown}{', ...' if len(names) > 3 else ''}"
