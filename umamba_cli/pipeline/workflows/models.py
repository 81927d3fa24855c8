"""What each model would need to train on a workspace's configuration: parameters and memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from umamba_cli.pipeline.data.workspace import Workspace
from umamba_cli.pipeline.devices import Compute, choose_compute, free_device_bytes
from umamba_cli.pipeline.errors import UmambaError, WorkError
from umamba_cli.pipeline.geometry import Shape
from umamba_cli.pipeline.networks.costs import multiply_adds
from umamba_cli.pipeline.networks.registry import (
    Model,
    NetworkPlan,
    available_models,
    describe,
    find_model,
    find_variant,
)
from umamba_cli.pipeline.networks.scan import choose_backend
from umamba_cli.pipeline.networks.unet import count_parameters
from umamba_cli.pipeline.planning.plans import read_plans
from umamba_cli.pipeline.progress import OnProgress, Progress, ignore_progress
from umamba_cli.pipeline.runs.network import network_plan
from umamba_cli.pipeline.training.losses import Loss, loss_for
from umamba_cli.pipeline.training.memory import TrainingMemory, training_memory
from umamba_cli.pipeline.training.settings import SettingsChosen, TrainingSettings, settings_from_plans


@dataclass(frozen=True)
class ModelNeeds:
    """What the training of one model needs."""

    name: str
    description: str

    parameters: int | None
    """Trainable numbers; None where the network cannot be built."""

    memory: TrainingMemory | None
    """None where it cannot be counted."""

    multiply_adds: int | None = None
    """Of predicting one patch, see `networks.costs`; None where they cannot be counted."""

    problem: str = ""
    """Why something is None."""

    needs: str = ""
    """What must be installed beside umamba itself, such as `umamba[monai]`; "" for nothing."""

    is_installed: bool = True
    """Whether that is there."""

    has_mixer: bool = False
    """Whether `--mixer` and `--directions` choose its layers."""

    can_checkpoint: bool = False
    """Whether `--checkpointing` makes its memory less."""

    def to_json(self) -> dict[str, Any]:
        """A dictionary for a JSON file."""
        return {**vars(self), "memory": self.memory.to_json() if self.memory else None}


@dataclass(frozen=True)
class ModelSurvey:
    """All models, for one configuration of a workspace."""

    configuration: str
    patch_size: Shape
    batch_size: int
    compute: Compute
    free_bytes: int
    """Of the device's memory."""

    models: tuple[ModelNeeds, ...]

    def to_json(self) -> dict[str, Any]:
        """A dictionary for a JSON file."""
        return {
            "configuration": self.configuration,
            "patch_size": self.patch_size,
            "batch_size": self.batch_size,
            "device": self.compute.device_name,
            "precision": self.compute.precision,
            "precision_reason": self.compute.reason,
            "free_bytes": self.free_bytes,
            "models": [{**model.to_json(), "fits": self.fits(model)} for model in self.models],
        }

    def fits(self, model: ModelNeeds) -> bool | None:
        """Whether a step's memory is free; None where it is not known."""
        return model.memory.peak_bytes <= self.free_bytes if model.memory else None


def survey_models(
    workspace: Workspace,
    configuration: str,
    *,
    models: Sequence[str] = (),
    batch_size: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    on_progress: OnProgress = ignore_progress,
) -> ModelSurvey:
    """Count what every registered model needs to train on a configuration; nothing is written.

    Args:
        workspace: has the plans and the dataset.
        configuration: of the plans.
        models: names, or variants such as `umamba-bot+s4d`; none: all that are registered.
        batch_size: patches a step; None takes the plans'.
        device: see `choose_compute`.
        precision: see `choose_compute`.
        on_progress: is told of each model.

    Raises:
        InputError: the workspace is not planned, or an option is wrong. A model that fails has that in its own entry.
    """
    plans = read_plans(workspace.plans_file)
    chosen = plans.configuration(configuration)
    description = workspace.dataset().description
    plan = network_plan(chosen, description)
    settings = settings_from_plans(plans, chosen, SettingsChosen(batch_size=batch_size))
    compute = choose_compute(device, precision)
    choose_backend(compute.device.type)  # a wrong UMAMBA_SCAN is refused here, not in a row
    variants = [find_variant(name) for name in models or sorted(available_models())]
    loss = loss_for(description, batch_dice=chosen.batch_dice)
    needs: list[ModelNeeds] = []
    for variant in variants:
        on_progress(Progress("count", len(needs), len(variants)))
        of_variant = replace(plan, mixer=variant.mixer, scan_directions=variant.scan_directions)
        counted = model_needs(find_model(variant.model), of_variant, settings, compute, loss=loss)
        needs.append(replace(counted, name=variant.title, description=describe(variant)))
    on_progress(Progress("count", len(needs), len(variants), step=f"{len(needs)} models"))
    return ModelSurvey(
        configuration=configuration,
        patch_size=chosen.patch_size,
        batch_size=settings.batch_size,
        compute=compute,
        free_bytes=free_device_bytes(compute.device),
        models=tuple(needs),
    )


def model_needs(
    model: Model, plan: NetworkPlan, settings: TrainingSettings, compute: Compute, *, loss: Loss
) -> ModelNeeds:
    """Build a model's network and count; what fails is noted, not raised."""

    def count(build: Callable[[], nn.Module]) -> ModelNeeds:
        found = ModelNeeds(
            model.name,
            model.description,
            None,
            None,
            needs=f"umamba[{model.extra}]" if model.extra else "",
            is_installed=not model.missing,
            has_mixer=model.has_mixer,
        )
        try:
            network = build()
            found = replace(found, parameters=count_parameters(network), multiply_adds=_multiply_adds(network, plan))
            found = replace(found, can_checkpoint=hasattr(network, "checkpointing"))
            if settings.checkpointing and found.can_checkpoint:
                network.checkpointing = True  # type: ignore[assignment]
            return replace(found, memory=training_memory(network, plan, settings, compute, loss=loss))
        except UmambaError as error:
            return replace(found, problem=error.problem)

    # On the meta device a network costs neither time nor memory, but some look at values while they are built.
    needs = count(lambda: _build(model, plan, "meta"))
    return needs if needs.memory else count(lambda: _build(model, plan, "cpu"))


def _multiply_adds(network: nn.Module, plan: NetworkPlan) -> int | None:
    try:
        return multiply_adds(network, (1, plan.input_channels, *plan.patch_size))
    except UmambaError:
        raise
    except Exception:  # a network that cannot run without data; counting its memory says so
        return None


def _build(model: Model, plan: NetworkPlan, device: str) -> nn.Module:
    try:
        with torch.device(device), torch.random.fork_rng(devices=()):
            network: object = model.build(plan)
    except UmambaError:
        raise
    except Exception as error:  # a package's model may raise anything, and must harm its own row alone
        raise WorkError(
            f"it cannot be built: {type(error).__name__}: {error}", next_step="repair or remove the package"
        ) from error
    if not isinstance(network, nn.Module):
        raise WorkError(
            f"it cannot be built: what was built is no torch.nn.Module, but {type(network).__name__}",
            next_step="repair or remove the package",
        )
    return network
