from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from umamba_cli.pipeline.errors import InputError
from umamba_cli.pipeline.networks.architecture import Architecture
from umamba_cli.pipeline.networks.blocks import NearestUpsampling, PooledShortcut, ResidualBlock, Shortcut
from umamba_cli.pipeline.networks.mamba import MambaLayer
from umamba_cli.pipeline.networks.unet import UNet


def architecture(dimensions: int = 2, stages: int = 3) -> Architecture:
    return Architecture(
        input_channels=1,
        outputs=2,
        features_per_stage=(8, 16, 16, 16, 16)[:stages],
        strides=((1,) * dimensions, *(((2,) * dimensions,) * (stages - 1))),
        kernel_sizes=((3,) * dimensions,) * stages,
        blocks_per_stage=(2,) * stages,
        blocks_per_stage_decoder=(1,) * (stages - 1),
        block="residual",
    )


@pytest.mark.parametrize(
    ("stages", "mamba", "every", "expected"),
    [
        (4, "none", 1, ()),
        (4, "bottleneck", 1, (3,)),
        (4, "encoder", 1, (0, 1, 2, 3)),
        (4, "encoder", 2, (1, 3)),
        (5, "encoder", 2, (0, 2, 4)),
    ],
)
def test_mamba_stands_where_it_is_named(stages: int, mamba: str, every: int, expected: tuple[int, ...]) -> None:
    a = replace(architecture(stages=stages), mamba=mamba, mamba_every=every)  # type: ignore[arg-type]
    assert a.mamba_stages == expected
    layers = UNet(a).encoder.mamba_layers
    assert tuple(i for i, layer in enumerate(layers) if isinstance(layer, MambaLayer)) == expected


def test_channels_are_tokens_where_there_are_no_more_voxels_than_channels() -> None:
    # Voxels at the four stages: 128, 32, 8, 2; channels: 8, 16, 16, 16.
    a = replace(architecture(stages=4), mamba="encoder", channel_tokens_for=(16, 8))
    assert a.channel_token_voxels == {2: 8, 3: 2}
    network = UNet(a)
    assert [layer.norm.normalized_shape for layer in network.encoder.mamba_layers] == [(8,), (16,), (8,), (2,)]
    assert network(torch.randn(1, 1, 16, 8))[0].shape == (1, 2, 16, 8)
    # As many voxels as channels are few enough; where no Mamba layer stands, nothing is taken.
    assert replace(a, channel_tokens_for=(16, 16)).channel_token_voxels == {2: 16, 3: 4}
    assert replace(a, channel_tokens_for=(16, 16), mamba_every=2).channel_token_voxels == {3: 4}
    assert replace(a, mamba="none").channel_token_voxels == {}


def test_a_mamba_layer_over_channels_is_one_over_voxels_of_the_turned_map() -> None:
    torch.manual_seed(0)
    over_channels, over_voxels = MambaLayer(6, channels_are_tokens=True), MambaLayer(6)
    over_voxels.load_state_dict(over_channels.state_dict())
    x = torch.randn(2, 5, 2, 3)
    turned = x.flatten(2).mT.unflatten(2, (5, 1))  # six channels, five voxels
    torch.testing.assert_close(over_channels(x).flatten(2), over_voxels(turned).flatten(2).mT)


def test_weights_over_channels_are_bound_to_their_patch() -> None:
    network = UNet(replace(architecture(), mamba="encoder", channel_tokens_for=(8, 4)))
    with pytest.raises(InputError, match="bound to one patch size") as error:
        network(torch.zeros(1, 1, 4, 8))
    assert "(8, 4)" in error.value.next_step
    # Where every stage has more voxels than channels, any size will do.
    free = UNet(replace(architecture(), mamba="encoder", channel_tokens_for=(32, 32)))
    assert free(torch.zeros(1, 1, 40, 32))[0].shape == (1, 2, 40, 32)


def test_nearest_upsampling_repeats_voxels_and_then_convolves() -> None:
    torch.manual_seed(0)
    upsampling = NearestUpsampling(3, 4, (1, 2, 3))
    x = torch.randn(1, 3, 2, 2, 2)
    repeated = x.repeat_interleave(2, 3).repeat_interleave(3, 4)
    torch.testing.assert_close(upsampling(x), upsampling.conv(repeated))


def test_the_last_decoder_stage_can_do_without_its_skip() -> None:
    torch.manual_seed(0)
    with_all, without = (UNet(replace(architecture(), full_resolution_skip=skip)) for skip in (True, False))
    entries = [network.decoder[0].blocks[0].first.conv.weight.shape[1] for network in (with_all, without)]
    assert entries == [16, 8]
    assert without.decoder[1].blocks[0].first.conv.weight.shape[1] == 32
    assert without(torch.randn(1, 1, 8, 8))[0].shape == (1, 2, 8, 8)


