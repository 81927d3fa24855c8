"""The settings of one training, as one frozen value that is saved in run.json."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.planning.plans import Configuration, Plans

Optimizer = Literal["sgd", "adamw"]
Augmentation = Literal["auto", "workers", "batched"]

ADAMW: Mapping[str, float] = {"learning_rate": 1e-3, "weight_decay": 1e-2}
"""What `adamw` begins with in place of the defaults, which suit `sgd`. Source: Loshchilov and Hutter, "Decoupled Weight
Decay Regularization", 2019, and torch's own defaults."""


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

    optimizer: Optimizer = "sgd"
    """`sgd` (with Nesterov momentum) or `adamw`."""

    learning_rate: float = 0.01
    """At its highest; after the warm-up it decays as (1 - epoch / epochs) ** 0.9."""

    warmup: int = 0
    """Epochs over which the learning rate rises from near zero."""

    momentum: float = 0.99
    """Nesterov momentum of `sgd`."""

    weight_decay: float = 3e-5
    """`sgd`: L2 penalty on all parameters; `adamw`: the share of the weights that a step at rate 1 takes away."""

    gradient_clip: float = 12.0
    """The largest norm that the gradient may have."""

    foreground_share: float = 1 / 3
    """Share of the patches that are centred on a voxel of a random foreground class."""

    precision: str = "auto"
    """`auto`, `fp32`, `bf16` or `fp16`; what auto chose is noted in run.json and the log."""

    augmentation: Augmentation = "auto"
    """`workers` (batchgenerators in worker processes), `batched` (torch, on the training's device) or `auto`; a
    training that has begun keeps what `auto` chose."""

    checkpointing: bool = False
    """Compute the feature maps anew for the gradients in place of keeping them: less memory, more time."""

    init_from: str = ""
    """The model whose weights the training begins with, where it is one."""

    seed: int = 0
    """Of the initial weights, the order of cases, the patches and their augmentation."""

    def __post_init__(self) -> None:
        allowed = {
            "epochs": (self.epochs >= 1, "at least 1"),
            "iterations": (self.iterations >= 1, "at least 1"),
            "batch_size": (self.batch_size >= 1, "at least 1"),
            "validation_iterations": (self.validation_iterations >= 1, "at least 1"),
            "learning_rate": (0 < self.learning_rate < math.inf, "greater than 0"),
            "warmup": (0 <= self.warmup < self.epochs, f"from 0 to less than the {self.epochs} epochs"),
            "momentum": (0 <= self.momentum < 1, "from 0 to less than 1"),
            "weight_decay": (0 <= self.weight_decay < math.inf, "of at least 0"),
            "gradient_clip": (self.gradient_clip > 0, "greater than 0"),
            "foreground_share": (0 <= self.foreground_share <= 1, "from 0 to 1"),
            "seed": (0 <= self.seed < 2**63, "from 0 to 2**63 - 1"),
        }
        for name, (is_allowed, range_text) in allowed.items():
            if not is_allowed:
                raise InputError(f"{name} is {getattr(self, name)}", next_step=f"give a number {range_text}")
        for name, choices in (("optimizer", get_args(Optimizer)), ("augmentation", get_args(Augmentation))):
            if getattr(self, name) not in choices:
                raise InputError(
                    f"there is no {name} {getattr(self, name)!r}", next_step=f"choose {', '.join(choices)}"
                )

    def to_json(self) -> dict[str, Any]:
        """A dictionary for a JSON file."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> TrainingSettings:
        """The settings that `to_json` wrote; keys of a newer version are left out.

        Raises:
            InputError: a value is none that is allowed.
        """
        known = {field.name for field in fields(cls)}
        try:
            return cls(**{name: value for name, value in content.items() if name in known})
        except TypeError as error:  # a value of another type than it must have
            raise InputError(f"the settings are damaged: {error}", next_step="start the training over") from error


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
    optimizer: str | None = None
    warmup: int | None = None
    weight_decay: float | None = None
    augmentation: str | None = None
    checkpointing: bool | None = None
    init_from: str | None = None

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
    of_optimizer = ADAMW if chosen.optimizer == "adamw" else {}
    return replace(settings, **{**of_optimizer, **chosen.given})


def require_same_settings(settings: TrainingSettings, chosen: SettingsChosen, source: str) -> None:
    """Make sure that a training can go on with what the user asked for; `source` is its folder.

    Raises:
        InputError: a value is not allowed, or the training was started with other settings.
    """
    replace(settings, **chosen.given)  # a value that is never allowed is said to be that
    saved = settings.to_json()
    other = [
        f"{name} is {'not given' if saved[name] == '' else saved[name]}, asked for is {value}"
        for name, value in chosen.given.items()
        # What `auto` chose is kept, and checkpointing changes no result.
        if saved[name] != value and name != "checkpointing" and (name, value) != ("augmentation", "auto")
    ]
    if other:
        raise InputError(
            f"the training in {source} was started with other settings",
            details=other,
            next_step="leave those options out to go on, start over with --restart, or keep both with --tag NAME",
        )
