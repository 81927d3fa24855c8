"""Activation checkpointing: less is kept, and nothing else changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from networks_of_all_kinds import PATCH, network_of
from torch import Tensor, nn

from umamba_cli.pipeline.devices import Compute
from umamba_cli.pipeline.networks.mamba import MambaLayer
from umamba_cli.pipeline.networks.unet import UNet
from umamba_cli.pipeline.training.losses import SegmentationLoss

LOSS = SegmentationLoss(batch_dice=False)


def batch(dimensions: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    layout = torch.channels_last if dimensions == 2 else torch.channels_last_3d
    images = torch.randn(2, 1, *(PATCH,) * dimensions).to(memory_format=layout)
    return images, torch.randint(0, 3, (2, *(PATCH,) * dimensions))


def loss_and_gradients(network: nn.Module, dimensions: int, precision: str) -> dict[str, Tensor]:
    images, labels = batch(dimensions)
    network.zero_grad()
    with Compute(torch.device("cpu"), precision, "a test").autocast():
        outputs = network(images)
    loss = LOSS(outputs, labels)
    loss.backward()  # type: ignore[no-untyped-call]
    gradients = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **gradients}


class Calls:
    """Counts how often the layers of a kind are called."""

    def __init__(self, network: nn.Module, kind: type[nn.Module]) -> None:
        self.count, self.layers = 0, 0
        for module in network.modules():
            if isinstance(module, kind):
                self.layers += 1
                module.register_forward_pre_hook(self._one_more)  # the end of a second run is left out

    def _one_more(self, *_: object) -> None:
        self.count += 1


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize(
    ("name", "dimensions"),
    [
        ("umamba-none", 2),
        ("umamba-bot", 3),
        ("umamba-enc", 2),
        ("umamba-enc", 3),
        ("released enc", 2),
        ("plain", 3),
        ("s4d", 3),
        ("mamba2", 2),
    ],
)
def test_loss_and_gradients_are_the_same_to_the_last_bit(name: str, dimensions: int, precision: str) -> None:
    network = network_of(name, dimensions)
    expected = loss_and_gradients(network, dimensions, precision)
    network.checkpointing = True
    found = loss_and_gradients(network, dimensions, precision)
    assert found.keys() == expected.keys()
    assert [key for key, tensor in expected.items() if not torch.equal(found[key], tensor)] == []


@pytest.mark.parametrize("kind", [MambaLayer, nn.Conv3d, nn.ConvTranspose3d])
def test_layers_run_once_more_for_the_gradients_of_a_training_alone(kind: type[nn.Module]) -> None:
    network = network_of("umamba-enc", 3)
    network.checkpointing = True
    calls = Calls(network, kind)
    images, _ = batch(3)
    with torch.no_grad():
        network(images)
    network.eval()(images).sum().backward()
    assert calls.count == 2 * calls.layers - (len(network.heads) - 1) * (kind is nn.Conv3d)  # evaluation has one head
    calls.count = 0
    sum(y.sum() for y in network.train()(images)).backward()
    assert calls.count == 2 * calls.layers - len(network.heads) * (kind is nn.Conv3d)  # heads are not run again


def test_it_is_off_by_itself() -> None:
    network = network_of("umamba-bot", 2)
    calls = Calls(network, MambaLayer)
    sum(y.sum() for y in network(batch(2)[0])).backward()
    assert calls.count == 1


@pytest.mark.parametrize("find_unused", [False, True])
def test_it_works_in_distributed_data_parallel(find_unused: bool, tmp_path: Path) -> None:
    plain = network_of("umamba-enc", 2)
    expected = loss_and_gradients(plain, 2, "fp32") if find_unused else gradients_of_all_heads(plain)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1)
    try:
        network = network_of("umamba-enc", 2)
        network.checkpointing = True
        parallel = nn.parallel.DistributedDataParallel(network, find_unused_parameters=find_unused)
        for _ in range(2):  # what is wrong with its bookkeeping is said in the second step
            found = loss_and_gradients(parallel, 2, "fp32") if find_unused else gradients_of_all_heads(parallel)
    finally:
        torch.distributed.destroy_process_group()
    found = {name.removeprefix("module."): tensor for name, tensor in found.items()}
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, msg=name)


def gradients_of_all_heads(network: UNet | nn.Module) -> dict[str, Tensor]:
    network.zero_grad()
    sum(y.square().mean() for y in network(batch(2)[0])).backward()
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
