"""How much memory a training step takes, counted without a GPU and without allocating it.

A step (forward, loss, backward, clipping, optimizer) runs on fake tensors: they have sizes, strides, types and a
device, but no data, and are computed with the kernels of the meta device. Plain meta tensors would not do: autocast
refuses the meta device, so that a step in bfloat16 could not be counted.

Source of the method: https://docs.pytorch.org/docs/stable/torch.compiler_fake_tensor.html and
https://docs.pytorch.org/docs/stable/autograd.html#torch.autograd.graph.saved_tensors_hooks.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from umamba_cli.pipeline.devices import Compute, channels_last
from umamba_cli.pipeline.errors import UmambaError, WorkError
from umamba_cli.pipeline.networks.registry import NetworkPlan
from umamba_cli.pipeline.training.loader import Batch
from umamba_cli.pipeline.training.losses import Loss
from umamba_cli.pipeline.training.schedule import new_optimizer
from umamba_cli.pipeline.training.settings import TrainingSettings
from umamba_cli.pipeline.training.step import TrainingStep


@dataclass(frozen=True)
class TrainingMemory:
    """What one step of a training holds, in bytes; memory that several tensors share is counted once.

    The peak is less than the sum of the parts: gradients come while what was saved for them goes.
    """

    parameter_bytes: int
    """Parameters and buffers."""

    gradient_bytes: int
    optimizer_bytes: int
    """The optimizer's state, once it has made a step."""

    batch_bytes: int
    """Images and labels."""

    saved_bytes: int
    """What the forward pass and the loss keep for the backward pass, parameters and batch apart; under autocast that
    includes the parameters' copies in lower precision."""

    peak_bytes: int
    """The most that is alive at one time, all of the above included and what single operations give out.

    Not included: what kernels allocate inside themselves (reordered copies, workspaces), an allocator's unused rest,
    and the libraries (on a GPU half a gigabyte).
    """

    def to_json(self) -> dict[str, int]:
        """A dictionary for a JSON file."""
        return asdict(self)


def training_memory(
    network: nn.Module, plan: NetworkPlan, settings: TrainingSettings, compute: Compute, *, loss: Loss
) -> TrainingMemory:
    """Count the memory of a training step.

    Args:
        network: what is to be trained; on any device, the meta device included. It is left as it is, in training mode.
            With `UNet.checkpointing` the step is counted with it.
        plan: gives the patch, the channels and the classes.
        settings: give the batch size and the optimizer.
        compute: the device, whose rules apply (a CPU saves other tensors than a GPU), and the precision.
        loss: of the training.

    Raises:
        InputError: the patch does not suit the network.
        WorkError: the network cannot run without data, because what it does depends on values.
    """
    network.train()
    try:
        # The live tensors' mode is entered last, so that it sees each operation once, with its fake result.
        with FakeTensorMode(allow_non_fake_inputs=True), _LiveStorages() as live:
            state = _fake_state(network, compute.device, len(plan.patch_size))
            counting = _Counting(network, plan, settings, compute, loss)
            of_step = {f"network.{name}": tensor for name, tensor in state.items()}
            memory: TrainingMemory = torch.func.functional_call(counting, of_step, (state, live))
            return memory
    except UmambaError:
        raise
    except Exception as error:  # networks of others may raise anything here
        first_line = (str(error).strip() or "no message").splitlines()[0]
        raise WorkError(
            f"the memory cannot be counted: {type(error).__name__}: {first_line}",
            next_step="train one epoch of a few steps, and watch the memory",
        ) from error


