"""A bundle that is not what it says, or holds what it may not, is refused."""

from __future__ import annotations

import json
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


def test_files_that_are_shorter_than_the_zip_says_are_refused(bundle: Path) -> None:
    with zipfile.ZipFile(bundle) as archive:
        entry = archive.getinfo(FOLD_0)
    rewrite(bundle, edit("manifest.json", files=_sizes(bundle, FOLD_0, entry.file_size + 7)), listed=False)
    refused(bundle, f"has {entry.file_size} bytes, its manifest says {entry.file_size + 7}")
    _patched(bundle, FOLD_0, 24, entry.file_size + 7)
    refused(bundle, f"{FOLD_0} in {bundle} does not have the {entry.file_size + 7} bytes")


def test_files_that_would_reach_beyond_the_zip_are_refused(bundle: Path) -> None:
    _patched(bundle, FOLD_0, 20, 2**31)  # packed bytes; a reader would make room for all of them
    refused(bundle, "files that overlap")


def test_one_place_under_many_names_is_refused(bundle: Path) -> None:
    # A bomb without compression: the directory has a hundred files, all of which are the same bytes.
    with zipfile.ZipFile(bundle, "a") as archive:
        entry = archive.getinfo(FOLD_0)
        for fold in range(2, 100):
            other = zipfile.ZipInfo(f"weights/fold_{fold}.safetensors")
            for part in ("file_size", "compress_size", "CRC", "header_offset"):
                setattr(other, part, getattr(entry, part))
            archive.filelist.append(other)
        archive._didModify = True
    refused(bundle, "files that overlap")


def _sizes(path: Path, name: str, size: int) -> dict[str, Any]:
    """What the manifest lists, with another size for one file."""
    with zipfile.ZipFile(path) as archive:
        files: dict[str, Any] = json.loads(archive.read("manifest.json"))["files"]
    files[name]["size"] = size
    return files


@pytest.mark.parametrize("name", ["../evil.json", "weights/fold_0.pkl", "\x1b[2J", "a\nb"])
def test_what_only_the_manifest_lists_is_refused(bundle: Path, name: str) -> None:
    with zipfile.ZipFile(bundle) as archive:
        files = json.loads(archive.read("manifest.json"))["files"]
    rewrite(bundle, edit("manifest.json", files={**files, name: files[FOLD_0]}), listed=False)
    assert refused(bundle, f"a file that a bundle does not have: {name!r}").problem.isprintable()


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


@pytest.mark.parametrize("version", [2, 0, "1", None, True, 1.0, [1], "\x1b[2J" * 100])
def test_unknown_formats_are_refused(bundle: Path, version: object) -> None:
    error = refused(rewrite(bundle, edit("manifest.json", format=version)), "bundle format")
    assert error.next_step == "update umamba"
    assert error.problem.isprintable()
    assert len(error.problem) < 400


def test_newer_formats_are_refused_by_their_number_whatever_files_they_have(bundle: Path) -> None:
    rewrite(bundle, edit("manifest.json", format=7))
    rewrite(bundle, lambda files: files.update({"networks/a.onnx": b"x"}), listed=False)
    assert refused(bundle, "bundle format 7").next_step == "update umamba"


def test_one_without_a_format_is_refused(bundle: Path) -> None:
    def change(files: dict[str, bytes]) -> None:
        manifest = json.loads(files["manifest.json"])
        manifest.pop("format")
        files["manifest.json"] = json.dumps(manifest).encode()

    refused(rewrite(bundle, change, listed=False), "bundle format None")


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


def _header(header: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def _tensor(**changed: Any) -> bytes:
    return json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changed}}).encode()


SAFETENSORS = {
    "nothing": b"",
    "a header beyond the file": struct.pack("<Q", 2**62) + b"{}",
    "a header of garbage": _header(b"\xff" * 20),
    "a header of a list": _header(b"[]"),
    "a deep header": _header(b"[" * 10_000),
    "too little data": _header(_tensor(), bytes(7)),
    "too much data": _header(_tensor(), bytes(9)),
    "a shape beyond its data": _header(_tensor(shape=[2**40, 2**40]), bytes(8)),
    "a negative shape": _header(_tensor(shape=[-2]), bytes(8)),
    "offsets beyond the file": _header(_tensor(data_offsets=[2**40, 2**40 + 8]), bytes(8)),
    "an unknown kind of number": _header(_tensor(dtype="PICKLE"), bytes(8)),
}


@pytest.mark.parametrize("kind", SAFETENSORS)
def test_weights_of_garbage_are_refused(bundle: Path, kind: str) -> None:
    rewrite(bundle, lambda files: files.update({FOLD_0: SAFETENSORS[kind]}))
    refused(bundle, f"{FOLD_0} in {bundle} is no safetensors file")


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_weights_that_are_no_numbers_are_refused(bundle: Path, number: float, kind: torch.dtype) -> None:
    weights = {**WEIGHTS, "layer.bias": torch.tensor([0.5, number], dtype=kind)}
    rewrite(bundle, lambda files: files.update({FOLD_0: save(weights)}))
    refused(bundle, f"1 of 2 weights of {FOLD_0} in {bundle} are not finite numbers")


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
    "one mirror axis again and again": ({"mirror_axes": [0] * 40}, "mirror_axes of run.json"),
    "a mirror axis that is none": ({"mirror_axes": [3]}, "mirror_axes of run.json"),
    "a configuration that the plans do not have": ({"configuration": "2d"}, "have no configuration '2d'"),
    "a name that steers the terminal": ({"versions": {"\x1b[2J": 1}}, "versions."),
}


@pytest.mark.parametrize("kind", CONTENT)
def test_records_that_are_not_valid_are_refused(bundle: Path, kind: str) -> None:
    changed, said = CONTENT[kind]
    rewrite(bundle, edit("run.json", **changed))
    with pytest.raises(InputError, match=re.escape(said)) as error:
        open_bundle(bundle)
    assert str(error.value).replace("\n", "").isprintable()


def test_damaged_json_is_refused(bundle: Path) -> None:
    deep = b'{"a": ' * 150 + b"1" + b"}" * 150
    for content in (b"{", b"[]", b"\xff", b"[" * 100_000, deep, b"9" * 5000, b'{"model": "\\ud800"}'):
        rewrite(bundle, lambda files, content=content: files.update({"run.json": content}))  # type: ignore[misc]
        refused(bundle, "run.json in")


GARBAGE = {"empty": b"", "text": b"a model", "half": b"PK\x03\x04", "no entry": b"PK\x05\x06" + bytes(18)}


@pytest.mark.parametrize("kind", GARBAGE)
def test_what_is_no_bundle_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "model.zip"
    path.write_bytes(GARBAGE[kind])
    refused(path, "is no bundle")


def test_json_that_would_fill_the_memory_is_refused(bundle: Path) -> None:
    rewrite(bundle, lambda files: files.update({"run.json": b"[" + b"[]," * 6_000_000 + b"[]]"}), listed=False)
    refused(bundle, "a file that would grow to 18000004 bytes: 'run.json'")


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
