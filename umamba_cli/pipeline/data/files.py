"""Writing files so that one that exists is complete, and reading JSON with errors that name the file."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pydantic

from umamba_cli.pipeline.errors import InputError, WorkError

Model = TypeVar("Model", bound=pydantic.BaseModel)

_ABANDONED_AFTER_S = 3600
_MOST_BYTES = 200  # of a name that becomes a temporary one: 255 are allowed, some of them are for what is added
_MOST_LEVELS = 100
_MOST_COMPLAINTS = 50
_HALF_CHARACTER = re.compile(r"\\u[dD][89a-fA-F]")  # of a pair, in JSON's escapes


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; on success it is renamed to `path`, on failure removed.

    The temporary name keeps `path`'s suffix (`.nii.gz`), from which image writers take the format. The content is
    flushed to disk before the rename, so that a power cut leaves the old file or the new one.

    Raises:
        WorkError: the folder cannot be written to, or the disk is full.
    """
    stem, ending = _split(path.name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{stem}.partial-", suffix=ending, dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise _cannot_write(path, error) from error
    temporary = Path(name)
    try:
        yield temporary
        _flush(temporary)
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def _split(name: str) -> tuple[str, str]:
    """A file's name as stem and suffix, the stem cut so far that a temporary name of both is short enough."""
    stem, dot, suffixes = name.partition(".")
    ending = dot + suffixes
    if len(os.fsencode(ending)) > _MOST_BYTES // 2:  # a long name with a point in it
        last = ".nii.gz" if name.lower().endswith(".nii.gz") else Path(name).suffix
        cut = len(name) - (len(last) if len(os.fsencode(last)) <= _MOST_BYTES // 2 else 0)
        stem, ending = name[:cut], name[cut:]
    while len(os.fsencode(stem + ending)) > _MOST_BYTES:  # character by character, none is cut in two
        stem = stem[:-1]
    return stem, ending


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files that `replacing` could not, because its process was killed.

    Only those that nobody has written to for an hour: others may be at work in the same folder.
    """
    if folder.is_dir():
        for path in folder.glob(".*.partial-*"):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > _ABANDONED_AFTER_S:
                    path.unlink()


def _flush(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _umask() -> int:
    # The mask can only be read by setting it. mkstemp makes files private; shared folders want the user's own mask.
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _cannot_write(path: Path, error: OSError) -> WorkError:
    return WorkError(
        f"cannot write {path}: {error.strerror or error}",
        next_step="make room or get write permission there, then run the same command again",
    )


def file_state(path: Path) -> tuple[int | None, int | None]:
    """Size in bytes and time of change in nanoseconds, which tell whether a file has changed; None where it is gone."""
    if not path.exists():
        return None, None
    state = path.stat()
    return state.st_size, state.st_mtime_ns


def link_or_copy(source: Path, target: Path) -> None:
    """Make `target` the same file as `source`: a hard link where the file system allows it, otherwise a copy.

    A copy keeps the time of change, and one that is there already is left alone. As a link shares its content, neither
    file may be written to in place afterwards; `replacing` does not.

    Raises:
        WorkError: the folder cannot be written to, or the disk is full.
    """
    source = source.resolve()
    state = source.stat()
    if file_state(target) == file_state(source):
        return
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=target.parent) as folder:
            link = Path(folder) / target.name
            link.hardlink_to(source)
            link.replace(target)
    except OSError:  # another disk, another owner, or a file system without links; if copying fails too, that is said
        with replacing(target) as temporary:
            shutil.copyfile(source, temporary)
            os.utime(temporary, ns=(state.st_atime_ns, state.st_mtime_ns))


def beginning_of(path: Path, count: int) -> bytes:
    """The first bytes of a file, white space before them left out; none where there is no file or it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(count).lstrip()
    except OSError:
        return b""


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: object) -> None:
    """Write a JSON file whole or not at all; numpy numbers and arrays, paths and models are converted.

    Not-a-number becomes null: JSON has no NaN, and other readers refuse it.
    """
    write_text(path, json_text(content))


def json_text(content: object) -> str:
    """What `write_json` writes."""
    return json.dumps(to_plain(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def to_plain(content: object) -> object:
    """The same content made of what JSON knows: dict, list, str, int, float, bool and None."""
    if isinstance(content, pydantic.BaseModel):
        return to_plain(content.model_dump(mode="json", by_alias=True, exclude_none=False))
    if isinstance(content, Mapping):
        return {str(key): to_plain(value) for key, value in content.items()}
    if isinstance(content, np.ndarray):
        return to_plain(content.tolist())
    if isinstance(content, list | tuple | set | frozenset):
        return [to_plain(value) for value in content]
    if isinstance(content, np.generic):
        return to_plain(content.item())
    if isinstance(content, float):
        return content if np.isfinite(content) else None
    if isinstance(content, Path):
        return str(content)
    return content


def read_json(path: Path, *, next_step: str = "give another path, or make the file") -> Any:
    """The content of a JSON file.

    Raises:
        InputError: the file is missing, unreadable or no JSON.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist", next_step=next_step) from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}", next_step=next_step) from error
    return parse_json(content, str(path))


def parse_json(content: bytes, source: str, *, next_step: str = "correct the file") -> Any:
    """What JSON in UTF-8 holds.

    Nesting is limited, and so are texts to what can be written again: what works on the content need not expect more.

    Raises:
        InputError: it is no JSON, or nested deeper than any file of ours; `source` names it.
    """
    try:
        text = content.decode("utf-8-sig")
        parsed = json.loads(text)
        _require_shallow(parsed)
        if _HALF_CHARACTER.search(text):
            json.dumps(parsed, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        problem = f"{error.msg} in line {error.lineno}, column {error.colno}"
        raise InputError(f"{source} is no valid JSON: {problem}", next_step=next_step) from error
    except UnicodeError as error:
        raise InputError(f"{source} cannot be read: {error}", next_step=next_step) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or lists in lists in lists ...
        raise InputError(f"{source} is no valid JSON: {error}", next_step=next_step) from error
    return parsed


def _require_shallow(content: object) -> None:
    level = [content]
    for _ in range(_MOST_LEVELS):
        groups = (item.values() if isinstance(item, dict) else item for item in level if isinstance(item, dict | list))
        level = [item for group in groups for item in group if isinstance(item, dict | list)]
        if not level:
            return
    raise ValueError(f"it is nested more than {_MOST_LEVELS} levels deep")


def read_model(path: Path, model: type[Model], *, next_step: str) -> Model:
    """A JSON file as a validated pydantic model.

    Raises:
        InputError: the file cannot be read, or a key does not hold what is allowed; such keys are listed.
    """
    return validated(model.model_validate, read_json(path, next_step=next_step), source=str(path))


def validated(
    build: Callable[[Any], Model], content: object, *, source: str, next_step: str = "correct the file"
) -> Model:
    """Build a pydantic model from `content`, its complaints turned into one InputError that names `source`."""
    try:
        return build(content)
    except pydantic.ValidationError as error:
        complaints = error.errors(include_url=False)
        details = [_complaint(item) for item in complaints[:_MOST_COMPLAINTS]]
        if more := len(complaints) - len(details):
            details.append(f"... and {more} more")
        raise InputError(
            f"{source}: {len(complaints)} value{'s' if len(complaints) > 1 else ''} not allowed",
            details=details,
            next_step=next_step,
        ) from error


def _complaint(item: Any) -> str:
    key = ".".join(str(part) for part in item["loc"]) or "(whole file)"
    key = key if key.isprintable() else ascii(key)  # what steers a terminal is not shown as it is
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "missing":
        return f"{key}: missing"
    return f"{key}: {message} (is {json.dumps(to_plain(item['input']), default=str)[:80]})"
