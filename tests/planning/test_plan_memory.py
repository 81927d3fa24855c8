"""Feature maps counted by hand, and against figures that nnU-Net's source names."""

from __future__ import annotations

from umamba_cli.pipeline.planning.memory import Network, count_features
from umamba_cli.pipeline.planning.presets import PRESETS, Features


def _network(stages: int, dimensions: int, *, residual: bool, num_classes: int) -> Network:
    preset = PRESETS["resenc-m" if residual else "default"]
    return Network(
        strides=((1,) * dimensions, *((2,) * dimensions,) * (stages - 1)),
        features=Features().per_stage(stages, dimensions),
        encoder=preset.encoder_layers(stages),
        decoder=preset.decoder_layers(stages),
        residual=residual,
        num_classes=num_classes,
    )


def test_plain_network_by_hand() -> None:
    network = Network(((1, 1), (2, 2)), features=(2, 4), encoder=(3, 1), decoder=(1,), residual=False, num_classes=5)
    full, half = 8 * 8, 4 * 4
    encoder = 3 * 2 * full + 1 * 4 * half
    decoder = 2 * full + 2 * full  # one convolution, one transposed convolution
    assert count_features(network, (8, 8)) == encoder + decoder + 5 * full


def test_residual_network_by_hand() -> None:
    network = Network(((1, 1), (2, 2)), features=(2, 4), encoder=(1, 2), decoder=(1,), residual=True, num_classes=5)
    full, half = 8 * 8, 4 * 4
    stem = 2 * full
    encoder = 2 * 2 * full + (2 + 2 + 1) * 4 * half  # two convolutions a block; the second stage has a projection
    decoder = 2 * full + 2 * full
    assert count_features(network, (8, 8)) == stem + encoder + decoder + 5 * full


def test_residual_network_of_128_cubed_is_nnunets_figure() -> None:
    # nnU-Net's example has a head at every decoder stage; planning counts the first alone, as its planner does.
    other_heads = 3 * sum(edge**3 for edge in (64, 32, 16, 8))
    assert count_features(_network(6, 3, residual=True, num_classes=3), (128, 128, 128)) + other_heads == 558_319_104


def test_residual_network_of_512_squared_is_nnunets_figure() -> None:
    other_heads = 3 * sum(edge**2 for edge in (256, 128, 64, 32, 16))
    assert count_features(_network(7, 2, residual=True, num_classes=3), (512, 512)) + other_heads == 129_793_792


def test_single_stage_has_no_decoder() -> None:
    network = Network(((1, 1),), features=(2,), encoder=(2,), decoder=(), residual=False, num_classes=5)
    assert count_features(network, (4, 4)) == 2 * 2 * 16
