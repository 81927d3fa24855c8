from __future__ import annotations

import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.networks.architecture import Architecture
from umamba_cli.pipeline.networks.unet_plus_plus import Node, UNetPlusPlus

FLAT = Architecture(
    input_channels=1,
    outputs=2,
    features_per_stage=(2, 3, 4, 5),
    strides=((1, 1), (2, 2), (1, 2), (2, 1)),
    kernel_sizes=((3, 3), (1, 3), (3, 3), (3, 1)),
    blocks_per_stage=(2, 1, 1, 1),
    blocks_per_stage_decoder=(2, 1, 1),
)
SOLID = Architecture(
    input_channels=1,
    outputs=2,
    features_per_stage=(2, 3, 4),
    strides=((1, 1, 1), (1, 2, 2), (2, 2, 2)),
    kernel_sizes=((1, 3, 3), (3, 3, 3), (3, 3, 3)),
    blocks_per_stage=(1, 1, 1),
    blocks_per_stage_decoder=(1, 1),
)
NODES = {"01", "11", "21", "02", "12", "03"}
"""ij of FLAT's nested nodes, as in figure 1."""


def network_of(architecture: Architecture) -> UNetPlusPlus:
    torch.manual_seed(0)
    return UNetPlusPlus(architecture).double()


def image(*size: int) -> Tensor:
    return torch.randn(2, 1, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def named(network: UNetPlusPlus) -> dict[str, nn.Module]:
    """The nested nodes by ij; a node's own shapes tell where it belongs, whatever list it lies in."""
    widths = network.architecture.features_per_stage
    nodes = {}
    for node in network.modules():
        if isinstance(node, Node):
            first = node.blocks[0].conv
            i = widths.index(first.weight.shape[0])
            nodes[f"{i}{first.weight.shape[1] // widths[i] - 1}"] = node
    return nodes


def recorded(network: UNetPlusPlus, x: Tensor) -> tuple[Any, dict[str, tuple[Tensor, ...]], dict[str, Tensor]]:
    """What the network gives out, and each node's inputs and output by ij; X^{i,0} are taken from the encoder."""
    inputs: dict[str, tuple[Tensor, ...]] = {}
    outputs: dict[str, Tensor] = {}

    def watch(name: str) -> Any:
        def note(_: nn.Module, maps: tuple[Tensor, ...], y: Tensor) -> None:
            inputs[name], outputs[name] = maps, y

        return note

    handles = [node.register_forward_hook(watch(name)) for name, node in named(network).items()]
    handles += [stage.register_forward_hook(watch(f"{i}0")) for i, stage in enumerate(network.encoder.stages)]
    result = network(x)
    for handle in handles:
        handle.remove()
    return result, inputs, outputs


def test_every_node_gets_its_row_so_far_and_the_map_below_to_its_left() -> None:
    network = network_of(FLAT)
    assert set(named(network)) == NODES
    logits, inputs, outputs = recorded(network, image(8, 8))
    for name, node in named(network).items():
        i, j = map(int, name)
        expected = [*(f"{i}{k}" for k in range(j)), f"{i + 1}{j - 1}"]  # equation 1
        assert [next(n for n, y in outputs.items() if y is x) for x in inputs[name]] == expected
        *skips, below = inputs[name]
        torch.testing.assert_close(outputs[name], node.blocks(torch.cat((*skips, node.upsample(below)), dim=1)))
    assert len(logits) == 3
    for y, head, j in zip(logits, network.heads, (3, 2, 1), strict=True):
        torch.testing.assert_close(y, head(outputs[f"0{j}"]))


def test_two_stages_by_hand() -> None:
    """X00 = 2x, X10 = every second of X00, halved; X01 = X00 + 3 * X10, repeated; logits 10 * X01 + 1."""
    a = replace(
        FLAT, outputs=1, features_per_stage=(1, 1), strides=((1, 1), (1, 2)), kernel_sizes=((1, 1),) * 2,
        blocks_per_stage=(1, 1), blocks_per_stage_decoder=(1,),
    )  # fmt: skip
    network = UNetPlusPlus(a)
    node = network.columns[0][0]
    for stage, weight in ((network.encoder.stages[0], 2.0), (network.encoder.stages[1], 0.5)):
        stage[0].norm = nn.Identity()
        nn.init.constant_(stage[0].conv.weight, weight)
    node.blocks[0].norm = nn.Identity()
    nn.init.constant_(node.upsample.weight, 3.0)
    nn.init.ones_(node.blocks[0].conv.weight)
    nn.init.constant_(network.heads[0].weight, 10.0)
    nn.init.ones_(network.heads[0].bias)
    (logits,) = network(torch.tensor([[[[1.0, 2.0, 5.0, 7.0]]]]))
    assert logits.flatten().tolist() == [51, 71, 251, 291]  # 10 * (2 + 3, 4 + 3, 10 + 15, 14 + 15) + 1


def test_evaluation_needs_no_other_head_than_the_deepest_ones() -> None:
    network = network_of(FLAT)
    expected = network(image(8, 8))[0]
    for head in network.heads[1:]:
        head.forward = None  # cannot be called
    torch.testing.assert_close(network.eval()(image(8, 8)), expected)


def test_maps_are_let_go_after_their_last_use() -> None:
    network = network_of(FLAT).eval()
    alive: dict[str, weakref.ref[Tensor]] = {}
    seen: dict[str, set[str]] = {}

    def before(name: str) -> Any:
        return lambda *_: seen.update({name: {n for n, y in alive.items() if y() is not None}})

    def after(name: str) -> Any:
        return lambda _, __, y: alive.update({name: weakref.ref(y)})

    for i, stage in enumerate(network.encoder.stages):
        stage.register_forward_hook(after(f"{i}0"))
    for name, node in named(network).items():
        node.register_forward_pre_hook(before(name))
        node.register_forward_hook(after(name))
    with torch.no_grad():
        network(image(8, 8))
    assert seen["01"] == {"00", "10", "20", "30"}
    assert seen["02"] == {"00", "01", "10", "11", "21"}
    assert seen["03"] == {"00", "01", "02", "12"}


@pytest.mark.parametrize(("architecture", "size"), [(FLAT, (8, 8)), (SOLID, (4, 8, 8))])
def test_checkpointing_changes_no_gradient(architecture: Architecture, size: tuple[int, ...]) -> None:
    network = network_of(architecture)
    gradients = []
    for network.checkpointing in (False, True):
        network.zero_grad()
        sum(y.square().mean() for y in network(image(*size))).backward()
        gradients.append([p.grad.clone() for p in network.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_checkpointing_computes_every_node_anew() -> None:
    network = network_of(FLAT)
    network.checkpointing = True
    calls: list[str] = []
    for name, node in named(network).items():
        node.register_forward_pre_hook(lambda *_, name=name: calls.append(name))
    sum(y.sum() for y in network(image(8, 8))).backward()
    assert sorted(calls) == sorted([*NODES, *NODES])


def test_it_has_shapes_without_numbers() -> None:
    network = UNetPlusPlus(SOLID).to("meta")
    assert network.eval()(torch.empty(1, 1, 4, 8, 8, device="meta")).shape == (1, 2, 4, 8, 8)
    with FakeTensorMode():
        assert UNetPlusPlus(SOLID)(torch.empty(1, 1, 4, 8, 8))[1].shape == (1, 2, 4, 8, 8)


def test_sizes_and_architectures_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="multiples of") as error:
        network_of(SOLID)(image(4, 8, 9))
    assert "(4, 8, 12)" in error.value.next_step
    with pytest.raises(InputError, match="plain convolutions"):
        UNetPlusPlus(replace(SOLID, block="residual"))
