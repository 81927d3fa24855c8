from __future__ import annotations

import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dask_clusters import DaskProcesses, dask_processes, wait_for
from dask_work import DEADLY, WRONG, double_noted, double_or_die, touch_and_wait
from safetensors import safe_open
from safetensors.numpy import save_file

import umamba_cli
from umamba_cli.pipeline import cluster as cluster_module
from umamba_cli.pipeline.cluster import connected, do_case
from umamba_cli.pipeline.data.images import read_label_map
from umamba_cli.pipeline.data.inputs import InputCase
from umamba_cli.pipeline.errors import InputError, WorkError
from umamba_cli.pipeline.inference import remote
from umamba_cli.pipeline.inference.export import Wanted
from umamba_cli.pipeline.inference.predictor import load_predictor
from umamba_cli.pipeline.parallel import OnCluster, for_each_case
from umamba_cli.pipeline.progress import Progress

PLAIN = "--device", "cpu", "--precision", "fp32", "--threads", 1, "--no-mirroring"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaskProcesses]:
    with dask_processes(tmp_path_factory.mktemp("dask"), workers=2) as processes:
        yield processes


@pytest.fixture
def dask(processes: DaskProcesses) -> DaskProcesses:
    """A scheduler and two workers that live."""
    processes.keep_workers(2)
    return processes


