"""Float16 ends at 65,504, and what a Mamba layer gives out may be larger: what takes it must not round it to that."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from mixers import MIXERS
from networks_of_all_kinds import NETWORKS, PATCH, network_of
from torch import Tensor, nn

from umamba_cli.pipeline.devices import Compute
from umamba_cli.pipeline.networks import blocks
from umamba_cli.pipeline.networks.architecture import Mixer, ScanDirections
from umamba_cli.pipeline.networks.mamba import MambaLayer
from umamba_cli.pipeline.networks.normalization import InstanceNorm
from umamba_cli.pipeline.networks.unet import UNet, unbounded_maps
from umamba_cli.pipeline.training.loader import Batch
from umamba_cli.pipeline.training.losses import SegmentationLoss
from umamba_cli.pipeline.training.step import TrainingStep

LARGEST = torch.finfo(torch.float16).max
CONVOLUTIONS = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)
WITH_MAMBA = [name for name in NETWORKS if "none" not in name]


def batch(dimensions: int) -> Batch:
    generator = torch.Generator().manual_seed(1)
    layout = torch.channels_last if dimensions == 2 else torch.channels_last_3d
    images = torch.randn(2, 1, *(PATCH,) * dimensions, generator=generator).to(memory_format=layout)
    return Batch(images, torch.randint(0, 3, (2, *(PATCH,) * dimensions), generator=generator))


@torch.no_grad()
def drive(network: UNet, images: Tensor, size: float, by: Literal["D", "out_proj"]) -> None:
    """Scale the weights of every Mamba layer, the first one first, until it gives out numbers of this size."""
    largest: dict[nn.Module, float] = {}
    for layer in network.modules():
        if isinstance(layer, MambaLayer):
            hook = layer.register_forward_hook(lambda module, _, y: largest.update({module: float(y.abs().max())}))
            network(images)
            while largest[layer] < size:  # with D more than once: the states have their part too
                for name, weight in layer.mamba.named_parameters():
                    if name.split(".")[-1] == "D" if by == "D" else name == "out_proj.weight":
                        weight.mul_(1.5 * size / largest[layer])
                network(images)
            hook.remove()


@functools.cache
def _weights(name: str, dimensions: int, size: float, by: Literal["D", "out_proj"]) -> dict[str, Tensor]:
    network = network_of(name, dimensions)
    drive(network, batch(dimensions).images, size, by)
    with torch.no_grad():
        for head in network.heads:
            head.weight.mul_(1 / size)
    return network.state_dict()


def driven(name: str, dimensions: int, size: float = 1e6, by: Literal["D", "out_proj"] = "out_proj") -> UNet:
    """A network whose Mamba layers give out numbers of this size, and whose heads are used to them."""
    network = network_of(name, dimensions)
    network.load_state_dict(_weights(name, dimensions, size, by))
    return network


def step_of(network: UNet, precision: str, device: str = "cpu") -> TrainingStep:
    compute = Compute(torch.device(device), precision, "a test")
    optimizer = torch.optim.SGD(network.to(device).parameters(), 1e-3)
    scaler = torch.amp.GradScaler(device, enabled=precision == "fp16")
    return TrainingStep(network, optimizer, scaler, compute, 12.0, SegmentationLoss(batch_dice=False))


def watch(network: nn.Module, kinds: tuple[type[nn.Module], ...], see: Callable[[str, Any, Tensor], None]) -> None:
    """Call `see` with a layer's name, its input and its output, whenever one of these kinds is called."""
    for name, module in network.named_modules():
        if isinstance(module, kinds):

            def hook(_: nn.Module, x: tuple[Tensor], y: Tensor | list[Tensor], name: str = name) -> None:
                see(name, x[0].detach(), (y[0] if isinstance(y, list) else y).detach())

            module.register_forward_hook(hook)


@pytest.mark.parametrize("size", [1e6, 1e9])
@pytest.mark.parametrize("by", ["D", "out_proj"])
@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("name", WITH_MAMBA)
def test_a_step_in_float16_is_finite(name: str, dimensions: int, by: Literal["D", "out_proj"], size: float) -> None:
    if by == "D" and "mamba2" in name:
        pytest.skip("behind a norm: D has no part in the size of what comes out")
    network = driven(name, dimensions, size, by)
    outputs: dict[str, Tensor] = {}
    watch(network, (MambaLayer, UNet), lambda name, _, y: outputs.update({name: y}))
    step = step_of(network, "fp16")
    loss, made = step(batch(dimensions))
    if name == "mamba2" and not made:  # the norm of small numbers has large gradients: the loss's scale falls once
        loss, made = step(batch(dimensions))
    assert made
    assert loss.isfinite()
    for at, y in outputs.items():
        assert y.isfinite().all(), at
        assert not at or float(y.abs().max()) > 0.9 * size
    for at, p in network.named_parameters():
        assert p.isfinite().all(), at
        assert p.grad is None or p.grad.isfinite().all(), at


