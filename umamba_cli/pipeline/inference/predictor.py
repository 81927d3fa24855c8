"""A trained model, ready to segment images."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from umamba_cli.pipeline.data.images import Image
from umamba_cli.pipeline.data.workspace import Run
from umamba_cli.pipeline.devices import Compute, channels_last
from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.inference.sliding_window import WindowOptions, image_logits
from umamba_cli.pipeline.networks.scan import choose_backend
from umamba_cli.pipeline.preprocessing.case import PreprocessedCase, preprocess
from umamba_cli.pipeline.runs.checkpoint import read_checkpoint
from umamba_cli.pipeline.runs.network import new_network
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
    """Load the networks of a run.

    Args:
        model: a run's folder (`fold_0`), or the folder above its folds.
        folds: which folds to average; none means the numbered ones that are finished, or `all` where that is the only
            one. Must be empty where `model` is itself a fold.
        compute: device and precision.
        mirroring: average over mirrored images.
        step: distance between tiles, as a share of a tile.

    Raises:
        InputError: there is no finished training, or folds of different trainings are mixed.
    """
    choose_backend(compute.device.type)  # a wrong UMAMBA_SCAN is refused here, not once a case
    runs = choose_runs(model, folds)
    records = [read_record(run) for run in runs]
    for run, record in zip(runs, records, strict=True):
        first = records[0]
        if (record.model, record.configuration, record.plans) != (first.model, first.configuration, first.plans):
            raise InputError(
                f"{run.folder} was trained with another model or other plans than {runs[0].folder}",
                next_step="choose folds of one training with -f",
            )
    networks = tuple(_load(run, record, compute) for run, record in zip(runs, records, strict=True))
    axes = records[0].mirror_axes if mirroring else ()
    return Predictor(records[0], networks, compute, WindowOptions(step=step, mirror_axes=axes))


def choose_runs(model: Path, folds: Sequence[int | str]) -> list[Run]:
    """The finished runs that a MODEL argument and folds mean; see `load_predictor`.

    Raises:
        InputError: there is none, or one asked for is not finished.
    """
    if not model.is_dir():
        raise InputError(f"{model} is no folder", next_step="give a run's folder, WORKSPACE/runs/MODEL__CONFIGURATION")
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


def _load(run: Run, record: RunRecord, compute: Compute) -> nn.Module:
    network = new_network(record.model, record.network_configuration, record.dataset)
    checkpoint = read_checkpoint(run.checkpoint("final"))
    try:
        network.load_state_dict(dict(checkpoint.weights))
    except RuntimeError as error:
        raise InputError(
            f"{run.checkpoint('final')} does not fit the model {record.model} of its run.json",
            details=str(error).splitlines()[1:6],
            next_step="train again, or use the version of umamba that trained it",
        ) from error
    memory_format = channels_last(record.network_configuration.dimensions)
    network.to(compute.device, memory_format=memory_format)  # type: ignore[call-overload]
    return network.eval()
