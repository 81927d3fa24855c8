"""The settings of one training, as one frozen value that is saved in run.json."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.planning.plans import Configuration, Plans


@dataclass(frozen=True)
class TrainingSettings:
    """What decides a training beside plans, model and data. Contradictions are refused when it is built.

    Source of the defaults: nnU-Net (Isensee et al. 2021, online methods, "fixed parameters").
    """

    epochs: int
    """Epochs; the learning rate decays to zero over them."""

    iterations: int
    """Optimiser steps an epoch."""

    batch_size: int
    """Patches a step."""

    validation_iterations: int
    """Batches of the held-back cases looked at after each epoch."""

    learning_rate: float = 0.01
    """At the start; it decays as (1 - epoch / epochs) ** 0.9."""

    momentum: float = 0.99
    """Nesterov momentum."""

    weight_decay: float = 3e-5
    """L2 penalty on all parameters."""

    gradient_clip: float = 12.0
    """The largest norm that the gradient may have."""

    foreground_share: float = 1 / 3
    """Share of the patches that are centred on a voxel of a random foreground class."""

    precision: str = "auto"
    """`auto`, `fp32`, `bf16` or `fp16`; what auto chose is noted in run.json and the log."""

    seed: int = 0
    """Of the initial weights, the order of cases, the patches and their augmentation."""

    def __post_init__(self) -> None:
        allowed = {
            "epochs": (self.epochs >= 1, "at least 1"),
            "iterations": (self.iterations >= 1, "at least 1"),
            "batch_size": (self.batch_size >= 1, "at least 1"),
            "validation_iterations": (self.validation_iterations >= 1, "at least 1"),
            "learning_rate": (self.learning_rate > 0, "greater than 0"),
            "gradient_clip": (self.gradient_clip > 0, "greater than 0"),
            "foreground_share": (0 <= self.foreground_share <= 1, "from 0 to 1"),
            "seed": (0 <= self.seed < 2**63, "from 0 to 2**63 - 1"),
        }
        for name, (is_allowed, range_text) in allowed.items():
            if not is_allowed:
                raise InputError(f"{name} is {getattr(self, name)}", next_step=f"give a number {range_text}")

    def to_json(self) -> dict[str, Any]:
        """A dictionary for a JSON file."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> TrainingSettings:
        """The settings that `to_json` wrote; keys of a newer version are left out."""
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in content.items() if name in known})


@dataclass(frozen=True)
class SettingsChosen:
    """The settings that a user asked for; None where nothing was said."""

    epochs: int | None = None
    iterations: int | None = None
    batch_size: int | None = None
    precision: str | None = None
    seed: int | None = None
    learning_rate: float | None = None
    momentum: float | None = None

    @property
    def given(self) -> dict[str, Any]:
        """Only what was asked for."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def settings_from_plans(plans: Plans, configuration: Configuration, chosen: SettingsChosen) -> TrainingSettings:
    """The settings of a new training: what the user asked for, otherwise what the plans say.

    Raises:
        InputError: a value is not allowed.
    """
    iterations = chosen.iterations or plans.training.iterations
    settings = TrainingSettings(
        epochs=plans.training.epochs,
        iterations=plans.training.iterations,
        batch_size=configuration.batch_size,
        validation_iterations=max(1, iterations // 5),  # nnU-Net: 50 for 250
    )
    return replace(settings, **chosen.given)


def require_same_settings(settings: TrainingSettings, chosen: SettingsChosen) -> None:
    """Make sure that a training can go on with what the user asked for.

    Raises:
        InputError: it was started with other settings.
    """
    saved = settings.to_json()
    other = [
        f"{name} is {saved[name]}, asked for is {value}" for name, value in chosen.given.items() if saved[name] != value
    ]
    if other:
        raise InputError(
            "the training in this folder was started with other settings",
            details=other,
            next_step="leave those options out to go on, start over with --restart, or keep both with --tag NAME",
        )
