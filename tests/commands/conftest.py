"""Bad data, as the commands see it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from raw_datasets import RawDataset, bad_cases, snapshot


@pytest.fixture(scope="session")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[RawDataset, Path]]:
    """The folder of a good dataset, made once for each ending and number of channels, and of its workspace."""
    from umamba_cli.pipeline.planning.planner import PlanOptions
    from umamba_cli.pipeline.workflows.plan import plan_workspace

    made: dict[tuple[str, int], tuple[RawDataset, Path]] = {}

    def make(ending: str, channels: int) -> tuple[RawDataset, Path]:
        if (ending, channels) not in made:
            folder = tmp_path_factory.mktemp("good")
            raw = RawDataset(folder / "Dataset001_Bad", ending, channels=channels)
            plan_workspace(raw.folder, folder / "work", PlanOptions(preset="cpu"), workers=1)
            made[ending, channels] = raw, folder / "work"
        return made[ending, channels]

    return make


@pytest.fixture
def refused(umamba: Callable, planned: Callable, tmp_path: Path) -> Callable[..., str]:
    """Spoil case `b` of a good dataset; all three commands refuse it alike. Returns what they say of it."""

    def check(spoil: Callable[[RawDataset], object], ending: str = ".nii.gz", channels: int = 1) -> str:
        good, its_workspace = planned(ending, channels)
        raw = good.copy_to(tmp_path / good.folder.name)
        workspace = Path(shutil.copytree(its_workspace, tmp_path / "work"))
        (workspace / "workspace.json").write_text(json.dumps({"format": 1, "dataset": str(raw.folder)}))
        spoil(raw)
        before = snapshot(raw.folder), snapshot(workspace)

        found = bad_cases(umamba("check", raw.folder, "-j", 1))
        assert bad_cases(umamba("plan", raw.folder, "-w", tmp_path / "new", "-j", 1)) == found
        assert not (tmp_path / "new").exists()
        assert bad_cases(umamba("preprocess", workspace, "-c", "2d", "-j", 1)) == found
        stored = workspace / "preprocessed/2d"
        assert {path.name for path in stored.iterdir()} == {
            f"{case}{end}"
            for case in raw.cases
            if raw.label(case).exists() and case not in found
            for end in (".b2nd", "_seg.b2nd", ".json")
        }
        shutil.rmtree(workspace / "preprocessed")
        assert (snapshot(raw.folder), snapshot(workspace)) == before
        assert not [path for path in tmp_path.rglob("*") if ".partial-" in path.name]
        (said,) = found.values()
        return said

    return check
