"""The plans in plain sentences: one row for each number, with what the rule saw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from umamba_cli.pipeline.geometry import numbers_text
from umamba_cli.pipeline.planning.fitting import Budget, Fit
from umamba_cli.pipeline.planning.normalization import REASONS
from umamba_cli.pipeline.planning.plans import Normalization, TrainingDefaults
from umamba_cli.pipeline.planning.presets import SMALLEST_BATCH
from umamba_cli.pipeline.planning.topology import SHORTEST_EDGE


@dataclass(frozen=True)
class Decision:
    """One number of the plans and why it is so."""

    configuration: str
    """Empty where it holds for all of them."""

    what: str
    value: str
    reason: str


def describe_fit(name: str, fit: Fit, budget: Budget) -> list[Decision]:
    """Patch, batch and network of one configuration."""
    topology, preset = fit.topology, budget.preset
    features = preset.features.per_stage(topology.n_stages, fit.dimensions)
    layers = "residual blocks" if preset.residual else "convolutions"
    rows = [
        ("median image size", _sizes(fit.median_shape), "of the cases at this spacing, in voxels"),
        ("patch size", _sizes(topology.patch_size), _patch_reason(fit, budget)),
        ("batch size", str(fit.batch.size), _batch_reason(fit, budget)),
        (
            "stages",
            str(topology.n_stages),
            f"axes are halved while they have {2 * SHORTEST_EDGE} voxels or more, the finest first",
        ),
        (
            "strides",
            _stages(topology.strides),
            "an axis is halved while it is less than 2 times coarser than the finest",
        ),
        (
            "kernel sizes",
            _stages(topology.kernel_sizes),
            "3 along an axis once it is less than 2 times coarser than the finest, 1 before",
        ),
        ("features", numbers_text(features), f"doubled at each stage, {preset.features.most(fit.dimensions)} at most"),
        ("encoder", numbers_text(preset.encoder_layers(topology.n_stages)), f"{layers} at each stage, by the preset"),
        (
            "decoder",
            numbers_text(preset.decoder_layers(topology.n_stages)),
            "convolutions at each stage, by the preset",
        ),
    ]
    return [Decision(name, *row) for row in rows]


def describe_normalization(
    channel_names: Sequence[str], schemes: Sequence[Normalization], masks: Sequence[bool], relative_size: float
) -> list[Decision]:
    """Normalisation and use of the nonzero mask, channel by channel."""
    left = f"cropping to the nonzero part leaves {relative_size:.0%} of a typical image"
    rows = []
    for channel, scheme, masked in zip(channel_names, schemes, masks, strict=True):
        rows.append(Decision("", f"normalisation of {channel}", scheme, REASONS[scheme]))
        if scheme != "ZScoreNormalization":
            reason = "only z-score looks at an image's own mean"
        elif masked:
            reason = f"{left}: zeros are blanked background"
        else:
            reason = f"{left}: zeros count as image"
        rows.append(Decision("", f"mask for {channel}", _yes(masked), reason))
    return rows


def describe_batch_dice(batch_dice: Mapping[str, bool]) -> list[Decision]:
    """Over what the Dice loss is taken, in each configuration."""
    steadier = "one Dice over the batch is steadier"
    rows = []
    for name, value in batch_dice.items():
        lacking = "many slices lack some label" if name == "2d" else "patches see little of an image"
        reason = f"{lacking}: {steadier}" if value else "patches see enough of an image for a Dice of their own"
        rows.append(Decision(name, "batch Dice", _yes(value), reason))
    return rows


def describe_training(training: TrainingDefaults, preset: str) -> Decision:
    """How long a training lasts."""
    value = f"{training.epochs} epochs of {training.iterations} iterations"
    origin = "short enough for a CPU" if preset == "cpu" else "nnU-Net's length"
    return Decision("", "training", value, f"{origin}; --epochs and --iterations change it")


def _patch_reason(fit: Fit, budget: Budget) -> str:
    memory = f"{budget.memory_gb:g} GB"
    patch = fit.topology.patch_size
    most = budget.preset.most_voxels(fit.dimensions)
    if patch == fit.start:
        return (
            f"as much of the median image as is useful, in multiples of {_sizes(fit.topology.divisor)}; fits {memory}"
        )
    if most is not None:
        return f"shrunk from {_sizes(fit.start)} to the image's proportions, to {most:,} voxels at most and {memory}"
    return f"shrunk from {_sizes(fit.start)} to the image's proportions until it fits {memory}"


def _batch_reason(fit: Fit, budget: Budget) -> str:
    batch, memory = fit.batch, f"{budget.memory_gb:g} GB"
    if budget.preset.batch_size is not None:
        return "fixed by the preset"
    if batch.size == batch.by_memory:
        return f"as many patches as {memory} hold"
    share = f"{budget.preset.most_of_dataset:.0%} of the dataset"
    if batch.size == batch.by_dataset:
        return f"{memory} hold {batch.by_memory}, but a batch sees {share} at most"
    if batch.by_dataset < batch.by_memory:
        return f"{SMALLEST_BATCH} at least; {share} would be {batch.by_dataset}"
    return f"{SMALLEST_BATCH} at least, which is what the patch was shrunk for"


def _sizes(values: Sequence[float]) -> str:
    return "x".join(f"{value:g}" for value in values)


def _stages(entries: Sequence[Sequence[int]]) -> str:
    return " ".join(_sizes(entry) for entry in entries)


def _yes(value: bool) -> str:
    return "yes" if value else "no"
