from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from mixers import DIRECTIONS, MIXERS
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.networks.architecture import Architecture, Mixer, ScanDirections
from umamba_cli.pipeline.networks.directions import ManyDirections, Order, orders_of
from umamba_cli.pipeline.networks.mamba import MambaBlock, MambaLayer
from umamba_cli.pipeline.networks.mamba2 import Mamba2Block
from umamba_cli.pipeline.networks.s4d import S4DBlock
from umamba_cli.pipeline.networks.token_block import TokenBlock
from umamba_cli.pipeline.networks.unet import UNet
from umamba_cli.pipeline.runs import network as runs_network

SHAPES = {2: (4, 3), 3: (2, 4, 3)}
KINDS = list(product(MIXERS, DIRECTIONS))
SEVERAL = list(product(MIXERS, ("both", "axes")))


def layer_of(mixer: Mixer, directions: ScanDirections, dimensions: int = 3, width: int = 6) -> MambaLayer:
    torch.manual_seed(0)
    return MambaLayer(width, dimensions, mixer=mixer, scan_directions=directions)


def test_orders() -> None:
    forwards, backwards = Order(-1, backwards=False), Order(-1, backwards=True)
    assert orders_of("forward", 3) == (forwards,)
    assert orders_of("both", 3) == orders_of("both", 2) == (forwards, backwards)
    assert orders_of("axes", 2) == (forwards, backwards, Order(-2, backwards=False), Order(-2, backwards=True))
    assert [order.axis for order in orders_of("axes", 3)] == [-1, -1, -2, -2, -3, -3]


def test_names_and_their_order_are_those_of_mamba() -> None:
    """Checkpoints name the weights, and the optimizer's state in them counts on their order."""
    layer = MambaLayer(16)
    assert [name for name, _ in layer.named_parameters()] == [
        "norm.weight",
        "norm.bias",
        "mamba.A_log",
        "mamba.D",
        "mamba.in_proj.weight",
        "mamba.conv1d.weight",
        "mamba.conv1d.bias",
        "mamba.x_proj.weight",
        "mamba.dt_proj.weight",
        "mamba.dt_proj.bias",
        "mamba.out_proj.weight",
    ]
    assert set(layer.state_dict()) == {name for name, _ in layer.named_parameters()}


def positions(shape: tuple[int, ...], order: Order) -> list[int]:
    """The place of each voxel in the row-major map, in the order of reading; by hand."""
    others = [axis for axis in range(len(shape)) if axis != len(shape) + order.axis]
    axes = [*others, len(shape) + order.axis]
    found = []
    for steps in product(*(range(shape[axis]) for axis in axes)):
        at = dict(zip(axes, steps, strict=True))
        place = 0
        for axis, size in enumerate(shape):
            place = place * size + at[axis]
        found.append(place)
    return found[::-1] if order.backwards else found


def test_positions_by_hand() -> None:
    assert positions((2, 3), Order(-1, backwards=True)) == [5, 4, 3, 2, 1, 0]
    assert positions((2, 3), Order(-2, backwards=False)) == [0, 3, 1, 4, 2, 5]


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize(("mixer", "directions"), SEVERAL)
def test_the_layer_is_a_sum_over_the_directions(mixer: Mixer, directions: ScanDirections, dimensions: int) -> None:
    layer, shape = layer_of(mixer, directions, dimensions).double(), SHAPES[dimensions]
    assert isinstance(layer.mamba, ManyDirections)
    x = torch.randn(2, 6, *shape, dtype=torch.float64)
    projected = layer.mamba.in_proj(layer.norm(x.flatten(2).mT))
    total: Tensor | float = 0.0
    orders = orders_of(directions, dimensions)
    assert len(orders) == len(layer.mamba.directions) == (2 if directions == "both" else 2 * dimensions)
    for order, block in zip(orders, layer.mamba.directions, strict=True):
        places = positions(shape, order)
        read = block.mix(projected[:, places])  # type: ignore[operator]
        total = total + read[:, [places.index(i) for i in range(len(places))]]
    torch.testing.assert_close(layer(x).flatten(2).mT, layer.mamba.out_proj(total))


@pytest.mark.parametrize(("mixer", "directions"), SEVERAL)
def test_every_voxel_sees_every_other(mixer: Mixer, directions: ScanDirections) -> None:
    layer = layer_of(mixer, directions).double()
    x = torch.randn(1, 6, 2, 4, 3, dtype=torch.float64)
    changed = x.clone()
    changed[:, 0, 1, 2, 1] += 1
    assert float((layer(x) - layer(changed)).detach().abs().amax(1).min()) > 0


