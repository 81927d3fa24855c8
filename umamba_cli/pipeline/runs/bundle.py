"""A bundle: one zip with all that predicting with a model needs, safe to open wherever it came from.

It holds `manifest.json`, `plans.json`, `dataset.json`, `run.json` (without plans and dataset, which would be there
twice) and `weights/fold_N.safetensors`, and nothing else: no pickle, no link, no path out of it. The manifest gives the
size and the SHA-256 of every other file. Files are read into memory one at a time and none is written to the disk.
"""

from __future__ import annotations

import hashlib
import json
import re
import stat
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import pydantic
from pydantic import Field
from torch import Tensor

import umamba_cli
from umamba_cli.pipeline.data.files import json_text, replacing, to_plain, validated
from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.runs.record import RunRecord, now, require_known_format

BUNDLE_FORMAT = 1
Fold = int | str

_MANIFEST, _PLANS, _DATASET, _RUN = "manifest.json", "plans.json", "dataset.json", "run.json"
_WEIGHTS = re.compile(r"weights/fold_(0|[1-9][0-9]{0,5}|all)\.safetensors")
_MOST_OF_JSON = 64 * 1024**2
_MOST_GROWTH = 100  # times; JSON shrinks to a tenth or less, weights hardly at all
_COPY_AGAIN = "get the bundle again from where it came from"
_WRITTEN_AT = (1980, 1, 1, 0, 0, 0)  # the manifest says when, in UTC; a zip would say it in local time


class FileEntry(pydantic.BaseModel):
    """What the manifest says of a file."""

    model_config = pydantic.ConfigDict(frozen=True)

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

    size: Annotated[int, Field(ge=0)]
    """Bytes."""


class Manifest(pydantic.BaseModel):
    """`manifest.json`. Keys that are not used here are kept."""

    model_config = pydantic.ConfigDict(extra="allow", frozen=True)

    format: int
    files: dict[str, FileEntry]
    """Every file but the manifest."""

    origin: dict[str, Any] = {}
    """Where the weights came from: program, trainer, files with their SHA-256, epochs."""

    validation: dict[str, Any] | None = None
    """How well the model did on cases that were held back, where that is known."""

    written: str = ""
    umamba: str = ""
    """The version that wrote it."""


@dataclass(frozen=True)
class Bundle:
    """A bundle that was opened: its names, its sizes and all but its weights have been checked."""

    path: Path
    manifest: Manifest
    record: RunRecord
    """Of the first fold."""

    @cached_property
    def folds(self) -> tuple[Fold, ...]:
        """The folds whose weights it holds: numbers by size, then `all`."""
        found = [match[1] for name in self.manifest.files if (match := _WEIGHTS.fullmatch(name))]
        return (*sorted(int(name) for name in found if name != "all"), *(name for name in found if name == "all"))

    def weights(self, fold: Fold) -> dict[str, Tensor]:
        """The weights of a fold by the names of the network's parameters.

        Raises:
            InputError: the fold is not in the bundle, or its file is damaged or another one.
        """
        from safetensors.torch import load

        if fold not in self.folds:
            raise InputError(
                f"{self.path} holds no fold {fold}",
                next_step=f"choose one of {', '.join(map(str, self.folds))} with -f",
            )
        name = weights_name(fold)
        with _open(self.path) as archive:
            content = _content(archive, self.path, name, self.manifest.files[name])
        try:
            return load(content)
        except Exception as error:  # the library's own, or what a header of garbage raises
            raise InputError(
                f"{name} in {self.path} is no safetensors file: {str(error) or type(error).__name__}",
                next_step=_COPY_AGAIN,
            ) from error


def weights_name(fold: Fold) -> str:
    """`weights/fold_0.safetensors`."""
    return f"weights/fold_{fold}.safetensors"


