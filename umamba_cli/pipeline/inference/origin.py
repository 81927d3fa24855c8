"""What a prediction was made from: told again when the same command, or another one, comes to its folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydantic

from umamba_cli.pipeline.data.files import file_state, parse_json, to_plain, write_json
from umamba_cli.pipeline.data.inputs import InputCase
from umamba_cli.pipeline.errors import UmambaError

_AT_ONCE = 1 << 20


def digest_of(content: Mapping[str, Any]) -> str:
    """The same for the same content, whatever the order of its keys."""
    text = json.dumps(to_plain(content), sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


class Origin(pydantic.BaseModel):
    """The model and the image that a prediction was made from; one JSON file a case."""

    model_config = pydantic.ConfigDict(frozen=True)

    made_by: str
    """A digest of what made it, see `digest_of`."""

    sources: tuple[str, ...]
    """Where the image lay: absolute paths."""

    series: tuple[str, ...]
    """That were asked for, of a DICOM folder."""

    state: str
    """Of names, sizes and times of change of its files: where it is the same, they need not be read."""

    content: str
    """Of the bytes of its files."""

    @property
    def where(self) -> str:
        """Where the image lay, in words."""
        place = self.sources[0] if self.sources else ""
        return f"{place}, series {', '.join(self.series)}" if self.series else place

    @classmethod
    def of(cls, case: InputCase, made_by: str) -> Origin:
        """Of an image that lies there now.

        Raises:
            OSError: its files cannot be read.
        """
        return cls(
            made_by=made_by,
            sources=_places(case),
            series=case.series or (),
            state=_state(case),
            content=_content(case),
        )

    def is_of(self, case: InputCase) -> bool:
        """Whether an image has the same bytes, wherever it lies."""
        if self.series != (case.series or ()):
            return False
        try:
            return self.state == _state(case) or self.content == _content(case)
        except OSError:  # reading the image will say why
            return False

    def is_from(self, case: InputCase) -> bool:
        """Whether an image lies in the same place, whatever its bytes are now."""
        return (self.sources, self.series) == (_places(case), case.series or ())


@dataclass(frozen=True)
class Origins:
    """The origins of the predictions in a folder, `CASE.json` each."""

    folder: Path

    def read(self, identifier: str) -> Origin | None:
        """The origin of a case's prediction; None where it is not finished, or its record is damaged."""
        try:
            content = (self.folder / f"{identifier}.json").read_bytes()
            return Origin.model_validate(parse_json(content, source=identifier))
        except (OSError, UmambaError, pydantic.ValidationError):
            return None

    def write(self, identifier: str, origin: Origin) -> None:
        """Note that a case's prediction is finished.

        Raises:
            WorkError: it cannot be written.
        """
        write_json(self.folder / f"{identifier}.json", origin)


def _places(case: InputCase) -> tuple[str, ...]:
    return tuple(str(source.absolute()) for source in case.sources)


def _state(case: InputCase) -> str:
    return digest_of({path.name: file_state(path) for path in case.files})


def _content(case: InputCase) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for path in case.files:
        digest.update(f"{path.name} {path.stat().st_size} ".encode(errors="surrogateescape"))
        with path.open("rb") as file:
            while block := file.read(_AT_ONCE):
                digest.update(block)
    return digest.hexdigest()
