"""A training by umamba, epoch by epoch: run by `time_to_dice.py` and `training_speed.py` in a process of its own.

Usage: `_our_training.py JOB`, a JSON file (see `_peer_training.Job`). The training is `train_fold` with the options
that `umamba train` has by default. At each epoch's end it writes a `_peer_training.Epoch` to standard output.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from _peer_training import Epoch, Job, mean_dice
from torch import nn

from umamba_cli.pipeline.data.images import read_label_map
from umamba_cli.pipeline.data.store import Store
from umamba_cli.pipeline.data.workspace import Workspace, open_workspace
from umamba_cli.pipeline.devices import choose_compute
from umamba_cli.pipeline.inference.export import labels_on_image_grid
from umamba_cli.pipeline.inference.predictor import Predictor
from umamba_cli.pipeline.inference.sliding_window import WindowOptions
from umamba_cli.pipeline.preprocessing.case import CaseGeometry
from umamba_cli.pipeline.progress import Progress
from umamba_cli.pipeline.runs.record import read_record
from umamba_cli.pipeline.training.settings import SettingsChosen
from umamba_cli.pipeline.workflows.assemble import TrainingParts
from umamba_cli.pipeline.workflows.train import TrainingJob, train_fold

CONFIGURATION = "3d_fullres"


@dataclass
class Clock:
    """When the training steps of the present epoch ended."""

    ended: list[float] = field(default_factory=list)
    _within: float = 0.0

    def __call__(self, progress: Progress) -> None:
        """Called after each training step and after each validation batch; only steps bring the training further."""
        if progress.task == "train" and progress.within > self._within:
            self._within = progress.within
            self.ended.append(time.perf_counter())

    def restart(self) -> None:
        """A new epoch begins."""
        self.ended, self._within = [], 0.0


@dataclass
class Teller:
    """Tells of each epoch."""

    job: Job
    workspace: Workspace
    clock: Clock
    evaluation_seconds: float = 0.0

    def __call__(self, log: list[dict[str, Any]], network: nn.Module) -> None:
        """Called after each epoch; what this takes is on no clock."""
        began = time.time()
        entry, ended = log[-1], self.clock.ended
        told = Epoch(
            epoch=entry["epoch"],
            seconds=began - self.job.started - self.evaluation_seconds,
            steps=len(ended) - 1,
            step_seconds=ended[-1] - ended[0],
            waiting_seconds=entry["waiting_share"] * entry["seconds"],
            precision=entry["precision"],
            version=importlib.metadata.version("umamba"),
            dice=self._evaluate(network, entry["precision"]) if self.job.evaluates else None,
        )
        print(json.dumps(asdict(told)), flush=True)
        self.clock.restart()
        self.evaluation_seconds += time.time() - began

    def _evaluate(self, network: nn.Module, precision: str) -> float:
        """Mean Dice of the held-back cases: whole volumes without mirroring, exported to the images' own grids."""
        record = read_record(self.workspace.run(self.job.model, CONFIGURATION, 0))
        store = Store(self.workspace.preprocessed(CONFIGURATION))
        compute = choose_compute(self.job.device, precision)
        predictor = Predictor(record, (network.eval(),), compute, WindowOptions())
        pairs = []
        for case in self.workspace.dataset().select(record.val_cases):
            stored = store.case(case.identifier)
            geometry = CaseGeometry.from_json(stored.properties["geometry"])
            logits = predictor.logits(stored.image[:])
            labels = labels_on_image_grid(logits, geometry, record.network_configuration, record.dataset)
            assert case.label is not None
            pairs.append((labels, read_label_map(case.label).labels))
        network.train()
        return mean_dice(pairs, record.dataset.foreground)


def main() -> None:
    job = Job(**json.loads(Path(sys.argv[1]).read_text()))
    workspace, clock = open_workspace(Path(job.data)), Clock()
    chosen = SettingsChosen(epochs=job.epochs, iterations=job.iterations, seed=job.seed)
    training = TrainingJob(
        workspace,
        CONFIGURATION,
        job.model,
        chosen=chosen,
        device=job.device,
        threads=job.threads if job.device == "cpu" else None,
        restart=True,
    )
    train_fold(training, parts=TrainingParts(after_epoch=Teller(job, workspace, clock)), on_progress=clock)


if __name__ == "__main__":
    main()
