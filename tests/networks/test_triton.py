"""The Triton backend against a float64 recurrence, on the CPU through Triton's interpreter: see `triton_cases.py`."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed")

SCRIPT = Path(__file__).with_name("triton_cases.py")


def _names() -> list[str]:
    """The cases' names, read without importing them: that would switch the interpreter on in this process."""
    for node in ast.parse(SCRIPT.read_text("utf-8")).body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Dict) and node.target.id == "CASES":
            return [ast.literal_eval(key) for key in node.value.keys]
    raise AssertionError("no cases")


@pytest.fixture(scope="module")
def results() -> dict[str, dict[str, float] | str]:
    path = os.pathsep.join(filter(None, (str(SCRIPT.parents[1]), os.environ.get("PYTHONPATH"))))  # for `scan_cases`
    done = subprocess.run(
        [sys.executable, str(SCRIPT)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("name", _names())
def test_outputs_and_gradients_equal_the_recurrence(name: str, results: dict[str, dict[str, float] | str]) -> None:
    differences = results[name]
    assert not isinstance(differences, str), differences
    if name == "one token, one channel":
        differences.pop("A")  # nothing decays over one token: the gradient is zero on both sides
    assert all(difference < 1e-5 for difference in differences.values()), differences
