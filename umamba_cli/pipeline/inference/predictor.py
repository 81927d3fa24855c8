"""A trained model, ready to segment images."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from umamba_cli.pipeline.data.images import Image
from umamba_cli.pipeline.data.workspace import Run
from umamba_cli.pipeline.devices import Compute, channels_last
from umamba_cli.pipeline.errors import InputError, UmambaError
from umamba_cli.pipeline.inference.previous_stage import (
    find_previous_runs,
    labels_for_next_stage,
    require_same_images,
    with_label_channels,
)
from umamba_cli.pipeline.inference.sliding_window import WindowOptions, image_logits
from umamba_cli.pipeline.networks.scan import choose_backend
from umamba_cli.pipeline.preprocessing.case import CaseGeometry, PreprocessedCase, preprocess
from umamba_cli.pipeline.runs.bundle import Bundle, open_bundle, weights_name
from umamba_cli.pipeline.runs.checkpoint import read_checkpoint
from umamba_cli.pipeline.runs.network import previous_labels, recorded_network
from umamba_cli.pipeline.runs.record import RunRecord, read_record


@dataclass(frozen=True)
class Predictor:
    """One network, or the networks of several folds whose logits are averaged."""

    record: RunRecord
    networks: tuple[nn.Module, ...]
    compute: Compute
    options: WindowOptions

    previous: Predictor | None = None
    """Of a cascade's previous stage, whose label map the networks get besides the image."""

    def preprocess(self, image: Image) -> PreprocessedCase:
        """An image as the networks see it; in a cascade with what the previous stage, which is run here, finds in it.

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
        case = preprocess(image, None, self.record.plans, self.record.network_configuration)
        if self.previous is None:
            return case
        before = self.previous.preprocess(image)
        labels = self.previous.labels_for_next_stage(before.image, before.geometry, case.geometry)
        return replace(case, image=with_label_channels(case.image, labels, self.previous_labels))

    @property
    def previous_labels(self) -> tuple[int, ...]:
        """The labels of the previous stage whose channels follow the image's; none outside of a cascade."""
        return previous_labels(self.record.network_configuration, self.record.dataset)

    def labels_for_next_stage(
        self, image: NDArray[np.float32], geometry: CaseGeometry, next_geometry: CaseGeometry
    ) -> NDArray[np.uint16]:
        """What is found in a preprocessed image, as a label map (z, y, x) on the next stage's preprocessed grid."""
        configuration, dataset = self.record.network_configuration, self.record.dataset
        return labels_for_next_stage(self.logits(image), geometry, configuration, dataset, next_geometry)

    def logits(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Preprocessed image (channels, z, y, x) to logits (outputs, z, y, x).

        In a cascade the channels are the image's and those of the previous stage's labels; see `with_label_channels`.
        """
        patch_size = self.record.network_configuration.patch_size
        return image_logits(self.networks, image, patch_size, self.compute, self.options)


def load_predictor(
    model: Path,
    folds: Sequence[int | str],
    compute: Compute,
    *,
    mirroring: bool = True,
    step: float = 0.5,
    previous_stage: bool = True,
) -> Predictor:
    """Load the networks of a run or a bundle, and those of its previous stage where it is a cascade's.

    Args:
        model: a run's folder (`fold_0`), the folder above its folds, or a bundle's file.
        folds: which folds to average; none means the numbered ones that are finished, or `all` where that is the only
            one. Must be empty where `model` is itself a fold.
        compute: device and precision.
        mirroring: average over mirrored images.
        step: distance between tiles, as a share of a tile.
        previous_stage: load a cascade's previous stage too; not needed where its label maps are there already.

    Raises:
        InputError: there is no finished training, or folds of different trainings are mixed, or the bundle is not what
            its manifest says, or a cascade's previous stage is gone.
    """
    choose_backend(compute.device.type)  # a wrong UMAMBA_SCAN is refused here, not once a case
    refuse_foreign(model)
    if not model.is_file():
        runs = choose_runs(model, folds)
        return load_runs(runs, compute, mirroring=mirroring, step=step, previous_stage=previous_stage)
    bundle = open_bundle(model)
    if stage := bundle.record.network_configuration.previous_stage:
        raise InputError(
            f"{model} is a model of {bundle.record.configuration}, which needs what {stage} finds, and a bundle holds "
            "one stage of a cascade alone",
            next_step="predict with the folder that it was trained in, WORKSPACE/runs/MODEL__CONFIGURATION",
        )
    return _predictor([_from_bundle(bundle, fold) for fold in choose_folds(bundle, folds)], compute, mirroring, step)


def load_runs(
    runs: Sequence[Run], compute: Compute, *, mirroring: bool = True, step: float = 0.5, previous_stage: bool = True
) -> Predictor:
    """Load the networks of finished runs; arguments and errors are those of `load_predictor`."""
    trained = [_from_run(run) for run in runs]
    record, previous = trained[0].record, None
    if previous_stage and record.network_configuration.previous_stage is not None:
        before = find_previous_runs(runs[0], [fold.record for fold in trained])
        previous = load_runs(before, compute, mirroring=mirroring, step=step)
        require_same_images(record, previous.record, str(before[0].folder))
    return replace(_predictor(trained, compute, mirroring, step), previous=previous)


def _predictor(trained: Sequence[_TrainedFold], compute: Compute, mirroring: bool, step: float) -> Predictor:
    """The predictor of one stage."""
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


def refuse_foreign(model: Path) -> None:
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


def choose_folds(bundle: Bundle, folds: Sequence[int | str]) -> Sequence[int | str]:
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
