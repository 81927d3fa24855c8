"""`unet` and `resenc` against dynamic-network-architectures, whose results `networks_parity.py --peer` wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from golden_networks import check_outputs_and_gradients, formula_weights, read_golden

from umamba_cli.pipeline.interop.released import nnunet_weights
from umamba_cli.pipeline.networks.registry import NetworkPlan, build_network
from umamba_cli.pipeline.networks.unet import UNet

GOLDENS = Path(__file__).parent / "goldens"
MODELS = {"PlainConvUNet": "unet", "ResidualEncoderUNet": "resenc"}


def network_of(golden: dict[str, Any]) -> UNet:
    layers = tuple(golden.get("n_conv_per_stage") or golden["n_blocks_per_stage"])
    decoder = tuple(golden["n_conv_per_stage_decoder"])[::-1]
    plan = NetworkPlan(
        input_channels=golden["input_channels"],
        outputs=golden["num_classes"],
        patch_size=tuple(golden["patch_size"]),
        features_per_stage=tuple(golden["features_per_stage"]),
        strides=tuple(tuple(axes) for axes in golden["strides"]),
        kernel_sizes=tuple(tuple(axes) for axes in golden["kernel_sizes"]),
        convolutions_per_stage=layers,
        convolutions_per_stage_decoder=decoder,
        blocks_per_stage=layers,
        blocks_per_stage_decoder=(9,) * len(decoder),  # not for these networks
    )
    network = build_network(MODELS[golden["variant"]], plan)
    assert isinstance(network, UNet)
    return network


@pytest.mark.parametrize("name", ["plain_2d", "plain_3d_thick", "resenc_2d", "resenc_3d", "resenc_3d_thick"])
def test_outputs_and_gradients_are_those_of_nnunet(name: str) -> None:
    golden = read_golden(GOLDENS / f"{name}.json")
    network, theirs = network_of(golden), formula_weights(golden)
    check_outputs_and_gradients(network, golden, theirs, nnunet_weights(theirs, network.architecture))
