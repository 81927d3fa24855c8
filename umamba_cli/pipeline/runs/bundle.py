"""A bundle: one zip with all that predicting with a model needs, safe to open wherever it came from.

It holds `manifest.json`, `plans.json`, `dataset.json`, `run.json` (without plans and dataset, which would be there
twice) and `weights/fold_N.safetensors`; for a cascade the previous stage too, in `previous/`, whose plans and dataset
are left out where they are the cascade's. Nothing else: no pickle, no link, no path out of it. The manifest gives the
size and the SHA-256 of every other file.
"""

from __future__ import annotations

import hashlib
import re
import stat
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import pydantic
import torch
from pydantic import Field
from torch import Tensor

import umamba_cli
from umamba_cli.pipeline.data.dataset import DatasetDescription
from umamba_cli.pipeline.data.files import json_text, parse_json, replacing, to_plain, validated
from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.runs.archive import GET_AGAIN, Archive, open_archive, refused
from umamba_cli.pipeline.runs.record import RunRecord, now, require_known_format

BUNDLE_FORMAT = 1
Fold = int | str

_MANIFEST, _PLANS, _DATASET, _RUN = "manifest.json", "plans.json", "dataset.json", "run.json"
_PREVIOUS = "previous/"
_WEIGHTS = re.compile(r"(previous/|)weights/fold_(0|[1-9][0-9]{0,5}|all)\.safetensors")
_FOLDERS = "weights/", _PREVIOUS, f"{_PREVIOUS}weights/"
_FILES = _PLANS, _DATASET, _RUN, *(_PREVIOUS + name for name in (_PLANS, _DATASET, _RUN))
_WRITTEN_AT = (1980, 1, 1, 0, 0, 0)  # the manifest says when, in UTC; a zip would say it in local time
_OF_DATASET = {*DatasetDescription.model_fields, "description", "reference", "release", "licence", "license"}
"""Keys of dataset.json that a bundle holds; others may name cases, which may tell who a patient is."""


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

    previous_folds: dict[str, tuple[Fold, ...]] = {}
    """For a cascade: for each fold the folds of the previous stage that found what it was trained on."""

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

    previous: Bundle | None = None
    """For a cascade: the stage before, where the bundle holds it."""

    prefix: str = ""
    """What the names of the stage's files in the zip begin with."""

    @cached_property
    def folds(self) -> tuple[Fold, ...]:
        """The folds whose weights it holds: numbers by size, then `all`."""
        return _folds(self.manifest.files, self.prefix)

    def previous_folds(self, folds: Sequence[Fold]) -> tuple[Fold, ...]:
        """The folds of the previous stage that some of a cascade's folds were trained with.

        Raises:
            InputError: one of the folds is not in the bundle.
        """
        for fold in folds:
            self._require(fold)
        return tuple(dict.fromkeys(before for fold in folds for before in self.manifest.previous_folds[str(fold)]))

    def weights_name(self, fold: Fold) -> str:
        """The file of a fold's weights in the zip."""
        return self.prefix + weights_name(fold)

    def weights(self, fold: Fold) -> dict[str, Tensor]:
        """The weights of a fold by the names of the network's parameters.

        Raises:
            InputError: the fold is not in the bundle, or its file is damaged, another one or holds NaN.
        """
        from safetensors.torch import load

        self._require(fold)
        name = self.weights_name(fold)
        with open_archive(self.path, folders=_FOLDERS) as archive:
            content = _content(archive, name, self.manifest.files[name])
        try:
            weights = load(content)
            broken = not_finite(weights)
        except Exception as error:  # the library's own, or what a header of garbage raises
            raise InputError(
                f"{name} in {self.path} is no safetensors file: {str(error) or type(error).__name__}",
                next_step=GET_AGAIN,
            ) from error
        if broken:
            raise InputError(
                f"{len(broken)} of {len(weights)} weights of {name} in {self.path} are not finite numbers",
                next_step="use another fold with -f, or another bundle",
            )
        return weights

    def _require(self, fold: Fold) -> None:
        if fold not in self.folds:
            raise InputError(
                f"{self.path} holds no fold {fold}",
                next_step=f"choose one of {', '.join(map(str, self.folds))} with -f",
            )


@dataclass(frozen=True)
class PreviousStage:
    """What a bundle gets of a cascade's previous stage."""

    record: RunRecord
    """Of the first fold."""

    weights: Iterable[tuple[Fold, Mapping[str, Tensor]]]
    """Each fold and its weights; taken one after the other."""

    folds: Mapping[Fold, Sequence[Fold]]
    """For each fold of the cascade, those of this stage that found what it was trained on."""


