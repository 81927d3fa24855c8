from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from mixers import MIXERS
from needs_monai import NEEDS_MONAI
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.networks import registry
from umamba_cli.pipeline.networks.architecture import Architecture, Mixer
from umamba_cli.pipeline.networks.blocks import Convolution3d, convolution
from umamba_cli.pipeline.networks.mamba import MambaBlock, MambaLayer
from umamba_cli.pipeline.networks.normalization import LARGEST_BATCH, InstanceNorm
from umamba_cli.pipeline.networks.registry import (
    NetworkPlan,
    available_models,
    build_network,
    find_variant,
    register_model,
)
from umamba_cli.pipeline.networks.unet import UNet, count_parameters
from umamba_cli.pipeline.runs.checkpoint import Checkpoint, read_checkpoint, write_checkpoint

MODELS = (
    *("unet", "resenc", "umamba-none", "umamba-bot", "umamba-enc", "unet++", "attention-unet", "unetr++"),
    *(pytest.param(name, marks=NEEDS_MONAI) for name in ("segresnet", "unetr", "swin-unetr")),
)
ONE_HEAD = ("unetr", "swin-unetr")
WITH_MAMBA = (
    *("umamba-bot", "umamba-enc", "umamba-bot+s4d", "umamba-bot+mamba2", "umamba-bot+both"),
    *("umamba-enc+axes", "umamba-enc+s4d-both", "umamba-enc+mamba2-axes"),
)


def plan(dimensions: int) -> NetworkPlan:
    return NetworkPlan(
        input_channels=2,
        outputs=3,
        patch_size=(16,) * dimensions,
        features_per_stage=(4, 6, 8),
        strides=((1,) * dimensions, (2,) * dimensions, (1,) * (dimensions - 2) + (2, 2)),
        kernel_sizes=((3,) * dimensions, (3,) * dimensions, (1,) * (dimensions - 2) + (3, 3)),
        convolutions_per_stage=(2, 2, 2),
        convolutions_per_stage_decoder=(2, 2),
        blocks_per_stage=(1, 2, 1),
        blocks_per_stage_decoder=(1, 2),
    )


def network_of(name: str, dimensions: int) -> nn.Module:
    variant = find_variant(name)
    chosen = {"mixer": variant.mixer, "scan_directions": variant.scan_directions}
    return build_network(variant.model, replace(plan(dimensions), **chosen))  # type: ignore[arg-type]


@pytest.mark.parametrize("model", [*MODELS, *WITH_MAMBA[2:]])
@pytest.mark.parametrize("dimensions", [2, 3])
def test_heads_have_the_sizes_of_their_resolutions(model: str, dimensions: int) -> None:
    network = network_of(model, dimensions)
    x = torch.randn(2, 2, *(16,) * dimensions)
    outputs = network(x)
    sizes = (16,) if model in ONE_HEAD else (16, 16) if model == "unet++" else (16, 8)
    assert [tuple(y.shape) for y in outputs] == [(2, 3, *(n,) * dimensions) for n in sizes]
    assert network.eval()(x).shape == outputs[0].shape
    torch.testing.assert_close(network(x), outputs[0])


@pytest.mark.parametrize("model", [*MODELS, *WITH_MAMBA[2:]])
@pytest.mark.parametrize("dimensions", [2, 3])
def test_every_parameter_has_a_gradient(model: str, dimensions: int) -> None:
    torch.manual_seed(0)
    network = network_of(model, dimensions)
    with torch.no_grad():  # the residual encoder begins with zeros that keep gradients from what lies before them
        for p in network.parameters():
            p.add_(0.1 * torch.randn_like(p))
    sum(y.square().mean() for y in network(torch.randn(2, 2, *(16,) * dimensions))).backward()
    # The bias before an instance norm is taken out again by it; its gradient is rounding noise, but it is there.
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    silent = [name for name, p in network.named_parameters() if not p.grad.abs().sum() > 0]
    assert silent == []


