"""A training by nnU-Net itself, epoch by epoch: run by `time_to_dice.py` and `training_speed.py` in its environment.

Usage: `_peer_training.py JOB`, a JSON file (see `Job`); nnU-Net's three folders are in the environment, as it wants it.
The training is `nnUNetTrainer.run_training` as it is. At each epoch's end it writes an `Epoch` to standard output, as a
line of JSON.

Our side imports `Job`, `Epoch` and `mean_dice` from here, so that there is one of each; neither needs nnU-Net or torch.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import random
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np


@dataclass(frozen=True)
class Job:
    """Which training to do."""

    model: str
    """One of ours, or `nnunet`."""

    data: str
    """Ours: the workspace. nnU-Net's: the name of the dataset's folder."""

    epochs: int
    iterations: int
    """Steps an epoch."""

    validation_iterations: int
    seed: int
    device: str
    threads: int
    """That compute on a CPU, in the process that trains."""

    evaluates: bool
    """Whether the held-back cases are predicted at each epoch's end."""

    started: float
    """When the process was started (`time.time`): the clock begins there."""


@dataclass(frozen=True)
class Epoch:
    """What an epoch's end tells."""

    epoch: int
    """The first one is 1."""

    seconds: float
    """Since the process was started, less those of all evaluations."""

    steps: int
    """Training steps of the epoch that were timed, in a row."""

    step_seconds: float
    """Of those steps, all that lies between them included."""

    waiting_seconds: float
    """Of those, what the steps waited for their batches."""

    precision: str
    version: str
    dice: float | None
    """The mean over the fold's held-back cases, where it was asked for."""


def mean_dice(pairs: Iterable[tuple[Any, Any]], labels: Iterable[int]) -> float:
    """The mean over labels of the mean over cases of the Dice of a predicted and a reference label map.

    A label that is in neither map of a case is left out there.
    """
    chosen = tuple(labels)
    table = [[_dice(predicted == label, reference == label) for label in chosen] for predicted, reference in pairs]
    return float(np.mean(np.nanmean(table, axis=0)))


def _dice(predicted: Any, reference: Any) -> float:
    total = int(predicted.sum()) + int(reference.sum())
    return 2 * int((predicted & reference).sum()) / total if total else float("nan")


@dataclass
class Waiting:
    """An iterator that knows how long it was waited for."""

    source: Iterator[Any]
    seconds: float = 0.0

    def __iter__(self) -> Waiting:
        return self

    def __next__(self) -> Any:
        began = time.perf_counter()
        item = next(self.source)
        self.seconds += time.perf_counter() - began
        return item


def main() -> None:
    job = Job(**json.loads(Path(sys.argv[1]).read_text()))
    answers, sys.stdout = sys.stdout, sys.stderr  # nnU-Net prints a lot
    begin(job)
    trainer = make_trainer(job, answers)
    trainer.run_training()


def begin(job: Job) -> None:
    """Threads, cuDNN and seeds, as nnU-Net's own command sets them; the workers that augment seed themselves."""
    import torch

    torch.set_num_threads(job.threads)
    torch.backends.cudnn.benchmark = job.device == "cuda"
    random.seed(job.seed)
    np.random.seed(job.seed)
    torch.manual_seed(job.seed)


def make_trainer(job: Job, answers: TextIO) -> Any:
    """nnU-Net's trainer; all that is added looks at the clock."""
    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    class Trainer(nnUNetTrainer):  # type: ignore[misc]
        """Tells of each epoch."""

        evaluation_seconds = 0.0

        def on_train_epoch_start(self) -> None:
            self.loader: Any = self.dataloader_train
            self.dataloader_train: Any = Waiting(self.loader)
            self.began = time.perf_counter()
            super().on_train_epoch_start()

        def on_train_epoch_end(self, train_outputs: list[dict[str, Any]]) -> None:
            super().on_train_epoch_end(train_outputs)
            self.step_seconds = time.perf_counter() - self.began
            self.waiting_seconds = self.dataloader_train.seconds
            self.dataloader_train = self.loader  # it is shut down by its type

        def on_epoch_end(self) -> None:
            super().on_epoch_end()
            began = time.time()
            told = Epoch(
                epoch=self.current_epoch,  # which counts from 0, and was increased
                seconds=began - job.started - self.evaluation_seconds,
                steps=job.iterations,
                step_seconds=self.step_seconds,
                waiting_seconds=self.waiting_seconds,
                precision="fp16" if job.device == "cuda" else "fp32",
                version=importlib.metadata.version("nnunetv2"),
                dice=evaluate(self) if job.evaluates else None,
            )
            self.evaluation_seconds += time.time() - began
            print(json.dumps(asdict(told)), file=answers, flush=True)

    folder = Path(os.environ["nnUNet_preprocessed"]) / job.data  # noqa: SIM112, nnU-Net spells it so
    plans, dataset = (json.loads((folder / name).read_text()) for name in ("nnUNetPlans.json", "dataset.json"))
    plans["continue_training"] = False
    trainer = Trainer(plans, "3d_fullres", 0, dataset, device=torch.device(job.device))
    trainer.num_epochs = job.epochs
    trainer.num_iterations_per_epoch = job.iterations
    trainer.num_val_iterations_per_epoch = job.validation_iterations
    return trainer


def evaluate(trainer: Any) -> float:
    """Mean Dice of the held-back cases: whole volumes without mirroring, exported to the images' own grids."""
    import torch
    from nnunetv2.inference import export_prediction
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    plans, configuration = trainer.plans_manager, trainer.configuration_manager
    predictor = nnUNetPredictor(use_mirroring=False, device=trainer.device, allow_tqdm=False)
    about = plans, configuration, None, trainer.dataset_json, "nnUNetTrainer", ()
    predictor.manual_initialization(trainer.network, *about)
    reader = plans.image_reader_writer_class()
    references = Path(trainer.preprocessed_dataset_folder_base) / "gt_segmentations"
    cases = trainer.dataset_class(trainer.preprocessed_dataset_folder, trainer.do_split()[1])
    pairs = []
    trainer.set_deep_supervision_enabled(False)
    for name in cases.identifiers:
        image, _, _, properties = cases.load_case(name)
        logits = predictor.predict_sliding_window_return_logits(torch.from_numpy(image[:]))
        labels = export_prediction.convert_predicted_logits_to_segmentation_with_correct_shape(
            logits.cpu(),
            plans,
            configuration,
            trainer.label_manager,
            properties,
            num_threads_torch=torch.get_num_threads(),
        )
        reference, _ = reader.read_seg(str(references / f"{name}{trainer.dataset_json['file_ending']}"))
        pairs.append((labels, reference[0]))
    trainer.set_deep_supervision_enabled(True)
    return mean_dice(pairs, trainer.label_manager.foreground_labels)


if __name__ == "__main__":
    main()
