"""The demo, shortened: its figures are measured in benchmarks, here it must go all the way and leave what it says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from umamba_cli.pipeline.training.settings import SettingsChosen
from umamba_cli.pipeline.workflows import demo


@pytest.mark.slow
def test_the_demo_ends_with_a_table_and_a_picture(
    umamba: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "TRAINING_CASES", 3)
    monkeypatch.setattr(demo, "TEST_CASES", 1)
    monkeypatch.setattr(demo, "SCHEDULE", SettingsChosen(epochs=1, iterations=3, learning_rate=0.03, momentum=0.9))
    done = umamba("demo", "-w", tmp_path / "demo", "-j", 1)
    assert done.code == 0, done.err
    for label in ("liver", "kidneys", "vessel", "lesion"):
        assert label in done.out
    assert (tmp_path / "demo/demo.png").stat().st_size > 20_000
    assert str(tmp_path / "demo/demo.png") in done.out
    again = umamba("demo", "-w", tmp_path / "demo", "-j", 1, "--json")
    assert again.code == 0, again.err
    assert set(json.loads(again.out)["mean"]) == {"1", "2", "3", "4"}
