"""Weights of another training to begin with (fine-tuning): what matches by name and shape is taken."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.runs.bundle import open_bundle
from umamba_cli.pipeline.runs.checkpoint import read_checkpoint
from umamba_cli.pipeline.runs.model import choose_folds, choose_runs, refuse_foreign
from umamba_cli.pipeline.runs.record import RunRecord, read_record


@dataclass(frozen=True)
class Source:
    """A trained network, read."""

    name: str
    """What messages call it."""

    record: RunRecord
    weights: Mapping[str, Tensor]

    run: Path | None = None
    """The folder that it was trained in; None of a bundle."""


@dataclass(frozen=True)
class Taken:
    """What a network took from another one."""

    source: str
    taken: int
    """Tensors that match and were loaded."""

    left: tuple[str, ...]
    """Tensors of the network that begin anew, each with the reason."""

    def to_json(self) -> dict[str, Any]:
        """A dictionary for a JSON file."""
        return asdict(self)


def read_source(model: Path, fold: int | str) -> Source:
    """Read the weights of a run, of the folder above its folds, or of a bundle.

    Args:
        model: the MODEL argument.
        fold: of the training that begins; the same fold is taken where there is one, whose held-back cases the other
            network has not seen either, otherwise the first.

    Raises:
        InputError: there is no finished training.
    """
    refuse_foreign(model)
    if model.is_file():
        bundle = open_bundle(model)
        folds = choose_folds(bundle, ())
        chosen = fold if fold in folds else folds[0]
        return Source(f"fold {chosen} of {model}", bundle.record, bundle.weights(chosen))
    runs = choose_runs(model, ())
    run = next((run for run in runs if run.folder.name == f"fold_{fold}"), runs[0])
    return Source(
        str(run.folder), read_record(run), read_checkpoint(run.checkpoint("final")).weights, run.folder.resolve()
    )


def take_weights(network: nn.Module, source: Source) -> Taken:
    """Load into a network what fits it by name and shape.

    Raises:
        InputError: nothing does.
    """
    own = network.state_dict()
    fitting, left = {}, []
    for name, tensor in own.items():
        other = source.weights.get(name)
        if other is None:
            left.append(f"{name}: not in the other network")
        elif other.shape != tensor.shape:
            left.append(f"{name}: {_size(tensor)} here, {_size(other)} there")
        else:
            fitting[name] = other
    if not fitting:
        raise InputError(
            f"{source.name} has no tensor in common with this network: it is {source.record.variant.title}, "
            f"configuration {source.record.configuration}",
            details=left[:5],
            next_step="take its model with -m and its plans with `umamba plan DATASET --like MODEL`",
        )
    network.load_state_dict({**own, **fitting})
    return Taken(source.name, len(fitting), tuple(left))


def _size(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"