def weights_name(fold: Fold) -> str:
    """`weights/fold_0.safetensors`."""
    return f"weights/fold_{fold}.safetensors"


def not_finite(weights: Mapping[str, Tensor]) -> list[str]:
    """The weights that hold NaN or infinity, by name."""
    floats = (name for name, tensor in weights.items() if tensor.is_floating_point())
    return [name for name in floats if not torch.isfinite(weights[name].float()).all()]


def write_bundle(
    path: Path,
    record: RunRecord,
    weights: Iterable[tuple[Fold, Mapping[str, Tensor]]],
    *,
    origin: Mapping[str, Any],
    validation: Mapping[str, Any] | None = None,
    previous: PreviousStage | None = None,
) -> Manifest:
    """Write a bundle, whole or not at all.

    Args:
        path: the file.
        record: of the first fold.
        weights: each fold and its weights; taken one after the other, so that one at a time need be in memory.
        origin: see `Manifest`.
        validation: see `Manifest`.
        previous: for a cascade: its previous stage.

    Raises:
        WorkError: the disk is full or the folder cannot be written to.
    """
    parts, files = _parts(record), {}
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, content in parts.items():
            files[name] = _add(archive, name, content)
        for fold, tensors in weights:
            files[weights_name(fold)] = _add(archive, weights_name(fold), _saved(tensors))
        if previous:
            for name, content in _parts(previous.record).items():
                if content != parts[name]:
                    files[_PREVIOUS + name] = _add(archive, _PREVIOUS + name, content)
            for fold, tensors in previous.weights:
                files[_PREVIOUS + weights_name(fold)] = _add(archive, _PREVIOUS + weights_name(fold), _saved(tensors))
        manifest = Manifest(
            format=BUNDLE_FORMAT,
            files=files,
            origin=dict(origin),
            validation=None if validation is None else dict(validation),
            previous_folds={str(fold): tuple(before) for fold, before in (previous.folds if previous else {}).items()},
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
    with suppress(Exception), zipfile.ZipFile(path) as archive:  # zipfile has many words for what is none
        return _MANIFEST in archive.namelist()
    return False


def open_bundle(path: Path) -> Bundle:
    """Open a bundle; weights are not read yet.

    Raises:
        InputError: it is none, of an unknown format, not what its manifest says, or holds what a bundle may not hold.
    """
    with open_archive(path, folders=_FOLDERS) as archive:
        if _MANIFEST not in archive.sizes:
            _require_known(path, archive.sizes)
            raise InputError(f"{path} is no bundle (no {_MANIFEST} in it)", next_step="give a bundle or a run's folder")
        manifest = _manifest(archive.read(_MANIFEST), path)
        _require_listed(archive, manifest)
        record = _record(archive, manifest)
        before = _record(archive, manifest, _PREVIOUS) if _PREVIOUS + _RUN in manifest.files else None
    _require_cascade(path, manifest, record, before)
    previous = None if before is None else Bundle(path, manifest, before, prefix=_PREVIOUS)
    return Bundle(path, manifest, record, previous)


def _parts(record: RunRecord) -> dict[str, bytes]:
    """A record as the files of a bundle."""
    described = to_plain(record)
    assert isinstance(described, dict)
    dataset = {key: value for key, value in described.pop("dataset").items() if key in _OF_DATASET}
    parts = {_PLANS: described.pop("plans"), _DATASET: dataset, _RUN: described}
    return {name: json_text(content).encode() for name, content in parts.items()}


def _saved(tensors: Mapping[str, Tensor]) -> bytes:
    from safetensors.torch import save

    return save({name: t.detach().cpu().clone().contiguous() for name, t in tensors.items()})


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> FileEntry:
    entry = zipfile.ZipInfo(name, _WRITTEN_AT)
    entry.external_attr = (stat.S_IFREG | 0o644) << 16
    archive.writestr(entry, content)
    return FileEntry(sha256=hashlib.sha256(content).hexdigest(), size=len(content))


def _manifest(content: bytes, path: Path) -> Manifest:
    source = f"{_MANIFEST} in {path}"
    written = parse_json(content, source, next_step=GET_AGAIN)
    version = written.get("format") if isinstance(written, dict) else None
    if type(version) is not int or version != BUNDLE_FORMAT:  # a newer one may say all else differently
        raise InputError(
            f"{path} has bundle format {version!r:.40}, this umamba knows {BUNDLE_FORMAT}", next_step="update umamba"
        )
    return validated(Manifest.model_validate, written, source=source, next_step=GET_AGAIN)


def _require_listed(archive: Archive, manifest: Manifest) -> None:
    """The files are those that the manifest lists, all of which a bundle may have, in their sizes."""
    path, there, listed = archive.path, archive.sizes.keys() - {_MANIFEST}, manifest.files.keys()
    _require_known(path, there | listed)
    if extra := sorted(there - listed):
        raise refused(path, f"what its manifest does not list: {', '.join(extra[:5])}")
    needed = {_PLANS, _DATASET, _RUN}
    if any(name.startswith(_PREVIOUS) for name in listed):
        needed.add(_PREVIOUS + _RUN)
    if missing := sorted((listed | needed) - there):
        raise InputError(f"{path} lacks {', '.join(missing[:5])}", next_step=GET_AGAIN)
    for name, entry in manifest.files.items():
        if archive.sizes[name] != entry.size:
            raise InputError(
                f"{name} in {path} has {archive.sizes[name]} bytes, its manifest says {entry.size}",
                next_step=GET_AGAIN,
            )
    if not _folds(listed, ""):
        raise InputError(f"{path} holds no weights", next_step=GET_AGAIN)


def _require_known(path: Path, names: Iterable[str]) -> None:
    if unknown := sorted(name for name in names if name not in _FILES and not _WEIGHTS.fullmatch(name)):
        raise refused(path, f"a file that a bundle does not have: {unknown[0]!r:.200}")


def _folds(names: Iterable[str], prefix: str) -> tuple[Fold, ...]:
    """The folds among the names of files of a stage: numbers by size, then `all`."""
    found = [match[2] for name in names if (match := _WEIGHTS.fullmatch(name)) and match[1] == prefix]
    return (*sorted(int(name) for name in found if name != "all"), *(name for name in found if name == "all"))


def _record(archive: Archive, manifest: Manifest, prefix: str = "") -> RunRecord:
    """The record of a stage; plans and dataset that the previous stage has none of its own of are the cascade's."""
    names = {name: prefix + name if prefix + name in manifest.files else name for name in (_PLANS, _DATASET, _RUN)}
    parts = {
        name: parse_json(
            _content(archive, place, manifest.files[place]), f"{place} in {archive.path}", next_step=GET_AGAIN
        )
        for name, place in names.items()
    }
    described, source = parts[_RUN], f"{names[_RUN]} in {archive.path}"
    if not isinstance(described, dict):
        raise InputError(f"{source} holds no record of a training", next_step=GET_AGAIN)
    whole = {**described, "plans": parts[_PLANS], "dataset": parts[_DATASET]}
    record = validated(RunRecord.model_validate, whole, source=str(archive.path), next_step=GET_AGAIN)
    require_known_format(record, source)
    axes, dimensions = record.mirror_axes, record.network_configuration.dimensions
    if len(set(axes)) < len(axes) or not set(axes) <= set(range(dimensions)):
        raise InputError(
            f"mirror_axes of {source} are {axes!s:.80}, those of {dimensions}D are 0 to {dimensions - 1}, each once",
            next_step=GET_AGAIN,
        )
    return record


def _require_cascade(path: Path, manifest: Manifest, record: RunRecord, previous: RunRecord | None) -> None:
    """A previous stage that is there is the one that the record means, and has the folds that the manifest names."""
    if previous is None:
        return
    needed, further = record.network_configuration.previous_stage, previous.network_configuration.previous_stage
    if previous.configuration != needed or further:
        raise InputError(
            f"{path} holds {previous.configuration}{f' after {further}' if further else ''} as the previous stage of "
            f"{record.configuration}, whose previous stage is {needed or 'none'}",
            next_step=GET_AGAIN,
        )
    folds, there = manifest.previous_folds, set(_folds(manifest.files, _PREVIOUS))
    if folds.keys() != {str(fold) for fold in _folds(manifest.files, "")} or not all(
        of and there.issuperset(of) for of in folds.values()
    ):
        raise InputError(
            f"{path} does not hold the folds of {needed} that its manifest names in previous_folds",
            next_step=GET_AGAIN,
        )


def _content(archive: Archive, name: str, entry: FileEntry) -> bytes:
    """The bytes of a file, which are those that the manifest means."""
    content = archive.read(name)
    if hashlib.sha256(content).hexdigest() != entry.sha256:
        raise InputError(
            f"{name} in {archive.path} is another file than its manifest says (SHA-256)", next_step=GET_AGAIN
        )
    return content
