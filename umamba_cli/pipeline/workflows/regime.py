"""One regime for all trainings of a comparison: they may differ in model, fold and seed alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

from umamba_cli.pipeline.data.splits import Fold
from umamba_cli.pipeline.data.workspace import Run
from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.runs.record import RunRecord, read_record
from umamba_cli.pipeline.training.settings import SettingsChosen, TrainingSettings, require_same_settings


@dataclass(frozen=True)
class Place:
    """One training of the comparison, there or still to come."""

    model: str
    seed: int
    fold: int
    run: Run

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"{self.model}, fold {self.fold}, seed {self.seed}"


def shared_settings(chosen: SettingsChosen, places: Sequence[Place], folds: Mapping[int, Fold]) -> SettingsChosen:
    """The settings of all trainings but for the seed: those asked for, otherwise those of the trainings that are there.

    Args:
        chosen: what was asked for.
        places: all trainings, there or still to come.
        folds: of splits.json, by number.

    Raises:
        InputError: the trainings that are there differ in more than model, seed and fold, or from what is asked for.
    """
    there = {place: read_record(place.run) for place in places if place.run.configuration_file.is_file()}
    if not there:
        return chosen
    first, *_ = there
    problems = []
    seeds: dict[tuple[str, int, int], Place] = {}
    for place, record in there.items():
        if (record.variant.title, str(record.fold)) != (place.model, str(place.fold)):
            problems.append(f"{place.name}: run.json is that of {record.variant.title}, fold {record.fold}")
        problems += [f"{place.name}: {text}" for text in _differences(there[first], record, folds[place.fold])]
        seed = TrainingSettings.from_json(record.settings).seed
        if (other := seeds.setdefault((place.model, place.fold, seed), place)) is not place:
            problems.append(f"{place.name}: is the same training as {other.name}, both have the seed {seed}")
    if problems:
        raise InputError(
            f"the trainings differ in more than model, fold and seed from {first.name}",
            details=problems,
            next_step="train those again with `umamba train ... --restart`, or compare in another workspace",
        )
    saved = TrainingSettings.from_json(there[first].settings)
    try:
        require_same_settings(saved, chosen, str(first.run.folder))
    except InputError as error:
        next_step = "leave those options out, or compare in another workspace" if error.details else error.next_step
        raise InputError(error.problem, details=error.details, next_step=next_step) from error
    taken = {
        name: getattr(saved, name)
        for name in (each.name for each in fields(SettingsChosen))
        if name != "init_from" or saved.init_from
    }
    return replace(SettingsChosen(**taken), **chosen.given)


def _differences(first: RunRecord, other: RunRecord, fold: Fold) -> list[str]:
    """What should be the same in two trainings, and is not."""
    settings = [TrainingSettings.from_json(record.settings).to_json() for record in (first, other)]
    found = [
        f"{name} is {settings[1][name]}, not {settings[0][name]}"
        for name in settings[0]
        if name not in ("seed", "checkpointing") and settings[0][name] != settings[1][name]
    ]
    if first.plans != other.plans:
        found.append("other plans")
    if set(other.val_cases) != set(fold.val):
        found.append("other cases held back than splits.json says now")
    return found
