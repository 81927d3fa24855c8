"""The training loop: epochs of steps, a look at held-back patches after each, a checkpoint after each."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from umamba_cli.pipeline.data.files import to_plain, write_text
from umamba_cli.pipeline.data.workspace import Run
from umamba_cli.pipeline.devices import Compute, channels_last, keep_freed_memory
from umamba_cli.pipeline.errors import WorkError
from umamba_cli.pipeline.progress import OnProgress, Progress, ignore_progress
from umamba_cli.pipeline.runs.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from umamba_cli.pipeline.runs.network import compile_scan
from umamba_cli.pipeline.training.loader import Batch, BatchMaker, BatchPosition, batches
from umamba_cli.pipeline.training.losses import hard_overlap
from umamba_cli.pipeline.training.schedule import new_optimizer, polynomial_decay
from umamba_cli.pipeline.training.settings import TrainingSettings
from umamba_cli.pipeline.training.step import TrainingStep

EpochLog = dict[str, Any]


@dataclass
class TrainingLoop:
    """One training, from wherever its run folder says it is to its last epoch."""

    run: Run
    network: nn.Module
    settings: TrainingSettings
    maker: BatchMaker
    label_names: dict[int, str]
    """Foreground classes in the order of the network's outputs."""

    compute: Compute
    batch_dice: bool
    validates: bool
    """False where no case is held back."""

    workers: int = 0
    on_progress: OnProgress = ignore_progress
    after_epoch: Callable[[list[EpochLog]], None] = field(default=lambda log: None)
    """Called with the log of all epochs so far, after each."""

    def __post_init__(self) -> None:
        convolution_axes = next(p.dim() for p in self.network.parameters() if p.dim() > 3)
        self._memory_format = channels_last(convolution_axes - 2)
        self.network.to(self.compute.device, memory_format=self._memory_format)  # type: ignore[call-overload]
        self._optimizer = new_optimizer(self.network.parameters(), self.settings)
        self._scaler = torch.amp.GradScaler(self.compute.device.type, enabled=self.compute.precision == "fp16")
        self._step = TrainingStep(
            self.network,
            self._optimizer,
            self._scaler,
            self.compute,
            gradient_clip=self.settings.gradient_clip,
            batch_dice=self.batch_dice,
        )
        self._epoch = 0
        self._best_dice: float | None = None
        self._log: list[EpochLog] = []

    def train(self) -> list[EpochLog]:
        """Train to the last epoch and leave `checkpoint_final`; returns the log of all epochs.

        Raises:
            WorkError: a whole epoch had no finite loss, a worker died, or a file could not be written.
        """
        self._go_on()
        if self.compute.device.type == "cpu":
            keep_freed_memory()
        compile_scan([self.network], self.compute.device, self.on_progress)
        stream = batches(
            self.maker,
            (position for epoch in range(self._epoch, self.settings.epochs) for position in self._positions(epoch)),
            workers=self.workers,
            pin=self.compute.device.type == "cuda",
        )
        self._report(figures={})
        while self._epoch < self.settings.epochs:
            self._one_epoch(stream)
        self._save("final")
        return self._log

    def _positions(self, epoch: int) -> list[BatchPosition]:
        s = self.settings
        training = [BatchPosition("training", epoch * s.iterations + i) for i in range(s.iterations)]
        # The same validation patches after every epoch, so that epochs can be compared.
        validation = [BatchPosition("validation", i) for i in range(s.validation_iterations if self.validates else 0)]
        return training + validation

    def _one_epoch(self, stream: Iterator[Batch]) -> None:
        began = time.monotonic()
        rate = polynomial_decay(self.settings.learning_rate, self._epoch, self.settings.epochs)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        train_loss, skipped = self._train_epoch(stream)
        validation = (
            self._validate_epoch(stream) if self.validates else {"val_loss": None, "dice": {}, "mean_dice": None}
        )
        entry: EpochLog = {
            "epoch": self._epoch + 1,
            "train_loss": train_loss,
            **validation,
            "learning_rate": rate,
            "skipped_steps": skipped,
            "seconds": time.monotonic() - began,
        }
        self._log.append(entry)
        self._epoch += 1
        self._keep(entry)
        self.after_epoch(self._log)
        self._report(_figures(entry), step=f"epoch {self._epoch}")

    def _train_epoch(self, stream: Iterator[Batch]) -> tuple[float, int]:
        self.network.train()
        losses: list[torch.Tensor] = []
        skipped = 0
        for iteration in range(self.settings.iterations):
            batch = next(stream).to(self.compute.device, self._memory_format)
            loss, made = self._step(batch)
            if made:
                losses.append(loss)
            else:
                skipped += 1
            self._report({}, within=(iteration + 1) / (self.settings.iterations + 1))
        if not losses:
            raise WorkError(
                f"no step of epoch {self._epoch + 1} had a finite loss and gradient",
                next_step="train with --precision fp32, and look for absurd values in the images with `umamba check`",
            )
        return float(torch.stack(losses).mean()), skipped

    @torch.no_grad()
    def _validate_epoch(self, stream: Iterator[Batch]) -> dict[str, Any]:
        # Training mode, because the heads of deep supervision answer in it; no layer behaves otherwise.
        losses, overlaps = [], []
        for _ in range(self.settings.validation_iterations):
            batch = next(stream).to(self.compute.device, self._memory_format)
            loss, logits = self._step.loss(batch)
            losses.append(loss)
            overlaps.append(hard_overlap(logits, batch.labels))
        both, wrong, missed = torch.stack(overlaps).sum(0).tolist()
        dice = {
            name: 2 * b / (2 * b + w + m) if b + w + m else None
            for name, b, w, m in zip(self.label_names.values(), both, wrong, missed, strict=True)
        }
        known = [value for value in dice.values() if value is not None]
        mean = sum(known) / len(known) if known else None
        return {"val_loss": float(torch.stack(losses).mean()), "dice": dice, "mean_dice": mean}

    def _keep(self, entry: EpochLog) -> None:
        """Write what the epoch left: the log first, then the checkpoints; whoever goes on starts from `latest`."""
        write_text(self.run.log_file, "".join(json.dumps(to_plain(line)) + "\n" for line in self._log))
        dice = entry["mean_dice"]
        if dice is not None and (self._best_dice is None or dice > self._best_dice):
            self._best_dice = dice
            self._save("best")
        self._save("latest")

    def _save(self, kind: str) -> None:
        state = {"optimizer": self._optimizer.state_dict(), "scaler": self._scaler.state_dict()}
        if kind != "latest":
            state = {}  # only the latest one is gone on from
        checkpoint = Checkpoint(self._epoch, self.network.state_dict(), self._best_dice, state)
        write_checkpoint(self.run.checkpoint(kind), checkpoint)

    def _go_on(self) -> None:
        """Take up the latest checkpoint, where there is one."""
        if not self.run.checkpoint("latest").is_file():
            return
        checkpoint = read_checkpoint(self.run.checkpoint("latest"))
        self.network.load_state_dict(dict(checkpoint.weights))
        self._optimizer.load_state_dict(checkpoint.state["optimizer"])
        if self._scaler.is_enabled() and checkpoint.state["scaler"]:
            self._scaler.load_state_dict(checkpoint.state["scaler"])
        self._epoch, self._best_dice = checkpoint.epoch, checkpoint.best_dice
        self._log = [entry for entry in read_log(self.run) if entry["epoch"] <= self._epoch]

    def _report(self, figures: dict[str, str], *, step: str = "", within: float = 0.0) -> None:
        self.on_progress(Progress("train", self._epoch, self.settings.epochs, step, figures, within))


def read_log(run: Run) -> list[EpochLog]:
    """The lines of a run's log.jsonl; none where there is no log yet."""
    if not run.log_file.is_file():
        return []
    return [json.loads(line) for line in run.log_file.read_text(encoding="utf-8").splitlines() if line]


def _figures(entry: EpochLog) -> dict[str, str]:
    shown = {"loss": f"{entry['train_loss']:.3f}"}
    if entry["mean_dice"] is not None:
        shown["Dice"] = f"{entry['mean_dice']:.3f}"
    if entry["skipped_steps"]:
        shown["skipped steps"] = str(entry["skipped_steps"])
    return shown