def write_bundle(
    path: Path,
    record: RunRecord,
    weights: Iterable[tuple[Fold, Mapping[str, Tensor]]],
    *,
    origin: Mapping[str, Any],
    validation: Mapping[str, Any] | None = None,
) -> Manifest:
    """Write a bundle, whole or not at all.

    Args:
        path: the file.
        record: of the first fold.
        weights: each fold and its weights; taken one after the other, so that one at a time need be in memory.
        origin: see `Manifest`.
        validation: see `Manifest`.

    Raises:
        WorkError: the disk is full or the folder cannot be written to.
    """
    from safetensors.torch import save

    described = to_plain(record)
    assert isinstance(described, dict)
    parts = {_PLANS: described.pop("plans"), _DATASET: described.pop("dataset"), _RUN: described}
    files: dict[str, FileEntry] = {}
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, content in parts.items():
            files[name] = _add(archive, name, json_text(content).encode())
        for fold, tensors in weights:
            plain = {name: t.detach().cpu().clone().contiguous() for name, t in tensors.items()}
            files[weights_name(fold)] = _add(archive, weights_name(fold), save(plain))
        manifest = Manifest(
            format=BUNDLE_FORMAT,
            files=files,
            origin=dict(origin),
            validation=None if validation is None else dict(validation),
            written=now(),
            umamba=umamba_cli.__version__,
        )
        _add(archive, _MANIFEST, json_text(manifest).encode())
    return manifest


def require_new_file(path: Path, *, overwrite: bool) -> None:
    """Make sure that a bundle can be written here, before work starts.

    Raises:
        InputError: it is a folder, its folder is not there, or it is there already and may not be replaced.
    """
    if path.is_dir() or not path.parent.is_dir():
        what = "is a folder" if path.is_dir() else "lies in a folder that does not exist"
        raise InputError(f"{path} {what}", next_step="give the name of a file with -o, such as model.zip")
    if path.exists() and not overwrite:
        raise InputError(f"{path} is there already", next_step="give --overwrite, or another name with -o")


