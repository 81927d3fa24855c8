"""The network that a run record describes."""

from __future__ import annotations

from torch import nn

from umamba_cli.pipeline.data.dataset import DatasetDescription
from umamba_cli.pipeline.networks.registry import NetworkPlan, build_network
from umamba_cli.pipeline.planning.plans import Configuration


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
        input_channels=dataset.num_channels,
        outputs=dataset.num_classes,
        patch_size=configuration.patch_size,
        features_per_stage=network.features_per_stage,
        strides=network.strides,
        kernel_sizes=network.kernel_sizes,
        convolutions_per_stage=convolutions,
        convolutions_per_stage_decoder=network.n_conv_per_stage_decoder[::-1],
        blocks_per_stage=network.n_blocks_per_stage or convolutions,
        blocks_per_stage_decoder=(network.n_blocks_per_stage_decoder or network.n_conv_per_stage_decoder)[::-1],
        class_frequencies=class_frequencies,
    )


def new_network(
    model: str,
    configuration: Configuration,
    dataset: DatasetDescription,
    class_frequencies: tuple[float, ...] = (),
) -> nn.Module:
    """A freshly initialised network; `class_frequencies` are what its heads begin with, see `NetworkPlan`.

    Raises:
        InputError: there is no such model, or it does not suit the plan.
    """
    return build_network(model, network_plan(configuration, dataset, class_frequencies))
