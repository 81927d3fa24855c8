"""DICOM: which series a folder holds, and a series as a volume.

Files are read by SimpleITK (GDCM), which decompresses them and applies the rescale slope and intercept of each. Where
slices lie is checked here, because a missing one, or one of another series, would make a volume of wrong size in space.

Source: DICOM PS3.3, C.7.6.2 (Image Plane: position and orientation of a slice) and C.7.6.16 (frames of one file).
"""

from __future__ import annotations

import math
import mmap
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from umamba_cli.pipeline.data import itk, tiff
from umamba_cli.pipeline.data.dicom_kinds import no_image
from umamba_cli.pipeline.data.slices import step_mm
from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.geometry import FLAT_SPACING_MM, Grid, numbers_text, size_text

ENDINGS = (".dcm", ".dicom", ".ima")
"""Endings of DICOM files; many have none, or a number."""

_OTHERS = (
    *(ending for ending in itk.ENDINGS if ending != ".img"),  # some scanners name DICOM files so
    *tiff.ENDINGS,
    *(".png", ".bmp", ".jpg", ".jpeg", ".gz", ".npz", ".json", ".txt", ".csv", ".zip"),
)
"""Endings of files that are not opened to see whether they are DICOM."""

_INDEX = "dicomdir"
"""The name of an index of DICOM files, which holds none of their images."""

_MARK_AT, _MARK = 128, b"DICM"


@dataclass(frozen=True)
class Series:
    """One DICOM series: a volume, slice by slice or in one file, or a picture."""

    uid: str
    number: int | None
    description: str
    modality: str
    files: tuple[Path, ...]

    @property
    def title(self) -> str:
        """What messages call it: "3 'T1 axial' MR, 120 files"."""
        number = "" if self.number is None else str(self.number)
        described = f"'{self.description}'" if self.description else ""
        count = f"{len(self.files)} file{'' if len(self.files) == 1 else 's'}"
        return f"{' '.join(filter(None, (number, described, self.modality)))}, {count}".removeprefix(", ")


def is_dicom(path: Path) -> bool:
    """True for a file with DICOM's mark. False where it cannot be read."""
    try:
        return _start(path)[_MARK_AT:] == _MARK
    except OSError:
        return False


def _start(path: Path) -> bytes:
    """A file up to and with DICOM's mark."""
    with path.open("rb") as file:
        return file.read(_MARK_AT + len(_MARK))


def holds_dicom(folder: Path) -> bool:
    """True where a file of this folder, not below it, is DICOM; looks at no more of them than it must."""
    return any(is_dicom(path) for path in _candidates(folder))


def find_series(folder: Path) -> list[Series]:
    """The series of this folder, not of those below it, by number and then by UID; empty where there is no DICOM file.

    Files that hold no image, as structured reports, are left out.

    Raises:
        InputError: the folder cannot be read, a file is damaged (its series would be taken for whole without it: a
            slice that lacks at an end leaves no gap), or no file holds an image.
    """
    groups: dict[str, list[tuple[Path, Any]]] = {}
    no_images: Counter[str] = Counter()
    candidates = sorted(_candidates(folder))
    files = [path for path in candidates if is_dicom(path)]
    damaged = _without_mark(sorted(set(candidates) - set(files)), {_kind(path) for path in files})
    count = len(files) + len(damaged)
    for path in files:
        try:
            reader = _read_header(path)
        except (RuntimeError, ValueError) as error:
            if kind := no_image(path):
                no_images[kind] += 1
            else:
                damaged.append(f"{path.name!a}: {itk.reason(error)}")
            continue
        groups.setdefault(_text(reader, "0020|000e"), []).append((path, reader))
    if damaged:
        raise InputError(
            f"{len(damaged)} of {count} DICOM files in {folder} cannot be read",
            details=damaged,
            next_step="copy them again from their source, or remove them",
        )
    if files and not groups:
        found = ", ".join(f"{kind} ({count})" for kind, count in no_images.items())
        raise InputError(
            f"{folder} holds {len(files)} DICOM files and no image: {found}",
            next_step="give the folder of the images that they belong to",
        )
    series = [_series(uid, members) for uid, members in groups.items()]
    return sorted(series, key=lambda one: (one.number is None, one.number or 0, one.uid))


def series_of_file(path: Path) -> Series:
    """One file as a series of its own: a volume of several frames, a slice or a picture.

    Raises:
        InputError: it holds no image, or cannot be read.
    """
    reader = _header_or_refusal(path, path.name)
    return _series(_text(reader, "0020|000e"), [(path, reader)])


