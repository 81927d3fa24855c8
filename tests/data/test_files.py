from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest

from umamba_cli.pipeline.data.files import read_json, replacing, write_json
from umamba_cli.pipeline.errors import InputError, WorkError


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "labels.nii.gz"
    path.write_text("old")

    def write_half() -> None:
        with replacing(path) as temporary:
            assert temporary.name.endswith(".nii.gz")
            temporary.write_text("half of the new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_success_replaces_the_file_with_the_users_permissions(tmp_path: Path) -> None:
    path = tmp_path / "made" / "a.json"
    before = os.umask(0o022)
    try:
        write_json(path, {"a": 1})
    finally:
        os.umask(before)
    assert json.loads(path.read_text()) == {"a": 1}
    assert path.stat().st_mode & 0o777 == 0o644
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_that_is_a_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkError, match="cannot write"):
        write_json(tmp_path / "file" / "a.json", {})


def test_numpy_and_not_a_number_become_plain_json(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {1: np.float32(0.5), "b": [math.nan, np.int64(3)], "c": np.zeros((2, 1))})
    assert read_json(tmp_path / "a.json") == {"1": 0.5, "b": [None, 3], "c": [[0.0], [0.0]]}


@pytest.mark.parametrize("content", ["", "{", "\x00\xff"])
def test_what_is_no_json_is_refused_with_its_name(tmp_path: Path, content: str) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError, match=r"bad\.json"):
        read_json(path)
