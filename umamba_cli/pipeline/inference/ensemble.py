"""Several models as one: their probabilities on each image's own grid are averaged, and labels are made of the mean.

Each model has its own preprocessing, patch and resampling, so the image's grid is the first that all of them share.

Source: nnU-Net (Isensee et al. 2021, online methods, "ensembling"): the mean of softmax outputs, all with one weight.
"""

from __future__ import annotations

import itertools
import mmap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from umamba_cli.pipeline.data.dataset import DatasetDescription
from umamba_cli.pipeline.data.images import Image
from umamba_cli.pipeline.devices import Compute
from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.inference.export import (
    LABELS_ALONE,
    Exported,
    ProbabilityExport,
    Wanted,
    entropy,
    label_type,
    labels_of_probabilities,
)
from umamba_cli.pipeline.inference.predictor import Predictor, load_predictor
from umamba_cli.pipeline.inference.sliding_window import Window
from umamba_cli.pipeline.inference.tile_sums import PLACES, Slab, array_in_file
from umamba_cli.pipeline.preprocessing.case import PreprocessedCase, plans_digest
from umamba_cli.pipeline.progress import OnProgress

Key = TypeVar("Key")

_BYTES_AT_ONCE = 1 << 26
"""Of probabilities that are in memory together."""


@dataclass(frozen=True)
class Ensemble:
    """Models of any configuration and architecture, of one workspace or several, that find the same labels."""

    predictors: tuple[Predictor, ...]

    def __post_init__(self) -> None:
        names = [_title(number, predictor) for number, predictor in enumerate(self.predictors, start=1)]
        require_same_outputs(names, [predictor.dataset for predictor in self.predictors])

    @property
    def dataset(self) -> DatasetDescription:
        """Of the first model; the others have the same labels and channels."""
        return self.predictors[0].dataset

    @property
    def described(self) -> Mapping[str, Any]:
        """All that predictions depend on, for JSON."""
        return {"models": [predictor.described for predictor in self.predictors]}

    @property
    def prepares_ahead(self) -> bool:
        """Whether preparing a case leaves the device to the case before."""
        return all(predictor.prepares_ahead for predictor in self.predictors)

    def compile(self, on_progress: OnProgress) -> None:
        """Compile what must be, before the first case."""
        for predictor in self.predictors:
            predictor.compile(on_progress)

    def prepare(self, image: Image) -> tuple[PreprocessedCase, ...]:
        """An image as each model sees it; those that see it alike share one.

        Raises:
            InputError: it has another number of channels than the trainings had.
        """
        made: dict[object, PreprocessedCase] = {}
        for predictor in self.predictors:
            sight = _sight(predictor)
            if sight not in made:
                made[sight] = predictor.prepare(image)
        return tuple(made[_sight(predictor)] for predictor in self.predictors)

    def export(
        self, cases: Iterable[tuple[Key, tuple[PreprocessedCase, ...]]], wanted: Wanted = LABELS_ALONE
    ) -> Iterator[tuple[Key, Exported]]:
        """What the mean of the models finds in prepared cases, each on its image's own grid, in the order of the cases.

        The models work on a case one after the other and add to one temporary file, float32 (outputs, z, y, x), which
        is there for one case at a time; a few planes of it are in memory. Small cases share batches, in each model.

        Args:
            cases: each with what the caller knows it by; taken when the first model has room for it in a batch.
            wanted: what to export besides labels. Probabilities are the mean, uncertainty is its entropy.

        Raises:
            WorkError: there is no room for the file.
        """
        begun = (_Begun(key, prepared, self.predictors) for key, prepared in cases)
        copies = zip(self.predictors, itertools.tee(begun, len(self.predictors)), strict=True)
        first, *others = (_added(number, *each) for number, each in enumerate(copies))
        for case in first:
            for other in others:
                next(other)
            yield case.key, case.finish(wanted)


