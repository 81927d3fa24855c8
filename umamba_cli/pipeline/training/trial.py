"""Steps on an empty batch that leave no trace: whether the memory suffices is tried, and how long a step takes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from umamba_cli.pipeline.devices import channels_last, free_device_bytes, lower_precisions, out_of_memory
from umamba_cli.pipeline.geometry import Shape
from umamba_cli.pipeline.networks.registry import NetworkPlan
from umamba_cli.pipeline.training.fitting import memory_error, require_memory
from umamba_cli.pipeline.training.loader import Batch
from umamba_cli.pipeline.training.settings import TrainingSettings
from umamba_cli.pipeline.training.step import TrainingStep


def try_memory(step: TrainingStep, network: nn.Module, plan: NetworkPlan, settings: TrainingSettings) -> None:
    """Make a step as large as those of the training, before it begins.

    Args:
        step: what will be repeated.
        network: the step's, without DistributedDataParallel.
        plan: of the network.
        settings: give the batch size, which is this process's part of the batch.

    Raises:
        InputError: there is too little memory; the details name what would fit.
    """
    compute, loss = step.compute, step.loss
    free = free_device_bytes(compute.device)
    precisions = lower_precisions(compute)
    require_memory(network, plan, settings, compute, free, loss=loss, precisions=precisions)
    try:
        time_steps(step, empty_batch(settings.batch_size, plan.input_channels, plan.patch_size, compute.device))
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        if compute.device.type == "cuda":
            torch.cuda.empty_cache()
        raise memory_error(network, plan, settings, compute, free, loss=loss, precisions=precisions) from error


def empty_batch(batch_size: int, channels: int, patch_size: Shape, device: torch.device) -> Batch:
    """A batch of zeros, as large as those of the training and in their memory format."""
    layout = channels_last(len(patch_size))
    images = torch.zeros((batch_size, channels, *patch_size), device=device).to(memory_format=layout)
    return Batch(images, torch.zeros((batch_size, *patch_size), dtype=torch.int64, device=device))


def time_steps(step: TrainingStep, batch: Batch, count: int = 1) -> list[float]:
    """Seconds of each of some steps, after which network, optimizer and scaler are as they were."""
    seconds = []
    with _left_as_it_is(step):
        for _ in range(count):
            began = time.perf_counter()
            step(batch)  # looks at the gradient's norm, and so waits for the device
            seconds.append(time.perf_counter() - began)
    return seconds


@contextmanager
def _left_as_it_is(step: TrainingStep) -> Iterator[None]:
    # On the CPU: a second copy of the weights must not be what makes the memory run out.
    weights = {name: tensor.detach().to("cpu", copy=True) for name, tensor in step.network.state_dict().items()}
    scaler = step.scaler.state_dict()
    try:
        yield
    finally:
        step.optimizer.zero_grad(set_to_none=True)
        step.optimizer.state.clear()
        step.network.load_state_dict(weights)
        if step.scaler.is_enabled():
            step.scaler.load_state_dict(scaler)
