"""What to do about a training that needs more memory than there is: every option is counted before it is named."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from torch import nn

from umamba_cli.pipeline.devices import Compute
from umamba_cli.pipeline.errors import InputError, UmambaError, WorkError
from umamba_cli.pipeline.networks.registry import NetworkPlan
from umamba_cli.pipeline.planning.memory import Network, count_features
from umamba_cli.pipeline.planning.presets import BATCH_AT_REFERENCE, PRESETS, Features
from umamba_cli.pipeline.training.losses import Loss
from umamba_cli.pipeline.training.memory import training_memory
from umamba_cli.pipeline.training.settings import TrainingSettings

HEADROOM = 1.2
"""An option is named where so many times its counted peak is free: kernels and allocators take more than is counted."""

LEAST_PLANNED_GB = 1.0
"""`umamba plan --memory` takes no less."""

_MIB, _GIB = 2**20, 2**30
"""In messages of torch's allocators for a CPU and for MPS, of cuDNN and of cuBLAS, which raise a bare RuntimeError."""


@dataclass(frozen=True)
class Variant:
    """How a training could be done otherwise."""

    batch_size: int
    precision: str
    checkpointing: bool


@dataclass(frozen=True)
class Suggestion:
    """A variant that fits."""

    options: str
    """Of `umamba train`, such as `--batch-size 1 --checkpointing`."""

    peak_bytes: int
    remark: str
    """What it costs, where that is known."""

    def __str__(self) -> str:
        """One line for an error's details."""
        return f"{self.options}: {mebibytes(self.peak_bytes)}{f' ({self.remark})' if self.remark else ''}"


def mebibytes(count: int) -> str:
    """Bytes as `5,210 MiB`."""
    return f"{count / _MIB:,.0f} MiB"


def what_would_fit(
    network: nn.Module,
    plan: NetworkPlan,
    settings: TrainingSettings,
    compute: Compute,
    free_bytes: int,
    *,
    loss: Loss,
    precisions: Sequence[str] = (),
) -> tuple[Suggestion, ...]:
    """The variants of a training that would fit, those first that keep its batch size.

    Options are put together where none is enough by itself, a smaller batch with another one where it can then be
    larger. Each variant is counted as in `training_memory`, which takes about a second.

    Args:
        network: what is to be trained; it is left as it is, in training mode.
        plan: of the network.
        settings: that do not fit.
        compute: of the training.
        free_bytes: what the training may take in all.
        loss: of the training.
        precisions: lower ones that the device is good at, see `devices.lower_precisions`.

    Returns:
        The variants; none where none fits, or where the network's memory cannot be counted.
    """
    return _suggestions(_Counts(network, plan, settings, compute, loss), free_bytes, precisions)


def _suggestions(counts: _Counts, free_bytes: int, precisions: Sequence[str]) -> tuple[Suggestion, ...]:
    if counts.present_peak is None:
        return ()
    present = counts.present
    # What ran out of memory although it was counted to fit shows that the headroom was too small.
    limit = min(int(free_bytes / HEADROOM), counts.present_peak - 1)
    savings = [False, True] if counts.can_checkpoint and not present.checkpointing else [present.checkpointing]
    pairs = [(p, c) for p in (present.precision, *precisions) for c in savings]
    others = [replace(present, precision=p, checkpointing=c) for p, c in pairs[1:]]
    fitting: list[Variant] = []
    for variant in others:  # single changes come before what puts them together
        is_single = variant.precision == present.precision or variant.checkpointing == present.checkpointing
        if (is_single or not fitting) and counts.peak(variant) <= limit:
            fitting.append(variant)
    largest = 0
    for variant in [present, *([] if fitting else others)]:
        if (smaller := counts.largest_batch(variant, limit)) and smaller.batch_size > largest:
            fitting.append(smaller)
            largest = smaller.batch_size
    return tuple(_suggestion(variant, present, counts.peak(variant)) for variant in fitting)


def _suggestion(variant: Variant, present: Variant, peak_bytes: int) -> Suggestion:
    options, remark = [], ""
    if variant.batch_size != present.batch_size:
        options.append(f"--batch-size {variant.batch_size}")
    if variant.precision != present.precision:
        options.append(f"--precision {variant.precision}")
    if variant.checkpointing and not present.checkpointing:
        options.append("--checkpointing")
        remark = "a quarter slower, same results" if len(options) == 1 else "a quarter slower"
    return Suggestion(" ".join(options), peak_bytes, remark)


