"""A trained model, ready to segment images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import nn

from umamba_cli.pipeline.data.checks import not_finite_problems
from umamba_cli.pipeline.data.dataset import BACKGROUND, DatasetDescription
from umamba_cli.pipeline.data.images import Image, write_label_map
from umamba_cli.pipeline.data.workspace import Run
from umamba_cli.pipeline.devices import Compute, choose_compute
from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.inference.arrays import image_of_array, image_of_files, require_writable
from umamba_cli.pipeline.inference.export import LABELS_ALONE, CaseExport, Exported, Wanted, probabilities_of_logits
from umamba_cli.pipeline.inference.previous_stage import (
    find_previous_runs,
    labels_for_next_stage,
    require_same_images,
    with_label_channels,
)
from umamba_cli.pipeline.inference.sliding_window import Window, WindowOptions
from umamba_cli.pipeline.inference.trained import TrainedFold, fold_of_bundle, fold_of_run
from umamba_cli.pipeline.networks.scan import choose_backend
from umamba_cli.pipeline.preprocessing.case import CaseGeometry, PreprocessedCase, preprocess
from umamba_cli.pipeline.progress import OnProgress
from umamba_cli.pipeline.runs.bundle import Bundle, open_bundle
from umamba_cli.pipeline.runs.model import choose_folds, choose_runs, made_of, refuse_foreign
from umamba_cli.pipeline.runs.network import compile_scan, previous_labels
from umamba_cli.pipeline.runs.record import RunRecord

Key = TypeVar("Key")


@dataclass(frozen=True, repr=False)
class Predictor:
    """One network, or the networks of several folds whose logits are averaged."""

    record: RunRecord
    networks: tuple[nn.Module, ...]
    compute: Compute
    options: WindowOptions

    weights: Mapping[str, str] = field(default_factory=dict)
    """Each fold, and a digest of its weights."""

    previous: Predictor | None = None
    """Of a cascade's previous stage, whose label map the networks get besides the image."""

    def __repr__(self) -> str:
        """Short: networks and plans would fill pages."""
        record, folds = self.record, ", ".join(self.weights)
        return (
            f"Predictor({record.variant.title} in {record.configuration}, folds {folds}, on {self.compute.device_name})"
        )

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

    def predict(self, array: ArrayLike, spacing: Sequence[float]) -> NDArray[np.unsignedinteger[Any]]:
        """Segment an image that is in memory.

        May be called again and again, and from several threads.

        Args:
            array: intensities as in the files that the model was trained on, (channels, z, y, x); without the axis of
                channels where there is one; (channels, y, x) or (y, x) with a spacing of two numbers.
            spacing: millimetres between voxel centres along [z,] y, x.

        Returns:
            The label map, [z,] y, x.

        Raises:
            InputError: axes, channels or spacing do not fit, or voxels are no numbers or not finite.
        """
        image = image_of_array(array, spacing)
        labels = self._labels(image)
        return labels[0] if image.grid.is_2d_file else labels

    def predict_file(
        self, images: str | Path | Sequence[str | Path], output: str | Path | None = None
    ) -> NDArray[np.unsignedinteger[Any]]:
        """Segment an image in files.

        Args:
            images: what `umamba predict -i` takes for one case: a file, of which a case with several channels has
                others beside it or holds them as volumes, or a folder with one image or DICOM series. Several are the
                channels in the order of `dataset.json`.
            output: where to write the label map, on the image's grid; its ending names the format. None: nowhere.

        Returns:
            The label map (z, y, x), whose first axis is one voxel long for a 2D file.

        Raises:
            InputError: a file is no image, or has other channels than the training had, or the output's ending names no
                format that holds the label map.
            WorkError: the output cannot be written.
        """
        image, sources = image_of_files(images, self.dataset)
        if output is not None:
            require_writable(Path(output), sources, image.grid.shape, self.dataset)
        labels = self._labels(image)
        if output is not None:
            write_label_map(Path(output), labels, image.grid, names={0: BACKGROUND, **self.dataset.foreground})
        return labels

    @property
    def dataset(self) -> DatasetDescription:
        """Of the training; says what the outputs are."""
        return self.record.dataset

    @property
    def described(self) -> Mapping[str, Any]:
        """All that predictions depend on, for JSON: the same of two predictors means the same predictions.

        Apart from the last digits, which devices and precisions have of their own.
        """
        return {
            "model": self.record.variant.title,
            "configuration": self.record.configuration,
            "dataset": self.record.plans.dataset_name,
            "weights": dict(self.weights),
            "mirror_axes": list(self.options.mirror_axes),
            "step": self.options.step,
            "previous": self.previous.described if self.previous else None,
        }

    @property
    def prepares_ahead(self) -> bool:
        """Whether preparing a case leaves the device to the case before; a cascade's first stage takes it."""
        return self.previous is None

    def compile(self, on_progress: OnProgress) -> None:
        """Compile the scan of the networks where it must be, before the first case."""
        compile_scan(self.networks, self.compute.device, on_progress)

    def _labels(self, image: Image) -> NDArray[np.unsignedinteger[Any]]:
        if problems := not_finite_problems("image", image.voxels):
            raise InputError("; ".join(problems), next_step="correct the image")
        ((_, found),) = self.export([(None, self.prepare(image))])
        return found.labels

    def prepare(self, image: Image) -> PreprocessedCase:
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
        before = self.previous.prepare(image)
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
        self, cases: Iterable[tuple[Key, PreprocessedCase]], wanted: Wanted = LABELS_ALONE
    ) -> Iterator[tuple[Key, Exported]]:
        """What the networks find in preprocessed cases, each on its image's own grid, in the order of the cases.

        No more than a few slabs of a case's logits are in memory at a time; tiles of small cases share batches.

        Args:
            cases: each with what the caller knows it by; taken when there is room for it in a batch.
            wanted: what to export besides labels.
        """

        def begun() -> Iterator[tuple[tuple[Key, CaseExport], NDArray[np.float32]]]:
            for key, case in cases:
                yield (
                    (key, CaseExport(case.geometry, self.record.network_configuration, self.dataset, wanted)),
                    case.image,
                )

        window = self._window
        if wanted.uncertainty:
            window = replace(window, probabilities_of=partial(probabilities_of_logits, dataset=self.dataset, axis=1))
        for (key, export), slab in window.slabs(begun()):
            if found := export.take(slab):
                yield key, found

    @property
    def _window(self) -> Window:
        return Window(self.networks, self.record.network_configuration.patch_size, self.compute, self.options)


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
    return _load_bundle(open_bundle(model), folds, compute, mirroring, step, previous_stage)


