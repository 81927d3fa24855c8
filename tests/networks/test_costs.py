"""Multiply-adds, against what can be counted by hand."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
from small_trainings import PLAN, SETTINGS
from torch import Tensor, nn

from umamba_cli.pipeline.devices import Compute
from umamba_cli.pipeline.networks import mamba2, s4d
from umamba_cli.pipeline.networks.architecture import Mixer
from umamba_cli.pipeline.networks.blocks import convolution
from umamba_cli.pipeline.networks.costs import multiply_adds
from umamba_cli.pipeline.networks.mamba import MambaBlock, MambaLayer
from umamba_cli.pipeline.networks.registry import find_model
from umamba_cli.pipeline.training.losses import SegmentationLoss
from umamba_cli.pipeline.workflows.models import ModelNeeds, model_needs


def test_a_convolution_has_one_for_each_weight_and_voxel() -> None:
    assert multiply_adds(convolution(3, 5, (3, 3)), (1, 3, 8, 4)) == 3 * 5 * 9 * 8 * 4
    assert multiply_adds(convolution(3, 5, (1, 3, 3), (1, 2, 2)), (2, 3, 4, 8, 4)) == 2 * 3 * 5 * 9 * 4 * 4 * 2


def test_a_mamba_block() -> None:
    L, C, D, N, R = 10, 8, 16, 16, 1
    projections = L * (C * 2 * D + D * (R + 2 * N) + R * D + D * C)
    scan = L * D * (9 * N + 2 + 2) // 2
    assert multiply_adds(MambaBlock(C), (1, L, C)) == projections + scan + L * D * 4


@pytest.mark.parametrize("length", [16, 64])
def test_fourier_transforms(length: int) -> None:
    class ThereAndBack(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.fft.irfft(torch.fft.rfft(x, n=length, dim=1), n=length, dim=1)

    expected = 2 * 2.5 * 2 * 3 * length * math.log2(length) / 2
    assert multiply_adds(ThereAndBack(), (2, length // 2, 3)) == expected


def test_nothing_is_computed_and_nothing_changes() -> None:
    with torch.device("meta"):
        layer = MambaLayer(8)
    layer.norm.eval()
    assert multiply_adds(layer, (1, 8, 4, 4)) > 0
    assert layer.training
    assert not layer.norm.training
    assert all(p.is_meta for p in layer.parameters())


@pytest.mark.parametrize("mixer", ["mamba", "s4d", "mamba2"])
def test_every_mixer_is_counted_and_grows_with_the_tokens(mixer: str) -> None:
    def count(length: int, directions: str = "forward") -> int:
        layer = MambaLayer(16, 2, mixer=mixer, scan_directions=directions)  # type: ignore[arg-type]
        return multiply_adds(layer, (1, 16, 32, length))

    assert count(8) > 32 * 8 * 16 * 64  # the projections alone
    assert 1.8 < count(32) / count(16) < 2.3
    assert 1.2 < count(16, "both") / count(16) < 2
    assert count(16, "both") < count(16, "axes") < 2 * count(16, "both")


@pytest.mark.parametrize(("module", "mixer", "piece"), [(mamba2, "mamba2", 1 << 18), (s4d, "s4d", 1 << 15)])
def test_pieces_that_are_alike_are_counted_as_if_all_were_computed(
    module: ModuleType, mixer: Mixer, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PIECE_ELEMENTS", piece)  # so that there are many
    calls: Counter[str] = Counter()
    one_piece = {mamba2: "_piece", s4d: "_kernel"}[module]
    compute_piece = getattr(module, one_piece)

    def counted(*arguments: Any) -> Any:
        calls[way] += 1
        return compute_piece(*arguments)

    def needs() -> ModelNeeds:
        plan, compute = replace(PLAN, mixer=mixer, scan_directions="both"), Compute(torch.device("cpu"), "bf16", "")
        return model_needs(find_model("umamba-enc"), plan, SETTINGS, compute, loss=SegmentationLoss(batch_dice=False))

    monkeypatch.setattr(module, one_piece, counted)
    way = "few"
    found = needs()
    monkeypatch.setattr(module, "FakeTensor", ())  # nothing is known to be one
    way = "all"
    wanted = needs()
    assert found.memory == wanted.memory
    assert found.multiply_adds == pytest.approx(wanted.multiply_adds, rel=1e-6)  # each transform's are rounded
    assert calls["all"] > 2 * calls["few"] > 0
