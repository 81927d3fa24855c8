"""Predicting on the workers of a cluster: each loads the model once, and is sent one case at a time."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from umamba_cli.pipeline.cluster import Cluster, connected
from umamba_cli.pipeline.data.dataset import DatasetDescription
from umamba_cli.pipeline.data.inputs import InputCase
from umamba_cli.pipeline.devices import choose_compute, use_threads
from umamba_cli.pipeline.errors import WorkError
from umamba_cli.pipeline.inference.ensemble import load_ensemble
from umamba_cli.pipeline.inference.export import LABELS_ALONE, Wanted
from umamba_cli.pipeline.inference.predict import PredictionResult, Segmenter, open_output, predict_cases
from umamba_cli.pipeline.inference.predictor import load_predictor
from umamba_cli.pipeline.progress import OnProgress, Progress, ignore_progress
from umamba_cli.pipeline.resources import usable_cores

_MOST_FOLDERS = 16
"""Of images, that all workers are asked for before work starts."""


@dataclass(frozen=True)
class Loading:
    """How to load what predicts, on whichever machine; device and precision are chosen there."""

    models: tuple[Path, ...]
    """See `load_predictor`; several are averaged, see `load_ensemble`."""

    folds: tuple[int | str, ...] = ()
    """Of the only model: those to average; none means all that are finished."""

    device: str = "auto"
    precision: str = "auto"
    mirroring: bool = True
    step: float = 0.5

    threads: int | None = None
    """That compute on a CPU; None means all cores that the process may use, shared by the workers of a machine."""

    are_ensemble: bool = False
    """Whether several models were asked for; one alone is then refused."""

    def load(self) -> Segmenter[Any]:
        """Load it here.

        Raises:
            InputError: there is no such model or device, or a file of the model is not what it should be.
        """
        use_threads(self.threads)
        compute = choose_compute(self.device, self.precision)
        if self.are_ensemble:
            return load_ensemble(self.models, compute, mirroring=self.mirroring, step=self.step)
        return load_predictor(self.models[0], self.folds, compute, mirroring=self.mirroring, step=self.step)


@dataclass(frozen=True)
class PredictionJob:
    """One case's work, as a worker gets it; all paths are absolute."""

    loading: Loading

    token: str
    """Of the command: the model is loaded anew for the next one, which may find other files at the same path."""

    workers: int
    """That share the machine's cores."""

    case: InputCase
    output: Path
    wanted: Wanted
    overwrite: bool


@dataclass(frozen=True)
class RemoteModel:
    """A model that the workers of a cluster load; see `remote_model`."""

    dataset: DatasetDescription
    """Of the training; says what the outputs are."""

    described: Mapping[str, Any]
    """All that predictions depend on, for JSON."""

    cluster: Cluster
    loading: Loading
    token: str

    def predict_cases(
        self,
        cases: Sequence[InputCase],
        output: Path,
        *,
        wanted: Wanted = LABELS_ALONE,
        overwrite: bool = False,
        on_progress: OnProgress = ignore_progress,
    ) -> PredictionResult:
        """Have cases predicted, as `predict_cases` does it here; finished ones are skipped before anything is sent.

        A case that several workers died of is one that failed.

        Raises:
            InputError, WorkError: see `predict_cases`, and `Cluster.unordered`.
        """
        folder = open_output(self, cases, output, wanted=wanted, overwrite=overwrite)
        todo = [case for case in cases if overwrite or not folder.is_done(case)]
        skipped = tuple(case.identifier for case in cases if case not in todo)
        on_progress(Progress("predict", len(skipped), len(cases)))
        if todo:
            folder.claim()
        self.cluster.require_same([*self.loading.models, *_places(todo)], written=output.absolute())
        any_job = partial(PredictionJob, self.loading, self.token, self.cluster.most_on_one_machine)
        jobs = [any_job(_absolute(case), output.absolute(), wanted, overwrite) for case in todo]
        failed: dict[str, str] = {}
        sums: dict[str, str] = {}
        with closing(self.cluster.unordered(predict_case, jobs)) as ended:
            for index, result, _ in ended:
                name = todo[index].identifier
                # A case that a dead worker had finished is skipped by the next one; where its sums lay, nobody knows.
                failed |= result.failed
                sums |= {} if name in result.failed else {name: result.sums.get(name, "")}
                done = len(skipped) + len(sums) + len(failed)
                on_progress(Progress("predict", done, len(cases), step=name))
        for case in todo:
            if case.identifier not in sums.keys() | failed.keys():
                failed[case.identifier] = "the workers that had it died, most often because memory ran out"
        return PredictionResult(tuple(sums), skipped, failed, sums)


@contextmanager
def remote_model(address: str, loading: Loading) -> Iterator[RemoteModel]:
    """A model on the workers of a cluster, inside a `with`.

    Args:
        address: of a Dask scheduler, such as `tcp://127.0.0.1:8786`.
        loading: how workers load it.

    Raises:
        InputError: no such cluster, a worker does not see the model, or one cannot load it.
        WorkError: workers die as they load it.
    """
    loading = replace(loading, models=tuple(model.absolute() for model in loading.models))
    token = uuid.uuid4().hex
    with connected(address) as cluster:
        cluster.require_same(loading.models)
        try:
            with closing(cluster.unordered(describe_model, [(loading, token)])) as answers:
                found = [answer for _, answer, _ in answers]
            if not found:
                raise WorkError(
                    "the workers that loaded the model died, most often because memory ran out",
                    next_step="see their logs, and give them more memory",
                )
            yield RemoteModel(*found[0], cluster, loading, token)
        finally:
            cluster.tell_all(forget_model, token)


def describe_model(loading: tuple[Loading, str]) -> tuple[DatasetDescription, Mapping[str, Any]]:
    """On a worker: load a model, and tell of it what it takes to open the folder for its predictions."""
    with _kept.lock:
        segmenter = _kept.segmenter(*loading)
        return segmenter.dataset, segmenter.described


def predict_case(job: PredictionJob) -> PredictionResult:
    """On a worker: predict one case, as a list of one."""
    with _kept.lock:  # one case has the device for itself, however many threads the worker has
        segmenter = _kept.segmenter(job.loading, job.token)
        use_threads(job.loading.threads or max(1, usable_cores() // job.workers))
        return predict_cases(segmenter, [job.case], job.output, wanted=job.wanted, overwrite=job.overwrite)


def forget_model(token: str) -> None:
    """On a worker: free the memory of the model that a command had loaded, unless a case is under way."""
    if _kept.lock.acquire(blocking=False):
        try:
            _kept.forget(token)
        finally:
            _kept.lock.release()


class _Kept:
    """The model that this process loaded last."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._token = ""
        self._segmenter: Segmenter[Any] | None = None

    def segmenter(self, loading: Loading, token: str) -> Segmenter[Any]:
        if self._segmenter is None or self._token != token:
            self._segmenter = None  # before there are two
            self._segmenter, self._token = loading.load(), token
        return self._segmenter

    def forget(self, token: str) -> None:
        if self._token == token:
            self._segmenter = None
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


_kept = _Kept()


def _absolute(case: InputCase) -> InputCase:
    return replace(case, sources=tuple(source.absolute() for source in case.sources))


def _places(cases: Sequence[InputCase]) -> list[Path]:
    """Folders of images, and one image, by which a folder of the same name is told apart."""
    folders = dict.fromkeys(source.absolute().parent for case in cases for source in case.sources)
    return [*list(folders)[:_MOST_FOLDERS], *(cases[0].sources[0].absolute() for _ in cases[:1])]
