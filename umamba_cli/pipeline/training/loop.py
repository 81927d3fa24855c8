"""The training loop: epochs of steps, a look at held-back patches after each, a checkpoint after each.

What it survives: steps without a finite gradient (they are skipped; after too many it goes back to the last checkpoint
and on in float32), worker processes that die, signals (it keeps where it is, to the step, and ends) and kills.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from umamba_cli.pipeline.data.workspace import Run
from umamba_cli.pipeline.devices import Compute, channels_last, keep_freed_memory, out_of_memory, taken_memory_bytes
from umamba_cli.pipeline.errors import Stopped, WorkError
from umamba_cli.pipeline.networks.registry import NetworkPlan
from umamba_cli.pipeline.progress import OnProgress, Progress, ignore_progress
from umamba_cli.pipeline.runs.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from umamba_cli.pipeline.runs.lock import RunLock
from umamba_cli.pipeline.runs.log import EpochLog, read_log, write_log
from umamba_cli.pipeline.runs.network import compile_scan
from umamba_cli.pipeline.training.distributed import World
from umamba_cli.pipeline.training.epoch_log import Example, dice_by_name, example_of, figures_of, seconds_left
from umamba_cli.pipeline.training.fitting import memory_ran_out
from umamba_cli.pipeline.training.loader import Batch, BatchMaker, BatchPosition, batches
from umamba_cli.pipeline.training.losses import Loss
from umamba_cli.pipeline.training.position import (
    BadSteps,
    EpochSoFar,
    left_as_it_is,
    pack_epoch,
    random_state,
    set_random_state,
    unpack_epoch,
)
from umamba_cli.pipeline.training.schedule import learning_rate, new_optimizer
from umamba_cli.pipeline.training.settings import TrainingSettings
from umamba_cli.pipeline.training.step import TrainingStep
from umamba_cli.pipeline.training.stopping import StopRequest

Overlap = Callable[[Tensor, Tensor], Tensor]
"""Logits and labels to true positives, false positives and false negatives of each foreground output."""

_BATCHES_LOOKED_AT = 4  # for a patch to show


class _NotFiniteError(Exception):
    """Too many steps had no finite loss or gradient."""


@dataclass
class TrainingLoop:
    """One training, from wherever its run folder says it is to its last epoch."""

    run: Run
    network: nn.Module
    plan: NetworkPlan
    settings: TrainingSettings
    maker: BatchMaker
    output_names: Sequence[str]
    """Of the foreground, in the order of `overlap`."""

    compute: Compute
    loss: Loss
    overlap: Overlap
    validates: bool
    """False where no case is held back."""

    augment: Callable[[Tensor, Tensor, Sequence[int]], tuple[Tensor, Tensor]] | None = None
    """Images, labels and seeds to augmented images and labels, on the device; None: the workers do it."""

    workers: int = 0
    world: World = field(default_factory=World)
    lock: RunLock | None = None
    """Told where the training is."""

    on_progress: OnProgress = ignore_progress
    after_epoch: Callable[[list[EpochLog], Example | None], None] = field(default=lambda log, example: None)
    """Called in the first process, with the log of all epochs so far and a validation patch, after each."""

    def __post_init__(self) -> None:
        self._memory_format = channels_last(len(self.plan.patch_size))
        self.network.to(self.compute.device, memory_format=self._memory_format)  # type: ignore[call-overload]
        self._parallel = self.world.parallel(self.network)
        self._optimizer = new_optimizer(self.network.parameters(), self.settings)
        self._use(self.compute)
        self._epoch = 0
        self._now = EpochSoFar()
        self._bad_steps = BadSteps()
        self._best_dice: float | None = None
        self._log: list[EpochLog] = []
        self._figures: dict[str, str] = {}
        self._fell_back = ""  # why the training computes in float32, where it did not begin so
        self._stop = StopRequest()

    @property
    def step(self) -> TrainingStep:
        """What is repeated."""
        return self._step

    def train(self) -> list[EpochLog]:
        """Train to the last epoch and leave `checkpoint_final`; returns the log of all epochs.

        Raises:
            Stopped: a signal asked for it; the checkpoint is written.
            WorkError: steps had no finite loss even in float32, workers died again and again, memory ran out, or a
                file could not be written.
        """
        if self.compute.device.type == "cpu":
            keep_freed_memory()
        compile_scan([self.network], self.compute.device, self.on_progress)
        with self._stop, torch.random.fork_rng(self._devices):
            torch.manual_seed(self.settings.seed + self.world.rank)
            if self.run.checkpoint("latest").is_file():
                self._go_on()
                self._say_where()
            self.world.wait()
            if not self.run.checkpoint("latest").is_file():
                self._save("latest")  # what to go back to, should the first epoch fail
            self._report()
            while self._epoch < self.settings.epochs:
                stream = self._batches_to_come()
                try:
                    while self._epoch < self.settings.epochs:
                        self._one_epoch(stream)
                except _NotFiniteError:
                    self._fall_back()
        self._save("final")
        self.world.wait()
        return self._log

    @property
    def _devices(self) -> list[torch.device]:
        """Those with random generators of their own."""
        return [self.compute.device] if self.compute.device.type == "cuda" else []

    def _use(self, compute: Compute) -> None:
        self.compute = compute
        self._scaler = torch.amp.GradScaler(compute.device.type, enabled=compute.precision == "fp16")
        self._step = TrainingStep(
            self._parallel,
            self._optimizer,
            self._scaler,
            compute,
            self.settings.gradient_clip,
            self.loss,
            in_any=lambda bad: self.world.any(bad, compute.device),
        )

    def _batches_to_come(self) -> Iterator[Batch]:
        first, begun = self._epoch, self._now.iteration  # read now: the positions are asked for as the epochs pass
        epochs = range(first, self.settings.epochs)
        return batches(
            self.maker,
            (place for epoch in epochs for place in self._positions(epoch, begun if epoch == first else 0)),
            workers=self.workers,
            pin=self.compute.device.type == "cuda",
            on_warning=self._warn,
        )

    def _positions(self, epoch: int, begun: int) -> list[BatchPosition]:
        s = self.settings
        training = [BatchPosition("training", epoch * s.iterations + i) for i in range(begun, s.iterations)]
        # The same validation patches after every epoch, so that epochs can be compared.
        validation = [BatchPosition("validation", i) for i in range(s.validation_iterations if self.validates else 0)]
        return training + validation

    def _one_epoch(self, stream: Iterator[Batch]) -> None:
        rate = learning_rate(self.settings, self._epoch)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._train_epoch(stream)
        validation, example = self._validate_epoch(stream)
        now = self._now
        entry: EpochLog = {
            "epoch": self._epoch + 1,
            "train_loss": now.mean_loss,
            **validation,
            "learning_rate": rate,
            "skipped_steps": now.skipped,
            "seconds": now.seconds,
            "waiting_share": now.waiting_share,
            "memory_bytes": taken_memory_bytes(self.compute.device),
            "precision": self.compute.precision,
        }
        self._log.append(entry)
        self._epoch, self._now = self._epoch + 1, EpochSoFar()
        self._keep(entry)
        if self.world.is_first:
            self.after_epoch(self._log, example)
        self._figures.update(figures_of(entry))
        self._report(step=f"epoch {self._epoch}")

    def _train_epoch(self, stream: Iterator[Batch]) -> None:
        self.network.train()
        now = self._now
        while now.iteration < self.settings.iterations:
            began = time.monotonic()
            batch = next(stream)
            waited = time.monotonic() - began
            loss, made = self._take(self._on_device(batch))
            now.iteration += 1
            if made:
                now.losses.append(float(loss))
            else:
                now.skipped += 1
                self._warn_of_skipped()
            now.waited_s += waited
            now.seconds += time.monotonic() - began
            if self._bad_steps.add(not made and not self._step.finds_scale(loss)):
                raise _NotFiniteError
            self._report(live=True)
            self._stop_if_asked()

    def _take(self, batch: Batch) -> tuple[Tensor, bool]:
        """One step; memory that another process or a fragmented allocator took may be there a moment later."""
        try:
            return self._step(batch)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            if self.world.size > 1:  # the others are in the middle of this step: it cannot be made again
                raise memory_ran_out(self._epoch + 1, self._now.iteration + 1) from error
        self._optimizer.zero_grad(set_to_none=True)
        gc.collect()
        if self.compute.device.type == "cuda":
            torch.cuda.empty_cache()
        try:
            return self._step(batch)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            raise memory_ran_out(self._epoch + 1, self._now.iteration + 1) from error

    def _on_device(self, batch: Batch) -> Batch:
        batch = batch.to(self.compute.device, self._memory_format)
        if not batch.seeds:
            return batch
        assert self.augment is not None
        images, labels = self.augment(batch.images, batch.labels, batch.seeds)
        return Batch(images.contiguous(memory_format=self._memory_format), labels.clamp_min(0))

    @torch.no_grad()
    def _validate_epoch(self, stream: Iterator[Batch]) -> tuple[EpochLog, Example | None]:
        if not self.validates:
            return {"val_loss": None, "dice": {}, "mean_dice": None}, None
        # Training mode, because the heads of deep supervision answer in it; no layer of ours behaves otherwise.
        began = time.monotonic()
        losses, overlaps = [], []
        richest, example = -1, None
        for index in range(self.settings.validation_iterations):
            batch = self._on_device(next(stream))
            with left_as_it_is(self.network, self._devices):
                loss, logits = self._step.forward(batch)
            losses.append(float(loss))
            overlaps.append(self.overlap(logits, batch.labels))
            labelled = int(torch.count_nonzero(batch.labels)) if index < _BATCHES_LOOKED_AT else -1
            if labelled > richest:
                richest, example = labelled, example_of(batch, logits)
            self._report(live=True)
            self._stop_if_asked()
        dice = dice_by_name(self.output_names, self.world.sum(torch.stack(overlaps).sum(0).double()))
        known = [value for value in dice.values() if value is not None]
        self._now.seconds += time.monotonic() - began
        return {
            "val_loss": sum(losses) / len(losses),
            "dice": dice,
            "mean_dice": sum(known) / len(known) if known else None,
        }, example

    def _stop_if_asked(self) -> None:
        """Keep where the training is, and end, where a signal asked any process for it."""
        if not self.world.any(bool(self._stop.name), self.compute.device):
            return
        self._save("latest")
        self.world.wait()
        raise Stopped(
            f"stopped by {self._stop.name or 'a signal to another process'} in epoch {self._epoch + 1} of "
            f"{self.settings.epochs}, after step {self._now.iteration} of {self.settings.iterations}",
            next_step="run the same command again to go on there",
        )

    def _fall_back(self) -> None:
        """Go back to the last checkpoint, and on in float32."""
        failed = f"steps without a finite loss or gradient in epoch {self._epoch + 1}"
        if self.compute.precision == "fp32":
            raise WorkError(
                f"too many {failed}, in float32 too",
                next_step="train with a lower --lr or some --warmup epochs (and --restart), and look for absurd values "
                "in the images with `umamba check`",
            )
        lower = self.compute.precision
        self._go_on()
        self._compute_in_float32(f"too many {failed} in {lower}")
        self._bad_steps = BadSteps()
        self._save("latest")  # whoever goes on from here does so in float32
        self._warn(
            f"too many {failed}: back to epoch {self._epoch}, step {self._now.iteration}, and on in float32, which "
            "takes more time and memory"
        )

    def _compute_in_float32(self, reason: str) -> None:
        self._fell_back = reason
        self._use(replace(self.compute, precision="fp32", reason=reason))

    def _keep(self, entry: EpochLog) -> None:
        """Write what the epoch left: the log first, then the checkpoints; whoever goes on starts from `latest`."""
        dice = entry["mean_dice"]
        is_best = dice is not None and (self._best_dice is None or dice > self._best_dice)
        if is_best:
            self._best_dice = dice
        if self.world.is_first:
            write_log(self.run, self._log)
        if is_best:
            self._save("best")
        self._save("latest")

    def _save(self, kind: str) -> None:
        if not self.world.is_first:
            return
        state: Mapping[str, Any] = {}
        if kind == "latest":  # only the latest one is gone on from
            state = {
                "optimizer": self._optimizer.state_dict(),
                "scaler": self._scaler.state_dict(),
                "fell_back": self._fell_back,
                "random": random_state(self.compute.device),
                "bad_steps": self._bad_steps.to_json(),
                "epoch": pack_epoch(self._now),
            }
        checkpoint = Checkpoint(self._epoch, self.network.state_dict(), self._best_dice, state)
        write_checkpoint(self.run.checkpoint(kind), checkpoint)

    def _go_on(self) -> None:
        """Take up the latest checkpoint."""
        self.world.wait()
        checkpoint = read_checkpoint(self.run.checkpoint("latest"))
        state = checkpoint.state
        self.network.load_state_dict(dict(checkpoint.weights))
        self._optimizer.load_state_dict(state["optimizer"])
        if state.get("fell_back") and self.compute.precision != "fp32":
            self._compute_in_float32(state["fell_back"])
        if self._scaler.is_enabled() and state["scaler"]:
            self._scaler.load_state_dict(state["scaler"])
        if "random" in state and self.world.is_first:
            set_random_state(state["random"], self.compute.device)
        self._bad_steps = BadSteps(state.get("bad_steps"))
        self._now = unpack_epoch(state.get("epoch", {}))
        self._epoch, self._best_dice = checkpoint.epoch, checkpoint.best_dice
        log, unreadable = read_log(self.run)
        if unreadable:
            self._warn(f"{unreadable} lines of {self.run.log_file} cannot be read and are left out")
        self._log = [entry for entry in log if entry["epoch"] <= self._epoch]

    def _say_where(self) -> None:
        begun = f", step {self._now.iteration} of {self.settings.iterations} of the next" if self._now.iteration else ""
        note = f"the training goes on after epoch {self._epoch} of {self.settings.epochs}{begun}"
        self.on_progress(Progress("train", self._epoch, self.settings.epochs, note=note))

    def _warn(self, text: str) -> None:
        self.on_progress(Progress("train", self._epoch, self.settings.epochs, warning=text))

    def _warn_of_skipped(self) -> None:
        # In float16 a few are how the scaler finds its scale.
        if self._now.skipped == 1 and self.compute.precision != "fp16":
            self._warn(
                f"step {self._now.iteration} of epoch {self._epoch + 1} had no finite loss or gradient and was skipped"
            )

    def _report(self, *, step: str = "", live: bool = False) -> None:
        """Tell the caller, and who asks `umamba status`, where the training is; `live` within an epoch."""
        s, now = self.settings, self._now
        validation = s.validation_iterations if self.validates else 0
        within = now.iteration / (s.iterations + validation)
        if live and now.losses:
            self._figures["loss"] = f"{now.losses[-1]:.3f}"
        self.on_progress(Progress("train", self._epoch, s.epochs, step, dict(self._figures), within))
        if self.lock:
            self.lock.note(
                "train",
                epoch=self._epoch,
                epochs=s.epochs,
                iteration=now.iteration,
                iterations=s.iterations,
                seconds_left=seconds_left(self._log, s.epochs, now.seconds),
            )