@pytest.fixture
def not_here(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Forbid this process, and worker processes of its own, to work on a case, once called."""

    def work(*_arguments: object, **_options: object) -> None:
        raise AssertionError("done by this process, not by a worker")

    def forbid() -> None:
        monkeypatch.setattr("umamba_cli.pipeline.inference.remote.predict_cases", work)
        monkeypatch.setattr("umamba_cli.pipeline.inference.remote.load_predictor", work)
        monkeypatch.setattr("umamba_cli.pipeline.parallel._unordered", work)

    return forbid


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_module, "_ANSWER_S", 0.5)


def test_results_come_in_the_order_of_the_items(dask: DaskProcesses, tmp_path: Path) -> None:
    seen: list[Progress] = []
    items = [(tmp_path, number) for number in range(5)]
    how = {"task": "double", "name": lambda item: str(item[1]), "on_progress": seen.append}
    there = OnCluster(dask.address, (tmp_path,), written=tmp_path)
    assert for_each_case(double_noted, items, cluster=there, **how) == [0, 2, 4, 6, 8]
    assert [report.done for report in seen] == list(range(6))
    assert [path.read_text() for path in sorted(tmp_path.iterdir())] == ["x"] * 5, (
        "once each, and no other file is left"
    )


def test_an_error_that_explains_itself_comes_back_as_it_is_and_is_not_tried_again(
    dask: DaskProcesses, tmp_path: Path
) -> None:
    items = [(tmp_path, number) for number in range(WRONG + 1)]
    with pytest.raises(InputError) as caught:
        for_each_case(double_noted, items, task="double", name=str, cluster=OnCluster(dask.address))
    assert (caught.value.problem, caught.value.details, caught.value.next_step) == (
        "seven",
        ("its file",),
        "take another",
    )
    assert (tmp_path / str(WRONG)).read_text() == "x"


def test_a_case_that_kills_every_worker_is_named_and_the_others_are_done(dask: DaskProcesses) -> None:
    dask.workers.append(dask.start_worker())  # with a nanny, which starts it again
    wait_for(lambda: len(dask.worker_names()) == 3)
    seen: list[Progress] = []
    with pytest.raises(WorkError, match="in 1 of 9 cases of double; the other 8 are done") as caught:
        for_each_case(
            double_or_die,
            range(9),
            task="double",
            name=str,
            describe=lambda number: f"case {number} (large)",
            cluster=OnCluster(dask.address),
            on_progress=seen.append,
        )
    assert caught.value.details == (f"case {DEADLY} (large)",)
    assert sorted(report.step.split()[0] for report in seen[1:]) == [str(n) for n in range(9) if n != DEADLY]
    dask.workers[-1].kill()
    dask.workers[-1].wait()


def test_work_does_not_wait_for_ever_when_all_workers_or_the_scheduler_have_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_module, "_WITHOUT_WORKERS_S", 0.5)
    monkeypatch.setattr(cluster_module, "_LOOK_EVERY_S", 0.1)
    with dask_processes(tmp_path / "dask", workers=1) as processes, connected(processes.address) as cluster:
        with pytest.raises(WorkError, match="has lost all its workers, cases left to do: 1"):
            list(cluster.unordered(double_or_die, [DEADLY]))
        processes.keep_workers(1)
        begun = cluster.unordered(touch_and_wait, [(tmp_path, 0), (tmp_path, 1)])
        assert next(begun) == (0, 0, False)
        assert processes.scheduler is not None
        processes.scheduler.kill()
        with pytest.raises(WorkError, match=f"scheduler at {processes.address} has gone, or was restarted"):
            next(begun)


def test_ctrl_c_cancels_what_has_not_begun(dask: DaskProcesses, tmp_path: Path) -> None:
    def interrupt(progress: Progress) -> None:
        if progress.done:
            raise KeyboardInterrupt

    items = [(tmp_path, number) for number in range(20)]
    with pytest.raises(KeyboardInterrupt):
        for_each_case(
            touch_and_wait, items, task="wait", name=str, cluster=OnCluster(dask.address), on_progress=interrupt
        )
    (tmp_path / "go").touch()
    # The next command's case is done, although nobody waits for those that had begun.
    assert for_each_case(str, [1], task="next", name=str, cluster=OnCluster(dask.address)) == ["1"]
    assert len(list(tmp_path.glob("begun_*"))) < 8


def test_workers_of_another_version_or_without_the_files_are_refused(
    dask: DaskProcesses, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with connected(dask.address) as cluster:
        with pytest.raises(InputError) as caught:
            cluster.require_same([tmp_path, tmp_path / "nowhere"])
        first, second = sorted(cluster.workers)
        assert caught.value.details == tuple(
            f"{worker} does not see {tmp_path / 'nowhere'}: No such file or directory" for worker in (first, second)
        )
        monkeypatch.setattr(umamba_cli, "__version__", "9.9.9")
        with pytest.raises(InputError, match=r"has umamba .*, this is 9\.9\.9"):
            cluster.require_same([tmp_path])
        # A worker that has come since is looked at with its first case.
        with pytest.raises(InputError, match=rf"({first}|{second}) has umamba .*, this is 9\.9\.9"):
            list(cluster.unordered(double_or_die, [1]))


def test_a_file_of_the_same_name_is_not_taken_for_the_same_file(tmp_path: Path) -> None:
    (tmp_path / "model.zip").write_bytes(b"four")
    seen = umamba_cli.__version__, ((str(tmp_path / "model.zip"), 4),)
    assert do_case(pickle.dumps((*seen, double_or_die, 1))) == 2
    other = umamba_cli.__version__, [(str(tmp_path / "model.zip"), 5)]
    assert cluster_module._look_around(*other) == [f"sees another {tmp_path / 'model.zip'}"]


def test_without_the_extra_is_said_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(InputError, match="package distributed, which is not installed") as caught, connected("x"):
        pass
    assert "pip install 'umamba[cluster]'" in caught.value.next_step


@pytest.mark.usefixtures("hasty")
def test_a_scheduler_that_is_not_there_or_has_no_workers_is_refused(tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        for is_listening in (False, True):
            if is_listening:
                silent.listen()
            with (
                pytest.raises(InputError, match="no Dask scheduler answers at tcp"),
                connected(f"tcp://127.0.0.1:{silent.getsockname()[1]}"),
            ):
                pass
    for nonsense in ("nonsense", "http://127.0.0.1:80", "tcp://127.0.0.1:99999999", ""):
        with pytest.raises(InputError, match=f"no Dask scheduler answers at {nonsense}"), connected(nonsense):
            pass
    with (
        dask_processes(tmp_path / "dask", workers=0) as processes,
        pytest.raises(InputError, match="has no workers"),
        connected(processes.address),
    ):
        pass


def test_nothing_of_dask_is_loaded_unless_asked_for() -> None:
    modules = "umamba_cli.cli", "umamba_cli.pipeline.inference.remote", "umamba_cli.pipeline.evaluation.parts"
    code = f"import sys, {', '.join(modules)}; print(sorted({{'dask', 'distributed'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("predict", "m", "-i", "i", "-o", "o", "--watch"), "--watch and --cluster do not go together"),
        (("preprocess", "w", "-j", 2), "--workers and --cluster do not go together"),
        (("evaluate", "p", "r", "-j", 2), "--workers and --cluster do not go together"),
        (("evaluate", "p", "r", "--merge"), "--merge and --cluster do not go together"),
    ],
)
def test_options_that_contradict_a_cluster_are_refused(
    umamba: Callable, arguments: tuple[object, ...], said: str
) -> None:
    done = umamba(*arguments, "--cluster", "tcp://127.0.0.1:1")
    assert done.code == 2
    assert said in done.err


def labels_in(folder: Path) -> dict[str, np.ndarray]:
    return {path.name: read_label_map(path).labels for path in sorted(folder.glob("[!.]*.nii.gz"))}


def assert_same_predictions(ours: Path, local: Path) -> None:
    there, wanted = labels_in(ours), labels_in(local)
    assert there.keys() == wanted.keys()
    for name, labels in wanted.items():
        np.testing.assert_array_equal(there[name], labels, err_msg=name)
    assert (ours / "prediction.json").read_text() == (local / "prediction.json").read_text()


@pytest.fixture(scope="module")
def model(trained_workspace: Path) -> Path:
    return trained_workspace / "runs/umamba-bot__3d_fullres/fold_0"


@pytest.fixture(scope="module")
def images(tiny_dataset: Path) -> Path:
    return tiny_dataset / "imagesTr"


@pytest.fixture
def local(umamba: Callable, model: Path, images: Path, tmp_path: Path) -> Path:
    """What one machine predicts."""
    assert umamba("predict", model, "-i", images, "-o", tmp_path / "local", *PLAIN).code == 0
    return tmp_path / "local"


def test_no_case_is_lost_when_a_worker_is_killed_in_the_middle(
    umamba: Callable,
    dask: DaskProcesses,
    model: Path,
    images: Path,
    local: Path,
    not_here: Callable[[], None],
    tmp_path: Path,
) -> None:
    not_here()
    name = sorted(labels_in(local))[1]
    told, killed = dask.hold(name), []

    def kill() -> None:
        wait_for(told.exists)
        killed.append(int(told.read_text()))
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    done = umamba("predict", model, "-i", images, "-o", tmp_path / "out", "--cluster", dask.address, *PLAIN)
    killer.join()
    assert done.code == 0, done.err
    assert killed[0] in [worker.pid for worker in dask.workers]
    assert [worker.wait(10) for worker in dask.workers if worker.pid == killed[0]] == [-signal.SIGKILL]
    assert "5 of 5 cases predicted" in done.out
    assert_same_predictions(tmp_path / "out", local)
    # The killed worker's half is still there, under a name of its own.
    (half,) = (tmp_path / "out").glob(".*.partial-*")
    assert (half.name.split(".")[1], half.read_bytes()) == (name.removesuffix(".nii.gz"), b"half")


def test_a_worker_loads_a_model_once_a_command_and_leaves_a_finished_case_alone(
    model: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[Path] = []

    def load(path: Path, *arguments: Any, **options: Any) -> object:
        loaded.append(path)
        return load_predictor(path, *arguments, **options)

    monkeypatch.setattr(remote, "load_predictor", load)
    loading = remote.Loading((model,), (), "cpu", "fp32", mirroring=False, threads=1)
    first, second = (
        InputCase(path.name[: -len("_0000.nii.gz")], (path,), ".nii.gz") for path in sorted(images.iterdir())[:2]
    )
    job = remote.PredictionJob(loading, "one command", 1, first, tmp_path, Wanted(), overwrite=False)
    assert remote.describe_model((loading, "one command"))[0].file_ending == ".nii.gz"
    assert remote.predict_case(job).predicted == (first.identifier,)
    written = (tmp_path / f"{first.identifier}.nii.gz").stat().st_mtime_ns
    again = remote.predict_case(pickle.loads(pickle.dumps(job)))
    assert (again.predicted, again.skipped) == ((), (first.identifier,))
    assert (tmp_path / f"{first.identifier}.nii.gz").stat().st_mtime_ns == written
    assert loaded == [model]
    remote.forget_model("another command")
    assert remote.predict_case(replace(job, case=second)).predicted == (second.identifier,)
    assert loaded == [model]
    remote.predict_case(replace(job, token="the next command"))
    assert loaded == [model] * 2
    remote.forget_model("the next command")
    remote.predict_case(replace(job, token="the next command"))
    assert loaded == [model] * 3
    remote.forget_model("the next command")


def test_one_bad_case_is_told_of_and_finished_ones_are_not_done_again(
    umamba: Callable, dask: DaskProcesses, model: Path, images: Path, local: Path, tmp_path: Path
) -> None:
    inputs, output = shutil.copytree(images, tmp_path / "in"), tmp_path / "out"
    bad = sorted(inputs.iterdir())[2]
    good = bad.read_bytes()
    bad.write_bytes(b"no image")
    command = "predict", model, "-i", inputs, "-o", output, "--cluster", dask.address, *PLAIN
    done = umamba(*command)
    assert done.code == 1
    assert f"1 of 5 cases could not be predicted\n  {bad.name.removesuffix('_0000.nii.gz')}: " in done.err
    assert len(labels_in(output)) == 4
    times = {path: path.stat().st_mtime_ns for path in output.glob("*.nii.gz")}
    bad.write_bytes(good)
    done = umamba(*command)
    assert done.code == 0
    assert "1 of 5 cases predicted" in done.out
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert_same_predictions(output, local)
    other = umamba(*command[:-1], "--mirroring")
    assert other.code == 2
    assert "holds predictions of another model" in other.err
    assert umamba("predict", tmp_path, *command[2:]).code == 2


def with_other_weights(model: Path, copy: Path) -> Path:
    """A copy of a run that answers otherwise."""
    path = Path(shutil.copytree(model, copy)) / "checkpoint_final.safetensors"
    with safe_open(path, framework="np") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    halved = {name: (0.5 * array).astype(array.dtype) for name, array in tensors.items()}
    save_file(halved, path, metadata)
    return copy


def test_an_ensemble_on_relative_paths(
    umamba: Callable,
    dask: DaskProcesses,
    model: Path,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    image = sorted(images.iterdir())[0]
    monkeypatch.chdir(model.parent)
    second = os.path.relpath(with_other_weights(model, tmp_path / "second"))
    inputs = os.path.relpath(image), "--shard", "1/1", "--save-uncertainty"
    for name, where in (("here", ()), ("there", ("--cluster", dask.address))):
        output = os.path.relpath(tmp_path / name)
        done = umamba("ensemble", model.name, second, "-i", *inputs, "-o", output, *where, *PLAIN)
        assert done.code == 0, done.err
    assert_same_predictions(tmp_path / "there", tmp_path / "here")
    here, there = (sorted(path.name for path in (tmp_path / name).rglob("*")) for name in ("here", "there"))
    assert there == here


def test_preprocessing_and_evaluation_on_a_cluster_equal_those_of_one_machine(
    umamba: Callable,
    dask: DaskProcesses,
    own_workspace: Path,
    tiny_dataset: Path,
    local: Path,
    not_here: Callable[[], None],
    tmp_path: Path,
) -> None:
    command = "evaluate", local, tiny_dataset / "labelsTr", "--dataset", tiny_dataset / "dataset.json"
    assert umamba(*command, "-o", tmp_path / "here.json").code == 0
    not_here()
    done = umamba(*command, "-o", tmp_path / "there.json", "--cluster", dask.address)
    assert done.code == 0, done.err
    assert (tmp_path / "there.json").read_text() == (tmp_path / "here.json").read_text()

    stored = own_workspace / "preprocessed"
    before = {path.relative_to(stored): path.read_bytes() for path in stored.rglob("*") if path.is_file()}
    shutil.rmtree(stored)
    done = umamba(
        "preprocess", own_workspace, "-c", "2d", "-c", "3d_fullres", "--cluster", dask.address, "--shard", "1/1"
    )
    assert done.code == 0, done.err
    assert {path.relative_to(stored): path.read_bytes() for path in stored.rglob("*") if path.is_file()} == before