def load_ensemble(models: Sequence[Path], compute: Compute, *, mirroring: bool = True, step: float = 0.5) -> Ensemble:
    """Load several models, ready to predict together.

    Args:
        models: runs' folders, folders above folds (of which all finished ones are taken) or bundles; two at least.
        compute: device and precision.
        mirroring: average over mirrored images.
        step: distance between tiles, as a share of a tile.

    Raises:
        InputError: see `load_predictor`; or there is one alone, or one twice, or the models do not find the same labels
            in images of the same channels.
    """
    if len(models) == 1:
        raise InputError(
            f"{models[0]} is one model, an ensemble has two or more",
            next_step=f"name another one, or predict with it alone: `umamba predict {models[0]}`",
        )
    predictors = tuple(load_predictor(model, (), compute, mirroring=mirroring, step=step) for model in models)
    for (one, first), (other, second) in itertools.combinations(zip(models, predictors, strict=True), 2):
        if first.described == second.described:
            raise InputError(
                f"{one} and {other} are the same model" if one != other else f"{one} is named twice",
                next_step=f"name each model once; `umamba predict {one}` predicts with one alone",
            )
    require_same_outputs([str(model) for model in models], [predictor.dataset for predictor in predictors])
    return Ensemble(predictors)


class _Begun(Generic[Key]):
    """A case whose probabilities are being added up."""

    def __init__(self, key: Key, prepared: Sequence[PreprocessedCase], predictors: Sequence[Predictor]) -> None:
        self.key = key
        self.prepared = prepared
        self._predictors = predictors
        self._sum: NDArray[np.float32] | None = None
        self._adding: ProbabilityExport | None = None
        self._places: set[str] = set()

    def take(self, number: int, slab: Slab) -> bool:
        """Go on with the next slab of a model's logits; returns whether it was its last."""
        record, geometry = self._predictors[number].record, self.prepared[number].geometry
        if self._sum is None:  # not earlier: the case before has a file too
            shape = (record.dataset.num_outputs, *geometry.grid.shape)
            self._sum = array_in_file(shape, np.float32)
        if self._adding is None:
            how = geometry, record.network_configuration, record.dataset
            self._adding = ProbabilityExport(*how, into=self._sum)
        self._adding.take(slab)
        _leave_to_the_disk(self._sum)
        self._places.add(slab.place)
        done: bool = slab.planes.stop == geometry.new_shape[0]
        if done:
            self._adding = None
        return done

    def finish(self, wanted: Wanted) -> Exported:
        """What was found; the sum is let go of, as those who iterate keep hold of a case for a while."""
        assert self._sum is not None
        sums, self._sum = self._sum, None
        found = _export(sums, len(self._predictors), self._predictors[0].dataset, wanted)
        return Exported(*found, sums=max(self._places, key=PLACES.index))


def _added(number: int, predictor: Predictor, cases: Iterable[_Begun[Key]]) -> Iterator[_Begun[Key]]:
    """Each case, once all that a model finds in it was added to its sum."""
    patch_size = predictor.record.network_configuration.patch_size
    window = Window(predictor.networks, patch_size, predictor.compute, predictor.options)
    for case, slab in window.slabs((case, case.prepared[number].image) for case in cases):
        if case.take(number, slab):
            yield case


def _export(
    sums: NDArray[np.float32], count: int, dataset: DatasetDescription, wanted: Wanted
) -> tuple[NDArray[np.unsignedinteger[Any]], NDArray[np.float32] | None, NDArray[np.float32] | None]:
    """Labels, probabilities and uncertainty of the mean of several models; the sums become it where it is wanted."""
    shape = sums.shape[1:]
    labels = np.empty(shape, label_type(dataset))
    uncertainty = np.empty(shape, np.float32) if wanted.uncertainty else None
    for voxels, mean in _means([sums], count):
        labels.reshape(-1)[voxels] = labels_of_probabilities(mean, dataset).numpy()
        if uncertainty is not None:
            uncertainty.reshape(-1)[voxels] = entropy(mean, dataset).numpy()
        if wanted.probabilities:
            sums.reshape(len(sums), -1)[:, voxels] = mean.movedim(-1, 0).numpy()
    return labels, sums if wanted.probabilities else None, uncertainty