def is_bundle(path: Path) -> bool:
    """Whether a file looks like a bundle, damaged or not."""
    with suppress(OSError, zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
        return _MANIFEST in archive.namelist()
    return False


def open_bundle(path: Path) -> Bundle:
    """Open a bundle; weights are not read yet.

    Raises:
        InputError: it is none, of an unknown format, not what its manifest says, or holds what a bundle may not hold.
    """
    with _open(path) as archive:
        records = _files(archive, path)
        if _MANIFEST not in records:
            raise InputError(f"{path} is no bundle (no {_MANIFEST} in it)", next_step="give a bundle or a run's folder")
        manifest = _manifest(_read_bounded(archive, path, _MANIFEST, records[_MANIFEST].file_size), path)
        _require_listed(records, manifest, path)
        parts = {
            name: _json(_content(archive, path, name, manifest.files[name]), f"{name} in {path}")
            for name in (_PLANS, _DATASET, _RUN)
        }
    described = parts[_RUN]
    if not isinstance(described, dict):
        raise InputError(f"{_RUN} in {path} holds no record of a training", next_step=_COPY_AGAIN)
    whole = {**described, "plans": parts[_PLANS], "dataset": parts[_DATASET]}
    record = validated(RunRecord.model_validate, whole, source=str(path))
    require_known_format(record, f"{_RUN} in {path}")
    return Bundle(path, manifest, record)


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> FileEntry:
    entry = zipfile.ZipInfo(name, _WRITTEN_AT)
    entry.external_attr = (stat.S_IFREG | 0o644) << 16
    archive.writestr(entry, content)
    return FileEntry(sha256=hashlib.sha256(content).hexdigest(), size=len(content))


def _manifest(content: bytes, path: Path) -> Manifest:
    written = _json(content, f"{_MANIFEST} in {path}")
    version = written.get("format") if isinstance(written, dict) else None
    if type(version) is not int or version != BUNDLE_FORMAT:  # a newer one may say all else differently
        raise InputError(
            f"{path} has bundle format {version}, this umamba knows {BUNDLE_FORMAT}", next_step="update umamba"
        )
    return validated(Manifest.model_validate, written, source=f"{_MANIFEST} in {path}")


def _files(archive: zipfile.ZipFile, path: Path) -> dict[str, zipfile.ZipInfo]:
    """The files of the zip by name, each of which may be in a bundle."""
    records: dict[str, zipfile.ZipInfo] = {}
    for record in archive.infolist():
        name, kind = record.filename, stat.S_IFMT(record.external_attr >> 16)
        if name == "weights/" and kind in (0, stat.S_IFDIR):
            continue
        if problem := _problem(record, kind):
            raise _refused(path, f"{problem}: {name!r}")
        if name in records:
            raise _refused(path, f"two files of one name: {name!r}")
        records[name] = record
    return records


def _problem(record: zipfile.ZipInfo, kind: int) -> str | None:
    name = record.orig_filename  # zipfile shortens names at a zero byte and turns backslashes
    if kind not in (0, stat.S_IFREG):
        return "a link or another special file"
    if name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", name):
        return "an absolute path"
    if ".." in re.split(r"[/\\]", name):
        return "a path that climbs out of it"
    if name not in (_MANIFEST, _PLANS, _DATASET, _RUN) and not _WEIGHTS.fullmatch(name):
        return "a file that a bundle does not have"
    if record.flag_bits & 0x1:
        return "an encrypted file"
    if record.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others unpack without a limit
        return "a file compressed in another way than deflate"
    if record.file_size > _MOST_GROWTH * record.compress_size or (
        name.endswith(".json") and record.file_size > _MOST_OF_JSON
    ):
        return f"a file that would grow to {record.file_size} bytes"
    return None


def _require_listed(records: Mapping[str, zipfile.ZipInfo], manifest: Manifest, path: Path) -> None:
    there, listed = records.keys() - {_MANIFEST}, manifest.files.keys()
    if extra := sorted(there - listed):
        raise _refused(path, f"what its manifest does not list: {', '.join(extra)}")
    if missing := sorted((listed | {_PLANS, _DATASET, _RUN}) - there):
        raise InputError(f"{path} lacks {', '.join(missing)}", next_step=_COPY_AGAIN)
    if not any(_WEIGHTS.fullmatch(name) for name in listed):
        raise InputError(f"{path} holds no weights", next_step=_COPY_AGAIN)
    for name, entry in manifest.files.items():
        if records[name].file_size != entry.size:
            raise InputError(
                f"{name} in {path} has {records[name].file_size} bytes, its manifest says {entry.size}",
                next_step=_COPY_AGAIN,
            )


def _content(archive: zipfile.ZipFile, path: Path, name: str, entry: FileEntry) -> bytes:
    """The bytes of a file, which are those that the manifest means."""
    content = _read_bounded(archive, path, name, entry.size)
    if hashlib.sha256(content).hexdigest() != entry.sha256:
        raise InputError(f"{name} in {path} is another file than its manifest says (SHA-256)", next_step=_COPY_AGAIN)
    return content


def _read_bounded(archive: zipfile.ZipFile, path: Path, name: str, size: int) -> bytes:
    """The bytes of a file; never more than `size` are unpacked, and one more where there are some."""
    try:
        with archive.open(name) as file:
            content = file.read(size + 1)
    except Exception as error:  # zlib, lzma and others have words of their own for damaged content
        raise InputError(f"{name} in {path} is damaged: {error}", next_step=_COPY_AGAIN) from error
    if len(content) != size:
        raise InputError(f"{name} in {path} does not have the {size} bytes that it should have", next_step=_COPY_AGAIN)
    return content


def _json(content: bytes, source: str) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{source} is no valid JSON: {error}", next_step=_COPY_AGAIN) from error


@contextmanager
def _open(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist", next_step="give a bundle or a run's folder") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}", next_step="check the path") from error
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise InputError(
            f"{path} is no bundle: {error}",
            next_step="give a bundle or a run's folder; `umamba import` makes bundles of nnU-Net's and U-Mamba's",
        ) from error


def _refused(path: Path, what: str) -> InputError:
    return InputError(
        f"{path} holds {what}", next_step="do not use it unless you know who made it; get it again from its source"
    )
