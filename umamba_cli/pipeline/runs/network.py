"""The network that a run record describes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import nn

from umamba_cli.pipeline.data.dataset import DatasetDescription
from umamba_cli.pipeline.networks.heads import RAREST
from umamba_cli.pipeline.networks.registry import NetworkPlan, build_network
from umamba_cli.pipeline.networks.scan import compile_kernels, needs_compiling
from umamba_cli.pipeline.networks.token_block import TokenBlock
from umamba_cli.pipeline.networks.unet import UNet
from umamba_cli.pipeline.planning.plans import Configuration
from umamba_cli.pipeline.progress import OnProgress, Progress, ignore_progress
from umamba_cli.pipeline.runs.record import RunRecord


def network_plan(
    configuration: Configuration, dataset: DatasetDescription, class_frequencies: tuple[float, ...] = ()
) -> NetworkPlan:
    """What a configuration of the plans and the dataset decide about any network.

    Plans for plain networks count convolutions a stage (`n_conv_per_stage`), plans for residual ones count blocks
    (`n_blocks_per_stage`); where only one is given it serves for both, as in the released U-Mamba. Decoder entries are
    listed from the lowest resolution up, networks want them the other way round.
    """
    network = configuration.network
    convolutions = network.n_conv_per_stage or network.n_blocks_per_stage or ()
    return NetworkPlan(
        input_channels=dataset.num_channels + len(previous_labels(configuration, dataset)),
        outputs=dataset.num_outputs,
        patch_size=configuration.patch_size,
        features_per_stage=network.features_per_stage,
        strides=network.strides,
        kernel_sizes=network.kernel_sizes,
        convolutions_per_stage=convolutions,
        convolutions_per_stage_decoder=network.n_conv_per_stage_decoder[::-1],
        blocks_per_stage=network.n_blocks_per_stage or convolutions,
        blocks_per_stage_decoder=(network.n_blocks_per_stage_decoder or network.n_conv_per_stage_decoder)[::-1],
        class_frequencies=output_frequencies(dataset, class_frequencies),
    )


def previous_labels(configuration: Configuration, dataset: DatasetDescription) -> tuple[int, ...]:
    """The labels whose maps, as a previous stage predicted them, follow the image's channels in a network's input.

    All of the foreground for a configuration with a previous stage (a cascade), also where there are regions; none
    otherwise. Source: nnU-Net's `determine_num_input_channels`.
    """
    return tuple(dataset.foreground) if configuration.previous_stage is not None else ()


def output_frequencies(dataset: DatasetDescription, class_frequencies: Sequence[float]) -> tuple[float, ...]:
    """What `NetworkPlan.class_frequencies` shall be, from the share of each label among the voxels.

    The same for labels that exclude one another; for regions the odds of each: voxels in it to those that are not.
    """
    if not dataset.has_regions or not class_frequencies:
        return tuple(class_frequencies)
    shares = (math.fsum(class_frequencies[value] for value in set(values)) for values in dataset.regions.values())
    return tuple(share / max(1 - share, RAREST) for share in shares)


def new_network(
    model: str,
    configuration: Configuration,
    dataset: DatasetDescription,
    class_frequencies: tuple[float, ...] = (),
) -> nn.Module:
    """A freshly initialised network; `class_frequencies`, the share of each label, are what its heads begin with.

    Raises:
        InputError: there is no such model, or it does not suit the plan.
    """
    return build_network(model, network_plan(configuration, dataset, class_frequencies))


def compile_scan(
    networks: Iterable[nn.Module], device: torch.device, on_progress: OnProgress = ignore_progress
) -> None:
    """Compile the scan for this machine before the first step, where a network has Mamba layers.

    Whatever their mixer: the causal convolution, which all have, is compiled together with the scan.
    It takes seconds the first time, of which `on_progress` is told before and after, and is kept on disk.

    Raises:
        InputError: see `compile_kernels`.
    """
    has_mamba = any(isinstance(layer, TokenBlock) for network in networks for layer in network.modules())
    if has_mamba and needs_compiling(device):
        on_progress(Progress("compile", 0, 1, step="the scan for this machine, once; this takes some seconds"))
        compile_kernels(device)
        on_progress(Progress("compile", 1, 1, step="done"))


def recorded_plan(record: RunRecord, class_frequencies: tuple[float, ...] = ()) -> NetworkPlan:
    """What the network of a training is built for; `class_frequencies` as for `network_plan`."""
    plan = network_plan(record.network_configuration, record.dataset, class_frequencies)
    return replace(plan, mixer=record.mixer, scan_directions=record.scan_directions)


def recorded_network(record: RunRecord) -> nn.Module:
    """The network of a finished training, for its weights to be loaded into.

    Raises:
        InputError: there is no such model, or it does not suit the plan.
    """
    if record.architecture is not None:
        return UNet(record.architecture)
    return build_network(record.model, recorded_plan(record))
