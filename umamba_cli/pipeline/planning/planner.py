"""From a fingerprint to plans, with the reason for every number.

Each rule is a function of its own (`spacing`, `normalization`, `topology`, `memory`, `fitting`); this module calls them
in order and writes down the outcome.

Source: nnU-Net (Isensee et al. 2021, Nature Methods 18, 203-211) and its ResEnc presets (Isensee et al. 2024).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np

from umamba_cli.pipeline.data.dataset import DatasetDescription
from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.geometry import Spacing, numbers_text
from umamba_cli.pipeline.planning.decisions import (
    Decision,
    describe_batch_dice,
    describe_fit,
    describe_normalization,
    describe_training,
)
from umamba_cli.pipeline.planning.fingerprint import Fingerprint
from umamba_cli.pipeline.planning.fitting import Budget, Fit, fit_patch, limit_to_preset
from umamba_cli.pipeline.planning.normalization import normalization_scheme, uses_mask
from umamba_cli.pipeline.planning.plans import Plans
from umamba_cli.pipeline.planning.presets import PRESETS, PresetName
from umamba_cli.pipeline.planning.resampling import RESAMPLING
from umamba_cli.pipeline.planning.spacing import TargetSpacing, coarser, median_shape, target_spacing, transpose_axes

LOWRES_BELOW = 0.25
"""3d_lowres is planned where a patch covers less than this share of a median image, and coarse enough to reach it."""

LOWRES_WORTHWHILE = 2.0
"""3d_lowres is dropped unless its images have this many times fewer voxels than those of 3d_fullres."""


@dataclass(frozen=True)
class PlanOptions:
    """What a person may ask of the planner. Contradictions are refused when built."""

    memory_gb: float | None = None
    """GPU memory to plan for; None: the preset's own."""

    preset: PresetName = "default"

    spacing_mm: tuple[float, ...] | None = None
    """Target spacing of 3d_fullres along z, y, x, in place of the dataset's; z is not looked at for 2D images."""

    def __post_init__(self) -> None:
        if self.preset not in get_args(PresetName):
            raise InputError(
                f"there is no preset {self.preset!r}", next_step=f"choose one of {', '.join(get_args(PresetName))}"
            )
        if self.memory_gb is not None and not (math.isfinite(self.memory_gb) and self.memory_gb > 0):
            raise InputError(f"memory of {self.memory_gb} GB", next_step="give a number above 0, such as --memory 8")
        if self.spacing_mm is not None and not (
            len(self.spacing_mm) == 3 and all(math.isfinite(s) and s > 0 for s in self.spacing_mm)
        ):
            raise InputError(
                f"spacing of {numbers_text(self.spacing_mm)} mm",
                next_step="give three numbers above 0 for z, y, x, such as --spacing 1,0.8,0.8",
            )


@dataclass(frozen=True)
class PlannedDataset:
    """Plans and the reasons for them."""

    plans: Plans
    decisions: tuple[Decision, ...]


@dataclass(frozen=True)
class _Geometry:
    """What all configurations share, in transposed axis order."""

    forward: tuple[int, int, int]
    backward: tuple[int, int, int]
    target: TargetSpacing
    spacing_mm: Spacing
    median_shape: tuple[float, ...]
    dataset_voxels: float
    cases: int

    @property
    def is_flat(self) -> bool:
        """A typical image is a single slice."""
        return self.median_shape[0] == 1