def labels_of_mean(
    probabilities: Sequence[NDArray[np.float32]], dataset: DatasetDescription
) -> NDArray[np.unsignedinteger[Any]]:
    """The label map (z, y, x) of the mean of several models' probabilities, each (outputs, z, y, x)."""
    labels = np.empty(probabilities[0].shape[1:], label_type(dataset))
    for voxels, mean in _means(probabilities, len(probabilities)):
        labels.reshape(-1)[voxels] = labels_of_probabilities(mean, dataset).numpy()
    return labels


def _means(arrays: Sequence[NDArray[np.float32]], count: int) -> Iterator[tuple[slice, Tensor]]:
    """The sum of arrays (outputs, z, y, x) over `count`, some voxels at a time.

    Yields:
        Which voxels of the flattened grid, and float32 (voxels, outputs) of them.
    """
    flat = [array.reshape(len(array), -1) for array in arrays]
    outputs, voxels = flat[0].shape
    at_once = max(1, _BYTES_AT_ONCE // (4 * outputs))
    for start in range(0, voxels, at_once):
        some = slice(start, min(start + at_once, voxels))
        total = np.array(flat[0][:, some])
        for array in flat[1:]:
            total += array[:, some]
        yield some, torch.from_numpy(total).div_(count).movedim(0, -1)
        for array in arrays:
            _leave_to_the_disk(array)


def _leave_to_the_disk(array: NDArray[np.float32]) -> None:
    """Hold no pages of an array in a file, which else count as the process's memory as long as others ask for none."""
    file: object = array.base
    if isinstance(file, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        file.madvise(mmap.MADV_DONTNEED)  # a mapping that is shared with the file: nothing is lost


def require_same_outputs(names: Sequence[str], datasets: Sequence[DatasetDescription]) -> None:
    """Models can be averaged where they find the same labels in images of the same channels.

    Args:
        names: what errors call the models.
        datasets: that they were trained on.

    Raises:
        InputError: there is no model, or one differs from the first.
    """
    if not datasets:
        raise InputError("there is no model to predict with", next_step="give at least one")
    wanted = _outputs(datasets[0])
    for name, dataset in zip(names, datasets, strict=True):
        found = _outputs(dataset)
        if differing := [what for what in wanted if wanted[what] != found[what]]:
            raise InputError(
                f"{names[0]} and {name} cannot be averaged, their {' and '.join(differing)} differ",
                details=[
                    f"{each}: {what} {described[what]}"
                    for what in differing
                    for each, described in ((names[0], wanted), (name, found))
                ],
                next_step="choose models that were trained on the same labels and channels",
            )


def _outputs(dataset: DatasetDescription) -> dict[str, str]:
    """What models to be averaged must have in common, in words: the order of labels is the outputs' order."""
    labels = ", ".join(f"{name} {value}" for value, name in dataset.targets.items())
    if dataset.has_regions:
        labels += f", written as {', '.join(map(str, dataset.regions_class_order or ()))}"
    channels = [dataset.channel_names[str(index)] for index in range(dataset.num_channels)]
    return {"labels": labels, "channels": ", ".join(channels)}


def _title(number: int, predictor: Predictor) -> str:
    record = predictor.record
    name = record.variant.named(record.configuration, record.tag)
    return f"model {number} ({name} of {record.plans.dataset_name})"


def _sight(predictor: Predictor) -> object:
    """The same for models that see an image alike, so that it is preprocessed once."""
    if predictor.previous is not None:
        return id(predictor)
    record = predictor.record
    return plans_digest(record.plans, record.network_configuration, record.dataset)
