"""One fold's training as it is to be predicted with: what was recorded of it, and weights that fit it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from umamba_cli.pipeline.data.workspace import Run
from umamba_cli.pipeline.devices import Compute, channels_last
from umamba_cli.pipeline.errors import InputError, UmambaError
from umamba_cli.pipeline.runs.bundle import Bundle
from umamba_cli.pipeline.runs.checkpoint import read_checkpoint
from umamba_cli.pipeline.runs.network import recorded_network
from umamba_cli.pipeline.runs.record import RunRecord, read_record


@dataclass(frozen=True)
class TrainedFold:
    """One fold's training, its weights still to be read."""

    record: RunRecord
    fold: int | str
    source: str
    """What errors call it."""

    weights: Callable[[], Mapping[str, Tensor]]

    def load(self, compute: Compute) -> tuple[nn.Module, str]:
        """Its network on a device, in evaluation mode, and a digest of its weights.

        Raises:
            InputError: the weights cannot be read, or are not those of the network that the record describes.
        """
        weights = dict(self.weights())
        _require_same_tensors(self, _described_tensors(self.record), weights)
        network = recorded_network(self.record)
        network.load_state_dict(weights)
        memory_format = channels_last(self.record.network_configuration.dimensions)
        network.to(compute.device, memory_format=memory_format)  # type: ignore[call-overload]
        return network.eval(), _digest(weights)


def fold_of_run(run: Run) -> TrainedFold:
    """A finished run."""
    checkpoint = run.checkpoint("final")
    record = read_record(run)
    return TrainedFold(record, record.fold, str(checkpoint), lambda: read_checkpoint(checkpoint).weights)


def fold_of_bundle(bundle: Bundle, fold: int | str) -> TrainedFold:
    """A fold of a bundle, or of a bundle's previous stage."""
    source = f"{bundle.weights_name(fold)} in {bundle.path}"
    return TrainedFold(bundle.record, fold, source, lambda: bundle.weights(fold))


def _described_tensors(record: RunRecord) -> Mapping[str, Tensor]:
    """Names and shapes of what a record describes, without numbers where that works: a bundle may describe anything."""
    try:
        with torch.device("meta"):
            described: Mapping[str, Tensor] = recorded_network(record).state_dict()
    except UmambaError:
        raise
    except Exception:  # models of other packages may need numbers
        described = recorded_network(record).state_dict()
    return described


def _require_same_tensors(fold: TrainedFold, expected: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    """The weights have the network's names, shapes and kinds of numbers."""
    problems = [f"{name} is missing" for name in expected.keys() - weights.keys()]
    problems += [f"{name} is none of the network's" for name in weights.keys() - expected.keys()]
    for name in expected.keys() & weights.keys():
        if (there := expected[name].shape) != (here := weights[name].shape):
            problems.append(f"{name} is {tuple(here)}, the network's is {tuple(there)}")
        elif expected[name].is_floating_point() != weights[name].is_floating_point():
            problems.append(f"{name} holds {weights[name].dtype}, the network's {expected[name].dtype}")
    if problems:
        raise InputError(
            f"{fold.source} does not fit the model {fold.record.model} of its run.json",
            details=sorted(problems)[:5],
            next_step="train again, or use the version of umamba that trained it",
        )


def _digest(weights: Mapping[str, Tensor]) -> str:
    """The same for the same names and numbers, wherever they were read from."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
