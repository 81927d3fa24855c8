"""A trained model, ready to segment images."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from umamba_cli.pipeline.data.checks import not_finite_problems
from umamba_cli.pipeline.data.images import Image, read_image, write_label_map
from umamba_cli.pipeline.data.workspace import Run
from umamba_cli.pipeline.devices import Compute, channels_last, choose_compute
from umamba_cli.pipeline.errors import InputError, UmambaError
from umamba_cli.pipeline.geometry import FLAT_SPACING_MM, Grid, numbers_text
from umamba_cli.pipeline.inference.export import LabelExport, ProbabilityExport
from umamba_cli.pipeline.inference.previous_stage import (
    find_previous_runs,
    labels_for_next_stage,
    require_same_images,
    with_label_channels,
)
from umamba_cli.pipeline.inference.sliding_window import Window, WindowOptions
from umamba_cli.pipeline.networks.scan import choose_backend
from umamba_cli.pipeline.preprocessing.case import CaseGeometry, PreprocessedCase, preprocess
from umamba_cli.pipeline.runs.bundle import Bundle, open_bundle, weights_name
from umamba_cli.pipeline.runs.checkpoint import read_checkpoint
from umamba_cli.pipeline.runs.model import choose_folds, choose_runs, made_of, refuse_foreign
from umamba_cli.pipeline.runs.network import previous_labels, recorded_network
from umamba_cli.pipeline.runs.record import RunRecord, read_record

Key = TypeVar("Key")


@dataclass(frozen=True)
class Exported:
    """What was found in an image, on its own grid."""

    labels: NDArray[np.unsignedinteger[Any]]
    """(z, y, x)."""

    probabilities: NDArray[np.float32] | None
    """(outputs, z, y, x), in a temporary file; None where they were not asked for."""


@dataclass(frozen=True)
class _Begun(Generic[Key]):
    """A case whose slabs are coming."""

    key: Key
    planes: int
    labels: LabelExport
    probabilities: ProbabilityExport | None


@dataclass(frozen=True)
class Predictor:
    """One network, or the networks of several folds whose logits are averaged."""

    record: RunRecord
    networks: tuple[nn.Module, ...]
    compute: Compute
    options: WindowOptions

    previous: Predictor | None = None
    """Of a cascade's previous stage, whose label map the networks get besides the image."""

    @classmethod
    def load(
        cls,
        model: str | Path,
        *,
        folds: Sequence[int | str] = (),
        device: str = "auto",
        precision: str = "auto",
        mirroring: bool = True,
        step: float = 0.5,
    ) -> Predictor:
        """Load a trained model, ready to predict.

        Args:
            model: a run's folder (`fold_0`), the folder above its folds, or a bundle (`model.zip`).
            folds: those to average; none means the numbered ones that are finished, or `fold_all`.
            device: `auto`, `cpu`, `cuda`, `cuda:1` or `mps`.
            precision: `auto`, `fp32`, `bf16` or `fp16`.
            mirroring: average over mirrored images.
            step: distance between tiles, as a share of a tile.

        Raises:
            InputError: there is no such model or device, or a file of the model is not what it should be.
        """
        return load_predictor(Path(model), folds, choose_compute(device, precision), mirroring=mirroring, step=step)

    def predict(self, array: NDArray[Any], spacing: Sequence[float]) -> NDArray[np.unsignedinteger[Any]]:
        """Segment an image that is in memory.

        May be called again and again, and from several threads.

        Args:
            array: intensities as in the files that the model was trained on, (channels, z, y, x); without the axis of
                channels where there is one; (channels, y, x) or (y, x) with a spacing of two numbers.
            spacing: millimetres between voxel centres along [z,] y, x.

        Returns:
            The label map, [z,] y, x.

        Raises:
            InputError: axes, channels or spacing do not fit, or voxels are not finite.
        """
        image = image_of_array(array, spacing)
        labels = self._labels(image)
        return labels[0] if image.grid.is_2d_file else labels

    def predict_file(
        self, images: str | Path | Sequence[str | Path], output: str | Path | None = None
    ) -> NDArray[np.unsignedinteger[Any]]:
        """Segment an image in files.

        Args:
            images: one file, or one for each channel in the order of `dataset.json`.
            output: where to write the label map, on the image's grid; its ending names the format. None: nowhere.

        Returns:
            The label map (z, y, x), whose first axis is one voxel long for a 2D file.

        Raises:
            InputError: a file is no image, or has other channels than the training had.
            WorkError: the output cannot be written.
        """
        image = read_image([Path(images)] if isinstance(images, str | Path) else [Path(path) for path in images])
        labels = self._labels(image)
        if output is not None:
            write_label_map(Path(output), labels, image.grid)
        return labels

    def _labels(self, image: Image) -> NDArray[np.unsignedinteger[Any]]:
        if problems := not_finite_problems("image", image.voxels):
            raise InputError("; ".join(problems), next_step="correct the image")
        ((_, found),) = self.export([(None, self.preprocess(image))])
        return found.labels

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
        return self._window.logits(image)

    def export(
        self, cases: Iterable[tuple[Key, PreprocessedCase]], *, probabilities: bool = False
    ) -> Iterator[tuple[Key, Exported]]:
        """What the networks find in preprocessed cases, each on its image's own grid, in the order of the cases.

        No more than a few slabs of a case's logits are in memory at a time; tiles of small cases share batches.

        Args:
            cases: each with what the caller knows it by; taken when there is room for it in a batch.
            probabilities: export these too.
        """
        how = self.record.network_configuration, self.record.dataset

        def begun() -> Iterator[tuple[_Begun[Key], NDArray[np.float32]]]:
            for key, case in cases:
                labels = LabelExport(case.geometry, *how)
                more = ProbabilityExport(case.geometry, *how) if probabilities else None
                yield _Begun(key, case.image.shape[1], labels, more), case.image

        for case, slab in self._window.slabs(begun()):
            case.labels.take(slab)
            if case.probabilities:
                case.probabilities.take(slab)
            if slab.planes.stop == case.planes:
                yield (
                    case.key,
                    Exported(case.labels.finish(), case.probabilities.finish() if case.probabilities else None),
                )

    @property
    def _window(self) -> Window:
        return Window(self.networks, self.record.network_configuration.patch_size, self.compute, self.options)