def load_runs(
    runs: Sequence[Run], compute: Compute, *, mirroring: bool = True, step: float = 0.5, previous_stage: bool = True
) -> Predictor:
    """Load the networks of finished runs; arguments and errors are those of `load_predictor`."""
    trained = [fold_of_run(run) for run in runs]
    record, previous = trained[0].record, None
    if previous_stage and record.network_configuration.previous_stage is not None:
        before = find_previous_runs(runs[0], [fold.record for fold in trained])
        previous = load_runs(before, compute, mirroring=mirroring, step=step)
        require_same_images(record, previous.record, str(before[0].folder))
    return replace(_predictor(trained, compute, mirroring, step), previous=previous)


def _load_bundle(
    bundle: Bundle,
    folds: Sequence[int | str],
    compute: Compute,
    mirroring: bool,
    step: float,
    previous_stage: bool,
) -> Predictor:
    """Load the networks of a bundle; see `load_predictor`."""
    chosen, stage, previous = choose_folds(bundle, folds), bundle.record.network_configuration.previous_stage, None
    trained = [fold_of_bundle(bundle, fold) for fold in chosen]
    if previous_stage and stage is not None:
        if bundle.previous is None:
            raise InputError(
                f"{bundle.path} is a model of {bundle.record.configuration}, which needs what {stage} finds, and it "
                "holds no model of that",
                next_step="make it again from the folder that it was trained in: `umamba export RUN -o model.zip`",
            )
        require_same_images(bundle.record, bundle.previous.record, f"the previous stage in {bundle.path}")
        before = [fold_of_bundle(bundle.previous, fold) for fold in bundle.previous_folds(chosen)]
        previous = _predictor(before, compute, mirroring, step)
    return replace(_predictor(trained, compute, mirroring, step), previous=previous)


def _predictor(trained: Sequence[TrainedFold], compute: Compute, mirroring: bool, step: float) -> Predictor:
    """The predictor of one stage."""
    first = trained[0]
    for other in trained[1:]:
        if made_of(other.record) != made_of(first.record):
            raise InputError(
                f"{other.source} was trained with another model or other plans than {first.source}",
                next_step="choose folds of one training with -f",
            )
    networks, digests = [], {}
    for each in trained:  # one after the other: the weights of one at a time are in memory twice
        network, digests[str(each.fold)] = each.load(compute)
        networks.append(network)
    axes = first.record.mirror_axes if mirroring else ()
    options = WindowOptions(step=step, mirror_axes=axes)
    return Predictor(first.record, tuple(networks), compute, options, digests)
