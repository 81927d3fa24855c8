from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from umamba_cli.pipeline.data.files import link_or_copy, read_json, remove_leftovers, replacing, write_json
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


HALF = '{"a": "\\ud83d"}'
"""The first half of a character that JSON writes in two."""


@pytest.mark.parametrize("content", ["", "{", "\x00\xff", "[" * 100_000, "[" * 101 + "]" * 101, "9" * 5000, HALF])
def test_what_is_no_json_is_refused_with_its_name(tmp_path: Path, content: str) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError, match=r"bad\.json"):
        read_json(path)


def test_what_is_nested_and_what_has_halves_of_characters_is_read(tmp_path: Path) -> None:
    path = tmp_path / "good.json"
    path.write_text('{"a": ["\\ud83d\\ude00", "\\\\ud83d"], "b": ' + "[" * 99 + "]" * 99 + "}")
    assert read_json(path)["a"] == ["\U0001f600", "\\ud83d"]


@pytest.mark.parametrize("links", [True, False])
def test_a_file_is_linked_or_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    if not links:
        monkeypatch.setattr(Path, "hardlink_to", refuse)
    source, target = tmp_path / "source.bin", tmp_path / "folder/target.bin"
    source.write_bytes(b"first")
    source.chmod(0o444)
    for content in (b"first", b"second"):
        if content != source.read_bytes():
            source.unlink()
            source.write_bytes(content)
        for _ in range(2):
            link_or_copy(source, target)
            assert target.read_bytes() == content
            assert target.samefile(source) is links
            assert target.stat().st_mtime_ns == source.stat().st_mtime_ns
        assert list(target.parent.iterdir()) == [target]


def test_a_link_leaves_the_permissions_of_its_source(tmp_path: Path) -> None:
    source = tmp_path / "source.bin"
    source.write_bytes(b"content")
    source.chmod(0o440)
    link_or_copy(source, tmp_path / "target.bin")
    assert source.stat().st_mode & 0o777 == 0o440


def test_no_permission_to_link_into_a_folder_is_said(tmp_path: Path) -> None:
    (tmp_path / "source.bin").write_bytes(b"content")
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(WorkError, match="cannot write"):
        link_or_copy(tmp_path / "source.bin", tmp_path / "file/target.bin")


def test_only_what_a_killed_process_left_long_ago_is_removed(tmp_path: Path) -> None:
    old, young, other = (tmp_path / name for name in (".a.partial-1.nii.gz", ".b.partial-2.json", ".c.nii.gz"))
    for path in (old, young, other):
        path.touch()
    for path in (old, other):
        os.utime(path, (0, 0))
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [young.name, other.name]
    remove_leftovers(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "name",
    [
        "b" * 240 + ".nii.gz",
        "é" * 120 + ".nii.gz",
        "\U0001f600" * 60 + "x.json",
        "1." * 115 + "nii.gz",
        "1." * 115 + "NII.GZ",
        "a." + "b" * 240 + ".nii.gz",
        "a" * 120 + "." + "b" * 120 + ".mha",
        "a." + "b" * 250,
        "c" * 255,
    ],
)
def test_a_long_name_has_a_temporary_one_that_is_short_enough(tmp_path: Path, name: str) -> None:
    path, kept = tmp_path / name, {}
    with replacing(path) as temporary:
        kept["name"] = temporary.name
        temporary.write_text("content")
        os.utime(temporary, (0, 0))
        shutil.copystat(temporary, shutil.copy(temporary, temporary.with_name(f"{temporary.name}.left")))
    assert path.read_text() == "content"
    temporary_name = kept["name"]
    assert len(os.fsencode(temporary_name)) <= 235  # writers put files of longer names beside it
    temporary_name.encode()  # no half of a character
    ending = name[-7:] if name.lower().endswith(".nii.gz") else Path(name).suffix
    assert temporary_name.endswith(ending if len(ending) < 100 else "")
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == [path]


def test_a_long_name_of_a_nifti_leaves_room_for_the_files_beside_it(tmp_path: Path) -> None:
    from umamba_cli.pipeline.data.images import read_label_map, write_label_map
    from umamba_cli.pipeline.geometry import Grid

    grid = Grid((1, 1, 2), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1.0, 0, 0, 0, 1, 0, 0, 0, 1))
    for name in ("é" * 124 + ".nii.gz", "é" * 124 + ".nii"):
        write_label_map(tmp_path / name, np.array([[[0, 3]]]), grid, names={1: "a"})
        assert read_label_map(tmp_path / name).labels.tolist() == [[[0, 3]]]