@pytest.mark.gpu
@pytest.mark.parametrize("name", WITH_MAMBA)
def test_a_step_in_float16_is_finite_on_a_gpu(name: str) -> None:
    network, given = driven(name, 3), batch(3)
    loss, made = step_of(network, "fp16", "cuda")(Batch(given.images.cuda(), given.labels.cuda()))
    assert made
    assert loss.isfinite()
    assert all(p.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("name", WITH_MAMBA)
def test_without_the_guard_it_is_not(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network = driven(name, 3)
    monkeypatch.setattr(blocks, "_autocast_takes", lambda *_: False)
    loss, made = step_of(network, "fp16")(batch(3))
    assert not made
    assert not loss.isfinite()


@pytest.mark.parametrize("name", ["umamba-bot", "umamba-enc"])
def test_heads_that_are_not_used_to_it_cost_steps_but_no_number(name: str) -> None:
    """Logits of 1e6 have gradients to match: the loss's scale falls until they fit; the loss is finite."""
    network = network_of(name, 3)
    drive(network, batch(3).images, 1e6, "out_proj")
    step = step_of(network, "fp16")
    for _ in range(20):
        loss, made = step(batch(3))
        assert loss.isfinite()
        if made:
            break
    assert made
    assert all(p.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["umamba-bot", "umamba-enc"])
def test_other_precisions_are_finite_too(name: str, precision: str) -> None:
    network = driven(name, 3)
    loss, made = step_of(network, precision)(batch(3))
    assert made
    assert loss.isfinite()


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("name", WITH_MAMBA)
def test_float32_is_taken_where_it_is_needed_and_nowhere_else(name: str, dimensions: int) -> None:
    network = driven(name, dimensions)
    needless, dangerous = [], []

    def see(at: str, x: Tensor, y: Tensor) -> None:
        is_large = float(x.abs().max()) > LARGEST
        if is_large and y.dtype != torch.float32:
            dangerous.append(at)
        if not is_large and y.dtype != torch.float16:
            needless.append(at)

    watch(network, CONVOLUTIONS, see)
    with torch.autocast("cpu", torch.float16):
        network(batch(dimensions).images)
    assert dangerous == []
    assert needless == []


def test_what_the_bottleneck_leaves_to_float16() -> None:
    """All of the encoder, and in the decoder the second convolution of each block, which stands behind a norm."""
    network = driven("umamba-bot", 3)
    wide: set[str] = set()
    watch(network, CONVOLUTIONS, lambda name, _, y: wide.add(name) if y.dtype == torch.float32 else None)
    with torch.autocast("cpu", torch.float16):
        network(batch(3).images)
    parts = {".".join(part for part in name.split(".") if not part.isdigit()) for name in wide}
    assert parts == {"decoder.upsample", "decoder.blocks.first.conv", "decoder.blocks.shortcut.conv", "heads"}


@pytest.mark.parametrize(
    ("name", "kind"), [("umamba-none", torch.float16), ("umamba-enc", torch.bfloat16), ("umamba-bot", torch.bfloat16)]
)
def test_nothing_else_changes(name: str, kind: torch.dtype) -> None:
    network = network_of(name, 2)
    kinds: set[torch.dtype] = set()
    watch(network, CONVOLUTIONS, lambda _, x, y: kinds.add(y.dtype))
    with torch.autocast("cpu", kind):
        network(batch(2).images)
    assert kinds == {kind}


def test_a_plain_decoder_ends_what_is_unbounded() -> None:
    a = network_of("umamba-bot", 2).architecture
    of_encoder, of_decoder = unbounded_maps(replace(a, block_decoder="plain"))
    assert of_encoder == (False, False, True)
    assert of_decoder == (False, False)


@pytest.mark.parametrize("slope", [None, 0.01])
def test_the_norm_sums_in_float32(slope: float | None) -> None:
    """Sums, squares and variances of what float16 can hold do not fit into float16."""
    norm = InstanceNorm(3, slope)
    x = (torch.randn(2, 3, 32, 32) * 10_000).clamp(-60_000, 60_000).half().requires_grad_()
    exact = x.detach().float().requires_grad_()
    y, expected = norm(x), norm(exact)
    assert y.dtype == torch.float16
    torch.testing.assert_close(y.float(), expected, rtol=1e-3, atol=1e-3)
    dy = torch.randn(y.shape)
    y.backward(dy.half())
    of_weight, norm.weight.grad = norm.weight.grad, None
    expected.backward(dy)
    torch.testing.assert_close(of_weight, norm.weight.grad, rtol=1e-2, atol=0.5)
    assert x.grad is not None
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("directions", ["forward", "axes"])
@pytest.mark.parametrize("mixer", MIXERS)
def test_a_mamba_layer_takes_what_float16_cannot_hold(mixer: Mixer, directions: ScanDirections) -> None:
    layer = MambaLayer(8, 2, mixer=mixer, scan_directions=directions)
    x = (1e12 * torch.randn(2, 8, 6, 5)).requires_grad_()
    with torch.autocast("cpu", torch.float16):
        y = layer(x)
    y.sum().backward()
    assert y.dtype == torch.float32
    assert y.isfinite().all()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    torch.testing.assert_close(y, layer(x / 1e12), rtol=1e-3, atol=1e-3)
