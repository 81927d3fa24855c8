from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.networks.architecture import Architecture
from umamba_cli.pipeline.networks.attention_unet import AttentionGate, AttentionUNet, GatedDecoderStage
from umamba_cli.pipeline.networks.unet import UNet

SOLID = Architecture(
    input_channels=1,
    outputs=2,
    features_per_stage=(2, 8, 4, 5),
    strides=((1, 1, 1), (1, 2, 2), (2, 2, 2), (1, 1, 2)),
    kernel_sizes=((1, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3)),
    blocks_per_stage=(1, 1, 1, 1),
    blocks_per_stage_decoder=(1, 1, 1),
)


def network_of(architecture: Architecture) -> AttentionUNet:
    torch.manual_seed(0)
    return AttentionUNet(architecture).double()


def image(*size: int) -> Tensor:
    return torch.randn(2, 1, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def sigmoid(q: float) -> float:
    return 1 / (1 + math.exp(-q))


def test_coefficients_by_hand() -> None:
    """One channel of x and of g: q = 2 * relu(3 x - g + 0.5) - 1 at every second voxel, and half-way between those."""
    gate = AttentionGate(1, 1, (1, 2)).double()
    for layer, weight, bias in ((gate.of_skip.conv, 3, None), (gate.of_gating, -1, 0.5), (gate.psi, 2, -1)):
        nn.init.constant_(layer.weight, weight)
        assert (layer.bias is None) == (bias is None)
        if bias is not None:
            nn.init.constant_(layer.bias, bias)
    x = torch.tensor([[[[0.5, 9.0, -1.0, 9.0]]]], dtype=torch.float64)
    g = torch.tensor([[[[1.0, 2.0]]]], dtype=torch.float64)
    first, second = sigmoid(2 * (1.5 - 1 + 0.5) - 1), sigmoid(2 * 0 - 1)  # of the second relu(-3 - 2 + 0.5) is 0
    # Voxel centres of the coarse grid lie at 0.5 and 2.5 of the fine one: weights 3/4 and 1/4, and the ends repeated.
    alpha = [first, 0.75 * first + 0.25 * second, 0.25 * first + 0.75 * second, second]
    expected = torch.tensor([a * v for a, v in zip(alpha, (0.5, 9.0, -1.0, 9.0), strict=True)], dtype=torch.float64)
    torch.testing.assert_close(gate(x, g).detach().flatten(), expected)


@pytest.mark.parametrize("stride", [(2, 2), (1, 2, 2), (2, 2, 2), (1, 1, 1)])
def test_a_gate_is_the_papers_equations(stride: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    gate = AttentionGate(4, 6, stride).double()
    g = torch.randn(2, 6, *(3,) * len(stride), dtype=torch.float64)
    coarse = torch.randn(2, 4, *(3,) * len(stride), dtype=torch.float64)
    x = coarse
    for axis, step in enumerate(stride):  # the same all over a voxel of g
        x = x.repeat_interleave(step, dim=2 + axis)
    w_x, w_g = (layer.weight.detach().flatten(1) for layer in (gate.of_skip.conv, gate.of_gating))
    hidden = torch.einsum("fc,bc...->bf...", w_x, coarse) + torch.einsum("fc,bc...->bf...", w_g, g)
    hidden = (hidden + gate.of_gating.bias.view(-1, *[1] * len(stride))).clamp_min(0)
    q = torch.einsum("f,bf...->b...", gate.psi.weight.flatten(), hidden) + gate.psi.bias
    alpha = gate.coefficients(x, g)
    assert alpha.shape == (2, 1, *x.shape[2:])
    # A voxel at the very corner has but one neighbour on the coarse grid.
    corners = (slice(None), 0, *(slice(None, None, n - 1) for n in x.shape[2:]))
    coarse_corners = (slice(None), *(slice(None, None, 2) for _ in stride))
    torch.testing.assert_close(alpha[corners], q.sigmoid()[coarse_corners])
    torch.testing.assert_close(gate(x, g), x * alpha)


def test_coefficients_lie_between_0_and_1_and_vary() -> None:
    torch.manual_seed(0)
    gate = AttentionGate(4, 6, (2, 2))
    alpha = gate.coefficients(100 * torch.randn(1, 4, 8, 8), 100 * torch.randn(1, 6, 4, 4)).detach()
    assert alpha.min() >= 0
    assert alpha.max() <= 1
    assert alpha.max() - alpha.min() > 0.9


@pytest.mark.parametrize(("bias", "share"), [(-1e4, 0.0), (1e4, 1.0)])
def test_a_gate_shuts_the_skip_or_lets_it_through(bias: float, share: float) -> None:
    stage = GatedDecoderStage(SOLID, 1).double()
    assert stage.gate is not None
    nn.init.constant_(stage.gate.psi.bias, bias)
    skip = torch.randn(1, 8, 4, 8, 8, dtype=torch.float64, requires_grad=True)
    below = torch.randn(1, 4, 2, 4, 4, dtype=torch.float64)
    found = stage(below, skip)
    torch.testing.assert_close(found, stage.blocks(torch.cat((stage.upsample(below), share * skip), dim=1)))
    found.square().sum().backward()
    assert skip.grad is not None
    assert bool(skip.grad.any()) == bool(share)


def test_all_skips_but_the_one_at_full_resolution_have_a_gate() -> None:
    def gates(network: nn.Module) -> list[str]:
        return [name for name, module in network.named_modules() if isinstance(module, AttentionGate)]

    assert gates(network_of(SOLID)) == ["decoder.1.gate", "decoder.2.gate"]
    two = replace(
        SOLID, features_per_stage=(2, 3), strides=SOLID.strides[:2], kernel_sizes=SOLID.kernel_sizes[:2],
        blocks_per_stage=(1, 1), blocks_per_stage_decoder=(1,),
    )  # fmt: skip
    assert gates(network_of(two)) == []


def test_with_open_gates_it_is_the_unet() -> None:
    network, unet = network_of(SOLID), UNet(SOLID).double()
    missing = unet.load_state_dict(network.state_dict(), strict=False)
    assert missing.missing_keys == []
    assert all(".gate." in key for key in missing.unexpected_keys)
    x = image(4, 8, 16)
    assert not torch.allclose(network(x)[0], unet(x)[0])
    for module in network.modules():
        if isinstance(module, AttentionGate):
            nn.init.constant_(module.psi.bias, 1e4)
    for ours, expected in zip(network(x), unet(x), strict=True):
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("precision", ["as it is", "autocast"])
@pytest.mark.parametrize("stride", [(2, 2), (1, 2, 2)])
def test_a_gate_keeps_type_and_memory_format(stride: tuple[int, ...], precision: str) -> None:
    axes = len(stride)
    layout = torch.channels_last if axes == 2 else torch.channels_last_3d
    dtype = torch.bfloat16 if precision == "autocast" else torch.float32
    # 8 channels: those at which PyTorch's own strided 1x1 convolution fails in backward, see `blocks.Shortcut`.
    skip = torch.randn(2, 8, *(4 * step for step in stride), dtype=dtype).to(memory_format=layout).requires_grad_()
    below = torch.randn(2, 6, *(4,) * axes, dtype=dtype).to(memory_format=layout)
    gate = AttentionGate(8, 6, stride).to(memory_format=layout)  # type: ignore[call-overload]
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
        gated = gate(skip, below)
    assert gated.dtype == dtype
    assert gated.is_contiguous(memory_format=layout)
    gated.sum().backward()
    assert skip.grad is not None
    assert skip.grad.isfinite().all()


def test_checkpointing_changes_no_gradient() -> None:
    network = network_of(SOLID)
    gradients = []
    for network.checkpointing in (False, True):
        network.zero_grad()
        sum(y.square().mean() for y in network(image(4, 8, 16))).backward()
        gradients.append([p.grad.clone() for p in network.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_it_has_shapes_without_numbers() -> None:
    network = AttentionUNet(SOLID).to("meta")
    assert network.eval()(torch.empty(1, 1, 4, 8, 16, device="meta")).shape == (1, 2, 4, 8, 16)
    with FakeTensorMode():
        assert AttentionUNet(SOLID)(torch.empty(1, 1, 4, 8, 16))[2].shape == (1, 2, 2, 2, 4)


def test_sizes_and_architectures_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="multiples of"):
        network_of(SOLID)(image(4, 8, 9))
    with pytest.raises(InputError, match="plain convolutions"):
        AttentionUNet(replace(SOLID, mamba="encoder"))
