"""What several tests share: where real data lies, and small phantoms."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from phantoms import Finished

# As `umamba` itself does, and before torch is imported: spinning threads make tests crawl on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


# A shell that runs the tests in the background lets them inherit these as ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def _shared_folder() -> Path | None:
    named = os.environ.get("UMAMBA_SHARED")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared"
    return folder if (folder / "goldens").is_dir() else None


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real data and goldens; tests that need it skip where it is absent."""
    folder = _shared_folder()
    if folder is None:
        pytest.skip("no real data: neither ../shared nor the folder that UMAMBA_SHARED names is there")
    return folder


@pytest.fixture
def umamba(capsys: pytest.CaptureFixture[str]) -> Callable[..., Finished]:
    """Run a command in this process, as the console script would."""

    def run(*arguments: object) -> Finished:
        from umamba_cli.cli import main

        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_info:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Finished(exit_info.value.code or 0, captured.out, captured.err)  # type: ignore[arg-type]

    return run


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five small phantoms and one to predict. Not to be changed; copy it first."""
    from umamba_cli.pipeline.workflows.phantom import draw_phantom_dataset

    folder = tmp_path_factory.mktemp("raw") / "Dataset001_Tiny"
    draw_phantom_dataset(folder, cases=5, test_cases=1, shape=(12, 32, 32))
    return folder


@pytest.fixture(scope="session")
def tiny_workspace(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_dataset`, planned for the CPU, preprocessed in 2D and 3D. Not to be changed; copy it first."""
    from umamba_cli.pipeline.data.workspace import open_workspace
    from umamba_cli.pipeline.planning.planner import PlanOptions
    from umamba_cli.pipeline.preprocessing.dataset import preprocess_workspace
    from umamba_cli.pipeline.workflows.plan import plan_workspace

    folder = tmp_path_factory.mktemp("work") / "tiny"
    plan_workspace(tiny_dataset, folder, PlanOptions(preset="cpu"), workers=1)
    for configuration in ("2d", "3d_fullres"):
        preprocess_workspace(open_workspace(folder), configuration, workers=1)
    return folder


@pytest.fixture
def own_workspace(tiny_workspace: Path, tmp_path: Path) -> Path:
    """A copy of `tiny_workspace` that a test may change."""
    return Path(shutil.copytree(tiny_workspace, tmp_path / "work"))


@pytest.fixture(scope="session")
def trained_workspace(tiny_workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_workspace` with a finished `umamba-bot__3d_fullres/fold_0` of two short epochs. Not to be changed."""
    from umamba_cli.pipeline.data.workspace import open_workspace
    from umamba_cli.pipeline.training.settings import SettingsChosen
    from umamba_cli.pipeline.workflows.train import TrainingJob, train_fold

    folder = Path(shutil.copytree(tiny_workspace, tmp_path_factory.mktemp("trained") / "work"))
    train_fold(
        TrainingJob(open_workspace(folder), chosen=SettingsChosen(epochs=2, iterations=2), device="cpu", workers=0)
    )
    return folder
