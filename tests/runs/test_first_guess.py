"""The heads of a new network begin by predicting how frequent each class or region is."""

from __future__ import annotations

import pytest
import torch
from phantoms import nnunet_plans

from umamba_cli.pipeline.data.dataset import DatasetDescription, Label
from umamba_cli.pipeline.networks.unet import UNet
from umamba_cli.pipeline.runs.network import network_plan, new_network


def first_guess(labels: dict[str, Label], frequencies: tuple[float, ...], order: tuple[int, ...] | None = None) -> UNet:
    description = DatasetDescription(
        channel_names={"0": "MR"}, labels=labels, regions_class_order=order, file_ending=".nrrd"
    )
    configuration = nnunet_plans(spacing=(1.0, 1.0, 1.0)).configuration("3d_fullres")
    network = new_network("unet", configuration, description, frequencies)
    assert isinstance(network, UNet)
    assert network_plan(configuration, description).outputs == description.num_outputs
    assert network_plan(configuration, description).class_frequencies == ()
    return network


def test_labels_begin_at_their_shares() -> None:
    network = first_guess({"background": 0, "a": 1, "b": 2, "ignore": 3}, (0.7, 0.2, 0.1))
    for head in network.heads:
        assert head.bias.detach().softmax(0).tolist() == pytest.approx([0.7, 0.2, 0.1])


def test_regions_begin_at_the_shares_of_their_labels_together() -> None:
    labels: dict[str, Label] = {"background": 0, "whole": (1, 2, 3), "core": (2, 3), "rim": 3, "ignore": 4}
    network = first_guess(labels, (0.4, 0.3, 0.2, 0.1), order=(1, 2, 3))
    for head in network.heads:
        assert head.bias.detach().sigmoid().tolist() == pytest.approx([0.6, 0.3, 0.1])


def test_a_region_of_all_or_of_nothing_begins_at_a_finite_number() -> None:
    labels: dict[str, Label] = {"background": 0, "whole": (1, 2), "rim": 2}
    network = first_guess(labels, (0.0, 1.0, 0.0), order=(1, 2))
    bias = network.heads[0].bias.detach()
    assert torch.isfinite(bias).all()
    assert bias.sigmoid().tolist() == pytest.approx([1, 0], abs=1e-3)
