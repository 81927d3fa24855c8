from __future__ import annotations

import dataclasses
import math
import platform
import subprocess
import sys

import pytest
import torch
from torch import nn

from umamba_cli.pipeline.devices import choose_compute
from umamba_cli.pipeline.training.loader import Batch
from umamba_cli.pipeline.training.losses import SegmentationLoss
from umamba_cli.pipeline.training.position import left_as_it_is
from umamba_cli.pipeline.training.step import TrainingStep


class OneHead(nn.Conv2d):
    """The smallest network: a list of one resolution."""

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:  # type: ignore[override]
        return [super().forward(x)]


def step_of(network: nn.Module, *, gradient_clip: float = 1e9) -> TrainingStep:
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    loss = SegmentationLoss(batch_dice=False)
    return TrainingStep(network, optimizer, scaler, choose_compute("cpu", "fp32"), gradient_clip, loss)


def batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    return Batch(torch.randn(2, 1, 6, 6, generator=generator), torch.randint(0, 3, (2, 6, 6), generator=generator))


def test_a_step_goes_down_the_gradient() -> None:
    torch.manual_seed(0)
    network, data = OneHead(1, 3, 3, padding=1), batch()
    before = network.weight.detach().clone()
    expected = SegmentationLoss(batch_dice=False)(network(data.images), data.labels)
    (gradient,) = torch.autograd.grad(expected, network.weight)
    loss, made = step_of(network)(data)
    assert made
    assert not loss.requires_grad
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(network.weight.detach(), before - 0.1 * gradient)


def test_a_large_gradient_is_clipped() -> None:
    torch.manual_seed(0)
    network, data = OneHead(1, 3, 3, padding=1), batch()
    before = [p.detach().clone() for p in network.parameters()]
    step_of(network, gradient_clip=1e-3)(data)
    moved = [(p.detach() - b).square().sum() for p, b in zip(network.parameters(), before, strict=True)]
    assert math.sqrt(sum(moved)) == pytest.approx(0.1 * 1e-3, rel=1e-3)


def test_a_step_without_a_finite_gradient_leaves_the_network_alone() -> None:
    network, data = OneHead(1, 3, 3, padding=1), batch()
    before = [p.detach().clone() for p in network.parameters()]
    data.images[0, 0, 0, 0] = math.nan
    loss, made = step_of(network)(data)
    assert not made
    assert math.isnan(loss)
    assert all(torch.equal(p, b) for p, b in zip(network.parameters(), before, strict=True))


def test_what_another_process_has_no_number_for_is_no_step_here() -> None:
    network, data = OneHead(1, 3, 3, padding=1), batch()
    before = [p.detach().clone() for p in network.parameters()]
    step = dataclasses.replace(step_of(network), in_any=lambda bad: True)
    loss, made = step(data)
    assert not made
    assert math.isfinite(loss)
    assert all(torch.equal(p, b) for p, b in zip(network.parameters(), before, strict=True))


def test_a_look_leaves_statistics_and_random_numbers_alone() -> None:
    network = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout())
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    drawn = torch.get_rng_state()
    with left_as_it_is(network, []):
        network(torch.randn(5, 2))
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc can be told to keep memory")
def test_freed_memory_is_taken_again() -> None:
    """In a process of its own: what others left in this one's memory would decide."""
    pytest.importorskip("resource")
    program = """
import resource, torch
from umamba_cli.pipeline.devices import keep_freed_memory
assert keep_freed_memory()
faults = []
for _ in range(30):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(24 << 20)  # 96 MiB, more than malloc keeps by itself
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(sum(faults[20:]))
"""
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert int(done.stdout) < 1000  # anew, it would be 24,576 pages each time