def read_series(series: Series) -> tuple[NDArray[Any], Grid]:
    """Voxels (channels, z, y, x) of a series in the files' own type, one channel or the three of colours, and the grid.

    Slices are put in order along their normal. A picture that says nothing of its place, as an X-ray, is a 2D file.
    Values are as stored times the slope plus the intercept of each file.

    Raises:
        InputError: a file holds no image or is damaged; slices are missing, differ in size, spacing or orientation, are
            at one position or shifted against each other.
    """
    readers = [_header_or_refusal(path, f"{path.name} of series {series.title}") for path in series.files]
    first, names = readers[0], [path.name for path in series.files]
    if "MOSAIC" in _text(first, "0008|0008"):
        raise _refused(series, f"{names[0]} is a mosaic of slices", "convert it to NIfTI with a tool as dcm2niix")
    if len(readers) == 1:
        return _of_one_file(series, first)
    _check_alike(series, readers)
    positions = np.array([reader.GetOrigin() for reader in readers])
    normal = _normal(first)
    order = np.argsort((positions - positions[0]) @ normal, kind="stable")
    step = step_mm(_of(series), [names[index] for index in order], positions[order], normal)
    voxels = _stacked(series, [(series.files[index], readers[index]) for index in order])
    in_plane = first.GetSpacing()[:2]
    return voxels, _grid(voxels, (step, in_plane[1], in_plane[0]), positions[order[0]], first)


def _candidates(folder: Path) -> list[Path]:
    """Files that may be DICOM, by their names; links that lead nowhere too."""
    try:
        files = [path for path in folder.iterdir() if not path.name.startswith(".") and path.name.lower() != _INDEX]
        return [path for path in files if not path.name.lower().endswith(_OTHERS) and _is_file_or_lost(path)]
    except OSError as error:
        raise InputError(f"{folder} cannot be read: {error.strerror}", next_step="check the path") from error


def _is_file_or_lost(path: Path) -> bool:
    return path.is_file() or (path.is_symlink() and not path.exists())


def _kind(path: Path) -> str:
    """The ending of a file's name, "" where it begins with a digit: names are often UIDs."""
    ending = path.suffix.lower()
    return ending if ending[1:2].isalpha() else ""


def _without_mark(paths: Sequence[Path], endings: Collection[str]) -> list[str]:
    """What is wrong with files that have no mark and should; nothing where no file has it.

    A file should have it that is named as DICOM files are, and one that has an ending of those there and is empty, all
    zeros, or so short that the mark does not fit in, unless it is text, as a file VERSION.

    Args:
        paths: the files without it.
        endings: of those that have it, see `_kind`.
    """
    found = []
    for path in paths if endings else ():
        try:
            start = _start(path)
        except OSError as error:
            found.append(f"{path.name!a}: it cannot be opened: {error.strerror}")
            continue
        if path.name.lower().endswith(ENDINGS) or (_kind(path) in endings and _is_beginning(start)):
            found.append(f"{path.name!a}: {'it is empty' if not start else 'it is truncated, or no DICOM file'}")
    return found


def _is_beginning(start: bytes) -> bool:
    """Whether the start of a file without the mark may be all that is left of a DICOM file."""
    return not start.strip(b"\0") or (len(start) < _MARK_AT + len(_MARK) and not _is_text(start))


def _is_text(content: bytes) -> bool:
    try:
        return "".join(content.decode().split()).isprintable()
    except UnicodeDecodeError:
        return False


def _read_header(path: Path) -> Any:
    return itk.read_header(path, file_type="GDCMImageIO")


def _header_or_refusal(path: Path, name: str) -> Any:
    try:
        return _read_header(path)
    except (RuntimeError, ValueError) as error:
        if kind := no_image(path):
            raise InputError(
                f"{name} holds no image: it is a DICOM {kind}",
                next_step="give the images that it belongs to",
            ) from error
        raise _damaged(name, error) from error


def _damaged(name: str, error: Exception) -> InputError:
    return InputError(
        f"{name} cannot be read as an image: {itk.reason(error)}",
        next_step="copy the file again from its source, or convert it",
    )


def _refused(series: Series, problem: str, next_step: str) -> InputError:
    return InputError(f"{_of(series)}: {problem}", next_step=next_step)


def _of(series: Series) -> str:
    return f"DICOM series {series.title}"


def _text(reader: Any, key: str) -> str:
    """A value of the header; empty where there is none. Text that is not UTF-8 is taken for Latin-1."""
    if not reader.HasMetaDataKey(key):
        return ""
    content = reader.GetMetaData(key).encode("utf-8", "surrogateescape")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    return " ".join(re.sub(r"[\x00-\x1f\x7f]", " ", text).split())


def _series(uid: str, members: Sequence[tuple[Path, Any]]) -> Series:
    reader = members[0][1]
    number = _text(reader, "0020|0011")
    return Series(
        uid=uid,
        number=int(number) if re.fullmatch(r"[+-]?[0-9]+", number) else None,
        description=_text(reader, "0008|103e"),
        modality=_text(reader, "0008|0060"),
        files=tuple(path for path, _ in members),
    )


