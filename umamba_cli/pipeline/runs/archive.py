"""Reading a zip that somebody else made: what it says of its files is checked, and then held to.

Files are read into memory one at a time, never more of one than the zip says that it has; none is written to the disk.
"""

from __future__ import annotations

import re
import stat
import zipfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from umamba_cli.pipeline.errors import InputError

GET_AGAIN = "get the bundle again from where it came from"

_MOST_OF_JSON = 16 * 1024**2  # parsed it takes up to thirty times as much
_MOST_GROWTH = 100  # times; JSON shrinks to a tenth or less, weights hardly at all
_LOCAL_HEADER = 30  # bytes before a file's name and content


@dataclass(frozen=True)
class Archive:
    """An open zip whose names and sizes have been checked."""

    path: Path
    sizes: Mapping[str, int]
    """Bytes of each file."""

    _zip: zipfile.ZipFile

    def read(self, name: str) -> bytes:
        """The content of a file, as long as `sizes` says.

        Raises:
            InputError: it is damaged, or shorter or longer than that.
        """
        size = self.sizes[name]
        try:
            with self._zip.open(name) as file:
                content = file.read(size + 1)
        except Exception as error:  # zlib and others have words of their own for damaged content
            raise InputError(f"{name} in {self.path} is damaged: {error}", next_step=GET_AGAIN) from error
        if len(content) != size:
            raise InputError(
                f"{name} in {self.path} does not have the {size} bytes that it should have", next_step=GET_AGAIN
            )
        return content


@contextmanager
def open_archive(path: Path, *, folders: Collection[str]) -> Iterator[Archive]:
    """Open a zip of files that could all be unpacked safely.

    Args:
        path: the file.
        folders: names of folders (`weights/`) that the zip may have as entries of their own.

    Raises:
        InputError: it is none, or holds a path out of it, a link, two files of one name or in one place, an encrypted
            one, or one that grows beyond all measure.
    """
    with _open(path) as opened:
        files: dict[str, zipfile.ZipInfo] = {}
        for entry in opened.infolist():
            kind = stat.S_IFMT(entry.external_attr >> 16)
            if kind in (0, stat.S_IFDIR) and entry.orig_filename in folders:
                continue
            if problem := _problem(entry, kind):
                raise refused(path, f"{problem}: {entry.filename!r:.200}")
            if entry.filename in files:
                raise refused(path, f"two files of one name: {entry.filename!r:.200}")
            files[entry.filename] = entry
        _require_apart(path, opened)
        yield Archive(path, {name: entry.file_size for name, entry in files.items()}, opened)


def refused(path: Path, what: str) -> InputError:
    """The error for a file that nobody should use."""
    return InputError(
        f"{path} holds {what}", next_step="do not use it unless you know who made it; get it again from its source"
    )


def _open(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist", next_step="give a bundle or a run's folder") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}", next_step="check the path") from error
    except Exception as error:  # of a damaged directory zipfile complains in many words
        raise InputError(
            f"{path} is no bundle: {error}",
            next_step="give a bundle or a run's folder; `umamba import` makes bundles of nnU-Net's and U-Mamba's",
        ) from error


def _problem(entry: zipfile.ZipInfo, kind: int) -> str | None:
    """Why a file is refused; `kind` as `stat` has it, 0 where the zip does not say."""
    name = entry.orig_filename  # zipfile shortens names at a zero byte and turns backslashes
    if kind not in (0, stat.S_IFREG):
        return "a link or another special file"
    if name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", name):
        return "an absolute path"
    if ".." in re.split(r"[/\\]", name):
        return "a path that climbs out of it"
    if name != entry.filename or not name.isprintable() or name.endswith("/"):
        return "a file that a bundle does not have"
    if entry.flag_bits & 0x1:
        return "an encrypted file"
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others unpack without a limit
        return "a file compressed in another way than deflate"
    if entry.file_size > _MOST_GROWTH * entry.compress_size or (
        name.endswith(".json") and entry.file_size > _MOST_OF_JSON
    ):
        return f"a file that would grow to {entry.file_size} bytes"
    return None


def _require_apart(path: Path, opened: zipfile.ZipFile) -> None:
    """No two files share bytes of the zip: a small one could hold the same large file under many names."""
    entries = sorted(opened.infolist(), key=lambda entry: entry.header_offset)
    ends = [e.header_offset + _LOCAL_HEADER + len(e.orig_filename) + e.compress_size for e in entries]
    limits = [*(entry.header_offset for entry in entries), opened.start_dir][1:]
    for entry, end, limit in zip(entries, ends, limits, strict=True):
        if end > limit:
            raise refused(path, f"files that overlap: {entry.filename!r:.200}")
