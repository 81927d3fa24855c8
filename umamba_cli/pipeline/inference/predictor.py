"""A trained model, ready to segment images."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from umamba_cli.pipeline.data.images import Image
from umamba_cli.pipeline.data.workspace import Run
from umamba_cli.pipeline.devices import Compute, channels_last
from umamba_cli.pipeline.errors import InputError, UmambaError
from umamba_cli.pipeline.inference.sliding_window import WindowOptions, image_logits
from umamba_cli.pipeline.networks.scan import choose_backend
from umamba_cli.pipeline.preprocessing.case import PreprocessedCase, preprocess
from umamba_cli.pipeline.runs.bundle import Bundle, open_bundle, weights_name
from umamba_cli.pipeline.runs.checkpoint import read_checkpoint
from umamba_cli.pipeline.runs.network import recorded_network
from umamba_cli.pipeline.runs.record import RunRecord, read_record


@dataclass(frozen=True)
class Predictor:
    """One network, or the networks of several folds whose logits are averaged."""

    record: RunRecord
    networks: tuple[nn.Module, ...]
    compute: Compute
    options: WindowOptions

    def preprocess(self, image: Image) -> PreprocessedCase:
        """An image as the networks see it.

        Raises:
            InputError: it has another number of channels than the training had.
        """
        expected = self.record.dataset.num_channels
        if len(image.voxels) != expected:
            raise InputError(
                f"the image has {len(image.voxels)} channel(s), the model was trained on {expected}: "
                f"{', '.join(self.record.dataset.channel_names.values())}",
                next_step="give one file a channel, CASE_0000, CASE_0001, ..., in the order of dataset.json",
            )
        return preprocess(image, None, self.record.plans, self.record.network_configuration)

    def logits(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Preprocessed image (channels, z, y, x) to logits (classes, z, y, x)."""
        patch_size = self.record.network_configuration.patch_size
        return image_logits(self.networks, image, patch_size, self.compute, self.options)


def load_predictor(
    model: Path, folds: Sequence[int | str], compute: Compute, *, mirroring: bool = True, step: float = 0.5
) -> Predictor:
    """Load the networks of a run or a bundle.

    Args:
        model: a run's folder (`fold_0`), the folder above its folds, or a bundle's file.
        folds: which folds to average; none means the numbered ones that are finished, or `all` where that is the only
            one. Must be empty where `model` is itself a fold.
        compute: device and precision.
        mirroring: average over mirrored images.
        step: distance between tiles, as a share of a tile.

    Raises:
        InputError: there is no finished training, or folds of different trainings are mixed, or the bundle is not what
            its manifest says.
    """
    choose_backend(compute.device.type)  # a wrong UMAMBA_SCAN is refused here, not once a case
    _refuse_foreign(model)
    if model.is_file():
        bundle = open_bundle(model)
        trained = [_from_bundle(bundle, fold) for fold in _choose_folds(bundle, folds)]
    else:
        trained = [_from_run(run) for run in choose_runs(model, folds)]
    first = trained[0]
    for other in trained[1:]:
        if other.made_of != first.made_of:
            raise InputError(
                f"{other.source} was trained with another model or other plans than {first.source}",
                next_step="choose folds of one training with -f",
            )
    networks = tuple(_load(fold, compute) for fold in trained)
    axes = first.record.mirror_axes if mirroring else ()
    return Predictor(first.record, networks, compute, WindowOptions(step=step, mirror_axes=axes))


def _refuse_foreign(model: Path) -> None:
    """Say what to do with a model of nnU-Net's, which must be imported first."""
    checkpoints = "*.pth", "fold_*/*.pth"
    if model.suffix in (".pth", ".pt") or any(next(model.glob(pattern), None) for pattern in checkpoints):
        raise InputError(
            f"{model} is a model of nnU-Net or the released U-Mamba",
            next_step=f"make a bundle of it: `umamba import {model} -o model.zip`",
        )


@dataclass(frozen=True)
class _TrainedFold:
    """One fold's training, its weights still to be read."""

    record: RunRecord
    source: str
    """What errors call it."""

    weights: Callable[[], Mapping[str, Tensor]]

    @property
    def made_of(self) -> tuple[object, ...]:
        """What folds to be averaged must have in common."""
        record = self.record
        return record.model, record.configuration, record.architecture, record.plans


def _from_run(run: Run) -> _TrainedFold:
    checkpoint = run.checkpoint("final")
    return _TrainedFold(read_record(run), str(checkpoint), lambda: read_checkpoint(checkpoint).weights)


def _from_bundle(bundle: Bundle, fold: int | str) -> _TrainedFold:
    source = f"{weights_name(fold)} in {bundle.path}"
    return _TrainedFold(bundle.record, source, lambda: bundle.weights(fold))


def _choose_folds(bundle: Bundle, folds: Sequence[int | str]) -> Sequence[int | str]:
    """The folds of a bundle: those asked for, or the numbered ones, or `all` where it is the only one."""
    return folds or [fold for fold in bundle.folds if fold != "all"] or bundle.folds


def choose_runs(model: Path, folds: Sequence[int | str]) -> list[Run]:
    """The finished runs that a MODEL argument and folds mean; see `load_predictor`.

    Raises:
        InputError: there is none, or one asked for is not finished.
    """
    if not model.is_dir():
        raise InputError(
            f"{model} is no folder and no bundle",
            next_step="give a run's folder, WORKSPACE/runs/MODEL__CONFIGURATION, or a bundle",
        )
    if Run(model).configuration_file.is_file():
        if folds and [model.name] != [f"fold_{fold}" for fold in folds]:
            raise InputError(f"{model} is one fold already", next_step="give the folder above it, or leave -f out")
        runs = [Run(model)]
    elif folds:
        runs = [Run(model / f"fold_{fold}") for fold in folds]
    else:
        finished = [Run(path) for path in sorted(model.glob("fold_*")) if Run(path).is_finished]
        runs = [run for run in finished if re.fullmatch(r"fold_\d+", run.folder.name)] or finished
    if not runs:
        raise InputError(f"{model} holds no finished training", next_step="train first: `umamba train WORKSPACE`")
    if unfinished := [run for run in runs if not run.is_finished]:
        raise InputError(
            f"{len(unfinished)} of {len(runs)} folds are not trained to the end",
            details=[str(run.folder) for run in unfinished],
            next_step="finish them with `umamba train`, or choose others with -f",
        )
    return runs


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


def _require_same_tensors(fold: _TrainedFold, expected: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
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


def _load(fold: _TrainedFold, compute: Compute) -> nn.Module:
    weights = dict(fold.weights())
    _require_same_tensors(fold, _described_tensors(fold.record), weights)
    network = recorded_network(fold.record)
    network.load_state_dict(weights)
    memory_format = channels_last(fold.record.network_configuration.dimensions)
    network.to(compute.device, memory_format=memory_format)  # type: ignore[call-overload]
    return network.eval()
