"""A bundle that is not what it says, or holds what it may not, is refused."""

from __future__ import annotations

import pickle
import re
import stat
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from bundles import FOLD_0, WEIGHTS, architecture, deflated, edit, refused, rewrite
from safetensors.torch import save

from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.runs.bundle import open_bundle

HASHES: dict[str, Callable[[dict[str, bytes]], Any]] = {
    "weights": lambda files: files.update({FOLD_0: save({name: t * 1.5 for name, t in WEIGHTS.items()})}),
    "plans": lambda files: files.update({"plans.json": files["plans.json"].replace(b"0.5", b"0.6", 1)}),
    "run": lambda files: files.update({"run.json": files["run.json"].replace(b"unet", b"enet")}),
}


@pytest.mark.parametrize("kind", HASHES)
def test_other_content_is_refused(bundle: Path, kind: str) -> None:
    refused(rewrite(bundle, HASHES[kind], listed=False), "is another file than its manifest says (SHA-256)")


def test_another_size_is_refused(bundle: Path) -> None:
    rewrite(bundle, lambda files: files.update({FOLD_0: files[FOLD_0] + b"\0"}), listed=False)
    refused(bundle, "bytes, its manifest says")


ADDED = {
    "../evil.json": "a path that climbs out of it",
    "weights/../../evil": "a path that climbs out of it",
    "weights\\..\\..\\evil": "a path that climbs out of it",
    "/etc/passwd": "an absolute path",
    "\\evil": "an absolute path",
    "C:\\evil": "an absolute path",
    "C:evil": "an absolute path",
    "fold_0/checkpoint_final.pth": "a file that a bundle does not have",
    "weights/fold_0.pkl": "a file that a bundle does not have",
    "weights/fold_00.safetensors": "a file that a bundle does not have",
    "./plans.json": "a file that a bundle does not have",
    "Plans.json": "a file that a bundle does not have",
    "notes/": "a file that a bundle does not have",
}


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("name", ADDED)
def test_paths_out_of_it_and_files_of_other_kinds_are_refused(bundle: Path, name: str, listed: bool) -> None:
    refused(rewrite(bundle, lambda files: files.update({name: b"x"}), listed=listed), ADDED[name])


def test_files_that_the_manifest_does_not_list_are_refused(bundle: Path) -> None:
    rewrite(bundle, lambda files: files.update({"weights/fold_7.safetensors": files[FOLD_0]}), listed=False)
    refused(bundle, "what its manifest does not list: weights/fold_7.safetensors")


@pytest.mark.parametrize("name", [FOLD_0, "plans.json", "dataset.json", "run.json"])
def test_files_that_are_missing_are_refused(bundle: Path, name: str) -> None:
    refused(rewrite(bundle, lambda files: files.pop(name), listed=False), f"lacks {name}")


def test_one_without_weights_is_refused(bundle: Path) -> None:
    def change(files: dict[str, bytes]) -> None:
        for name in (FOLD_0, "weights/fold_1.safetensors"):
            files.pop(name)

    refused(rewrite(bundle, change), "holds no weights")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_links_are_refused(bundle: Path, kind: int) -> None:
    def linked(name: str) -> zipfile.ZipInfo:
        info = zipfile.ZipInfo(name)
        info.external_attr = ((kind if name == FOLD_0 else stat.S_IFREG) | 0o777) << 16
        return info

    refused(rewrite(bundle, of=linked), "a link or another special file")


