"""Files of torch that are damaged, or not as torch writes them, are refused."""

from __future__ import annotations

import os
import re
import struct
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch_pickles import FORMATS, call, checkpoint, named, save, storage, tensor, value, write_legacy, write_zip

from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.interop.torch_file import load_torch_file


class _Touch:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


def _encrypted(path: Path) -> None:
    content = bytearray(path.read_bytes())
    for magic, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        for found in re.finditer(re.escape(magic), bytes(content)):
            content[found.start() + at] |= 1
    path.write_bytes(content)


def _flipped(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content.replace(struct.pack("<4f", 1, 2, 3, 4), struct.pack("<4f", 1, 2, 3, 5)))


def _overlapping(path: Path) -> None:
    """A hundred records more, all of them on the bytes of the storage."""
    content = path.read_bytes()
    start, end = content.index(b"PK\x01\x02"), content.index(b"PK\x05\x06")
    entry = content[content.rindex(b"PK\x01\x02") : end]
    entries = content[start:end] + b"".join(entry.replace(b"data/0", b"data/%c" % i) for i in range(128, 228))
    count = entries.count(b"PK\x01\x02")
    path.write_bytes(
        content[:start] + entries + b"PK\5\6" + struct.pack("<4H2IH", 0, 0, count, count, len(entries), start, 0)
    )


def test_zips_that_torch_does_not_write_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.pth"
    bomb = {"0": bytes(10**7)}
    refused = "compressed, encrypted or doubled"
    for spoil, said in (
        (lambda: write_zip(path, tensor(), bomb, compression=zipfile.ZIP_DEFLATED), refused),
        (lambda: write_zip(path, tensor(), compression=zipfile.ZIP_BZIP2), refused),
        (lambda: _encrypted(write_zip(path, tensor())), refused),
        (lambda: _overlapping(write_zip(path, tensor(of=storage(count=1000)), {"0": bytes(4000)})), refused),
        (lambda: write_zip(path, tensor(), records={"other/data.pkl": b"."}), "2 data.pkl"),
        (lambda: _flipped(write_zip(path, tensor())), "CRC"),
    ):
        spoil()
        with pytest.raises(InputError, match=said):
            load_torch_file(path)
    with pytest.warns(UserWarning, match="Duplicate"):
        write_zip(path, tensor(), records={"model/data/0": bytes(16)})
    with pytest.raises(InputError, match=refused):
        load_torch_file(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/version", "3")
    with pytest.raises(InputError, match=r"0 data\.pkl"):
        load_torch_file(path)
    save(path, torch.ones(3))
    path.write_bytes(path.read_bytes().replace(b"little", b"biggie"))
    with pytest.raises(InputError, match=r"CRC|big-endian"):
        load_torch_file(path)


def test_big_endian_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.pth"
    with zipfile.ZipFile(write_zip(tmp_path / "little.pth", tensor())) as little, zipfile.ZipFile(path, "w") as big:
        for name in little.namelist():
            big.writestr(name, b"big" if name.endswith("byteorder") else little.read(name))
    with pytest.raises(InputError, match="big-endian"):
        load_torch_file(path)
    with pytest.raises(InputError, match="big-endian"):
        load_torch_file(write_legacy(path, tensor(), machine={"little_endian": False}))


LEGACY: dict[str, dict[str, Any]] = {
    "a count that is negative": {"count": -1},
    "another count": {"count": 3},
    "a count beyond the file": {"count": 2**61},
    "a count a little beyond the file": {"count": 5},
    "no bytes": {"data": b""},
    "keys that nothing names": {"keys": ("9",)},
    "no keys": {"keys": ()},
    "keys of another kind": {"keys": 5},
    "no machine": {"machine": None},
    "a machine that says nothing": {"machine": {}},
}


@pytest.mark.parametrize("kind", LEGACY)
def test_legacy_files_that_are_not_whole_are_refused(tmp_path: Path, kind: str) -> None:
    path = write_legacy(tmp_path / "c.pth", tensor(), **LEGACY[kind])
    with pytest.raises(InputError, match=r"c\.pth cannot be read"):
        load_torch_file(path)


def test_a_legacy_file_that_ends_too_early_is_refused(tmp_path: Path) -> None:
    content = tensor(of=storage(count=2**50))
    with pytest.raises(InputError, match="ends within storage 0"):
        load_torch_file(write_legacy(tmp_path / "c.pth", content, count=2**50))


def test_every_pickle_of_a_legacy_file_is_restricted(tmp_path: Path) -> None:
    path, mark = tmp_path / "c.pth", tmp_path / "mark"
    for part in ("machine", "keys"):
        write_legacy(path, tensor(), **{part: _Touch(mark)})
        with pytest.raises(InputError, match="system"):
            load_torch_file(path)
    path.write_bytes(b"\x80\x02" + call(named("os", "system"), value(f"touch {mark}")) + b".")
    with pytest.raises(InputError, match=r"os\.system"):
        load_torch_file(path)
    assert not mark.exists()


GARBAGE = {
    "empty": b"",
    "text": b"a model\n",
    "one pickle": b"\x80\x02N.",
    "endless text": b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b".",
    "tar": b"pickle" + bytes(1000),
    "half a zip": b"PK\x03\x04" + bytes(100),
}


@pytest.mark.parametrize("kind", GARBAGE)
def test_garbage_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "c.pth"
    path.write_bytes(GARBAGE[kind])
    with pytest.raises(InputError, match=r"c\.pth cannot be read"):
        load_torch_file(path)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "none.pth", tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            load_torch_file(path)


@pytest.mark.parametrize("kind", FORMATS)
def test_truncated_and_flipped_files_do_no_harm(tmp_path: Path, kind: str) -> None:
    path = save(tmp_path / "c.pth", checkpoint(), kind)
    content = path.read_bytes()
    for length in range(0, len(content), max(len(content) // 60, 1)):
        path.write_bytes(content[:length])
        with pytest.raises(InputError):
            load_torch_file(path)
    generator = np.random.default_rng(0)
    for _ in range(400):
        damaged = bytearray(content)
        damaged[generator.integers(len(content))] = generator.integers(256)
        path.write_bytes(damaged)
        with suppress(InputError):
            load_torch_file(path)