def _check_alike(series: Series, readers: Sequence[Any]) -> None:
    """Refuse files that are not slices of one volume."""
    first, first_name = readers[0], series.files[0].name
    keep = "keep the files of one image in the folder, scouts and the like apart"
    for path, reader in zip(series.files, readers, strict=True):
        name = path.name
        if reader.GetSize()[2] > 1:
            raise _refused(series, f"{name} is a volume by itself, beside other files", "give each file by itself")
        if not _has_place(path, reader):
            problem = f"{name} does not say where its slice lies (ImagePositionPatient, ImageOrientationPatient)"
            raise _refused(series, problem, "give each file by itself, or convert the series to NIfTI")
        for what, own, others in (
            ("size", reader.GetSize()[1::-1], first.GetSize()[1::-1]),
            ("number of colours", (reader.GetNumberOfComponents(),), (first.GetNumberOfComponents(),)),
        ):
            if own != others:
                problem = f"{what} is {size_text(own)} in {name} and {size_text(others)} in {first_name}"
                raise _refused(series, problem, keep)
        for what, own, others, relative in (
            ("spacing (x, y, mm)", reader.GetSpacing()[:2], first.GetSpacing()[:2], 1e-3),
            ("orientation", reader.GetDirection(), first.GetDirection(), 0.0),
        ):
            if not np.allclose(own, others, rtol=relative, atol=0.0 if relative else 1e-3):
                problem = f"{what} is {numbers_text(own)} in {name} and {numbers_text(others)} in {first_name}"
                raise _refused(series, problem, keep)


def _normal(reader: Any) -> NDArray[np.float64]:
    normal: NDArray[np.float64] = np.array(reader.GetDirection()).reshape(3, 3)[:, 2]
    return normal


def _has_place(path: Path, reader: Any) -> bool:
    if _text(reader, "0020|0032") and _text(reader, "0020|0037"):
        return True
    return len(_frame_positions(path)) == 1  # which SimpleITK reads as well


def _stacked(series: Series, members: Sequence[tuple[Path, Any]]) -> NDArray[Any]:
    """The voxels (channels, z, y, x) of slices, of a type that holds those of all."""
    voxels: NDArray[Any] | None = None
    for index, (path, reader) in enumerate(members):
        plane = _voxels(series, path, reader)[:, 0]
        if voxels is None:
            voxels = np.empty((len(plane), len(members), *plane.shape[1:]), dtype=plane.dtype)
        kind = np.result_type(voxels, plane)  # each slice has a slope of its own, and so perhaps another type
        voxels = voxels.astype(kind, copy=False)
        voxels[:, index] = plane
    assert voxels is not None
    return voxels


def _voxels(series: Series, path: Path, reader: Any) -> NDArray[Any]:
    try:
        array = itk.read_voxels(reader)
    except (RuntimeError, ValueError) as error:
        raise _damaged(f"{path.name} of series {series.title}", error) from error
    components = reader.GetNumberOfComponents()
    return np.moveaxis(array.reshape(*reader.GetSize()[::-1], components), -1, 0)


def _of_one_file(series: Series, reader: Any) -> tuple[NDArray[Any], Grid]:
    path = series.files[0]
    spacing, origin = reader.GetSpacing(), reader.GetOrigin()
    frames = reader.GetSize()[2]
    if frames == 1 and not _has_place(path, reader):
        voxels = _voxels(series, path, reader)
        flat = (FLAT_SPACING_MM * max(spacing[:2]), spacing[1], spacing[0])
        return voxels, Grid(voxels.shape[1:], flat, (0.0, 0.0), (1.0, 0.0, 0.0, 1.0))
    step, normal = spacing[2], _normal(reader)
    positions = _frame_positions(path) if frames > 1 else np.empty((0, 3))
    if frames == 1:
        step = _thickness(reader, step)
    elif len(positions) == frames:
        step = step_mm(_of(series), [f"frame {index + 1}" for index in range(frames)], positions, normal)
    voxels = _voxels(series, path, reader)
    if step < 0:  # the frames run against the normal, which is the third direction
        last = np.array(origin) + (frames - 1) * step * normal
        voxels, origin, step = voxels[:, ::-1], last, -step
    return voxels, _grid(voxels, (step, spacing[1], spacing[0]), origin, reader)


def _thickness(reader: Any, unknown: float) -> float:
    """Of a lone slice: how thick it is, else what is said to lie between slices."""
    for key in ("0018|0050", "0018|0088"):
        try:
            value = float(_text(reader, key))
        except ValueError:
            continue
        if math.isfinite(value) and value > 0:
            return value
    return unknown


def _frame_positions(path: Path) -> NDArray[np.float64]:
    """Positions (frames, 3) in x, y, z that a file says of its frames, in their order; too few where it does not.

    SimpleITK tells those of the first frame alone, and takes 1 mm for every spacing where gaps differ.
    """
    number = rb"[-+.0-9eE ]+"
    element = re.compile(rb"\x20\x00\x32\x00(?:DS..|..\x00\x00)(%b\\%b\\%b)" % (number, number, number), re.DOTALL)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        found = [match.group(1).split(b"\\") for match in element.finditer(content)]
    try:
        return np.array([[float(value) for value in position] for position in found]).reshape(-1, 3)
    except ValueError:
        return np.empty((0, 3))


def _grid(voxels: NDArray[Any], spacing_mm: tuple[float, ...], origin: Sequence[float], reader: Any) -> Grid:
    direction = np.array(reader.GetDirection()) + 0.0  # no -0
    place = tuple(float(value) for value in origin)
    return Grid(voxels.shape[1:], tuple(map(float, spacing_mm)), place, tuple(direction.tolist()))