class _Counts:
    """The peaks of the variants of a training, each counted once."""

    def __init__(
        self, network: nn.Module, plan: NetworkPlan, settings: TrainingSettings, compute: Compute, loss: Loss
    ) -> None:
        self._network, self.plan, self._settings, self.compute, self._loss = network, plan, settings, compute, loss
        self.can_checkpoint = hasattr(network, "checkpointing")
        checkpointing = bool(getattr(network, "checkpointing", False))
        self.present = Variant(settings.batch_size, compute.precision, checkpointing)
        self._known: dict[Variant, int] = {}
        self.present_peak: int | None = None  # where it cannot be counted
        with suppress(UmambaError):
            self.present_peak = self.peak(self.present)

    def peak(self, variant: Variant) -> int:
        """The counted peak in bytes; errors as `training_memory`'s."""
        if variant not in self._known:
            self._known[variant] = self._count(variant)
        return self._known[variant]

    def largest_batch(self, variant: Variant, limit: int) -> Variant | None:
        """The same with the largest batch below the variant's own whose peak is within the limit; None for none.

        Memory grows with the batch in nearly a straight line: two counts give it, a third one makes sure.
        """
        one = replace(variant, batch_size=1)
        if variant.batch_size == 1 or self.peak(one) > limit:
            return None
        a_patch = max((self.peak(variant) - self.peak(one)) / (variant.batch_size - 1), 1)
        size = 1 + int((limit - self.peak(one)) / a_patch)
        fitting = replace(variant, batch_size=min(size, variant.batch_size - 1))
        while self.peak(fitting) > limit:
            fitting = replace(fitting, batch_size=fitting.batch_size - 1)
        return fitting

    def _count(self, variant: Variant) -> int:
        settings = replace(self._settings, batch_size=variant.batch_size)
        compute = replace(self.compute, precision=variant.precision)
        if self.can_checkpoint:
            self._network.checkpointing = variant.checkpointing  # type: ignore[assignment]
        try:
            return training_memory(self._network, self.plan, settings, compute, loss=self._loss).peak_bytes
        finally:
            if self.can_checkpoint:
                self._network.checkpointing = self.present.checkpointing  # type: ignore[assignment]


def require_memory(
    network: nn.Module,
    plan: NetworkPlan,
    settings: TrainingSettings,
    compute: Compute,
    free_bytes: int,
    *,
    loss: Loss,
    precisions: Sequence[str] = (),
) -> None:
    """Make sure on a CPU that a training step has room: there, no error comes, but the system ends the process.

    Arguments as of `what_would_fit`. On other devices nothing is counted, nor said of a network that cannot be counted.

    Raises:
        InputError: it has not; the details name what would fit.
    """
    if compute.device.type != "cpu":
        return
    counts = _Counts(network, plan, settings, compute, loss)
    if counts.present_peak is not None and counts.present_peak > free_bytes:
        raise _error(counts, free_bytes, precisions)


def memory_error(
    network: nn.Module,
    plan: NetworkPlan,
    settings: TrainingSettings,
    compute: Compute,
    free_bytes: int,
    *,
    loss: Loss,
    precisions: Sequence[str] = (),
) -> InputError:
    """What to say about a training step for which memory ran out; arguments as of `what_would_fit`."""
    return _error(_Counts(network, plan, settings, compute, loss), free_bytes, precisions)


def _error(counts: _Counts, free_bytes: int, precisions: Sequence[str]) -> InputError:
    suggestions = _suggestions(counts, free_bytes, precisions)
    needed, batch = "", counts.present.batch_size
    again = (
        "choose a model that takes less (see `umamba models`), or plan again with `umamba plan DATASET --preset cpu`"
    )
    if counts.present_peak is not None:
        needed = f" needs about {mebibytes(counts.present_peak)} and"
        planned = memory_to_plan_for(counts.plan, batch, counts.present_peak, free_bytes)
        if planned and planned * _GIB <= free_bytes:  # otherwise the batch is too large, not the plan
            again = f"plan again with `umamba plan DATASET --memory {planned:g}`"
    first = "take one of these options, or " if suggestions else ""
    return InputError(
        f"a training step with a batch of {batch} in {counts.present.precision}{needed} does not fit into the "
        f"{mebibytes(free_bytes)} that are free on {counts.compute.device_name}",
        details=[str(suggestion) for suggestion in suggestions],
        next_step=f"{first}{again}",
    )


def memory_to_plan_for(plan: NetworkPlan, batch_size: int, peak_bytes: int, free_bytes: int) -> float | None:
    """The number for `umamba plan --memory` with which the same model would fit, in GB.

    The planner judges by nnU-Net's U-Net, but models differ in what they take: what the planner makes of the present
    patch and batch is scaled by how much too large they proved. None where that is less than can be planned for.

    Args:
        plan: of the network.
        batch_size: patches a step.
        peak_bytes: counted for a step.
        free_bytes: what the training may take.
    """
    preset, dimensions = PRESETS["default"], len(plan.patch_size)
    stages = len(plan.strides)
    as_planned = Network(
        strides=plan.strides,
        features=Features().per_stage(stages, dimensions),
        encoder=preset.encoder_layers(stages),
        decoder=preset.decoder_layers(stages),
        residual=preset.residual,
        num_classes=plan.outputs,
    )
    reference = preset.reference(dimensions) * BATCH_AT_REFERENCE[dimensions]
    present_gb = preset.memory_gb * count_features(as_planned, plan.patch_size) * batch_size / reference
    tenths = math.floor(10 * present_gb * free_bytes / HEADROOM / peak_bytes)
    return tenths / 10 if tenths >= 10 * LEAST_PLANNED_GB else None


def memory_ran_out(epoch: int, step: int) -> WorkError:
    """What to say where memory ran out in the middle of a training, in the same step twice."""
    return WorkError(
        f"memory ran out in step {step} of epoch {epoch}",
        next_step="make room on the device, then run the same command again; with --checkpointing a training needs "
        "less memory and gives the same result",
    )