def test_two_files_of_one_name_are_refused(bundle: Path) -> None:
    with zipfile.ZipFile(bundle, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("plans.json", b"{}")
    refused(bundle, "two files of one name")


def _patched(path: Path, name: str, field: int, number: int) -> None:
    """Set a field (counted from the signature) in the central directory's entry of a file, and the local header's."""
    content = bytearray(path.read_bytes())
    for signature, at, name_at in ((b"PK\x01\x02", field, 46), (b"PK\x03\x04", field - 2, 30)):
        for match in re.finditer(re.escape(signature), bytes(content)):
            start = match.start()
            if content[start + name_at : start + name_at + len(name)] == name.encode():
                struct.pack_into("<I", content, start + at, number)
    path.write_bytes(content)


def test_archives_that_expand_beyond_their_stated_size_are_refused(bundle: Path) -> None:
    # The file is a million zeros longer than its manifest says, and then than its zip says, too.
    with zipfile.ZipFile(bundle) as archive:
        size, crc = archive.getinfo(FOLD_0).file_size, archive.getinfo(FOLD_0).CRC
    rewrite(bundle, lambda files: files.update({FOLD_0: files[FOLD_0] + bytes(10**6)}), of=deflated, listed=False)
    refused(bundle, "would grow to")
    _patched(bundle, FOLD_0, 24, size)
    error = refused(bundle, "is damaged")
    assert "CRC" in error.problem
    _patched(bundle, FOLD_0, 16, crc)  # even one whose checksum is that of the part that is read
    assert len(open_bundle(bundle).weights(0)) == 2  # nothing beyond the stated size was unpacked


def test_bombs_are_refused_before_they_are_unpacked(bundle: Path) -> None:
    rewrite(bundle, lambda files: files.update({FOLD_0: bytes(10**7)}), of=deflated)
    refused(bundle, "a file that would grow to 10000000 bytes")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions_are_refused(bundle: Path, method: int) -> None:
    def packed(name: str) -> zipfile.ZipInfo:
        info = zipfile.ZipInfo(name)
        info.compress_type = method
        return info

    refused(rewrite(bundle, of=packed), "compressed in another way than deflate")


def test_encrypted_files_are_refused(bundle: Path) -> None:
    content = bytearray(bundle.read_bytes())
    for match in re.finditer(b"PK\x01\x02", bytes(content)):
        content[match.start() + 8] |= 1
    bundle.write_bytes(content)
    refused(bundle, "an encrypted file")


@pytest.mark.parametrize("version", [2, 0, "1", None, True])
def test_unknown_formats_are_refused(bundle: Path, version: object) -> None:
    error = refused(rewrite(bundle, edit("manifest.json", format=version)), "bundle format")
    assert error.next_step == "update umamba"


class _Touch:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def test_pickles_are_refused_and_not_run(bundle: Path, tmp_path: Path) -> None:
    mark, trojan = tmp_path / "mark", tmp_path / "trojan.pth"
    torch.save({"layer.weight": _Touch(mark)}, trojan)
    for content in (pickle.dumps(_Touch(mark)), trojan.read_bytes()):
        rewrite(bundle, lambda files, content=content: files.update({FOLD_0: content}))  # type: ignore[misc]
        refused(bundle, f"{FOLD_0} in {bundle} is no safetensors file")
    for name in ("plans.json", "manifest.json"):
        rewrite(
            bundle,
            lambda files, name=name: files.update({name: pickle.dumps(_Touch(mark))}),  # type: ignore[misc]
            listed=False,
        )
        refused(bundle, name)
    assert not mark.exists()


CONTENT: dict[str, tuple[Mapping[str, Any], str]] = {
    "a record of another format": ({"format": 2}, "has format 2"),
    "a field of the architecture that is not known": (
        {"architecture": {**architecture().to_json(), "attention": True}},
        "architecture: has attention, which this umamba does not know",
    ),
    "an architecture that contradicts itself": (
        {"architecture": {**architecture().to_json(), "blocks_per_stage": [1]}},
        "blocks_per_stage has 1 entries",
    ),
    "an architecture of text": ({"architecture": "unet"}, "architecture"),
    "mirror axes of text": ({"mirror_axes": ["x"]}, "mirror_axes.0"),
}


@pytest.mark.parametrize("kind", CONTENT)
def test_records_that_are_not_valid_are_refused(bundle: Path, kind: str) -> None:
    changed, said = CONTENT[kind]
    rewrite(bundle, edit("run.json", **changed))
    with pytest.raises(InputError, match=re.escape(said)) as error:
        open_bundle(bundle)
    assert str(bundle) in error.value.problem


def test_damaged_json_is_refused(bundle: Path) -> None:
    for content in (b"{", b"[]", b"\xff", b"[" * 100_000):
        rewrite(bundle, lambda files, content=content: files.update({"run.json": content}))  # type: ignore[misc]
        refused(bundle, "run.json in")


GARBAGE = {"empty": b"", "text": b"a model", "half": b"PK\x03\x04", "no entry": b"PK\x05\x06" + bytes(18)}


@pytest.mark.parametrize("kind", GARBAGE)
def test_what_is_no_bundle_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "model.zip"
    path.write_bytes(GARBAGE[kind])
    refused(path, "is no bundle")


def test_files_that_are_not_there(tmp_path: Path) -> None:
    refused(tmp_path / "none.zip", "does not exist")
    refused(tmp_path, "cannot be read")


def test_truncated_files_are_refused(bundle: Path) -> None:
    content = bundle.read_bytes()
    for length in range(0, len(content), 37):
        bundle.write_bytes(content[:length])
        refused(bundle, str(bundle))


def test_flipped_bytes_are_noticed_wherever_they_change_content(bundle: Path) -> None:
    content = bundle.read_bytes()
    with zipfile.ZipFile(bundle) as archive:
        (begin,) = (i.header_offset + 30 + len(i.filename) for i in archive.infolist() if i.filename == FOLD_0)
    damaged = bytearray(content)
    damaged[begin + 20] ^= 1
    bundle.write_bytes(damaged)
    refused(bundle, FOLD_0)