def make_plans(
    fingerprint: Fingerprint, description: DatasetDescription, dataset_name: str, options: PlanOptions
) -> PlannedDataset:
    """Decide everything about a dataset: spacing, normalisation, and patch, batch and network of each configuration.

    Raises:
        InputError: fingerprint and description differ in their channels, or no patch fits the memory.
    """
    channels = len(fingerprint.foreground_intensity_properties_per_channel)
    if channels != description.num_channels:
        raise InputError(
            f"the fingerprint of {dataset_name} has {channels} channels, dataset.json has {description.num_channels}",
            next_step="measure the dataset again: remove fingerprint.json, then run `umamba plan`",
        )
    preset = PRESETS[options.preset]
    budget = Budget(preset, options.memory_gb or preset.memory_gb, len(description.labels))
    geometry = _geometry(fingerprint, options)
    fits, decisions = _fits(geometry, budget)
    batch_dice = _batch_dice(fits)
    names = [name for _, name in sorted(description.channel_names.items(), key=lambda item: (len(item[0]), item[0]))]
    relative_size = fingerprint.median_relative_size_after_cropping
    schemes = [normalization_scheme(name) for name in names]
    masks = [uses_mask(scheme, relative_size) for scheme in schemes]
    configurations = {
        name: _configuration(name, fit, budget, normalization_schemes=schemes, use_mask_for_norm=masks)
        for name, fit in fits.items()
    }
    for name, value in batch_dice.items():
        configurations[name]["batch_dice"] = value
    if "3d_lowres" in fits:
        configurations["3d_lowres"]["next_stage"] = "3d_cascade_fullres"
        configurations["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    plans = _plans(fingerprint, geometry, dataset_name, budget, configurations)
    normalization = describe_normalization(names, schemes, masks, relative_size)
    training = describe_training(preset.training, preset.name)
    return PlannedDataset(plans, (*normalization, training, *decisions, *describe_batch_dice(batch_dice)))


def _geometry(fingerprint: Fingerprint, options: PlanOptions) -> _Geometry:
    spacings, shapes = fingerprint.spacings, fingerprint.shapes_after_crop
    target = target_spacing(spacings, shapes)
    if options.spacing_mm is not None:
        chosen = options.spacing_mm
        if all(shape[0] == 1 for shape in shapes):
            chosen = (target.spacing_mm[0], *chosen[1:])
        target = TargetSpacing(chosen, "asked for with --spacing")
    forward, backward = transpose_axes(target.spacing_mm)
    size = median_shape(spacings, shapes, target.spacing_mm)
    return _Geometry(
        forward=forward,
        backward=backward,
        target=target,
        spacing_mm=tuple(target.spacing_mm[axis] for axis in forward),
        median_shape=tuple(size[axis] for axis in forward),
        dataset_voxels=math.prod(size[axis] for axis in forward) * len(spacings),
        cases=len(spacings),
    )


def _fits(geometry: _Geometry, budget: Budget) -> tuple[dict[str, Fit], list[Decision]]:
    """Patch and batch of each configuration that makes sense for the dataset, and the reasons."""
    decisions = [_axis_order(geometry)]
    spacing_2d, shape_2d = geometry.spacing_mm[1:], geometry.median_shape[1:]
    fits = {"2d": fit_patch(spacing_2d, shape_2d, geometry.dataset_voxels, budget)}
    if geometry.is_flat:
        reasons = {"2d": geometry.target.reason}
        decisions.append(Decision("3d_fullres", "planned", "no", "the images are single slices"))
    else:
        full = fit_patch(geometry.spacing_mm, geometry.median_shape, geometry.dataset_voxels, budget)
        lowres, decision = find_lowres(full, geometry.cases, budget)
        refines = "it refines what 3d_lowres segmented" if lowres else "there is no 3d_lowres to refine"
        decisions += [decision, Decision("3d_cascade_fullres", "planned", decision.value, refines)]
        fits |= {"3d_lowres": lowres, "3d_fullres": full} if lowres else {"3d_fullres": full}
        reasons = {
            "2d": "that of 3d_fullres within the slice",
            "3d_lowres": f"that of 3d_fullres, coarsened until a patch covers {LOWRES_BELOW:.0%} of a median image",
            "3d_fullres": geometry.target.reason,
        }
    fits = {name: limit_to_preset(fit, budget.preset) for name, fit in fits.items()}
    for name, fit in fits.items():
        decisions.append(Decision(name, "spacing", f"{numbers_text(fit.spacing_mm)} mm", reasons[name]))
        decisions += describe_fit(name, fit, budget)
    return fits, decisions


def _axis_order(geometry: _Geometry) -> Decision:
    order = ["zyx"[axis] for axis in geometry.forward]
    why = "the images are single slices" if geometry.is_flat else f"{order[0]} is the coarsest: slices lie across it"
    return Decision("", "axis order", ", ".join(order), why)


def find_lowres(full: Fit, cases: int, budget: Budget) -> tuple[Fit | None, Decision]:
    """A configuration of lower resolution, whose patches see a quarter of an image or more, where it is worthwhile.

    Patches that cover little of an image lack context. The spacing is coarsened (`spacing.coarser`) until they cover
    enough; unless images then have at least 2 times fewer voxels, that gains nothing over 3d_fullres.

    Source: nnU-Net's planner.
    """
    covered = full.patch_voxels / math.prod(full.median_shape)
    limited = budget.preset.most_voxels(full.dimensions) is not None
    patch = "the default preset's patch" if limited else "a patch of 3d_fullres"
    seen = f"{patch} covers {covered:.0%} of a median image"
    spacing, voxels, found = full.spacing_mm, math.prod(full.median_shape), full
    while found.patch_voxels / voxels < LOWRES_BELOW:
        spacing = coarser(spacing)
        shrinkage = [fine / coarse for fine, coarse in zip(full.spacing_mm, spacing, strict=True)]
        exact = [s * n for s, n in zip(shrinkage, full.median_shape, strict=True)]
        voxels = math.prod(exact)
        found = fit_patch(spacing, tuple(float(max(1, round(n))) for n in exact), voxels * cases, budget)
    if found is full:
        return None, Decision("3d_lowres", "planned", "no", f"{seen}, which is context enough")
    factor = math.prod(full.median_shape) / voxels
    if factor < LOWRES_WORTHWHILE:
        return None, Decision(
            "3d_lowres", "planned", "no", f"{seen}, but its images would be only {factor:.2g} times smaller"
        )
    return found, Decision("3d_lowres", "planned", "yes", f"{seen}: too little context")


def _batch_dice(fits: dict[str, Fit]) -> dict[str, bool]:
    """Whether the Dice loss sees a batch as one image.

    In 2D, and in 3D where a patch covers little of an image (there is a 3d_lowres), many patches lack some label; a
    Dice for each patch would then jump.

    Source: nnU-Net's planner.
    """
    return {name: name == "2d" or (name == "3d_fullres" and "3d_lowres" in fits) for name in fits}


def _configuration(name: str, fit: Fit, budget: Budget, **shared: object) -> dict[str, Any]:
    """One configuration in nnU-Net's keys; `shared` holds those that all configurations have in common."""
    resampling = {"order_z": 0, "force_separate_z": None}
    return {
        "data_identifier": f"{_plans_name(budget)}_{name}",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": fit.batch.size,
        "patch_size": list(fit.topology.patch_size),
        "median_image_size_in_voxels": list(fit.median_shape),
        "spacing": list(fit.spacing_mm),
        **shared,
        "resampling_fn_data": RESAMPLING,
        "resampling_fn_seg": RESAMPLING,
        "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, **resampling},
        "resampling_fn_seg_kwargs": {"is_seg": True, "order": 1, **resampling},
        "resampling_fn_probabilities": RESAMPLING,
        "resampling_fn_probabilities_kwargs": {"is_seg": False, "order": 1, **resampling},
        "architecture": _architecture(fit, budget),
    }


def _plans_name(budget: Budget) -> str:
    return f"umamba-{budget.preset.name}"


def _architecture(fit: Fit, budget: Budget) -> dict[str, Any]:
    preset, topology, dimensions = budget.preset, fit.topology, fit.dimensions
    network = "ResidualEncoderUNet" if preset.residual else "PlainConvUNet"
    layers: dict[str, list[int]] = {
        "n_blocks_per_stage" if preset.residual else "n_conv_per_stage": [*preset.encoder_layers(topology.n_stages)],
        "n_conv_per_stage_decoder": [*preset.decoder_layers(topology.n_stages)],
    }
    if preset.residual_blocks is not None:
        layers["n_blocks_per_stage"] = [preset.residual_blocks] * topology.n_stages
        layers["n_blocks_per_stage_decoder"] = [preset.residual_blocks] * (topology.n_stages - 1)
    return network_architecture(
        f"dynamic_network_architectures.architectures.unet.{network}",
        dimensions,
        features_per_stage=list(preset.features.per_stage(topology.n_stages, dimensions)),
        kernel_sizes=[list(kernel) for kernel in topology.kernel_sizes],
        strides=[list(stride) for stride in topology.strides],
        layers=layers,
    )


def network_architecture(
    network_class: str,
    dimensions: int,
    *,
    features_per_stage: Sequence[int],
    kernel_sizes: Sequence[Sequence[int]],
    strides: Sequence[Sequence[int]],
    layers: Mapping[str, Sequence[int]],
) -> dict[str, Any]:
    """A configuration's `architecture` as nnU-Net writes it, for a network of its usual layers.

    Args:
        network_class: its full name.
        dimensions: 2 or 3.
        features_per_stage: feature maps, full resolution first.
        kernel_sizes: of each stage, by axis.
        strides: at the entry of each stage, by axis.
        layers: convolutions or blocks of each stage, by nnU-Net's keys.
    """
    return {
        "network_class_name": network_class,
        "arch_kwargs": {
            "n_stages": len(features_per_stage),
            "features_per_stage": features_per_stage,
            "conv_op": f"torch.nn.modules.conv.Conv{dimensions}d",
            "kernel_sizes": kernel_sizes,
            "strides": strides,
            **layers,
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dimensions}d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def _plans(
    fingerprint: Fingerprint, geometry: _Geometry, dataset_name: str, budget: Budget, configurations: dict[str, Any]
) -> Plans:
    spacing = np.median(fingerprint.spacings, axis=0)
    shape = np.median(fingerprint.shapes_after_crop, axis=0)
    return Plans(
        dataset_name=dataset_name,
        plans_name=_plans_name(budget),
        original_median_spacing_after_transp=tuple(float(spacing[axis]) for axis in geometry.forward),
        original_median_shape_after_transp=tuple(round(float(shape[axis])) for axis in geometry.forward),
        transpose_forward=geometry.forward,
        transpose_backward=geometry.backward,
        foreground_intensity_properties_per_channel=fingerprint.foreground_intensity_properties_per_channel,
        preset=budget.preset.name,
        training=budget.preset.training,
        configurations=configurations,
    )