def image_of_array(array: NDArray[Any], spacing: Sequence[float]) -> Image:
    """An image from an array; see `Predictor.predict`.

    Raises:
        InputError: axes and spacing do not fit.
    """
    axes = len(spacing)
    if axes not in (2, 3) or array.ndim not in (axes, axes + 1) or not all(0 < mm < math.inf for mm in spacing):
        raise InputError(
            f"an array of {array.ndim} axes and a spacing of {numbers_text(spacing)} mm",
            next_step="give (channels, z, y, x) or (z, y, x) with three spacings above 0, or both without z",
        )
    voxels = np.asarray(array, dtype=np.float32)
    voxels = voxels if array.ndim == axes + 1 else voxels[None]
    voxels = voxels if axes == 3 else voxels[:, None]
    spacing_mm = tuple(map(float, spacing)) if axes == 3 else (FLAT_SPACING_MM, *map(float, spacing))
    grid = Grid(voxels.shape[1:], spacing_mm, (0.0,) * axes, tuple(np.eye(axes).ravel().tolist()))
    return Image(voxels, grid)


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
        if made_of(other.record) != made_of(first.record):
            raise InputError(
                f"{other.source} was trained with another model or other plans than {first.source}",
                next_step="choose folds of one training with -f",
            )
    networks = tuple(_load(fold, compute) for fold in trained)
    axes = first.record.mirror_axes if mirroring else ()
    return Predictor(first.record, networks, compute, WindowOptions(step=step, mirror_axes=axes))


@dataclass(frozen=True)
class _TrainedFold:
    """One fold's training, its weights still to be read."""

    record: RunRecord
    source: str
    """What errors call it."""

    weights: Callable[[], Mapping[str, Tensor]]


def _from_run(run: Run) -> _TrainedFold:
    checkpoint = run.checkpoint("final")
    return _TrainedFold(read_record(run), str(checkpoint), lambda: read_checkpoint(checkpoint).weights)


def _from_bundle(bundle: Bundle, fold: int | str) -> _TrainedFold:
    source = f"{weights_name(fold)} in {bundle.path}"
    return _TrainedFold(bundle.record, source, lambda: bundle.weights(fold))


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