def test_shortcuts_stand_where_they_are_named() -> None:
    def kinds(**change: object) -> list[list[type[nn.Module]]]:
        stages = UNet(replace(architecture(), stem="blocks", **change)).encoder  # type: ignore[arg-type]
        return [[type(block.shortcut) for block in stage] for stage in (stages.stem, *stages.stages)]

    needed, unchanged = [Shortcut, nn.Identity], [nn.Identity, nn.Identity]
    pooled = [PooledShortcut, nn.Identity]
    assert kinds() == [needed, unchanged, needed, needed]
    assert kinds(shortcut="convolution_each_stage") == [needed, needed, needed, needed]
    assert kinds(shortcut="pooling") == [pooled, unchanged, pooled, pooled]


def test_a_pooled_shortcut_averages_and_changes_the_width_only_where_it_must() -> None:
    x = torch.arange(16.0).view(1, 1, 4, 4)
    expected = torch.tensor([[[[2.5, 4.5], [10.5, 12.5]]]])
    torch.testing.assert_close(PooledShortcut(1, 1, (2, 2))(x), expected)
    wider = PooledShortcut(1, 3, (2, 2))
    torch.testing.assert_close(wider(x), F.instance_norm(wider.conv(expected)))


@pytest.mark.parametrize("dimensions", [2, 3])
def test_a_residual_encoder_begins_as_its_shortcuts(dimensions: int) -> None:
    a = replace(architecture(dimensions), shortcut="pooling", stem="convolution", block_decoder="plain")
    blocks = [module for module in UNet(a).modules() if isinstance(module, ResidualBlock)]
    assert len(blocks) == 6
    assert not any(p.any() for block in blocks for p in block.second.norm.parameters())
    paper = [module for module in UNet(architecture(dimensions)).modules() if isinstance(module, ResidualBlock)]
    assert all(block.second.norm.weight.all() for block in paper)  # type: ignore[operator]


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("shortcut", ["convolution", "convolution_each_stage", "pooling"])
def test_channels_last_gives_the_same_gradients(dimensions: int, shortcut: str) -> None:
    """Eight feature maps: the number at which PyTorch's strided 1x1 convolution crashes in this memory format."""
    torch.manual_seed(0)
    a = replace(
        architecture(dimensions),
        features_per_stage=(8, 8, 8),
        shortcut=shortcut,  # type: ignore[arg-type]
        upsampling="nearest",
        mamba="encoder",
        channel_tokens_for=(4, 8, 8)[-dimensions:],
    )
    network = UNet(a)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.1 * torch.randn_like(p))
    x = torch.randn(1, 1, *a.channel_tokens_for or ())
    expected = _gradients(network, x)
    memory_format = torch.channels_last if dimensions == 2 else torch.channels_last_3d
    network.to(memory_format=memory_format)
    found = _gradients(network, x.to(memory_format=memory_format))
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-4, msg=name)


def _gradients(network: UNet, x: torch.Tensor) -> dict[str, torch.Tensor]:
    network.zero_grad()
    torch.stack([y.square().mean() for y in network(x)]).sum().backward()
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    "change",
    [
        {"mamba_every": 0},
        {"channel_tokens_for": (8, 6)},
        {"channel_tokens_for": (8, 8, 8)},
        {"channel_tokens_for": (0, 8)},
    ],
)
def test_contradictions_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(InputError):
        replace(architecture(), **change)  # type: ignore[arg-type]


def test_an_architecture_with_every_field_survives_json() -> None:
    a = replace(
        architecture(),
        block_decoder="plain",
        shortcut="pooling",
        stem="convolution",
        upsampling="nearest",
        full_resolution_skip=False,
        mamba="encoder",
        mamba_every=2,
        channel_tokens_for=(8, 8),
    )
    assert Architecture.from_json(json.loads(json.dumps(a.to_json()))) == a


@pytest.mark.parametrize(
    "changed",
    [
        {"features_per_stage": (8, -16, 16)},
        {"features_per_stage": (8, 10**30, 16)},
        {"strides": ((1, 1), (0, 2), (2, 2))},
        {"kernel_sizes": ((3, 3), (-1, 3), (3, 3))},
        {"blocks_per_stage": (1, 10**9, 1)},
        {"blocks_per_stage_decoder": (0, 1)},
        {"outputs": 0},
        {"input_channels": 10**9},
    ],
)
def test_absurd_sizes_are_refused(changed: dict[str, object]) -> None:
    with pytest.raises(InputError, match="is possible"):
        replace(architecture(), **changed)  # type: ignore[arg-type]