class _Counting(nn.Module):
    """One step, as a module around the network: `functional_call` gives it parameters and buffers without data.

    They must stay in place until the end of the step, because checkpointing runs the network in backward once more.
    """

    def __init__(
        self, network: nn.Module, plan: NetworkPlan, settings: TrainingSettings, compute: Compute, loss: Loss
    ) -> None:
        super().__init__()
        self.network, self._plan, self._settings, self._compute, self._loss = network, plan, settings, compute, loss

    def forward(self, state: dict[str, Tensor], live: _LiveStorages) -> TrainingMemory:
        """Count a step; `state` is what the network's parameters and buffers are at present."""
        trained = [tensor for tensor in state.values() if tensor.requires_grad]
        optimizer = new_optimizer(trained, self._settings)
        _first_step(optimizer, trained)
        batch = _fake_batch(self._plan, self._settings.batch_size, self._compute.device)
        fixed = _Storages([*state.values(), batch.images, batch.labels])
        saved = _Storages()

        def keep(tensor: Tensor) -> Tensor:
            saved.add(tensor)
            return tensor

        clip = self._settings.gradient_clip
        scaler = torch.amp.GradScaler(self._compute.device.type, enabled=False)
        step = TrainingStep(self.network, optimizer, scaler, self._compute, clip, self._loss)
        live.restart_peak()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = step.forward(batch)[0]
        # From here on not `step` itself, which looks at the gradient's value.
        saved_bytes = saved.bytes_besides(fixed)
        loss.backward()  # type: ignore[no-untyped-call]
        gradients = _Storages(tensor.grad for tensor in trained if tensor.grad is not None)
        nn.utils.clip_grad_norm_(trained, clip)
        optimizer.step()
        return TrainingMemory(
            parameter_bytes=_Storages(state.values()).bytes,
            gradient_bytes=gradients.bytes,
            optimizer_bytes=_Storages(_tensors(optimizer.state_dict()["state"])).bytes,
            batch_bytes=_Storages([batch.images, batch.labels]).bytes,
            saved_bytes=saved_bytes,
            peak_bytes=live.peak_bytes,
        )


def _fake_state(network: nn.Module, device: torch.device, dimensions: int) -> dict[str, Tensor]:
    """Parameters and buffers by name, without data, on the device and in the memory format of a training."""
    parameters = {
        name: nn.Parameter(_fake(parameter, device, dimensions), requires_grad=parameter.requires_grad)
        for name, parameter in network.named_parameters()
    }
    return {**parameters, **{name: _fake(buffer, device, dimensions) for name, buffer in network.named_buffers()}}


def _fake(tensor: Tensor, device: torch.device, dimensions: int) -> Tensor:
    layout = channels_last(dimensions) if tensor.dim() == dimensions + 2 else torch.contiguous_format
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=device, memory_format=layout)


def _fake_batch(plan: NetworkPlan, batch_size: int, device: torch.device) -> Batch:
    """Images float32 (B, channels, [z,] y, x) and labels int64 (B, [z,] y, x), as the loop puts them on the device."""
    layout = channels_last(len(plan.patch_size))
    images = torch.empty((batch_size, plan.input_channels, *plan.patch_size), device=device, memory_format=layout)
    return Batch(images, torch.empty((batch_size, *plan.patch_size), dtype=torch.int64, device=device))


def _first_step(optimizer: torch.optim.Optimizer, trained: list[Tensor]) -> None:
    """Let the optimizer make its state, as it does in the first step of a training."""
    for group in optimizer.param_groups:
        # On a GPU it works on all parameters at once, which takes more memory, but does not recognise fake ones there.
        group["foreach"] = any(tensor.is_cuda for tensor in trained)
    for tensor in trained:
        tensor.grad = torch.zeros_like(tensor)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _tensors(state: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(state) if isinstance(leaf, Tensor))


class _Storages:
    """The memory behind some tensors, each storage once; holding on to none."""

    def __init__(self, tensors: Iterable[Tensor] = ()) -> None:
        self._found: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        for tensor in tensors:
            self.add(tensor)

    def add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        known = self._found.get(id(storage))
        if known is None or known() is not storage:  # an id is used again when its storage is gone
            self._found[id(storage)] = weakref.ref(storage)

    @property
    def bytes(self) -> int:
        """Of what still lives."""
        return self.bytes_besides(_NONE)

    def bytes_besides(self, others: _Storages) -> int:
        """Of what still lives and is not among the others."""
        storages = [storage for reference in self._found.values() if (storage := reference()) is not None]
        return sum(storage.nbytes() for storage in storages if not others.holds(storage))

    def holds(self, storage: torch.UntypedStorage) -> bool:
        known = self._found.get(id(storage))
        return known is not None and known() is storage


_NONE = _Storages()


class _LiveStorages(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is entered, follows the memory of every tensor that an operation gives out, until it is freed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._live: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._bytes = 0
        self.peak_bytes = 0

    def restart_peak(self) -> None:
        """Forget what the peak was until now."""
        self.peak_bytes = self._bytes

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation, and follow what it gave out."""
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            self._follow(tensor.untyped_storage())
        return result

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self._live:
            return

        def freed(_reference: object) -> None:
            del self._live[key]
            self._bytes -= size

        self._live[key] = weakref.ref(storage, freed)
        self._bytes += size
        self.peak_bytes = max(self.peak_bytes, self._bytes)