@pytest.mark.parametrize("model", [*WITH_MAMBA, "unet++", "attention-unet", "unetr++"])
def test_channels_last_gives_the_same_result_and_bfloat16_a_close_one(model: str) -> None:
    torch.manual_seed(0)
    network = network_of(model, 3).eval()
    x = torch.randn(1, 2, 16, 16, 16)
    expected = network(x).detach()
    network.to(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(network(x.to(memory_format=torch.channels_last_3d)), expected, rtol=1e-4, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        low = network(x).detach()
    # Of untrained weights: plain umamba-enc differs by 0.05 to 0.18 from seed to seed.
    assert float((low - expected).abs().mean() / expected.abs().mean()) < (0.1 if model in MODELS else 0.2)


def test_the_models_differ_by_their_mamba_layers_alone() -> None:
    def layers(model: str) -> list[str]:
        network = build_network(model, plan(2))
        return [name for name, module in network.named_modules() if isinstance(module, MambaLayer)]

    assert layers("umamba-none") == []
    assert layers("umamba-bot") == ["encoder.mamba_layers.2"]
    assert layers("umamba-enc") == [f"encoder.mamba_layers.{i}" for i in range(3)]
    mamba = count_parameters(MambaLayer(8))
    assert count_parameters(build_network("umamba-bot", plan(2))) == mamba + count_parameters(
        build_network("umamba-none", plan(2))
    )


def test_a_mamba_layer_sees_the_past_alone() -> None:
    torch.manual_seed(0)
    block = MambaBlock(6)
    tokens = torch.randn(1, 30, 6)
    changed = tokens.clone()
    changed[:, 17] += 1
    difference = (block(tokens) - block(changed)).detach().abs().sum(-1)[0]
    assert float(difference[:17].max()) == 0
    assert float(difference[17:].min()) > 0


class Copies(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Collects what is copied while it is entered: operation and number of elements."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[tuple[str, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in ("clone", "copy_", "_to_copy", "contiguous", "cat"):
            self.found.append((func.overloadpacket.__name__, result.numel()))
        return result


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("axes", [2, 3])
def test_nothing_is_copied_around_a_mamba_layer_in_channels_last(axes: int, mixer: Mixer) -> None:
    layout = torch.channels_last if axes == 2 else torch.channels_last_3d
    shape = (2, 16, 6, 5, 4)[: axes + 2]
    x = torch.randn(shape).to(memory_format=layout).requires_grad_()
    layer, dy = MambaLayer(16, axes, mixer=mixer), torch.randn(shape).to(memory_format=layout)
    with Copies() as copies:
        y = layer(x)
    assert mixer != "mamba" or copies.found == []
    assert ("clone", x.numel()) not in copies.found
    assert y.is_contiguous(memory_format=layout)
    with Copies() as copies:
        y.backward(dy)
    # Inside the layer: where gate and input, and step sizes and matrices, are put side by side again.
    assert mixer != "mamba" or [name for name, _ in copies.found] == ["cat", "cat"]
    assert x.grad is not None
    assert x.grad.is_contiguous(memory_format=layout)
    with Copies() as copies:
        layer(x.contiguous())
    assert ("clone", x.numel()) in copies.found  # such a copy would be seen


@pytest.mark.parametrize("model", [*MODELS, *WITH_MAMBA[2:]])
def test_a_patch_that_does_not_fit_is_refused_with_one_that_does(model: str) -> None:
    network = network_of(model, 2)
    with pytest.raises(InputError, match=r"a patch of \(16, 18\) does not fit the network") as error:
        network(torch.zeros(1, 2, 16, 18))
    # What has weights for each voxel fits the plan's size alone.
    assert error.value.next_step in ("use (16, 20), the next size that fits", "use (16, 16)")
    with pytest.raises(InputError, match="does not fit the network"):
        network(torch.zeros(1, 2, 16, 2))


@pytest.mark.parametrize("model", [*MODELS, *WITH_MAMBA[2:]])
@pytest.mark.parametrize("dimensions", [2, 3])
def test_a_checkpoint_has_all_of_a_network(model: str, dimensions: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = network_of(model, dimensions)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.1 * torch.randn_like(p))
    write_checkpoint(tmp_path / "network.safetensors", Checkpoint(1, network.state_dict()))
    again = network_of(model, dimensions).eval()
    again.load_state_dict(read_checkpoint(tmp_path / "network.safetensors").weights)
    x = torch.randn(1, 2, *(16,) * dimensions)
    torch.testing.assert_close(again(x), network.eval()(x), rtol=0, atol=0)


@pytest.mark.parametrize("model", [*MODELS, *WITH_MAMBA[2:]])
@pytest.mark.parametrize("dimensions", [2, 3])
def test_a_step_in_bfloat16_is_finite(model: str, dimensions: int) -> None:
    torch.manual_seed(0)
    network = network_of(model, dimensions)
    layout = torch.channels_last if dimensions == 2 else torch.channels_last_3d
    network.to(memory_format=layout)  # type: ignore[call-overload]
    x = 3 * torch.randn(2, 2, *(16,) * dimensions).to(memory_format=layout)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = network(x)
    assert all(y.dtype in (torch.bfloat16, torch.float32) and y.isfinite().all() for y in outputs)
    sum(y.float().square().mean() for y in outputs).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize(
    "change",
    [
        {"features_per_stage": (4,), "strides": ((1, 1),), "kernel_sizes": ((3, 3),)},
        {"strides": ((1, 1), (2, 2))},
        {"kernel_sizes": ((3, 3), (3, 3), (3, 2))},
        {"kernel_sizes": ((3, 3), (3, 3), (3, 3, 3))},
        {"convolutions_per_stage": (2, 2)},
    ],
)
def test_contradictions_are_refused_when_built(change: dict[str, object]) -> None:
    with pytest.raises(InputError):
        build_network("unet", replace(plan(2), **change))  # type: ignore[arg-type]


def test_an_architecture_survives_json() -> None:
    network = build_network("umamba-enc", plan(3))
    assert isinstance(network, UNet)
    assert Architecture.from_json(network.architecture.to_json()) == network.architecture


@pytest.mark.parametrize(
    ("kernel", "size"),
    [
        *(((3, 3, 3), (depth, 5, 5)) for depth in (1, 2, 3)),
        *(((5, 3, 3), (depth, 5, 5)) for depth in (3, 4, 5)),
        *(((1, 5, 5), (4, height, 6)) for height in (1, 5)),
    ],
)
def test_a_short_map_has_right_gradients_in_bfloat16(kernel: tuple[int, ...], size: tuple[int, ...]) -> None:
    """PyTorch's own are made of memory that was never written where it is shorter than the kernel."""
    torch.manual_seed(0)
    layer = convolution(16, 16, kernel).to(memory_format=torch.channels_last_3d)
    x = torch.randn(2, 16, *size).to(memory_format=torch.channels_last_3d)
    dy = torch.randn(2, 16, *size).bfloat16()

    def gradient(kind: torch.dtype) -> torch.Tensor:
        layer.zero_grad()
        filth = [torch.full((n,), float("nan"), dtype=torch.bfloat16) for n in (1000, 20_000, 200_000, 400_000)]
        del filth
        with torch.autocast("cpu", kind, enabled=kind == torch.bfloat16):
            y = layer(x)
        assert y.dtype == kind
        y.backward(dy.to(kind))
        return layer.weight.grad.clone()

    wanted = gradient(torch.float32)
    for _ in range(10):
        found = gradient(torch.bfloat16)
        if any(n < k for n, k in zip(size, kernel, strict=True)):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
        else:  # where nothing is wrong, it stays in bfloat16
            assert 1e-4 < float((found - wanted).abs().max()) < 1


@pytest.mark.parametrize("model", [*MODELS, *WITH_MAMBA[2:]])
def test_all_convolutions_are_guarded(model: str) -> None:
    kinds = {type(module) for module in network_of(model, 3).modules() if isinstance(module, nn.Conv3d)}
    assert kinds == {Convolution3d}


def test_other_packages_can_add_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_MODELS", dict(registry._MODELS))
    register_model("mine", lambda plan: nn.Conv2d(plan.input_channels, plan.outputs, 1), "a test's")
    assert "mine" in available_models()
    assert isinstance(build_network("mine", plan(2)), nn.Conv2d)
    with pytest.raises(InputError, match="no model 'other'") as error:
        build_network("other", plan(2))
    assert "mine" in error.value.next_step


def test_a_mamba_layer_has_shapes_without_numbers() -> None:
    layer = MambaLayer(16).to("meta")
    assert layer(torch.empty(1, 16, 4, 6, 6, device="meta")).shape == (1, 16, 4, 6, 6)


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("slope", [None, 0.01])
@pytest.mark.parametrize("batch", [1, 3, LARGEST_BATCH + 1])
@pytest.mark.parametrize("channels_last", [True, False])
def test_the_norm_is_pytorchs(axes: int, slope: float | None, batch: int, channels_last: bool) -> None:
    layouts = {2: torch.channels_last, 3: torch.channels_last_3d}
    layout = layouts[axes] if channels_last else torch.contiguous_format
    x = torch.randn((batch, 5, 4, 3, 2)[: axes + 2], dtype=torch.float64).to(memory_format=layout).requires_grad_()
    norm = InstanceNorm(5, slope).double()
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    expected = torch.nn.functional.instance_norm(x, weight=norm.weight, bias=norm.bias, eps=1e-5)
    expected = expected if slope is None else torch.nn.functional.leaky_relu(expected, slope)
    y, dy = norm(x), torch.randn(x.shape, dtype=torch.float64)
    torch.testing.assert_close(y, expected)
    inputs = (x, norm.weight, norm.bias)
    for a, b in zip(torch.autograd.grad(y, inputs, dy), torch.autograd.grad(expected, inputs, dy), strict=True):
        torch.testing.assert_close(a, b)
    if batch <= LARGEST_BATCH:
        assert y.is_contiguous(memory_format=layout)


def test_a_norm_of_one_voxel_is_refused() -> None:
    with pytest.raises(ValueError, match="one voxel"):
        InstanceNorm(2)(torch.zeros(1, 2, 1, 1))
