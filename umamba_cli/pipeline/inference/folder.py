"""The folder that predictions are written to: names, formats, and what is finished in it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

import umamba_cli
from umamba_cli.pipeline.data.dataset import BACKGROUND, DatasetDescription
from umamba_cli.pipeline.data.files import read_json, remove_leftovers, replacing, to_plain, write_json
from umamba_cli.pipeline.data.images import float_ending, label_ending, write_label_map, write_volume
from umamba_cli.pipeline.data.inputs import InputCase
from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.geometry import Grid
from umamba_cli.pipeline.inference.export import LABELS_ALONE, Exported, Wanted, highest_label
from umamba_cli.pipeline.inference.origin import Origin, Origins, digest_of

FOLDER_FORMAT = 1
_LONGEST_NAME = 255  # bytes; of most file systems
_MOST_NAMED = 10


@dataclass(frozen=True)
class PredictionFolder:
    """`CASE.nii.gz` (or what the image's format is), `CASE.npz`, `uncertainty/CASE.nii.gz`, `prediction.json`.

    In `.predicted` lies what each prediction was made from; it is written last, so that one that has it is finished.
    """

    path: Path
    dataset: DatasetDescription
    """Of the model; says what label maps hold."""

    described: Mapping[str, Any]
    """What makes the predictions, for JSON; see `Predictor.described`."""

    wanted: Wanted = LABELS_ALONE

    @property
    def record(self) -> Path:
        """The file that says what made the predictions."""
        return self.path / "prediction.json"

    def label_map(self, case: InputCase) -> Path:
        """Where a case's label map lies, in the format of its image."""
        return self.path / f"{case.identifier}{label_ending(case.ending, highest_label(self.dataset))}"

    def probabilities(self, case: InputCase) -> Path:
        """Where a case's probabilities lie: `probabilities` (outputs, z, y, x) in a compressed npz file."""
        return self.path / f"{case.identifier}.npz"

    def uncertainty(self, case: InputCase) -> Path:
        """Where a case's map of uncertainty lies: not beside the label maps, for one of which it could be taken."""
        return self.path / "uncertainty" / f"{case.identifier}{float_ending(case.ending)}"

    def is_done(self, case: InputCase) -> bool:
        """Whether all that is wanted of a case is there, made by this model from this image.

        A label map that was there before any prediction is nobody's business: it is kept, as if it were one.
        """
        if self._is_kept(self.label_map(case)):
            return True
        files = [self.label_map(case)]
        files += [self.probabilities(case)] if self.wanted.probabilities else []
        files += [self.uncertainty(case)] if self.wanted.uncertainty else []
        if not all(path.is_file() for path in files):
            return False
        origin = self._origins.read(case.identifier)
        return origin is not None and origin.made_by == self._digest and origin.is_of(case)

    def unusable(self, case: InputCase) -> str | None:
        """Why nothing can be written for a case; None where something can."""
        for path in (self.label_map(case), self.probabilities(case), self.uncertainty(case)):
            if len(os.fsencode(path.name)) > _LONGEST_NAME:
                return f"its name is too long for a file: {path.name}"
            if path.is_dir():
                return f"{path} is a folder"
        return None

    def origin(self, case: InputCase) -> Origin:
        """What a prediction made now is made from.

        Raises:
            OSError: the image's files cannot be read.
        """
        return Origin.of(case, self._digest)

    def write(self, case: InputCase, found: Exported, grid: Grid, origin: Origin) -> None:
        """Write all that was found in a case, then the label map, then what it was made from.

        Raises:
            WorkError: a file cannot be written.
        """
        self.claim()
        if found.probabilities is not None:
            with replacing(self.probabilities(case)) as temporary:
                np.savez_compressed(temporary, probabilities=found.probabilities)
        if found.uncertainty is not None:
            write_volume(self.uncertainty(case), found.uncertainty, grid)
        names = {0: BACKGROUND, **self.dataset.foreground}
        write_label_map(self.label_map(case), found.labels, grid, names=names)
        self._origins.write(case.identifier, origin)

    def begin(self, cases: Sequence[InputCase], *, overwrite: bool) -> list[str]:
        """Make sure that predictions of one model alone will lie here, and clear away what a killed process left.

        Args:
            cases: to be predicted.
            overwrite: predictions of another model or of other images may be replaced.

        Returns:
            Label maps that are no predictions and are kept.

        Raises:
            InputError: the folder cannot be written to, or holds predictions of another model, of the same one with
                other options, or of other images of the same name.
        """
        self._require_writable()
        remove_leftovers(self.path)
        remove_leftovers(self.path / "uncertainty")
        if overwrite:
            return []
        again = "choose another output folder with -o, or replace them with --overwrite"
        content = self._content()
        if content is not None and content.get("made_by") != to_plain(self.described):
            raise InputError(
                f"{self.path} holds predictions of another model, or with other options",
                details=_differences(content.get("made_by"), to_plain(self.described)),
                next_step=again,
            )
        others = [(case, origin) for case in cases if (origin := self._origin_elsewhere(case))]
        if others:
            raise InputError(
                f"{self.path} holds predictions of other images of the same name, {len(others)} in all",
                details=[f"{case.identifier}: made from {origin.where}" for case, origin in others[:_MOST_NAMED]],
                next_step=again,
            )
        return [path.name for path in map(self.label_map, cases) if self._is_kept(path)]

    def claim(self) -> None:
        """Note what makes the predictions, and which files were there before.

        Raises:
            WorkError: it cannot be written.
        """
        content = self._content()
        if content is not None and content.get("made_by") == to_plain(self.described):
            return
        kept = sorted(path.name for path in self.path.iterdir() if path.is_file()) if content is None else self._kept()
        written = {"format": FOLDER_FORMAT, "made_by": self.described, "umamba": umamba_cli.__version__}
        write_json(self.record, {**written, "kept": sorted(kept)})

    @cached_property
    def _digest(self) -> str:
        return digest_of(self.described)

    @property
    def _origins(self) -> Origins:
        return Origins(self.path / ".predicted")

    def _origin_elsewhere(self, case: InputCase) -> Origin | None:
        """The origin of a prediction that another image of the same name has here."""
        if not self.label_map(case).is_file():
            return None
        origin = self._origins.read(case.identifier)
        return None if origin is None or origin.is_from(case) or origin.is_of(case) else origin

    def _is_kept(self, path: Path) -> bool:
        """Whether a file was here before any prediction."""
        return path.is_file() and (not self.record.is_file() or path.name in self._kept())

    def _kept(self) -> set[str]:
        content = self._content()
        kept = content.get("kept") if content is not None else None
        return {str(name) for name in kept} if isinstance(kept, list) else set()

    def _content(self) -> dict[str, Any] | None:
        """What the record says; nothing of a damaged one."""
        if not self.record.is_file():
            return None
        try:
            content = read_json(self.record)
        except InputError:
            return {}
        return content if isinstance(content, dict) else {}

    def _require_writable(self) -> None:
        try:
            os.fspath(self.path).encode()
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except (OSError, UnicodeEncodeError) as error:
            reason = "its name is not in UTF-8" if isinstance(error, ValueError) else error.strerror or error
            raise InputError(
                f"{ascii(self.path) if isinstance(error, ValueError) else self.path} cannot be written to: {reason}",
                next_step="choose another output folder with -o",
            ) from error


def _differences(before: object, now: object) -> list[str]:
    """What differs, a line for each key."""
    if not isinstance(before, dict) or not isinstance(now, dict):
        return []
    if before.keys() != now.keys():  # an ensemble's
        return ["made by several models together" if "models" in before else "made by one model alone"]
    folds, others = (list(each.get("weights") or ()) for each in (before, now))
    if folds != others:
        return [f"folds: {', '.join(folds)} there, now {', '.join(others)}; choose with -f"]
    if "weights" in now and before["weights"] != now["weights"]:
        return ["the same folds with other weights"]
    return [f"{key}: {before.get(key)} there, now {now.get(key)}" for key in now if before.get(key) != now.get(key)]