@pytest.mark.parametrize("mixer", MIXERS)
def test_a_mirrored_map_is_mirrored_when_the_directions_are_swapped(mixer: Mixer) -> None:
    layer = layer_of(mixer, "axes").double()
    assert isinstance(layer.mamba, ManyDirections)
    x = torch.randn(1, 6, 2, 4, 3, dtype=torch.float64)
    expected = layer(x)
    blocks = list(layer.mamba.directions)
    layer.mamba.directions = nn.ModuleList(blocks[i ^ 1] for i in range(6))
    torch.testing.assert_close(layer(x.flip(2, 3, 4)).flip(2, 3, 4), expected)
    assert not torch.allclose(layer(x), expected)


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize(("mixer", "directions"), KINDS)
def test_gradients_are_the_same_in_channels_last(mixer: Mixer, directions: ScanDirections, dimensions: int) -> None:
    layer = layer_of(mixer, directions, dimensions).double()
    layout = torch.channels_last if dimensions == 2 else torch.channels_last_3d
    x = torch.randn(2, 6, *SHAPES[dimensions], dtype=torch.float64)
    dy = torch.randn_like(x)
    inputs = [x.clone().requires_grad_(), x.to(memory_format=layout).requires_grad_()]
    outputs = [layer(x) for x in inputs]
    torch.testing.assert_close(*outputs)
    gradients = [torch.autograd.grad(y, [x, *layer.parameters()], dy) for x, y in zip(inputs, outputs, strict=True)]
    for of_both in zip(*gradients, strict=True):
        torch.testing.assert_close(*of_both)
        assert of_both[0].abs().sum() > 0


@pytest.mark.parametrize(("mixer", "directions"), KINDS)
def test_weights_survive_a_file_and_a_copy(mixer: Mixer, directions: ScanDirections, tmp_path: Path) -> None:
    layer, other = layer_of(mixer, directions), MambaLayer(6, 3, mixer=mixer, scan_directions=directions)
    save_file(layer.state_dict(), tmp_path / "weights.safetensors")
    other.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    x = torch.randn(1, 6, 2, 4, 3)
    assert torch.equal(other(x), layer(x))
    assert torch.equal(deepcopy(layer)(x), layer(x))
    assert all(p.is_floating_point() for p in layer.parameters())


@pytest.mark.parametrize(("mixer", "directions"), KINDS)
def test_precision_around_it_does_not_reach_inside(mixer: Mixer, directions: ScanDirections) -> None:
    layer, x = layer_of(mixer, directions), torch.randn(1, 6, 2, 4, 3)
    expected = layer(x)
    for kind in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", kind):
            assert torch.equal(layer(x), expected)
    double = layer.double()(x.double())
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("mixer", "directions"), KINDS)
def test_shapes_without_numbers(mixer: Mixer, directions: ScanDirections) -> None:
    x = torch.empty(1, 6, 2, 4, 3, device="meta", requires_grad=True)
    y = layer_of(mixer, directions).to("meta")(x)
    assert y.shape == x.shape
    y.sum().backward()
    assert x.grad is not None


def test_a_map_of_other_axes_is_refused() -> None:
    for dimensions, other in ((2, 3), (3, 2)):
        with pytest.raises(ValueError, match="cannot be read along"):
            layer_of("mamba", "axes", dimensions)(torch.zeros(1, 6, *SHAPES[other]))


def architecture() -> Architecture:
    return Architecture(
        input_channels=1,
        outputs=2,
        features_per_stage=(8, 16),
        strides=((1, 1), (2, 2)),
        kernel_sizes=((3, 3),) * 2,
        blocks_per_stage=(1, 1),
        blocks_per_stage_decoder=(1,),
        block="residual",
        mamba="encoder",
        channel_tokens_for=(8, 8),
    )


@pytest.mark.parametrize(("mixer", "directions"), KINDS)
def test_a_network_has_the_layers_that_are_asked_for(mixer: Mixer, directions: ScanDirections) -> None:
    a = replace(architecture(), channel_tokens_for=None, mixer=mixer, scan_directions=directions)
    kind = {"mamba": MambaBlock, "s4d": S4DBlock, "mamba2": Mamba2Block}[mixer]
    blocks = [type(module) for module in UNet(a).modules() if isinstance(module, TokenBlock)]
    assert blocks == [kind] * 2 * {"forward": 1, "both": 2, "axes": 4}[directions]


@pytest.mark.parametrize("change", [{"mixer": "s4d"}, {"mixer": "mamba2"}, {"scan_directions": "both"}])
def test_channels_as_tokens_are_for_mamba_alone(change: dict[str, str]) -> None:
    with pytest.raises(InputError, match="only the mixer mamba and the direction forward"):
        replace(architecture(), **change)  # type: ignore[arg-type]
    assert replace(architecture(), channel_tokens_for=None, **change)  # type: ignore[arg-type]


@pytest.mark.parametrize(("mixer", "directions"), KINDS)
def test_kernels_are_compiled_where_there_is_something_to_compile(
    mixer: Mixer, directions: ScanDirections, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[torch.device] = []
    monkeypatch.setattr(runs_network, "needs_compiling", lambda device: True)
    monkeypatch.setattr(runs_network, "compile_kernels", compiled.append)
    runs_network.compile_scan([nn.Linear(1, 1)], torch.device("cpu"))
    assert compiled == []
    runs_network.compile_scan([layer_of(mixer, directions)], torch.device("cpu"))
    assert len(compiled) == 1
